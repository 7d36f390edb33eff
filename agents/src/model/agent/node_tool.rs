//! Nodes as tools: which of a node's parameters are fixed, and which the model gives.

use std::{collections::HashSet, sync::Arc};

use callboard_runtime::{
    document::{
        closest,
        reader::{Fields, Reader},
    },
    expression::Template,
    node::{AnyNode, NodeRegistry},
};
use serde_json::{Map, Value, json};

use super::{NodeTarget, compiled};

/// Reads the members of a tool that are about its node.
pub(super) fn read(
    name: &Reader<'_>,
    fields: &mut Fields<'_>,
    nodes: &NodeRegistry,
) -> Option<NodeTarget> {
    let with = fields.optional("with");
    let parameters = fields.optional("parameters");
    let text = name.string()?;
    if text == "agent" {
        name.unsupported("An agent as a tool is");
        return None;
    }
    let Some(node) = nodes.find(text) else {
        let hint = closest(text, nodes.names())
            .map(|meant| format!("; did you mean `{meant}`?"))
            .unwrap_or_default();
        name.fault(
            "value_error",
            format!("There is no node type `{text}`{hint}"),
        );
        return None;
    };
    let node_type = node.node().node_type();
    let own = node_type.parameters["properties"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    let fixed = match &with {
        Some(with) => read_with(with, &own)?,
        None => Map::new(),
    };
    let verbatim = node.node().verbatim();
    let taken: HashSet<String> = fixed.keys().cloned().collect();
    let open =
        |name: &str| own.contains_key(name) && !taken.contains(name) && !verbatim.contains(&name);
    let parameters = match parameters {
        Some(reader) => {
            let schema = reader.schema()?;
            if schema["type"] != "object" {
                reader.fault("value_error", "The schema of arguments has `type: object`");
                return None;
            }
            schema
        }
        None => default_parameters(&node_type.parameters, &own, open),
    };
    compiled(fields.reader(), &parameters)?;
    let at = with.as_ref().unwrap_or(name);
    compile_node(node.clone(), at, fixed, parameters, open)
}

/// The parameters that the document fixes: names that the node has.
fn read_with(with: &Reader<'_>, own: &Map<String, Value>) -> Option<Map<String, Value>> {
    let mut fixed = Map::new();
    let before = with.faults().len();
    for (name, value) in with.entries()? {
        if !own.contains_key(name) {
            let hint = closest(name, own.keys().map(String::as_str))
                .map(|meant| format!("; did you mean `{meant}`?"))
                .unwrap_or_default();
            let message = format!("Extra inputs are not permitted{hint}");
            with.fault_below(&[name], "extra_forbidden", message);
        }
        fixed.insert(name.to_owned(), value.value().clone());
    }
    (with.faults().len() == before).then_some(fixed)
}

/// The node's own parameters that are not fixed.
fn default_parameters(
    schema: &Value,
    own: &Map<String, Value>,
    open: impl Fn(&str) -> bool,
) -> Value {
    let properties: Map<_, _> = own
        .iter()
        .filter(|(name, _)| open(name))
        .map(|(name, schema)| (name.clone(), schema.clone()))
        .collect();
    let required: Vec<_> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|name| name.as_str().is_some_and(&open))
        .cloned()
        .collect();
    let mut parameters =
        json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !required.is_empty() {
        parameters["required"] = Value::Array(required);
    }
    for name in ["$defs", "definitions"] {
        if let Some(definitions) = schema.get(name) {
            parameters[name] = definitions.clone();
        }
    }
    parameters
}

/// What the model gives reaches a parameter of the same name by an expression, so that it is data, never a template.
fn compile_node(
    node: AnyNode,
    at: &Reader<'_>,
    mut with: Map<String, Value>,
    parameters: Value,
    open: impl Fn(&str) -> bool,
) -> Option<NodeTarget> {
    let given = parameters["properties"].as_object();
    for name in given
        .into_iter()
        .flat_map(Map::keys)
        .filter(|name| open(name))
    {
        with.insert(
            name.clone(),
            json!(format!("{{{{ $json[{}] }}}}", json!(name))),
        );
    }
    let node_type = node.node().node_type();
    let required = node_type.parameters["required"].as_array();
    let before = at.faults().len();
    for name in required.into_iter().flatten().filter_map(Value::as_str) {
        if !with.contains_key(name) {
            let message = format!(
                "`{}` needs the parameter `{name}`: fix it in `with`, or name it in `parameters` for the model to give",
                node_type.name
            );
            at.fault("missing", message);
        }
    }
    let with = Value::Object(with);
    for fault in node.node().check(&with) {
        at.fault_below(&fault.path, "value_error", fault.message);
    }
    let template = Template::compile(&with, node.node().verbatim()).map_err(|faults| {
        for fault in faults {
            at.fault_below(&fault.path, "value_error", fault.message);
        }
    });
    (at.faults().len() == before).then_some(())?;
    Some(NodeTarget {
        node,
        with: Arc::new(with),
        template: Arc::new(template.ok()?),
        parameters,
    })
}
