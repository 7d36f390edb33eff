//! `switch`: sends each item to one of several ports.

use std::sync::Arc;

use callboard_runtime::{
    item::Item,
    node::{
        ERROR, Node, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeType, ParameterFault,
        Ports, PureNode,
    },
};
use serde_json::{Map, Value, json};

use crate::{
    parameters::{self, constant_condition, fault, invalid},
    values::{same, text, truthy},
};

/// Where items go that nothing matches.
const DEFAULT: &str = "default";
/// Ports that one run may use when the value names them.
const PORTS_MAX: usize = 256;
/// Bytes of a port's name.
const PORT_BYTES_MAX: usize = 128;

pub(crate) struct Switch;

impl Node for Switch {
    fn node_type(&self) -> NodeType {
        parameters::pure(
            "switch",
            "Sends each item to the port of the first case or rule that fits, else to `default`.",
            parameters::schema(
                &[],
                json!({
                    "value": {"description": "What is compared with `cases`; without `cases` its text is the port."},
                    "cases": {
                        "type": "object",
                        "description": "Ports by name, each with the value that leads there.",
                    },
                    "rules": {
                        "type": "object",
                        "description": "Ports by name, each with a condition; the first that holds wins.",
                    },
                }),
            ),
        )
    }

    fn ports(&self, with: &Value) -> Ports {
        match with.get("cases").or_else(|| with.get("rules")) {
            Some(Value::Object(ports)) => {
                let mut names: Vec<_> = ports.keys().cloned().collect();
                if !ports.contains_key(DEFAULT) {
                    names.push(DEFAULT.to_owned());
                }
                Ports::Named(names)
            }
            _ => Ports::Open,
        }
    }

    fn check(&self, with: &Value) -> Vec<ParameterFault> {
        let (value, cases, rules) = (with.get("value"), with.get("cases"), with.get("rules"));
        let mut faults = Vec::new();
        match (value, cases, rules) {
            (_, Some(_), Some(_)) | (Some(_), None, Some(_)) => {
                faults.push(fault(
                    &["rules"],
                    "`rules` stands alone: leave out `value` and `cases`",
                ));
            }
            (None, _, None) => faults.push(fault(&[], "Either `value` or `rules` is needed")),
            _ => {}
        }
        for (parameter, ports) in [("cases", cases), ("rules", rules)] {
            for (port, when) in ports.and_then(Value::as_object).into_iter().flatten() {
                if let Err(message) = check_port(port) {
                    faults.push(fault(&[parameter, port], message));
                } else if parameter == "rules" {
                    faults.extend(constant_condition(when, &[parameter, port]));
                }
            }
        }
        faults
    }
}

fn check_port(port: &str) -> Result<(), String> {
    if port.is_empty() || port.len() > PORT_BYTES_MAX {
        Err(format!("A port's name has 1 to {PORT_BYTES_MAX} bytes"))
    } else if port == ERROR {
        Err("The port `error` is for failed steps".to_owned())
    } else {
        Ok(())
    }
}

impl PureNode for Switch {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        let mut ports: Vec<(Arc<str>, Vec<Item>)> = Vec::new();
        for (i, item) in input.items().iter().enumerate() {
            let port = port(input, i)?;
            let item = item.clone().paired(i);
            match ports.iter().position(|(name, _)| **name == *port) {
                Some(known) => ports[known].1.push(item),
                None if ports.len() == PORTS_MAX => {
                    return Err(invalid(format!(
                        "the items name more than {PORTS_MAX} ports"
                    )));
                }
                None => ports.push((port.into(), vec![item])),
            }
        }
        Ok(NodeOutput {
            ports,
            response: None,
        }
        .into())
    }
}

fn port(input: &NodeInput, index: usize) -> Result<String, NodeError> {
    let parameters = &input.parameters;
    let first = |ports: Map<String, Value>, fits: &dyn Fn(&Value) -> bool| {
        let found = ports.into_iter().find(|(_, when)| fits(when));
        found.map_or_else(|| DEFAULT.to_owned(), |(port, _)| port)
    };
    if parameters.written("rules").is_some() {
        return Ok(first(object(input, "rules", index)?, &truthy));
    }
    let value = parameters.field("value", index)?;
    if parameters.written("cases").is_some() {
        return Ok(first(object(input, "cases", index)?, &|case| {
            same(case, &value)
        }));
    }
    match value {
        Value::Null => Ok(DEFAULT.to_owned()),
        Value::String(text) if text.is_empty() => Ok(DEFAULT.to_owned()),
        Value::Array(_) | Value::Object(_) => Err(invalid(
            "`value` is a list or an object, which names no port",
        )),
        value => {
            let port = text(&value);
            check_port(&port).map_err(invalid)?;
            Ok(port)
        }
    }
}

fn object(input: &NodeInput, name: &str, index: usize) -> Result<Map<String, Value>, NodeError> {
    match input.parameters.field(name, index)? {
        Value::Object(ports) => Ok(ports),
        _ => Err(invalid(format!("`{name}` must be an object"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{code_of, run};

    fn named(ports: &[&str]) -> Ports {
        Ports::Named(ports.iter().map(|port| (*port).to_owned()).collect())
    }

    #[test]
    fn cases_are_compared_with_the_value() {
        let with =
            json!({"value": "{{ $json.kind }}", "cases": {"one": 1, "gold": "gold", "none": null}});
        assert_eq!(
            run(
                &Switch,
                with.clone(),
                json!([{"kind": "gold"}, {"kind": 1.0}, {"kind": "1"}, {"kind": "gold"}, {}])
            ),
            Ok(json!({
                "gold": [[0, {"kind": "gold"}], [3, {"kind": "gold"}]],
                "one": [[1, {"kind": 1.0}]],
                "default": [[2, {"kind": "1"}]],
                "none": [[4, {}]],
            }))
        );
        assert_eq!(
            Switch.ports(&with),
            named(&["one", "gold", "none", "default"])
        );
    }

    #[test]
    fn the_first_rule_that_holds_wins() {
        let with = json!({"rules": {"big": "{{ $json.n > 10 }}", "some": "{{ $json.n > 0 }}"}});
        assert_eq!(
            run(
                &Switch,
                with.clone(),
                json!([{"n": 0}, {"n": 5}, {"n": 50}])
            ),
            Ok(
                json!({"default": [[0, {"n": 0}]], "some": [[1, {"n": 5}]], "big": [[2, {"n": 50}]]})
            )
        );
        assert_eq!(Switch.ports(&with), named(&["big", "some", "default"]));
    }

    #[test]
    fn without_cases_the_text_of_the_value_is_the_port() {
        let with = json!({"value": "{{ $json.to }}"});
        assert_eq!(
            run(
                &Switch,
                with.clone(),
                json!([{"to": "a"}, {"to": 2}, {"to": true}, {"to": ""}, {}])
            ),
            Ok(json!({
                "a": [[0, {"to": "a"}]],
                "2": [[1, {"to": 2}]],
                "true": [[2, {"to": true}]],
                "default": [[3, {"to": ""}], [4, {}]],
            }))
        );
        assert_eq!(Switch.ports(&with), Ports::Open);
        for to in [json!([1]), json!("error"), json!("x".repeat(200))] {
            assert_eq!(
                code_of(run(&Switch, with.clone(), json!([{"to": to}]))),
                "invalid_parameters"
            );
        }
        assert_eq!(run(&Switch, with, json!([])), Ok(json!({})));
    }

    #[test]
    fn parameters_that_contradict_each_other_are_found_offline() {
        for with in [
            json!({}),
            json!({"cases": {"a": 1}}),
            json!({"value": 1, "rules": {"a": "{{ 1 }}"}}),
            json!({"cases": {"a": 1}, "rules": {"a": "{{ 1 }}"}}),
            json!({"rules": {"a": "$json.x"}}),
            json!({"value": 1, "cases": {"": 1}}),
            json!({"value": 1, "cases": {"error": 1}}),
        ] {
            assert_eq!(Switch.check(&with).len(), 1, "{with}");
        }
        assert_eq!(Switch.check(&json!({"value": 1, "cases": {"a": 1}})), []);
    }
}
