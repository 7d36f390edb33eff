//! `stop_and_error`: ends the run as failed.

use callboard_runtime::node::{Node, NodeError, NodeInput, NodeOutcome, NodeType, Ports, PureNode};
use serde_json::{Value, json};

use crate::{parameters, values::text};

/// Characters of a message.
const MESSAGE_MAX: usize = 4_096;
/// Characters of a code.
const CODE_MAX: usize = 64;

pub(crate) struct StopAndError;

impl Node for StopAndError {
    fn node_type(&self) -> NodeType {
        parameters::pure(
            "stop_and_error",
            "Ends the run as failed, with a message of yours.",
            parameters::schema(
                &["message"],
                json!({
                    "message": {"type": "string", "description": "What went wrong, for people."},
                    "code": {"type": "string", "default": "stopped", "description": "What went wrong, for programs."},
                }),
            ),
        )
    }

    /// None: nothing follows it.
    fn ports(&self, _with: &Value) -> Ports {
        Ports::Named(Vec::new())
    }
}

impl PureNode for StopAndError {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        let part = |name, chars_max, default: &str| {
            let value = input.parameters.field(name, 0)?;
            let part: String = match value {
                Value::Null => default.to_owned(),
                value => text(&value).chars().take(chars_max).collect(),
            };
            Ok::<_, NodeError>(if part.is_empty() {
                default.to_owned()
            } else {
                part
            })
        };
        let message = part("message", MESSAGE_MAX, "the workflow stopped itself")?;
        Err(NodeError::permanent(
            part("code", CODE_MAX, "stopped")?,
            message,
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{MESSAGE_MAX, StopAndError};
    use crate::testing::run;

    #[test]
    fn the_error_says_what_the_author_wrote() {
        for (with, code, message) in [
            (
                json!({"message": "no {{ $json.what }}", "code": "missing"}),
                "missing",
                "no stock",
            ),
            (json!({"message": "{{ $json.n }}"}), "stopped", "5"),
            (
                json!({"message": "{{ $json.nothing }}"}),
                "stopped",
                "the workflow stopped itself",
            ),
        ] {
            let fault = run(&StopAndError, with, json!([{"what": "stock", "n": 5}])).unwrap_err();
            assert_eq!((fault.0.as_str(), fault.1.as_str()), (code, message));
        }
        let fault = run(
            &StopAndError,
            json!({"message": "{{ 'x'.repeat(10000) }}"}),
            json!([]),
        )
        .unwrap_err();
        assert_eq!(fault.1.len(), MESSAGE_MAX);
    }
}
