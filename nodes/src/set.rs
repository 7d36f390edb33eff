//! `set`: gives items new members.

use callboard_runtime::{
    bounds::Meter,
    item::Item,
    node::{
        Node, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeType, ParameterFault, PureNode,
    },
};
use serde_json::{Map, Value, json};

use crate::{
    fields::{Fields, Path},
    parameters::{self, fault, invalid},
};

pub(crate) struct Set;

impl Node for Set {
    fn node_type(&self) -> NodeType {
        parameters::pure(
            "set",
            "Adds and replaces members of each item.",
            parameters::schema(
                &[],
                json!({
                    "values": {
                        "type": "object",
                        "description": "New values by path: `{total: 5, customer.name: \"{{ $json.name }}\"}`.",
                    },
                    "keep": {
                        "anyOf": [
                            {"enum": ["all", "none"]},
                            {"type": "array", "items": {"type": "string"}},
                        ],
                        "default": "all",
                        "description": "Which members of the item stay: all, none, or those at these paths.",
                    },
                }),
            ),
        )
    }

    fn check(&self, with: &Value) -> Vec<ParameterFault> {
        let values = with.get("values").and_then(Value::as_object);
        values
            .into_iter()
            .flat_map(|values| values.keys())
            .filter_map(|name| Some(fault(&["values", name], Path::parse(name).err()?)))
            .collect()
    }
}

impl PureNode for Set {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        let mut meter = Meter::output();
        let items = input.items().iter().enumerate();
        let items = items.map(|(i, item)| meter.passing(set(input, i, item)?));
        Ok(NodeOutput::main(items.collect::<Result<_, _>>()?).into())
    }
}

fn set(input: &NodeInput, index: usize, item: &Item) -> Result<Item, NodeError> {
    let mut members = kept(&item.json, input.parameters.field("keep", index)?)?;
    match input.parameters.field("values", index)? {
        Value::Null => {}
        Value::Object(values) => {
            let mut padding = Meter::output();
            for (name, value) in values {
                let path = Path::parse(&name).map_err(invalid)?;
                padding.take_bytes(path.padding())?;
                path.set(&mut members, value);
            }
        }
        _ => return Err(invalid("`values` must be an object")),
    }
    Ok(Item {
        json: Value::Object(members).into(),
        ..item.clone().paired(index)
    })
}

fn kept(json: &Value, keep: Value) -> Result<Map<String, Value>, NodeError> {
    let all = || json.as_object().cloned().unwrap_or_default();
    match keep {
        Value::Null => Ok(all()),
        Value::String(word) if word == "all" => Ok(all()),
        Value::String(word) if word == "none" => Ok(Map::new()),
        Value::Array(_) => {
            let Fields(paths) = serde_json::from_value(keep)
                .map_err(|fault| invalid(format!("`keep`: {fault}")))?;
            let mut members = Map::new();
            let mut meter = Meter::output();
            for path in paths {
                if let Some(value) = path.get(json) {
                    meter.take(value)?;
                    meter.take_bytes(path.padding())?;
                    path.set(&mut members, value.clone());
                }
            }
            Ok(members)
        }
        _ => Err(invalid("`keep` must be `all`, `none` or a list of paths")),
    }
}

#[cfg(test)]
mod tests {
    use callboard_runtime::node::Node as _;
    use serde_json::json;

    use super::Set;
    use crate::testing::{code_of, run};

    #[test]
    fn values_are_set_by_path_for_each_item() {
        let with = json!({"values": {"b.c": "{{ $json.a + 1 }}", "text": "a is {{ $json.a }}", "list[0]": true}});
        assert_eq!(
            run(&Set, with, json!([{"a": 1, "b": {"d": 0}}, {"a": 2}])),
            Ok(json!({"main": [
                [0, {"a": 1, "b": {"d": 0, "c": 2}, "text": "a is 1", "list": [true]}],
                [1, {"a": 2, "b": {"c": 3}, "text": "a is 2", "list": [true]}],
            ]}))
        );
    }

    #[test]
    fn keep_says_what_stays() {
        let items = json!([{"a": {"x": 1, "y": 2}, "b": 3}]);
        for (keep, expected) in [
            (json!("all"), json!({"a": {"x": 1, "y": 2}, "b": 3, "n": 0})),
            (json!("none"), json!({"n": 0})),
            (json!(["a.x", "missing"]), json!({"a": {"x": 1}, "n": 0})),
        ] {
            let with = json!({"values": {"n": 0}, "keep": keep});
            assert_eq!(
                run(&Set, with, items.clone()),
                Ok(json!({"main": [[0, expected]]}))
            );
        }
    }

    #[test]
    fn values_may_be_one_expression() {
        let with = json!({"values": "{{ $json.a }}", "keep": "none"});
        assert_eq!(
            run(&Set, with.clone(), json!([{"a": {"b": 1}}, {}])),
            Ok(json!({"main": [[0, {"b": 1}], [1, {}]]}))
        );
        assert_eq!(
            code_of(run(&Set, with, json!([{"a": 5}]))),
            "invalid_parameters"
        );
    }

    #[test]
    fn a_wrong_path_is_found_offline() {
        let faults = Set.check(&json!({"values": {"a..b": 1, "ok": 2}}));
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].path, ["values", "a..b"]);
        assert_eq!(
            code_of(run(&Set, json!({"values": {"a..b": 1}}), json!([{}]))),
            "invalid_parameters"
        );
    }

    #[test]
    fn no_items_give_no_items() {
        assert_eq!(
            run(&Set, json!({"values": {"a": 1}}), json!([])),
            Ok(json!({"main": []}))
        );
    }
}
