//! `run`: starts an execution, and follows it if asked.

use std::{fs, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Failure,
    client::Client,
    documents, executions, follow,
    output::{Output, member, remark},
};

/// How often a start is sent again when the server is away or busy; its idempotency key makes that harmless.
const ATTEMPTS_MAX: u32 = 5;

/// Flags of `run`.
#[derive(clap::Args)]
pub struct RunArgs {
    /// Name of the workflow
    workflow: String,
    /// Input: JSON, a file, or standard input
    #[arg(
        long,
        value_name = "JSON|@FILE|-",
        default_value = "null",
        hide_default_value = true
    )]
    input: String,
    /// Version to run [default: the current one]
    #[arg(long, value_name = "N")]
    version: Option<i32>,
    /// Start at most one execution under this key, however often the command is repeated
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Show what happens until it has ended; the exit code is then that of the execution
    #[arg(long, short)]
    follow: bool,
}

/// Starts an execution.
pub async fn run(client: &Client, args: &RunArgs, output: &Output) -> Result<(), Failure> {
    let mut body = json!({"input": read_input(&args.input)?});
    if let Some(version) = args.version {
        body["version"] = version.into();
    }
    let started = start(client, args, &body).await?;
    let id = member(&started, "id");
    if args.follow {
        let status = follow::follow(client, &id, None, output).await?;
        return executions::conclude(client, &id, &status, output).await;
    }
    if output.is_json() {
        output.json(&started);
    } else {
        output.line(id.as_str());
        remark(format!(
            "{}; watch it with: callboard executions tail {id}",
            member(&started, "status")
        ));
    }
    Ok(())
}

/// Sends the start until it is answered.
async fn start(client: &Client, args: &RunArgs, body: &Value) -> Result<Value, Failure> {
    let key = args
        .idempotency_key
        .clone()
        .unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
    let mut attempt = 1;
    loop {
        let request = client
            .request(
                Method::POST,
                &["v1", "workflows", &args.workflow, "executions"],
            )
            .header("idempotency-key", &key)
            .json(body);
        let pause = match client.send(request).await {
            Ok(answer) => return Ok(answer.body),
            Err(Failure::Refused(refusal))
                if matches!(refusal.status, 429 | 503) && attempt < ATTEMPTS_MAX =>
            {
                refusal
                    .retry_after
                    .unwrap_or(Duration::from_secs(1))
                    .min(Duration::from_secs(30))
            }
            Err(failure) => return Err(without_input(failure, body)),
        };
        remark(format!(
            "the server is busy, trying again in {}s",
            pause.as_secs()
        ));
        tokio::time::sleep(pause).await;
        attempt += 1;
    }
}

/// Says how to give an input, when one is missing.
fn without_input(failure: Failure, body: &Value) -> Failure {
    match failure {
        Failure::Refused(mut refusal) if refusal.status == 422 && body["input"].is_null() => {
            refusal.message.push_str("\ngive an input with --input");
            Failure::Refused(refusal)
        }
        other => other,
    }
}

/// The input as JSON: written out, from `@FILE`, or from standard input.
fn read_input(text: &str) -> Result<Value, Failure> {
    let (text, name) = match text.strip_prefix('@') {
        Some(path) => {
            let file = fs::File::open(path)
                .map_err(|error| Failure::Usage(format!("cannot read {path}: {error}")))?;
            (documents::read_text(file, path)?, path)
        }
        None if text == "-" => (
            documents::read_text(std::io::stdin().lock(), "standard input")?,
            "standard input",
        ),
        None => (text.to_owned(), "--input"),
    };
    serde_json::from_str(&text)
        .map_err(|error| Failure::Usage(format!("{name} is not JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_json_or_a_file() -> std::io::Result<()> {
        assert_eq!(read_input(r#"{"a": 1}"#).ok(), Some(json!({"a": 1})));
        let path =
            std::env::temp_dir().join(format!("callboard-input-{}.json", uuid::Uuid::now_v7()));
        fs::write(&path, "[1, 2]")?;
        let read = read_input(&format!("@{}", path.display()));
        fs::remove_file(&path)?;
        assert_eq!(read.ok(), Some(json!([1, 2])));
        for wrong in ["{", "@/no/such/file", "text"] {
            assert_eq!(
                read_input(wrong).err().map(|failure| failure.exit_code()),
                Some(2),
                "{wrong}"
            );
        }
        Ok(())
    }
}
