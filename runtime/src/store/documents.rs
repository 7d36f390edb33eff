//! `documents`, `document_versions` and `document_revision`: definitions and everything they ever were.
//!
//! Every change takes the row of `document_revision` first, which orders all changes of all hosts.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor, Row, postgres::PgRow};

use super::{StoreError, StoreResult};

/// The number of the last change.
pub(super) const REVISION: &str = "(SELECT revision FROM document_revision)";

/// A version of a document, with where its name stands.
#[derive(Clone, Debug)]
pub(crate) struct DocumentRow {
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) version: i32,
    pub(crate) hash: Vec<u8>,
    pub(crate) enabled: bool,
    pub(crate) body: Value,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) updated_at: DateTime<Utc>,
    /// Of the name, not of the version.
    pub(crate) revision: i64,
}

fn stored(row: &PgRow) -> Result<DocumentRow, sqlx::Error> {
    Ok(DocumentRow {
        kind: row.try_get("kind")?,
        name: row.try_get("name")?,
        version: row.try_get("version")?,
        hash: row.try_get("hash")?,
        enabled: row.try_get("enabled")?,
        body: row.try_get("body")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        revision: row.try_get("revision")?,
    })
}

/// What there is, without bodies: the number of the last change, and that of each document by kind and name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) revision: i64,
    pub(crate) documents: HashMap<(String, String), i64>,
}

const INVENTORY: &str = "
    SELECT r.revision AS total, d.kind, d.name, d.revision FROM document_revision r LEFT JOIN documents d ON true";

/// Reads the inventory, of one moment.
pub(crate) async fn inventory(db: impl PgExecutor<'_>) -> StoreResult<Inventory> {
    let rows = sqlx::query(INVENTORY)
        .fetch_all(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    let mut inventory = Inventory::default();
    for row in rows {
        let read = || -> Result<_, sqlx::Error> {
            Ok((
                row.try_get("total")?,
                row.try_get::<Option<String>, _>("kind")?,
                row.try_get::<Option<String>, _>("name")?,
                row.try_get::<Option<i64>, _>("revision")?,
            ))
        };
        let (total, kind, name, revision) = read().map_err(StoreError::from_sqlx)?;
        inventory.revision = total;
        if let (Some(kind), Some(name), Some(revision)) = (kind, name, revision) {
            inventory.documents.insert((kind, name), revision);
        }
    }
    Ok(inventory)
}

const CURRENT: &str = "
    SELECT d.kind, d.name, d.version, d.hash, d.enabled, v.body, d.created_at, d.updated_at, d.revision
    FROM UNNEST($1::text[], $2::text[]) AS u(kind, name)
    JOIN documents d ON d.kind = u.kind AND d.name = u.name
    JOIN document_versions v ON v.kind = d.kind AND v.name = d.name AND v.version = d.version";

/// The current versions of some documents. One that cannot be read is left out and logged: a single bad row must not
/// keep a host from starting.
pub(crate) async fn current(
    db: impl PgExecutor<'_>,
    names: &[(String, String)],
) -> StoreResult<Vec<DocumentRow>> {
    let (kinds, names): (Vec<&str>, Vec<&str>) = names
        .iter()
        .map(|(kind, name)| (kind.as_str(), name.as_str()))
        .unzip();
    let rows = sqlx::query(CURRENT)
        .bind(kinds)
        .bind(names)
        .fetch_all(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    let readable = rows.iter().filter_map(|row| {
        stored(row)
            .inspect_err(|error| {
                let name: Option<String> = row.try_get("name").ok();
                tracing::error!(name, %error, "a stored document cannot be read");
            })
            .ok()
    });
    Ok(readable.collect())
}

const VERSION: &str = "
    SELECT v.kind, v.name, v.version, v.hash, COALESCE(d.enabled, false) AS enabled, v.body,
        COALESCE(d.created_at, v.created_at) AS created_at, v.created_at AS updated_at,
        COALESCE(d.revision, 0) AS revision
    FROM document_versions v LEFT JOIN documents d ON d.kind = v.kind AND d.name = v.name
    WHERE v.kind = $1 AND v.name = $2 AND ($3::int IS NULL OR v.version = $3)
    ORDER BY v.version DESC LIMIT 1000";

/// One version, or the newest 1000, newest first. Versions of removed documents are there, disabled.
pub(crate) async fn versions(
    db: impl PgExecutor<'_>,
    kind: &str,
    name: &str,
    version: Option<i32>,
) -> StoreResult<Vec<DocumentRow>> {
    let rows = sqlx::query(VERSION)
        .bind(kind)
        .bind(name)
        .bind(version)
        .fetch_all(db)
        .await;
    rows.and_then(|rows| rows.iter().map(stored).collect())
        .map_err(StoreError::from_sqlx)
}

/// Makes this transaction the only one that changes documents.
pub(crate) async fn lock(db: &mut PgConnection) -> StoreResult<()> {
    sqlx::query("SELECT FROM document_revision FOR UPDATE")
        .execute(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    Ok(())
}

const PUT: &str = "
    WITH next AS (
        UPDATE document_revision SET revision = revision + 1 RETURNING revision
    ), version AS (
        INSERT INTO document_versions (kind, name, version, hash, body, created_at)
        SELECT $1, $2, COALESCE(max(version), 0) + 1, $3, $4::text::json, now()
        FROM document_versions WHERE kind = $1 AND name = $2
        RETURNING kind, name, version, hash, body, created_at
    ), document AS (
        INSERT INTO documents AS d (kind, name, version, hash, created_at, updated_at, revision)
        SELECT v.kind, v.name, v.version, v.hash, v.created_at, v.created_at, n.revision FROM version v, next n
        ON CONFLICT (kind, name) DO UPDATE
        SET version = excluded.version, hash = excluded.hash, updated_at = excluded.updated_at,
            revision = excluded.revision
        RETURNING d.*
    )
    SELECT d.kind, d.name, d.version, d.hash, d.enabled, v.body, d.created_at, d.updated_at, d.revision
    FROM document d, version v";

/// Adds a version and makes it the current one. The caller holds [`lock`].
pub(crate) async fn put(
    db: &mut PgConnection,
    kind: &str,
    name: &str,
    hash: &[u8],
    body: &str,
) -> StoreResult<DocumentRow> {
    let row = sqlx::query(PUT)
        .bind(kind)
        .bind(name)
        .bind(hash)
        .bind(body)
        .fetch_one(db)
        .await;
    row.and_then(|row| stored(&row))
        .map_err(StoreError::from_sqlx)
}

const SET_ENABLED: &str = "
    WITH next AS (
        UPDATE document_revision SET revision = revision + 1 RETURNING revision
    )
    UPDATE documents SET enabled = $3, revision = n.revision FROM next n WHERE kind = $1 AND name = $2";

/// Enables or disables. `NotFound` when the name is unknown. The caller holds [`lock`].
pub(crate) async fn set_enabled(
    db: &mut PgConnection,
    kind: &str,
    name: &str,
    enabled: bool,
) -> StoreResult<()> {
    let result = sqlx::query(SET_ENABLED)
        .bind(kind)
        .bind(name)
        .bind(enabled)
        .execute(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    found(result.rows_affected())
}

const DELETE: &str = "
    WITH next AS (
        UPDATE document_revision SET revision = revision + 1 RETURNING revision
    )
    DELETE FROM documents USING next WHERE kind = $1 AND name = $2";

/// Removes the name and leaves the versions. `NotFound` when the name is unknown. The caller holds [`lock`].
pub(crate) async fn delete(db: &mut PgConnection, kind: &str, name: &str) -> StoreResult<()> {
    let result = sqlx::query(DELETE)
        .bind(kind)
        .bind(name)
        .execute(db)
        .await
        .map_err(StoreError::from_sqlx)?;
    found(result.rows_affected())
}

fn found(rows: u64) -> StoreResult<()> {
    match rows {
        0 => Err(StoreError::NotFound),
        _ => Ok(()),
    }
}
