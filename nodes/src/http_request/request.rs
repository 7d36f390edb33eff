//! From parameters to a request.

use bytes::Bytes;
use callboard_runtime::{
    node::NodeError,
    outbound::{self, OutboundRequest, Url},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde_json::{Map, Value};

use super::{Parameters, TIMEOUT_DEFAULT, bounded, invalid};
use crate::values::text;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const FORM: &str = "application/x-www-form-urlencoded";

/// The request for one item.
pub(super) fn build(parameters: &Parameters, key: &str) -> Result<OutboundRequest, NodeError> {
    let mut url =
        outbound::parse_url(&parameters.url).map_err(|fault| invalid(fault.to_string()))?;
    add_query(&mut url, parameters.query.as_ref())?;
    let mut headers = headers(parameters.headers.as_ref())?;
    let body = body(&parameters.body, &mut headers)?;
    if !headers.contains_key(IDEMPOTENCY_KEY) {
        headers.insert(IDEMPOTENCY_KEY, key_value(key)?);
    }
    let timeout = bounded(parameters.timeout.unwrap_or(TIMEOUT_DEFAULT)).map_err(invalid)?;
    Ok(OutboundRequest {
        headers,
        body,
        timeout,
        follow_redirects: parameters.follow_redirects,
        ..OutboundRequest::new(method(&parameters.method).map_err(invalid)?, url)
    })
}

/// Reads a method. The error is a sentence.
pub(super) fn method(text: &str) -> Result<Method, String> {
    let method = Method::from_bytes(text.trim().to_ascii_uppercase().as_bytes());
    method
        .ok()
        .filter(|method| *method != Method::CONNECT && *method != Method::TRACE)
        .ok_or_else(|| format!("`{text}` is no method that can be sent"))
}

/// One or several values under a name, as text.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::Object(_) => None,
        Value::Array(elements) => elements
            .iter()
            .map(|element| (!element.is_object() && !element.is_array()).then(|| text(element)))
            .collect(),
        scalar => Some(vec![text(scalar)]),
    }
}

fn named<'v>(
    parameter: &str,
    values: Option<&'v Map<String, Value>>,
) -> Result<Vec<(&'v str, String)>, NodeError> {
    let mut pairs = Vec::new();
    for (name, value) in values.into_iter().flatten() {
        let texts = texts(value).ok_or_else(|| {
            invalid(format!(
                "`{parameter}.{name}` must be text, a number or a list of them"
            ))
        })?;
        pairs.extend(texts.into_iter().map(|text| (name.as_str(), text)));
    }
    Ok(pairs)
}

fn add_query(url: &mut Url, query: Option<&Map<String, Value>>) -> Result<(), NodeError> {
    let pairs = named("query", query)?;
    if !pairs.is_empty() {
        url.query_pairs_mut().extend_pairs(pairs);
    }
    Ok(())
}

fn headers(written: Option<&Map<String, Value>>) -> Result<HeaderMap, NodeError> {
    let mut headers = HeaderMap::new();
    for (name, value) in named("headers", written)? {
        // The value stays out of the message: it may be a secret.
        let fault = || invalid(format!("`headers.{name}` is no valid header"));
        let value = HeaderValue::try_from(value).map_err(|_| fault())?;
        let name = HeaderName::try_from(name).map_err(|_| fault())?;
        headers.try_append(name, value).map_err(|_| fault())?;
    }
    Ok(headers)
}

fn body(body: &Value, headers: &mut HeaderMap) -> Result<Option<Bytes>, NodeError> {
    let declared = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let is_form = declared.is_some_and(|kind| kind.to_ascii_lowercase().starts_with(FORM));
    let (bytes, kind) = match body {
        Value::Null => return Ok(None),
        Value::String(text) => (text.clone(), "text/plain; charset=utf-8"),
        Value::Object(fields) if is_form => (form(fields)?, FORM),
        other => (other.to_string(), "application/json"),
    };
    headers
        .entry(header::CONTENT_TYPE)
        .or_insert(HeaderValue::from_static(kind));
    Ok(Some(bytes.into()))
}

fn form(fields: &Map<String, Value>) -> Result<String, NodeError> {
    // The query of a URL is encoded as a form is.
    let mut url = Url::parse("http://form").map_err(|fault| invalid(fault.to_string()))?;
    add_query(&mut url, Some(fields))?;
    Ok(url.query().unwrap_or_default().to_owned())
}

/// Names of steps may have any characters; a header takes only visible ASCII. Distinct keys stay distinct.
fn key_value(key: &str) -> Result<HeaderValue, NodeError> {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'%';
    let encoded: String = key
        .bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect();
    HeaderValue::try_from(encoded).map_err(|fault| invalid(fault.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn built(with: Value) -> Result<OutboundRequest, NodeError> {
        build(&serde_json::from_value(with).unwrap(), "execution/step/0")
    }

    fn sent(with: Value) -> (String, String) {
        let request = built(with).unwrap();
        let kind = request
            .headers
            .get("content-type")
            .map(|value| value.to_str().unwrap().to_owned());
        let body = String::from_utf8(request.body.unwrap_or_default().to_vec()).unwrap();
        (kind.unwrap_or_default(), body)
    }

    #[test]
    fn the_query_is_added_to_the_urls() {
        let with = json!({"url": "https://a.example/x?y=1", "query": {"a b": "c&d", "n": 5, "l": [1, "2"], "none": null, "t": true}});
        assert_eq!(
            built(with).unwrap().url.as_str(),
            "https://a.example/x?y=1&a+b=c%26d&n=5&l=1&l=2&t=true"
        );
        assert_eq!(
            built(json!({"url": "https://a.example/x", "query": {}}))
                .unwrap()
                .url
                .as_str(),
            "https://a.example/x"
        );
    }

    #[test]
    fn bodies_say_what_they_are() {
        let with = |more: Value| {
            let mut with = json!({"url": "https://a.example/"});
            with.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            with
        };
        let plain = |kind: &str, body: &str| (kind.to_owned(), body.to_owned());
        assert_eq!(
            sent(with(json!({"body": {"a": [1]}}))),
            plain("application/json", r#"{"a":[1]}"#)
        );
        assert_eq!(
            sent(with(json!({"body": "x"}))),
            plain("text/plain; charset=utf-8", "x")
        );
        assert_eq!(
            sent(with(
                json!({"body": "<a/>", "headers": {"Content-Type": "text/xml"}})
            )),
            plain("text/xml", "<a/>")
        );
        assert_eq!(
            sent(with(
                json!({"body": {"a": "b c", "d": [1, 2]}, "headers": {"content-type": FORM}})
            )),
            plain(FORM, "a=b+c&d=1&d=2")
        );
        assert_eq!(sent(with(json!({"body": null}))), plain("", ""));
        assert_eq!(sent(with(json!({}))), plain("", ""));
    }

    #[test]
    fn the_idempotency_key_is_the_engines_unless_the_author_has_one() {
        let key = |with: Value| built(with).unwrap().headers["idempotency-key"].clone();
        assert_eq!(
            key(json!({"url": "https://a.example/"})),
            "execution/step/0"
        );
        assert_eq!(
            key(json!({"url": "https://a.example/", "headers": {"Idempotency-Key": "mine"}})),
            "mine"
        );
        assert_eq!(
            key_value("e/Schritt Ü%/0").unwrap(),
            "e/Schritt%20%C3%9C%25/0"
        );
    }

    #[test]
    fn what_cannot_be_sent_is_an_error_without_values() {
        for with in [
            json!({"url": "ftp://a.example/"}),
            json!({"url": "https://user:secret@"}),
            json!({"url": "https://a.example/", "method": "CONNECT"}),
            json!({"url": "https://a.example/", "method": "GET\n"}),
            json!({"url": "https://a.example/", "method": "G T"}),
            json!({"url": "https://a.example/", "headers": {"x-key": "secret\n"}}),
            json!({"url": "https://a.example/", "headers": {"x key": "secret"}}),
            json!({"url": "https://a.example/", "query": {"a": {"secret": 1}}}),
            json!({"url": "https://a.example/", "timeout": "2h"}),
            json!({"url": "https://a.example/", "timeout": "0s"}),
        ] {
            match built(with.clone()) {
                Err(NodeError::Permanent { code, message, .. }) => {
                    assert_eq!(code, "invalid_parameters", "{with}");
                    assert!(!message.contains("secret"), "{message}");
                }
                // White space around a method is harmless.
                Ok(request) => assert_eq!(
                    (request.method, &with["method"]),
                    (Method::GET, &json!("GET\n"))
                ),
                other => panic!("{with}: {other:?}"),
            }
        }
    }
}
