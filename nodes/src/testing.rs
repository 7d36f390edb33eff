//! What the tests of node types share: input from JSON, output as JSON.

use std::{collections::HashMap, sync::Arc};

use callboard_runtime::{
    expression::{Scope, Template},
    id::ExecutionId,
    item::{Item, Items, PairedItem},
    node::{
        Node, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeRunIdentity, Parameters, PureNode,
    },
};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// The time every run of a test starts at.
pub(crate) fn now() -> DateTime<Utc> {
    "2026-01-31T08:00:00Z".parse().expect("a valid time")
}

fn items(values: &Value) -> Items {
    let values = values.as_array().expect("a list of items");
    Arc::new(values.iter().cloned().map(Item::new).collect())
}

/// What the engine would give a node for this `with` and these items.
pub(crate) fn input(node: &dyn Node, with: Value, values: Value) -> NodeInput {
    input_of(node, with, &[values])
}

/// [`input`] for several inputs.
pub(crate) fn input_of(node: &dyn Node, with: Value, inputs: &[Value]) -> NodeInput {
    let inputs: Vec<_> = inputs.iter().map(items).collect();
    let template = Template::compile(&with, node.verbatim()).expect("valid expressions");
    let cancel = CancellationToken::new();
    let empty = Arc::new(json!({}));
    let scope = Scope {
        input: inputs[0].clone(),
        execution: empty.clone(),
        workflow: empty.clone(),
        trigger: empty.clone(),
        vars: empty.clone(),
        env: empty,
        now: now(),
        timezone: "UTC".into(),
        run_index: 0,
        steps: HashMap::new(),
    };
    NodeInput {
        identity: NodeRunIdentity {
            execution_id: ExecutionId::new(),
            workflow: "test".into(),
            step: "step".into(),
            visit: 0,
            attempt: 1,
            idempotency_key: "execution/step/0".into(),
        },
        inputs,
        parameters: Parameters {
            template: Arc::new(template),
            scope: Arc::new(scope),
            written: Arc::new(with),
            cancel: cancel.clone(),
        },
        cancel,
        now: now(),
    }
}

/// An output as `{port: [[where it came from, json]]}`, where a place is an index, `[input, index]` or null.
pub(crate) fn seen(output: &NodeOutput) -> Value {
    let place = |paired: Option<PairedItem>| match paired {
        None => Value::Null,
        Some(PairedItem { item, input: 0 }) => json!(item),
        Some(PairedItem { item, input }) => json!([input, item]),
    };
    let items = |items: &Vec<Item>| -> Value {
        items
            .iter()
            .map(|item| json!([place(item.paired_item), *item.json]))
            .collect()
    };
    let ports = output
        .ports
        .iter()
        .map(|(port, list)| (port.to_string(), items(list)));
    Value::Object(ports.collect())
}

/// What a node that computes makes of these items.
pub(crate) fn outcome(
    node: &impl PureNode,
    with: Value,
    values: Value,
) -> Result<NodeOutcome, NodeError> {
    node.run(&input(node, with, values))
}

/// [`outcome`] as JSON; a failure as its code and message.
pub(crate) fn run(
    node: &impl PureNode,
    with: Value,
    values: Value,
) -> Result<Value, (String, String)> {
    run_inputs(node, with, &[values])
}

/// [`run`] for several inputs.
pub(crate) fn run_inputs(
    node: &impl PureNode,
    with: Value,
    inputs: &[Value],
) -> Result<Value, (String, String)> {
    shown(node.run(&input_of(node, with, inputs)))
}

/// An outcome as [`run`] shows it.
pub(crate) fn shown(outcome: Result<NodeOutcome, NodeError>) -> Result<Value, (String, String)> {
    match outcome {
        Ok(NodeOutcome::Output(output)) => Ok(seen(&output)),
        Ok(NodeOutcome::Wait(wait)) => panic!("waits: {wait:?}"),
        Err(
            NodeError::Transient { code, message, .. } | NodeError::Permanent { code, message, .. },
        ) => Err((code, message)),
        Err(NodeError::Cancelled) => Err(("cancelled".to_owned(), String::new())),
    }
}

/// The code of a run that must have failed.
pub(crate) fn code_of(shown: Result<Value, (String, String)>) -> String {
    shown.expect_err("the run did not fail").0
}
