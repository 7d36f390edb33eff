//! One writer shard: collects what its owners append and writes it in batches, one at a time.
//!
//! An idle shard writes at once. While a batch is in flight, what arrives becomes the next one, so the size of
//! batches follows the load and nothing ever waits for a timer. The statement runs in a task of its own: the mailbox is
//! drained into `pending` meanwhile.

use std::collections::{HashMap, HashSet, VecDeque};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::writer::{Outcome, Writer};
use crate::{
    actors::AbortOnDrop,
    journal::Ticket,
    store::{
        StoreError,
        rows::{Owner, Write},
    },
};

/// A batch has no more rows than this, unless a single append has.
const BATCH_ROWS_MAX: usize = 2_000;
/// The same in bytes.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// What a single append may have: far below what one message to the database can hold.
const APPEND_BYTES_MAX: usize = 128 << 20;
/// How many refused owners are remembered. The oldest is forgotten first.
const REFUSED_MAX: usize = 4_096;

pub(crate) struct Shard;

pub(crate) enum Msg {
    /// Write this, after everything that came before.
    Append(Append),
    /// The task that had the writer is done with a batch.
    Written(Box<Written>),
    /// The task that had the writer ended without an answer.
    WriterLost,
    /// The owner begins anew: it may write again.
    Reopen(Owner),
    /// Answer when there is nothing left to write.
    Flush(oneshot::Sender<()>),
}

/// What an owner wants written, in one transaction.
pub(crate) struct Append {
    pub(crate) ticket: Ticket,
    pub(crate) writes: Vec<Write>,
}

pub(crate) struct Written {
    writer: Writer,
    outcome: Outcome,
    /// Given back, since a refused batch is split and sent again.
    writes: Vec<Vec<Write>>,
}

pub(crate) struct State {
    /// `None` while a task has it.
    writer: Option<Writer>,
    task: Option<AbortOnDrop>,
    /// Tickets of the batch in flight.
    in_flight: Vec<Ticket>,
    /// Parts of refused batches, to be sent before anything else. No owner is in two of them.
    split: VecDeque<Vec<Append>>,
    pending: VecDeque<Append>,
    refused: Refused,
    fenced: bool,
    flushes: Vec<oneshot::Sender<()>>,
}

impl Actor for Shard {
    type Msg = Msg;
    type State = State;
    type Arguments = Writer;

    async fn pre_start(
        &self,
        _: ActorRef<Msg>,
        writer: Writer,
    ) -> Result<State, ActorProcessingErr> {
        Ok(State {
            writer: Some(writer),
            task: None,
            in_flight: Vec::new(),
            split: VecDeque::new(),
            pending: VecDeque::new(),
            refused: Refused::default(),
            fenced: false,
            flushes: Vec::new(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        msg: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Append(append) => state.append(append),
            Msg::Written(written) => state.written(*written),
            Msg::WriterLost => return Err("the task that writes ended without an answer".into()),
            Msg::Reopen(owner) => state.refused.forget(owner),
            Msg::Flush(done) => state.flushes.push(done),
        }
        state.advance(&myself);
        Ok(())
    }
}

impl State {
    fn append(&mut self, append: Append) {
        if self.fenced {
            append.ticket.settle(Err(StoreError::Fenced));
        } else if let Some(reason) = self.refused.reason(append.ticket.owner) {
            append.ticket.settle(Err(reason));
        } else if append.ticket.bytes > APPEND_BYTES_MAX {
            let reason = format!("{} bytes in one append", append.ticket.bytes);
            self.refuse(vec![append], StoreError::Corrupt(reason));
        } else {
            self.pending.push_back(append);
        }
    }

    /// Starts the next batch when the writer is free. With nothing left, answers those who wait for that.
    fn advance(&mut self, myself: &ActorRef<Msg>) {
        let Some(writer) = self.writer.take() else {
            return;
        };
        while let Some(batch) = self.next_batch() {
            let (tickets, writes): (Vec<_>, Vec<_>) = batch
                .into_iter()
                .map(|append| (append.ticket, append.writes))
                .unzip();
            if writes.iter().all(Vec::is_empty) {
                // Only barriers: what they wait for is durable.
                settle(tickets, &Ok(()));
                continue;
            }
            self.in_flight = tickets;
            self.task = Some(write(myself.clone(), writer, writes));
            return;
        }
        self.writer = Some(writer);
        for done in self.flushes.drain(..) {
            let _nobody_waits = done.send(());
        }
    }

    fn next_batch(&mut self) -> Option<Vec<Append>> {
        if let Some(split) = self.split.pop_front() {
            return Some(split);
        }
        let (mut rows, mut bytes) = (0, 0);
        let fits = |append: &Append| {
            rows += append.ticket.rows;
            bytes += append.ticket.bytes;
            rows <= BATCH_ROWS_MAX && bytes <= BATCH_BYTES_MAX
        };
        let count = self
            .pending
            .iter()
            .map(fits)
            .take_while(|&fits| fits)
            .count();
        let count = count.max(1).min(self.pending.len());
        (count > 0).then(|| self.pending.drain(..count).collect())
    }

    fn written(&mut self, written: Written) {
        self.writer = Some(written.writer);
        self.task = None;
        let tickets = std::mem::take(&mut self.in_flight);
        match written.outcome {
            Outcome::Saved => settle(tickets, &Ok(())),
            Outcome::Fenced => self.fence(tickets),
            Outcome::Refused(reason) => {
                let appends = tickets.into_iter().zip(written.writes);
                self.refuse(
                    appends
                        .map(|(ticket, writes)| Append { ticket, writes })
                        .collect(),
                    reason,
                );
            }
        }
    }

    fn fence(&mut self, tickets: Vec<Ticket>) {
        self.fenced = true;
        settle(tickets, &Err(StoreError::Fenced));
        let rest = self.split.drain(..).flatten().chain(self.pending.drain(..));
        settle(rest.map(|append| append.ticket), &Err(StoreError::Fenced));
    }

    /// Finds out whose writes are at fault by sending half of the owners at a time. The one that is left alone with
    /// the blame is refused, with everything it has queued.
    fn refuse(&mut self, batch: Vec<Append>, reason: StoreError) {
        let mut seen = HashSet::new();
        let owners: Vec<Owner> = batch
            .iter()
            .map(|append| append.ticket.owner)
            .filter(|owner| seen.insert(*owner))
            .collect();
        if let [owner] = owners[..] {
            tracing::error!(%owner, %reason, "what an owner appended is refused");
            batch[0].ticket.count_refusal();
            self.refused.remember(owner, reason.clone());
            settle(
                batch.into_iter().map(|append| append.ticket),
                &Err(reason.clone()),
            );
            let (queued, rest) = std::mem::take(&mut self.pending)
                .into_iter()
                .partition::<VecDeque<_>, _>(|append| append.ticket.owner == owner);
            self.pending = rest;
            settle(queued.into_iter().map(|append| append.ticket), &Err(reason));
            return;
        }
        let first: HashSet<Owner> = owners[..owners.len() / 2].iter().copied().collect();
        let (first, second) = batch
            .into_iter()
            .partition(|append| first.contains(&append.ticket.owner));
        self.split.push_front(second);
        self.split.push_front(first);
    }
}

fn settle(tickets: impl IntoIterator<Item = Ticket>, result: &Result<(), StoreError>) {
    for ticket in tickets {
        ticket.settle(result.clone());
    }
}

/// Writes a batch in a task that reports back whatever happens.
fn write(myself: ActorRef<Msg>, mut writer: Writer, writes: Vec<Vec<Write>>) -> AbortOnDrop {
    let task = tokio::spawn(async move {
        let mut alarm = Alarm(Some(myself.clone()));
        let outcome = writer.write(&writes).await;
        // Rows are freed here rather than in the actor, unless it needs them.
        let writes = match outcome {
            Outcome::Refused(_) => writes,
            _ => Vec::new(),
        };
        alarm.0 = None;
        let written = Written {
            writer,
            outcome,
            writes,
        };
        drop(myself.cast(Msg::Written(Box::new(written)))); // an error: the shard has stopped
    });
    AbortOnDrop(task.abort_handle())
}

/// Tells the shard when its task ended in a panic.
struct Alarm(Option<ActorRef<Msg>>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(shard) = self.0.take() {
            drop(shard.cast(Msg::WriterLost));
        }
    }
}

/// Owners whose writes were refused, and why: a later one would leave a gap behind it.
#[derive(Default)]
struct Refused {
    reasons: HashMap<Owner, StoreError>,
    order: VecDeque<Owner>,
}

impl Refused {
    fn reason(&self, owner: Owner) -> Option<StoreError> {
        self.reasons.get(&owner).cloned()
    }

    fn remember(&mut self, owner: Owner, reason: StoreError) {
        if self.reasons.insert(owner, reason).is_none() {
            self.order.push_back(owner);
        }
        if self.order.len() > REFUSED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.reasons.remove(&oldest);
        }
    }

    fn forget(&mut self, owner: Owner) {
        if self.reasons.remove(&owner).is_some() {
            self.order.retain(|other| *other != owner);
        }
    }
}
