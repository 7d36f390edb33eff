//! `node_runs`: the journal of executions. Appended to, never changed.

use sqlx::{
    PgExecutor, Row,
    error::BoxDynError,
    postgres::{PgArguments, PgRow},
};

use super::{
    StoreError, StoreResult,
    batch::column,
    page, parse_status,
    rows::{NodeRunRow, NodeRunStatus},
};
use crate::id::{ExecutionId, HostId};

/// A place in a journal is taken once.
pub(super) const APPEND: &str = "
    INSERT INTO node_runs (execution_id, seq, step, node_type, scope, visit, attempt, status, port, output, error,
        item_index, parent_seq, retry_at, host_id, started_at, finished_at)
    SELECT u.execution_id, u.seq, u.step, u.node_type, u.scope, u.visit, u.attempt, u.status, u.port, u.output::json,
        u.error::json, u.item_index, u.parent_seq, u.retry_at, u.host_id, u.started_at, u.finished_at
    FROM fence, UNNEST($?::uuid[], $?::int[], $?::text[], $?::text[], $?::text[], $?::int[], $?::int[], $?::text[],
        $?::text[], $?::text[], $?::text[], $?::int[], $?::int[], $?::timestamptz[], $?::uuid[], $?::timestamptz[],
        $?::timestamptz[])
        AS u(execution_id, seq, step, node_type, scope, visit, attempt, status, port, output, error, item_index,
        parent_seq, retry_at, host_id, started_at, finished_at)
    ON CONFLICT DO NOTHING";

pub(super) fn bind_append(rows: &[&NodeRunRow], args: &mut PgArguments) -> Result<(), BoxDynError> {
    column(args, rows, |row| row.execution_id.0)?;
    column(args, rows, |row| row.seq)?;
    column(args, rows, |row| row.step.as_str())?;
    column(args, rows, |row| row.node_type.as_str())?;
    column(args, rows, |row| row.scope.as_str())?;
    column(args, rows, |row| row.visit)?;
    column(args, rows, |row| row.attempt)?;
    column(args, rows, |row| row.status.as_str())?;
    column(args, rows, |row| row.port.as_deref())?;
    column(args, rows, |row| row.output.as_deref())?;
    column(args, rows, |row| row.error.as_deref())?;
    column(args, rows, |row| row.item_index)?;
    column(args, rows, |row| row.parent_seq)?;
    column(args, rows, |row| row.retry_at)?;
    column(args, rows, |row| row.host_id.0)?;
    column(args, rows, |row| row.started_at)?;
    column(args, rows, |row| row.finished_at)
}

fn stored(row: PgRow) -> Result<NodeRunRow, sqlx::Error> {
    Ok(NodeRunRow {
        execution_id: ExecutionId(row.try_get("execution_id")?),
        seq: row.try_get("seq")?,
        step: row.try_get("step")?,
        node_type: row.try_get("node_type")?,
        scope: row.try_get("scope")?,
        visit: row.try_get("visit")?,
        attempt: row.try_get("attempt")?,
        status: parse_status(row.try_get("status")?, NodeRunStatus::parse)?,
        port: row.try_get("port")?,
        output: row.try_get("output")?,
        error: row.try_get("error")?,
        item_index: row.try_get("item_index")?,
        parent_seq: row.try_get("parent_seq")?,
        retry_at: row.try_get("retry_at")?,
        host_id: HostId(row.try_get("host_id")?),
        started_at: row.try_get("started_at")?,
        finished_at: row.try_get("finished_at")?,
    })
}

macro_rules! columns {
    () => {
        "SELECT execution_id, seq, step, node_type, scope, visit, attempt, status, port, output::text, error::text,
            item_index, parent_seq, retry_at, host_id, started_at, finished_at
         FROM node_runs WHERE execution_id = $1 AND seq > $2 ORDER BY seq"
    };
}

/// Rows of an execution after `after_seq`, in order; `-1` begins. At most `limit`, 1..=1000.
pub async fn list(
    db: impl PgExecutor<'_>,
    execution: ExecutionId,
    after_seq: i32,
    limit: i64,
) -> StoreResult<Vec<NodeRunRow>> {
    let rows = sqlx::query(concat!(columns!(), " LIMIT $3"))
        .bind(execution.0)
        .bind(after_seq)
        .bind(page(limit))
        .fetch_all(db)
        .await;
    rows.and_then(|rows| rows.into_iter().map(stored).collect())
        .map_err(StoreError::from_sqlx)
}

/// The whole journal of an execution, in order, for the fold. Its length is bounded by the workflow's
/// `max_node_runs`.
pub async fn journal(
    db: impl PgExecutor<'_>,
    execution: ExecutionId,
) -> StoreResult<Vec<NodeRunRow>> {
    let rows = sqlx::query(columns!())
        .bind(execution.0)
        .bind(-1)
        .fetch_all(db)
        .await;
    rows.and_then(|rows| rows.into_iter().map(stored).collect())
        .map_err(StoreError::from_sqlx)
}
