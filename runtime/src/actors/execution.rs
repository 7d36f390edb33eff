//! Carries one execution from what the journal holds to its end.
//!
//! Every event is decided, saved, then performed. Stopping in between is safe: the next start folds the
//! journal again and performs what it still owes. Pure steps on small inputs run here, one after the other, so
//! a chain of them is one write; everything else is a child of the node runner that reports back. Stops when
//! the execution ended, when nothing but waits is left, and when its host is fenced.

mod perform;
mod publish;
mod saved;
mod waiting;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use chrono::{DateTime, TimeDelta, Utc};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use self::publish::Notice;
use super::{AbortOnDrop, execution_manager as manager};
use crate::{
    executions::{ActionError, Host, Progress},
    id::ExecutionId,
    item::{Item, Items},
    model::execution::{Decision, Effect, End, Event, Execution, Record, RunKey, WaitEnd},
    node::{NodeError, NodeOutcome},
    store::{
        StoreError,
        rows::{ExecutionChange, ExecutionStatus, NewExecution, Write},
    },
};

/// How long an execution is kept although it only waits: somebody has just asked for it, or a child may end soon.
const LINGER: TimeDelta = TimeDelta::seconds(2);
/// How many inline steps one message may run before other messages get their turn.
const INLINE_MAX: usize = 256;

/// A place in this execution's journal: how many appends were made.
type Mark = u64;

/// What an execution starts from.
pub struct Launch {
    /// Not begun, or folded from its journal.
    pub execution: Execution,
    /// The row to write first, for one that is not stored yet.
    pub row: Option<Box<NewExecution>>,
    /// Version of the workflow.
    pub version: i32,
    /// What started it.
    pub trigger: String,
    /// `$trigger`.
    pub context: Arc<Value>,
    /// Whether its output is a list however many items there are.
    pub answers_list: bool,
    /// Who waits for its end.
    pub parent_id: Option<ExecutionId>,
    /// Where those who watch it learn what becomes of it.
    pub progress: Arc<watch::Sender<Progress>>,
}

/// How a node run came out.
pub struct Report {
    /// Which visit.
    pub key: RunKey,
    /// Which attempt.
    pub attempt: u32,
    /// What came of it.
    pub outcome: Result<NodeOutcome, NodeError>,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
}

/// What the actor is told.
pub enum Msg {
    /// Begin, or go on where the journal ends.
    Go,
    /// A node run ended. May arrive more than once.
    NodeRunFinished(Box<Report>),
    /// Everything appended up to this mark is durable, or will never be.
    Saved(Mark, Result<(), StoreError>),
    /// The elements of a map were found out on another thread.
    Expanded(RunKey, Box<Result<Vec<Item>, NodeError>>),
    /// Inline work that was put off to let other messages through.
    Continue(VecDeque<Event>),
    /// A delay before another attempt is over.
    DelayOver(RunKey),
    /// A timer ran out; it may have been set for a wait that is over.
    Wake(RunKey),
    /// A child has been started, refused, or has ended.
    Child(ExecutionId, Box<WaitEnd>),
    /// Somebody begins to watch: replies with `node.started` of everything that is in progress.
    InProgress(oneshot::Sender<Vec<Value>>),
    /// Nothing kept it from being given up for a while: look again.
    Idle,
    /// The lease may have been renewed, for which effects wait.
    LeaseMayBeBack,
    /// The time limit may be reached.
    Deadline,
    /// End it. Replies when that is durable; a dropped reply means: look in the store, then ask again.
    Cancel(oneshot::Sender<Result<(), ActionError>>),
    /// This host must not write any more.
    Fenced,
}

/// The actor.
pub struct ExecutionActor {
    pub(crate) host: Arc<Host>,
}

/// What it keeps.
pub struct State {
    execution: Execution,
    row: Option<Box<NewExecution>>,
    trigger: String,
    context: Arc<Value>,
    version: i32,
    /// `$execution` and `$workflow`.
    about: (Arc<Value>, Arc<Value>),
    answers_list: bool,
    parent_id: Option<ExecutionId>,
    progress: Arc<watch::Sender<Progress>>,
    appended: Mark,
    saved: Mark,
    /// Effects that wait for their mark.
    held: VecDeque<(Mark, Effect)>,
    /// Node runs that must not start before the lease is renewed.
    without_lease: Vec<(RunKey, u32)>,
    notices: VecDeque<(Mark, Notice)>,
    cancel_replies: Vec<oneshot::Sender<Result<(), ActionError>>>,
    timers: HashMap<RunKey, AbortOnDrop>,
    /// When the attempts began that node runs of their own carry out.
    began: HashMap<RunKey, DateTime<Utc>>,
    /// The one for the time limit.
    deadline: Option<AbortOnDrop>,
    /// Children whose start is not known to be durable: until it is, the execution stays in memory.
    children_starting: HashSet<ExecutionId>,
    /// Not given up before this: somebody has just asked for it, or a child may end soon.
    linger_until: DateTime<Utc>,
    /// Once this mark is durable the actor stops. Nothing is decided any more.
    leaving: Option<Mark>,
}

/// A message about a visit, and when to send it.
type Timer = (RunKey, DateTime<Utc>, fn(RunKey) -> Msg);

/// What one message gives rise to, until it is appended.
#[derive(Default)]
struct Turn {
    writes: Vec<Write>,
    held: Vec<Effect>,
    notices: Vec<Notice>,
    events: VecDeque<Event>,
    timers: Vec<Timer>,
}

impl Actor for ExecutionActor {
    type Msg = Msg;
    type State = State;
    type Arguments = Box<Launch>;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        launch: Box<Launch>,
    ) -> Result<State, ActorProcessingErr> {
        myself.cast(Msg::Go)?;
        Ok(State::new(*launch))
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        msg: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if state.leaving.is_some() && !matches!(msg, Msg::Saved(..) | Msg::Fenced) {
            return Ok(());
        }
        match msg {
            Msg::Go => self.go(&myself, state),
            Msg::NodeRunFinished(report) => {
                state.began.remove(&report.key);
                self.decide(&myself, state, finished(*report));
            }
            Msg::Saved(mark, result) => self.saved(&myself, state, mark, result),
            Msg::Expanded(key, elements) => {
                self.decide(
                    &myself,
                    state,
                    Event::MapExpanded {
                        key,
                        elements: *elements,
                        at: Utc::now(),
                    },
                );
            }
            Msg::Continue(events) => self.run(&myself, state, Decision::default(), events),
            Msg::DelayOver(key) => self.decide(&myself, state, Event::DelayOver { key }),
            Msg::Wake(key) => self.decide(
                &myself,
                state,
                Event::WaitEnded {
                    key,
                    with: WaitEnd::Due,
                    at: Utc::now(),
                },
            ),
            Msg::Child(child, with) => self.child(&myself, state, child, *with),
            // Fails only when nobody watches any more.
            Msg::InProgress(reply) => drop(reply.send(self.in_progress(state))),
            Msg::Idle => self.run(&myself, state, Decision::default(), VecDeque::new()),
            Msg::LeaseMayBeBack => self.start_without_lease(&myself, state),
            Msg::Deadline => self.deadline_reached(&myself, state),
            Msg::Cancel(reply) => self.cancel(&myself, state, reply),
            Msg::Fenced => self.fenced(&myself, state),
        }
        Ok(())
    }
}

impl State {
    fn new(launch: Launch) -> Self {
        let Launch {
            execution,
            row,
            version,
            trigger,
            context,
            answers_list,
            parent_id,
            progress,
        } = launch;
        let name = execution.graph().name.to_string();
        let about = (
            Arc::new(json!({"id": execution.id().to_string(), "mode": trigger})),
            Arc::new(json!({"id": name, "name": name, "version": version})),
        );
        let is_new = execution.last_seq() < 0;
        let linger_until = if is_new {
            Utc::now()
        } else {
            Utc::now() + LINGER
        };
        Self {
            execution,
            row,
            trigger,
            context,
            version,
            about,
            answers_list,
            parent_id,
            progress,
            appended: 0,
            saved: 0,
            held: VecDeque::new(),
            without_lease: Vec::new(),
            notices: VecDeque::new(),
            cancel_replies: Vec::new(),
            timers: HashMap::new(),
            began: HashMap::new(),
            deadline: None,
            children_starting: HashSet::new(),
            linger_until,
            leaving: None,
        }
    }

    fn body(&self) -> &Value {
        self.context.get("body").unwrap_or(&Value::Null)
    }

    /// The output as clients see it: one item's JSON, or a list of them.
    fn output(&self, items: &Items) -> Value {
        let mut jsons = items.iter().map(|item| (*item.json).clone());
        if self.answers_list || self.body().is_array() || items.len() > 1 {
            Value::Array(jsons.collect())
        } else {
            jsons.next().unwrap_or(Value::Null)
        }
    }
}

fn finished(report: Report) -> Event {
    let Report {
        key,
        attempt,
        outcome,
        started_at,
        finished_at,
    } = report;
    let (random, child_id) = (rand::random(), ExecutionId::new());
    Event::NodeRunFinished {
        key,
        attempt,
        outcome,
        started_at,
        finished_at,
        random,
        child_id,
    }
}

impl ExecutionActor {
    fn go(&self, myself: &ActorRef<Msg>, state: &mut State) {
        if let Some(deadline) = state.execution.deadline() {
            self.arm_deadline(myself, state, deadline);
        }
        if state.execution.last_seq() < 0 {
            let items = Item::from_body(state.body().clone());
            self.decide(
                myself,
                state,
                Event::Started {
                    items,
                    at: Utc::now(),
                },
            );
        } else {
            let owed = state.execution.owed(Utc::now());
            self.run(myself, state, owed, VecDeque::new());
        }
    }

    fn decide(&self, myself: &ActorRef<Msg>, state: &mut State, event: Event) {
        self.run(myself, state, Decision::default(), VecDeque::from([event]));
    }

    /// Carries a decision and these events as far as they go without waiting for anything; then appends it all.
    fn run(
        &self,
        myself: &ActorRef<Msg>,
        state: &mut State,
        decision: Decision,
        events: VecDeque<Event>,
    ) {
        let mut turn = Turn {
            events,
            ..Turn::default()
        };
        if let Some(row) = state.row.take() {
            turn.notices.push(Notice::Started);
            turn.writes.push(Write::ExecutionStarted(row));
        }
        self.absorb(myself, state, &mut turn, decision);
        for _ in 0..INLINE_MAX {
            let Some(event) = turn.events.pop_front() else {
                break;
            };
            let decision = state.execution.decide(event);
            self.absorb(myself, state, &mut turn, decision);
        }
        if !turn.events.is_empty() {
            self.tell(myself, Msg::Continue(std::mem::take(&mut turn.events)));
        }
        self.close(myself, state, turn);
    }

    fn absorb(
        &self,
        myself: &ActorRef<Msg>,
        state: &mut State,
        turn: &mut Turn,
        decision: Decision,
    ) {
        let (execution, host_id) = (&state.execution, self.host.core.host_id);
        for record in decision.records {
            match record {
                Record::Run(run) => {
                    turn.writes
                        .push(Write::NodeRun(Box::new(run.to_row(execution, host_id))));
                    turn.notices.push(Notice::Run(run));
                }
                Record::WaitOpened(wait) => turn
                    .writes
                    .push(Write::WaitOpened(Box::new(wait.to_row(execution)))),
                Record::WaitClosed(key) => {
                    turn.writes.push(Write::WaitClosed {
                        execution_id: execution.id(),
                        key,
                    });
                }
                Record::Ended(end) => {
                    turn.writes.push(Write::ExecutionChanged(Box::new(
                        self.ended_row(state, &end),
                    )));
                    turn.notices.push(Notice::Ended(end));
                }
            }
        }
        for effect in decision.effects {
            self.effect(myself, state, turn, effect);
        }
    }

    fn effect(&self, myself: &ActorRef<Msg>, state: &mut State, turn: &mut Turn, effect: Effect) {
        match effect {
            Effect::Start {
                key,
                attempt,
                barrier: false,
            } => self.start(myself, state, &mut turn.events, key, attempt),
            Effect::Expand {
                key,
                barrier: false,
            } => self.expand(myself, state, &mut turn.events, key),
            Effect::Delay(key, at) => turn.timers.push((key, at, Msg::DelayOver)),
            Effect::WakeAt(key, at) => turn.timers.push((key, at, Msg::Wake)),
            Effect::Kill(key) => {
                let is_start = |effect: &Effect| matches!(effect, Effect::Start { key: started, .. } if *started == key);
                turn.held.retain(|effect| !is_start(effect));
                state.held.retain(|(_, effect)| !is_start(effect));
                state.began.remove(&key);
                self.host.kill_run(state.execution.id(), key);
            }
            Effect::StartChild(_, ref child) => {
                state.children_starting.insert(child.id);
                state.linger_until = Utc::now() + LINGER;
                turn.held.push(effect);
            }
            Effect::Start { .. }
            | Effect::Expand { .. }
            | Effect::Respond(_)
            | Effect::CancelChild(_) => turn.held.push(effect),
        }
    }

    /// Appends what a turn gave, and lets go of what needs no barrier.
    fn close(&self, myself: &ActorRef<Msg>, state: &mut State, mut turn: Turn) {
        let ended = state.execution.ended().is_some();
        if !ended && turn.held.is_empty() && turn.events.is_empty() && self.may_passivate(state) {
            turn.writes
                .push(Write::ExecutionChanged(Box::new(self.waiting_row(state))));
            turn.notices.push(Notice::Waiting(state.execution.waits()));
            state.leaving = Some(state.appended + 1);
            turn.timers.clear();
        } else if !turn.timers.is_empty() && state.execution.is_waiting().is_some() {
            turn.notices.push(Notice::Waiting(state.execution.waits()));
        }
        if !turn.writes.is_empty() {
            state.appended += 1;
            let (mark, to) = (state.appended, myself.clone());
            let on_saved = Box::new(move |result| drop(to.cast(Msg::Saved(mark, result))));
            self.host
                .core
                .journal
                .append(state.execution.id().0, turn.writes, Some(on_saved));
            if ended {
                state.leaving = Some(mark);
            }
        }
        let mark = state.appended;
        state
            .held
            .extend(turn.held.into_iter().map(|effect| (mark, effect)));
        state
            .notices
            .extend(turn.notices.into_iter().map(|notice| (mark, notice)));
        for (key, at, message) in turn.timers {
            self.arm(myself, state, key, at, message);
        }
        if state.saved >= mark {
            self.release(myself, state);
        } else {
            self.look_again(myself, state);
        }
    }

    fn fenced(&self, myself: &ActorRef<Msg>, state: &State) {
        self.host.kill_runs(state.execution.id());
        myself.kill();
    }

    fn child(&self, myself: &ActorRef<Msg>, state: &mut State, child: ExecutionId, with: WaitEnd) {
        // Whatever is heard of a child: its start is durable, or it was refused.
        state.children_starting.remove(&child);
        let Some(key) = state.execution.waiting_for_child(child) else {
            return;
        };
        self.decide(
            myself,
            state,
            Event::WaitEnded {
                key,
                with,
                at: Utc::now(),
            },
        );
    }

    fn cancel(
        &self,
        myself: &ActorRef<Msg>,
        state: &mut State,
        reply: oneshot::Sender<Result<(), ActionError>>,
    ) {
        state.cancel_replies.push(reply);
        self.decide(myself, state, Event::CancelRequested { at: Utc::now() });
    }

    fn ended_row(&self, state: &State, end: &End) -> ExecutionChange {
        ExecutionChange {
            id: state.execution.id(),
            status: end.status,
            host_id: Some(self.host.core.host_id),
            finished_at: Some(end.at),
            output: (end.status == ExecutionStatus::Succeeded)
                .then(|| state.output(&end.output).to_string()),
            error: end.error.as_ref().map(Value::to_string),
            parent_id: state.parent_id,
        }
    }

    fn waiting_row(&self, state: &State) -> ExecutionChange {
        ExecutionChange {
            id: state.execution.id(),
            status: ExecutionStatus::Waiting,
            host_id: None,
            finished_at: None,
            output: None,
            error: None,
            parent_id: state.parent_id,
        }
    }

    fn tell(&self, to: &ActorRef<Msg>, msg: Msg) {
        // Fails only when the actor is stopping, and then nothing needs doing.
        drop(to.cast(msg));
    }

    fn tell_manager(&self, msg: manager::Msg) {
        drop(self.host.manager().cast(msg));
    }
}
