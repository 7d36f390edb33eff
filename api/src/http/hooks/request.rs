//! What a webhook request says, as `$trigger` and as the execution's input.

use poem::{Request, http::HeaderMap};
use serde_json::{Map, Value};

use crate::http::{
    body::{self, ContentType},
    keys,
    problem::{ApiError, ApiResult},
};

/// Headers whose values no workflow sees.
const REDACTED: [&str; 4] = [
    "authorization",
    "cookie",
    "proxy-authorization",
    "x-api-key",
];

/// What stands for what is hidden.
const HIDDEN: &str = "***";

/// The body as a value: JSON, the fields of a form, text, or `null` when there is none.
///
/// # Errors
/// 415 for other content types, 422 for broken JSON.
pub fn input(request: &Request, bytes: Vec<u8>) -> ApiResult<Value> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    match ContentType::of(request) {
        ContentType::Json => body::json(&bytes).map_err(ApiError::invalid),
        ContentType::Form => Ok(form(&bytes)),
        ContentType::Text | ContentType::Yaml => Ok(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(other) => String::from_utf8_lossy(other.as_bytes()).into_owned(),
        }
        .into()),
        ContentType::Other => Err(body::unsupported(
            request,
            "application/json, application/x-www-form-urlencoded or text/plain",
        )),
    }
}

fn form(bytes: &[u8]) -> Value {
    pairs(
        form_urlencoded::parse(bytes).map(|(name, value)| (name.into_owned(), value.into_owned())),
    )
}

/// An object of text by name; a name that comes again makes a list.
fn pairs(pairs: impl Iterator<Item = (String, String)>) -> Value {
    let mut object = Map::new();
    for (name, value) in pairs {
        match object.get_mut(&name) {
            None => drop(object.insert(name, value.into())),
            Some(Value::Array(values)) => values.push(value.into()),
            Some(first) => *first = Value::Array(vec![first.take(), value.into()]),
        }
    }
    Value::Object(object)
}

/// `$trigger` besides `body`: `{query, headers, params, method, path}`.
pub fn trigger_data(request: &Request, path: &str, params: Vec<(String, String)>) -> Value {
    let query = request.uri().query().unwrap_or_default();
    let query = form_urlencoded::parse(query.as_bytes()).map(|(name, value)| {
        // A key that somebody sends here, where it is of no use, is a key all the same.
        let value = match value.starts_with(keys::PREFIX) {
            true => HIDDEN.to_owned(),
            false => value.into_owned(),
        };
        (name.into_owned(), value)
    });
    let params = params.into_iter().map(|(name, value)| (name, value.into()));
    Value::Object(Map::from_iter([
        ("query".to_owned(), pairs(query)),
        ("headers".to_owned(), headers(request.headers())),
        ("params".to_owned(), Value::Object(params.collect())),
        ("method".to_owned(), request.method().as_str().into()),
        ("path".to_owned(), path.into()),
    ]))
}

/// Headers by lower-case name; several of one name are joined as HTTP joins them.
fn headers(headers: &HeaderMap) -> Value {
    let mut object = Map::with_capacity(headers.keys_len());
    for name in headers.keys() {
        let value = if REDACTED.contains(&name.as_str()) {
            HIDDEN.to_owned()
        } else {
            let values: Vec<_> = headers
                .get_all(name)
                .iter()
                .map(|value| String::from_utf8_lossy(value.as_bytes()))
                .collect();
            values.join(", ")
        };
        object.insert(name.as_str().to_owned(), value.into());
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(content_type: &str) -> Request {
        Request::builder()
            .uri_str("http://host/hooks/leads?tag=a&tag=b&q=%C3%A4+1&key=cb_secret")
            .content_type(content_type)
            .header("Authorization", "Bearer secret")
            .header("X-Many", "1")
            .header("X-Many", "2")
            .finish()
    }

    #[test]
    fn bodies_are_read_by_their_content_type() {
        let read =
            |content_type, body: &str| input(&request(content_type), body.as_bytes().to_vec());
        assert_eq!(read("application/json", "[1]").ok(), Some(json!([1])));
        assert_eq!(
            read("application/x-www-form-urlencoded", "a=1&b=2&b=3+4").ok(),
            Some(json!({ "a": "1", "b": ["2", "3 4"] }))
        );
        assert_eq!(read("text/plain", "hello").ok(), Some(json!("hello")));
        assert_eq!(read("image/png", "").ok(), Some(Value::Null));
        assert_eq!(
            read("image/png", "x").map_err(|error| error.status().as_u16()),
            Err(415)
        );
        assert_eq!(
            read("application/json", "{").map_err(|error| error.status().as_u16()),
            Err(422)
        );
    }

    #[test]
    fn the_trigger_sees_the_request_without_its_secrets() {
        let data = trigger_data(
            &request("text/plain"),
            "/leads",
            vec![("id".into(), "7".into())],
        );
        assert_eq!(
            data["query"],
            json!({ "tag": ["a", "b"], "q": "ä 1", "key": "***" })
        );
        assert_eq!(data["params"], json!({ "id": "7" }));
        assert_eq!(data["headers"]["authorization"], "***");
        assert_eq!(data["headers"]["x-many"], "1, 2");
        assert_eq!(data["method"], "GET");
        assert_eq!(data["path"], "/leads");
        assert!(!data.to_string().contains("secret"));
    }
}
