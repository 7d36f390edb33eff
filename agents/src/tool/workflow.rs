//! A workflow as a tool: the model's arguments are its input, its output is the result.

use std::time::Duration;

use async_trait::async_trait;
use callboard_runtime::{
    documents::Documents,
    executions::{Ended, Executions, StartError, StartExecution, Started},
    id::ExecutionId,
    model::graph::Trigger,
    store::{StoreError, rows::ExecutionStatus},
    tool::{Tool, ToolContext, ToolError, ToolSpec},
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::model::agent::ToolSource;

/// How long one look at an execution lasts: it is followed again until the call's own timeout ends it.
const LOOK: Duration = Duration::from_secs(60);
/// How long a call waits for the host to have room, or for the database to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// What it waits between two tries when the database gave no answer.
const RETRY: Duration = Duration::from_millis(500);

/// Starts a workflow once per call, whatever happens in between, and waits for its end. A cancelled call cancels it.
pub struct WorkflowTool {
    spec: ToolSpec,
    workflow: String,
    executions: Executions,
}

impl WorkflowTool {
    /// A tool over a workflow as it is now.
    pub fn new(
        source: &ToolSource,
        workflow: &str,
        executions: Executions,
        documents: &Documents,
    ) -> Self {
        let described = || {
            let stored = documents.find("Workflow", workflow)?;
            let text = stored.body["metadata"]["description"].as_str()?;
            Some(text.to_owned())
        };
        Self {
            spec: ToolSpec {
                name: source.name.clone(),
                description: source
                    .description
                    .clone()
                    .or_else(described)
                    .unwrap_or_else(|| format!("Runs the workflow `{workflow}`.")),
                parameters: parameters(&executions, workflow),
                on_crash: source.on_crash,
                exclusive: source.exclusive,
                timeout: source.timeout,
            },
            workflow: workflow.to_owned(),
            executions,
        }
    }
}

/// The workflow's input schema, when it is one of objects; else any object.
fn parameters(executions: &Executions, workflow: &str) -> Value {
    let any = || json!({"type": "object"});
    let Some(graph) = executions.graph(workflow) else {
        return any();
    };
    let schema = graph.triggers.iter().find_map(|trigger| match trigger {
        Trigger::Manual { input_schema } => input_schema.clone(),
        Trigger::Webhook(webhook) => webhook.input_schema.clone(),
    });
    schema
        .filter(|schema| schema["type"] == "object")
        .unwrap_or_else(any)
}

#[async_trait]
impl Tool for WorkflowTool {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, context: ToolContext, arguments: Value) -> Result<Value, ToolError> {
        let parent_id = self
            .executions
            .origin(context.session_id)
            .await
            .map_err(|error| refused(error.into()))?;
        let request = StartExecution {
            workflow: self.workflow.clone(),
            version: None,
            trigger: "agent",
            input: arguments,
            trigger_data: Value::Null,
            idempotency_key: Some(context.idempotency_key.to_string()),
            parent_id,
            trace_id: None,
        };
        let mut started = tokio::select! {
            started = self.start(request) => started?,
            () = context.cancel.cancelled() => return Err(cancelled()),
        };
        let mut guard = CancelOnDrop {
            executions: &self.executions,
            cancel: &context.cancel,
            id: Some(started.id),
        };
        let ended = loop {
            tokio::select! {
                ended = started.watch.ended(LOOK) => if let Some(ended) = ended { break ended },
                () = context.cancel.cancelled() => return Err(cancelled()),
            }
        };
        guard.id = None;
        outcome(ended)
    }
}

impl WorkflowTool {
    /// Starts the execution; its key makes it harmless to try again. Never comes back when the host is stopping or was
    /// fenced: that is no result of the call, which is dropped with the host, and the next owner makes it again.
    async fn start(&self, request: StartExecution) -> Result<Started, ToolError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match self.executions.start(request.clone()).await {
                Ok(started) => return Ok(started),
                Err(error) => error,
            };
            let wait = match &error {
                StartError::Draining
                | StartError::Store(StoreError::Closed | StoreError::Fenced) => {
                    std::future::pending().await
                }
                StartError::Busy(wait) => *wait,
                StartError::Store(StoreError::Unconfirmed(_)) => RETRY,
                _ => return Err(refused(error)),
            };
            if Instant::now() + wait > deadline {
                return Err(refused(error));
            }
            tokio::time::sleep(wait).await;
        }
    }
}

fn cancelled() -> ToolError {
    ToolError::new("cancelled", "the call was cancelled")
}

/// Cancels an execution whose call is not wanted any more. A call that is dropped without having been cancelled belongs
/// to a session that goes on elsewhere and will join the same execution.
struct CancelOnDrop<'a> {
    executions: &'a Executions,
    cancel: &'a CancellationToken,
    id: Option<ExecutionId>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id.filter(|_| self.cancel.is_cancelled()) else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let executions = self.executions.clone();
        runtime.spawn(async move {
            if let Err(error) = executions.cancel(id).await {
                tracing::debug!(%id, %error, "the execution of a cancelled call was not cancelled");
            }
        });
    }
}

fn refused(error: StartError) -> ToolError {
    match error {
        StartError::Depth => ToolError::new("depth", error.to_string()),
        StartError::UnknownWorkflow(_) => ToolError::new("not_found", error.to_string()),
        StartError::InvalidInput(violations) => {
            let text: Vec<_> = violations
                .iter()
                .take(10)
                .map(|violation| format!("{}: {}", violation.path.join("."), violation.message))
                .collect();
            ToolError::new("invalid_args", text.join("; "))
        }
        other => ToolError::new("failed", other.to_string()),
    }
}

fn outcome(ended: Ended) -> Result<Value, ToolError> {
    match ended.status {
        ExecutionStatus::Succeeded => Ok(ended.output),
        ExecutionStatus::Cancelled => Err(ToolError::new("failed", "the workflow was cancelled")),
        _ => {
            let error = ended.error.unwrap_or_default();
            let code = error["code"].as_str().unwrap_or("failed");
            let message = error["message"].as_str().unwrap_or("the workflow failed");
            Err(ToolError::new("failed", format!("{code}: {message}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_workflow_is_a_failed_call_that_says_why() {
        let ended = |status, error| Ended {
            status,
            output: json!({"a": 1}),
            error,
        };
        assert_eq!(
            outcome(ended(ExecutionStatus::Succeeded, None)),
            Ok(json!({"a": 1}))
        );
        let error = json!({"code": "http_status", "message": "HTTP 500"});
        assert_eq!(
            outcome(ended(ExecutionStatus::Failed, Some(error))),
            Err(ToolError::new("failed", "http_status: HTTP 500"))
        );
        assert!(outcome(ended(ExecutionStatus::Cancelled, None)).is_err());
    }
}
