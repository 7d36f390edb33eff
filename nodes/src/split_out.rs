//! `split_out`: makes an item of each element of a list inside an item.

use callboard_runtime::{
    bounds::Meter,
    item::Item,
    node::{Node, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeType, PureNode},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    fields::{self, Fields, Path},
    parameters::{self, invalid},
};

pub(crate) struct SplitOut;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    field_to_split_out: Fields,
    #[serde(default)]
    include: Include,
    #[serde(default)]
    fields_to_include: Fields,
    #[serde(default)]
    destination_field_name: Fields,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
enum Include {
    #[default]
    #[serde(rename = "no_other_fields")]
    Nothing,
    #[serde(rename = "all_other_fields")]
    Everything,
    #[serde(rename = "selected_other_fields")]
    Selected,
}

impl Node for SplitOut {
    fn node_type(&self) -> NodeType {
        parameters::pure(
            "split_out",
            "Makes an item of each element of a list inside an item.",
            parameters::schema(
                &["field_to_split_out"],
                json!({
                    "field_to_split_out": fields::schema(
                        "The list, by path; several are walked side by side. An object is split into its values, anything else is one element.",
                    ),
                    "include": {
                        "enum": ["no_other_fields", "all_other_fields", "selected_other_fields"],
                        "default": "no_other_fields",
                        "description": "What the new items get of the old one besides the element.",
                    },
                    "fields_to_include": fields::schema("The paths that `selected_other_fields` speaks of."),
                    "destination_field_name": fields::schema(
                        "The new items' member for the element, one per list. Without it an element that is an object becomes the item, and others go under the list's path.",
                    ),
                }),
            ),
        )
    }
}

impl PureNode for SplitOut {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        let mut meter = Meter::output();
        let mut items = Vec::new();
        for (i, item) in input.items().iter().enumerate() {
            let parameters: Parameters = input.parameters(i)?;
            check(&parameters)?;
            for own in split(&parameters, &item.json)? {
                let json = Value::Object(with_others(&parameters, &item.json, own)?);
                items.push(meter.passing(Item::new(json).paired(i))?);
            }
        }
        Ok(NodeOutput::main(items).into())
    }
}

fn check(parameters: &Parameters) -> Result<(), NodeError> {
    let lists = parameters.field_to_split_out.0.len();
    let names = parameters.destination_field_name.0.len();
    if lists == 0 {
        return Err(invalid("`field_to_split_out` names nothing"));
    }
    if names != 0 && names != lists {
        return Err(invalid(
            "`destination_field_name` must name as many fields as `field_to_split_out`",
        ));
    }
    if parameters.include == Include::Selected && parameters.fields_to_include.0.is_empty() {
        return Err(invalid("`fields_to_include` names nothing"));
    }
    Ok(())
}

/// What the new items get of the lists themselves.
fn split(parameters: &Parameters, json: &Value) -> Result<Vec<Map<String, Value>>, NodeError> {
    let mut meter = Meter::output();
    let lists = &parameters.field_to_split_out.0;
    let names = &parameters.destination_field_name.0;
    let becomes_item =
        lists.len() == 1 && names.is_empty() && parameters.include == Include::Nothing;
    let mut split: Vec<Map<String, Value>> = Vec::new();
    for (list, path) in lists.iter().enumerate() {
        let name = names.get(list).unwrap_or(path).text();
        for (i, element) in elements(path, json).into_iter().enumerate() {
            meter.take(element)?;
            if i == split.len() {
                split.push(Map::new());
            }
            match element {
                Value::Object(members) if becomes_item => split[i] = members.clone(),
                element => {
                    split[i].insert(name.to_owned(), element.clone());
                }
            }
        }
    }
    Ok(split)
}

fn elements<'v>(path: &Path, json: &'v Value) -> Vec<&'v Value> {
    match path.get(json) {
        None => Vec::new(),
        Some(Value::Array(elements)) => elements.iter().collect(),
        Some(Value::Object(members)) => members.values().collect(),
        Some(other) => vec![other],
    }
}

fn with_others(
    parameters: &Parameters,
    json: &Value,
    own: Map<String, Value>,
) -> Result<Map<String, Value>, NodeError> {
    Ok(match parameters.include {
        Include::Nothing => own,
        Include::Everything => {
            let mut all = json.as_object().cloned().unwrap_or_default();
            for path in &parameters.field_to_split_out.0 {
                path.remove(&mut all);
            }
            all.extend(own);
            all
        }
        Include::Selected => {
            let mut all = own;
            let mut meter = Meter::output();
            for path in &parameters.fields_to_include.0 {
                if let Some(value) = path.get(json) {
                    meter.take(value)?;
                    all.insert(path.text().to_owned(), value.clone());
                }
            }
            all
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::SplitOut;
    use crate::testing::{code_of, run};

    fn split(with: Value, items: Value) -> Value {
        run(&SplitOut, with, items).unwrap()["main"].clone()
    }

    #[test]
    fn elements_become_items_that_know_where_they_came_from() {
        let items = json!([{"list": [{"a": 1}, {"a": 2}]}, {"list": []}, {"other": 1}, {"list": [{"a": 3}]}]);
        assert_eq!(
            split(json!({"field_to_split_out": "list"}), items),
            json!([[0, {"a": 1}], [0, {"a": 2}], [3, {"a": 3}]])
        );
    }

    #[test]
    fn elements_that_are_no_objects_go_under_a_name() {
        let items = json!([{"x": {"list": [1, null, [2]]}}]);
        assert_eq!(
            split(json!({"field_to_split_out": "x.list"}), items.clone()),
            json!([[0, {"x.list": 1}], [0, {"x.list": null}], [0, {"x.list": [2]}]])
        );
        assert_eq!(
            split(
                json!({"field_to_split_out": "x.list", "destination_field_name": "n"}),
                items
            ),
            json!([[0, {"n": 1}], [0, {"n": null}], [0, {"n": [2]}]])
        );
    }

    #[test]
    fn an_object_is_split_into_its_values_and_a_scalar_is_one_element() {
        assert_eq!(
            split(
                json!({"field_to_split_out": "o"}),
                json!([{"o": {"a": 1, "b": {"c": 2}}}, {"o": 5}])
            ),
            json!([[0, {"o": 1}], [0, {"c": 2}], [1, {"o": 5}]])
        );
    }

    #[test]
    fn other_fields_come_along_when_asked() {
        let items = json!([{"list": [{"a": 1}], "x": {"y": 1, "z": 2}, "w": 3}]);
        assert_eq!(
            split(
                json!({"field_to_split_out": "list", "include": "all_other_fields"}),
                items.clone()
            ),
            json!([[0, {"x": {"y": 1, "z": 2}, "w": 3, "list": {"a": 1}}]])
        );
        let with = json!({"field_to_split_out": "list", "include": "selected_other_fields", "fields_to_include": "w, x.y, q"});
        assert_eq!(
            split(with, items),
            json!([[0, {"list": {"a": 1}, "w": 3, "x.y": 1}]])
        );
    }

    #[test]
    fn several_lists_are_walked_side_by_side() {
        let items = json!([{"a": [1, 2], "b": [{"c": 3}], "d": 0}]);
        assert_eq!(
            split(
                json!({"field_to_split_out": ["a", "b"], "destination_field_name": ["x", "y"]}),
                items.clone()
            ),
            json!([[0, {"x": 1, "y": {"c": 3}}], [0, {"x": 2}]])
        );
        assert_eq!(
            split(
                json!({"field_to_split_out": "a, b", "include": "all_other_fields"}),
                items
            ),
            json!([[0, {"d": 0, "a": 1, "b": {"c": 3}}], [0, {"d": 0, "a": 2}]])
        );
    }

    #[test]
    fn wrong_parameters_are_errors() {
        for with in [
            json!({}),
            json!({"field_to_split_out": ""}),
            json!({"field_to_split_out": "a, b", "destination_field_name": "x"}),
            json!({"field_to_split_out": "a", "include": "selected_other_fields"}),
            json!({"field_to_split_out": "a", "include": "none"}),
        ] {
            assert_eq!(
                code_of(run(&SplitOut, with, json!([{}]))),
                "invalid_parameters"
            );
        }
        assert_eq!(
            split(json!({"field_to_split_out": "a"}), json!([])),
            json!([])
        );
    }
}
