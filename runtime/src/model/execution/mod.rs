//! The state machine of one execution.
//!
//! [`Execution::decide`] takes an event and returns what must be saved and what must then be done. Saved rows,
//! folded by [`Execution::fold`], give the same state back: `apply` changes state from a record and is
//! the only code that both paths use for it. What follows from a state by itself (a finished map, the end of the
//! execution) is derived by `settle`, in `decide` and after a fold, never while folding.

mod decide;
mod flow;
mod fold;
mod journal;
mod lineage;
mod map;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;

pub use self::{
    fold::FoldError,
    journal::{RunRecord, WaitKind, WaitRecord},
};
use super::graph::{Body, Graph, Step, StepIndex};
use crate::{
    id::ExecutionId,
    item::{Item, Items},
    node::{NodeError, NodeOutcome, Response},
    store::rows::ExecutionStatus,
};

/// Which visit to which step in which body. Lives only in memory; rows carry [`Execution::key_text`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunKey {
    /// Index of the frame: 0 is the workflow's own body.
    pub frame: usize,
    /// Index of the step in the frame's body.
    pub step: StepIndex,
    /// How often the step was entered before in that frame.
    pub visit: u32,
}

/// Something that happened to an execution. Repeating one is harmless.
#[derive(Debug)]
pub enum Event {
    /// It begins with these items.
    Started {
        /// One per element of the body.
        items: Vec<Item>,
        /// When.
        at: DateTime<Utc>,
    },
    /// An attempt ended.
    NodeRunFinished {
        /// Which visit.
        key: RunKey,
        /// Which attempt; another than the current one is ignored.
        attempt: u32,
        /// How it came out.
        outcome: Result<NodeOutcome, NodeError>,
        /// When the attempt began.
        started_at: DateTime<Utc>,
        /// When it ended.
        finished_at: DateTime<Utc>,
        /// For the jitter of a retry: 0 inclusive to 1 exclusive.
        random: f64,
        /// Id of the execution to start, should the outcome ask for one.
        child_id: ExecutionId,
    },
    /// The elements of a map are known.
    MapExpanded {
        /// The map's visit.
        key: RunKey,
        /// One item per element, paired with the input item it came from.
        elements: Result<Vec<Item>, NodeError>,
        /// When.
        at: DateTime<Utc>,
    },
    /// A delay before another attempt is over.
    DelayOver {
        /// Which visit.
        key: RunKey,
    },
    /// What a node run waited for has come.
    WaitEnded {
        /// Which visit.
        key: RunKey,
        /// What came.
        with: WaitEnd,
        /// When.
        at: DateTime<Utc>,
    },
    /// Someone wants it to end.
    CancelRequested {
        /// When.
        at: DateTime<Utc>,
    },
    /// It has run longer than its settings allow.
    TimedOut {
        /// When.
        at: DateTime<Utc>,
    },
}

/// What ends a wait.
#[derive(Clone, Debug)]
pub enum WaitEnd {
    /// The time has come.
    Due,
    /// The child is durable, and nobody waits for its end.
    ChildStarted,
    /// The child ended.
    ChildEnded {
        /// One of the final ones.
        status: ExecutionStatus,
        /// What it gave.
        output: Value,
        /// Why it failed.
        error: Option<Value>,
    },
    /// The child could not be started.
    ChildRefused(NodeError),
}

/// What [`Execution::decide`] wants saved, in one transaction, and then done.
#[derive(Debug, Default)]
pub struct Decision {
    /// In this order.
    pub records: Vec<Record>,
    /// After the records are queued; those that need a barrier after they are durable.
    pub effects: Vec<Effect>,
}

/// A fact to save.
#[derive(Clone, Debug)]
pub enum Record {
    /// A node run ended.
    Run(Arc<RunRecord>),
    /// A node run waits, or a map began.
    WaitOpened(WaitRecord),
    /// Its wait is over. The text is [`Execution::key_text`].
    WaitClosed(String),
    /// The execution ended.
    Ended(End),
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Run a node.
    Start {
        /// Which visit.
        key: RunKey,
        /// From 1.
        attempt: u32,
        /// Whether everything recorded so far must be durable first.
        barrier: bool,
    },
    /// Find out the elements of a map.
    Expand {
        /// The map's visit.
        key: RunKey,
        /// As for [`Effect::Start`].
        barrier: bool,
    },
    /// Stop a node run that is in progress.
    Kill(RunKey),
    /// Send [`Event::DelayOver`] at this time.
    Delay(RunKey, DateTime<Utc>),
    /// Send [`Event::WaitEnded`] at this time.
    WakeAt(RunKey, DateTime<Utc>),
    /// Once the wait is durable: start the child, and send [`Event::WaitEnded`] when it ended (or started, if nobody waits).
    StartChild(RunKey, Box<Child>),
    /// Cancel the child that a killed node run waited for.
    CancelChild(ExecutionId),
    /// Answer whoever started the execution, once it is durable.
    Respond(Response),
}

/// An execution to start on a node's behalf.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Child {
    /// Its id, fixed before it starts: starting it twice is starting it once.
    pub id: ExecutionId,
    /// Name of its workflow.
    pub workflow: String,
    /// A version, or the current one.
    pub version: Option<i32>,
    /// Its input.
    pub input: Value,
    /// Whether its end is waited for.
    pub wait: bool,
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// One of the final ones.
    pub status: ExecutionStatus,
    /// Items of the last step.
    pub output: Items,
    /// `{code, message, step}`.
    pub error: Option<Value>,
    /// When.
    pub at: DateTime<Utc>,
}

/// One execution, as its journal tells.
pub struct Execution {
    id: ExecutionId,
    graph: Arc<Graph>,
    frames: Vec<Option<Frame>>,
    /// Visits that have begun and not ended.
    runs: BTreeMap<RunKey, Run>,
    /// Visits to start as soon as `max_parallel` allows.
    ready: VecDeque<RunKey>,
    /// How many node runs are in progress.
    running: usize,
    next_seq: i32,
    /// How much its node runs gave.
    bytes: usize,
    started_at: DateTime<Utc>,
    /// How long nothing but waits was going on.
    waited: TimeDelta,
    /// When the latest record was made: what was waited before that is in `waited`, or was not only waiting.
    busy_until: DateTime<Utc>,
    cancel_requested: bool,
    ended: Option<End>,
    /// Open frames by scope.
    scopes: HashMap<Arc<str>, usize>,
    /// Joins that can never fire, to be recorded.
    skips: Vec<RunRecord>,
    /// Maps with nothing left to do, to be recorded.
    settled_maps: Vec<RunKey>,
    /// Frames whose remaining runs are to be cancelled.
    failing: Vec<usize>,
    /// Waits that were stored when the execution was folded, by key text.
    restored: HashMap<String, fold::Restored>,
}

/// A body at work.
struct Frame {
    body: Arc<Body>,
    /// The map that runs it, and for which element.
    parent: Option<(RunKey, usize)>,
    /// Of the rows it writes.
    scope: Arc<str>,
    steps: Vec<StepState>,
    /// How many of `runs` are in it.
    active: usize,
    /// What the frame gives: the last step that nothing followed.
    last: Option<Arc<Finished>>,
    /// Why it gives nothing: nothing starts in it any more.
    failure: Option<Value>,
}

#[derive(Default)]
struct StepState {
    visits: u32,
    latest: Option<Arc<Finished>>,
    /// What has arrived at each input of its join.
    slots: Vec<VecDeque<Delivery>>,
    /// For joins that fired before all inputs arrived: how many arrivals of each input to drop.
    dropped: Vec<u32>,
}

/// What an execution waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The step that waits.
    pub step: Arc<str>,
    /// For which element of a map.
    pub item_index: Option<usize>,
    /// When the wait ends by itself.
    pub wake_at: Option<DateTime<Utc>>,
}

/// A visit in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InProgress {
    /// Which visit.
    pub key: RunKey,
    /// From 1.
    pub attempt: u32,
    /// When the attempt began. Unknown here while a node runs: its actor knows.
    pub started_at: Option<DateTime<Utc>>,
}

/// A visit that ended with output.
#[derive(Debug)]
pub(crate) struct Finished {
    frame: usize,
    step: StepIndex,
    seq: i32,
    ports: Vec<(Arc<str>, Items)>,
    inputs: Vec<Input>,
    /// Whether what follows must wait until it is durable.
    effectful: bool,
}

impl Drop for Finished {
    /// Visits hold on to the visits they came from. A loop makes a chain of them as long as it ran, which must not be
    /// taken down one inside the other: the stack would not do.
    fn drop(&mut self) {
        let mut left: Vec<Delivery> = Vec::new();
        let take = |finished: &mut Finished, left: &mut Vec<Delivery>| {
            for input in &mut finished.inputs {
                left.append(&mut input.segments);
            }
        };
        take(self, &mut left);
        while let Some(delivery) = left.pop() {
            if let Some(mut last) = Arc::into_inner(delivery.from) {
                take(&mut last, &mut left);
            }
        }
    }
}

/// One input of a node run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Input {
    items: Items,
    /// Where stretches of `items` came from, in order.
    segments: Vec<Delivery>,
}

/// Items on their way along an edge.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    from: Arc<Finished>,
    port: usize,
}

impl Delivery {
    fn items(&self) -> &Items {
        &self.from.ports[self.port].1
    }
}

/// A visit in progress.
struct Run {
    attempt: u32,
    inputs: Vec<Input>,
    parent_seq: Option<i32>,
    state: RunState,
}

enum RunState {
    /// In `ready`, or about to be expanded.
    Ready,
    Running,
    /// Between attempts.
    Delayed(DateTime<Utc>),
    Waiting(Waiting),
    Mapping(map::Mapping),
}

struct Waiting {
    started_at: DateTime<Utc>,
    for_what: WaitFor,
}

enum WaitFor {
    Time(DateTime<Utc>),
    Child(Box<Child>),
}

impl Execution {
    /// An execution that has not begun: [`Event::Started`] is to come.
    pub fn new(id: ExecutionId, graph: Arc<Graph>, started_at: DateTime<Utc>) -> Self {
        Self {
            id,
            graph,
            frames: Vec::new(),
            runs: BTreeMap::new(),
            ready: VecDeque::new(),
            running: 0,
            next_seq: 0,
            bytes: 0,
            started_at,
            waited: TimeDelta::zero(),
            busy_until: started_at,
            cancel_requested: false,
            ended: None,
            scopes: HashMap::new(),
            skips: Vec::new(),
            settled_maps: Vec::new(),
            failing: Vec::new(),
            restored: HashMap::new(),
        }
    }

    /// Its id.
    pub fn id(&self) -> ExecutionId {
        self.id
    }

    /// The workflow version it runs.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// How it ended, once it has.
    pub fn ended(&self) -> Option<&End> {
        self.ended.as_ref()
    }

    /// Seq of the last record, -1 before the first.
    pub fn last_seq(&self) -> i32 {
        self.next_seq - 1
    }

    /// When it was started.
    pub fn started_at(&self) -> DateTime<Utc> {
        self.started_at
    }

    /// When it will have run as long as its settings allow. Moves later with each wait.
    pub fn deadline(&self) -> Option<DateTime<Utc>> {
        let timeout = TimeDelta::from_std(self.graph.settings.timeout?).ok()?;
        self.started_at.checked_add_signed(timeout + self.waited)
    }

    /// Whether nothing is left to do before some wait ends: it needs no actor. The time is the earliest at
    /// which a wait ends by itself.
    pub fn is_waiting(&self) -> Option<Option<DateTime<Utc>>> {
        if self.ended.is_some() || self.runs.is_empty() {
            return None;
        }
        let mut wake_at: Option<DateTime<Utc>> = None;
        for run in self.runs.values() {
            match &run.state {
                RunState::Waiting(Waiting {
                    for_what: WaitFor::Time(at),
                    ..
                }) => {
                    wake_at = Some(wake_at.map_or(*at, |earliest| earliest.min(*at)));
                }
                RunState::Waiting(Waiting {
                    for_what: WaitFor::Child(child),
                    ..
                }) if child.wait => {}
                RunState::Mapping(_) => {}
                _ => return None,
            }
        }
        Some(wake_at)
    }

    /// What it waits for now.
    pub fn waits(&self) -> Vec<Wait> {
        let waits = self.runs.iter().filter_map(|(key, run)| match &run.state {
            RunState::Waiting(Waiting { for_what, .. }) => Some(Wait {
                step: self.step(*key).id.clone(),
                item_index: self.item_index(*key),
                wake_at: match for_what {
                    WaitFor::Time(at) => Some(*at),
                    WaitFor::Child(_) => None,
                },
            }),
            _ => None,
        });
        waits.collect()
    }

    /// The attempts that have begun and not ended, those that wait among them.
    pub fn in_progress(&self) -> Vec<InProgress> {
        let begun = self.runs.iter().filter_map(|(key, run)| {
            let started_at = match &run.state {
                RunState::Running => None,
                RunState::Waiting(waiting) => Some(waiting.started_at),
                RunState::Mapping(mapping) => Some(mapping.started_at),
                RunState::Ready | RunState::Delayed(_) => return None,
            };
            Some(InProgress {
                key: *key,
                attempt: run.attempt,
                started_at,
            })
        });
        begun.collect()
    }

    /// The step a key belongs to.
    ///
    /// # Panics
    /// When the key's frame is gone: keys of ended runs must not be asked for.
    pub fn step(&self, key: RunKey) -> &Step {
        &self.frame(key.frame).body.steps[key.step]
    }

    /// Which element of a map a visit belongs to. Panics as [`Execution::step`] does.
    pub fn item_index(&self, key: RunKey) -> Option<usize> {
        self.frame(key.frame).parent.map(|(_, index)| index)
    }

    /// Whether this attempt is the one in progress.
    pub fn is_current(&self, key: RunKey, attempt: u32) -> bool {
        self.runs
            .get(&key)
            .is_some_and(|run| run.attempt == attempt && matches!(run.state, RunState::Running))
    }

    /// Whether the elements of this map are still to be found out.
    pub fn may_expand(&self, key: RunKey) -> bool {
        self.runs
            .get(&key)
            .is_some_and(|run| matches!(run.state, RunState::Ready))
    }

    /// The inputs of a visit in progress: one list per input, at least one.
    pub fn inputs(&self, key: RunKey) -> Vec<Items> {
        self.runs.get(&key).map_or_else(Vec::new, |run| {
            run.inputs.iter().map(|input| input.items.clone()).collect()
        })
    }

    /// The visits that wait for this execution's end.
    pub fn waiting_for_child(&self, child: ExecutionId) -> Option<RunKey> {
        self.runs.iter().find_map(|(key, run)| match &run.state {
            RunState::Waiting(Waiting {
                for_what: WaitFor::Child(waited),
                ..
            }) if waited.id == child => Some(*key),
            _ => None,
        })
    }

    /// A key as rows carry it: unique in the execution, the same on every host.
    pub fn key_text(&self, key: RunKey) -> String {
        let frame = self.frame(key.frame);
        let step = &frame.body.steps[key.step].id;
        if frame.scope.is_empty() {
            format!("{step}/{}", key.visit)
        } else {
            format!("{}/{step}/{}", frame.scope, key.visit)
        }
    }

    fn frame(&self, index: usize) -> &Frame {
        self.frames[index]
            .as_ref()
            .expect("a run's frame outlives it")
    }

    fn frame_mut(&mut self, index: usize) -> &mut Frame {
        self.frames[index]
            .as_mut()
            .expect("a run's frame outlives it")
    }
}
