//! `noop`: passes its items on. A place to join branches or to route to.

use callboard_runtime::node::{
    Node, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeType, PureNode,
};
use serde_json::json;

use crate::parameters;

pub(crate) struct Noop;

impl Node for Noop {
    fn node_type(&self) -> NodeType {
        parameters::pure(
            "noop",
            "Passes its items on.",
            parameters::schema(&[], json!({})),
        )
    }
}

impl PureNode for Noop {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        let items = input.items().iter().enumerate();
        Ok(NodeOutput::main(items.map(|(i, item)| item.clone().paired(i)).collect()).into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Noop;
    use crate::testing::run;

    #[test]
    fn items_pass_with_their_lineage() {
        assert_eq!(
            run(&Noop, json!({}), json!([{"a": 1}, {"a": 2}])),
            Ok(json!({"main": [[0, {"a": 1}], [1, {"a": 2}]]}))
        );
        assert_eq!(run(&Noop, json!({}), json!([])), Ok(json!({"main": []})));
    }
}
