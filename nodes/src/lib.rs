//! The node types that steps of workflows may use. One file per node type; see this crate's `README.md` for how to add one.

use callboard_runtime::{node::NodeRegistry, outbound::OutboundClient};

mod aggregate;
#[cfg(test)]
mod bounds_tests;
mod code;
mod fields;
mod filter;
mod http_request;
mod if_else;
mod limit;
mod merge;
mod noop;
mod parameters;
mod respond;
mod set;
mod sort;
mod split_out;
mod stop_and_error;
mod switch;
#[cfg(test)]
mod testing;
mod values;
mod wait_timer;
mod wait_until;
mod workflow_execute;

/// Adds every node type of this crate. Requests go out through `outbound`.
///
/// # Panics
/// When a name is taken: call it once per registry.
pub fn register(registry: &mut NodeRegistry, outbound: OutboundClient) {
    registry
        .pure(aggregate::Aggregate)
        .pure(code::Code)
        .pure(filter::Filter)
        .pure(if_else::If)
        .pure(limit::Limit)
        .pure(merge::Merge)
        .pure(noop::Noop)
        .pure(respond::Respond)
        .pure(set::Set)
        .pure(sort::Sort)
        .pure(split_out::SplitOut)
        .pure(stop_and_error::StopAndError)
        .pure(switch::Switch)
        .pure(wait_timer::WaitTimer)
        .pure(wait_until::WaitUntil)
        .pure(workflow_execute::WorkflowExecute)
        .asynchronous(http_request::HttpRequest::new(outbound));
}

#[cfg(test)]
mod tests {
    use callboard_runtime::{
        node::{EffectClass, NodeRegistry},
        outbound::{OutboundClient, OutboundPolicy},
    };
    use serde_json::Value;

    fn registry() -> NodeRegistry {
        let mut registry = NodeRegistry::default();
        let outbound = OutboundClient::new(OutboundPolicy::default()).unwrap();
        super::register(&mut registry, outbound);
        registry
    }

    #[test]
    fn every_node_type_describes_all_its_parameters() {
        let registry = registry();
        assert_eq!(registry.names().count(), 17);
        for name in registry.names() {
            let node_type = registry.find(name).unwrap().node().node_type();
            let schema = &node_type.parameters;
            assert!(!node_type.summary.is_empty(), "{name}");
            assert_eq!(schema["type"], "object", "{name}");
            assert_eq!(schema["additionalProperties"], false, "{name}");
            let properties = schema["properties"].as_object().unwrap();
            for (parameter, described) in properties {
                assert!(
                    described["description"].is_string(),
                    "{name}.{parameter} has no description"
                );
            }
            for required in schema["required"].as_array().unwrap() {
                let required = required.as_str().unwrap();
                assert!(properties.contains_key(required), "{name}.{required}");
                assert_eq!(
                    properties[required].get("default"),
                    None::<&Value>,
                    "{name}.{required} is required and has a default"
                );
            }
        }
    }

    #[test]
    fn only_nodes_that_change_something_outside_are_effectful() {
        let registry = registry();
        for name in registry.names() {
            let effect = registry.find(name).unwrap().node().node_type().effect;
            let effectful = matches!(name, "http.request" | "workflow.execute");
            assert_eq!(effect == EffectClass::Effectful, effectful, "{name}");
        }
    }
}
