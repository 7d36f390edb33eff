//! What every part of a running host shares, and how a host starts and stops.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use ractor::ActorRef;
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::watch;

pub use crate::actors::membership::Pulse;
use crate::{
    actors::{
        membership::{self, supervisor as membership_supervisor},
        persistence::{self, Setup},
        standing::Standing,
    },
    documents::Documents,
    events::EventHub,
    id::HostId,
    journal::Journal,
    outbound::{OutboundClient, OutboundPolicy},
    store::{
        self, StoreError,
        hosts::{self, NewHost},
    },
};

/// Writers of the journal: two keep two cores of a database server busy.
const SHARDS: i16 = 2;
/// Connections for reads and for writes that belong to no owner.
const POOL_MAX: u32 = 16;
/// How long a request waits for one of them.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long [`Core::shutdown`] waits for what is queued to be written, and then for each of its last steps.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(10);

const LEASE_MIN: Duration = Duration::from_secs(2);
const LEASE_MAX: Duration = Duration::from_secs(60);
const LABELS_MAX: usize = 64;
const LABEL_BYTES_MAX: usize = 256;
const RUNNING_MAX: usize = 1_000_000;

/// Settings of the pool's connections. Plans are made for the values at hand: lists have conditions that are mostly
/// absent, and tables start empty.
const POOL_SETTINGS: [(&str, &str); 4] = [
    ("statement_timeout", "30s"),
    ("lock_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "30s"),
    ("plan_cache_mode", "force_custom_plan"),
];

/// How a host is set up. Read once at start and checked as a whole by [`Config::check`].
#[derive(Clone)]
pub struct Config {
    /// A Postgres URL.
    pub database_url: String,
    /// `host-label`s, for placement.
    pub labels: BTreeMap<String, String>,
    /// How long this host may write without renewing. 2 s to 60 s.
    pub lease: Duration,
    /// How many executions may run at once here; more are refused with 429.
    pub running_max: usize,
    /// Where nodes, tools and providers may connect to.
    pub outbound: OutboundPolicy,
    /// Names of environment variables that expressions may read.
    pub env_allowed: Vec<String>,
    /// No other process can be using this database: what earlier hosts left is adopted at once instead of
    /// after their leases.
    pub exclusive: bool,
}

impl Config {
    /// Finds all faults.
    ///
    /// # Errors
    /// A sentence for each fault.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut faults = Vec::new();
        if let Err(error) = self.database() {
            faults.push(format!("the database URL cannot be read: {error}"));
        }
        if !(LEASE_MIN..=LEASE_MAX).contains(&self.lease) {
            faults.push(format!("the lease must be 2s to 60s, not {:?}", self.lease));
        }
        if !(1..=RUNNING_MAX).contains(&self.running_max) {
            faults.push(format!(
                "1 to {RUNNING_MAX} executions may run at once, not {}",
                self.running_max
            ));
        }
        if self.labels.len() > LABELS_MAX {
            faults.push(format!("a host has at most {LABELS_MAX} labels"));
        }
        if let Err(fault) = OutboundPolicy::parse(&self.outbound.allowed) {
            faults.push(fault);
        }
        for (name, value) in &self.labels {
            if name.is_empty() || name.len() > LABEL_BYTES_MAX || value.len() > LABEL_BYTES_MAX {
                faults.push(format!(
                    "the name of a label has 1 to {LABEL_BYTES_MAX} bytes and its value at most as many: `{name}`"
                ));
            }
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(ConfigError { faults })
        }
    }

    fn database(&self) -> Result<PgConnectOptions, sqlx::Error> {
        self.database_url.parse()
    }
}

impl fmt::Debug for Config {
    /// Without the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("labels", &self.labels)
            .field("lease", &self.lease)
            .field("running_max", &self.running_max)
            .field("outbound", &self.outbound)
            .field("env_allowed", &self.env_allowed)
            .field("exclusive", &self.exclusive)
            .finish_non_exhaustive()
    }
}

/// What is wrong with a [`Config`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .faults.join("; "))]
pub struct ConfigError {
    /// A sentence for each fault. Never empty.
    pub faults: Vec<String>,
}

/// Why a host did not start.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The database cannot be reached, or its schema cannot be brought up to date.
    #[error("the database cannot be brought up to date: {0}")]
    Migrate(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database failed afterwards.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An actor did not start.
    #[error("the host's actors did not start: {0}")]
    Actors(#[from] ractor::SpawnErr),
}

/// The shared parts of a running host. Cloning it is cheap; all clones are one.
#[derive(Clone)]
pub struct Core {
    /// The database, for reads and for writes that belong to no owner.
    pub db: PgPool,
    /// The one path by which owners write.
    pub journal: Journal,
    /// Live tails.
    pub events: EventHub,
    /// Definitions.
    pub documents: Documents,
    /// The one client for requests to the outside.
    pub outbound: OutboundClient,
    /// This process.
    pub host_id: HostId,
    /// How it was set up.
    pub config: Arc<Config>,
    /// What the host learnt when it last renewed its lease. Changes about once a second.
    pub pulse: watch::Receiver<Pulse>,
    standing: Arc<Standing>,
    membership: ActorRef<membership_supervisor::Msg>,
    persistence: ActorRef<persistence::Msg>,
}

impl Core {
    /// Starts a host: brings the schema up to date, registers under a new id, and starts the writers of the journal
    /// and the renewal of the lease.
    ///
    /// # Errors
    /// The settings are wrong, or the database cannot be reached or refuses. Trying again is harmless.
    pub async fn connect(config: Config) -> Result<Self, ConnectError> {
        config.check()?;
        let database = config.database().map_err(StoreError::from_sqlx)?;
        store::migrate(&database)
            .await
            .map_err(|error| ConnectError::Migrate(error.into()))?;
        let outbound =
            OutboundClient::new(config.outbound.clone()).map_err(|fault| ConfigError {
                faults: vec![fault],
            })?;
        let db = pool(&database);
        let host_id = HostId::new();
        let standing = Arc::new(Standing::new(config.lease));
        let pulse = register(&db, host_id, &config, &standing).await?;
        let documents = Documents::load(db.clone()).await?;
        let (pulse_sender, pulse) = watch::channel(Pulse::new(&pulse, &documents));
        let (persistence, journal) = persistence::start(Setup {
            host: host_id,
            database: database.clone(),
            standing: Arc::clone(&standing),
            shards: SHARDS,
        })
        .await?;
        let membership = membership_supervisor::start(membership::Setup {
            host: host_id,
            lease: config.lease,
            database,
            db: db.clone(),
            documents: documents.clone(),
            standing: Arc::clone(&standing),
            pulse: Arc::new(pulse_sender),
        })
        .await?;
        tracing::info!(host = %host_id, "this host has joined");
        Ok(Self {
            db,
            journal,
            events: EventHub::default(),
            documents,
            outbound,
            host_id,
            config: Arc::new(config),
            pulse,
            standing,
            membership,
            persistence,
        })
    }

    /// Whether something may be started that has effects outside: the lease is good. `false` while it could not be
    /// renewed, and for ever when the host is fenced.
    pub fn may_start_effects(&self) -> bool {
        self.standing.is_good()
    }

    /// Whether the host may never write again: everything it owned must stop. A process that wants to go on connects
    /// anew, under a new id.
    pub fn is_fenced(&self) -> bool {
        self.standing.is_fenced()
    }

    /// Whether the database answered when it was last asked: by the lease once a second, and by whatever is written.
    pub fn is_connected(&self) -> bool {
        self.standing.is_reached() && self.journal.is_connected()
    }

    /// Asks for a pulse now instead of within a second.
    pub fn pulse_now(&self) {
        drop(self.membership.cast(membership_supervisor::Msg::Pulse)); // an error: the host is stopping
    }

    /// Stops a host whose owners have stopped: writes what is queued, gives up the lease, closes all connections. What
    /// it still owned may be adopted at once. Takes at most half a minute when the database does not answer: then
    /// the lease expires by itself. Repeating it is harmless.
    pub async fn shutdown(&self) {
        let flushed = tokio::time::timeout(SHUTDOWN_PATIENCE, self.journal.flush()).await;
        if flushed.is_err() {
            let (rows, _) = self.journal.queued();
            tracing::error!(
                rows,
                "stopping although the database has not taken everything"
            );
        }
        stop(&self.membership).await;
        self.standing.release();
        stop(&self.persistence).await;
        let fence = hosts::fence(&self.db, self.host_id);
        match tokio::time::timeout(SHUTDOWN_PATIENCE, fence).await {
            Ok(Ok(()) | Err(StoreError::Closed)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the lease could not be given up"),
            Err(_) => tracing::warn!("the lease could not be given up in time"),
        }
        // Connections that are lent out are closed when they come back.
        drop(tokio::time::timeout(SHUTDOWN_PATIENCE, self.db.close()).await);
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("host_id", &self.host_id)
            .field("config", &self.config)
            .field("journal", &self.journal)
            .finish_non_exhaustive()
    }
}

fn pool(database: &PgConnectOptions) -> PgPool {
    let options = database
        .clone()
        .application_name("callboard")
        .options(POOL_SETTINGS);
    PgPoolOptions::new()
        .max_connections(POOL_MAX)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_lazy_with(options)
}

/// Registers the host. Its lease counts from before the request, so that it never believes in it longer than others.
async fn register(
    db: &PgPool,
    host: HostId,
    config: &Config,
    standing: &Standing,
) -> Result<hosts::Heartbeat, StoreError> {
    let new = NewHost {
        id: host,
        address: None,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        labels: config.labels.clone(),
        lease: config.lease,
        shards: SHARDS,
    };
    hosts::register(db, &new).await?;
    if config.exclusive {
        hosts::fence_others(db, host).await?;
    }
    let asked = Instant::now();
    let heartbeat = hosts::renew(db, host, config.lease).await;
    let heartbeat = heartbeat.map_err(StoreError::from_sqlx)?;
    standing.renew(asked);
    Ok(heartbeat)
}

async fn stop<M: ractor::Message>(actor: &ActorRef<M>) {
    // An error: it has stopped already, or takes too long and is left behind.
    drop(actor.stop_and_wait(None, Some(SHUTDOWN_PATIENCE)).await);
}

#[cfg(test)]
mod tests;
