//! `respond`: answers whoever started the execution; the run goes on.

use std::collections::BTreeMap;

use callboard_runtime::node::{
    Node, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeType, PureNode, Response,
};
use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};

use crate::{
    parameters::{self, invalid},
    values::text,
};

/// Headers of one answer.
const HEADERS_MAX: usize = 64;
/// Bytes of one header's value.
const HEADER_BYTES_MAX: usize = 8 * 1024;

pub(crate) struct Respond;

impl Node for Respond {
    fn node_type(&self) -> NodeType {
        parameters::pure(
            "respond",
            "Answers the caller now and passes its items on; the run goes on.",
            parameters::schema(
                &[],
                json!({
                    "status": {
                        "type": "integer", "minimum": 200, "maximum": 599, "default": 200,
                        "description": "The HTTP status.",
                    },
                    "headers": {"type": "object", "default": {}, "description": "Headers of the answer by name."},
                    "body": {
                        "description": "A string is sent as text, everything else as JSON. The first item when left out.",
                    },
                }),
            ),
        )
    }
}

impl PureNode for Respond {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        let items = input.items();
        let body = match input.parameters.written("body") {
            Some(_) => input.parameters.field("body", 0)?,
            None => items
                .first()
                .map(|item| Value::clone(&item.json))
                .unwrap_or_default(),
        };
        let response = Response {
            status: status(&input.parameters.field("status", 0)?)?,
            headers: headers(input.parameters.field("headers", 0)?)?,
            body,
        };
        let items = items
            .iter()
            .enumerate()
            .map(|(i, item)| item.clone().paired(i));
        Ok(NodeOutput {
            response: Some(response),
            ..NodeOutput::main(items.collect())
        }
        .into())
    }
}

fn status(value: &Value) -> Result<u16, NodeError> {
    let status = match value {
        Value::Null => Some(200),
        value => text(value).parse().ok(),
    };
    status
        .filter(|status| (200..=599).contains(status))
        .ok_or_else(|| invalid("`status` must be a number from 200 to 599"))
}

fn headers(value: Value) -> Result<BTreeMap<String, String>, NodeError> {
    let written = match value {
        Value::Null => return Ok(BTreeMap::new()),
        Value::Object(written) if written.len() <= HEADERS_MAX => written,
        _ => {
            return Err(invalid(format!(
                "`headers` must be an object of at most {HEADERS_MAX} names"
            )));
        }
    };
    let header = |(name, value): (String, Value)| {
        let value = text(&value);
        let valid = HeaderName::try_from(&name).is_ok()
            && value.len() <= HEADER_BYTES_MAX
            && HeaderValue::try_from(&value).is_ok();
        if valid {
            Ok((name.to_lowercase(), value))
        } else {
            Err(invalid(format!("`headers`: `{name}` is no valid header")))
        }
    };
    written
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(header)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{code_of, outcome, run, seen};

    fn answered(with: Value, items: Value) -> (Response, Value) {
        match outcome(&Respond, with, items) {
            Ok(NodeOutcome::Output(output)) => (output.response.clone().unwrap(), seen(&output)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_item_is_the_answer_unless_there_is_a_body() {
        let items = json!([{"a": 1}, {"a": 2}]);
        let (response, passed) = answered(json!({}), items.clone());
        assert_eq!(
            response,
            Response {
                status: 200,
                headers: BTreeMap::new(),
                body: json!({"a": 1})
            }
        );
        assert_eq!(passed, json!({"main": [[0, {"a": 1}], [1, {"a": 2}]]}));
        let with = json!({
            "status": "{{ 200 + 1 }}",
            "headers": {"X-Count": 5, "location": "/x/{{ $json.a }}", "x-none": "{{ $json.b }}"},
            "body": "a is {{ $json.a }}",
        });
        let (response, _) = answered(with, items);
        assert_eq!((response.status, response.body), (201, json!("a is 1")));
        let expected = [("location", "/x/1"), ("x-count", "5")];
        let named: Vec<_> = response
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(named, expected);
        let (response, passed) = answered(json!({"body": null}), json!([{"a": 1}]));
        assert_eq!(
            (response.body, passed),
            (json!(null), json!({"main": [[0, {"a": 1}]]}))
        );
        assert_eq!(answered(json!({}), json!([])).0.body, json!(null));
    }

    #[test]
    fn what_http_cannot_say_is_an_error() {
        for with in [
            json!({"status": 99}),
            json!({"status": 600}),
            json!({"status": "{{ 'ok' }}"}),
            json!({"headers": {"a b": 1}}),
            json!({"headers": {"a": "x\r\ny: z"}}),
            json!({"headers": "{{ 5 }}"}),
        ] {
            assert_eq!(
                code_of(run(&Respond, with, json!([{}]))),
                "invalid_parameters"
            );
        }
    }
}
