//! `keys`: API keys. A key itself is shown once, when it is made.

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Failure,
    client::Client,
    executions::print_list,
    output::{Output, member, member_time, remark},
};

/// What `keys` can do.
#[derive(clap::Subcommand)]
pub enum KeysCommand {
    /// Make a key and print it, once
    Create {
        /// Name for people; it is the caller's name too
        name: String,
        /// What it allows, such as workflows:run; repeatable
        #[arg(
            long = "scope",
            required = true,
            value_name = "SCOPE",
            value_delimiter = ','
        )]
        scopes: Vec<String>,
        /// When it ends, such as 2030-01-01T00:00:00Z
        #[arg(long, value_name = "TIME")]
        expires_at: Option<String>,
    },
    /// All keys, without their secrets
    List,
    /// Make keys worthless
    Revoke {
        /// Ids of keys
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// Does it.
pub async fn run(client: &Client, command: &KeysCommand, output: &Output) -> Result<(), Failure> {
    match command {
        KeysCommand::Create {
            name,
            scopes,
            expires_at,
        } => create(client, name, scopes, expires_at.as_deref(), output).await,
        KeysCommand::List => list(client, output).await,
        KeysCommand::Revoke { ids } => revoke(client, ids, output).await,
    }
}

async fn create(
    client: &Client,
    name: &str,
    scopes: &[String],
    expires_at: Option<&str>,
    output: &Output,
) -> Result<(), Failure> {
    let mut body = json!({"name": name, "scopes": scopes});
    if let Some(time) = expires_at {
        body["expires_at"] = time.into();
    }
    let made = client
        .with_body(Method::POST, &["v1", "keys"], &body)
        .await?;
    if output.is_json() {
        output.json(&made);
    } else {
        // The key alone is the output, so that a script can take it as it is.
        remark(format!(
            "key {} is named {name}; it is not shown again",
            member(&made, "id")
        ));
        output.line(member(&made, "key"));
    }
    Ok(())
}

async fn list(client: &Client, output: &Output) -> Result<(), Failure> {
    let page = client
        .get(&["v1", "keys"], &[("limit", "1000".to_owned())])
        .await?;
    print_list(
        &page,
        output,
        &["ID", "NAME", "SCOPES", "CREATED (UTC)", "EXPIRES (UTC)"],
        |key| {
            let scopes: Vec<&str> = key
                .get("scopes")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            vec![
                member(key, "id"),
                member(key, "name"),
                scopes.join(" "),
                member_time(key, "created_at"),
                member_time(key, "expires_at"),
            ]
        },
    );
    Ok(())
}

async fn revoke(client: &Client, ids: &[String], output: &Output) -> Result<(), Failure> {
    for id in ids {
        client
            .send(client.request(Method::DELETE, &["v1", "keys", id]))
            .await?;
        if output.is_json() {
            output.json_line(&json!({"id": id, "revoked": true}));
        } else {
            output.line(format!("{id}  revoked"));
        }
    }
    Ok(())
}
