//! One private Postgres per test process, a database per test.

use std::{path::PathBuf, sync::OnceLock, time::Duration};

use callboard_runtime::postgres::PrivatePostgres;
use sqlx::{Connection, Executor, PgConnection, Row, postgres::PgRow};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};

use crate::scratch;

/// How many databases may be in use at once: each server has a pool of connections.
static IN_USE: Semaphore = Semaphore::const_new(5);

enum Order {
    Create(String, oneshot::Sender<()>),
    Drop(String),
}

struct Shared {
    url: String,
    orders: mpsc::UnboundedSender<Order>,
}

/// A database of one test. It is dropped with this.
pub struct Database {
    name: String,
    url: String,
    // Given back last.
    _in_use: SemaphorePermit<'static>,
}

impl Database {
    /// Makes a new empty database, when fewer than a handful are in use.
    ///
    /// # Panics
    /// When there is no Postgres.
    pub async fn create() -> Self {
        let in_use = IN_USE.acquire().await.expect("it is never closed");
        let shared = tokio::task::spawn_blocking(shared)
            .await
            .expect("the test database starts");
        let name = format!("test_{}", uuid::Uuid::now_v7().simple());
        let (done, created) = oneshot::channel();
        shared
            .orders
            .send(Order::Create(name.clone(), done))
            .expect("the database's thread lives as long as the process");
        created.await.expect("a database can be created");
        Self {
            url: shared.url.replacen("/callboard?", &format!("/{name}?"), 1),
            name,
            _in_use: in_use,
        }
    }

    /// For `--database-url`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a query for one row.
    ///
    /// # Panics
    /// When it fails.
    pub async fn row(&self, sql: &'static str) -> PgRow {
        let mut connection = PgConnection::connect(&self.url)
            .await
            .expect("the test database answers");
        let row = connection.fetch_one(sql).await.expect("the query is right");
        // Closed rather than dropped: its statistics are reported at its end.
        let _ = connection.close().await;
        row
    }

    /// Runs a query for one number.
    ///
    /// # Panics
    /// When it fails.
    pub async fn number(&self, sql: &'static str) -> i64 {
        self.row(sql).await.get(0)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // Without a receiver the whole server is gone already.
        let _ = shared().orders.send(Order::Drop(self.name.clone()));
    }
}

/// Starts Postgres with the first database, on a thread and a runtime of its own: those of a test end with it.
fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let directory = scratch::open_directory("postgres");
        let (started, url) = std::sync::mpsc::channel();
        let (orders, queue) = mpsc::unbounded_channel();
        std::thread::spawn(move || serve(directory, &started, queue));
        let url = url.recv().expect("the test database starts");
        Shared { url, orders }
    })
}

fn serve(
    directory: PathBuf,
    started: &std::sync::mpsc::Sender<String>,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    runtime.block_on(async {
        let postgres = PrivatePostgres::start(&directory)
            .await
            .unwrap_or_else(|error| panic!("no database for the tests: {error}"));
        started
            .send(postgres.url().to_owned())
            .expect("somebody waits for it");
        while let Some(order) = orders.recv().await {
            match order {
                Order::Create(name, done) => {
                    execute(&postgres, format!("CREATE DATABASE {name}")).await;
                    // A test that gave up meanwhile needs no answer.
                    let _ = done.send(());
                }
                Order::Drop(name) => {
                    execute(&postgres, format!("DROP DATABASE {name} WITH (FORCE)")).await;
                }
            }
        }
    });
}

async fn execute(postgres: &PrivatePostgres, sql: String) {
    let run = async {
        let mut connection = PgConnection::connect(postgres.url()).await?;
        connection.execute(sqlx::AssertSqlSafe(sql)).await?;
        connection.close().await
    };
    match tokio::time::timeout(Duration::from_secs(60), run).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("a test database: {error}"),
        Err(_) => panic!("a test database took too long"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_database_is_empty_and_its_own() {
        let (one, two) = (Database::create().await, Database::create().await);
        assert_ne!(one.name(), two.name());
        let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
        assert_eq!(one.number(tables).await, 0);
        let name: String = two.row("SELECT current_database()::text").await.get(0);
        assert_eq!(name, two.name());
    }
}
