//! What the actors of this host share, and what they do through each other.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::Utc;
use ractor::ActorRef;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::{Ended, Progress, StartError, StartExecution, view};
use crate::{
    actors::{
        execution::{self, Launch},
        execution_manager as manager, node_runner,
    },
    core::Core,
    events::Event,
    graphs::Graphs,
    id::ExecutionId,
    model::execution::{Child, Execution, RunKey, WaitEnd},
    node::NodeError,
    store::{
        StoreError, executions, node_runs,
        rows::{ExecutionChange, ExecutionStatus, Write},
        waits,
    },
};

/// What everything about executions on this host shares.
pub(crate) struct Host {
    pub(crate) core: Core,
    pub(crate) graphs: Graphs,
    pub(crate) registry: Registry,
    pub(crate) draining: AtomicBool,
    /// `$vars` and `$env`.
    pub(crate) vars: Arc<Value>,
    pub(crate) env: Arc<Value>,
    actors: OnceLock<(ActorRef<manager::Msg>, ActorRef<node_runner::Msg>)>,
}

impl Host {
    pub(crate) fn new(core: Core, graphs: Graphs) -> Self {
        let env = core
            .config
            .env_allowed
            .iter()
            .filter_map(|name| Some((name.clone(), Value::String(std::env::var(name).ok()?))));
        let env = Arc::new(Value::Object(Map::from_iter(env)));
        let vars = Arc::new(Value::Object(Map::new()));
        Self {
            core,
            graphs,
            registry: Registry::default(),
            draining: AtomicBool::new(false),
            vars,
            env,
            actors: OnceLock::new(),
        }
    }

    /// Makes the actors known to each other. Once, before anything is started.
    pub(super) fn set_actors(
        &self,
        manager: ActorRef<manager::Msg>,
        runner: ActorRef<node_runner::Msg>,
    ) {
        assert!(
            self.actors.set((manager, runner)).is_ok(),
            "the actors of a host are set once"
        );
    }

    pub(crate) fn manager(&self) -> &ActorRef<manager::Msg> {
        &self.actors.get().expect("set before anything is started").0
    }

    fn runner(&self) -> &ActorRef<node_runner::Msg> {
        &self.actors.get().expect("set before anything is started").1
    }

    /// How many more executions this host may take over.
    pub(crate) fn room(&self) -> usize {
        if self.draining.load(Ordering::Relaxed) {
            return 0;
        }
        self.capacity()
    }

    /// How many more executions may run here.
    pub(super) fn capacity(&self) -> usize {
        if self.core.journal.is_saturated() {
            return 0;
        }
        self.core
            .config
            .running_max
            .saturating_sub(self.registry.running())
    }

    // The runner lives as long as the host; a message to it fails only while the process stops.

    pub(crate) fn run_node(&self, request: node_runner::Request) {
        drop(self.runner().cast(node_runner::Msg::Run(Box::new(request))));
    }

    pub(crate) fn kill_run(&self, execution: ExecutionId, key: RunKey) {
        drop(self.runner().cast(node_runner::Msg::Kill(execution, key)));
    }

    pub(crate) fn kill_runs(&self, execution: ExecutionId) {
        drop(self.runner().cast(node_runner::Msg::KillAll(execution)));
    }

    /// Starts a child, unless it has been started before, and tells its parent what became of that.
    pub(crate) fn start_child(
        self: &Arc<Self>,
        parent: &ActorRef<execution::Msg>,
        parent_id: ExecutionId,
        child: Child,
    ) {
        let (host, parent) = (self.clone(), parent.clone());
        tokio::spawn(async move {
            let end = host.child(parent_id, &child).await;
            drop(parent.cast(execution::Msg::Child(child.id, Box::new(end))));
        });
    }

    async fn child(self: &Arc<Self>, parent_id: ExecutionId, child: &Child) -> WaitEnd {
        loop {
            let request = StartExecution {
                workflow: child.workflow.clone(),
                version: child.version,
                trigger: "workflow",
                input: child.input.clone(),
                trigger_data: Value::Null,
                idempotency_key: None,
                parent_id: Some(parent_id),
                trace_id: None,
            };
            let refused = |code: &str, message: String| {
                WaitEnd::ChildRefused(NodeError::permanent(code, message))
            };
            match self.start_once(child.id, request).await {
                Ok(end) => return end,
                Err(
                    StartError::Store(StoreError::Fenced | StoreError::Closed)
                    | StartError::Draining,
                ) => {
                    return std::future::pending().await;
                }
                Err(StartError::Busy(_) | StartError::Store(_)) => {
                    tokio::time::sleep(Duration::from_millis(500)).await
                }
                Err(StartError::InvalidInput(violations)) => {
                    let first = violations.first().map(|violation| {
                        format!(": {}: {}", violation.path.join("."), violation.message)
                    });
                    return refused(
                        "child_refused",
                        format!(
                            "the input does not fit workflow `{}`{}",
                            child.workflow,
                            first.unwrap_or_default()
                        ),
                    );
                }
                Err(StartError::Depth) => return refused("depth", StartError::Depth.to_string()),
                Err(error) => return refused("child_refused", error.to_string()),
            }
        }
    }

    async fn start_once(
        self: &Arc<Self>,
        id: ExecutionId,
        request: StartExecution,
    ) -> Result<WaitEnd, StartError> {
        if let Some(stored) = executions::get(&self.core.db, id).await? {
            return Ok(if stored.summary.status.is_final() {
                WaitEnd::ChildEnded {
                    status: stored.summary.status,
                    output: stored.output.unwrap_or_default(),
                    error: stored.error,
                }
            } else {
                WaitEnd::ChildStarted
            });
        }
        let mut watch = self.start(id, request).await?.watch;
        watch.stored().await?;
        Ok(WaitEnd::ChildStarted)
    }

    /// Cancels a child whose parent gave it up. Best effort: a child that has ended needs nothing.
    pub(crate) fn cancel_child(self: &Arc<Self>, child: ExecutionId) {
        let host = self.clone();
        tokio::spawn(async move {
            if let Err(error) = host.cancel(child).await {
                tracing::debug!(execution = %child, %error, "a child was not cancelled");
            }
        });
    }

    /// Tells the parent, if it is in memory; else its wait is due in the store, and a claim finds it.
    pub(crate) fn child_ended(&self, parent: ExecutionId, child: ExecutionId, ended: &Ended) {
        match self.registry.actor(parent) {
            Some(actor) => {
                let Ended {
                    status,
                    output,
                    error,
                } = ended.clone();
                drop(actor.cast(execution::Msg::Child(
                    child,
                    Box::new(WaitEnd::ChildEnded {
                        status,
                        output,
                        error,
                    }),
                )));
            }
            None => self.core.pulse_now(),
        }
    }

    /// Fails an execution that cannot be carried on.
    pub(crate) fn fail(self: &Arc<Self>, id: ExecutionId, code: &'static str, reason: String) {
        let host = self.clone();
        tokio::spawn(async move {
            let Ok(Some(stored)) = executions::get(&host.core.db, id).await else {
                return;
            };
            if stored.summary.status.is_final() {
                return;
            }
            let error = json!({"code": code, "message": reason, "step": null});
            let change = ExecutionChange {
                id,
                status: ExecutionStatus::Failed,
                host_id: None,
                finished_at: Some(Utc::now()),
                output: None,
                error: Some(error.to_string()),
                parent_id: stored.summary.parent_id,
            };
            drop(host.core.journal.reopen(id.0).await);
            if let Err(refusal) = host
                .core
                .journal
                .save(id.0, vec![Write::ExecutionChanged(Box::new(change))])
                .await
            {
                tracing::error!(execution = %id, %refusal, "the execution could not even be failed");
                return;
            }
            let ended = Ended {
                status: ExecutionStatus::Failed,
                output: Value::Null,
                error: Some(error.clone()),
            };
            if let Some(parent) = stored.summary.parent_id {
                host.child_ended(parent, id, &ended);
            }
            host.registry.ended(id, ended);
            let summary = &stored.summary;
            let mut data = view::summary(
                id,
                (&summary.workflow, summary.version),
                &summary.trigger,
                "failed",
                summary.started_at,
            );
            data["error"] = error;
            host.core.events.publish(
                id.0,
                Event {
                    seq: None,
                    name: "execution.finished",
                    data: Arc::new(data),
                },
            );
        });
    }

    /// Folds an execution that this host owns. `NotFound` when it has ended or is somebody else's.
    pub(crate) async fn load(&self, id: ExecutionId) -> Result<Launch, StoreError> {
        let db = &self.core.db;
        self.core.journal.reopen(id.0).await?;
        let stored = executions::get(db, id).await?.ok_or(StoreError::NotFound)?;
        if stored.summary.status.is_final() || stored.summary.host_id != Some(self.core.host_id) {
            return Err(StoreError::NotFound);
        }
        let missing = || {
            StoreError::Corrupt(format!(
                "version {} of workflow {} is gone",
                stored.summary.version, stored.summary.workflow
            ))
        };
        let compiled = self
            .graphs
            .version(&stored.summary.workflow, stored.summary.version)
            .await?
            .ok_or_else(missing)?;
        let rows = node_runs::journal(db, id).await?;
        let waits = waits::of(db, id).await?;
        let execution =
            Execution::fold(id, compiled.graph, stored.summary.started_at, &rows, &waits)
                .map_err(|error| StoreError::Corrupt(error.to_string()))?;
        Ok(Launch {
            execution,
            row: None,
            version: stored.summary.version,
            trigger: stored.summary.trigger,
            context: Arc::new(context(stored.input, stored.trigger_data)),
            answers_list: compiled.answers_list,
            parent_id: stored.summary.parent_id,
            progress: self.registry.progress(id),
        })
    }
}

/// `$trigger`: what came with the request, and its body.
pub(super) fn context(body: Value, trigger_data: Option<Value>) -> Value {
    let mut context = match trigger_data {
        Some(Value::Object(data)) => data,
        _ => Map::new(),
    };
    context.insert("body".to_owned(), body);
    Value::Object(context)
}

/// Which executions run here, and who watches which.
#[derive(Default)]
pub(crate) struct Registry {
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    by_id: HashMap<ExecutionId, Entry>,
    running: usize,
}

struct Entry {
    actor: Option<ActorRef<execution::Msg>>,
    progress: Arc<watch::Sender<Progress>>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn running(&self) -> usize {
        self.lock().running
    }

    pub(crate) fn actor(&self, id: ExecutionId) -> Option<ActorRef<execution::Msg>> {
        self.lock()
            .by_id
            .get(&id)
            .and_then(|entry| entry.actor.clone())
    }

    pub(crate) fn is_running(&self, id: ExecutionId) -> bool {
        self.lock()
            .by_id
            .get(&id)
            .is_some_and(|entry| entry.actor.is_some())
    }

    /// Where an execution's progress is told, whether or not it runs here just now.
    pub(crate) fn progress(&self, id: ExecutionId) -> Arc<watch::Sender<Progress>> {
        let mut entries = self.lock();
        let entry = entries.by_id.entry(id).or_insert_with(|| Entry {
            actor: None,
            progress: Arc::new(watch::Sender::default()),
        });
        entry.progress.clone()
    }

    pub(crate) fn entered(
        &self,
        id: ExecutionId,
        actor: ActorRef<execution::Msg>,
        progress: Arc<watch::Sender<Progress>>,
    ) {
        let mut entries = self.lock();
        entries.running += 1;
        entries.by_id.insert(
            id,
            Entry {
                actor: Some(actor),
                progress,
            },
        );
    }

    pub(crate) fn left(&self, id: ExecutionId) {
        let mut entries = self.lock();
        let Some(entry) = entries.by_id.get_mut(&id) else {
            return;
        };
        let was_running = entry.actor.take().is_some();
        if entry.progress.receiver_count() == 0 || entry.progress.borrow().ended.is_some() {
            entries.by_id.remove(&id);
        }
        entries.running -= usize::from(was_running);
    }

    pub(crate) fn ended(&self, id: ExecutionId, ended: Ended) {
        if let Some(entry) = self.lock().by_id.remove(&id) {
            entry
                .progress
                .send_modify(|progress| progress.ended = Some(ended));
        }
    }

    /// Tells those who wait for an execution's start to be durable that it will not be.
    pub(crate) fn abandon(&self, id: ExecutionId) {
        if let Some(entry) = self
            .lock()
            .by_id
            .get(&id)
            .filter(|entry| entry.actor.is_none())
        {
            entry.progress.send_modify(|progress| {
                progress.stored.get_or_insert(Err(StoreError::Closed));
            });
        }
    }

    /// Forgets executions that do not run here and that nobody watches.
    pub(crate) fn forget_unwatched(&self) {
        self.lock()
            .by_id
            .retain(|_, entry| entry.actor.is_some() || entry.progress.receiver_count() > 0);
    }

    /// Stops every execution where it is. Nothing is lost: the store says where they are.
    pub(crate) fn stop_all(&self) {
        for entry in self.lock().by_id.values() {
            if let Some(actor) = &entry.actor {
                drop(actor.cast(execution::Msg::Fenced));
            }
        }
    }
}
