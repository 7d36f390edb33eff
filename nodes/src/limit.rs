//! `limit`: keeps the first or the last items.

use callboard_runtime::node::{
    Node, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeType, PureNode,
};
use serde::Deserialize;
use serde_json::json;

use crate::parameters;

pub(crate) struct Limit;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    #[serde(default = "one")]
    max_items: usize,
    #[serde(default)]
    keep: Keep,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Keep {
    #[default]
    FirstItems,
    LastItems,
}

fn one() -> usize {
    1
}

impl Node for Limit {
    fn node_type(&self) -> NodeType {
        parameters::pure(
            "limit",
            "Keeps at most so many items.",
            parameters::schema(
                &[],
                json!({
                    "max_items": {"type": "integer", "minimum": 0, "default": 1, "description": "How many items are kept."},
                    "keep": {
                        "enum": ["first_items", "last_items"],
                        "default": "first_items",
                        "description": "Which end they are taken from.",
                    },
                }),
            ),
        )
    }
}

impl PureNode for Limit {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        let parameters: Parameters = input.parameters(0)?;
        let len = input.items().len();
        let skipped = match parameters.keep {
            Keep::FirstItems => 0,
            Keep::LastItems => len.saturating_sub(parameters.max_items),
        };
        let items = input.items().iter().enumerate();
        let kept = items.skip(skipped).take(parameters.max_items);
        Ok(NodeOutput::main(kept.map(|(i, item)| item.clone().paired(i)).collect()).into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Limit;
    use crate::testing::{code_of, run};

    fn items() -> Value {
        json!([{"n": 0}, {"n": 1}, {"n": 2}])
    }

    #[test]
    fn items_are_kept_from_either_end() {
        for (with, kept) in [
            (json!({}), json!([[0, {"n": 0}]])),
            (
                json!({"max_items": 2}),
                json!([[0, {"n": 0}], [1, {"n": 1}]]),
            ),
            (
                json!({"max_items": 2, "keep": "last_items"}),
                json!([[1, {"n": 1}], [2, {"n": 2}]]),
            ),
            (
                json!({"max_items": "{{ 1 + 1 }}", "keep": "last_items"}),
                json!([[1, {"n": 1}], [2, {"n": 2}]]),
            ),
            (json!({"max_items": 0}), json!([])),
        ] {
            assert_eq!(
                run(&Limit, with.clone(), items()),
                Ok(json!({"main": kept})),
                "{with}"
            );
        }
        let all = run(
            &Limit,
            json!({"max_items": 9, "keep": "last_items"}),
            items(),
        )
        .unwrap();
        assert_eq!(all["main"].as_array().unwrap().len(), 3);
        assert_eq!(run(&Limit, json!({}), json!([])), Ok(json!({"main": []})));
    }

    #[test]
    fn a_wrong_number_is_an_error() {
        for with in [
            json!({"max_items": "{{ 'x' }}"}),
            json!({"max_items": -1}),
            json!({"keep": "some"}),
        ] {
            assert_eq!(code_of(run(&Limit, with, items())), "invalid_parameters");
        }
    }
}
