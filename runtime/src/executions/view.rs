//! Executions and node runs as clients see them.

use chrono::{DateTime, SecondsFormat, SubsecRound, Utc};
use serde_json::{Value, json};

use crate::{id::ExecutionId, model::execution::Wait, store::rows::NodeRunRow};

/// RFC 3339 in UTC, with microseconds where there are any: the same before and after the database has rounded it.
pub fn time(at: DateTime<Utc>) -> Value {
    let at = at.trunc_subsecs(6);
    Value::String(at.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// What events say of an execution. `workflow` is its name and version.
pub(crate) fn summary(
    id: ExecutionId,
    workflow: (&str, i32),
    trigger: &str,
    status: &str,
    started_at: DateTime<Utc>,
) -> Value {
    json!({
        "id": id.to_string(),
        "workflow": workflow.0,
        "version": workflow.1,
        "trigger": trigger,
        "status": status,
        "started_at": time(started_at),
    })
}

/// What `execution.waiting` says of each wait.
pub(crate) fn wait(wait: &Wait) -> Value {
    json!({"step": &*wait.step, "item_index": wait.item_index, "wake_at": wait.wake_at.map(time)})
}

/// A node run, with its output.
pub fn node_run(row: &NodeRunRow) -> Value {
    let parse = |text: &Option<String>| {
        text.as_deref()
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or(Value::Null)
    };
    json!({
        "seq": row.seq,
        "step": row.step,
        "type": row.node_type,
        "attempt": row.attempt,
        "status": row.status.as_str(),
        "port": row.port,
        "item_index": row.item_index,
        "host": row.host_id.to_string(),
        "started_at": time(row.started_at),
        "finished_at": time(row.finished_at),
        "duration_ms": (row.finished_at - row.started_at).num_milliseconds(),
        "output": parse(&row.output),
        "error": parse(&row.error),
        "parent_seq": row.parent_seq,
        "retry_at": row.retry_at.map(time),
    })
}
