//! Runs nodes: bounded per host, each run an actor of its own, so that a kill is a cancel.
//!
//! Owns which runs are in progress and which wait for a slot. A run that panics has failed with code `panic`; one
//! that takes longer than its step allows has failed with code `timeout`. Reports go to the execution's actor
//! as messages and may arrive after it has lost interest.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::Semaphore;

use super::execution;
use crate::{
    id::ExecutionId,
    model::execution::RunKey,
    node::{AnyNode, NodeError, NodeInput, NodeOutcome},
};

/// The longest a node that computes may take, whatever its step says: it keeps a processor to itself meanwhile.
pub(crate) const COMPUTING_TIME_MAX: Duration = Duration::from_secs(300);
/// How many node runs may be in progress at once on this host; more wait their turn.
const SLOTS: usize = 1024;

/// One attempt to run.
pub struct Request {
    /// Who is told how it came out.
    pub execution: ActorRef<execution::Msg>,
    /// Which visit.
    pub key: RunKey,
    /// The node.
    pub node: AnyNode,
    /// What it gets; says which execution and attempt it is.
    pub input: NodeInput,
    /// The longest it may take.
    pub timeout: Option<Duration>,
}

impl Request {
    fn id(&self) -> RunId {
        (self.input.identity.execution_id, self.key)
    }
}

type RunId = (ExecutionId, RunKey);

/// What the runner is told.
pub enum Msg {
    /// Run this as soon as there is a slot.
    Run(Box<Request>),
    /// Stop this run, if it is still going on. Nothing is reported.
    Kill(ExecutionId, RunKey),
    /// Stop all runs of an execution.
    KillAll(ExecutionId),
}

/// The actor.
pub struct NodeRunner;

/// What it keeps.
pub struct State {
    running: HashMap<RunId, Running>,
    by_actor: HashMap<ActorId, RunId>,
    waiting: VecDeque<Box<Request>>,
    /// Threads for pure work: more than the processors would only make each other slow.
    threads: Arc<Semaphore>,
}

struct Running {
    actor: ActorRef<()>,
    execution: ActorRef<execution::Msg>,
    attempt: u32,
    started_at: DateTime<Utc>,
}

impl Actor for NodeRunner {
    type Msg = Msg;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Msg>, (): ()) -> Result<State, ActorProcessingErr> {
        let threads = std::thread::available_parallelism()
            .map_or(2, usize::from)
            .max(2);
        Ok(State {
            running: HashMap::new(),
            by_actor: HashMap::new(),
            waiting: VecDeque::new(),
            threads: Arc::new(Semaphore::new(threads)),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        msg: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Run(request) => state.waiting.push_back(request),
            Msg::Kill(execution, key) => state.kill(|id| *id == (execution, key)),
            Msg::KillAll(execution) => state.kill(|(id, _)| *id == execution),
        }
        state.start_waiting(&myself).await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(actor, ..) => drop(state.ended(actor.get_id())),
            SupervisionEvent::ActorFailed(actor, reason) => state.panicked(actor.get_id(), &reason),
            _ => {}
        }
        state.start_waiting(&myself).await;
        Ok(())
    }
}

impl State {
    async fn start_waiting(&mut self, myself: &ActorRef<Msg>) {
        while self.running.len() < SLOTS {
            let Some(request) = self.waiting.pop_front() else {
                return;
            };
            let (id, execution) = (request.id(), request.execution.clone());
            let (attempt, started_at) = (request.input.identity.attempt, Utc::now());
            let run = NodeRun {
                threads: self.threads.clone(),
            };
            match NodeRun::spawn_linked(None, run, (*request, started_at), myself.get_cell()).await
            {
                Ok((actor, _)) => {
                    self.by_actor.insert(actor.get_id(), id);
                    self.running.insert(
                        id,
                        Running {
                            actor,
                            execution,
                            attempt,
                            started_at,
                        },
                    );
                }
                Err(error) => {
                    let error = NodeError::transient(
                        "not_started",
                        format!("the node run could not be started: {error}"),
                    );
                    report(&execution, id.1, attempt, Err(error), started_at);
                }
            }
        }
    }

    fn kill(&mut self, matches: impl Fn(&RunId) -> bool) {
        self.waiting.retain(|request| !matches(&request.id()));
        for (_, running) in self.running.iter().filter(|(id, _)| matches(id)) {
            running.actor.kill();
        }
    }

    fn ended(&mut self, actor: ActorId) -> Option<(RunId, Running)> {
        let id = self.by_actor.remove(&actor)?;
        // A run may have been killed and the same visit started again: only its own entry goes.
        if self
            .running
            .get(&id)
            .is_some_and(|running| running.actor.get_id() == actor)
        {
            self.running.remove(&id).map(|running| (id, running))
        } else {
            None
        }
    }

    fn panicked(&mut self, actor: ActorId, reason: &ActorProcessingErr) {
        if let Some(((execution, key), running)) = self.ended(actor) {
            tracing::error!(%execution, %reason, "a node run panicked");
            report(
                &running.execution,
                key,
                running.attempt,
                Err(panicked()),
                running.started_at,
            );
        }
    }
}

pub(crate) fn panicked() -> NodeError {
    NodeError::permanent("panic", "the node stopped by an internal error")
}

pub(crate) fn timed_out(timeout: Duration) -> NodeError {
    let message = format!("the step took longer than its timeout of {timeout:?}");
    NodeError::transient("timeout", message)
}

fn report(
    execution: &ActorRef<execution::Msg>,
    key: RunKey,
    attempt: u32,
    outcome: Result<NodeOutcome, NodeError>,
    started_at: DateTime<Utc>,
) {
    let report = execution::Report {
        key,
        attempt,
        outcome,
        started_at,
        finished_at: Utc::now(),
    };
    // The execution may have ended meanwhile; then nobody needs to know.
    drop(execution.cast(execution::Msg::NodeRunFinished(Box::new(report))));
}

/// One run. Its only message is the one to begin; awaiting in the handler is right, since a kill drops it.
struct NodeRun {
    threads: Arc<Semaphore>,
}

impl Actor for NodeRun {
    type Msg = ();
    type State = Option<(Request, DateTime<Utc>)>;
    type Arguments = (Request, DateTime<Utc>);

    async fn pre_start(
        &self,
        myself: ActorRef<()>,
        request: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        myself.cast(())?;
        Ok(Some(request))
    }

    async fn handle(
        &self,
        myself: ActorRef<()>,
        (): (),
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some((request, started_at)) = state.take() {
            let Request {
                execution,
                key,
                node,
                input,
                timeout,
            } = request;
            let attempt = input.identity.attempt;
            // The guard cancels the token however this future ends, a kill included.
            let _guard = input.cancel.clone().drop_guard();
            let work = self.run(node, input);
            let outcome = match timeout {
                None => work.await,
                Some(timeout) => tokio::time::timeout(timeout, work)
                    .await
                    .unwrap_or_else(|_| Err(timed_out(timeout))),
            };
            report(&execution, key, attempt, outcome, started_at);
        }
        myself.stop(None);
        Ok(())
    }
}

impl NodeRun {
    async fn run(&self, node: AnyNode, input: NodeInput) -> Result<NodeOutcome, NodeError> {
        match node {
            AnyNode::Async(node) => node.run(input).await,
            AnyNode::Pure(node) => {
                let permit = self.threads.clone().acquire_owned().await;
                let work = move || {
                    let _permit = permit;
                    node.run(&input)
                };
                // Waiting for a thread does not count.
                let work = tokio::task::spawn_blocking(work);
                let Ok(done) = tokio::time::timeout(COMPUTING_TIME_MAX, work).await else {
                    return Err(timed_out(COMPUTING_TIME_MAX));
                };
                done.unwrap_or_else(|error| {
                    tracing::error!(%error, "a pure node panicked");
                    Err(panicked())
                })
            }
        }
    }
}
