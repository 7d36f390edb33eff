//! `if`: sends each item one of two ways.

use callboard_runtime::node::{
    Node, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeType, ParameterFault, Ports, PureNode,
};
use serde_json::{Value, json};

use crate::{
    parameters::{self, constant_condition},
    values::truthy,
};

const TRUE: &str = "true";
const FALSE: &str = "false";

pub(crate) struct If;

impl Node for If {
    fn node_type(&self) -> NodeType {
        parameters::pure(
            "if",
            "Sends each item to `true` or `false`.",
            parameters::schema(
                &["condition"],
                json!({"condition": {"description": "Holds when it is truthy in JavaScript's sense: `{{ $json.total > 100 }}`."}}),
            ),
        )
    }

    fn ports(&self, _with: &Value) -> Ports {
        Ports::Named(vec![TRUE.to_owned(), FALSE.to_owned()])
    }

    fn check(&self, with: &Value) -> Vec<ParameterFault> {
        let condition = with.get("condition");
        condition
            .and_then(|value| constant_condition(value, &["condition"]))
            .into_iter()
            .collect()
    }
}

impl PureNode for If {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        let (mut holds, mut fails) = (Vec::new(), Vec::new());
        for (i, item) in input.items().iter().enumerate() {
            let condition = input.parameters.field("condition", i)?;
            let port = if truthy(&condition) {
                &mut holds
            } else {
                &mut fails
            };
            port.push(item.clone().paired(i));
        }
        Ok(NodeOutput {
            ports: vec![(TRUE.into(), holds), (FALSE.into(), fails)],
            response: None,
        }
        .into())
    }
}

#[cfg(test)]
mod tests {
    use callboard_runtime::node::Node as _;
    use serde_json::json;

    use super::If;
    use crate::testing::{code_of, run};

    #[test]
    fn each_item_goes_its_own_way() {
        let with = json!({"condition": "{{ $json.n > 1 }}"});
        assert_eq!(
            run(&If, with, json!([{"n": 1}, {"n": 2}, {"n": 3}])),
            Ok(json!({"true": [[1, {"n": 2}], [2, {"n": 3}]], "false": [[0, {"n": 1}]]}))
        );
    }

    #[test]
    fn a_missing_member_does_not_hold() {
        assert_eq!(
            run(
                &If,
                json!({"condition": "{{ $json.missing }}"}),
                json!([{}])
            ),
            Ok(json!({"true": [], "false": [[0, {}]]}))
        );
    }

    #[test]
    fn no_items_go_nowhere() {
        assert_eq!(
            run(&If, json!({"condition": true}), json!([])),
            Ok(json!({"true": [], "false": []}))
        );
    }

    #[test]
    fn a_condition_without_an_expression_is_a_mistake() {
        assert_eq!(If.check(&json!({"condition": "$json.n > 1"})).len(), 1);
        assert_eq!(If.check(&json!({"condition": "{{ $json.n > 1 }}"})), []);
        assert_eq!(If.check(&json!({"condition": false})), []);
    }

    #[test]
    fn an_exception_fails_the_step() {
        let with = json!({"condition": "{{ (() => { throw new Error('no') })() }}"});
        assert_eq!(code_of(run(&If, with, json!([{}]))), "expression_error");
    }
}
