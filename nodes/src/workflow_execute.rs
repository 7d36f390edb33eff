//! `workflow.execute`: runs another workflow. The engine starts it exactly once for a visit of this step.

use callboard_runtime::node::{
    EffectClass, Node, NodeError, NodeInput, NodeOutcome, NodeType, PureNode, Wait,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::parameters::{self, invalid};

pub(crate) struct WorkflowExecute;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    workflow: String,
    #[serde(default)]
    input: Value,
    version: Option<i32>,
    #[serde(default = "yes")]
    wait: bool,
}

fn yes() -> bool {
    true
}

impl Node for WorkflowExecute {
    fn node_type(&self) -> NodeType {
        NodeType {
            effect: EffectClass::Effectful,
            ..parameters::pure(
                "workflow.execute",
                "Runs another workflow and goes on with its output.",
                parameters::schema(
                    &["workflow"],
                    json!({
                        "workflow": {"type": "string", "minLength": 1, "description": "Its name."},
                        "input": {
                            "description": "Its input, as it reads for the first item; a list is one item per element. All items when left out.",
                        },
                        "version": {"type": "integer", "minimum": 1, "description": "The version to run; the current one when left out."},
                        "wait": {
                            "type": "boolean", "default": true,
                            "description": "Whether to wait for its end; else `{execution_id}` leaves at once.",
                        },
                    }),
                ),
            )
        }
    }
}

impl PureNode for WorkflowExecute {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        let parameters: Parameters = input.parameters(0)?;
        if parameters.workflow.is_empty() {
            return Err(invalid("`workflow` names no workflow"));
        }
        if parameters.version.is_some_and(|version| version < 1) {
            return Err(invalid("`version` must be at least 1"));
        }
        let child_input = match (input.parameters.written("input"), input.items().as_slice()) {
            (Some(_), _) => parameters.input,
            (None, [item]) => Value::clone(&item.json),
            (None, items) => items.iter().map(|item| Value::clone(&item.json)).collect(),
        };
        Ok(NodeOutcome::Wait(Wait::Child {
            workflow: parameters.workflow,
            version: parameters.version,
            input: child_input,
            wait: parameters.wait,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{code_of, outcome, run};

    fn child(with: Value, items: Value) -> Wait {
        match outcome(&WorkflowExecute, with, items) {
            Ok(NodeOutcome::Wait(wait)) => wait,
            other => panic!("{other:?}"),
        }
    }

    fn with_input(input: Value) -> Wait {
        Wait::Child {
            workflow: "sub".to_owned(),
            version: None,
            input,
            wait: true,
        }
    }

    #[test]
    fn the_items_are_the_input_unless_one_is_given() {
        let with = json!({"workflow": "sub"});
        assert_eq!(
            child(with.clone(), json!([{"a": 1}])),
            with_input(json!({"a": 1}))
        );
        assert_eq!(
            child(with.clone(), json!([{"a": 1}, {"a": 2}])),
            with_input(json!([{"a": 1}, {"a": 2}]))
        );
        assert_eq!(child(with, json!([])), with_input(json!([])));
        let with = json!({"workflow": "sub", "input": {"x": "{{ $json.a }}"}});
        assert_eq!(
            child(with, json!([{"a": 1}, {"a": 2}])),
            with_input(json!({"x": 1}))
        );
        let with = json!({"workflow": "sub", "input": "{{ $json.missing }}"});
        assert_eq!(child(with, json!([{"a": 1}])), with_input(json!(null)));
    }

    #[test]
    fn version_and_waiting_are_passed_on() {
        let with = json!({"workflow": "{{ $json.to }}", "version": 3, "wait": false});
        assert_eq!(
            child(with, json!([{"to": "other"}])),
            Wait::Child {
                workflow: "other".to_owned(),
                version: Some(3),
                input: json!({"to": "other"}),
                wait: false
            }
        );
    }

    #[test]
    fn wrong_parameters_are_errors() {
        for with in [
            json!({}),
            json!({"workflow": "{{ '' }}"}),
            json!({"workflow": "a", "version": 0}),
            json!({"workflow": "a", "x": 1}),
        ] {
            assert_eq!(
                code_of(run(&WorkflowExecute, with, json!([{}]))),
                "invalid_parameters"
            );
        }
    }
}
