//! A private Postgres: found or obtained, set up, run and stopped by this process.
//!
//! Owns the directory `postgres` (the database), `postgres-dist` (binaries it had to obtain), `postgres.lock` and
//! `postgres.log` below the data directory. The server listens on a Unix socket in a directory that only its
//! account may enter, and on nothing else. It is restarted when it dies, and stopped when this process ends,
//! however that happens. Whatever an earlier process left behind is put in order by the next start: there is no
//! separate repair.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{Connection, Executor, PgConnection};

mod account;
mod binaries;
mod cluster;
mod command;
mod death_signal;
mod keeper;
mod obtain;
mod place;

use binaries::Binaries;
use keeper::{Keeper, Launch};
use place::Place;

/// Name of the database and of its superuser.
const NAME: &str = "callboard";
/// How long a first start may take: recovery after a crash replays at most a gigabyte of log.
const READY_MAX: Duration = Duration::from_secs(180);
/// How often the server may die while starting. Processes that an earlier server left behind need a moment to
/// notice its death, and Postgres refuses to start before that.
const FAILED_STARTS_MAX: u32 = 5;
/// Where data goes when the account that must run the database cannot reach the data directory.
const FALLBACK_ROOT: &str = "/var/lib/callboard";

/// Why there is no private Postgres. Each is one sentence for the person who started the server.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// Another server uses the data directory.
    #[error(
        "another server{} is using the data directory {}: stop it, or give this one another `--data-dir`",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), directory.display()
    )]
    Locked {
        /// The data directory as given.
        directory: PathBuf,
        /// The other server, if it could be told.
        pid: Option<i32>,
    },
    /// No binaries, and none to be had.
    #[error(
        "no PostgreSQL server{} was found, and none could be obtained ({tried}): install it (Debian and Ubuntu: \
         `apt-get install postgresql`; Fedora: `dnf install postgresql-server`; macOS: `brew install postgresql`) \
         or give `--database-url`",
        major.map(|major| format!(" {major}, which the existing data needs,")).unwrap_or_default()
    )]
    NoBinaries {
        /// The version that an existing data directory demands.
        major: Option<u32>,
        /// What was tried to obtain one, and why it failed.
        tried: String,
    },
    /// Postgres refuses to run as root, and nobody else can reach the data.
    #[error(
        "PostgreSQL refuses to run as root, and the account `{account}` cannot enter {}: give a `--data-dir` that \
         other accounts can reach, or `--database-url`", directory.display()
    )]
    Unreachable {
        /// The account that would run it.
        account: String,
        /// The first directory on the way that stops it.
        directory: PathBuf,
    },
    /// The data directory holds something else.
    #[error("{} is not empty and holds no PostgreSQL data: move it away, or give another `--data-dir`", .0.display())]
    NotACluster(PathBuf),
    /// The data belongs to somebody else.
    #[error(
        "the data in {} belongs to user id {owner}, and only root or that user can run a database on it",
        directory.display()
    )]
    ForeignOwner {
        /// The database's directory.
        directory: PathBuf,
        /// Who owns it.
        owner: u32,
    },
    /// `initdb` failed.
    #[error("setting up the database failed: {0}")]
    Initdb(String),
    /// The server ended or did not become ready.
    #[error("the database did not start: {reason} (log: {})", log.display())]
    NotStarted {
        /// What its log says last.
        reason: String,
        /// The whole log.
        log: PathBuf,
    },
    /// A server left by an earlier process does not stop.
    #[error("a PostgreSQL server left by an earlier run (pid {0}) does not stop: stop it by hand")]
    Leftover(i32),
    /// A file or process could not be handled.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The server runs but its database could not be created.
    #[error("the database could not be created")]
    Database(#[from] sqlx::Error),
}

/// Names what was being done when an I/O error came.
trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, PostgresError>;
}

impl<T, E: Into<std::io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, PostgresError> {
        self.map_err(|source| PostgresError::Io {
            what: what(),
            source: source.into(),
        })
    }
}

/// A running private Postgres. It stops when this is shut down or dropped, or when the process ends in any way.
pub struct PrivatePostgres {
    url: String,
    note: Option<String>,
    // Fields drop in this order: the server ends before its lock is given up.
    keeper: Keeper,
    place: Place,
}

impl PrivatePostgres {
    /// Starts the private Postgres of a data directory, which is created if it is missing. Returns when the server
    /// answers and its database exists. The first start sets it up, and may download Postgres where none is
    /// installed; later ones take about half a second.
    ///
    /// Started by root, the server runs as the owner of the data directory, or as `postgres` or `nobody` when that
    /// is root. Where these cannot reach the data directory, the data is kept below `/var/lib/callboard`, and
    /// [`PrivatePostgres::note`] says so.
    pub async fn start(data_dir: &Path) -> Result<Self, PostgresError> {
        Self::start_with_fallback(data_dir, Path::new(FALLBACK_ROOT)).await
    }

    async fn start_with_fallback(
        data_dir: &Path,
        fallback_root: &Path,
    ) -> Result<Self, PostgresError> {
        let (data_dir, fallback_root) = (data_dir.to_owned(), fallback_root.to_owned());
        let prepared =
            tokio::task::spawn_blocking(move || Prepared::new(&data_dir, &fallback_root))
                .await
                .map_err(std::io::Error::other)
                .context(|| "preparing the database".to_owned())??;
        let postgres = prepared.launch()?;
        // From here on dropping `postgres` stops the server, whichever step fails.
        postgres.wait_until_ready().await?;
        postgres.create_database().await?;
        Ok(postgres)
    }

    /// A URL that `sqlx` accepts: the socket's directory and the database `callboard`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where the data is kept, when that is not below the data directory: a sentence to show once.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The process id of the server, while there is one; a restarted server has another.
    pub fn pid(&self) -> Option<i32> {
        self.keeper.pid()
    }

    /// The server's log.
    pub fn log_file(&self) -> PathBuf {
        self.place.log_file()
    }

    /// Stops the server: running transactions are rolled back, everything committed is kept. One that has not
    /// ended after 20 s is stopped at once, which costs the next start a recovery.
    pub async fn shutdown(mut self) {
        self.keeper.request_stop();
        // Dropping joins the keeper's thread, which is blocking work.
        let stopped = tokio::task::spawn_blocking(move || {
            self.keeper.join(keeper::STOP_MAX);
            drop(self);
        });
        if let Err(error) = stopped.await {
            tracing::error!(%error, "stopping the database failed");
        }
    }

    async fn wait_until_ready(&self) -> Result<(), PostgresError> {
        let started = Instant::now();
        loop {
            if let Some(pid) = self.keeper.pid()
                && self.place.cluster().is_ready(pid)
            {
                return Ok(());
            }
            if self.keeper.deaths() >= FAILED_STARTS_MAX {
                return Err(self.not_started("it ended"));
            }
            if started.elapsed() > READY_MAX {
                return Err(self.not_started("it was not ready in time"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn not_started(&self, otherwise: &str) -> PostgresError {
        let log = self.place.log_file();
        PostgresError::NotStarted {
            reason: command::last_complaint(&log).unwrap_or_else(|| otherwise.to_owned()),
            log,
        }
    }

    /// Not part of the set-up, since a crash may come between the two.
    async fn create_database(&self) -> Result<(), PostgresError> {
        let url = self.place.cluster().url("postgres");
        let mut connection = PgConnection::connect(&url).await?;
        let exists: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
                .bind(NAME)
                .fetch_one(&mut connection)
                .await?;
        if !exists {
            connection.execute("CREATE DATABASE callboard").await?;
        }
        connection.close().await?;
        Ok(())
    }
}

/// Everything decided and set up, nothing running yet.
struct Prepared {
    place: Place,
    binaries: Binaries,
}

impl Prepared {
    fn new(data_dir: &Path, fallback_root: &Path) -> Result<Self, PostgresError> {
        let place = Place::choose(data_dir, fallback_root)?;
        let cluster = place.cluster();
        let major = cluster.major()?;
        let binaries =
            binaries::find(&place, major).map_or_else(|| obtain::obtain(&place, major), Ok)?;
        if major.is_none() {
            cluster::create(&place, &binaries)?;
        }
        cluster.end_leftovers()?;
        Ok(Self { place, binaries })
    }

    fn launch(self) -> Result<PrivatePostgres, PostgresError> {
        let cluster = self.place.cluster();
        let launch = Launch {
            cluster: cluster.clone(),
            binaries: self.binaries,
            account: self.place.account().clone(),
            log: Arc::new(self.place.open_log()?),
        };
        Ok(PrivatePostgres {
            url: cluster.url(NAME),
            note: self.place.note(),
            keeper: Keeper::start(launch)?,
            place: self.place,
        })
    }
}

#[cfg(test)]
mod tests;
