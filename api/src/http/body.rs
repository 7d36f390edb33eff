//! Request bodies: read within bounds, and as JSON or YAML of bounded depth.

use std::time::Duration;

use futures_util::StreamExt;
use poem::{
    Body, Request, RequestBody,
    http::{StatusCode, header},
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::problem::{ApiError, ApiResult, Fault};

/// How deep JSON may nest.
pub const DEPTH_MAX: usize = 64;
/// How long a client may take to send a body.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// How long it may pause in between.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Reads the body.
///
/// # Errors
/// 413 beyond `max` bytes, 408 when the client is too slow, 400 when it breaks off.
pub async fn read(request: &Request, body: &mut RequestBody, max: usize) -> ApiResult<Vec<u8>> {
    let body = body.take().map_err(ApiError::internal)?;
    let announced = request
        .header(header::CONTENT_LENGTH)
        .and_then(|length| length.parse::<u64>().ok());
    if announced.is_some_and(|length| length > max as u64) {
        return Err(too_large(max));
    }
    collect(body, announced.unwrap_or(0) as usize, max).await
}

async fn collect(body: Body, announced: usize, max: usize) -> ApiResult<Vec<u8>> {
    // What is announced is not yet sent: memory is only set aside for as much as one read brings.
    let mut bytes = Vec::with_capacity(announced.min(64 * 1024));
    let mut chunks = std::pin::pin!(body.into_bytes_stream());
    let end = Instant::now() + READ_TIMEOUT;
    loop {
        let next = timeout_at(end.min(Instant::now() + PAUSE_MAX), chunks.next())
            .await
            .map_err(|_| {
                ApiError::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "request_timeout",
                    "The body did not arrive in time.",
                )
            })?;
        match next {
            None => return Ok(bytes),
            Some(Ok(chunk)) if bytes.len() + chunk.len() > max => return Err(too_large(max)),
            Some(Ok(chunk)) => bytes.extend_from_slice(&chunk),
            Some(Err(_)) => {
                return Err(ApiError::new(
                    StatusCode::BAD_REQUEST,
                    "incomplete_body",
                    "The body broke off.",
                ));
            }
        }
    }
}

/// 413, naming the bound.
pub fn too_large(max: usize) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body_too_large",
        format!("The body is larger than {max} bytes."),
    )
    .with("limit", max)
}

/// What a body claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// `application/json`, anything `+json`, or nothing said.
    Json,
    /// YAML under any of its names.
    Yaml,
    /// A URL-encoded form.
    Form,
    /// `text/…`.
    Text,
    /// Something else.
    Other,
}

impl ContentType {
    /// Of a request. Nothing said counts as JSON.
    pub fn of(request: &Request) -> Self {
        request.content_type().map_or(Self::Json, Self::parse)
    }

    fn parse(text: &str) -> Self {
        let essence = text
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        match essence.as_str() {
            "application/json" | "text/json" => Self::Json,
            "application/yaml" | "application/x-yaml" | "text/yaml" | "text/x-yaml" => Self::Yaml,
            "application/x-www-form-urlencoded" => Self::Form,
            json if json.starts_with("application/") && json.ends_with("+json") => Self::Json,
            text if text.starts_with("text/") => Self::Text,
            _ => Self::Other,
        }
    }
}

/// 415, naming what would do.
pub fn unsupported(request: &Request, supported: &str) -> ApiError {
    let sent = request.content_type().unwrap_or("none");
    ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        format!("Content type `{sent}` is not supported here; send {supported}."),
    )
}

/// Reads JSON.
///
/// # Errors
/// One fault of type `json_invalid` with the place in characters: a syntax error, or depth beyond [`DEPTH_MAX`].
pub fn json(bytes: &[u8]) -> Result<Value, Vec<Fault>> {
    if let Some(offset) = too_deep(bytes) {
        return Err(json_invalid(
            bytes,
            offset,
            &format!("nested deeper than {DEPTH_MAX}"),
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        let offset = offset_of(bytes, error.line(), error.column());
        let text = error.to_string();
        let reason = text
            .rsplit_once(" at line ")
            .map_or(text.as_str(), |(reason, _)| reason);
        json_invalid(bytes, offset, reason)
    })
}

fn json_invalid(bytes: &[u8], offset: usize, reason: &str) -> Vec<Fault> {
    let characters = String::from_utf8_lossy(&bytes[..offset.min(bytes.len())])
        .chars()
        .count();
    let mut fault = Fault::new(
        [Value::from("body"), characters.into()],
        "json_invalid",
        "JSON decode error",
    );
    fault.ctx = Some(json!({ "error": reason }));
    vec![fault]
}

/// The byte at a line and column, both from 1; column 0 is the end of the line before.
fn offset_of(bytes: &[u8], line: usize, column: usize) -> usize {
    let start = match line {
        0 | 1 => 0,
        line => bytes
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n')
            .nth(line - 2)
            .map_or(bytes.len(), |(at, _)| at + 1),
    };
    (start + column.saturating_sub(1)).min(bytes.len())
}

/// Where JSON first nests deeper than [`DEPTH_MAX`]. Counted before parsing, so that the bound holds whatever
/// the parser's own is.
fn too_deep(bytes: &[u8]) -> Option<usize> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Some(at);
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// Whether a value nests deeper than [`DEPTH_MAX`]; for what did not come as JSON.
pub fn is_too_deep(value: &Value) -> bool {
    fn deeper_than(value: &Value, rest: usize) -> bool {
        match value {
            Value::Array(elements) => {
                rest == 0 || elements.iter().any(|value| deeper_than(value, rest - 1))
            }
            Value::Object(members) => {
                rest == 0 || members.values().any(|value| deeper_than(value, rest - 1))
            }
            _ => false,
        }
    }
    deeper_than(value, DEPTH_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syntax_error_names_its_place_in_characters() {
        let fault = json("{\"ä\": 1,\n \"b\": }".as_bytes())
            .expect_err("it is broken")
            .remove(0);
        assert_eq!(fault.kind, "json_invalid");
        assert_eq!(fault.loc, [json!("body"), json!(15)]);
        assert_eq!(fault.ctx, Some(json!({ "error": "expected value" })));
    }

    #[test]
    fn depth_is_bounded_at_64() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(json(nested(64).as_bytes()).is_ok());
        let fault = json(nested(65).as_bytes())
            .expect_err("it is too deep")
            .remove(0);
        assert_eq!(fault.loc, [json!("body"), json!(64)]);
        assert!(!is_too_deep(&json(nested(64).as_bytes()).expect("it fits")));
    }

    #[test]
    fn brackets_in_strings_do_not_count_as_depth() {
        let text = format!("[\"{}\\\"[\"]", "[".repeat(100));
        assert!(json(text.as_bytes()).is_ok());
    }

    #[test]
    fn content_types_are_told_apart() {
        for (text, kind) in [
            ("application/json; charset=utf-8", ContentType::Json),
            ("application/vnd.x+json", ContentType::Json),
            ("Text/YAML", ContentType::Yaml),
            ("application/x-www-form-urlencoded", ContentType::Form),
            ("text/plain", ContentType::Text),
            ("application/xml", ContentType::Other),
        ] {
            assert_eq!(ContentType::parse(text), kind, "{text}");
        }
    }

    #[tokio::test]
    async fn a_body_larger_than_the_bound_is_refused() {
        assert_eq!(
            collect(Body::from("12345"), 0, 5).await.expect("it fits"),
            b"12345"
        );
        let error = collect(Body::from("123456"), 0, 5)
            .await
            .expect_err("it is too large");
        assert_eq!(error.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
}
