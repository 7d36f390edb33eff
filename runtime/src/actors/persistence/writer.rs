//! The connection of one writer shard, and what it does when the database is away.
//!
//! A batch whose answer did not come is sent again, on a new connection. Each of its statements may be repeated, but
//! not after a later batch; so before anything is sent on a new connection, the server ends the former one. Otherwise
//! a batch that was stuck on its way could arrive late and undo what came after it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};
use tokio::time::{sleep, timeout};

use crate::{
    actors::Backoff,
    id::HostId,
    journal::Shared,
    store::{
        StoreError, Trouble,
        batch::{Batch, Statements},
        rows::Write,
    },
};

/// The longest a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest an answer may take. Longer than the server's own limit, so that it passes only when the server or the
/// network is gone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(45);

/// Settings of the connection. Every batch is a handful of look-ups by key, so the plan that is right is known: nested
/// loops over indexes, planned once. Left to itself the planner either plans every batch anew, or keeps a plan it made
/// while the tables were empty, which reads them whole.
const SETTINGS: [(&str, &str); 10] = [
    ("statement_timeout", "30s"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "10s"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_material", "off"),
    ("jit", "off"),
];

/// What became of a batch.
pub(super) enum Outcome {
    /// It is durable.
    Saved,
    /// Nothing was written: the host is fenced.
    Fenced,
    /// Nothing was written: the database will not take it.
    Refused(StoreError),
}

pub(crate) struct Writer {
    options: PgConnectOptions,
    name: String,
    host: HostId,
    shard: i16,
    shared: Arc<Shared>,
    connection: Option<PgConnection>,
    /// The last attempt to reach the database failed.
    away: bool,
    statements: Statements,
}

impl Writer {
    pub(super) fn new(
        database: &PgConnectOptions,
        host: HostId,
        shard: i16,
        shared: Arc<Shared>,
    ) -> Self {
        // Unique among all connections of all hosts; 63 bytes at most.
        let name = format!("callboard {host} w{shard}");
        let options = database
            .clone()
            .application_name(&name)
            .statement_cache_capacity(256)
            .options(SETTINGS)
            .disable_statement_logging();
        Self {
            options,
            name,
            host,
            shard,
            shared,
            connection: None,
            away: false,
            statements: Statements::default(),
        }
    }

    /// Writes a batch, however long that takes while the database is away or others are in the way.
    pub(super) async fn write(&mut self, writes: &[Vec<Write>]) -> Outcome {
        let began = Instant::now();
        let batch = Batch::merge(writes.iter().flatten());
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        let outcome = loop {
            match self.attempt(&batch).await {
                Ok(true) => break Outcome::Saved,
                Ok(false) => break Outcome::Fenced,
                Err((Trouble::Taken | Trouble::Refused, error)) => {
                    break Outcome::Refused(StoreError::from_sqlx(error));
                }
                Err((trouble, error)) => self.note(trouble, &error),
            }
            self.shared.stats().retries.fetch_add(1, Ordering::Relaxed);
            sleep(backoff.delay()).await;
        };
        self.account(&outcome, writes, began);
        outcome
    }

    async fn attempt(&mut self, batch: &Batch<'_>) -> Result<bool, (Trouble, sqlx::Error)> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            // Whatever keeps us out, it is not the batch.
            None => self
                .connect()
                .await
                .map_err(|error| (Trouble::Away, error))?,
        };
        let connection = self.connection.insert(connection);
        let write = batch.write(connection, &mut self.statements, self.host, self.shard);
        let written = timeout(ANSWER_TIMEOUT, write)
            .await
            .map_err(late)
            .flatten()
            .map_err(|error| (Trouble::of(&error), error))?;
        self.set_away(false);
        Ok(written)
    }

    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let connect = async {
            let mut connection = PgConnection::connect_with(&self.options).await?;
            end_former(&mut connection, &self.name).await?;
            Ok(connection)
        };
        timeout(CONNECT_TIMEOUT, connect).await.map_err(late)?
    }

    fn note(&mut self, trouble: Trouble, error: &sqlx::Error) {
        if trouble == Trouble::Busy {
            tracing::debug!(%error, shard = self.shard, "a batch was in the way of others");
            return;
        }
        if !self.away {
            tracing::warn!(%error, shard = self.shard, "the database is away: writes wait for it");
        }
        self.connection = None;
        self.set_away(true);
    }

    fn set_away(&mut self, away: bool) {
        if self.away == away {
            return;
        }
        self.away = away;
        if away {
            self.shared.away.fetch_add(1, Ordering::Relaxed);
        } else {
            self.shared.away.fetch_sub(1, Ordering::Relaxed);
            tracing::info!(shard = self.shard, "the database is back");
        }
    }

    fn account(&self, outcome: &Outcome, writes: &[Vec<Write>], began: Instant) {
        let stats = self.shared.stats();
        match outcome {
            Outcome::Saved => {
                let rows = writes.iter().map(Vec::len).sum::<usize>();
                let bytes = writes.iter().flatten().map(crate::store::batch::bytes);
                let micros = began.elapsed().as_micros() as u64;
                stats.batches.fetch_add(1, Ordering::Relaxed);
                stats.rows.fetch_add(rows as u64, Ordering::Relaxed);
                stats
                    .bytes
                    .fetch_add(bytes.sum::<usize>() as u64, Ordering::Relaxed);
                stats.commit_micros.fetch_add(micros, Ordering::Relaxed);
            }
            Outcome::Fenced => self.shared.standing.lose(),
            Outcome::Refused(_) => {}
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.set_away(false);
    }
}

fn late(_: tokio::time::error::Elapsed) -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

/// Ends every other connection of this writer and waits until the server is rid of it: whatever it had been sent is
/// then either committed or never will be. It would be ended anyway when the server next writes to it, which for a
/// lost network may be a quarter of an hour later.
async fn end_former(connection: &mut PgConnection, name: &str) -> Result<(), sqlx::Error> {
    const END: &str = "
        SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE application_name = $1 AND pid <> pg_backend_pid()";
    let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(200));
    loop {
        let left: i64 = sqlx::query_scalar(END)
            .bind(name)
            .persistent(false)
            .fetch_one(&mut *connection)
            .await?;
        if left == 0 {
            return Ok(());
        }
        sleep(backoff.delay()).await;
    }
}
