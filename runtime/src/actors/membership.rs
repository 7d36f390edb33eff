//! Renews the lease of this host, fences hosts whose leases expired, and tells everybody what there is to adopt.
//!
//! One statement a second does all of it; a second one only when there is somebody to fence. It has a connection of
//! its own, so a busy pool cannot cost the lease. When the host is fenced, the last pulse says so and no more follow.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool, postgres::PgConnectOptions};
use tokio::{
    sync::watch,
    time::{error::Elapsed, timeout},
};

use crate::{
    actors::{AbortOnDrop, standing::Standing},
    documents::Documents,
    id::HostId,
    store::{
        StoreError,
        hosts::{self, Heartbeat},
        waits,
    },
};

pub(crate) mod supervisor;

/// Pulses are at most this far apart.
const INTERVAL_MAX: Duration = Duration::from_secs(1);
/// Pulses for waits that end are at least this far apart.
const INTERVAL_MIN: Duration = Duration::from_millis(20);
/// Time between two rounds of [`chores`].
const CHORES_EVERY: Duration = Duration::from_secs(60);

/// As for the writers of the journal: look-ups by key whose right plan is known, even while tables are empty.
pub(crate) const SETTINGS: [(&str, &str); 6] = [
    ("statement_timeout", "10s"),
    ("lock_timeout", "1s"),
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
];

/// What a host learns each time it renews its lease. All flags say "look now"; another host may be faster.
#[derive(Clone, Debug, PartialEq)]
pub struct Pulse {
    /// This host may never write again. The last pulse.
    pub fenced: bool,
    /// `store::executions::adopt` would find something.
    pub orphan_executions: bool,
    /// `store::sessions::adopt` would find something.
    pub orphan_sessions: bool,
    /// `store::waits::claim_due` would find something.
    pub due_waits: bool,
    /// `store::waits::due_children` would find something.
    pub due_children: bool,
    /// When the next wait of an execution without an owner ends. There is a pulse then.
    pub next_wake_at: Option<DateTime<Utc>>,
    /// [`Documents::revision`]: grows when any document changed, and [`Documents`] has the change already.
    pub documents_revision: i64,
    /// The database's clock.
    pub database_now: DateTime<Utc>,
}

impl Pulse {
    pub(crate) fn new(heartbeat: &Heartbeat, documents: &Documents) -> Self {
        Self {
            fenced: !heartbeat.live,
            orphan_executions: heartbeat.orphan_executions,
            orphan_sessions: heartbeat.orphan_sessions,
            due_waits: heartbeat.due_waits,
            due_children: heartbeat.due_children,
            next_wake_at: heartbeat.next_wake_at,
            documents_revision: documents.revision(),
            database_now: heartbeat.database_now,
        }
    }
}

/// What membership is started with.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) host: HostId,
    pub(crate) lease: Duration,
    pub(crate) database: PgConnectOptions,
    pub(crate) db: PgPool,
    pub(crate) documents: Documents,
    pub(crate) standing: Arc<Standing>,
    pub(crate) pulse: Arc<watch::Sender<Pulse>>,
}

pub(crate) struct Membership;

pub(crate) enum Msg {
    /// Pulse now; soon again, if one is under way.
    Pulse,
    /// The timer that was set when this many pulses had been sent.
    Due(u64),
    /// A pulse came back.
    Pulsed(Box<Pulsed>),
    /// Memory follows the store again, or could not.
    DocumentsRead(Result<(), StoreError>),
    /// This host must not write any more.
    Lost,
}

pub(crate) struct Pulsed {
    link: Link,
    asked: Instant,
    result: Result<Heartbeat, sqlx::Error>,
    /// It fenced somebody: there are orphans to be found.
    fenced_peers: bool,
}

pub(crate) struct State {
    setup: Setup,
    /// `None` while a pulse is under way.
    link: Option<Link>,
    again: bool,
    sent: u64,
    /// The last pulse failed.
    failing: bool,
    reading_documents: bool,
    /// When the last round of chores began.
    chores_at: Option<Instant>,
    tasks: Tasks,
}

/// Kept so that they end with the actor.
#[derive(Default)]
struct Tasks {
    pulse: Option<AbortOnDrop>,
    documents: Option<AbortOnDrop>,
    chores: Option<AbortOnDrop>,
    /// Waits for the loss of the right to write, then makes it known.
    lost: Option<AbortOnDrop>,
}

impl Actor for Membership {
    type Msg = Msg;
    type State = State;
    type Arguments = Setup;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        setup: Setup,
    ) -> Result<State, ActorProcessingErr> {
        let (standing, me) = (Arc::clone(&setup.standing), myself.clone());
        let lost = tokio::spawn(async move {
            standing.lost().await;
            drop(me.cast(Msg::Lost)); // an error: the actor has stopped
        });
        myself.cast(Msg::Pulse)?;
        let options = setup
            .database
            .clone()
            .application_name(&format!("callboard {} membership", setup.host))
            .options(SETTINGS)
            .disable_statement_logging();
        let tasks = Tasks {
            lost: Some(AbortOnDrop(lost.abort_handle())),
            ..Tasks::default()
        };
        Ok(State {
            link: Some(Link {
                options,
                connection: None,
            }),
            setup,
            again: false,
            sent: 0,
            failing: false,
            reading_documents: false,
            chores_at: None,
            tasks,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        msg: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Pulse => state.pulse(&myself),
            Msg::Due(sent) if sent == state.sent => state.pulse(&myself),
            Msg::Due(_) => {} // there was a pulse since
            Msg::Pulsed(pulsed) => state.pulsed(&myself, *pulsed),
            Msg::DocumentsRead(result) => state.documents_read(result),
            Msg::Lost => state.lost(),
        }
        Ok(())
    }
}

impl State {
    fn pulse(&mut self, myself: &ActorRef<Msg>) {
        if self.setup.standing.is_fenced() {
            return;
        }
        let Some(mut link) = self.link.take() else {
            self.again = true;
            return;
        };
        self.again = false;
        self.sent += 1;
        let (myself, host, lease) = (myself.clone(), self.setup.host, self.setup.lease);
        let task = tokio::spawn(async move {
            let asked = Instant::now();
            let result = link.renew_in_time(host, lease).await;
            let fenced_peers = match &result {
                Ok(heartbeat) if heartbeat.live && heartbeat.peer_expired => {
                    link.fence_expired(host, lease).await
                }
                _ => false,
            };
            let pulsed = Pulsed {
                link,
                asked,
                result,
                fenced_peers,
            };
            drop(myself.cast(Msg::Pulsed(Box::new(pulsed)))); // an error: the actor has stopped
        });
        self.tasks.pulse = Some(AbortOnDrop(task.abort_handle()));
        if self.chores_at.is_none_or(|at| at.elapsed() >= CHORES_EVERY) {
            self.chores_at = Some(Instant::now());
            let task = tokio::spawn(chores(self.setup.db.clone()));
            self.tasks.chores = Some(AbortOnDrop(task.abort_handle()));
        }
    }

    fn pulsed(&mut self, myself: &ActorRef<Msg>, pulsed: Pulsed) {
        self.link = Some(pulsed.link);
        self.again |= pulsed.fenced_peers;
        self.setup.standing.set_reached(pulsed.result.is_ok());
        let mut wait = INTERVAL_MAX.min(self.setup.lease / 3);
        match pulsed.result {
            Ok(heartbeat) if heartbeat.live => {
                self.failing = false;
                self.setup.standing.renew(pulsed.asked);
                self.read_documents(myself, &heartbeat);
                if let Some(wake_at) = heartbeat.next_wake_at {
                    let left = (wake_at - heartbeat.database_now).to_std();
                    wait = wait.min(left.unwrap_or_default()).max(INTERVAL_MIN);
                }
                if !self.setup.standing.is_fenced() {
                    let pulse = Pulse::new(&heartbeat, &self.setup.documents);
                    self.setup.pulse.send_replace(pulse);
                }
            }
            Ok(_) => {
                self.setup.standing.lose(); // which comes back as `Lost`
                return;
            }
            Err(error) => {
                if !self.failing {
                    tracing::warn!(%error, "the lease could not be renewed");
                }
                self.failing = true;
            }
        }
        if std::mem::take(&mut self.again) {
            wait = INTERVAL_MIN;
        }
        // The timer starts with the answer: a slow database is not asked more often.
        let sent = self.sent;
        myself.send_after(wait, move || Msg::Due(sent));
    }

    /// Beside the pulse, since it may be slow; one at a time.
    fn read_documents(&mut self, myself: &ActorRef<Msg>, heartbeat: &Heartbeat) {
        let documents = self.setup.documents.clone();
        if self.reading_documents || heartbeat.documents_revision == documents.revision() {
            return;
        }
        self.reading_documents = true;
        let myself = myself.clone();
        let task = tokio::spawn(async move {
            let result = documents.refresh().await;
            drop(myself.cast(Msg::DocumentsRead(result)));
        });
        self.tasks.documents = Some(AbortOnDrop(task.abort_handle()));
    }

    fn documents_read(&mut self, result: Result<(), StoreError>) {
        self.reading_documents = false;
        match result {
            Ok(()) => {
                let revision = self.setup.documents.revision();
                self.setup.pulse.send_if_modified(|pulse| {
                    let moved = pulse.documents_revision != revision;
                    pulse.documents_revision = revision;
                    moved
                });
            }
            Err(error) => tracing::warn!(%error, "changed documents could not be read"),
        }
    }

    /// Tells everybody at once, and makes it true in the database as soon as that can be reached, so that others adopt
    /// what this host owned without waiting for its lease to expire.
    fn lost(&mut self) {
        self.setup.pulse.send_if_modified(|pulse| {
            let news = !pulse.fenced;
            pulse.fenced = true;
            news
        });
        let (db, host) = (self.setup.db.clone(), self.setup.host);
        let task = tokio::spawn(async move {
            while let Err(error) = hosts::fence(&db, host).await {
                tracing::warn!(%error, "this host could not be fenced yet");
                tokio::time::sleep(INTERVAL_MAX).await;
            }
        });
        self.tasks.lost = Some(AbortOnDrop(task.abort_handle()));
    }
}

/// The connection of the pulse.
struct Link {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
}

impl Link {
    /// Renews in half a lease, so that there is time for a second attempt. A failure costs the connection.
    async fn renew_in_time(
        &mut self,
        host: HostId,
        lease: Duration,
    ) -> Result<Heartbeat, sqlx::Error> {
        let renewed = timeout(lease / 2, self.renew(host, lease)).await;
        let renewed = renewed.map_err(too_late).flatten();
        if renewed.is_err() {
            self.connection = None;
        }
        renewed
    }

    async fn renew(&mut self, host: HostId, lease: Duration) -> Result<Heartbeat, sqlx::Error> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(PgConnection::connect_with(&self.options).await?),
        };
        hosts::renew(connection, host, lease).await
    }

    /// Fences whoever did not renew. May have to wait for a batch of a dead host: our lease is renewed already, and there
    /// is a next time. Says whether it fenced anybody.
    async fn fence_expired(&mut self, host: HostId, lease: Duration) -> bool {
        let Some(connection) = &mut self.connection else {
            return false;
        };
        let fenced = timeout(lease / 3, hosts::fence_expired(connection, host)).await;
        match fenced.map_err(too_late).flatten() {
            Ok(0) => false,
            Ok(_) => {
                tracing::warn!("fenced hosts whose leases have expired");
                true
            }
            Err(error) => {
                tracing::warn!(%error, "hosts whose leases have expired could not be fenced yet");
                self.connection = None;
                false
            }
        }
    }
}

fn too_late(_: Elapsed) -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

/// What is done once a minute, by every host.
async fn chores(db: PgPool) {
    match waits::wake_missed(&db).await {
        Ok(0) => {}
        Ok(count) => tracing::warn!(count, "children had ended before their parents waited"),
        Err(error) => tracing::warn!(%error, "missed waits could not be looked for"),
    }
    if let Err(error) = hosts::forget(&db).await {
        tracing::warn!(%error, "hosts that are gone could not be removed");
    }
}
