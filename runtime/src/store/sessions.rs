//! `sessions`: one row for each. Written by owners through the journal; claimed and deleted here.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{
    PgExecutor, Row,
    error::BoxDynError,
    postgres::{PgArguments, PgRow},
};
use uuid::Uuid;

use super::{
    LIMIT_MAX, StoreError, StoreResult,
    batch::column,
    page, parse_status,
    rows::{NewSession, SessionChange, SessionStatus},
};
use crate::id::{ExecutionId, HostId, SessionId};

/// A session as inserted: as it began, with what became of it within the same batch.
pub(super) struct OpenedSession<'a> {
    pub(super) new: &'a NewSession,
    pub(super) change: Option<&'a SessionChange>,
}

impl<'a> OpenedSession<'a> {
    fn status(&self) -> SessionStatus {
        self.change
            .map_or(SessionStatus::Idle, |change| change.status)
    }

    fn usage(&self) -> &'a str {
        self.change.map_or("{}", |change| &change.usage)
    }

    fn updated_at(&self) -> DateTime<Utc> {
        self.change
            .map_or(self.new.created_at, |change| change.updated_at)
    }
}

/// Inserts once: neither an id nor an idempotency key is taken twice.
pub(super) const OPEN: &str = "
    INSERT INTO sessions (id, agent, execution_id, idempotency_key, status, host_id, usage, created_at, updated_at)
    SELECT u.id, u.agent, u.execution_id, u.idempotency_key, u.status, u.host_id, u.usage::json, u.created_at,
        u.updated_at
    FROM fence, UNNEST($?::uuid[], $?::text[], $?::uuid[], $?::text[], $?::text[], $?::uuid[], $?::text[],
        $?::timestamptz[], $?::timestamptz[])
        AS u(id, agent, execution_id, idempotency_key, status, host_id, usage, created_at, updated_at)
    ON CONFLICT DO NOTHING";

pub(super) fn bind_open(
    rows: &[OpenedSession<'_>],
    args: &mut PgArguments,
) -> Result<(), BoxDynError> {
    column(args, rows, |row| row.new.id.0)?;
    column(args, rows, |row| row.new.agent.as_str())?;
    column(args, rows, |row| row.new.execution_id.map(|id| id.0))?;
    column(args, rows, |row| row.new.idempotency_key.as_deref())?;
    column(args, rows, |row| row.status().as_str())?;
    column(args, rows, |row| {
        row.change.and_then(|change| change.host_id).map(|id| id.0)
    })?;
    column(args, rows, OpenedSession::usage)?;
    column(args, rows, |row| row.new.created_at)?;
    column(args, rows, OpenedSession::updated_at)
}

/// What another host owns is not ours to change.
pub(super) const CHANGE: &str = "
    UPDATE sessions s
    SET status = u.status, host_id = u.host_id, usage = u.usage::json, updated_at = u.updated_at
    FROM fence, UNNEST($?::uuid[], $?::text[], $?::uuid[], $?::text[], $?::timestamptz[])
        AS u(id, status, host_id, usage, updated_at)
    WHERE s.id = u.id AND (s.host_id IS NULL OR s.host_id = $1)";

pub(super) fn bind_change(
    rows: &[&SessionChange],
    args: &mut PgArguments,
) -> Result<(), BoxDynError> {
    column(args, rows, |row| row.id.0)?;
    column(args, rows, |row| row.status.as_str())?;
    column(args, rows, |row| row.host_id.map(|id| id.0))?;
    column(args, rows, |row| row.usage.as_str())?;
    column(args, rows, |row| row.updated_at)
}

/// The hosts that own running sessions, found by skipping through the index.
macro_rules! owners {
    () => {
        "owners AS (
            (SELECT host_id FROM sessions WHERE status = 'running' AND host_id IS NOT NULL ORDER BY host_id LIMIT 1)
            UNION ALL
            SELECT (SELECT s.host_id FROM sessions s WHERE s.status = 'running' AND s.host_id > o.host_id
                    ORDER BY s.host_id LIMIT 1)
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
     OR EXISTS (SELECT FROM sessions WHERE status = 'running' AND host_id IS NULL))"
);

const ADOPT: &str = concat!(
    "WITH RECURSIVE ",
    owners!(),
    ", me AS MATERIALIZED (
        SELECT FROM host_fences WHERE host_id = $1 AND shard = 0 AND NOT fenced FOR SHARE
    ), picked AS MATERIALIZED (
        (SELECT p.id FROM me, dead d CROSS JOIN LATERAL (
            SELECT s.id FROM sessions s WHERE s.status = 'running' AND s.host_id = d.host_id
            ORDER BY s.id LIMIT $2 FOR UPDATE SKIP LOCKED) p)
        UNION ALL
        (SELECT p.id FROM me CROSS JOIN LATERAL (
            SELECT s.id FROM sessions s WHERE s.status = 'running' AND s.host_id IS NULL
            ORDER BY s.id LIMIT $2 FOR UPDATE SKIP LOCKED) p)
        LIMIT $2
    )
    UPDATE sessions s SET host_id = $1 FROM picked p WHERE s.id = p.id RETURNING s.id"
);

/// Makes `me` the owner of up to `limit` running sessions whose host is fenced or gone, oldest first. Two hosts never
/// get the same one. Nothing when `me` is fenced.
pub async fn adopt(db: impl PgExecutor<'_>, me: HostId, limit: i64) -> StoreResult<Vec<SessionId>> {
    let mut ids: Vec<SessionId> = sqlx::query_scalar(ADOPT)
        .bind(me.0)
        .bind(limit.clamp(0, LIMIT_MAX))
        .fetch_all(db)
        .await
        .map_err(StoreError::from_sqlx)?
        .into_iter()
        .map(SessionId)
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

const CLAIM_IDLE: &str = "
    WITH me AS MATERIALIZED (
        SELECT FROM host_fences WHERE host_id = $1 AND shard = 0 AND NOT fenced FOR SHARE
    )
    UPDATE sessions SET status = 'running', host_id = $1
    FROM me WHERE id = $2 AND status = 'idle' AND host_id IS NULL";

/// Makes `me` the owner of an idle session, before a turn begins. `false` when it is not idle, another host was faster,
/// or `me` is fenced.
pub async fn claim_idle(db: impl PgExecutor<'_>, me: HostId, id: SessionId) -> StoreResult<bool> {
    let result = sqlx::query(CLAIM_IDLE)
        .bind(me.0)
        .bind(id.0)
        .execute(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    Ok(result.rows_affected() == 1)
}

/// A row.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredSession {
    /// Its id.
    pub id: SessionId,
    /// Name of the agent.
    pub agent: String,
    /// Where it stands.
    pub status: SessionStatus,
    /// Who owns it.
    pub host_id: Option<HostId>,
    /// The execution it works for.
    pub execution_id: Option<ExecutionId>,
    /// Unique over all sessions.
    pub idempotency_key: Option<String>,
    /// Totals so far; an empty object before the first turn.
    pub usage: Value,
    /// When it was opened.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

fn stored(row: PgRow) -> Result<StoredSession, sqlx::Error> {
    Ok(StoredSession {
        id: SessionId(row.try_get("id")?),
        agent: row.try_get("agent")?,
        status: parse_status(row.try_get("status")?, SessionStatus::parse)?,
        host_id: row.try_get::<Option<_>, _>("host_id")?.map(HostId),
        execution_id: row
            .try_get::<Option<_>, _>("execution_id")?
            .map(ExecutionId),
        idempotency_key: row.try_get("idempotency_key")?,
        usage: row.try_get("usage")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

macro_rules! columns {
    () => {
        "SELECT id, agent, status, host_id, execution_id, idempotency_key, usage, created_at, updated_at FROM sessions "
    };
}

/// One session.
pub async fn get(db: impl PgExecutor<'_>, id: SessionId) -> StoreResult<Option<StoredSession>> {
    let row = sqlx::query(concat!(columns!(), "WHERE id = $1"))
        .bind(id.0)
        .fetch_optional(db)
        .await;
    row.and_then(|row| row.map(stored).transpose())
        .map_err(StoreError::from_sqlx)
}

/// The session that an idempotency key belongs to.
pub async fn find_by_key(db: impl PgExecutor<'_>, key: &str) -> StoreResult<Option<StoredSession>> {
    let row = sqlx::query(concat!(columns!(), "WHERE idempotency_key = $1"))
        .bind(key)
        .fetch_optional(db)
        .await;
    row.and_then(|row| row.map(stored).transpose())
        .map_err(StoreError::from_sqlx)
}

/// Which sessions [`list`] returns.
#[derive(Clone, Debug, Default)]
pub struct SessionFilter {
    /// Of this agent; absent: of all.
    pub agent: Option<String>,
    /// Those that come after this one: the last of the page before.
    pub cursor: Option<SessionId>,
    /// 1..=1000; brought within bounds.
    pub limit: i64,
}

/// Sessions, newest first.
pub async fn list(
    db: impl PgExecutor<'_>,
    filter: &SessionFilter,
) -> StoreResult<Vec<StoredSession>> {
    let rows = sqlx::query(concat!(
        columns!(),
        "WHERE ($1::text IS NULL OR agent = $1) AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3"
    ))
    .bind(filter.agent.as_deref())
    .bind(filter.cursor.map(|id| id.0))
    .bind(page(filter.limit))
    .fetch_all(db)
    .await;
    rows.and_then(|rows| rows.into_iter().map(stored).collect())
        .map_err(StoreError::from_sqlx)
}

const DELETE: &str = "
    WITH gone AS (DELETE FROM sessions WHERE id = $1 RETURNING id),
         events AS (DELETE FROM session_events e USING gone g WHERE e.session_id = g.id)
    SELECT id FROM gone";

/// Removes a session and its journal. `false` when there is none. Its owner must have stopped: what it appends
/// afterwards would stay behind.
pub async fn delete(db: impl PgExecutor<'_>, id: SessionId) -> StoreResult<bool> {
    let gone: Option<Uuid> = sqlx::query_scalar(DELETE)
        .bind(id.0)
        .fetch_optional(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    Ok(gone.is_some())
}
