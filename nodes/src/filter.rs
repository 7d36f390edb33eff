//! `filter`: keeps the items a condition holds for.

use callboard_runtime::node::{
    Node, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeType, ParameterFault, PureNode,
};
use serde_json::{Value, json};

use crate::{
    parameters::{self, constant_condition},
    values::truthy,
};

pub(crate) struct Filter;

impl Node for Filter {
    fn node_type(&self) -> NodeType {
        parameters::pure(
            "filter",
            "Keeps the items that a condition holds for.",
            parameters::schema(
                &["condition"],
                json!({"condition": {"description": "Holds when it is truthy in JavaScript's sense: `{{ $json.active }}`."}}),
            ),
        )
    }

    fn check(&self, with: &Value) -> Vec<ParameterFault> {
        let condition = with.get("condition");
        condition
            .and_then(|value| constant_condition(value, &["condition"]))
            .into_iter()
            .collect()
    }
}

impl PureNode for Filter {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        let mut kept = Vec::new();
        for (i, item) in input.items().iter().enumerate() {
            if truthy(&input.parameters.field("condition", i)?) {
                kept.push(item.clone().paired(i));
            }
        }
        Ok(NodeOutput::main(kept).into())
    }
}

#[cfg(test)]
mod tests {
    use callboard_runtime::node::Node as _;
    use serde_json::json;

    use super::Filter;
    use crate::testing::run;

    #[test]
    fn kept_items_know_where_they_were() {
        let with = json!({"condition": "{{ $json.keep }}"});
        assert_eq!(
            run(
                &Filter,
                with.clone(),
                json!([{"keep": ""}, {"keep": "x"}, {"keep": 0}, {"keep": []}])
            ),
            Ok(json!({"main": [[1, {"keep": "x"}], [3, {"keep": []}]]}))
        );
        assert_eq!(run(&Filter, with, json!([])), Ok(json!({"main": []})));
    }

    #[test]
    fn a_condition_without_an_expression_is_a_mistake() {
        assert_eq!(Filter.check(&json!({"condition": "true"})).len(), 1);
    }
}
