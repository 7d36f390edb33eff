//! Carries one session from what its journal holds through its turns.
//!
//! Every event is decided, saved, then performed. Stopping in between is safe: loading folds the journal again and takes
//! up what it still owes. While no turn is in progress the session is nobody's; before the next one it is claimed again
//! and the journal's tail is read. Fails, to be started again, when the store refuses a write; stops when the host is
//! fenced.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use callboard_runtime::{
    id::SessionId,
    store::{
        StoreError,
        rows::{SessionChange, SessionEventRow, SessionStatus, Write},
    },
    tool::ToolError,
};
use chrono::{DateTime, Utc};
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use serde_json::Value;
use tokio::{sync::oneshot, task::AbortHandle};
use tokio_util::sync::CancellationToken;

use super::{
    Owned, Shared, job,
    live::Live,
    load::{Loaded, Ownership, load},
    manager,
};
use crate::{
    agents::PreparedAgent,
    model::{
        record::Record,
        session::{Answer, Decision, Effect, Event, ModelFailure, Partial, Session},
    },
    sessions::{Accepted, CancelMode, SendMessage, SessionError, TurnResult},
};

mod perform;
mod request;

pub use request::Request;

/// Where an answer goes. Whoever asked may have gone.
pub type Reply<T> = oneshot::Sender<Result<T, SessionError>>;

/// What a session is told.
pub enum Msg {
    /// Somebody wants something.
    Request(Box<Request>),
    /// The session was loaded, or could not be.
    Loaded(Box<Result<Loaded, SessionError>>),
    /// Everything appended up to this mark is durable, or never will be.
    Saved(u64, Result<(), StoreError>),
    /// A model answered.
    Answered {
        /// Which request.
        request: u64,
        /// What it said.
        answer: Box<Answer>,
    },
    /// A model failed.
    Failed {
        /// Which request.
        request: u64,
        /// How.
        failure: ModelFailure,
    },
    /// A call has ended.
    CallFinished {
        /// Which.
        id: String,
        /// What it gave.
        result: Result<Value, ToolError>,
    },
    /// The time of this turn is up.
    WallReached(i64),
    /// Nothing was asked for a while, if this is still how many requests there were.
    Lingered(u64),
}

/// What a session's actor is started with.
pub struct Launch {
    /// What all sessions share.
    pub shared: Arc<Shared>,
    /// Its parent.
    pub manager: ActorRef<manager::Msg>,
    /// Which session.
    pub id: SessionId,
    /// An earlier actor of it failed.
    pub again: bool,
    /// It failed so often that its turn must end, for this reason.
    pub give_up: Option<String>,
}

/// The actor.
pub struct SessionActor;

/// What it keeps.
pub struct State {
    shared: Arc<Shared>,
    manager: ActorRef<manager::Msg>,
    id: SessionId,
    session: Session,
    agent: String,
    stage: Stage,
    ownership: Ownership,
    owned: Option<Owned>,
    /// The load that just ended answers the request at the front: it is not loaded for again.
    fresh: bool,
    again: bool,
    give_up: Option<String>,
    /// What the agent is for new turns, and what it is for the one in progress.
    current: Option<Arc<PreparedAgent>>,
    turn_agent: Option<Arc<PreparedAgent>>,
    live: Arc<Live>,
    pending: VecDeque<Request>,
    held: VecDeque<Held>,
    mark: u64,
    jobs: HashMap<ActorId, Running>,
    waiters: HashMap<i64, Vec<Reply<Option<TurnResult>>>>,
    wall: Option<(i64, AbortHandle)>,
    handled: u64,
    lingering: bool,
    closing: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its journal was not read yet.
    Unloaded,
    Loading,
    Ready,
}

/// What waits until everything up to its mark is durable.
#[derive(Default)]
struct Held {
    mark: u64,
    records: Vec<(i64, Record)>,
    effects: Vec<Effect>,
    answers: Vec<Box<dyn FnOnce() + Send>>,
}

/// A piece of work in progress.
struct Running {
    cell: ActorCell,
    what: Work,
}

enum Work {
    Load,
    Model(u64),
    Call(String, CancellationToken),
}

type Handled = Result<(), ActorProcessingErr>;

impl Actor for SessionActor {
    type Msg = Msg;
    type State = State;
    type Arguments = Launch;

    async fn pre_start(
        &self,
        _: ActorRef<Msg>,
        launch: Launch,
    ) -> Result<State, ActorProcessingErr> {
        let hub = launch.shared.core.events.clone();
        Ok(State {
            live: Live::new(launch.id.0, hub, 0),
            session: Session::new(launch.id),
            id: launch.id,
            shared: launch.shared,
            manager: launch.manager,
            agent: String::new(),
            stage: Stage::Unloaded,
            ownership: Ownership::Nobody,
            owned: None,
            fresh: false,
            again: launch.again,
            give_up: launch.give_up,
            current: None,
            turn_agent: None,
            pending: VecDeque::new(),
            held: VecDeque::new(),
            mark: 0,
            jobs: HashMap::new(),
            waiters: HashMap::new(),
            wall: None,
            handled: 0,
            lingering: false,
            closing: false,
        })
    }

    async fn post_stop(&self, _: ActorRef<Msg>, state: &mut State) -> Handled {
        state.disarm();
        Ok(())
    }

    async fn handle(&self, myself: ActorRef<Msg>, msg: Msg, state: &mut State) -> Handled {
        match msg {
            Msg::Request(request) => state.requested(*request),
            Msg::Loaded(loaded) => state.loaded(&myself, *loaded).await?,
            Msg::Saved(mark, result) => state.saved(&myself, mark, result).await?,
            Msg::Answered { request, answer } => {
                let answer = *answer;
                let event = Event::ModelAnswered { request, answer };
                state.happened(&myself, event).await?;
            }
            Msg::Failed { request, failure } => state.failed(&myself, request, failure).await?,
            Msg::CallFinished { id, result } => {
                let event = Event::CallFinished { id, result };
                state.happened(&myself, event).await?;
            }
            Msg::WallReached(turn) => state.wall_reached(&myself, turn).await?,
            Msg::Lingered(handled) => state.lingered(&myself, handled),
        }
        state.pump(&myself).await?;
        state.settle(&myself);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Handled {
        match event {
            SupervisionEvent::ActorTerminated(cell, ..) => {
                state.jobs.remove(&cell.get_id());
            }
            SupervisionEvent::ActorFailed(cell, error) => {
                if let Some(running) = state.jobs.remove(&cell.get_id()) {
                    tracing::error!(id = %state.id, %error, "work of a session panicked");
                    state.panicked(&myself, running.what).await?;
                    state.settle(&myself);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl State {
    /// Reads the journal's tail, and claims the session where a turn is to begin.
    async fn load(&mut self, myself: &ActorRef<Msg>, claim: bool) -> Handled {
        self.stage = Stage::Loading;
        let session = std::mem::replace(&mut self.session, Session::new(self.id));
        let (shared, id, again) = (Arc::clone(&self.shared), self.id, self.again);
        let session_ref = myself.clone();
        let work = async move {
            let loaded = load(&shared, id, session, claim, again).await;
            drop(session_ref.cast(Msg::Loaded(Box::new(loaded)))); // an error: the actor has stopped
        };
        let cell = job::start(myself.get_cell(), Box::pin(work)).await?;
        let what = Work::Load;
        self.jobs.insert(cell.get_id(), Running { cell, what });
        Ok(())
    }

    async fn loaded(
        &mut self,
        myself: &ActorRef<Msg>,
        loaded: Result<Loaded, SessionError>,
    ) -> Handled {
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => return self.unloaded(error),
        };
        let first = self.again;
        self.stage = Stage::Ready;
        self.again = false;
        self.fresh = true;
        self.session = loaded.session;
        self.agent = loaded.agent;
        self.turn_agent = loaded.turn_agent;
        self.own(loaded.ownership);
        let hub = self.shared.core.events.clone();
        self.live = Live::new(self.id.0, hub, self.session.seq());
        self.shared.lives.insert(self.id, &self.live);
        self.live.announce();
        if self.ownership != Ownership::Ours || self.session.running_turn().is_none() {
            return Ok(());
        }
        tracing::info!(id = %self.id, again = first, "a turn goes on where it was left");
        self.happened(myself, Event::Resumed).await?;
        match self.give_up.take() {
            Some(reason) => self.happened(myself, Event::GivenUp { reason }).await,
            None => Ok(()),
        }
    }

    /// The session could not be loaded: whoever waits is told. What must go on is tried again.
    fn unloaded(&mut self, error: SessionError) -> Handled {
        self.stage = Stage::Unloaded;
        self.own(Ownership::Nobody);
        let must = self
            .pending
            .iter()
            .any(|request| matches!(request, Request::Resume));
        for request in self.pending.drain(..) {
            request.refuse(error.clone());
        }
        match error {
            SessionError::Store(error) if must => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn own(&mut self, ownership: Ownership) {
        self.ownership = ownership;
        self.owned = (ownership == Ownership::Ours).then(|| Owned::new(&self.shared));
    }

    /// Decides on an event that nobody waits for.
    async fn happened(&mut self, myself: &ActorRef<Msg>, event: Event) -> Handled {
        let at = self.prepare();
        match self.session.decide(event, at) {
            Ok(decision) => self.commit(myself, decision, at, Vec::new()).await,
            Err(_) => Ok(()),
        }
    }

    /// Before a decision: what the agent is now, and the time.
    fn prepare(&mut self) -> DateTime<Utc> {
        self.current = self.shared.agents.current(&self.agent).ok();
        let spec = self.current.as_ref().map(|agent| Arc::clone(&agent.spec));
        self.session.set_agent(spec);
        Utc::now()
    }

    /// Appends a decision's records and holds what must wait for them.
    async fn commit(
        &mut self,
        myself: &ActorRef<Msg>,
        mut decision: Decision,
        at: DateTime<Utc>,
        answers: Vec<Box<dyn FnOnce() + Send>>,
    ) -> Handled {
        if decision
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::StopWork))
        {
            self.stop_work();
            decision
                .effects
                .retain(|effect| !matches!(effect, Effect::StopWork));
        }
        self.follow_agent();
        self.arm(myself, at);
        let mut held = Held {
            mark: self.mark,
            records: decision.records,
            effects: decision.effects,
            answers,
        };
        if held.records.is_empty() {
            // Nothing of its own to wait for, but never before what was decided earlier.
            if self.held.is_empty() {
                return self.release(myself, held).await;
            }
        } else {
            self.mark += 1;
            held.mark = self.mark;
            let writes = self.writes(&held.records, at);
            self.append(myself, writes, self.mark);
        }
        self.held.push_back(held);
        Ok(())
    }

    /// The rows of records; and, when they leave no turn in progress, the end of this host's ownership.
    fn writes(&mut self, records: &[(i64, Record)], at: DateTime<Utc>) -> Vec<Write> {
        let mut writes: Vec<_> = records
            .iter()
            .map(|(seq, record)| {
                let (kind, payload) = record.write();
                Write::SessionEvent(Box::new(SessionEventRow {
                    session_id: self.id,
                    seq: *seq,
                    kind: kind.to_owned(),
                    payload: payload.to_string(),
                    created_at: at,
                }))
            })
            .collect();
        if self.session.running_turn().is_none() {
            writes.push(self.idle(at));
        }
        writes
    }

    /// The change that makes the session nobody's.
    fn idle(&mut self, at: DateTime<Utc>) -> Write {
        self.own(Ownership::Nobody);
        Write::SessionChanged(Box::new(SessionChange {
            id: self.id,
            status: SessionStatus::Idle,
            host_id: None,
            usage: serde_json::to_string(&self.session.usage()).unwrap_or_else(|_| "{}".to_owned()),
            updated_at: at,
        }))
    }

    fn append(&self, myself: &ActorRef<Msg>, writes: Vec<Write>, mark: u64) {
        let myself = myself.clone();
        let on_saved = move |result| drop(myself.cast(Msg::Saved(mark, result)));
        self.shared
            .core
            .journal
            .append(self.id.0, writes, Some(Box::new(on_saved)));
    }

    async fn saved(
        &mut self,
        myself: &ActorRef<Msg>,
        mark: u64,
        result: Result<(), StoreError>,
    ) -> Handled {
        match result {
            Ok(()) => {
                while self.held.front().is_some_and(|held| held.mark <= mark) {
                    if let Some(held) = self.held.pop_front() {
                        self.release(myself, held).await?;
                    }
                }
                Ok(())
            }
            Err(StoreError::Fenced | StoreError::Closed) => {
                myself.stop(Some("the host may not write any more".to_owned()));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Where a message was taken in: told when it is durable.
    fn accept(reply: Reply<Accepted>, accepted: Option<Accepted>) -> Box<dyn FnOnce() + Send> {
        Box::new(move || {
            let answer = accepted.ok_or_else(|| {
                SessionError::Invalid("the message was neither taken nor refused".to_owned())
            });
            drop(reply.send(answer));
        })
    }

    fn partial(&self) -> Partial {
        self.live.close()
    }

    /// After every message: gives up a session that nothing is done for, and leaves memory after a while.
    fn settle(&mut self, myself: &ActorRef<Msg>) {
        if self.stage == Stage::Loading || !self.pending.is_empty() || !self.held.is_empty() {
            return;
        }
        if self.session.running_turn().is_some() && self.ownership == Ownership::Ours {
            return;
        }
        if self.ownership == Ownership::Ours {
            let change = self.idle(Utc::now());
            self.mark += 1;
            self.append(myself, vec![change], self.mark);
            let mark = self.mark;
            self.held.push_back(Held {
                mark,
                ..Held::default()
            });
            return;
        }
        if !self.lingering {
            self.lingering = true;
            let handled = self.handled;
            myself.send_after(self.shared.limits.linger, move || Msg::Lingered(handled));
        }
    }

    fn lingered(&mut self, myself: &ActorRef<Msg>, handled: u64) {
        self.lingering = false;
        let quiet = self.pending.is_empty()
            && self.held.is_empty()
            && self
                .waiters
                .values()
                .flatten()
                .all(|waiter| waiter.is_closed())
            && self.stage != Stage::Loading
            && self.ownership != Ownership::Ours;
        if quiet && handled == self.handled {
            let retire = manager::Msg::Retire(self.id, myself.get_id(), handled);
            drop(self.manager.cast(retire)); // an error: the manager is stopping, and its children with it
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.disarm();
    }
}

/// Events of the state machine that come from requests.
impl State {
    fn cancel_event(&self, mode: CancelMode) -> Event {
        // A message in progress is stopped in either mode: `after_tool` waits for calls only.
        let partial = self.partial();
        Event::CancelRequested { mode, partial }
    }

    fn message_event(message: SendMessage) -> Event {
        let key = message.idempotency_key.map(|key| {
            let hash = crate::sessions::content_hash(&message.content);
            (key, hash)
        });
        Event::MessageReceived {
            content: message.content,
            key,
        }
    }
}
