//! The handle through which executions are started, watched and cancelled.

use std::{sync::Arc, time::Duration};

use futures_util::stream::BoxStream;
use serde_json::Value;

use crate::{
    events::Event,
    id::ExecutionId,
    model::graph::Graph,
    node::Response,
    store::{StoreError, rows::ExecutionStatus},
};

/// Starts, watches and cancels executions on this host. Cloning it is cheap; all clones are one.
#[derive(Clone)]
pub struct Executions {}

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
    /// Who started it, when an execution did.
    pub parent_id: Option<ExecutionId>,
    /// From the request.
    pub trace_id: Option<String>,
}

/// An execution that was started, or found under its idempotency key. It is durable.
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

/// Follows one execution to its answer or end. Dropping it changes nothing.
pub struct Watch {}

impl Watch {
    /// The end, once it is durable. `None` when it has not ended within `timeout`.
    pub async fn ended(&mut self, timeout: Duration) -> Option<Ended> {
        let _ = timeout;
        unimplemented!()
    }

    /// What a `respond` step answered, or the end without an answer, whichever is first.
    pub async fn responded(&mut self, timeout: Duration) -> Option<Result<Response, Ended>> {
        let _ = timeout;
        unimplemented!()
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
    InvalidInput(Vec<crate::schema::Violation>),
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
    /// Starts an execution. Returns when it is durable.
    pub async fn start(&self, request: StartExecution) -> Result<Started, StartError> {
        let _ = request;
        unimplemented!()
    }

    /// Starts an execution whose caller waits for the end anyway: returns before it is durable, so that start
    /// and end may be one commit. Use [`Watch`] before telling anybody about it.
    pub async fn start_watched(&self, request: StartExecution) -> Result<Started, StartError> {
        let _ = request;
        unimplemented!()
    }

    /// Follows an execution by id.
    pub async fn watch(&self, id: ExecutionId) -> Result<Watch, ActionError> {
        let _ = id;
        unimplemented!()
    }

    /// The execution's events after `after` (a `seq` as sent before): first the stored ones, then live ones without
    /// gap or duplicate. Ends with `execution.finished`.
    pub async fn events(
        &self,
        id: ExecutionId,
        after: Option<i64>,
    ) -> Result<BoxStream<'static, Event>, ActionError> {
        let _ = (id, after);
        unimplemented!()
    }

    /// Ends an execution as `cancelled`. Returns when that is durable.
    pub async fn cancel(&self, id: ExecutionId) -> Result<(), ActionError> {
        let _ = id;
        unimplemented!()
    }

    /// The compiled current version of a workflow, from memory.
    pub fn graph(&self, workflow: &str) -> Option<Arc<Graph>> {
        let _ = workflow;
        unimplemented!()
    }
}
