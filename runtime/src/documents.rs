//! Definitions as stored: workflows, agents, providers. Each change of a body makes a version; readers are
//! served from memory.
//!
//! Memory follows the store: the host's pulse sees that a document changed anywhere and reads what did. What this
//! process changes itself is in memory when the change returns.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

use chrono::{DateTime, Utc};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use tokio::sync::Mutex;

use crate::store::{
    StoreError,
    documents::{self as store, DocumentRow},
};

/// The largest body in bytes of JSON.
const BODY_BYTES_MAX: usize = 4 << 20;

/// One version of a document.
#[derive(Clone, Debug)]
pub struct StoredDocument {
    /// `Workflow`, `Agent`, `Provider`.
    pub kind: String,
    /// `metadata.name`; unique per kind.
    pub name: String,
    /// From 1; a changed body is a new one.
    pub version: i32,
    /// Whether it may be started.
    pub enabled: bool,
    /// `{kind, metadata, spec}`.
    pub body: Arc<Value>,
    /// When the name first appeared.
    pub created_at: DateTime<Utc>,
    /// When this version was made.
    pub updated_at: DateTime<Utc>,
}

impl From<DocumentRow> for StoredDocument {
    fn from(row: DocumentRow) -> Self {
        Self {
            kind: row.kind,
            name: row.name,
            version: row.version,
            enabled: row.enabled,
            body: Arc::new(row.body),
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// What [`Documents::put`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The name is new.
    Created,
    /// The body changed: there is a new version.
    Changed,
    /// The stored body is the same.
    Unchanged,
}

/// The documents of this system. Cloning it is cheap; all clones are one.
#[derive(Clone)]
pub struct Documents {
    inner: Arc<Inner>,
}

struct Inner {
    db: PgPool,
    snapshot: RwLock<Arc<Snapshot>>,
    /// Held while the store is read into memory or changed: else a reading begun before a change could overwrite it.
    changing: Mutex<()>,
}

/// The current version of every document. Replaced as a whole.
#[derive(Clone, Default)]
struct Snapshot {
    /// Everything up to this change is in it.
    revision: i64,
    /// How many snapshots with other documents came before it.
    changes: u64,
    kinds: HashMap<String, BTreeMap<String, Held>>,
}

#[derive(Clone)]
struct Held {
    revision: i64,
    document: Arc<StoredDocument>,
}

impl Snapshot {
    fn find(&self, kind: &str, name: &str) -> Option<&Held> {
        self.kinds.get(kind)?.get(name)
    }

    fn hold(&mut self, row: DocumentRow) -> Arc<StoredDocument> {
        let revision = row.revision;
        let document = Arc::new(StoredDocument::from(row));
        let held = Held {
            revision,
            document: Arc::clone(&document),
        };
        let names = self.kinds.entry(document.kind.clone()).or_default();
        let before = names.insert(document.name.clone(), held);
        self.changes += u64::from(before.is_none_or(|before| before.revision != revision));
        document
    }
}

impl Documents {
    /// Reads all documents into memory.
    pub(crate) async fn load(db: PgPool) -> Result<Self, StoreError> {
        let inner = Inner {
            db,
            snapshot: RwLock::default(),
            changing: Mutex::default(),
        };
        let documents = Self {
            inner: Arc::new(inner),
        };
        documents.refresh().await?;
        Ok(documents)
    }

    /// The change up to which memory follows the store. Behind it for a moment after a change made here: what is
    /// derived from documents goes by [`Self::changes`].
    pub fn revision(&self) -> i64 {
        self.snapshot().revision
    }

    /// Another number whenever what [`Self::find`] and [`Self::list`] give became different, at once also after a
    /// change made here. Grows; counts anew in each process.
    pub fn changes(&self) -> u64 {
        self.snapshot().changes
    }

    /// Reads what changed since memory last followed the store. Harmless to repeat.
    pub(crate) async fn refresh(&self) -> Result<(), StoreError> {
        let _changing = self.inner.changing.lock().await;
        let inventory = store::inventory(&self.inner.db).await?;
        let mut next = Snapshot::clone(&self.snapshot());
        next.revision = inventory.revision;
        for (kind, names) in &mut next.kinds {
            let before = names.len();
            names.retain(|name, held| {
                let stored = inventory.documents.get(&(kind.clone(), name.clone()));
                stored.is_some_and(|&revision| revision == held.revision)
            });
            next.changes += (before - names.len()) as u64;
        }
        let missing: Vec<(String, String)> = inventory
            .documents
            .into_keys()
            .filter(|(kind, name)| next.find(kind, name).is_none())
            .collect();
        if !missing.is_empty() {
            for row in store::current(&self.inner.db, &missing).await? {
                next.hold(row);
            }
        }
        self.publish(next);
        Ok(())
    }

    /// The current version, from memory.
    pub fn find(&self, kind: &str, name: &str) -> Option<Arc<StoredDocument>> {
        self.snapshot()
            .find(kind, name)
            .map(|held| Arc::clone(&held.document))
    }

    /// A given version, from memory or the store.
    pub async fn version(
        &self,
        kind: &str,
        name: &str,
        version: i32,
    ) -> Result<Option<Arc<StoredDocument>>, StoreError> {
        if let Some(current) = self.find(kind, name)
            && current.version == version
        {
            return Ok(Some(current));
        }
        let rows = store::versions(&self.inner.db, kind, name, Some(version)).await?;
        Ok(rows.into_iter().next().map(|row| Arc::new(row.into())))
    }

    /// The newest 1000 versions of one name, newest first.
    pub async fn versions(
        &self,
        kind: &str,
        name: &str,
    ) -> Result<Vec<StoredDocument>, StoreError> {
        let rows = store::versions(&self.inner.db, kind, name, None).await?;
        Ok(rows.into_iter().map(StoredDocument::from).collect())
    }

    /// The current version of every document of a kind, by name.
    pub fn list(&self, kind: &str) -> Vec<Arc<StoredDocument>> {
        let snapshot = self.snapshot();
        let names = snapshot.kinds.get(kind);
        names
            .into_iter()
            .flat_map(BTreeMap::values)
            .map(|held| Arc::clone(&held.document))
            .collect()
    }

    /// Stores a document that has been checked. Repeating it changes nothing. A body that is the current one is not
    /// stored again; one that was current before is a new version. `Corrupt` for a body over 4 MiB of JSON or nested
    /// so deeply that it could not be read again.
    pub async fn put(
        &self,
        kind: &str,
        name: &str,
        body: Value,
    ) -> Result<(Arc<StoredDocument>, Put), StoreError> {
        let text = storable(&body)?;
        // The order of members counts: a `switch` tries its rules in the order in which they are written.
        let hash = Sha256::digest(text.as_bytes());
        let _changing = self.inner.changing.lock().await;
        let mut tx = self.inner.db.begin().await.map_err(StoreError::from_sqlx)?;
        store::lock(&mut tx).await?;
        let current = store::current(&mut *tx, &[(kind.to_owned(), name.to_owned())])
            .await?
            .pop();
        let (row, put) = match current {
            Some(row) if *row.hash == *hash => (row, Put::Unchanged),
            current => {
                let put = current.map_or(Put::Created, |_| Put::Changed);
                (store::put(&mut tx, kind, name, &hash, &text).await?, put)
            }
        };
        tx.commit().await.map_err(StoreError::from_sqlx)?;
        Ok((self.hold(row), put))
    }

    /// Enables or disables. `NotFound` when the name is unknown.
    pub async fn set_enabled(
        &self,
        kind: &str,
        name: &str,
        enabled: bool,
    ) -> Result<Arc<StoredDocument>, StoreError> {
        let _changing = self.inner.changing.lock().await;
        let mut tx = self.inner.db.begin().await.map_err(StoreError::from_sqlx)?;
        store::lock(&mut tx).await?;
        store::set_enabled(&mut tx, kind, name, enabled).await?;
        let row = store::current(&mut *tx, &[(kind.to_owned(), name.to_owned())])
            .await?
            .pop()
            .ok_or_else(|| StoreError::Corrupt(format!("the body of {kind} {name}")))?;
        tx.commit().await.map_err(StoreError::from_sqlx)?;
        Ok(self.hold(row))
    }

    /// Removes the name; versions stay for the executions that run them. `NotFound` when the name is unknown.
    pub async fn delete(&self, kind: &str, name: &str) -> Result<(), StoreError> {
        let _changing = self.inner.changing.lock().await;
        let mut tx = self.inner.db.begin().await.map_err(StoreError::from_sqlx)?;
        store::lock(&mut tx).await?;
        store::delete(&mut tx, kind, name).await?;
        tx.commit().await.map_err(StoreError::from_sqlx)?;
        let mut next = Snapshot::clone(&self.snapshot());
        let names = next.kinds.get_mut(kind);
        let removed = names.and_then(|names| names.remove(name));
        next.changes += u64::from(removed.is_some());
        self.publish(next);
        Ok(())
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        let snapshot = self.inner.snapshot.read();
        Arc::clone(&snapshot.unwrap_or_else(PoisonError::into_inner))
    }

    fn publish(&self, next: Snapshot) {
        let snapshot = self.inner.snapshot.write();
        *snapshot.unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }

    /// Puts one document into memory. What else changed meanwhile is found by the next refresh.
    fn hold(&self, row: DocumentRow) -> Arc<StoredDocument> {
        let mut next = Snapshot::clone(&self.snapshot());
        let document = next.hold(row);
        self.publish(next);
        document
    }
}

/// The body as JSON text, when it can be read back.
fn storable(body: &Value) -> Result<String, StoreError> {
    let text =
        serde_json::to_string(body).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    if text.len() > BODY_BYTES_MAX {
        return Err(StoreError::Corrupt(format!(
            "a document is at most {BODY_BYTES_MAX} bytes"
        )));
    }
    match serde_json::from_str::<Value>(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(StoreError::Corrupt(error.to_string())),
    }
}

#[cfg(test)]
mod tests;
