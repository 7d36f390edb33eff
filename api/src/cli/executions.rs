//! `executions`: what runs, what ran, and how it went.

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Failure,
    client::Client,
    follow,
    output::{Output, duration_ms, harmless, member, member_shown, member_time, remark, table},
};

/// How many node runs one request asks for.
const PAGE: usize = 1_000;
/// How many node runs `show` prints at most.
const NODE_RUNS_SHOWN_MAX: usize = 20_000;

/// What `executions` can do.
#[derive(clap::Subcommand)]
pub enum ExecutionsCommand {
    /// Newest first
    List(ListArgs),
    /// One execution with its node runs
    Show {
        /// Id of the execution; `last` is the newest one
        id: String,
    },
    /// End executions as cancelled
    Cancel {
        /// Ids of executions; `last` is the newest one
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Show what happens to an execution until it has ended; the exit code is that of the execution
    Tail {
        /// Id of the execution; `last` is the newest one
        id: String,
    },
}

/// Flags of `executions list`.
#[derive(clap::Args)]
pub struct ListArgs {
    /// Only those of this workflow
    #[arg(long, value_name = "NAME")]
    workflow: Option<String>,
    /// Only those in this status: queued, running, waiting, succeeded, failed or cancelled
    #[arg(long)]
    status: Option<String>,
    /// How many
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Go on where an earlier list ended
    #[arg(long)]
    cursor: Option<String>,
}

/// Does it.
pub async fn run(
    client: &Client,
    command: &ExecutionsCommand,
    output: &Output,
) -> Result<(), Failure> {
    match command {
        ExecutionsCommand::List(args) => list(client, args, output).await,
        ExecutionsCommand::Show { id } => {
            show(client, &resolve(client, "executions", id).await?, output).await
        }
        ExecutionsCommand::Cancel { ids } => cancel(client, ids, output).await,
        ExecutionsCommand::Tail { id } => {
            let id = resolve(client, "executions", id).await?;
            let status = follow::follow(client, &id, None, output).await?;
            conclude(client, &id, &status, output).await
        }
    }
}

/// The id that is meant: `last` is that of the newest of the collection.
pub async fn resolve(client: &Client, collection: &str, id: &str) -> Result<String, Failure> {
    if id != "last" {
        return Ok(id.to_owned());
    }
    let page = client
        .get(&["v1", collection], &[("limit", "1".to_owned())])
        .await?;
    let newest = data(&page).first().map(|newest| member(newest, "id"));
    newest.ok_or_else(|| Failure::Failed(format!("there are no {collection} yet")))
}

async fn list(client: &Client, args: &ListArgs, output: &Output) -> Result<(), Failure> {
    let query = [
        ("workflow", args.workflow.clone().unwrap_or_default()),
        ("status", args.status.clone().unwrap_or_default()),
        ("limit", args.limit.to_string()),
        ("cursor", args.cursor.clone().unwrap_or_default()),
    ];
    let page = client.get(&["v1", "executions"], &query).await?;
    print_list(
        &page,
        output,
        &[
            "ID",
            "WORKFLOW",
            "STATUS",
            "TRIGGER",
            "STARTED (UTC)",
            "TOOK",
        ],
        |row| {
            vec![
                member(row, "id"),
                format!("{}@{}", member(row, "workflow"), member(row, "version")),
                member(row, "status"),
                member(row, "trigger"),
                member_time(row, "started_at"),
                took(row),
            ]
        },
    );
    Ok(())
}

/// Prints a page of anything, and how to get the next one.
pub fn print_list(
    page: &Value,
    output: &Output,
    heading: &[&str],
    cells: impl Fn(&Value) -> Vec<String>,
) {
    if output.is_json() {
        output.json(page);
        return;
    }
    let rows: Vec<Vec<String>> = data(page).iter().map(cells).collect();
    for line in table(output.paint, heading, &rows) {
        output.line(line);
    }
    let next = member(page, "next_cursor");
    if !next.is_empty() {
        remark(format!("there are more: --cursor {next}"));
    }
}

/// The rows of a page.
pub fn data(page: &Value) -> &[Value] {
    page.get("data")
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn took(row: &Value) -> String {
    row.get("duration_ms")
        .and_then(Value::as_f64)
        .map(duration_ms)
        .unwrap_or_default()
}

async fn show(client: &Client, id: &str, output: &Output) -> Result<(), Failure> {
    let execution = client.get(&["v1", "executions", id], &[]).await?;
    let runs = node_runs(client, id).await?;
    if output.is_json() {
        output.json(&json!({"execution": execution, "node_runs": runs}));
        return Ok(());
    }
    let paint = output.paint;
    for name in [
        "id",
        "workflow",
        "version",
        "status",
        "trigger",
        "started_at",
        "finished_at",
        "host",
        "parent_id",
        "retry_of",
        "idempotency_key",
    ] {
        let text = member_shown(&execution, name);
        if !text.is_empty() {
            output.line(format!(
                "{:<16} {}",
                name.replace('_', " "),
                paint.status(&harmless(&text))
            ));
        }
    }
    if execution.get("duration_ms").is_some_and(|ms| !ms.is_null()) {
        output.line(format!("{:<16} {}", "took", took(&execution)));
    }
    output.line("");
    print_node_runs(&runs, output);
    for name in ["input", "output", "error"] {
        print_value(&execution, name, output);
    }
    Ok(())
}

/// A member with a heading, when it is there.
fn print_value(value: &Value, name: &str, output: &Output) {
    if let Some(member) = value.get(name).filter(|member| !member.is_null()) {
        output.line(format!(
            "\n{}\n{}",
            output.paint.bold(name),
            harmless(&pretty(member))
        ));
    }
}

/// JSON with indentation.
pub fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string())
}

/// All node runs, oldest first.
pub async fn node_runs(client: &Client, id: &str) -> Result<Vec<Value>, Failure> {
    let mut runs = Vec::new();
    let mut cursor = String::new();
    loop {
        let query = [("limit", PAGE.to_string()), ("cursor", cursor)];
        let page = client
            .get(&["v1", "executions", id, "node-runs"], &query)
            .await?;
        runs.extend_from_slice(data(&page));
        cursor = member(&page, "next_cursor");
        if cursor.is_empty() || runs.len() >= NODE_RUNS_SHOWN_MAX {
            return Ok(runs);
        }
    }
}

/// Node runs as a table.
pub fn print_node_runs(runs: &[Value], output: &Output) {
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            let item = run
                .get("item_index")
                .and_then(Value::as_i64)
                .map(|index| format!("[{index}]"))
                .unwrap_or_default();
            let error = run.get("error").filter(|error| !error.is_null());
            vec![
                member(run, "seq"),
                format!("{}{item}", member(run, "step")),
                member(run, "type"),
                member(run, "attempt"),
                member(run, "status"),
                member(run, "port"),
                took(run),
                error
                    .map(|error| follow::error_words(Some(error)))
                    .unwrap_or_default(),
            ]
        })
        .collect();
    for line in table(
        output.paint,
        &[
            "SEQ", "STEP", "TYPE", "TRY", "STATUS", "PORT", "TOOK", "ERROR",
        ],
        &rows,
    ) {
        output.line(line);
    }
}

async fn cancel(client: &Client, ids: &[String], output: &Output) -> Result<(), Failure> {
    let mut failed = None;
    for id in ids {
        let id = &resolve(client, "executions", id).await?;
        let request = client.request(Method::POST, &["v1", "executions", id, "cancel"]);
        let (result, failure) = match client.send(request).await {
            Ok(_) => ("cancelled".to_owned(), None),
            Err(failure @ Failure::Refused(_)) => (failure.to_string(), Some(failure)),
            Err(failure) => return Err(failure),
        };
        if output.is_json() {
            output.json_line(&json!({"id": id, "cancelled": failure.is_none(), "detail": result}));
        } else {
            output.line(format!("{id}  {}", output.paint.status(&result)));
        }
        failed = failed.or(failure);
    }
    if failed.is_some() {
        Err(Failure::Told)
    } else {
        Ok(())
    }
}

/// Prints what a followed execution came to. Fails unless it succeeded.
pub async fn conclude(
    client: &Client,
    id: &str,
    status: &str,
    output: &Output,
) -> Result<(), Failure> {
    let execution = client.get(&["v1", "executions", id], &[]).await?;
    if output.is_json() {
        output.json_line(&json!({"execution": execution}));
    } else if let Some(result) = execution.get("output").filter(|result| !result.is_null()) {
        output.line(harmless(&pretty(result)));
    }
    if status == "succeeded" {
        Ok(())
    } else {
        Err(Failure::Told)
    }
}
