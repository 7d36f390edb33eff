//! `session_events`: the journal of sessions. Appended to, never changed.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{
    PgExecutor, Row,
    error::BoxDynError,
    postgres::{PgArguments, PgRow},
};

use super::{StoreError, StoreResult, batch::column, page, rows::SessionEventRow};
use crate::id::SessionId;

/// A place in a journal is taken once.
pub(super) const APPEND: &str = "
    INSERT INTO session_events (session_id, seq, kind, payload, created_at)
    SELECT u.session_id, u.seq, u.kind, u.payload::json, u.created_at
    FROM fence, UNNEST($?::uuid[], $?::bigint[], $?::text[], $?::text[], $?::timestamptz[])
        AS u(session_id, seq, kind, payload, created_at)
    ON CONFLICT DO NOTHING";

pub(super) fn bind_append(
    rows: &[&SessionEventRow],
    args: &mut PgArguments,
) -> Result<(), BoxDynError> {
    column(args, rows, |row| row.session_id.0)?;
    column(args, rows, |row| row.seq)?;
    column(args, rows, |row| row.kind.as_str())?;
    column(args, rows, |row| row.payload.as_str())?;
    column(args, rows, |row| row.created_at)
}

/// A row.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredSessionEvent {
    /// Its place in the journal, from 1.
    pub seq: i64,
    /// As on the event stream.
    pub kind: String,
    /// What the event carries.
    pub payload: Value,
    /// When.
    pub created_at: DateTime<Utc>,
}

fn stored(row: PgRow) -> Result<StoredSessionEvent, sqlx::Error> {
    Ok(StoredSessionEvent {
        seq: row.try_get("seq")?,
        kind: row.try_get("kind")?,
        payload: row.try_get("payload")?,
        created_at: row.try_get("created_at")?,
    })
}

const LIST: &str = "
    SELECT seq, kind, payload, created_at FROM session_events
    WHERE session_id = $1 AND seq > $2 ORDER BY seq LIMIT $3";

/// Events of a session after `after_seq`, in order; 0 begins. At most `limit`, 1..=1000.
pub async fn list(
    db: impl PgExecutor<'_>,
    session: SessionId,
    after_seq: i64,
    limit: i64,
) -> StoreResult<Vec<StoredSessionEvent>> {
    let rows = sqlx::query(LIST)
        .bind(session.0)
        .bind(after_seq)
        .bind(page(limit))
        .fetch_all(db)
        .await;
    rows.and_then(|rows| rows.into_iter().map(stored).collect())
        .map_err(StoreError::from_sqlx)
}
