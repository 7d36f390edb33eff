//! Parent of the executions that run on this host: starts, wakes, adopts and restarts them.
//!
//! Owns nothing that is not in the store. An execution that fails by a fault of ours is folded and started
//! again after a growing delay; after [`RESTARTS_MAX`] tries it is failed with code `internal_error`.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::execution::{self, ExecutionActor, Launch};
use crate::{
    executions::Host,
    id::ExecutionId,
    store::{StoreError, executions, waits},
};

/// How often an execution is started again after a fault of ours.
const RESTARTS_MAX: u32 = 3;
/// How many executions are claimed at once: the others are left to other hosts, or to the next round.
const CLAIM_MAX: usize = 256;
/// How many executions are folded at once.
const LOADING_MAX: usize = 32;

/// What the manager is told.
pub enum Msg {
    /// Run this, which is not in memory yet.
    Launch(Box<Launch>),
    /// Fold and run this, which this host owns.
    Activate(ExecutionId),
    /// It was folded, or could not be.
    Loaded(ExecutionId, Box<Result<Launch, StoreError>>),
    /// The host's heart beat: there may be work to claim.
    Pulse,
    /// A claim came back.
    Claimed(Result<Vec<ExecutionId>, StoreError>),
    /// An execution went to wait, until then at the latest.
    Passivated(Option<DateTime<Utc>>),
    /// The store refuses what an execution writes.
    Unsaveable(ExecutionId, String),
}

/// The actor.
pub struct ExecutionManager {
    pub(crate) host: Arc<Host>,
}

/// What it keeps.
#[derive(Default)]
pub struct State {
    by_actor: HashMap<ActorId, ExecutionId>,
    loading: HashSet<ExecutionId>,
    to_load: Vec<ExecutionId>,
    restarts: HashMap<ExecutionId, u32>,
    claiming: bool,
    /// When the next claim of due waits is set for.
    next_claim: Option<DateTime<Utc>>,
}

impl Actor for ExecutionManager {
    type Msg = Msg;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Msg>, (): ()) -> Result<State, ActorProcessingErr> {
        Ok(State::default())
    }

    async fn handle(&self, myself: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Launch(launch) => self.launch(&myself, state, launch).await,
            Msg::Activate(id) => self.activate(&myself, state, id),
            Msg::Loaded(id, launch) => self.loaded(&myself, state, id, *launch).await,
            Msg::Pulse => self.pulse(&myself, state),
            Msg::Claimed(claimed) => self.claimed(&myself, state, claimed),
            Msg::Passivated(wake_at) => self.passivated(&myself, state, wake_at),
            Msg::Unsaveable(id, reason) => self.host.fail(id, "store_refused", reason),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(actor, ..) => self.ended(state, actor.get_id()),
            SupervisionEvent::ActorFailed(actor, reason) => self.failed(&myself, state, actor.get_id(), &reason),
            _ => {}
        }
        Ok(())
    }
}

impl ExecutionManager {
    async fn launch(&self, myself: &ActorRef<Msg>, state: &mut State, launch: Box<Launch>) {
        let (id, progress) = (launch.execution.id(), launch.progress.clone());
        let actor = ExecutionActor { host: self.host.clone() };
        match ExecutionActor::spawn_linked(None, actor, launch, myself.get_cell()).await {
            Ok((actor, _)) => {
                state.by_actor.insert(actor.get_id(), id);
                self.host.registry.entered(id, actor, progress);
            }
            Err(error) => {
                tracing::error!(execution = %id, %error, "the execution's actor could not be started");
                self.restart(myself, state, id);
            }
        }
    }

    fn activate(&self, myself: &ActorRef<Msg>, state: &mut State, id: ExecutionId) {
        if !self.host.registry.is_running(id) && state.loading.insert(id) {
            state.to_load.push(id);
        }
        self.load_next(myself, state);
    }

    fn load_next(&self, myself: &ActorRef<Msg>, state: &mut State) {
        while state.loading.len() - state.to_load.len() < LOADING_MAX {
            let Some(id) = state.to_load.pop() else { return };
            let (host, to) = (self.host.clone(), myself.clone());
            tokio::spawn(async move {
                let launch = host.load(id).await;
                drop(to.cast(Msg::Loaded(id, Box::new(launch))));
            });
        }
    }

    async fn loaded(&self, myself: &ActorRef<Msg>, state: &mut State, id: ExecutionId, launch: Result<Launch, StoreError>) {
        state.loading.remove(&id);
        match launch {
            Ok(launch) => self.launch(myself, state, Box::new(launch)).await,
            // It ended, or somebody else owns it by now.
            Err(StoreError::NotFound | StoreError::Fenced | StoreError::Closed) => {}
            Err(StoreError::Corrupt(reason)) => {
                tracing::error!(execution = %id, reason, "the execution cannot be resumed");
                self.host.fail(id, "corrupt_journal", reason);
            }
            Err(error) => {
                tracing::warn!(execution = %id, %error, "the execution could not be read; trying again");
                myself.send_after(Duration::from_secs(1), move || Msg::Activate(id));
            }
        }
        self.load_next(myself, state);
    }

    fn pulse(&self, myself: &ActorRef<Msg>, state: &mut State) {
        let pulse = self.host.core.pulse.borrow().clone();
        if pulse.fenced {
            self.host.registry.stop_all();
            return;
        }
        self.host.registry.forget_unwatched();
        if pulse.orphan_executions || pulse.due_waits {
            self.claim(myself, state);
        }
        if let Some(at) = pulse.next_wake_at {
            self.passivated(myself, state, Some(at));
        }
    }

    /// Claims executions of dead hosts and those whose wait is over, as many as fit.
    fn claim(&self, myself: &ActorRef<Msg>, state: &mut State) {
        let room = self.host.room().saturating_sub(state.loading.len()).min(CLAIM_MAX);
        if state.claiming || room == 0 {
            return;
        }
        state.claiming = true;
        let (core, to) = (self.host.core.clone(), myself.clone());
        tokio::spawn(async move {
            let claimed = async {
                let mut ids = waits::claim_due(&core.db, core.host_id, room as i64).await?;
                if ids.len() < room {
                    ids.extend(executions::adopt(&core.db, core.host_id, (room - ids.len()) as i64).await?);
                }
                Ok(ids)
            };
            drop(to.cast(Msg::Claimed(claimed.await)));
        });
    }

    fn claimed(&self, myself: &ActorRef<Msg>, state: &mut State, claimed: Result<Vec<ExecutionId>, StoreError>) {
        state.claiming = false;
        match claimed {
            Ok(ids) => {
                let more = ids.len() >= CLAIM_MAX;
                for id in ids {
                    self.activate(myself, state, id);
                }
                if more {
                    self.claim(myself, state);
                }
            }
            // The next pulse finds the same work.
            Err(error) => tracing::warn!(%error, "no execution could be claimed"),
        }
    }

    /// Sets a claim for when the next wait is due, so that it need not wait for a pulse.
    fn passivated(&self, myself: &ActorRef<Msg>, state: &mut State, wake_at: Option<DateTime<Utc>>) {
        let now = Utc::now();
        let Some(at) = wake_at.filter(|at| *at > now) else { return };
        if state.next_claim.is_some_and(|next| next > now && next <= at) {
            return;
        }
        state.next_claim = Some(at);
        let (host, to) = (self.host.clone(), myself.clone());
        let after = (at - now).to_std().unwrap_or_default();
        // A pulse finds anything that is further away.
        if after <= Duration::from_secs(60) {
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                host.core.pulse_now();
                drop(to);
            });
        }
    }

    fn ended(&self, state: &mut State, actor: ActorId) {
        if let Some(id) = state.by_actor.remove(&actor) {
            state.restarts.remove(&id);
            self.host.registry.left(id);
        }
    }

    fn failed(&self, myself: &ActorRef<Msg>, state: &mut State, actor: ActorId, reason: &ActorProcessingErr) {
        if let Some(id) = state.by_actor.remove(&actor) {
            tracing::error!(execution = %id, %reason, "the execution's actor failed");
            self.host.registry.left(id);
            self.host.kill_runs(id);
            self.restart(myself, state, id);
        }
    }

    fn restart(&self, myself: &ActorRef<Msg>, state: &mut State, id: ExecutionId) {
        let tries = state.restarts.entry(id).or_default();
        *tries += 1;
        if *tries > RESTARTS_MAX {
            state.restarts.remove(&id);
            self.host.fail(id, "internal_error", format!("the execution was started {RESTARTS_MAX} times and stopped by an internal error"));
        } else {
            myself.send_after(Duration::from_millis(200 << *tries), move || Msg::Activate(id));
        }
    }
}
