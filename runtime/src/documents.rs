//! Definitions as stored: workflows, agents, providers. Each change of a body makes a version; readers are
//! served from memory.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::store::StoreError;

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
pub struct Documents {}

impl Documents {
    /// The current version, from memory.
    pub fn find(&self, kind: &str, name: &str) -> Option<Arc<StoredDocument>> {
        let _ = (kind, name);
        unimplemented!()
    }

    /// A given version, from memory or the store.
    pub async fn version(
        &self,
        kind: &str,
        name: &str,
        version: i32,
    ) -> Result<Option<Arc<StoredDocument>>, StoreError> {
        let _ = (kind, name, version);
        unimplemented!()
    }

    /// All versions of one name, newest first.
    pub async fn versions(
        &self,
        kind: &str,
        name: &str,
    ) -> Result<Vec<StoredDocument>, StoreError> {
        let _ = (kind, name);
        unimplemented!()
    }

    /// The current version of every document of a kind, by name.
    pub fn list(&self, kind: &str) -> Vec<Arc<StoredDocument>> {
        let _ = kind;
        unimplemented!()
    }

    /// Stores a document that has been checked. Repeating it changes nothing.
    pub async fn put(
        &self,
        kind: &str,
        name: &str,
        body: Value,
    ) -> Result<(Arc<StoredDocument>, Put), StoreError> {
        let _ = (kind, name, body);
        unimplemented!()
    }

    /// Enables or disables. `NotFound` when the name is unknown.
    pub async fn set_enabled(
        &self,
        kind: &str,
        name: &str,
        enabled: bool,
    ) -> Result<Arc<StoredDocument>, StoreError> {
        let _ = (kind, name, enabled);
        unimplemented!()
    }

    /// Removes the name; versions stay for the executions that run them. `NotFound` when the name is unknown.
    pub async fn delete(&self, kind: &str, name: &str) -> Result<(), StoreError> {
        let _ = (kind, name);
        unimplemented!()
    }
}
