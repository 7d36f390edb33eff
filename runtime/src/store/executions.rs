//! `executions`: one row for each. Written by owners through the journal; claimed here.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{
    PgExecutor, Row,
    error::BoxDynError,
    postgres::{PgArguments, PgRow},
};

use super::{
    LIMIT_MAX, StoreError, StoreResult,
    batch::column,
    page, parse_status,
    rows::{ExecutionChange, ExecutionStatus, NewExecution},
};
use crate::id::{ExecutionId, HostId};

/// An execution as inserted: as it began, with what became of it within the same batch.
pub(super) struct StartedExecution<'a> {
    pub(super) new: &'a NewExecution,
    pub(super) change: Option<&'a ExecutionChange>,
}

impl<'a> StartedExecution<'a> {
    fn status(&self) -> ExecutionStatus {
        self.change.map_or(self.new.status, |change| change.status)
    }

    fn host_id(&self) -> Option<HostId> {
        self.change
            .map_or(self.new.host_id, |change| change.host_id)
    }

    fn error(&self) -> Option<&'a str> {
        self.change.and_then(|change| change.error.as_deref())
    }

    fn output(&self) -> Option<&'a str> {
        self.change.and_then(|change| change.output.as_deref())
    }
}

/// Inserts once: neither an id nor an idempotency key is taken twice.
pub(super) const START: &str = "
    INSERT INTO executions (id, workflow, version, trigger, status, host_id, input, trigger_data, parent_id, retry_of,
        idempotency_key, input_hash, trace_id, started_at, finished_at, output, error)
    SELECT u.id, u.workflow, u.version, u.trigger, u.status, u.host_id, u.input::json, u.trigger_data::json, u.parent_id,
        u.retry_of, u.idempotency_key, u.input_hash, u.trace_id, u.started_at, u.finished_at, u.output::json,
        u.error::json
    FROM fence, UNNEST($?::uuid[], $?::text[], $?::int[], $?::text[], $?::text[], $?::uuid[], $?::text[], $?::text[],
        $?::uuid[], $?::uuid[], $?::text[], $?::bytea[], $?::text[], $?::timestamptz[], $?::timestamptz[], $?::text[],
        $?::text[])
        AS u(id, workflow, version, trigger, status, host_id, input, trigger_data, parent_id, retry_of,
        idempotency_key, input_hash, trace_id, started_at, finished_at, output, error)
    ON CONFLICT DO NOTHING";

pub(super) fn bind_start(
    rows: &[StartedExecution<'_>],
    args: &mut PgArguments,
) -> Result<(), BoxDynError> {
    column(args, rows, |row| row.new.id.0)?;
    column(args, rows, |row| row.new.workflow.as_str())?;
    column(args, rows, |row| row.new.version)?;
    column(args, rows, |row| row.new.trigger.as_str())?;
    column(args, rows, |row| row.status().as_str())?;
    column(args, rows, |row| row.host_id().map(|id| id.0))?;
    column(args, rows, |row| row.new.input.as_str())?;
    column(args, rows, |row| row.new.trigger_data.as_deref())?;
    column(args, rows, |row| row.new.parent_id.map(|id| id.0))?;
    column(args, rows, |row| row.new.retry_of.map(|id| id.0))?;
    column(args, rows, |row| row.new.idempotency_key.as_deref())?;
    column(args, rows, |row| row.new.input_hash.as_deref())?;
    column(args, rows, |row| row.new.trace_id.as_deref())?;
    column(args, rows, |row| row.new.started_at)?;
    column(args, rows, |row| {
        row.change.and_then(|change| change.finished_at)
    })?;
    column(args, rows, StartedExecution::output)?;
    column(args, rows, StartedExecution::error)
}

/// A final status never changes, and what another host owns is not ours to change.
pub(super) const CHANGE: &str = "
    UPDATE executions e
    SET status = u.status, host_id = u.host_id, finished_at = u.finished_at, output = u.output::json,
        error = u.error::json
    FROM fence, UNNEST($?::uuid[], $?::text[], $?::uuid[], $?::timestamptz[], $?::text[], $?::text[])
        AS u(id, status, host_id, finished_at, output, error)
    WHERE e.id = u.id AND e.status IN ('queued', 'running', 'waiting') AND (e.host_id IS NULL OR e.host_id = $1)";

pub(super) fn bind_change(
    rows: &[&ExecutionChange],
    args: &mut PgArguments,
) -> Result<(), BoxDynError> {
    column(args, rows, |row| row.id.0)?;
    column(args, rows, |row| row.status.as_str())?;
    column(args, rows, |row| row.host_id.map(|id| id.0))?;
    column(args, rows, |row| row.finished_at)?;
    column(args, rows, |row| row.output.as_deref())?;
    column(args, rows, |row| row.error.as_deref())
}

/// The hosts that own running executions, found by skipping through the index: it costs the number of hosts, not of
/// executions.
macro_rules! owners {
    () => {
        "owners AS (
            (SELECT host_id FROM executions WHERE status IN ('queued', 'running') AND host_id IS NOT NULL
             ORDER BY host_id LIMIT 1)
            UNION ALL
            SELECT (SELECT e.host_id FROM executions e WHERE e.status IN ('queued', 'running')
                        AND e.host_id > o.host_id ORDER BY e.host_id LIMIT 1)
            FROM owners o WHERE o.host_id IS NOT NULL
        ), dead AS (
            SELECT o.host_id FROM owners o WHERE o.host_id IS NOT NULL AND NOT EXISTS (
                SELECT FROM host_fences f WHERE f.host_id = o.host_id AND f.shard = 0 AND NOT f.fenced)
        )"
    };
}

/// Whether there is anything for [`adopt`].
pub(super) const ORPHANED: &str = concat!(
    "(EXISTS (WITH RECURSIVE ",
    owners!(),
    " SELECT FROM dead)
     OR EXISTS (SELECT FROM executions WHERE status IN ('queued', 'running') AND host_id IS NULL))"
);

const ADOPT: &str = concat!(
    "WITH RECURSIVE ",
    owners!(),
    ", me AS MATERIALIZED (
        SELECT FROM host_fences WHERE host_id = $1 AND shard = 0 AND NOT fenced FOR SHARE
    ), picked AS MATERIALIZED (
        (SELECT p.id FROM me, dead d CROSS JOIN LATERAL (
            SELECT e.id FROM executions e WHERE e.status IN ('queued', 'running') AND e.host_id = d.host_id
            ORDER BY e.id LIMIT $2 FOR UPDATE SKIP LOCKED) p)
        UNION ALL
        (SELECT p.id FROM me CROSS JOIN LATERAL (
            SELECT e.id FROM executions e WHERE e.status IN ('queued', 'running') AND e.host_id IS NULL
            ORDER BY e.id LIMIT $2 FOR UPDATE SKIP LOCKED) p)
        LIMIT $2
    )
    UPDATE executions e SET host_id = $1 FROM picked p WHERE e.id = p.id RETURNING e.id"
);

/// Makes `me` the owner of up to `limit` queued or running executions whose host is fenced or gone, oldest first. Two
/// hosts never get the same one. Nothing when `me` is fenced.
pub async fn adopt(
    db: impl PgExecutor<'_>,
    me: HostId,
    limit: i64,
) -> StoreResult<Vec<ExecutionId>> {
    let mut ids: Vec<ExecutionId> = sqlx::query_scalar(ADOPT)
        .bind(me.0)
        .bind(limit.clamp(0, LIMIT_MAX))
        .fetch_all(db)
        .await
        .map_err(StoreError::from_sqlx)?
        .into_iter()
        .map(ExecutionId)
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

const CLAIM_WAITING: &str = "
    WITH me AS MATERIALIZED (
        SELECT FROM host_fences WHERE host_id = $1 AND shard = 0 AND NOT fenced FOR SHARE
    )
    UPDATE executions SET status = 'running', host_id = $1
    FROM me WHERE id = $2 AND status = 'waiting' AND host_id IS NULL";

/// Makes `me` the owner of a waiting execution. `false` when it is not waiting, another host was faster, or `me` is
/// fenced.
pub async fn claim_waiting(
    db: impl PgExecutor<'_>,
    me: HostId,
    id: ExecutionId,
) -> StoreResult<bool> {
    let result = sqlx::query(CLAIM_WAITING)
        .bind(me.0)
        .bind(id.0)
        .execute(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    Ok(result.rows_affected() == 1)
}

/// An execution without its payloads.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecutionSummary {
    /// Its id.
    pub id: ExecutionId,
    /// Name of the workflow.
    pub workflow: String,
    /// The version it runs.
    pub version: i32,
    /// Where it stands.
    pub status: ExecutionStatus,
    /// How it was started.
    pub trigger: String,
    /// Who owns it.
    pub host_id: Option<HostId>,
    /// The execution that waits for it or started it.
    pub parent_id: Option<ExecutionId>,
    /// Of which execution it is another try.
    pub retry_of: Option<ExecutionId>,
    /// Unique per workflow.
    pub idempotency_key: Option<String>,
    /// From the request that started it.
    pub trace_id: Option<String>,
    /// When it was accepted.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

/// A whole row.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredExecution {
    /// Everything but payloads.
    pub summary: ExecutionSummary,
    /// The body it was started with.
    pub input: Value,
    /// `$trigger` without the body.
    pub trigger_data: Option<Value>,
    /// What it gave.
    pub output: Option<Value>,
    /// Why it failed: `{code, message, step}`.
    pub error: Option<Value>,
}

impl std::ops::Deref for StoredExecution {
    type Target = ExecutionSummary;

    fn deref(&self) -> &ExecutionSummary {
        &self.summary
    }
}

fn summary(row: &PgRow) -> Result<ExecutionSummary, sqlx::Error> {
    Ok(ExecutionSummary {
        id: ExecutionId(row.try_get("id")?),
        workflow: row.try_get("workflow")?,
        version: row.try_get("version")?,
        status: parse_status(row.try_get("status")?, ExecutionStatus::parse)?,
        trigger: row.try_get("trigger")?,
        host_id: row.try_get::<Option<_>, _>("host_id")?.map(HostId),
        parent_id: row.try_get::<Option<_>, _>("parent_id")?.map(ExecutionId),
        retry_of: row.try_get::<Option<_>, _>("retry_of")?.map(ExecutionId),
        idempotency_key: row.try_get("idempotency_key")?,
        trace_id: row.try_get("trace_id")?,
        started_at: row.try_get("started_at")?,
        finished_at: row.try_get("finished_at")?,
    })
}

fn stored(row: PgRow) -> Result<StoredExecution, sqlx::Error> {
    Ok(StoredExecution {
        summary: summary(&row)?,
        input: row.try_get("input")?,
        trigger_data: row.try_get("trigger_data")?,
        output: row.try_get("output")?,
        error: row.try_get("error")?,
    })
}

const GET: &str = "
    SELECT id, workflow, version, status, trigger, host_id, parent_id, retry_of, idempotency_key, trace_id, started_at,
        finished_at, input, trigger_data, output, error
    FROM executions WHERE id = $1";

/// One execution with its payloads.
pub async fn get(db: impl PgExecutor<'_>, id: ExecutionId) -> StoreResult<Option<StoredExecution>> {
    let row = sqlx::query(GET).bind(id.0).fetch_optional(db).await;
    row.and_then(|row| row.map(stored).transpose())
        .map_err(StoreError::from_sqlx)
}

const GENERATION: &str = "
    WITH RECURSIVE line (parent_id, generation) AS (
        SELECT parent_id, 1 FROM executions WHERE id = $1
        UNION ALL
        SELECT e.parent_id, line.generation + 1 FROM executions e JOIN line ON e.id = line.parent_id
        WHERE line.generation < $2
    )
    SELECT max(generation) FROM line";

/// How many executions there are from this one up to the first of its line, both included; counted up to `limit`.
/// 0 when it is not stored.
pub async fn generation(db: impl PgExecutor<'_>, id: ExecutionId, limit: i32) -> StoreResult<i32> {
    let found: Option<i32> = sqlx::query_scalar(GENERATION)
        .bind(id.0)
        .bind(limit)
        .fetch_one(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    Ok(found.unwrap_or(0))
}

/// Who holds an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyHolder {
    /// The execution.
    pub id: ExecutionId,
    /// The version it runs.
    pub version: i32,
    /// SHA-256 of the body it was started with.
    pub input_hash: Option<Vec<u8>>,
}

const FIND_BY_KEY: &str = "
    SELECT id, version, input_hash FROM executions WHERE workflow = $1 AND idempotency_key = $2";

/// The execution that an idempotency key of a workflow belongs to.
pub async fn find_by_key(
    db: impl PgExecutor<'_>,
    workflow: &str,
    key: &str,
) -> StoreResult<Option<KeyHolder>> {
    let row: Option<(uuid::Uuid, i32, Option<Vec<u8>>)> = sqlx::query_as(FIND_BY_KEY)
        .bind(workflow)
        .bind(key)
        .fetch_optional(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    Ok(row.map(|(id, version, input_hash)| KeyHolder {
        id: ExecutionId(id),
        version,
        input_hash,
    }))
}

/// Which executions [`list`] returns. Absent conditions hold for all.
#[derive(Clone, Debug, Default)]
pub struct ExecutionFilter {
    /// Of this workflow.
    pub workflow: Option<String>,
    /// In this status.
    pub status: Option<ExecutionStatus>,
    /// Started by this kind of trigger.
    pub trigger: Option<String>,
    /// Started at or after.
    pub started_after: Option<DateTime<Utc>>,
    /// Started before.
    pub started_before: Option<DateTime<Utc>>,
    /// Those that come after this one: the last of the page before.
    pub cursor: Option<ExecutionId>,
    /// 1..=1000; brought within bounds.
    pub limit: i64,
}

// With custom plans, which connections of the pool are set to, absent conditions cost nothing.
const LIST: &str = "
    SELECT id, workflow, version, status, trigger, host_id, parent_id, retry_of, idempotency_key, trace_id, started_at,
        finished_at
    FROM executions
    WHERE ($1::text IS NULL OR workflow = $1)
      AND ($2::text IS NULL OR status = $2)
      AND ($3::text IS NULL OR trigger = $3)
      AND ($4::timestamptz IS NULL OR started_at >= $4)
      AND ($5::timestamptz IS NULL OR started_at < $5)
      AND ($6::uuid IS NULL OR id < $6)
    ORDER BY id DESC LIMIT $7";

/// Executions, newest first, without payloads.
pub async fn list(
    db: impl PgExecutor<'_>,
    filter: &ExecutionFilter,
) -> StoreResult<Vec<ExecutionSummary>> {
    let rows = sqlx::query(LIST)
        .bind(filter.workflow.as_deref())
        .bind(filter.status.map(ExecutionStatus::as_str))
        .bind(filter.trigger.as_deref())
        .bind(filter.started_after)
        .bind(filter.started_before)
        .bind(filter.cursor.map(|id| id.0))
        .bind(page(filter.limit))
        .fetch_all(db)
        .await;
    rows.and_then(|rows| rows.iter().map(summary).collect())
        .map_err(StoreError::from_sqlx)
}
