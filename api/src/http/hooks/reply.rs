//! What the caller of a webhook is answered.

use callboard_runtime::{
    executions::Ended, id::ExecutionId, node, schema::Schema, store::rows::ExecutionStatus,
};
use poem::{
    Response,
    http::{HeaderName, HeaderValue, StatusCode, header},
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::http::{
    answer,
    problem::{ApiError, ApiResult},
};

/// What a page may do that a workflow answers with: whatever a page does, but as if it came from nowhere. The API and its
/// documentation have the same origin, and what a browser keeps for them is not for pages that workflows make.
const SANDBOX: HeaderValue = HeaderValue::from_static(
    "sandbox allow-downloads allow-forms allow-modals allow-popups allow-popups-to-escape-sandbox \
     allow-presentation allow-scripts allow-top-navigation-by-user-activation",
);
/// Headers that belong to the connection or the origin; a workflow does not set them.
const OURS: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TRAILER,
    HeaderName::from_static("clear-site-data"),
    HeaderName::from_static("service-worker-allowed"),
    HeaderName::from_static("x-trace-id"),
];

/// A schema that answers are shaped by: it drops what it does not declare, and refuses what does not fit.
pub struct Shape {
    written: Value,
    schema: Schema,
}

impl Shape {
    /// # Errors
    /// A sentence, when it is no schema.
    pub fn compile(written: &Value) -> Result<Self, String> {
        Ok(Self {
            schema: Schema::compile(written)?,
            written: written.clone(),
        })
    }

    /// The answer without undeclared members.
    ///
    /// # Errors
    /// What does not fit, for the log.
    fn apply(&self, output: Value) -> Result<Value, String> {
        let lists = self.written.get("type").is_some_and(|kind| kind == "array");
        let mut output = match output {
            Value::Null if lists => Value::Array(Vec::new()),
            single if lists && !single.is_array() => Value::Array(vec![single]),
            other => other,
        };
        prune(&mut output, &self.written, &self.written, 0);
        let violations = self.schema.violations(&output);
        match violations.first() {
            None => Ok(output),
            Some(first) => Err(format!(
                "the answer does not fit the response schema in {} places; the first is {}: {}",
                violations.len(),
                first.path.join("."),
                first.message
            )),
        }
    }
}

/// How many references are followed: a schema may name itself.
const REFERENCES_MAX: usize = 64;

/// Drops the members that `schema` does not declare. A schema without `properties` declares everything.
fn prune(value: &mut Value, schema: &Value, root: &Value, references: usize) {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = reference
            .strip_prefix('#')
            .and_then(|pointer| root.pointer(pointer));
        if let Some(target) = target.filter(|_| references < REFERENCES_MAX) {
            prune(value, target, root, references + 1);
        }
        return;
    }
    match value {
        Value::Object(members) => {
            let Some(declared) = schema.get("properties").and_then(Value::as_object) else {
                return;
            };
            let others = schema
                .get("additionalProperties")
                .filter(|others| **others != Value::Bool(false));
            members.retain(|name, _| others.is_some() || declared.contains_key(name));
            for (name, member) in members {
                if let Some(schema) = declared.get(name).or(others) {
                    prune(member, schema, root, references);
                }
            }
        }
        Value::Array(elements) => {
            if let Some(items) = schema.get("items") {
                for element in elements {
                    prune(element, items, root, references);
                }
            }
        }
        _ => {}
    }
}

/// Where the execution is looked at.
pub fn place(id: ExecutionId) -> String {
    format!("/v1/executions/{id}")
}

/// 202: it goes on without the caller.
pub fn accepted(id: ExecutionId) -> Response {
    #[derive(Serialize)]
    struct Accepted {
        id: ExecutionId,
    }
    let mut response = answer::json(StatusCode::ACCEPTED, &Accepted { id });
    answer::set(&mut response, header::LOCATION, &place(id));
    response
}

/// The answer of an execution that ended: its output, or a problem that names it.
pub fn ended(id: ExecutionId, ended: Ended, shape: Option<&Shape>) -> ApiResult<Response> {
    let refusal = |status, code: String, detail: String| {
        ApiError::new(status, code, detail).with("execution_id", id.to_string())
    };
    match ended.status {
        ExecutionStatus::Succeeded => {
            let output = match shape {
                None => ended.output,
                Some(shape) => shape.apply(ended.output).map_err(|reason| {
                    tracing::warn!(execution_id = %id, reason, "an answer was withheld");
                    refusal(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "response_invalid".to_owned(),
                        "The workflow's answer does not fit its `response_schema`.".to_owned(),
                    )
                })?,
            };
            Ok(answer::json(StatusCode::OK, &output))
        }
        ExecutionStatus::Cancelled => Err(refusal(
            StatusCode::CONFLICT,
            "execution_cancelled".to_owned(),
            "The execution was cancelled.".to_owned(),
        )),
        _ => {
            let text = |name: &str| {
                let member = ended.error.as_ref().and_then(|error| error.get(name));
                member.and_then(Value::as_str).map(str::to_owned)
            };
            let error = refusal(
                StatusCode::INTERNAL_SERVER_ERROR,
                text("code").unwrap_or_else(|| "execution_failed".to_owned()),
                text("message").unwrap_or_else(|| "The execution failed.".to_owned()),
            );
            Err(match text("step") {
                Some(step) => error.with("step", step),
                None => error,
            })
        }
    }
}

/// What a `respond` step said.
pub fn responded(id: ExecutionId, response: node::Response) -> ApiResult<Response> {
    // Below 200 an answer is not final, and no client would wait for another.
    let status = StatusCode::from_u16(response.status)
        .ok()
        .filter(|status| status.as_u16() >= 200)
        .ok_or_else(|| {
            ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "response_invalid",
                format!(
                    "The workflow answered with status {}, which is none.",
                    response.status
                ),
            )
            .with("execution_id", id.to_string())
        })?;
    let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let mut answer = match response.body {
        _ if bodiless => Response::builder().status(status).finish(),
        Value::String(text) => Response::builder()
            .status(status)
            .content_type("text/plain; charset=utf-8")
            .body(text),
        Value::Null => Response::builder().status(status).finish(),
        body => answer::json(status, &body),
    };
    for (name, value) in response.headers {
        let (Ok(name), Ok(value)) = (
            HeaderName::try_from(name.as_str()),
            HeaderValue::try_from(value.as_str()),
        ) else {
            tracing::warn!(execution_id = %id, header = name, "a header of a workflow's answer was left out");
            continue;
        };
        if !OURS.contains(&name) {
            answer.headers_mut().insert(name, value);
        }
    }
    // Beside a policy of the workflow's own: a browser obeys both.
    answer
        .headers_mut()
        .append(header::CONTENT_SECURITY_POLICY, SANDBOX);
    Ok(answer)
}

/// For schemas that say nothing: `{}` allows everything.
pub fn is_empty(schema: &Value) -> bool {
    schema.as_object().is_some_and(Map::is_empty)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn pruned(schema: Value, mut value: Value) -> Value {
        prune(&mut value, &schema, &schema, 0);
        value
    }

    #[test]
    fn undeclared_members_are_dropped_at_every_depth() {
        let schema = json!({
            "type": "object",
            "properties": {
                "id": {}, "tags": { "items": { "properties": { "name": {} } } }, "more": { "type": "object" },
                "next": { "$ref": "#/$defs/node" },
            },
            "$defs": { "node": { "properties": { "v": {}, "next": { "$ref": "#/$defs/node" } } } },
        });
        let value = json!({
            "id": 1, "secret": 2, "tags": [{ "name": "a", "x": 1 }], "more": { "y": 1 },
            "next": { "v": 1, "w": 2, "next": { "w": 3 } },
        });
        assert_eq!(
            pruned(schema, value),
            json!({ "id": 1, "tags": [{ "name": "a" }], "more": { "y": 1 }, "next": { "v": 1, "next": {} } })
        );
    }

    #[test]
    fn declared_additional_members_stay() {
        let schema = json!({ "properties": { "a": {} }, "additionalProperties": { "properties": { "b": {} } } });
        assert_eq!(
            pruned(schema, json!({ "a": 1, "z": { "b": 1, "c": 2 } })),
            json!({ "a": 1, "z": { "b": 1 } })
        );
    }

    fn failed(error: Option<Value>) -> ApiError {
        let run = Ended {
            status: ExecutionStatus::Failed,
            output: Value::Null,
            error,
        };
        ended(ExecutionId::new(), run, None).expect_err("it failed")
    }

    #[tokio::test]
    async fn a_failed_run_is_a_problem_that_names_it() {
        let response = failed(Some(
            json!({ "code": "http_status", "message": "404", "step": "a" }),
        ))
        .into_response("t");
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body: Value = response.into_body().into_json().await.expect("it is JSON");
        assert_eq!(
            (&body["code"], &body["detail"], &body["step"]),
            (&json!("http_status"), &json!("404"), &json!("a"))
        );
        assert!(body["execution_id"].is_string());
    }

    #[tokio::test]
    async fn a_respond_step_decides_status_headers_and_body() {
        let said = |status, body| node::Response {
            status,
            headers: BTreeMap::from([
                ("x-a".to_owned(), "1".to_owned()),
                ("content-length".to_owned(), "999".to_owned()),
                ("bad name".to_owned(), "1".to_owned()),
                (
                    "content-security-policy".to_owned(),
                    "img-src 'none'".to_owned(),
                ),
                ("service-worker-allowed".to_owned(), "/".to_owned()),
            ]),
            body,
        };
        let response =
            responded(ExecutionId::new(), said(201, json!({ "a": 1 }))).expect("it is an answer");
        assert_eq!(response.status(), StatusCode::CREATED);
        assert_eq!(response.headers()["x-a"], "1");
        assert!(!response.headers().contains_key("content-length"));
        assert!(!response.headers().contains_key("service-worker-allowed"));
        let policies = response.headers().get_all("content-security-policy");
        let policies: Vec<_> = policies.iter().collect();
        assert_eq!(
            policies,
            ["img-src 'none'", SANDBOX.to_str().expect("it is text")]
        );
        assert_eq!(response.content_type(), Some("application/json"));
        let text = responded(ExecutionId::new(), said(200, json!("hi"))).expect("it is an answer");
        assert_eq!(
            text.into_body().into_string().await.expect("it is text"),
            "hi"
        );
        assert!(responded(ExecutionId::new(), said(99, Value::Null)).is_err());
        assert!(responded(ExecutionId::new(), said(101, Value::Null)).is_err());
    }

    #[test]
    fn a_run_that_goes_on_says_where() {
        let id = ExecutionId::new();
        let response = accepted(id);
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        assert_eq!(response.headers()["location"], place(id).as_str());
    }
}
