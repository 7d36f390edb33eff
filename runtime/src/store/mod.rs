//! Postgres: one module per table. Only a table's own module names it.
//!
//! Owners write through [`crate::journal::Journal`], which composes the tables' parts into one fenced statement
//! ([`batch`]). Everything here takes an executor, so callers may compose transactions.

use sqlx::{
    ConnectOptions, Connection, PgConnection, SqlSafeStr,
    error::DatabaseError,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    postgres::PgConnectOptions,
};

pub mod api_keys;
pub(crate) mod batch;
pub mod documents;
pub mod executions;
pub mod hosts;
pub mod node_runs;
pub mod rows;
pub mod session_events;
pub mod sessions;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
pub(crate) mod testing;
pub mod waits;

/// How many rows a list returns at most, whatever was asked.
pub const LIMIT_MAX: i64 = 1000;

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
    /// A stored value cannot be read, or a new one cannot be stored. Needs a person.
    #[error("corrupt: {0}")]
    Corrupt(String),
    /// The database gave no answer: it may be written or not.
    #[error("database unavailable: {0}")]
    Unconfirmed(String),
    /// The server is stopping.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// What a database error means to whoever asked.
    pub fn from_sqlx(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::RowNotFound => return Self::NotFound,
            sqlx::Error::PoolClosed => return Self::Closed,
            _ => {}
        }
        match Trouble::of(&error) {
            Trouble::Away | Trouble::Busy => Self::Unconfirmed(error.to_string()),
            Trouble::Taken => Self::Conflict(error.to_string()),
            Trouble::Refused => Self::Corrupt(error.to_string()),
        }
    }
}

/// What kind of trouble an error means, which decides what may be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The connection or the server is of no use now. Whether the statement took effect is unknown.
    Away,
    /// Others were in the way. The statement took no effect and may be sent again.
    Busy,
    /// A unique key is taken.
    Taken,
    /// The statement or its data will never be accepted.
    Refused,
}

impl Trouble {
    /// Classifies by type and SQLSTATE, never by text.
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(error) => Self::of_database(error.as_ref()),
            sqlx::Error::Encode(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::InvalidArgument(_)
            | sqlx::Error::RowNotFound
            | sqlx::Error::TypeNotFound { .. } => Self::Refused,
            _ => Self::Away,
        }
    }

    fn of_database(error: &dyn DatabaseError) -> Self {
        let code = error.code().unwrap_or_default();
        match &*code {
            "23505" => return Self::Taken,
            // Lock timeout, object in use, statement timeout or cancel.
            "55P03" | "55006" | "57014" => return Self::Busy,
            // A read-only server (a standby after a failover), or prepared statements that are no longer what they
            // were: a new connection helps.
            "25006" | "26000" | "42P05" | "0A000" => return Self::Away,
            _ => {}
        }
        match code.get(..2).unwrap_or_default() {
            "40" => Self::Busy,
            // Connection, authorisation, wrong state after a broken session, database missing, out of resources,
            // operator intervention, I/O.
            "08" | "28" | "25" | "3D" | "53" | "57" | "58" | "" => Self::Away,
            _ => Self::Refused,
        }
    }
}

/// A result of the store.
pub type StoreResult<T> = Result<T, StoreError>;

/// Every migration, in order. A file that is missing here fails a test.
const MIGRATIONS: &[(i64, &str, &str)] =
    &[(1, "base", include_str!("../../../migrations/0001_base.sql"))];

/// Brings the database to this program's schema. Two hosts may do so at once: an advisory lock orders them. A
/// database that is newer is left as it is, since hosts of two adjacent versions work together.
///
/// # Errors
/// A sentence, when the database cannot be reached, a migration fails, or one was changed after it ran.
pub async fn migrate(options: &PgConnectOptions) -> Result<(), MigrateError> {
    let migrations = MIGRATIONS
        .iter()
        .map(|&(version, name, sql)| {
            Migration::new(
                version,
                name.into(),
                MigrationType::Simple,
                sql.into_sql_str(),
                false,
            )
        })
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    migrator.set_ignore_missing(true);
    let options = options.clone().disable_statement_logging();
    let mut connection = PgConnection::connect_with(&options)
        .await
        .map_err(MigrateError::Execute)?;
    migrator.run(&mut connection).await?;
    connection.close().await.map_err(MigrateError::Execute)
}

/// Reads a stored enum. What it cannot read was written by a newer program or by hand.
fn parse_status<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, sqlx::Error> {
    parse(text).ok_or_else(|| sqlx::Error::Decode(format!("unknown status `{text}`").into()))
}

/// What a caller asked for, brought within bounds.
fn page(limit: i64) -> i64 {
    limit.clamp(1, LIMIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_migration_file_is_embedded() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .expect("the folder is there")
            .map(|entry| {
                let name = entry.expect("it can be listed").file_name();
                name.into_string().expect("names are text")
            })
            .collect();
        files.sort();
        let embedded: Vec<String> = MIGRATIONS
            .iter()
            .map(|(version, name, _)| format!("{version:04}_{name}.sql"))
            .collect();
        assert_eq!(files, embedded);
    }

    #[tokio::test]
    async fn two_hosts_may_migrate_at_once_and_again() {
        let database = testing::Database::create().await;
        let options: PgConnectOptions = database.url.parse().expect("a URL");
        let (one, two) = tokio::join!(migrate(&options), migrate(&options));
        one.expect("the first");
        two.expect("the second");
        migrate(&options).await.expect("again");
    }
}
