//! The handle through which owners save: executions, node runs, waits, sessions.
//!
//! An owner's writes are kept in order: one that is durable implies all that were appended before it. Rules for owners:
//!
//! * Open a wait for a child, and have that saved, before the child is started: the end of a child makes those waits due
//!   that are there.
//! * A child's [`crate::store::rows::ExecutionChange`] names its parent, or the parent sleeps on.
//! * The end of an execution closes all its waits; they need not be closed one by one.
//! * An execution with an idempotency key is saved and looked up before anything else is appended for it: when the
//!   key was taken, its row is not there, and what follows would belong to nobody.
//! * A change to an execution or session that another host owns, or to an execution that ended, is not applied. Claim
//!   it first (`store::executions::claim_waiting`, `store::sessions::claim_idle`).
//! * Before an owner is folded again after a refusal, [`Journal::reopen`] it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use ractor::ActorRef;
use tokio::sync::oneshot;

use crate::{
    actors::{persistence::shard, standing::Standing},
    store::{
        StoreError, batch,
        rows::{Owner, Write},
    },
};

/// Called once when everything appended with it is durable, or will never be. It runs on the writer's actor: send a
/// message and return.
pub type OnSaved = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// More queued rows than this, over all owners, and nothing new should be started.
const QUEUED_ROWS_MAX: usize = 100_000;
/// The same in bytes.
const QUEUED_BYTES_MAX: usize = 64 << 20;

/// Appends to the journals of executions and sessions. Cloning it is cheap; all clones are one.
#[derive(Clone)]
pub struct Journal {
    shards: Arc<[ActorRef<shard::Msg>]>,
    shared: Arc<Shared>,
}

/// What the handle and its writers share.
pub(crate) struct Shared {
    pub(crate) standing: Arc<Standing>,
    queued_rows: AtomicUsize,
    queued_bytes: AtomicUsize,
    /// How many writers cannot reach the database now.
    pub(crate) away: AtomicUsize,
    stats: JournalStats,
}

/// What was written since start. Each only grows.
#[derive(Debug, Default)]
pub struct JournalStats {
    /// Transactions.
    pub batches: AtomicU64,
    /// Rows, as appended.
    pub rows: AtomicU64,
    /// About how many bytes they had.
    pub bytes: AtomicU64,
    /// Time spent in commits, in microseconds, retries and waiting for the database included.
    pub commit_micros: AtomicU64,
    /// Batches sent again because the database was away or others were in the way.
    pub retries: AtomicU64,
    /// Owners whose writes the database would not take.
    pub refusals: AtomicU64,
}

impl Shared {
    pub(crate) fn new(standing: Arc<Standing>) -> Self {
        Self {
            standing,
            queued_rows: AtomicUsize::new(0),
            queued_bytes: AtomicUsize::new(0),
            away: AtomicUsize::new(0),
            stats: JournalStats::default(),
        }
    }

    pub(crate) fn stats(&self) -> &JournalStats {
        &self.stats
    }
}

/// The promise to say what became of one append. Dropped unkept, it says that nobody will.
pub(crate) struct Ticket {
    pub(crate) owner: Owner,
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
    on_saved: Option<OnSaved>,
    shared: Arc<Shared>,
}

impl Ticket {
    fn new(owner: Owner, writes: &[Write], on_saved: Option<OnSaved>, shared: Arc<Shared>) -> Self {
        let (rows, bytes) = (writes.len(), writes.iter().map(batch::bytes).sum());
        shared.queued_rows.fetch_add(rows, Ordering::Relaxed);
        shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        Self {
            owner,
            rows,
            bytes,
            on_saved,
            shared,
        }
    }

    /// Counts that this owner's writes are refused.
    pub(crate) fn count_refusal(&self) {
        self.shared.stats.refusals.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells the owner. A callback that panics must not take the writer of everybody else with it.
    pub(crate) fn settle(mut self, result: Result<(), StoreError>) {
        self.call(result);
    }

    fn call(&mut self, result: Result<(), StoreError>) {
        if let Some(on_saved) = self.on_saved.take() {
            let call = std::panic::AssertUnwindSafe(|| on_saved(result));
            if std::panic::catch_unwind(call).is_err() {
                tracing::error!(owner = %self.owner, "a callback of the journal panicked");
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared
            .queued_rows
            .fetch_sub(self.rows, Ordering::Relaxed);
        self.shared
            .queued_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
        let reason = if self.shared.standing.is_fenced() {
            StoreError::Fenced
        } else {
            StoreError::Closed
        };
        self.call(Err(reason));
    }
}

impl Journal {
    pub(crate) fn new(shards: Vec<ActorRef<shard::Msg>>, shared: Arc<Shared>) -> Self {
        assert!(!shards.is_empty(), "a journal has at least one writer");
        Self {
            shards: shards.into(),
            shared,
        }
    }

    /// Queues `writes` behind everything appended for `owner` before, and returns at once. All of them are
    /// written in one transaction, after or together with the earlier ones. No `writes` is a barrier.
    ///
    /// Nothing is ever dropped silently: the database being away only takes time. What it will not take (`Corrupt`,
    /// `Conflict`), a lost right to write (`Fenced`) and the end of the process (`Closed`) are told to `on_saved`, and
    /// everything that is appended for the owner afterwards fails too.
    pub fn append(&self, owner: Owner, writes: Vec<Write>, on_saved: Option<OnSaved>) {
        let ticket = Ticket::new(owner, &writes, on_saved, Arc::clone(&self.shared));
        // A stopped writer gives the message back, and dropping it tells the owner.
        let message = shard::Msg::Append(shard::Append { ticket, writes });
        drop(self.shard(owner).cast(message));
    }

    /// As [`Journal::append`], and waits until it is durable.
    pub async fn save(&self, owner: Owner, writes: Vec<Write>) -> Result<(), StoreError> {
        let (done, saved) = oneshot::channel();
        self.append(
            owner,
            writes,
            Some(Box::new(move |result| drop(done.send(result)))),
        );
        saved.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Forgets that an owner's writes were refused, and waits until everything appended for it before is settled. To
    /// be called by whoever takes the owner over on this host, before its journal is read again. An error means that
    /// something was still queued and was not written; calling it again then succeeds.
    pub async fn reopen(&self, owner: Owner) -> Result<(), StoreError> {
        drop(self.shard(owner).cast(shard::Msg::Reopen(owner)));
        self.save(owner, Vec::new()).await
    }

    /// Waits until everything appended before is settled, one way or the other. Takes as long as the database is away.
    pub async fn flush(&self) {
        for shard in self.shards.iter() {
            let (done, flushed) = oneshot::channel();
            drop(shard.cast(shard::Msg::Flush(done)));
            drop(flushed.await); // an error: the writer has stopped, and has nothing any more
        }
    }

    /// Whether so much is queued that nothing new should be started.
    pub fn is_saturated(&self) -> bool {
        let (rows, bytes) = self.queued();
        rows > QUEUED_ROWS_MAX || bytes > QUEUED_BYTES_MAX
    }

    /// How many rows and about how many bytes are queued or in flight.
    pub fn queued(&self) -> (usize, usize) {
        (
            self.shared.queued_rows.load(Ordering::Relaxed),
            self.shared.queued_bytes.load(Ordering::Relaxed),
        )
    }

    /// Whether all writers could reach the database when they last tried.
    pub fn is_connected(&self) -> bool {
        self.shared.away.load(Ordering::Relaxed) == 0
    }

    /// Counters since start.
    pub fn stats(&self) -> &JournalStats {
        &self.shared.stats
    }

    /// The writer of an owner: the last bits of an id are random, whatever its version.
    fn shard(&self, owner: Owner) -> &ActorRef<shard::Msg> {
        let bits = owner.as_u64_pair().1;
        &self.shards[(bits % self.shards.len() as u64) as usize]
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("shards", &self.shards.len())
            .field("queued", &self.queued())
            .finish()
    }
}
