//! A node as a tool: the model's arguments are `$json` of its parameters.

use std::sync::Arc;

use async_trait::async_trait;
use callboard_runtime::{
    bounds::Meter,
    expression::{self, Scope},
    id::ExecutionId,
    item::Item,
    node::{
        AnyNode, MAIN, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeRunIdentity, Parameters,
    },
    tool::{Tool, ToolContext, ToolError, ToolSpec},
};
use chrono::Utc;
use serde_json::{Value, json};

use crate::model::agent::{NodeTarget, ToolSource};

/// How much of a failure's details the model is told, in bytes of JSON.
const DETAILS_BYTES_MAX: usize = 2 * 1024;

/// Runs a node once per call. The result is what left on the main port: an object, or a list when there were several
/// items or none.
pub struct NodeTool {
    spec: ToolSpec,
    target: NodeTarget,
    env: Arc<Value>,
}

impl NodeTool {
    /// A tool over a compiled node.
    pub fn new(source: &ToolSource, target: NodeTarget, env: Arc<Value>) -> Self {
        let own = || target.node.node().node_type().summary.to_owned();
        Self {
            spec: ToolSpec {
                name: source.name.clone(),
                description: source.description.clone().unwrap_or_else(own),
                parameters: target.parameters.clone(),
                on_crash: source.on_crash,
                exclusive: source.exclusive,
                timeout: source.timeout,
            },
            target,
            env,
        }
    }

    fn input(&self, context: &ToolContext, arguments: Value) -> NodeInput {
        let now = Utc::now();
        let items = Arc::new(vec![Item::new(arguments)]);
        let session = context.session_id.to_string();
        let scope = Scope {
            input: Arc::clone(&items),
            execution: Arc::new(json!({"id": session, "mode": "agent"})),
            workflow: Arc::default(),
            trigger: Arc::default(),
            vars: Arc::new(json!({})),
            env: Arc::clone(&self.env),
            now,
            timezone: "UTC".into(),
            run_index: 0,
            steps: Default::default(),
        };
        NodeInput {
            identity: NodeRunIdentity {
                // A session stands in for the execution: both are unique among each other.
                execution_id: ExecutionId(context.session_id.0),
                workflow: session.into(),
                step: self.spec.name.as_str().into(),
                visit: 0,
                attempt: 1,
                idempotency_key: Arc::clone(&context.idempotency_key),
            },
            inputs: vec![items],
            parameters: Parameters {
                template: Arc::clone(&self.target.template),
                scope: Arc::new(scope),
                written: Arc::clone(&self.target.with),
                cancel: context.cancel.clone(),
            },
            cancel: context.cancel.clone(),
            now,
        }
    }
}

#[async_trait]
impl Tool for NodeTool {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, context: ToolContext, arguments: Value) -> Result<Value, ToolError> {
        let input = self.input(&context, arguments);
        let outcome = match &self.target.node {
            AnyNode::Async(node) => node.run(input).await,
            AnyNode::Pure(node) => {
                // It may run a script, which must not hold up the runtime.
                let node = Arc::clone(node);
                expression::elsewhere(move || node.run(&input))
                    .await
                    .ok_or_else(|| ToolError::new("failed", "the node panicked"))?
            }
        };
        match outcome {
            Ok(NodeOutcome::Output(output)) => bounded(result(output)),
            Ok(NodeOutcome::Wait(_)) => Err(ToolError::new(
                "failed",
                "this node waits, which a tool cannot",
            )),
            Err(error) => Err(describe(error)),
        }
    }
}

/// Only what can be read back from the journal.
fn bounded(result: Value) -> Result<Value, ToolError> {
    match Meter::output().take(&result) {
        Ok(()) => Ok(result),
        Err(excess) => Err(describe(excess.into())),
    }
}

fn result(output: NodeOutput) -> Value {
    let ports = output.ports;
    let main = ports
        .into_iter()
        .filter(|(port, _)| &**port == MAIN)
        .flat_map(|(_, items)| items);
    let mut items: Vec<Value> = main.map(|item| Arc::unwrap_or_clone(item.json)).collect();
    match items.len() {
        1 => items.remove(0),
        _ => Value::Array(items),
    }
}

/// A node's failure as the model reads it.
fn describe(error: NodeError) -> ToolError {
    match error {
        NodeError::Cancelled => ToolError::new("cancelled", "the call was cancelled"),
        NodeError::Transient {
            code,
            message,
            details,
            ..
        }
        | NodeError::Permanent {
            code,
            message,
            details,
        } => {
            let details = details
                .map(|details| details.to_string())
                .filter(|details| details.len() <= DETAILS_BYTES_MAX)
                .map(|details| format!(" {details}"))
                .unwrap_or_default();
            ToolError::new("failed", format!("{code}: {message}{details}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_item_is_an_object_and_several_are_a_list() {
        let items = |n: i64| (0..n).map(|i| Item::new(json!({"i": i}))).collect();
        assert_eq!(result(NodeOutput::main(items(1))), json!({"i": 0}));
        assert_eq!(
            result(NodeOutput::main(items(2))),
            json!([{"i": 0}, {"i": 1}])
        );
        assert_eq!(result(NodeOutput::main(items(0))), json!([]));
    }

    #[test]
    fn a_failure_tells_code_message_and_details() {
        let error = describe(NodeError::Permanent {
            code: "http_status".to_owned(),
            message: "HTTP 404".to_owned(),
            details: Some(Box::new(json!({"status": 404}))),
        });
        assert_eq!(error.code, "failed");
        assert_eq!(error.message, "http_status: HTTP 404 {\"status\":404}");
    }
}
