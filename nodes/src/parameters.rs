//! What node types share in describing and reading their parameters.

use callboard_runtime::node::{EffectClass, NodeError, NodeType, ParameterFault};
use serde_json::{Value, json};

/// A node type of version 1 that computes on one input.
pub(crate) fn pure(name: &'static str, summary: &'static str, parameters: Value) -> NodeType {
    NodeType {
        name,
        version: 1,
        summary,
        effect: EffectClass::Pure,
        parameters,
        several_inputs: false,
    }
}

/// The schema of an object with exactly these properties.
pub(crate) fn schema(required: &[&str], properties: Value) -> Value {
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

/// A parameter that reads wrong at run time.
pub(crate) fn invalid(message: impl Into<String>) -> NodeError {
    NodeError::permanent("invalid_parameters", message)
}

/// Whether a parameter is known only at run time.
pub(crate) fn is_expression(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.contains("{{"))
}

/// A fault at this path below `with`.
pub(crate) fn fault(path: &[&str], message: impl Into<String>) -> ParameterFault {
    ParameterFault {
        path: path.iter().map(|name| (*name).to_owned()).collect(),
        message: message.into(),
    }
}

/// The fault of a condition that is text without an expression: it would hold for every item.
pub(crate) fn constant_condition(condition: &Value, path: &[&str]) -> Option<ParameterFault> {
    let text = condition.as_str()?;
    (!is_expression(condition)).then(|| {
        fault(
            path,
            format!("Text without an expression always holds; write {{{{ {text} }}}}"),
        )
    })
}
