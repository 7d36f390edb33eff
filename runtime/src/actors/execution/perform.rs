//! Starting node runs: here when they are pure and small, else at the node runner.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use ractor::ActorRef;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{ExecutionActor, Msg, Report, State, finished};
use crate::{
    actors::node_runner::{self, COMPUTING_TIME_MAX},
    bounds::{ITEMS_MAX, Meter},
    expression::{self, Scope},
    item::{Item, Items},
    model::{
        execution::{Decision, Effect, Event, RunKey},
        graph::{Action, Step},
    },
    node::{AnyNode, NodeError, NodeInput, NodeRunIdentity, Parameters},
};

/// How often the lease is looked at while effects wait for it.
const LEASE_POLL: Duration = Duration::from_millis(200);
/// Up to how many items a pure node runs inside the actor.
const INLINE_ITEMS_MAX: usize = 256;

impl ExecutionActor {
    pub(super) fn start(
        &self,
        myself: &ActorRef<Msg>,
        state: &mut State,
        events: &mut VecDeque<Event>,
        key: RunKey,
        attempt: u32,
    ) {
        if !state.execution.is_current(key, attempt) {
            return;
        }
        let now = Utc::now();
        let step = state.execution.step(key);
        let Action::Node(node) = &step.action else {
            return;
        };
        let (node, timeout) = (node.clone(), step.timeout);
        let inline = is_inline(&node, step);
        if !inline && !matches!(node, AnyNode::Pure(_)) && !self.host.core.may_start_effects() {
            // The lease ran out: effects wait until it is renewed, or until this host is fenced.
            state.without_lease.push((key, attempt));
            myself.send_after(LEASE_POLL, || Msg::LeaseMayBeBack);
            return;
        }
        let input = self.node_input(state, key, attempt, now);
        self.publish_node_started(state, key, attempt, now);
        let few = input.inputs.iter().map(|items| items.len()).sum::<usize>() <= INLINE_ITEMS_MAX;
        match node {
            AnyNode::Pure(node) if inline && few => {
                let outcome = node.run(&input);
                events.push_back(finished(Report {
                    key,
                    attempt,
                    outcome,
                    started_at: now,
                    finished_at: Utc::now(),
                }));
            }
            node => {
                state.began.insert(key, now);
                self.host.run_node(node_runner::Request {
                    execution: myself.clone(),
                    key,
                    node,
                    input,
                    timeout,
                });
            }
        }
    }

    /// Starts what waited for the lease; what still must wait comes back here.
    pub(super) fn start_without_lease(&self, myself: &ActorRef<Msg>, state: &mut State) {
        let effects = std::mem::take(&mut state.without_lease)
            .into_iter()
            .map(|(key, attempt)| Effect::Start {
                key,
                attempt,
                barrier: false,
            })
            .collect();
        let decision = Decision {
            effects,
            ..Decision::default()
        };
        self.run(myself, state, decision, VecDeque::new());
    }

    /// Finds out the elements of a map.
    pub(super) fn expand(
        &self,
        myself: &ActorRef<Msg>,
        state: &mut State,
        events: &mut VecDeque<Event>,
        key: RunKey,
    ) {
        let now = Utc::now();
        let input = self.node_input(state, key, 1, now);
        self.publish_node_started(state, key, 1, now);
        if state.execution.step(key).template.is_native() {
            events.push_back(Event::MapExpanded {
                key,
                elements: elements(&input),
                at: now,
            });
            return;
        }
        let to = myself.clone();
        tokio::spawn(async move {
            // However this ends, the thread stops at the next input item.
            let _guard = input.cancel.clone().drop_guard();
            let work = expression::elsewhere(move || elements(&input));
            let elements = match tokio::time::timeout(COMPUTING_TIME_MAX, work).await {
                Ok(Some(elements)) => elements,
                Ok(None) => Err(node_runner::panicked()),
                Err(_) => Err(node_runner::timed_out(COMPUTING_TIME_MAX)),
            };
            drop(to.cast(Msg::Expanded(key, Box::new(elements))));
        });
    }

    fn node_input(
        &self,
        state: &State,
        key: RunKey,
        attempt: u32,
        now: DateTime<Utc>,
    ) -> NodeInput {
        let execution = &state.execution;
        let step = execution.step(key);
        let inputs = execution.inputs(key);
        let key_text = execution.key_text(key);
        let cancel = CancellationToken::new();
        let scope = self.scope(state, key, step, &inputs, now);
        NodeInput {
            identity: NodeRunIdentity {
                execution_id: execution.id(),
                workflow: execution.graph().name.clone(),
                step: step.id.clone(),
                visit: key.visit,
                attempt,
                idempotency_key: format!("{}/{key_text}", execution.id()).into(),
            },
            inputs,
            parameters: Parameters {
                template: step.template.clone(),
                scope: Arc::new(scope),
                written: step.with.clone(),
                cancel: cancel.clone(),
            },
            cancel,
            now,
        }
    }

    fn scope(
        &self,
        state: &State,
        key: RunKey,
        step: &Step,
        inputs: &[Items],
        now: DateTime<Utc>,
    ) -> Scope {
        let steps = state
            .execution
            .step_outputs(key, step.template.references());
        Scope {
            input: inputs.first().cloned().unwrap_or_default(),
            execution: state.about.0.clone(),
            workflow: state.about.1.clone(),
            trigger: state.context.clone(),
            vars: self.host.vars.clone(),
            env: self.host.env.clone(),
            now,
            timezone: state.execution.graph().settings.timezone.clone(),
            run_index: key.visit,
            steps,
        }
    }
}

fn is_inline(node: &AnyNode, step: &Step) -> bool {
    match node {
        AnyNode::Pure(node) => !node.may_be_slow() && step.template.is_native(),
        AnyNode::Async(_) => false,
    }
}

/// The elements of a map: what `items` gives for each input item, else the input items themselves.
fn elements(input: &NodeInput) -> Result<Vec<Item>, NodeError> {
    let items = input.items();
    if input.parameters.written("items").is_none() {
        return Ok(items
            .iter()
            .enumerate()
            .map(|(index, item)| item.clone().paired(index))
            .collect());
    }
    let mut meter = Meter::output();
    let mut elements = Vec::new();
    for index in 0..items.len() {
        match input.parameters.field("items", index)? {
            Value::Array(values) if elements.len() + values.len() > ITEMS_MAX => {
                let message = format!("items: a map takes at most {ITEMS_MAX} elements");
                return Err(NodeError::permanent("invalid_parameters", message));
            }
            Value::Array(values) => {
                for value in values {
                    elements.push(meter.passing(Item::new(value).paired(index))?);
                }
            }
            other => {
                let message = format!("items: expected a list, not {}", kind(&other));
                return Err(NodeError::permanent("invalid_parameters", message));
            }
        }
    }
    Ok(elements)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
