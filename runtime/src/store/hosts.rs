//! `hosts` and `host_fences`: who may write, by the database's clock.
//!
//! A host renews its lease; one whose lease expired may still renew it, until another host sets its fence. The fence
//! is for ever. It has a row per writer shard; setting it waits for the batches in flight, so whoever sees it set sees
//! everything the host ever wrote.

use std::{collections::BTreeMap, sync::LazyLock, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgExecutor, Row, postgres::PgRow, types::Json};

use super::{StoreError, StoreResult, documents, executions, sessions, waits};
use crate::id::HostId;

/// The first thing in every batch: locks the row that allows shard `$2` of host `$1` to write, for as long as the batch
/// takes. No row: fenced.
pub(super) const LOCK_LIVE: &str =
    "SELECT FROM host_fences WHERE host_id = $1 AND shard = $2 AND NOT fenced FOR SHARE";

/// How a host registers.
#[derive(Clone, Debug)]
pub struct NewHost {
    /// A fresh id.
    pub id: HostId,
    /// Where other hosts reach it, if they can.
    pub address: Option<String>,
    /// The program's version.
    pub version: String,
    /// For placement.
    pub labels: BTreeMap<String, String>,
    /// How long it may write without renewing.
    pub lease: Duration,
    /// How many writer shards it has. At least 1.
    pub shards: i16,
}

const REGISTER: &str = "
    WITH fences AS (
        INSERT INTO host_fences (host_id, shard) SELECT $1, shard FROM generate_series(0, $6 - 1) AS shard
    )
    INSERT INTO hosts (id, address, version, labels, lease_expires_at)
    VALUES ($1, $2, $3, $4::text::json, now() + make_interval(secs => $5))";

/// Adds a host with a lease and the right to write. `Conflict` when the id is not fresh.
pub async fn register(db: impl PgExecutor<'_>, host: &NewHost) -> StoreResult<()> {
    let labels = serde_json::to_string(&host.labels)
        .map_err(|error| StoreError::Corrupt(error.to_string()))?;
    sqlx::query(REGISTER)
        .bind(host.id.0)
        .bind(host.address.as_deref())
        .bind(&host.version)
        .bind(labels)
        .bind(host.lease.as_secs_f64())
        .bind(i32::from(host.shards))
        .execute(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    Ok(())
}

/// What a host learns each time it renews its lease.
#[derive(Clone, Debug)]
pub(crate) struct Heartbeat {
    /// The lease was renewed. `false`: this host is fenced, for ever.
    pub(crate) live: bool,
    /// Another host's lease has expired and it is not fenced yet.
    pub(crate) peer_expired: bool,
    pub(crate) orphan_executions: bool,
    pub(crate) orphan_sessions: bool,
    pub(crate) due_waits: bool,
    pub(crate) due_children: bool,
    pub(crate) next_wake_at: Option<DateTime<Utc>>,
    pub(crate) documents_revision: i64,
    pub(crate) database_now: DateTime<Utc>,
}

pub(super) static RENEW: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH me AS (
             SELECT COALESCE(bool_and(NOT fenced), false) AS live FROM host_fences WHERE host_id = $1
         ), renewed AS (
             UPDATE hosts SET lease_expires_at = now() + make_interval(secs => $2)
             FROM me WHERE id = $1 AND me.live RETURNING id
         )
         SELECT EXISTS (SELECT FROM renewed) AS live,
             EXISTS (SELECT FROM hosts h WHERE h.id <> $1 AND h.lease_expires_at < now() AND EXISTS (
                 SELECT FROM host_fences f WHERE f.host_id = h.id AND NOT f.fenced)) AS peer_expired,
             {orphan_executions} AS orphan_executions,
             {orphan_sessions} AS orphan_sessions,
             {due_waits} AS due_waits,
             {due_children} AS due_children,
             {next_wake_at} AS next_wake_at,
             {documents_revision} AS documents_revision,
             now() AS database_now",
        orphan_executions = executions::ORPHANED,
        orphan_sessions = sessions::ORPHANED,
        due_waits = waits::DUE,
        due_children = waits::DUE_CHILDREN,
        next_wake_at = waits::NEXT,
        documents_revision = documents::REVISION,
    )
});

/// Renews the lease of `me` and looks for work, in one round trip.
pub(crate) async fn renew(
    db: impl PgExecutor<'_>,
    me: HostId,
    lease: Duration,
) -> Result<Heartbeat, sqlx::Error> {
    let row = sqlx::query(AssertSqlSafe(RENEW.as_str()))
        .bind(me.0)
        .bind(lease.as_secs_f64())
        .fetch_one(db)
        .await?;
    Ok(Heartbeat {
        live: row.try_get("live")?,
        peer_expired: row.try_get("peer_expired")?,
        orphan_executions: row.try_get("orphan_executions")?,
        orphan_sessions: row.try_get("orphan_sessions")?,
        due_waits: row.try_get("due_waits")?,
        due_children: row.try_get("due_children")?,
        next_wake_at: row.try_get("next_wake_at")?,
        documents_revision: row.try_get("documents_revision")?,
        database_now: row.try_get("database_now")?,
    })
}

// Rows are locked in one order, so that two hosts that fence the same ones never wait for each other.
const FENCE_EXPIRED: &str = "
    WITH expired AS MATERIALIZED (
        SELECT f.host_id, f.shard FROM host_fences f JOIN hosts h ON h.id = f.host_id
        WHERE h.id <> $1 AND h.lease_expires_at < now() AND NOT f.fenced
          AND EXISTS (SELECT FROM host_fences m WHERE m.host_id = $1 AND NOT m.fenced)
        ORDER BY f.host_id, f.shard FOR UPDATE OF f
    )
    UPDATE host_fences f SET fenced = true FROM expired e WHERE f.host_id = e.host_id AND f.shard = e.shard";

/// Fences the hosts whose leases have expired. Repeating it is harmless. Does nothing when `me` is fenced.
pub(crate) async fn fence_expired(db: impl PgExecutor<'_>, me: HostId) -> Result<u64, sqlx::Error> {
    let result = sqlx::query(FENCE_EXPIRED).bind(me.0).execute(db).await?;
    Ok(result.rows_affected())
}

const FENCE_OTHERS: &str = "
    WITH others AS MATERIALIZED (
        SELECT host_id, shard FROM host_fences WHERE host_id <> $1 AND NOT fenced
        ORDER BY host_id, shard FOR UPDATE
    )
    UPDATE host_fences f SET fenced = true FROM others o WHERE f.host_id = o.host_id AND f.shard = o.shard";

/// Fences every host but `me`, whatever their leases say: for a database that no other process can be using.
pub async fn fence_others(db: impl PgExecutor<'_>, me: HostId) -> StoreResult<()> {
    sqlx::query(FENCE_OTHERS)
        .bind(me.0)
        .execute(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    Ok(())
}

const FENCE: &str = "
    WITH lease AS (
        UPDATE hosts SET lease_expires_at = least(lease_expires_at, now()) WHERE id = $1
    ), mine AS MATERIALIZED (
        SELECT host_id, shard FROM host_fences WHERE host_id = $1 ORDER BY shard FOR UPDATE
    )
    UPDATE host_fences f SET fenced = true FROM mine m WHERE f.host_id = m.host_id AND f.shard = m.shard";

/// Ends the lease of a host and fences it: what it owned may be adopted at once. Harmless when it was fenced before.
pub async fn fence(db: impl PgExecutor<'_>, host: HostId) -> StoreResult<()> {
    sqlx::query(FENCE)
        .bind(host.0)
        .execute(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    Ok(())
}

const FORGET: &str = "
    WITH gone AS (
        DELETE FROM hosts h
        WHERE h.lease_expires_at < now() - interval '10 minutes'
          AND NOT EXISTS (SELECT FROM host_fences f WHERE f.host_id = h.id AND NOT f.fenced)
          AND NOT EXISTS (SELECT FROM executions e WHERE e.status IN ('queued', 'running') AND e.host_id = h.id)
          AND NOT EXISTS (SELECT FROM sessions s WHERE s.status = 'running' AND s.host_id = h.id)
        RETURNING h.id
    )
    DELETE FROM host_fences f USING gone g WHERE f.host_id = g.id";

/// Removes hosts that have been fenced for ten minutes and own nothing. A host without a fence row is fenced, so one
/// that comes back later still cannot write.
pub(crate) async fn forget(db: impl PgExecutor<'_>) -> StoreResult<()> {
    sqlx::query(FORGET)
        .execute(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    Ok(())
}

/// A host as people see it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredHost {
    /// Its id.
    pub id: HostId,
    /// Where other hosts reach it.
    pub address: Option<String>,
    /// The program's version.
    pub version: String,
    /// For placement.
    pub labels: BTreeMap<String, String>,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// Until when it may write without renewing.
    pub lease_expires_at: DateTime<Utc>,
    /// The lease has not expired.
    pub leased: bool,
    /// It may never write again.
    pub fenced: bool,
}

const LIST: &str = "
    SELECT h.id, h.address, h.version, h.labels, h.started_at, h.lease_expires_at, h.lease_expires_at > now() AS leased,
        NOT EXISTS (SELECT FROM host_fences f WHERE f.host_id = h.id AND NOT f.fenced) AS fenced
    FROM hosts h ORDER BY h.id DESC LIMIT 1000";

/// The newest 1000 hosts, newest first; those that are gone stay for a while.
pub async fn list(db: impl PgExecutor<'_>) -> StoreResult<Vec<StoredHost>> {
    let rows = sqlx::query(LIST).fetch_all(db).await;
    rows.and_then(|rows| rows.into_iter().map(stored).collect())
        .map_err(StoreError::from_sqlx)
}

fn stored(row: PgRow) -> Result<StoredHost, sqlx::Error> {
    Ok(StoredHost {
        id: HostId(row.try_get("id")?),
        address: row.try_get("address")?,
        version: row.try_get("version")?,
        labels: row.try_get::<Json<_>, _>("labels")?.0,
        started_at: row.try_get("started_at")?,
        lease_expires_at: row.try_get("lease_expires_at")?,
        leased: row.try_get("leased")?,
        fenced: row.try_get("fenced")?,
    })
}
