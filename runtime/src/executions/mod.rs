//! The handle through which executions are started, watched and cancelled.

mod host;
mod tail;
pub mod view;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use ractor::Actor;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout_at},
};

pub(crate) use self::host::Host;
use crate::{
    actors::{
        execution::{self, Launch},
        execution_manager::{self as manager, ExecutionManager},
        node_runner::NodeRunner,
    },
    bounds::{Excess, ITEMS_MAX, Meter},
    core::Core,
    events::Event,
    graphs::{Compiled, Graphs},
    id::{ExecutionId, SessionId},
    model::{execution::Execution, graph::Graph},
    node::{NodeRegistry, Response},
    schema::Violation,
    store::{
        StoreError,
        executions::{self, KeyHolder},
        rows::{ExecutionStatus, NewExecution, Write},
        sessions,
    },
};

/// The place of `execution.started`, which has no row: before the first one.
pub(crate) const STARTED_SEQ: i64 = -1;
/// How often the store is asked about an execution that is watched, in case word from its actor does not come.
const POLL: Duration = Duration::from_secs(2);
/// How long a caller waits for its start to become durable.
const STORED_MAX: Duration = Duration::from_secs(10);
/// How many executions may follow from each other, each started by a step or a tool of the one before.
pub(crate) const GENERATIONS_MAX: i32 = 20;
/// How long a cancel looks for the execution's owner.
const CANCEL_MAX: Duration = Duration::from_secs(10);

/// Starts, watches and cancels executions on this host. Cloning it is cheap; all clones are one.
#[derive(Clone)]
pub struct Executions {
    host: Arc<Host>,
}

/// What is needed to start an execution.
#[derive(Clone, Debug)]
pub struct StartExecution {
    /// Name of the workflow.
    pub workflow: String,
    /// A version, or the current one.
    pub version: Option<i32>,
    /// `manual`, `webhook`, `workflow`, `agent`, …
    pub trigger: &'static str,
    /// The body. A list is one item per element.
    pub input: Value,
    /// `$trigger` besides `body`: query, headers, params, method, path. `Null` when there is none.
    pub trigger_data: Value,
    /// The same key and input give the same execution; another input is refused.
    pub idempotency_key: Option<String>,
    /// Who started it, when an execution did: by one of its steps, or by an agent that one of its steps asked.
    pub parent_id: Option<ExecutionId>,
    /// From the request.
    pub trace_id: Option<String>,
}

/// An execution that was started, or found under its idempotency key.
pub struct Started {
    /// Its id.
    pub id: ExecutionId,
    /// The version it runs.
    pub version: i32,
    /// It was there already.
    pub existing: bool,
    /// What it comes to, as far as this process sees it.
    pub watch: Watch,
}

/// How an execution ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// One of the final ones.
    pub status: ExecutionStatus,
    /// The last step's item, or all its items as a list.
    pub output: Value,
    /// `{code, message, step}`.
    pub error: Option<Value>,
}

/// What is known of an execution in this process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Whether its start is durable, or cannot be.
    pub(crate) stored: Option<Result<(), StoreError>>,
    pub(crate) response: Option<Response>,
    pub(crate) ended: Option<Ended>,
}

/// Follows one execution to its answer or end. Dropping it changes nothing.
pub struct Watch {
    id: ExecutionId,
    db: PgPool,
    progress: watch::Receiver<Progress>,
}

impl Watch {
    /// The end, once it is durable. `None` when it has not ended within `timeout`.
    pub async fn ended(&mut self, timeout: Duration) -> Option<Ended> {
        self.until(timeout, |progress| progress.ended.clone()).await
    }

    /// What a `respond` step answered, or the end without an answer, whichever is first.
    pub async fn responded(&mut self, timeout: Duration) -> Option<Result<Response, Ended>> {
        self.until(timeout, |progress| {
            let response = progress.response.clone().map(Ok);
            response.or_else(|| progress.ended.clone().map(Err))
        })
        .await
    }

    /// Returns when the start is durable, or cannot be. `Unconfirmed` when that is not known after 10 s: it may
    /// yet become durable and run.
    pub async fn stored(&mut self) -> Result<(), StoreError> {
        let stored = self.progress.wait_for(|progress| progress.stored.is_some());
        let Ok(stored) = tokio::time::timeout(STORED_MAX, stored).await else {
            return Err(StoreError::Unconfirmed(
                "the start is not confirmed".to_owned(),
            ));
        };
        stored.map_or(Err(StoreError::Closed), |progress| {
            progress.stored.clone().unwrap_or(Ok(()))
        })
    }

    async fn until<T>(
        &mut self,
        timeout: Duration,
        found: impl Fn(&Progress) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(value) = found(&self.progress.borrow_and_update()) {
                return Some(value);
            }
            let poll = Instant::now() + POLL;
            match timeout_at(deadline.min(poll), self.progress.changed()).await {
                Ok(Ok(())) => {}
                // Nobody here will say any more: the store does.
                Ok(Err(_)) => {
                    if let Some(value) = self.look_up().await.and_then(|progress| found(&progress))
                    {
                        return Some(value);
                    }
                    tokio::time::sleep_until(deadline.min(poll)).await;
                }
                Err(_) => {
                    if let Some(value) = self.look_up().await.and_then(|progress| found(&progress))
                    {
                        return Some(value);
                    }
                }
            }
            if Instant::now() >= deadline {
                return None;
            }
        }
    }

    async fn look_up(&self) -> Option<Progress> {
        let stored = executions::get(&self.db, self.id).await.ok()??;
        stored.summary.status.is_final().then(|| Progress {
            stored: Some(Ok(())),
            response: None,
            ended: Some(Ended {
                status: stored.summary.status,
                output: stored.output.unwrap_or_default(),
                error: stored.error,
            }),
        })
    }
}

/// Why an execution was not started.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StartError {
    /// No workflow of this name, or no such version.
    #[error("there is no workflow `{0}`")]
    UnknownWorkflow(String),
    /// It is disabled.
    #[error("workflow `{0}` is disabled")]
    Disabled(String),
    /// The input does not fit the workflow's schema.
    #[error("the input does not fit")]
    InvalidInput(Vec<Violation>),
    /// The input is more than an execution may start with.
    #[error("the input is too large: {0}")]
    TooLarge(Excess),
    /// It would be one more in a long line of executions that start each other.
    #[error("{GENERATIONS_MAX} executions have followed from each other, and no further one may")]
    Depth,
    /// The idempotency key was used with another input.
    #[error("the idempotency key was used before with another input")]
    KeyReused,
    /// The host runs all it can: try again after this long.
    #[error("too many executions are running")]
    Busy(Duration),
    /// The host is stopping.
    #[error("this host is draining")]
    Draining,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why something could not be done to an execution.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ActionError {
    /// There is no such execution.
    #[error("there is no execution {0}")]
    NotFound(ExecutionId),
    /// It has ended: nothing can change it.
    #[error("the execution is {}", .0.as_str())]
    Final(ExecutionStatus),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Executions {
    /// Starts the execution manager of this host. What dead hosts left is adopted from now on.
    pub async fn start_manager(
        core: Core,
        nodes: Arc<NodeRegistry>,
    ) -> Result<Self, ractor::SpawnErr> {
        let graphs = Graphs::new(core.documents.clone(), nodes);
        let mut pulse = core.pulse.clone();
        let host = Arc::new(Host::new(core, graphs));
        let (runner, _) = NodeRunner::spawn(None, NodeRunner, ()).await?;
        let (manager, _) =
            ExecutionManager::spawn(None, ExecutionManager { host: host.clone() }, ()).await?;
        host.set_actors(manager.clone(), runner);
        tokio::spawn(async move {
            while manager.cast(manager::Msg::Pulse).is_ok() && pulse.changed().await.is_ok() {}
        });
        Ok(Self { host })
    }

    /// Starts an execution. Returns when it is durable.
    pub async fn start(&self, request: StartExecution) -> Result<Started, StartError> {
        let mut started = self.start_watched(request).await?;
        started.watch.stored().await?;
        Ok(started)
    }

    /// Starts an execution whose caller waits for the end anyway: returns before it is durable, so that start
    /// and end may be one commit. Use [`Watch`] before telling anybody about it.
    pub async fn start_watched(&self, request: StartExecution) -> Result<Started, StartError> {
        self.host.start(ExecutionId::new(), request).await
    }

    /// Follows an execution by id.
    pub async fn watch(&self, id: ExecutionId) -> Result<Watch, ActionError> {
        let stored = executions::get(&self.host.core.db, id)
            .await?
            .ok_or(ActionError::NotFound(id))?;
        let progress = if stored.summary.status.is_final() {
            Arc::new(watch::Sender::default())
        } else {
            self.host.registry.progress(id)
        };
        Ok(self.host.watch(id, &progress))
    }

    /// The execution's events after `after` (a `seq` as sent before): first the stored ones, then live ones without
    /// gap or duplicate. Ends with `execution.finished`.
    pub async fn events(
        &self,
        id: ExecutionId,
        after: Option<i64>,
    ) -> Result<BoxStream<'static, Event>, ActionError> {
        tail::events(&self.host, id, after).await
    }

    /// Ends an execution as `cancelled`. Returns when that is durable.
    pub async fn cancel(&self, id: ExecutionId) -> Result<(), ActionError> {
        self.host.cancel(id).await
    }

    /// The execution whose step opened a session, if one did: the parent of what the session starts.
    pub async fn origin(&self, session: SessionId) -> Result<Option<ExecutionId>, StoreError> {
        let stored = sessions::get(&self.host.core.db, session).await?;
        Ok(stored.and_then(|stored| stored.execution_id))
    }

    /// The compiled current version of a workflow, from memory.
    pub fn graph(&self, workflow: &str) -> Option<Arc<Graph>> {
        self.host
            .graphs
            .current(workflow)
            .ok()?
            .map(|(compiled, _)| compiled.graph)
    }

    /// All node types of this process.
    pub fn nodes(&self) -> &Arc<NodeRegistry> {
        self.host.graphs.nodes()
    }

    /// How many executions run here.
    pub fn running(&self) -> usize {
        self.host.registry.running()
    }

    /// From now on starts nothing but what running work asks for: children of executions and tools of agents.
    pub fn close(&self) {
        self.host.draining.store(true, Ordering::Relaxed);
    }

    /// Closes, and gives executions that run up to `timeout` to end or to come to a wait. What runs longer is stopped
    /// where it is; the next host resumes it.
    pub async fn drain(&self, timeout: Duration) {
        self.close();
        let deadline = Instant::now() + timeout;
        while self.running() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.host.registry.stop_all();
    }
}

/// What an execution starts with is its first output: one item per element of a list.
fn check_size(request: &StartExecution) -> Result<(), StartError> {
    if request
        .input
        .as_array()
        .is_some_and(|list| list.len() > ITEMS_MAX)
    {
        return Err(StartError::TooLarge(Excess::Items));
    }
    let mut meter = Meter::output();
    let taken = meter
        .take(&request.input)
        .and_then(|()| meter.take(&request.trigger_data));
    taken.map_err(StartError::TooLarge)
}

impl Host {
    fn watch(&self, id: ExecutionId, progress: &watch::Sender<Progress>) -> Watch {
        Watch {
            id,
            db: self.core.db.clone(),
            progress: progress.subscribe(),
        }
    }

    pub(crate) async fn start(
        self: &Arc<Self>,
        id: ExecutionId,
        mut request: StartExecution,
    ) -> Result<Started, StartError> {
        let is_running_work = matches!(request.trigger, "workflow" | "agent");
        if self.draining.load(Ordering::Relaxed) && !is_running_work {
            return Err(StartError::Draining);
        }
        if !self.core.journal.is_connected() || !self.core.may_start_effects() {
            return Err(StoreError::Unconfirmed("it does not answer just now".to_owned()).into());
        }
        if self.capacity() == 0 {
            return Err(StartError::Busy(Duration::from_secs(1)));
        }
        let compiled = self.workflow(&request).await?;
        // The front has checked what a webhook takes: each of them may have a schema of its own.
        if request.trigger != "webhook"
            && let Some(schema) = &compiled.input_schema
        {
            let violations = schema.violations(&request.input);
            if !violations.is_empty() {
                return Err(StartError::InvalidInput(violations));
            }
            request.input = schema.with_defaults(request.input);
        }
        check_size(&request)?;
        self.check_line(&request).await?;
        let row = self.row(id, compiled.version, &request);
        if row.idempotency_key.is_some() {
            if let Some(existing) = self.claim_key(&row).await? {
                return Ok(existing);
            }
            // Its row is stored: the actor need not write it again.
            return Ok(self.launch(id, compiled, request, row.started_at, None));
        }
        Ok(self.launch(id, compiled, request, row.started_at, Some(row)))
    }

    /// Refuses what has no end: workflows that start each other, or themselves, directly or by way of agents.
    async fn check_line(&self, request: &StartExecution) -> Result<(), StartError> {
        let Some(parent) = request.parent_id else {
            return Ok(());
        };
        match executions::generation(&self.core.db, parent, GENERATIONS_MAX).await? {
            GENERATIONS_MAX => Err(StartError::Depth),
            _ => Ok(()),
        }
    }

    async fn workflow(&self, request: &StartExecution) -> Result<Compiled, StartError> {
        let name = &request.workflow;
        let unknown = || StartError::UnknownWorkflow(name.clone());
        let (current, enabled) = self.graphs.current(name)?.ok_or_else(unknown)?;
        if !enabled {
            return Err(StartError::Disabled(name.clone()));
        }
        match request.version {
            None => Ok(current),
            Some(version) if version == current.version => Ok(current),
            Some(version) => self
                .graphs
                .version(name, version)
                .await?
                .ok_or_else(unknown),
        }
    }

    fn row(&self, id: ExecutionId, version: i32, request: &StartExecution) -> Box<NewExecution> {
        let input = request.input.to_string();
        let input_hash = request
            .idempotency_key
            .as_ref()
            .map(|_| Sha256::digest(&input).to_vec());
        Box::new(NewExecution {
            id,
            workflow: request.workflow.clone(),
            version,
            trigger: request.trigger.to_owned(),
            status: ExecutionStatus::Running,
            host_id: Some(self.core.host_id),
            input,
            trigger_data: (!request.trigger_data.is_null())
                .then(|| request.trigger_data.to_string()),
            parent_id: request.parent_id,
            retry_of: None,
            idempotency_key: request.idempotency_key.clone(),
            input_hash,
            trace_id: request.trace_id.clone(),
            started_at: Utc::now(),
        })
    }

    /// Stores the row under its idempotency key. Gives the execution that has the key already, if there is one.
    async fn claim_key(&self, row: &NewExecution) -> Result<Option<Started>, StartError> {
        let key = row.idempotency_key.as_deref().unwrap_or_default();
        let find = || executions::find_by_key(&self.core.db, &row.workflow, key);
        let mut holder = find().await?;
        if holder.is_none() {
            self.core
                .journal
                .save(
                    row.id.0,
                    vec![Write::ExecutionStarted(Box::new(row.clone()))],
                )
                .await?;
            holder = find().await?;
        }
        let KeyHolder {
            id,
            version,
            input_hash,
        } = holder.ok_or(StoreError::NotFound)?;
        if id == row.id {
            return Ok(None);
        }
        if input_hash.as_deref() != row.input_hash.as_deref() {
            return Err(StartError::KeyReused);
        }
        let progress = self.registry.progress(id);
        progress.send_modify(|progress| progress.stored = Some(Ok(())));
        Ok(Some(Started {
            id,
            version,
            existing: true,
            watch: self.watch(id, &progress),
        }))
    }

    fn launch(
        &self,
        id: ExecutionId,
        compiled: Compiled,
        request: StartExecution,
        started_at: DateTime<Utc>,
        row: Option<Box<NewExecution>>,
    ) -> Started {
        let progress = Arc::new(watch::Sender::new(Progress {
            stored: row.is_none().then_some(Ok(())),
            ..Progress::default()
        }));
        let watch = self.watch(id, &progress);
        let trigger_data = (!request.trigger_data.is_null()).then_some(request.trigger_data);
        let launch = Launch {
            execution: Execution::new(id, compiled.graph, started_at),
            row,
            version: compiled.version,
            trigger: request.trigger.to_owned(),
            context: Arc::new(host::context(request.input, trigger_data)),
            answers_list: compiled.answers_list,
            parent_id: request.parent_id,
            progress,
        };
        // Fails only while the process stops; then nothing was promised yet.
        drop(self.manager().cast(manager::Msg::Launch(Box::new(launch))));
        Started {
            id,
            version: compiled.version,
            existing: false,
            watch,
        }
    }

    pub(crate) async fn cancel(self: &Arc<Self>, id: ExecutionId) -> Result<(), ActionError> {
        let deadline = Instant::now() + CANCEL_MAX;
        loop {
            if let Some(actor) = self.registry.actor(id) {
                let (reply, answer) = oneshot::channel();
                if actor.cast(execution::Msg::Cancel(reply)).is_ok()
                    && let Ok(answer) = answer.await
                {
                    return answer;
                }
            }
            let stored = executions::get(&self.core.db, id)
                .await?
                .ok_or(ActionError::NotFound(id))?;
            if stored.summary.status.is_final() {
                return Err(ActionError::Final(stored.summary.status));
            }
            if stored.summary.status == ExecutionStatus::Waiting
                && executions::claim_waiting(&self.core.db, self.core.host_id, id).await?
            {
                drop(self.manager().cast(manager::Msg::Activate(id)));
            }
            if Instant::now() > deadline {
                return Err(StoreError::Unconfirmed(
                    "the execution's owner does not answer".to_owned(),
                )
                .into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
