//! `waits`: node runs that go on later. A row lives as long as the wait.

use sqlx::{
    PgExecutor, Row,
    error::BoxDynError,
    postgres::{PgArguments, PgRow},
};
use uuid::Uuid;

use super::{LIMIT_MAX, StoreError, StoreResult, batch::column, rows::WaitRow};
use crate::id::{ExecutionId, HostId};

/// A wait as inserted.
pub(super) struct OpenedWait<'a> {
    pub(super) row: &'a WaitRow,
    /// What it waits for ends in the same batch.
    pub(super) due: bool,
}

/// A wait for an execution that has ended already is due at once. A wait that is there is replaced.
pub(super) const OPEN: &str = "
    INSERT INTO waits (execution_id, key, kind, wake_at, child_id, data, started_at)
    SELECT u.execution_id, u.key, u.kind,
        CASE WHEN u.due OR EXISTS (SELECT FROM executions c WHERE c.id = u.child_id AND c.finished_at IS NOT NULL)
             THEN now() ELSE u.wake_at END,
        u.child_id, u.data::json, u.started_at
    FROM fence, UNNEST($?::uuid[], $?::text[], $?::text[], $?::timestamptz[], $?::uuid[], $?::text[],
        $?::timestamptz[], $?::bool[]) AS u(execution_id, key, kind, wake_at, child_id, data, started_at, due)
    ON CONFLICT (execution_id, key) DO UPDATE
    SET kind = excluded.kind, wake_at = excluded.wake_at, child_id = excluded.child_id, data = excluded.data,
        started_at = excluded.started_at";

pub(super) fn bind_open(
    rows: &[OpenedWait<'_>],
    args: &mut PgArguments,
) -> Result<(), BoxDynError> {
    column(args, rows, |wait| wait.row.execution_id.0)?;
    column(args, rows, |wait| wait.row.key.as_str())?;
    column(args, rows, |wait| wait.row.kind.as_str())?;
    column(args, rows, |wait| wait.row.wake_at)?;
    column(args, rows, |wait| wait.row.child_id.map(|id| id.0))?;
    column(args, rows, |wait| wait.row.data.as_deref())?;
    column(args, rows, |wait| wait.row.started_at)?;
    column(args, rows, |wait| wait.due)
}

/// Ends single waits.
pub(super) const CLOSE: &str = "
    DELETE FROM waits w USING fence, UNNEST($?::uuid[], $?::text[]) AS u(execution_id, key)
    WHERE w.execution_id = u.execution_id AND w.key = u.key";

pub(super) fn bind_keys(
    keys: &[(ExecutionId, &str)],
    args: &mut PgArguments,
) -> Result<(), BoxDynError> {
    column(args, keys, |(id, _)| id.0)?;
    column(args, keys, |(_, key)| *key)
}

/// Ends all waits of executions that ended.
pub(super) const END: &str = "
    DELETE FROM waits w USING fence, UNNEST($?::uuid[]) AS u(execution_id)
    WHERE w.execution_id = u.execution_id";

/// Makes waits for executions that ended due; but not the rows that other parts of the statement write, since of two
/// writes to one row in one statement an arbitrary one is lost.
pub(super) const WAKE: &str = "
    UPDATE waits w SET wake_at = now()
    FROM fence, UNNEST($?::uuid[]) AS u(child_id)
    WHERE w.child_id = u.child_id AND (w.wake_at IS NULL OR w.wake_at > now())
      AND w.execution_id <> ALL ($?::uuid[])
      AND NOT EXISTS (SELECT FROM UNNEST($?::uuid[], $?::text[]) AS t(execution_id, key)
                      WHERE t.execution_id = w.execution_id AND t.key = w.key)";

/// Whether there is anything for [`claim_due`].
pub(super) const DUE: &str = "
    EXISTS (SELECT FROM waits w JOIN executions e ON e.id = w.execution_id
            WHERE w.wake_at <= now() AND e.status = 'waiting' AND e.host_id IS NULL)";

/// Whether there is anything for [`due_children`].
pub(super) const DUE_CHILDREN: &str = "
    EXISTS (SELECT FROM waits w JOIN executions e ON e.id = w.execution_id
            WHERE w.wake_at <= now() AND w.child_id IS NOT NULL AND e.status = 'running' AND e.host_id = $1)";

/// When the next wait of an execution without an owner ends.
pub(super) const NEXT: &str = "
    (SELECT w.wake_at FROM waits w JOIN executions e ON e.id = w.execution_id
     WHERE w.wake_at > now() AND e.status = 'waiting' AND e.host_id IS NULL ORDER BY w.wake_at LIMIT 1)";

const CLAIM_DUE: &str = "
    WITH me AS MATERIALIZED (
        SELECT FROM host_fences WHERE host_id = $1 AND shard = 0 AND NOT fenced FOR SHARE
    ), picked AS MATERIALIZED (
        SELECT e.id FROM me, waits w JOIN executions e ON e.id = w.execution_id
        WHERE w.wake_at <= now() AND e.status = 'waiting' AND e.host_id IS NULL
        ORDER BY w.wake_at LIMIT $2 FOR UPDATE OF e SKIP LOCKED
    )
    UPDATE executions e SET status = 'running', host_id = $1
    FROM (SELECT DISTINCT id FROM picked) p WHERE e.id = p.id RETURNING e.id";

/// Makes `me` the owner of executions that are waiting and have a wait that is due: those that have been due longest
/// first, at most `limit`. Two hosts never get the same one. Nothing when `me` is fenced.
pub async fn claim_due(
    db: impl PgExecutor<'_>,
    me: HostId,
    limit: i64,
) -> StoreResult<Vec<ExecutionId>> {
    let ids: Vec<Uuid> = sqlx::query_scalar(CLAIM_DUE)
        .bind(me.0)
        .bind(limit.clamp(0, LIMIT_MAX))
        .fetch_all(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    Ok(ids.into_iter().map(ExecutionId).collect())
}

const DUE_CHILDREN_OF: &str = "
    SELECT DISTINCT e.id FROM waits w JOIN executions e ON e.id = w.execution_id
    WHERE w.wake_at <= now() AND w.child_id IS NOT NULL AND e.status = 'running' AND e.host_id = $1 LIMIT $2";

/// Executions that run on `me` and wait for a child that has ended: at most `limit`. Their owner may not know it
/// when the child ended on another host.
pub async fn due_children(
    db: impl PgExecutor<'_>,
    me: HostId,
    limit: i64,
) -> StoreResult<Vec<ExecutionId>> {
    let ids: Vec<Uuid> = sqlx::query_scalar(DUE_CHILDREN_OF)
        .bind(me.0)
        .bind(limit.clamp(0, LIMIT_MAX))
        .fetch_all(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    Ok(ids.into_iter().map(ExecutionId).collect())
}

const WAKE_MISSED: &str = "
    UPDATE waits w SET wake_at = now() FROM executions c
    WHERE c.id = w.child_id AND c.finished_at IS NOT NULL AND w.child_id IS NOT NULL AND w.wake_at IS NULL";

/// Makes waits due whose child ended unnoticed: a wait that was opened in one transaction while the child ended in
/// another, against the rule that the wait is opened first. Reads every open wait for a child, so call it rarely.
pub async fn wake_missed(db: impl PgExecutor<'_>) -> StoreResult<u64> {
    let result = sqlx::query(WAKE_MISSED)
        .execute(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    Ok(result.rows_affected())
}

fn stored(row: PgRow) -> Result<WaitRow, sqlx::Error> {
    Ok(WaitRow {
        execution_id: ExecutionId(row.try_get("execution_id")?),
        key: row.try_get("key")?,
        kind: row.try_get("kind")?,
        wake_at: row.try_get("wake_at")?,
        child_id: row.try_get::<Option<_>, _>("child_id")?.map(ExecutionId),
        data: row.try_get("data")?,
        started_at: row.try_get("started_at")?,
    })
}

const OF: &str = "
    SELECT execution_id, key, kind, wake_at, child_id, data::text, started_at
    FROM waits WHERE execution_id = $1 ORDER BY key";

/// All waits of an execution, by key. There are never more than it has node runs in progress.
pub async fn of(db: impl PgExecutor<'_>, execution: ExecutionId) -> StoreResult<Vec<WaitRow>> {
    let rows = sqlx::query(OF).bind(execution.0).fetch_all(db).await;
    rows.and_then(|rows| rows.into_iter().map(stored).collect())
        .map_err(StoreError::from_sqlx)
}
