//! A real Postgres for the tests of this crate: one server per test process, a fresh database per test.
//!
//! `TEST_DATABASE_URL` names a server to use instead; its role must be allowed to create databases.

use std::{
    collections::BTreeMap,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{OnceLock, mpsc},
    thread,
    time::Duration,
};

use chrono::{DateTime, SubsecRound, Utc};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, postgres::PgConnectOptions,
};
use uuid::Uuid;

use crate::{
    core::{Config, Core},
    id::{ExecutionId, HostId},
    outbound::OutboundPolicy,
    postgres::PrivatePostgres,
    store::rows::{
        ExecutionChange, ExecutionStatus, NewExecution, NodeRunRow, NodeRunStatus, WaitRow, Write,
    },
};

/// How long a test waits for something that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    url: String,
    /// Names of databases that are done with.
    done: mpsc::Sender<String>,
}

/// A database of one test, empty at first. It is dropped with this.
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) name: String,
}

impl Database {
    pub(crate) async fn create() -> Self {
        let name = format!("test_{}", Uuid::now_v7().simple());
        let options: PgConnectOptions = server().url.parse().expect("a URL");
        let mut connection = PgConnection::connect_with(&options)
            .await
            .expect("a server");
        connection
            .execute(AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .await
            .expect("a database");
        Self {
            url: options.database(&name).to_url_lossy().to_string(),
            name,
        }
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("a server")
    }

    /// A host on this database.
    pub(crate) async fn host(&self) -> Core {
        Core::connect(config(&self.url)).await.expect("a host")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        drop(server().done.send(std::mem::take(&mut self.name)));
    }
}

/// A host on a database of its own.
pub(crate) struct TestHost {
    core: Core,
    pub(crate) database: Database,
}

impl TestHost {
    pub(crate) async fn start() -> Self {
        let database = Database::create().await;
        Self {
            core: database.host().await,
            database,
        }
    }
}

impl Deref for TestHost {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

pub(crate) fn config(url: &str) -> Config {
    Config {
        database_url: url.to_owned(),
        labels: BTreeMap::new(),
        lease: Duration::from_secs(10),
        running_max: 100,
        outbound: OutboundPolicy::default(),
        env_allowed: Vec::new(),
        exclusive: false,
    }
}

/// Tries `condition` until it holds.
pub(crate) async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.unwrap_or_else(|_| panic!("it never came to pass that {what}"))
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let (ready, started) = mpsc::channel();
        let (done, to_drop) = mpsc::channel();
        // Tests come and go with their runtimes; the server stays, on a thread of its own.
        thread::spawn(move || serve(&ready, &to_drop));
        let url = started.recv().expect("a server");
        Server { url, done }
    })
}

fn serve(ready: &mpsc::Sender<String>, to_drop: &mpsc::Receiver<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let private = std::env::var("TEST_DATABASE_URL").is_err().then(|| {
        let directory = fresh_directory();
        let private = runtime
            .block_on(PrivatePostgres::start(&directory))
            .expect("a private Postgres");
        runtime.block_on(hurry(private.url()));
        private
    });
    let url = match &private {
        Some(private) => private.url().to_owned(),
        None => std::env::var("TEST_DATABASE_URL").expect("it was there just now"),
    };
    ready.send(url.clone()).expect("somebody waits");
    for name in to_drop {
        let dropped = runtime.block_on(async {
            let mut connection = PgConnection::connect(&url).await?;
            let statement = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
            connection.execute(AssertSqlSafe(statement)).await
        });
        if let Err(error) = dropped {
            eprintln!("database {name} stays: {error}");
        }
    }
}

/// Nothing here outlives the server, so nothing need reach the disk: most of the time of these tests would be spent
/// waiting for that.
async fn hurry(url: &str) {
    let mut connection = PgConnection::connect(url).await.expect("a server");
    for statement in [
        "ALTER SYSTEM SET fsync = off",
        "ALTER SYSTEM SET full_page_writes = off",
        "SELECT pg_reload_conf()",
    ] {
        connection.execute(statement).await.expect("a setting");
    }
}

/// A folder of this process. Those of processes that are gone are removed, since a static is never dropped.
fn fresh_directory() -> PathBuf {
    const PREFIX: &str = "callboard-store-test-";
    let parent = std::env::temp_dir();
    for entry in std::fs::read_dir(&parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            drop(std::fs::remove_dir_all(entry.path()));
        }
    }
    let directory = parent.join(format!("{PREFIX}{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a folder");
    directory
}

/// Now, as precise as the database is.
pub(crate) fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

pub(crate) fn new_execution(host: HostId) -> NewExecution {
    NewExecution {
        id: ExecutionId::new(),
        workflow: "intake".to_owned(),
        version: 1,
        trigger: "manual".to_owned(),
        status: ExecutionStatus::Running,
        host_id: Some(host),
        input: r#"{"b":1,"a":"\u0000"}"#.to_owned(),
        trigger_data: None,
        parent_id: None,
        retry_of: None,
        idempotency_key: None,
        input_hash: None,
        trace_id: None,
        started_at: now(),
    }
}

pub(crate) fn change(id: ExecutionId, status: ExecutionStatus) -> ExecutionChange {
    ExecutionChange {
        id,
        status,
        host_id: None,
        finished_at: status.is_final().then(now),
        output: None,
        error: None,
        parent_id: None,
    }
}

pub(crate) fn node_run(id: ExecutionId, host: HostId, seq: i32) -> NodeRunRow {
    NodeRunRow {
        execution_id: id,
        seq,
        step: format!("step-{seq}"),
        node_type: "set".to_owned(),
        scope: String::new(),
        visit: 0,
        attempt: 1,
        status: NodeRunStatus::Succeeded,
        port: Some("main".to_owned()),
        output: Some(format!(r#"[{{"json":{{"seq":{seq}}}}}]"#)),
        error: None,
        item_index: None,
        parent_seq: seq.checked_sub(1),
        retry_at: None,
        host_id: host,
        started_at: now(),
        finished_at: now(),
    }
}

pub(crate) fn wait(id: ExecutionId, key: &str) -> WaitRow {
    WaitRow {
        execution_id: id,
        key: key.to_owned(),
        kind: "timer".to_owned(),
        wake_at: None,
        child_id: None,
        data: None,
        started_at: now(),
    }
}

pub(crate) fn started(new: &NewExecution) -> Write {
    Write::ExecutionStarted(Box::new(new.clone()))
}

pub(crate) fn changed(change: ExecutionChange) -> Write {
    Write::ExecutionChanged(Box::new(change))
}

pub(crate) fn ran(row: NodeRunRow) -> Write {
    Write::NodeRun(Box::new(row))
}

pub(crate) fn opened(row: WaitRow) -> Write {
    Write::WaitOpened(Box::new(row))
}

pub(crate) fn closed(execution_id: ExecutionId, key: &str) -> Write {
    Write::WaitClosed {
        execution_id,
        key: key.to_owned(),
    }
}
