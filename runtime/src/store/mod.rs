//! Postgres: one module per table. Only a table's own module names it.

pub mod rows;

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// This host lost its right to write; others may own what it owned. Stop.
    #[error("this host is fenced")]
    Fenced,
    /// There is no such row.
    #[error("not found")]
    NotFound,
    /// It is there already, or changed meanwhile.
    #[error("conflict: {0}")]
    Conflict(String),
    /// A stored value cannot be read. Needs a person.
    #[error("corrupt: {0}")]
    Corrupt(String),
    /// The database gave no answer: it may be written or not.
    #[error("database unavailable: {0}")]
    Unconfirmed(String),
    /// The server is stopping.
    #[error("the store is closed")]
    Closed,
}
