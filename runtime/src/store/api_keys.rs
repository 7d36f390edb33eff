//! `api_keys`: who may call the API. Only a hash of each secret is stored.

use chrono::{DateTime, Utc};
use sqlx::{PgExecutor, Row, postgres::PgRow};

use super::{StoreError, StoreResult, page};
use crate::id::KeyId;

/// A key to be stored.
#[derive(Clone, Debug)]
pub struct NewApiKey {
    /// Its id.
    pub id: KeyId,
    /// For people, and the owner of rows in models with an `owner_field`.
    pub name: String,
    /// SHA-256 of the secret.
    pub hash: Vec<u8>,
    /// What it allows.
    pub scopes: Vec<String>,
    /// When it stops working.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A row, without the hash.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiKey {
    /// Its id.
    pub id: KeyId,
    /// For people.
    pub name: String,
    /// What it allows.
    pub scopes: Vec<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it stops working.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

fn stored(row: PgRow) -> Result<ApiKey, sqlx::Error> {
    Ok(ApiKey {
        id: KeyId(row.try_get("id")?),
        name: row.try_get("name")?,
        scopes: row.try_get("scopes")?,
        created_at: row.try_get("created_at")?,
        expires_at: row.try_get("expires_at")?,
        revoked_at: row.try_get("revoked_at")?,
    })
}

macro_rules! columns {
    () => {
        "id, name, scopes, created_at, expires_at, revoked_at"
    };
}

/// Stores a key. `Conflict` when its id or secret is there already.
pub async fn insert(db: impl PgExecutor<'_>, key: &NewApiKey) -> StoreResult<ApiKey> {
    let row = sqlx::query(concat!(
        "INSERT INTO api_keys (id, name, hash, scopes, expires_at) VALUES ($1, $2, $3, $4, $5) RETURNING ",
        columns!()
    ))
    .bind(key.id.0)
    .bind(&key.name)
    .bind(&key.hash)
    .bind(&key.scopes)
    .bind(key.expires_at)
    .fetch_one(db)
    .await;
    row.and_then(stored).map_err(StoreError::from_sqlx)
}

/// The key with this hash, when it is neither revoked nor expired.
pub async fn find_by_hash(db: impl PgExecutor<'_>, hash: &[u8]) -> StoreResult<Option<ApiKey>> {
    let row = sqlx::query(concat!(
        "SELECT ",
        columns!(),
        " FROM api_keys WHERE hash = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"
    ))
    .bind(hash)
    .fetch_optional(db)
    .await;
    row.and_then(|row| row.map(stored).transpose())
        .map_err(StoreError::from_sqlx)
}

/// Keys, newest first, revoked and expired ones included; those after `cursor`, at most `limit`, 1..=1000.
pub async fn list(
    db: impl PgExecutor<'_>,
    cursor: Option<KeyId>,
    limit: i64,
) -> StoreResult<Vec<ApiKey>> {
    let rows = sqlx::query(concat!(
        "SELECT ",
        columns!(),
        " FROM api_keys WHERE ($1::uuid IS NULL OR id < $1) ORDER BY id DESC LIMIT $2"
    ))
    .bind(cursor.map(|id| id.0))
    .bind(page(limit))
    .fetch_all(db)
    .await;
    rows.and_then(|rows| rows.into_iter().map(stored).collect())
        .map_err(StoreError::from_sqlx)
}

/// Ends a key. `false` when there is none; repeating it changes nothing.
pub async fn revoke(db: impl PgExecutor<'_>, id: KeyId) -> StoreResult<bool> {
    let result =
        sqlx::query("UPDATE api_keys SET revoked_at = COALESCE(revoked_at, now()) WHERE id = $1")
            .bind(id.0)
            .execute(db)
            .await
            .map_err(StoreError::from_sqlx)?;
    Ok(result.rows_affected() == 1)
}
