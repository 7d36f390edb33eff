//! `sort`: puts items in order.

use std::cmp::Ordering;

use callboard_runtime::node::{
    Node, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeType, PureNode,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    fields::Path,
    parameters::{self, invalid},
    values::compare,
};

pub(crate) struct Sort;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    #[serde(default, rename = "type")]
    kind: Kind,
    fields: Vec<SortField>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    #[default]
    Simple,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SortField {
    field: Path,
    #[serde(default)]
    order: Order,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    #[default]
    Ascending,
    Descending,
}

impl Node for Sort {
    fn node_type(&self) -> NodeType {
        parameters::pure(
            "sort",
            "Puts items in order; equal ones keep theirs.",
            parameters::schema(
                &["fields"],
                json!({
                    "type": {"enum": ["simple"], "default": "simple", "description": "How to sort: by fields."},
                    "fields": {
                        "type": "array",
                        "minItems": 1,
                        "description": "What to sort by, the most important first. Numbers come before text, text is \
                                        compared without regard to case, items without the field come last.",
                        "items": {
                            "type": "object",
                            "properties": {
                                "field": {"type": "string"},
                                "order": {"enum": ["ascending", "descending"], "default": "ascending"},
                            },
                            "required": ["field"],
                            "additionalProperties": false,
                        },
                    },
                }),
            ),
        )
    }
}

impl PureNode for Sort {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        let parameters: Parameters = input.parameters(0)?;
        let Kind::Simple = parameters.kind;
        if parameters.fields.is_empty() {
            return Err(invalid("`fields` names nothing to sort by"));
        }
        let mut items: Vec<_> = input.items().iter().enumerate().collect();
        items.sort_by(|(_, a), (_, b)| {
            let by_field = parameters
                .fields
                .iter()
                .map(|by| order(by, &a.json, &b.json));
            by_field.fold(Ordering::Equal, Ordering::then)
        });
        Ok(NodeOutput::main(
            items
                .into_iter()
                .map(|(i, item)| item.clone().paired(i))
                .collect(),
        )
        .into())
    }
}

fn order(by: &SortField, a: &Value, b: &Value) -> Ordering {
    let value = |json| by.field.get(json).filter(|value| !value.is_null());
    match (value(a), value(b)) {
        (Some(a), Some(b)) => match by.order {
            Order::Ascending => compare(a, b),
            Order::Descending => compare(b, a),
        },
        (a, b) => a.is_none().cmp(&b.is_none()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Sort;
    use crate::testing::{code_of, run};

    fn places(with: Value, items: Value) -> Vec<u64> {
        let sorted = run(&Sort, with, items).unwrap();
        let places = sorted["main"].as_array().unwrap().iter();
        places.map(|item| item[0].as_u64().unwrap()).collect()
    }

    #[test]
    fn items_are_sorted_by_several_fields() {
        let items = json!([{"a": {"n": 2}, "b": "x"}, {"a": {"n": 10}, "b": "Y"}, {"a": {"n": 2}, "b": "W"}]);
        let with = json!({"fields": [{"field": "a.n", "order": "descending"}, {"field": "b"}]});
        assert_eq!(places(with, items), [1, 2, 0]);
    }

    #[test]
    fn equal_items_keep_their_order_and_missing_fields_come_last() {
        let items = json!([{"k": null}, {"n": 1, "k": "a"}, {}, {"n": 1, "k": "A"}, {"k": "b"}]);
        assert_eq!(
            places(json!({"fields": [{"field": "k"}]}), items.clone()),
            [1, 3, 4, 0, 2]
        );
        let with = json!({"fields": [{"field": "k", "order": "descending"}]});
        assert_eq!(places(with, items), [4, 1, 3, 0, 2]);
    }

    #[test]
    fn wrong_parameters_are_errors() {
        for with in [
            json!({}),
            json!({"fields": []}),
            json!({"fields": [{"field": "a", "order": "up"}]}),
            json!({"fields": [{"field": "a", "x": 1}]}),
        ] {
            assert_eq!(code_of(run(&Sort, with, json!([{}]))), "invalid_parameters");
        }
    }

    #[test]
    fn no_items_give_no_items() {
        assert_eq!(
            run(&Sort, json!({"fields": [{"field": "a"}]}), json!([])),
            Ok(json!({"main": []}))
        );
    }
}
