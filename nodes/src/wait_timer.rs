//! `wait.timer`: goes on after a while.

use std::time::Duration;

use callboard_runtime::{
    duration,
    node::{Node, NodeError, NodeInput, NodeOutcome, NodeType, ParameterFault, PureNode, Wait},
};
use chrono::TimeDelta;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::parameters::{self, fault, invalid, is_expression};

pub(crate) struct WaitTimer;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    #[serde(deserialize_with = "duration::deserialize")]
    duration: Duration,
}

impl Node for WaitTimer {
    fn node_type(&self) -> NodeType {
        parameters::pure(
            "wait.timer",
            "Waits for a while, at no cost, then passes its items on.",
            parameters::schema(
                &["duration"],
                json!({"duration": {
                    "type": "string",
                    "description": "How long, such as 30s, 5m or 2d. An expression is read once, for the first item.",
                }}),
            ),
        )
    }

    fn check(&self, with: &Value) -> Vec<ParameterFault> {
        let written = with.get("duration").filter(|value| !is_expression(value));
        let parsed = written.and_then(Value::as_str).map(duration::parse);
        parsed
            .and_then(Result::err)
            .map(|message| fault(&["duration"], message))
            .into_iter()
            .collect()
    }
}

impl PureNode for WaitTimer {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        let parameters: Parameters = input.parameters(0)?;
        let wake_at = TimeDelta::from_std(parameters.duration)
            .ok()
            .and_then(|delta| input.now.checked_add_signed(delta))
            .ok_or_else(|| invalid("`duration` leads past the end of time"))?;
        Ok(NodeOutcome::Wait(Wait::Until(wake_at)))
    }
}

#[cfg(test)]
mod tests {
    use callboard_runtime::node::Node as _;
    use serde_json::json;

    use super::*;
    use crate::testing::{code_of, now, outcome, run};

    #[test]
    fn it_waits_from_now_on() {
        for with in [
            json!({"duration": "90s"}),
            json!({"duration": "{{ $json.n }}s"}),
        ] {
            match outcome(&WaitTimer, with, json!([{"n": 90}, {"n": 5}])) {
                Ok(NodeOutcome::Wait(wait)) => {
                    assert_eq!(wait, Wait::Until(now() + TimeDelta::seconds(90)));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_wrong_duration_is_found_offline_or_when_it_is_known() {
        assert_eq!(WaitTimer.check(&json!({"duration": "soon"})).len(), 1);
        assert_eq!(WaitTimer.check(&json!({"duration": "{{ $json.n }}s"})), []);
        for with in [
            json!({"duration": "{{ 'soon' }}"}),
            json!({"duration": "{{ 5 }}"}),
            json!({}),
        ] {
            assert_eq!(
                code_of(run(&WaitTimer, with, json!([{}]))),
                "invalid_parameters"
            );
        }
    }
}
