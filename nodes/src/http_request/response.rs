//! From an answer to items, or to a failure.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use callboard_runtime::{item::Item, node::NodeError, outbound::OutboundResponse};
use chrono::{DateTime, Utc};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value, json};

use super::{Format, Parameters};

/// Bytes of a failed answer's body that go into the error item.
const ERROR_BODY_BYTES_MAX: usize = 8 * 1024;
/// No server makes us wait longer.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// A body as it was read.
struct Body {
    value: Value,
    is_json: bool,
    is_base64: bool,
}

/// The items of one answer, without lineage.
pub(super) fn read(
    parameters: &Parameters,
    response: OutboundResponse,
) -> Result<Vec<Item>, NodeError> {
    let status = response.status;
    let is_result =
        status.is_success() || (status.is_redirection() && !parameters.follow_redirects);
    if !is_result {
        return Err(failure(&response, Utc::now()));
    }
    let body = body(parameters.response, &response)?;
    Ok(match body.value {
        Value::Object(_) if body.is_json && !parameters.full => vec![Item::new(body.value)],
        Value::Array(elements) if body.is_json && !parameters.full => {
            elements.into_iter().map(Item::new).collect()
        }
        value => vec![full(&response, value, body.is_base64)],
    })
}

fn full(response: &OutboundResponse, body: Value, is_base64: bool) -> Item {
    let mut json = json!({
        "status": response.status.as_u16(),
        "headers": headers(&response.headers),
        "body": body,
    });
    if is_base64 {
        json["encoding"] = "base64".into();
    }
    Item::new(json)
}

/// Names in lower case; several values of one name are joined, but for cookies, which may hold commas.
fn headers(headers: &HeaderMap) -> Map<String, Value> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers
        .keys()
        .map(|name| {
            let values: Vec<_> = headers.get_all(name).iter().map(text).collect();
            let value = if name == header::SET_COOKIE {
                values.into()
            } else {
                values.join(", ").into()
            };
            (name.as_str().to_owned(), value)
        })
        .collect()
}

fn body(format: Format, response: &OutboundResponse) -> Result<Body, NodeError> {
    let bytes = &response.body[..];
    let json = |value| Body {
        value,
        is_json: true,
        is_base64: false,
    };
    let text = || Body {
        value: String::from_utf8_lossy(bytes).into(),
        is_json: false,
        is_base64: false,
    };
    let base64 = || Body {
        value: BASE64_STANDARD.encode(bytes).into(),
        is_json: false,
        is_base64: true,
    };
    let kind = content_type(&response.headers);
    Ok(match format {
        Format::Text => text(),
        Format::Binary => base64(),
        Format::Json if bytes.is_empty() => json(Value::Null),
        Format::Json => json(serde_json::from_slice(bytes).map_err(|fault| {
            NodeError::permanent(
                "invalid_response",
                format!("the answer is no JSON: {fault}"),
            )
        })?),
        Format::Auto if kind == "application/json" || kind.ends_with("+json") => {
            serde_json::from_slice(bytes).map_or_else(|_| text(), json)
        }
        Format::Auto if kind.starts_with("text/") || str::from_utf8(bytes).is_ok() => text(),
        Format::Auto => base64(),
    })
}

fn content_type(headers: &HeaderMap) -> String {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let kind = value
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default();
    kind.trim().to_ascii_lowercase()
}

/// What a status other than 2xx means for the run.
fn failure(response: &OutboundResponse, now: DateTime<Utc>) -> NodeError {
    let status = response.status;
    let code = "http_status".to_owned();
    let message = format!(
        "{} answered {status}",
        response.url.host_str().unwrap_or("the server")
    );
    let details = Some(Box::new(
        json!({"status": status.as_u16(), "body": error_body(response)}),
    ));
    let is_transient = status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
        );
    if is_transient {
        NodeError::Transient {
            code,
            message,
            retry_after: retry_after(&response.headers, now),
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

fn error_body(response: &OutboundResponse) -> Value {
    let bytes = &response.body[..];
    if bytes.len() > ERROR_BODY_BYTES_MAX {
        let mut text = String::from_utf8_lossy(&bytes[..ERROR_BODY_BYTES_MAX]).into_owned();
        text.push('…');
        return text.into();
    }
    serde_json::from_slice(bytes).unwrap_or_else(|_| String::from_utf8_lossy(bytes).into())
}

/// Seconds, or a date (RFC 9110 §10.2.3).
fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let delay = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        // A date that is past asks for nothing.
        Err(_) => {
            let date = DateTime::parse_from_rfc2822(text).ok()?;
            (date.to_utc() - now).to_std().unwrap_or_default()
        }
    };
    Some(delay.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use callboard_runtime::outbound::Url;

    use super::*;

    fn response(status: u16, kind: &str, body: &[u8]) -> OutboundResponse {
        OutboundResponse {
            status: StatusCode::from_u16(status).unwrap(),
            headers: [(header::CONTENT_TYPE, kind.parse().unwrap())]
                .into_iter()
                .collect(),
            body: body.to_vec().into(),
            url: Url::parse("https://a.example/path?key=secret").unwrap(),
        }
    }

    fn items(with: Value, response: OutboundResponse) -> Value {
        let mut parameters = json!({"url": "https://a.example/"});
        parameters
            .as_object_mut()
            .unwrap()
            .extend(with.as_object().unwrap().clone());
        let items = read(&serde_json::from_value(parameters).unwrap(), response).unwrap();
        items.iter().map(|item| Value::clone(&item.json)).collect()
    }

    fn whole(status: u16, kind: &str, body: Value) -> Value {
        json!({"status": status, "headers": {"content-type": kind}, "body": body})
    }

    #[test]
    fn json_is_the_item_or_the_items() {
        let kind = "application/json; charset=utf-8";
        assert_eq!(
            items(json!({}), response(200, kind, br#"{"a":1}"#)),
            json!([{"a": 1}])
        );
        assert_eq!(
            items(
                json!({}),
                response(200, "application/problem+json", br#"{"a":1}"#)
            ),
            json!([{"a": 1}])
        );
        assert_eq!(
            items(json!({}), response(201, kind, br#"[{"a":1},5]"#)),
            json!([{"a": 1}, {"value": 5}])
        );
        assert_eq!(items(json!({}), response(200, kind, b"[]")), json!([]));
        assert_eq!(
            items(json!({}), response(200, kind, b"5")),
            json!([whole(200, kind, json!(5))])
        );
        let full = json!({"full": true});
        assert_eq!(
            items(full, response(200, kind, b"[1]")),
            json!([whole(200, kind, json!([1]))])
        );
        assert_eq!(
            items(
                json!({"response": "json"}),
                response(200, "text/x", br#"{"a":1}"#)
            ),
            json!([{"a": 1}])
        );
        assert_eq!(
            items(json!({"response": "json"}), response(204, "a/b", b"")),
            json!([whole(204, "a/b", json!(null))])
        );
    }

    #[test]
    fn other_bodies_are_text_or_base64() {
        for (with, kind, body, expected) in [
            (json!({}), "text/html", b"<p>".as_slice(), json!("<p>")),
            (json!({}), "application/xml", b"<a/>", json!("<a/>")),
            (json!({}), "application/json", b"{broken", json!("{broken")),
            (json!({}), "text/plain", b"\xff", json!("\u{fffd}")),
            (
                json!({"response": "text"}),
                "application/json",
                b"{}",
                json!("{}"),
            ),
        ] {
            assert_eq!(
                items(with, response(200, kind, body)),
                json!([whole(200, kind, expected)]),
                "{kind}"
            );
        }
        for (with, kind, body) in [
            (json!({}), "image/png", b"\x89PN".as_slice()),
            (json!({"response": "binary"}), "application/json", b"{}"),
        ] {
            let mut expected = whole(200, kind, json!(BASE64_STANDARD.encode(body)));
            expected["encoding"] = "base64".into();
            assert_eq!(
                items(with, response(200, kind, body)),
                json!([expected]),
                "{kind}"
            );
        }
    }

    #[test]
    fn what_should_be_json_and_is_not_fails() {
        let parameters = json!({"url": "https://a.example/", "response": "json"});
        let fault = read(
            &serde_json::from_value(parameters).unwrap(),
            response(200, "text/html", b"<p>"),
        );
        assert!(
            matches!(fault, Err(NodeError::Permanent { code, .. }) if code == "invalid_response")
        );
    }

    #[test]
    fn a_redirect_is_a_result_for_those_who_do_not_follow() {
        let with = json!({"follow_redirects": false, "full": true});
        assert_eq!(items(with, response(302, "a/b", b""))[0]["status"], 302);
        let parameters = serde_json::from_value(json!({"url": "https://a.example/"})).unwrap();
        assert!(read(&parameters, response(304, "a/b", b"")).is_err());
    }

    #[test]
    fn the_status_says_whether_trying_again_helps() {
        for (status, transient) in [
            (400, false),
            (401, false),
            (404, false),
            (408, true),
            (409, false),
            (422, false),
            (429, true),
            (500, true),
            (501, true),
            (503, true),
            (599, true),
            (304, false),
        ] {
            let fault = failure(
                &response(status, "application/json", br#"{"why":1}"#),
                Utc::now(),
            );
            let (code, message, details) = match &fault {
                NodeError::Transient {
                    code,
                    message,
                    details,
                    ..
                } if transient => (code, message, details),
                NodeError::Permanent {
                    code,
                    message,
                    details,
                } if !transient => (code, message, details),
                other => panic!("{status}: {other:?}"),
            };
            assert_eq!(code, "http_status");
            assert!(
                message.starts_with("a.example answered") && !message.contains("secret"),
                "{message}"
            );
            assert_eq!(
                **details.as_ref().unwrap(),
                json!({"status": status, "body": {"why": 1}})
            );
        }
        let large = failure(&response(500, "text/plain", &[b'x'; 20_000]), Utc::now());
        let NodeError::Transient { details, .. } = large else {
            panic!("{large:?}")
        };
        assert_eq!(
            details.unwrap()["body"].as_str().unwrap().chars().count(),
            ERROR_BODY_BYTES_MAX + 1
        );
    }

    #[test]
    fn retry_after_is_read_in_both_forms_and_capped() {
        let now = "1994-11-06T08:49:00Z".parse().unwrap();
        let after = |text: &str| {
            retry_after(
                &[(header::RETRY_AFTER, text.parse().unwrap())]
                    .into_iter()
                    .collect(),
                now,
            )
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(
            after("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(Duration::from_secs(37))
        );
        assert_eq!(after("Sun, 06 Nov 1994 08:48:37 GMT"), Some(Duration::ZERO));
        assert_eq!(after("999999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(
            after("Sat, 06 Nov 2094 08:49:37 GMT"),
            Some(RETRY_AFTER_MAX)
        );
        assert_eq!(after("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
