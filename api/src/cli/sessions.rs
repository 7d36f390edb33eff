//! `sessions`: conversations with agents.

use serde_json::{Value, json};

use super::{
    Failure,
    chat::{Conversation, usage_words},
    client::{Client, Tail},
    executions::{data, print_list, resolve},
    output::{Output, harmless, member, member_shown, member_time},
};

/// How many rows of a transcript one request asks for.
const PAGE: usize = 1_000;
/// How many rows of a transcript are shown at most.
const ROWS_SHOWN_MAX: usize = 20_000;

/// What `sessions` can do.
#[derive(clap::Subcommand)]
pub enum SessionsCommand {
    /// Newest first
    List {
        /// Only those of this agent
        #[arg(long, value_name = "NAME")]
        agent: Option<String>,
        /// How many
        #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        /// Go on where an earlier list ended
        #[arg(long)]
        cursor: Option<String>,
    },
    /// One session with its transcript
    Show {
        /// Id of the session; `last` is the newest one
        id: String,
    },
    /// Show what has happened and what happens in a session, until interrupted
    Tail {
        /// Id of the session; `last` is the newest one
        id: String,
    },
}

/// Does it.
pub async fn run(
    client: &Client,
    command: &SessionsCommand,
    output: &Output,
) -> Result<(), Failure> {
    match command {
        SessionsCommand::List {
            agent,
            limit,
            cursor,
        } => {
            let query = [
                ("agent", agent.clone().unwrap_or_default()),
                ("limit", limit.to_string()),
                ("cursor", cursor.clone().unwrap_or_default()),
            ];
            list(&client.get(&["v1", "sessions"], &query).await?, output);
            Ok(())
        }
        SessionsCommand::Show { id } => {
            show(client, &resolve(client, "sessions", id).await?, output).await
        }
        SessionsCommand::Tail { id } => {
            tail(client, &resolve(client, "sessions", id).await?, output).await
        }
    }
}

fn list(page: &Value, output: &Output) {
    print_list(
        page,
        output,
        &["ID", "AGENT", "STATUS", "OPENED (UTC)", "CHANGED (UTC)"],
        |session| {
            vec![
                member(session, "id"),
                member(session, "agent"),
                member(session, "status"),
                member_time(session, "created_at"),
                member_time(session, "updated_at"),
            ]
        },
    );
}

async fn show(client: &Client, id: &str, output: &Output) -> Result<(), Failure> {
    let session = client.get(&["v1", "sessions", id], &[]).await?;
    let rows = transcript(client, id).await?;
    if output.is_json() {
        output.json(&json!({"session": session, "messages": rows}));
        return Ok(());
    }
    for name in [
        "id",
        "agent",
        "status",
        "execution_id",
        "created_at",
        "updated_at",
    ] {
        let text = member_shown(&session, name);
        if !text.is_empty() {
            output.line(format!(
                "{:<14} {}",
                name.replace('_', " "),
                output.paint.status(&harmless(&text))
            ));
        }
    }
    let usage = session.get("usage").filter(|usage| !usage.is_null());
    output.line(format!("{:<14} {}", "used", usage_words(usage)));
    output.line("");
    for line in rows.iter().flat_map(|row| transcript_lines(row, output)) {
        output.line(line);
    }
    Ok(())
}

/// The whole transcript, oldest first.
pub async fn transcript(client: &Client, id: &str) -> Result<Vec<Value>, Failure> {
    let mut rows = Vec::new();
    let mut cursor = String::new();
    loop {
        let query = [("limit", PAGE.to_string()), ("cursor", cursor)];
        let page = client
            .get(&["v1", "sessions", id, "messages"], &query)
            .await?;
        rows.extend_from_slice(data(&page));
        cursor = member(&page, "next_cursor");
        if cursor.is_empty() || rows.len() >= ROWS_SHOWN_MAX {
            return Ok(rows);
        }
    }
}

/// A row of a transcript: who said what, and which tools were called.
pub fn transcript_lines(row: &Value, output: &Output) -> Vec<String> {
    let paint = output.paint;
    let role = member(row, "role");
    let content = harmless(&member(row, "content"));
    let name = format!("{role:<9}");
    let mut lines = Vec::new();
    if !content.is_empty() {
        let shown = if role == "tool" {
            paint.dim(&super::output::shorten(&content, 400))
        } else {
            content
        };
        lines.push(format!("{} {shown}", paint.cyan(&name)));
    }
    for call in row
        .get("tool_calls")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let arguments = call
            .get("arguments")
            .map(Value::to_string)
            .unwrap_or_default();
        lines.push(format!(
            "{} {} {}",
            paint.cyan(&name),
            paint.bold(&harmless(&member(call, "name"))),
            harmless(&arguments)
        ));
    }
    lines
}

async fn tail(client: &Client, id: &str, output: &Output) -> Result<(), Failure> {
    // A stream of something that does not exist would be retried in vain.
    client.get(&["v1", "sessions", id], &[]).await?;
    let mut tail = Tail::new(client, &["v1", "sessions", id, "events"], "", None);
    let mut conversation = Conversation::new(output.paint);
    loop {
        let event = tail.next().await?;
        if output.is_json() {
            output.json_line(&json!({"id": event.id, "event": event.name, "data": event.data}));
        } else {
            output.text(&conversation.apply(&event));
        }
    }
}
