//! `http.request`: sends one request per item, in order.
//!
//! Safe to repeat: every attempt carries the same `Idempotency-Key`. Retries are the engine's; this node only
//! says what kind of failure it met.

use std::time::Duration;

use async_trait::async_trait;
use callboard_runtime::{
    bounds::OUTPUT_BYTES_MAX,
    duration,
    node::{
        AsyncNode, EffectClass, Node, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeType,
        ParameterFault,
    },
    outbound::{self, OutboundClient, OutboundError},
};
use http::HeaderName;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::parameters::{self, fault, invalid, is_expression};

mod request;
mod response;
#[cfg(test)]
mod tests;

/// Bytes of one answer.
const RESPONSE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of all answers of one run.
const RUN_BYTES_MAX: usize = OUTPUT_BYTES_MAX;
/// The longest that one request may take.
const TIMEOUT_MAX: Duration = Duration::from_secs(3_600);
/// What it may take unless the step says otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

pub(crate) struct HttpRequest {
    client: OutboundClient,
}

/// The parameters of one item's request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    #[serde(default = "get")]
    method: String,
    url: String,
    query: Option<Map<String, Value>>,
    headers: Option<Map<String, Value>>,
    #[serde(default)]
    body: Value,
    #[serde(default, deserialize_with = "duration::deserialize_option")]
    timeout: Option<Duration>,
    #[serde(default = "yes")]
    follow_redirects: bool,
    #[serde(default)]
    response: Format,
    #[serde(default)]
    full: bool,
}

/// How an answer's body is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Auto,
    Json,
    Text,
    Binary,
}

fn get() -> String {
    "GET".to_owned()
}

fn yes() -> bool {
    true
}

impl HttpRequest {
    pub(crate) fn new(client: OutboundClient) -> Self {
        Self { client }
    }

    async fn send_all(&self, input: &NodeInput) -> Result<NodeOutput, NodeError> {
        let mut items = Vec::new();
        let mut bytes_left = RUN_BYTES_MAX;
        let len = input.items().len();
        for i in 0..len {
            let parameters: Parameters = input.parameters_elsewhere(i).await?;
            let mut request = request::build(&parameters, &idempotency_key(input, i, len))?;
            request.max_response_bytes = RESPONSE_BYTES_MAX.min(bytes_left);
            let answer = self
                .client
                .send(request)
                .await
                .map_err(|fault| failure(&fault))?;
            bytes_left -= answer.body.len();
            let made = response::read(&parameters, answer)?;
            items.extend(made.into_iter().map(|item| item.paired(i)));
        }
        Ok(NodeOutput::main(items))
    }
}

/// The same for every attempt; another for each item.
fn idempotency_key(input: &NodeInput, index: usize, items: usize) -> String {
    let key = &input.identity.idempotency_key;
    if items > 1 {
        format!("{key}/{index}")
    } else {
        key.to_string()
    }
}

fn failure(fault: &OutboundError) -> NodeError {
    let code = match fault {
        OutboundError::Refused { .. } => "outbound_refused",
        OutboundError::InvalidUrl(_) | OutboundError::InvalidRequest(_) => "invalid_parameters",
        OutboundError::Timeout(_) => "timeout",
        OutboundError::Connect { .. } => "connection_failed",
        OutboundError::TooLarge(_) => "response_too_large",
        OutboundError::Redirect(_) => "redirect_failed",
        OutboundError::Protocol(_) => "exchange_failed",
    };
    // Whether the other side may have acted is what people ask first after a failed effect.
    let details = Some(Box::new(
        json!({"may_have_been_sent": fault.may_have_been_sent()}),
    ));
    let (code, message) = (code.to_owned(), fault.to_string());
    if fault.is_transient() {
        NodeError::Transient {
            code,
            message,
            retry_after: None,
            details,
        }
    } else {
        NodeError::Permanent {
            code,
            message,
            details,
        }
    }
}

impl Node for HttpRequest {
    fn node_type(&self) -> NodeType {
        NodeType {
            effect: EffectClass::Effectful,
            ..parameters::pure(
                "http.request",
                "Sends an HTTP request for each item.",
                parameters::schema(&["url"], properties()),
            )
        }
    }

    fn effect(&self, with: &Value) -> EffectClass {
        match with.get("method").map(Value::as_str) {
            None => EffectClass::Idempotent,
            Some(Some(method)) if reads(method) => EffectClass::Idempotent,
            // An expression among them: it may come to anything.
            Some(_) => EffectClass::Effectful,
        }
    }

    fn check(&self, with: &Value) -> Vec<ParameterFault> {
        let constant = |name| {
            with.get(name)
                .filter(|value| !is_expression(value))
                .and_then(Value::as_str)
        };
        let found = [
            (
                "method",
                constant("method").and_then(|text| request::method(text).err()),
            ),
            (
                "url",
                constant("url").and_then(|text| {
                    outbound::parse_url(text)
                        .err()
                        .map(|fault| fault.to_string())
                }),
            ),
            (
                "timeout",
                constant("timeout").and_then(|text| timeout(text).err()),
            ),
        ];
        let mut faults: Vec<_> = found
            .into_iter()
            .filter_map(|(name, message)| Some(fault(&[name], message?)))
            .collect();
        let headers = with.get("headers").and_then(Value::as_object);
        for name in headers.into_iter().flat_map(Map::keys) {
            if HeaderName::try_from(name).is_err() {
                faults.push(fault(&["headers", name], "This is no header name"));
            }
        }
        faults
    }
}

fn reads(method: &str) -> bool {
    ["GET", "HEAD", "OPTIONS"]
        .iter()
        .any(|safe| safe.eq_ignore_ascii_case(method))
}

fn timeout(text: &str) -> Result<Duration, String> {
    duration::parse(text).and_then(bounded)
}

fn bounded(timeout: Duration) -> Result<Duration, String> {
    if timeout.is_zero() || timeout > TIMEOUT_MAX {
        return Err("a request's timeout is more than nothing and at most 1h".to_owned());
    }
    Ok(timeout)
}

fn properties() -> Value {
    json!({
        "method": {
            "type": "string", "default": "GET",
            "description": "GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE or another but CONNECT and TRACE. Only the first three count as reading.",
        },
        "url": {"type": "string", "description": "An http or https URL."},
        "query": {
            "type": "object", "default": {},
            "description": "Added to the URL's query. A list repeats the name, null leaves it out.",
        },
        "headers": {
            "type": "object", "default": {},
            "description": "Headers by name. A list repeats the name, null leaves it out.",
        },
        "body": {
            "description": "A string is sent as text, everything else as JSON; an object as a form if `content-type` says application/x-www-form-urlencoded.",
        },
        "timeout": {
            "type": "string", "default": "30s",
            "description": "The longest one request may take, at most 1h.",
        },
        "follow_redirects": {
            "type": "boolean", "default": true,
            "description": "Whether redirects are followed, at most 10; else one is a result like others.",
        },
        "response": {
            "enum": ["auto", "json", "text", "binary"], "default": "auto",
            "description": "How the body is read: auto goes by its content-type; binary gives base64.",
        },
        "full": {
            "type": "boolean", "default": false,
            "description": "Whether the item is {status, headers, body}, whatever the body is.",
        },
    })
}

#[async_trait]
impl AsyncNode for HttpRequest {
    async fn run(&self, input: NodeInput) -> Result<NodeOutcome, NodeError> {
        tokio::select! {
            biased;
            () = input.cancel.cancelled() => Err(NodeError::Cancelled),
            output = self.send_all(&input) => Ok(output?.into()),
        }
    }
}
