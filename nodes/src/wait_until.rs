//! `wait.until`: goes on at a point in time.

use callboard_runtime::{
    duration::DURATION_MAX,
    node::{Node, NodeError, NodeInput, NodeOutcome, NodeType, ParameterFault, PureNode, Wait},
};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::parameters::{self, fault, invalid, is_expression};

pub(crate) struct WaitUntil;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    time: String,
}

impl Node for WaitUntil {
    fn node_type(&self) -> NodeType {
        parameters::pure(
            "wait.until",
            "Waits until a point in time, at no cost, then passes its items on.",
            parameters::schema(
                &["time"],
                json!({"time": {
                    "type": "string",
                    "description": "RFC 3339 with a zone, such as 2030-01-31T08:00:00Z; a past one is over at once. An expression is read once, for the first item.",
                }}),
            ),
        )
    }

    fn check(&self, with: &Value) -> Vec<ParameterFault> {
        let written = with.get("time").filter(|value| !is_expression(value));
        let parsed = written.and_then(Value::as_str).map(time);
        parsed
            .and_then(Result::err)
            .map(|message| fault(&["time"], message))
            .into_iter()
            .collect()
    }
}

fn time(text: &str) -> Result<DateTime<Utc>, String> {
    let time = DateTime::parse_from_rfc3339(text.trim());
    time.map(|time| time.to_utc())
        .map_err(|_| format!("expected a time such as 2030-01-31T08:00:00Z, not `{text}`"))
}

impl PureNode for WaitUntil {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        let parameters: Parameters = input.parameters(0)?;
        let wake_at = time(&parameters.time).map_err(invalid)?;
        if (wake_at - input.now)
            .to_std()
            .is_ok_and(|ahead| ahead > DURATION_MAX)
        {
            return Err(invalid("`time` is more than ten years ahead"));
        }
        Ok(NodeOutcome::Wait(Wait::Until(wake_at)))
    }
}

#[cfg(test)]
mod tests {
    use callboard_runtime::node::Node as _;
    use serde_json::json;

    use super::*;
    use crate::testing::{code_of, outcome, run};

    #[test]
    fn it_waits_until_the_time_of_the_first_item() {
        let expected: DateTime<Utc> = "2026-03-01T06:30:00Z".parse().unwrap();
        for with in [
            json!({"time": "2026-03-01T08:30:00.000+02:00"}),
            json!({"time": "{{ $json.at }}"}),
        ] {
            match outcome(
                &WaitUntil,
                with,
                json!([{"at": "2026-03-01T06:30:00Z"}, {"at": "x"}]),
            ) {
                Ok(NodeOutcome::Wait(wait)) => assert_eq!(wait, Wait::Until(expected)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_wrong_time_is_found_offline_or_when_it_is_known() {
        assert_eq!(WaitUntil.check(&json!({"time": "2026-03-01"})).len(), 1);
        assert_eq!(WaitUntil.check(&json!({"time": "{{ $json.at }}"})), []);
        for with in [
            json!({"time": "{{ 'tomorrow' }}"}),
            json!({"time": "2999-01-01T00:00:00Z"}),
            json!({}),
        ] {
            assert_eq!(
                code_of(run(&WaitUntil, with, json!([{}]))),
                "invalid_parameters"
            );
        }
    }
}
