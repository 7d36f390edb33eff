//! `aggregate`: puts all items into one.

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

pub(crate) struct Aggregate;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    #[serde(default)]
    aggregate: Kind,
    #[serde(default)]
    fields_to_aggregate: Vec<Collected>,
    #[serde(default)]
    merge_lists: bool,
    #[serde(default)]
    keep_missing: bool,
    #[serde(default = "data")]
    destination_field_name: Path,
    #[serde(default)]
    include: Include,
    #[serde(default)]
    fields_to_include: Fields,
    #[serde(default)]
    fields_to_exclude: Fields,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    #[default]
    IndividualFields,
    AllItemData,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Include {
    #[default]
    AllFields,
    SpecifiedFields,
    AllFieldsExcept,
}

/// A field whose values are collected, and where they go.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
struct Collected {
    from: Path,
    into: Path,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a path, or an object with `field_to_aggregate` and `output_field_name`"
)]
enum Written {
    Plain(Path),
    Renamed(Renamed),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Renamed {
    field_to_aggregate: Path,
    output_field_name: Option<Path>,
}

impl TryFrom<Written> for Collected {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let (from, into) = match written {
            Written::Plain(from) => (from, None),
            Written::Renamed(renamed) => (renamed.field_to_aggregate, renamed.output_field_name),
        };
        let into = match into {
            Some(into) => into,
            None => Path::parse(&from.last())?,
        };
        Ok(Self { from, into })
    }
}

fn data() -> Path {
    Path::parse("data").expect("a plain name is a path")
}

impl Node for Aggregate {
    fn node_type(&self) -> NodeType {
        parameters::pure(
            "aggregate",
            "Puts all items into one: lists of the values of some fields, or a list of the items.",
            parameters::schema(
                &[],
                json!({
                    "aggregate": {
                        "enum": ["individual_fields", "all_item_data"],
                        "default": "individual_fields",
                        "description": "Whether fields or whole items are collected.",
                    },
                    "fields_to_aggregate": {
                        "type": "array",
                        "description": "With `individual_fields`: the paths to collect, each under its last name unless `output_field_name` says otherwise.",
                        "items": {"anyOf": [
                            {"type": "string"},
                            {
                                "type": "object",
                                "properties": {
                                    "field_to_aggregate": {"type": "string"},
                                    "output_field_name": {"type": "string"},
                                },
                                "required": ["field_to_aggregate"],
                                "additionalProperties": false,
                            },
                        ]},
                    },
                    "merge_lists": {
                        "type": "boolean", "default": false,
                        "description": "With `individual_fields`: whether values that are lists are put into one flat list.",
                    },
                    "keep_missing": {
                        "type": "boolean", "default": false,
                        "description": "With `individual_fields`: whether a missing value counts as null; else it is left out, as null is.",
                    },
                    "destination_field_name": {
                        "type": "string", "default": "data",
                        "description": "With `all_item_data`: where the list goes.",
                    },
                    "include": {
                        "enum": ["all_fields", "specified_fields", "all_fields_except"],
                        "default": "all_fields",
                        "description": "With `all_item_data`: which members of the items are kept; an item left without any is left out.",
                    },
                    "fields_to_include": fields::schema("The names that `specified_fields` speaks of."),
                    "fields_to_exclude": fields::schema("The names that `all_fields_except` speaks of."),
                }),
            ),
        )
    }
}

impl PureNode for Aggregate {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        let parameters: Parameters = input.parameters(0)?;
        let items = input.items();
        let json = match parameters.aggregate {
            Kind::IndividualFields => individual_fields(&parameters, items)?,
            Kind::AllItemData => all_item_data(&parameters, items),
        };
        let item = Item::new(Value::Object(json));
        // An item made from several descends from none of them in particular.
        let item = if items.len() == 1 {
            item.paired(0)
        } else {
            item
        };
        Ok(NodeOutput::main(vec![item]).into())
    }
}

fn individual_fields(
    parameters: &Parameters,
    items: &[Item],
) -> Result<Map<String, Value>, NodeError> {
    let fields = &parameters.fields_to_aggregate;
    if fields.is_empty() {
        return Err(invalid("`fields_to_aggregate` names nothing"));
    }
    let mut meter = Meter::output();
    let mut json = Map::new();
    for (i, field) in fields.iter().enumerate() {
        if fields[..i].iter().any(|other| other.into == field.into) {
            return Err(invalid(format!("two fields go to `{}`", field.into.text())));
        }
        let mut values = Vec::new();
        for item in items {
            let value = field.from.get(&item.json);
            value.map_or(Ok(()), |value| meter.take(value))?;
            collect(parameters, value, &mut values);
        }
        meter.take_bytes(field.into.padding())?;
        field.into.set(&mut json, Value::Array(values));
    }
    Ok(json)
}

fn collect(parameters: &Parameters, value: Option<&Value>, into: &mut Vec<Value>) {
    match value {
        None | Some(Value::Null) if !parameters.keep_missing => {}
        Some(Value::Array(elements)) => {
            let kept = elements
                .iter()
                .filter(|element| parameters.keep_missing || !element.is_null())
                .cloned();
            if parameters.merge_lists {
                into.extend(kept);
            } else {
                into.push(kept.collect());
            }
        }
        value => into.push(value.cloned().unwrap_or_default()),
    }
}

fn all_item_data(parameters: &Parameters, items: &[Item]) -> Map<String, Value> {
    let names = |fields: &Fields, name: &str| fields.0.iter().any(|path| path.text() == name);
    let kept = |name: &str| match parameters.include {
        Include::AllFields => true,
        Include::SpecifiedFields => names(&parameters.fields_to_include, name),
        Include::AllFieldsExcept => !names(&parameters.fields_to_exclude, name),
    };
    let all = matches!(parameters.include, Include::AllFields);
    let list = items.iter().filter_map(|item| {
        if all {
            return Some(Value::clone(&item.json));
        }
        let members: Map<_, _> = item
            .json
            .as_object()?
            .iter()
            .filter(|(name, _)| kept(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        (!members.is_empty()).then_some(Value::Object(members))
    });
    let list = Value::Array(list.collect());
    let mut json = Map::new();
    parameters.destination_field_name.set(&mut json, list);
    json
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Aggregate;
    use crate::testing::{code_of, run};

    fn aggregated(with: Value, items: Value) -> Value {
        run(&Aggregate, with, items).unwrap()["main"].clone()
    }

    #[test]
    fn fields_are_collected_under_their_last_name() {
        let items =
            json!([{"a": {"n": 1}, "l": [1, null]}, {"a": {}, "l": [2]}, {"a": {"n": null}}]);
        let with = json!({"fields_to_aggregate": ["a.n", {"field_to_aggregate": "l", "output_field_name": "lists.all"}]});
        assert_eq!(
            aggregated(with.clone(), items.clone()),
            json!([[null, {"n": [1], "lists": {"all": [[1], [2]]}}]])
        );
        let mut kept = with.clone();
        kept["keep_missing"] = json!(true);
        assert_eq!(
            aggregated(kept, items.clone()),
            json!([[null, {"n": [1, null, null], "lists": {"all": [[1, null], [2], null]}}]])
        );
        let mut merged = with;
        merged["merge_lists"] = json!(true);
        assert_eq!(
            aggregated(merged, items),
            json!([[null, {"n": [1], "lists": {"all": [1, 2]}}]])
        );
    }

    #[test]
    fn whole_items_are_collected_in_order() {
        let items = json!([{"a": 1, "b": 2}, {"b": 3}]);
        let with = |more: Value| {
            let mut with = json!({"aggregate": "all_item_data"});
            with.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            with
        };
        assert_eq!(
            aggregated(with(json!({})), items.clone()),
            json!([[null, {"data": [{"a": 1, "b": 2}, {"b": 3}]}]])
        );
        let only_a = with(
            json!({"include": "specified_fields", "fields_to_include": "a", "destination_field_name": "x"}),
        );
        assert_eq!(
            aggregated(only_a, items.clone()),
            json!([[null, {"x": [{"a": 1}]}]])
        );
        let but_b = with(json!({"include": "all_fields_except", "fields_to_exclude": ["b"]}));
        assert_eq!(
            aggregated(but_b, items),
            json!([[null, {"data": [{"a": 1}]}]])
        );
    }

    #[test]
    fn a_single_item_keeps_its_lineage_and_none_gives_an_empty_list() {
        let with = json!({"aggregate": "all_item_data"});
        assert_eq!(
            aggregated(with.clone(), json!([{"a": 1}])),
            json!([[0, {"data": [{"a": 1}]}]])
        );
        assert_eq!(aggregated(with, json!([])), json!([[null, {"data": []}]]));
        assert_eq!(
            aggregated(json!({"fields_to_aggregate": ["a"]}), json!([])),
            json!([[null, {"a": []}]])
        );
    }

    #[test]
    fn wrong_parameters_are_errors() {
        for with in [
            json!({}),
            json!({"fields_to_aggregate": ["a", "b.a"]}),
            json!({"fields_to_aggregate": [5]}),
            json!({"aggregate": "sum"}),
        ] {
            assert_eq!(
                code_of(run(&Aggregate, with, json!([{}]))),
                "invalid_parameters"
            );
        }
    }
}
