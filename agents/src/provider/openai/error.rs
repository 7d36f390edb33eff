//! Reads what providers say when they refuse: every shape of error body that OpenAI-compatible servers are known to
//! send, with its status and what it asks to wait.

use std::time::Duration;

use callboard_runtime::provider::{ModelError, ModelErrorKind};
use chrono::{DateTime, Utc};
use http::{HeaderMap, StatusCode, header};
use serde_json::Value;

/// How much of a provider's words is kept, in characters.
const MESSAGE_CHARS_MAX: usize = 500;

/// An answer whose status is not success.
pub(super) fn from_response(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    now: DateTime<Utc>,
) -> ModelError {
    let said = Said::read(&serde_json::from_slice(body).unwrap_or(Value::Null));
    let message = match &said.message {
        Some(message) => format!("{message} (HTTP {})", status.as_u16()),
        None => format!("the provider answered HTTP {}", status.as_u16()),
    };
    ModelError {
        kind: kind(Some(status.as_u16()), &said),
        message,
        status: Some(status.as_u16()),
        retry_after: retry_after(headers, now),
    }
}

/// An `error` member within a stream, or within a body whose status claims success.
pub(super) fn in_stream(error: &Value) -> ModelError {
    let said = Said::read(&serde_json::json!({"error": error}));
    let status = said
        .code
        .as_deref()
        .and_then(|code| code.parse().ok())
        .filter(|status| (400..600).contains(status));
    ModelError {
        kind: kind(status, &said),
        message: said
            .message
            .unwrap_or_else(|| "the provider sent an error".to_owned()),
        status,
        retry_after: None,
    }
}

/// A request that got no answer.
pub(super) fn from_reqwest(error: reqwest::Error) -> ModelError {
    let kind = if error.is_timeout() {
        ModelErrorKind::Timeout
    } else if error.is_builder() {
        ModelErrorKind::Rejected
    } else {
        ModelErrorKind::Connection
    };
    // The URL may hold credentials, and the innermost cause says most.
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    ModelError {
        kind,
        message: shorten(&format!("the provider was not reached: {cause}")),
        status: None,
        retry_after: None,
    }
}

/// What an error body says.
#[derive(Debug, Default)]
struct Said {
    message: Option<String>,
    /// `code`, else `type`.
    code: Option<String>,
}

impl Said {
    /// Knows `{"error": {"message", "code" (text or number), "type"}}`, `{"error": "text"}`, `{"message"}`,
    /// `{"detail": "text"}` and `{"detail": [{"msg"}]}`, alone or as the first element of a list.
    fn read(body: &Value) -> Self {
        let body = body.get(0).unwrap_or(body);
        let error = body.get("error").unwrap_or(body);
        let text = |value: Option<&Value>| match value {
            Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        let detail = || match body.get("detail") {
            Some(Value::Array(list)) => {
                let parts: Vec<_> = list
                    .iter()
                    .filter_map(|fault| fault.get("msg").and_then(Value::as_str))
                    .collect();
                (!parts.is_empty()).then(|| parts.join("; "))
            }
            other => text(other),
        };
        let message = error
            .as_str()
            .map(str::to_owned)
            .or_else(|| text(error.get("message")))
            .or_else(|| text(body.get("message")))
            .or_else(detail);
        Self {
            message: message.map(|message| shorten(&message)),
            code: text(error.get("code"))
                .or_else(|| text(error.get("type")))
                .or_else(|| text(body.get("code"))),
        }
    }
}

fn kind(status: Option<u16>, said: &Said) -> ModelErrorKind {
    let code = said.code.as_deref().unwrap_or("");
    let message = said.message.as_deref().unwrap_or("").to_lowercase();
    let mentions = |words: &[&str]| words.iter().any(|word| message.contains(word));
    match code {
        "insufficient_quota" | "billing_hard_limit_reached" | "billing_not_active" => {
            return ModelErrorKind::QuotaExhausted;
        }
        "context_length_exceeded" | "exceed_context_size_error" => {
            return ModelErrorKind::ContextOverflow;
        }
        "content_filter" | "content_policy_violation" => return ModelErrorKind::ContentFiltered,
        "model_not_found" => return ModelErrorKind::NotFound,
        "invalid_api_key" | "authentication_error" => return ModelErrorKind::Auth,
        _ => {}
    }
    match status {
        Some(400 | 413 | 422)
            if mentions(&[
                "context length",
                "context size",
                "context window",
                "too many tokens",
            ]) =>
        {
            ModelErrorKind::ContextOverflow
        }
        Some(401 | 403) => ModelErrorKind::Auth,
        Some(402) => ModelErrorKind::QuotaExhausted,
        Some(404) => ModelErrorKind::NotFound,
        Some(408 | 504) => ModelErrorKind::Timeout,
        Some(413) => ModelErrorKind::ContextOverflow,
        Some(429) => ModelErrorKind::RateLimited,
        Some(409 | 425 | 500..) => ModelErrorKind::Unavailable,
        Some(_) => ModelErrorKind::Rejected,
        None => match code {
            "rate_limit_exceeded" | "rate_limit_error" => ModelErrorKind::RateLimited,
            "invalid_request_error" => ModelErrorKind::Rejected,
            _ => ModelErrorKind::Unavailable,
        },
    }
}

/// `Retry-After-Ms`, or `Retry-After` in seconds or as a date.
fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(|text| text.parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(ms / 1000.0).ok();
    }
    let text = text(header::RETRY_AFTER.as_str())?;
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let at = DateTime::parse_from_rfc2822(text).ok()?;
    Some((at.with_timezone(&Utc) - now).to_std().unwrap_or_default())
}

fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(MESSAGE_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(status: u16, body: &str) -> ModelError {
        let status = StatusCode::from_u16(status).expect("the status is one");
        from_response(status, &HeaderMap::new(), body.as_bytes(), Utc::now())
    }

    #[test]
    fn every_shape_of_body_keeps_its_status_and_words() {
        let bodies = [
            json!({"error": {"message": "slow down", "type": "x", "param": null, "code": null}}),
            json!({"error": {"message": "slow down", "code": 429}}),
            json!({"error": "slow down"}),
            json!({"message": "slow down"}),
            json!({"detail": "slow down"}),
            json!({"detail": [{"loc": ["body"], "msg": "slow down", "input": "a prompt"}]}),
            json!([{"error": {"message": "slow down", "code": 429}}]),
        ];
        for body in bodies {
            let error = read(429, &body.to_string());
            assert_eq!(error.kind, ModelErrorKind::RateLimited, "{body}");
            assert_eq!(error.message, "slow down (HTTP 429)", "{body}");
            assert_eq!(error.status, Some(429));
        }
        let html = read(502, "<html>Bad Gateway</html>");
        assert_eq!(html.kind, ModelErrorKind::Unavailable);
        assert_eq!(html.message, "the provider answered HTTP 502");
    }

    #[test]
    fn kinds_follow_code_then_status() {
        let body = |code: &str, message: &str| {
            json!({"error": {"message": message, "code": code}}).to_string()
        };
        let cases = [
            (
                429,
                body("insufficient_quota", "pay"),
                ModelErrorKind::QuotaExhausted,
            ),
            (
                400,
                body("context_length_exceeded", "long"),
                ModelErrorKind::ContextOverflow,
            ),
            (
                400,
                body("", "This model's maximum context length is 8192"),
                ModelErrorKind::ContextOverflow,
            ),
            (
                400,
                body("content_filter", "no"),
                ModelErrorKind::ContentFiltered,
            ),
            (400, body("", "bad"), ModelErrorKind::Rejected),
            (401, body("", "key"), ModelErrorKind::Auth),
            (
                404,
                body("model_not_found", "what"),
                ModelErrorKind::NotFound,
            ),
            (500, body("", "oops"), ModelErrorKind::Unavailable),
            (529, body("", "full"), ModelErrorKind::Unavailable),
            (302, String::new(), ModelErrorKind::Rejected),
        ];
        for (status, body, expected) in cases {
            assert_eq!(read(status, &body).kind, expected, "{status} {body}");
        }
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let now = DateTime::parse_from_rfc2822("Wed, 21 Oct 2026 07:28:00 GMT")
            .expect("the date is one")
            .with_timezone(&Utc);
        let wait = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().expect("the header is one"));
            retry_after(&headers, now)
        };
        assert_eq!(wait("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(
            wait("retry-after", "Wed, 21 Oct 2026 07:28:30 GMT"),
            Some(Duration::from_secs(30))
        );
        assert_eq!(
            wait("retry-after-ms", "250"),
            Some(Duration::from_millis(250))
        );
        assert_eq!(wait("retry-after", "soon"), None);
        assert_eq!(wait("retry-after", "-1"), None);
    }
}
