//! Parent of the sessions that are in memory: spawns them on demand, lets idle ones go, restarts failed ones after a
//! growing delay, adopts what dead hosts left.
//!
//! Owns nothing that is not in the store. All requests pass through here, so that a session that leaves memory never
//! takes one with it: it may leave only when it has handled as many as were handed to it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use callboard_runtime::{
    id::SessionId,
    store::{StoreError, sessions},
};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::oneshot;

use super::{
    Shared,
    session::{self, Launch, Reply, Request, SessionActor},
};
use crate::sessions::SessionError;

/// How many sessions are claimed at once.
const CLAIM_MAX: usize = 256;
/// How many requests wait for a session that is being restarted.
const WAITING_MAX: usize = 256;
/// A session that ran this long has got over its failures.
const RECOVERED: Duration = Duration::from_secs(60);
/// What to wait before trying again when too much is going on.
const BUSY: Duration = Duration::from_secs(1);

/// What the manager is told.
pub enum Msg {
    /// Hand this to a session.
    Deliver(SessionId, Box<Request>),
    /// A session wants to leave memory, having handled this many requests.
    Retire(SessionId, ActorId, u64),
    /// Start a failed session again.
    Restart(SessionId),
    /// Remove a session and its journal.
    Delete(SessionId, Reply<()>),
    /// It is removed, or was not to be.
    Deleted(SessionId),
    /// The host's heart beat: there may be sessions to adopt, or all to stop.
    Pulse,
    /// A claim came back.
    Claimed(Result<Vec<SessionId>, StoreError>),
    /// Take no new messages.
    Drain,
    /// Stop all sessions where they are. Answered when they are stopped.
    StopAll(oneshot::Sender<()>),
}

/// The actor.
pub struct Manager {
    /// What all sessions share.
    pub shared: Arc<Shared>,
}

/// What it keeps.
#[derive(Default)]
pub struct State {
    entries: HashMap<SessionId, Entry>,
    by_actor: HashMap<ActorId, SessionId>,
    deleting: HashSet<SessionId>,
    claiming: bool,
    draining: bool,
    stopped: bool,
}

struct Entry {
    actor: Option<ActorRef<session::Msg>>,
    /// How many requests it was handed.
    sent: u64,
    /// Requests for a session that is being restarted.
    waiting: Vec<Request>,
    failures: u32,
    reason: String,
    since: Instant,
}

type Handled = Result<(), ActorProcessingErr>;

impl Actor for Manager {
    type Msg = Msg;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Msg>, (): ()) -> Result<State, ActorProcessingErr> {
        Ok(State::default())
    }

    async fn handle(&self, myself: ActorRef<Msg>, msg: Msg, state: &mut State) -> Handled {
        match msg {
            Msg::Deliver(id, request) => self.deliver(&myself, state, id, *request).await,
            Msg::Retire(id, actor, handled) => Self::retire(state, id, actor, handled),
            Msg::Restart(id) => self.restart(&myself, state, id).await,
            Msg::Delete(id, reply) => self.delete(&myself, state, id, reply).await,
            Msg::Deleted(id) => Self::deleted(state, id),
            Msg::Pulse => self.pulse(&myself, state),
            Msg::Claimed(claimed) => self.claimed(&myself, state, claimed).await,
            Msg::Drain => state.draining = true,
            Msg::StopAll(done) => {
                state.stop_all();
                let _ = done.send(()); // whoever asked may have gone
            }
        }
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
                if let Some(id) = state.by_actor.remove(&cell.get_id()) {
                    state.entries.remove(&id);
                    self.shared.lives.remove(id);
                }
            }
            SupervisionEvent::ActorFailed(cell, error) => {
                if let Some(id) = state.by_actor.remove(&cell.get_id()) {
                    self.failed(&myself, state, id, error.to_string());
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Manager {
    async fn deliver(
        &self,
        myself: &ActorRef<Msg>,
        state: &mut State,
        id: SessionId,
        request: Request,
    ) {
        if let Some(error) = self.refusal(state, id, &request) {
            return request.refuse(error);
        }
        if let Some(entry) = state.entries.get_mut(&id) {
            match &entry.actor {
                None if entry.waiting.len() < WAITING_MAX => return entry.waiting.push(request),
                None => return request.refuse(SessionError::Busy(BUSY)),
                Some(actor) => {
                    let message = session::Msg::Request(Box::new(request));
                    match actor.cast(message) {
                        Ok(()) => return entry.sent += 1,
                        // It stopped, and word of that is on its way: this request needs another actor.
                        Err(ractor::MessagingErr::SendErr(session::Msg::Request(request))) => {
                            state.forget(id);
                            return self.spawn_for(myself, state, id, *request).await;
                        }
                        Err(_) => return,
                    }
                }
            }
        }
        // What this host owns already must go on, however crowded it is.
        let must = matches!(request, Request::Resume);
        if !must && state.entries.len() >= self.shared.limits.live_max {
            return request.refuse(SessionError::Busy(BUSY));
        }
        self.spawn_for(myself, state, id, request).await;
    }

    fn refusal(&self, state: &State, id: SessionId, request: &Request) -> Option<SessionError> {
        if state.stopped {
            return Some(SessionError::Store(StoreError::Closed));
        }
        if state.deleting.contains(&id) {
            return Some(SessionError::NotFound(id));
        }
        let crowded = self.shared.core.journal.is_saturated();
        (crowded && matches!(request, Request::Send { .. })).then_some(SessionError::Busy(BUSY))
    }

    async fn spawn_for(
        &self,
        myself: &ActorRef<Msg>,
        state: &mut State,
        id: SessionId,
        request: Request,
    ) {
        match self.spawn(myself, id, false, None).await {
            Ok(actor) => {
                state.by_actor.insert(actor.get_id(), id);
                drop(actor.cast(session::Msg::Request(Box::new(request)))); // it cannot have stopped
                state.entries.insert(
                    id,
                    Entry {
                        actor: Some(actor),
                        sent: 1,
                        waiting: Vec::new(),
                        failures: 0,
                        reason: String::new(),
                        since: Instant::now(),
                    },
                );
            }
            Err(error) => {
                tracing::error!(%id, %error, "a session's actor did not start");
                request.refuse(SessionError::Busy(BUSY));
            }
        }
    }

    async fn spawn(
        &self,
        myself: &ActorRef<Msg>,
        id: SessionId,
        again: bool,
        give_up: Option<String>,
    ) -> Result<ActorRef<session::Msg>, SpawnErr> {
        let launch = Launch {
            shared: Arc::clone(&self.shared),
            manager: myself.clone(),
            id,
            again,
            give_up,
        };
        let (actor, _) = Actor::spawn_linked(None, SessionActor, launch, myself.get_cell()).await?;
        Ok(actor)
    }

    fn retire(state: &mut State, id: SessionId, actor: ActorId, handled: u64) {
        let quiet = state.entries.get(&id).is_some_and(|entry| {
            entry.sent == handled && entry.actor.as_ref().is_some_and(|a| a.get_id() == actor)
        });
        if quiet {
            if let Some(actor) = state.entries.get(&id).and_then(|entry| entry.actor.clone()) {
                actor.stop(None);
            }
            state.forget(id);
        }
    }

    fn failed(&self, myself: &ActorRef<Msg>, state: &mut State, id: SessionId, reason: String) {
        let limits = &self.shared.limits;
        let Some(entry) = state.entries.get_mut(&id) else {
            return;
        };
        if entry.since.elapsed() > RECOVERED {
            entry.failures = 0;
        }
        entry.failures += 1;
        entry.actor = None;
        tracing::error!(%id, reason, failures = entry.failures, "a session's actor failed");
        if entry.failures > limits.restarts_max + 1 {
            // Even its end cannot be written. The next request tries anew.
            tracing::error!(%id, "a session is left alone");
            for request in entry.waiting.drain(..) {
                request.refuse(SessionError::Store(StoreError::Corrupt(reason.clone())));
            }
            state.entries.remove(&id);
            return;
        }
        let delay = limits
            .restart_delay
            .saturating_mul(4_u32.saturating_pow(entry.failures - 1));
        entry.reason = reason;
        myself.send_after(delay, move || Msg::Restart(id));
    }

    async fn restart(&self, myself: &ActorRef<Msg>, state: &mut State, id: SessionId) {
        let Some(entry) = state
            .entries
            .get_mut(&id)
            .filter(|entry| entry.actor.is_none())
        else {
            return;
        };
        let give_up = (entry.failures > self.shared.limits.restarts_max).then(|| {
            format!(
                "the session failed {} times: {}",
                entry.failures, entry.reason
            )
        });
        match self.spawn(myself, id, true, give_up).await {
            Ok(actor) => {
                state.by_actor.insert(actor.get_id(), id);
                let waiting = std::mem::take(&mut entry.waiting);
                entry.sent = 1 + waiting.len() as u64;
                entry.since = Instant::now();
                for request in std::iter::once(Request::Resume).chain(waiting) {
                    drop(actor.cast(session::Msg::Request(Box::new(request)))); // it cannot have stopped
                }
                entry.actor = Some(actor);
            }
            Err(error) => self.failed(myself, state, id, error.to_string()),
        }
    }

    /// Closes the session first, so that nothing is appended to a journal that is gone.
    async fn delete(
        &self,
        myself: &ActorRef<Msg>,
        state: &mut State,
        id: SessionId,
        reply: Reply<()>,
    ) {
        if state.deleting.contains(&id) {
            return drop(reply.send(Err(SessionError::NotFound(id))));
        }
        let (closed, closing) = oneshot::channel();
        let request = Request::Close { reply: closed };
        self.deliver(myself, state, id, request).await;
        state.deleting.insert(id);
        let (myself, db) = (myself.clone(), self.shared.core.db.clone());
        tokio::spawn(async move {
            let result = match closing.await {
                Ok(Ok(())) => match sessions::delete(&db, id).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(SessionError::NotFound(id)),
                    Err(error) => Err(error.into()),
                },
                Ok(Err(error)) => Err(error),
                Err(_) => Err(SessionError::Busy(BUSY)),
            };
            drop(myself.cast(Msg::Deleted(id))); // an error: the manager is stopping
            drop(reply.send(result));
        });
    }

    fn deleted(state: &mut State, id: SessionId) {
        state.deleting.remove(&id);
        if let Some(actor) = state.entries.get(&id).and_then(|entry| entry.actor.clone()) {
            actor.stop(None);
        }
        state.forget(id);
    }

    fn pulse(&self, myself: &ActorRef<Msg>, state: &mut State) {
        let core = &self.shared.core;
        if core.is_fenced() {
            return state.stop_all();
        }
        let room = self
            .shared
            .limits
            .live_max
            .saturating_sub(state.entries.len());
        let orphans = core.pulse.borrow().orphan_sessions;
        if !orphans || state.claiming || state.draining || state.stopped || room == 0 {
            return;
        }
        state.claiming = true;
        let (db, host) = (core.db.clone(), core.host_id);
        let limit = room.min(CLAIM_MAX) as i64;
        let myself = myself.clone();
        tokio::spawn(async move {
            let claimed = sessions::adopt(&db, host, limit).await;
            drop(myself.cast(Msg::Claimed(claimed))); // an error: the manager is stopping
        });
    }

    async fn claimed(
        &self,
        myself: &ActorRef<Msg>,
        state: &mut State,
        claimed: Result<Vec<SessionId>, StoreError>,
    ) {
        state.claiming = false;
        match claimed {
            Ok(ids) => {
                if !ids.is_empty() {
                    tracing::info!(sessions = ids.len(), "adopted");
                }
                for id in ids {
                    self.deliver(myself, state, id, Request::Resume).await;
                }
            }
            Err(error) => tracing::warn!(%error, "sessions could not be adopted"),
        }
    }
}

impl State {
    /// Its actor is on its way out: what it says from now on is not about the session in hand.
    fn forget(&mut self, id: SessionId) {
        if let Some(actor) = self.entries.remove(&id).and_then(|entry| entry.actor) {
            self.by_actor.remove(&actor.get_id());
        }
    }

    fn stop_all(&mut self) {
        self.stopped = true;
        self.by_actor.clear();
        for (_, entry) in self.entries.drain() {
            if let Some(actor) = entry.actor {
                actor.kill();
            }
            for request in entry.waiting {
                request.refuse(SessionError::Store(StoreError::Closed));
            }
        }
    }
}
