//! Answers of operations: JSON with a status, lists, and nothing.

use callboard_runtime::store::LIMIT_MAX;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use poem::{
    IntoResponse, Response,
    http::{HeaderName, HeaderValue, StatusCode, header},
};
use poem_openapi::{
    ApiResponse,
    registry::{
        MetaHeader, MetaMediaType, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry,
    },
    types::Type,
};
use serde::Serialize;

use super::problem::ApiError;

/// JSON with status `STATUS`.
pub struct Reply<const STATUS: u16, T> {
    body: T,
    location: Option<String>,
}

/// 200.
pub type Found<T> = Reply<200, T>;
/// 201, with the place of what was made.
pub type Created<T> = Reply<201, T>;
/// 202: it will happen.
pub type Accepted<T> = Reply<202, T>;

impl<const STATUS: u16, T> Reply<STATUS, T> {
    /// With this body.
    pub fn new(body: T) -> Self {
        Self {
            body,
            location: None,
        }
    }

    /// With a `Location`.
    #[must_use]
    pub fn at(mut self, location: impl Into<String>) -> Self {
        self.location = Some(location.into());
        self
    }
}

/// What a status means, for the documentation.
fn described(status: u16) -> &'static str {
    match status {
        201 => "It was made; `Location` says where it is.",
        202 => "It was accepted and will happen; `Location` says where to look.",
        204 => "It is done.",
        _ => "It is answered.",
    }
}

/// The documentation of a JSON answer.
pub fn json_meta<T: Type>(status: u16) -> MetaResponse {
    let location = MetaHeader {
        name: "Location".to_owned(),
        description: Some("Where it is.".to_owned()),
        required: false,
        deprecated: false,
        schema: MetaSchemaRef::Inline(Box::new(MetaSchema::new("string"))),
    };
    MetaResponse {
        description: described(status),
        status: Some(status),
        status_range: None,
        content: vec![MetaMediaType {
            content_type: "application/json",
            schema: T::schema_ref(),
        }],
        headers: if matches!(status, 201 | 202) {
            vec![location]
        } else {
            vec![]
        },
    }
}

impl<const STATUS: u16, T: Type> ApiResponse for Reply<STATUS, T> {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![json_meta::<T>(STATUS)],
        }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<const STATUS: u16, T: Serialize + Send> IntoResponse for Reply<STATUS, T> {
    fn into_response(self) -> Response {
        let mut response = json(StatusCode::from_u16(STATUS).unwrap_or_default(), &self.body);
        if let Some(location) = self.location {
            set(&mut response, header::LOCATION, &location);
        }
        response
    }
}

/// An answer with a JSON body.
pub fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => Response::builder()
            .status(status)
            .content_type("application/json")
            .body(bytes),
        // Only a map with keys that are no strings does this, and no type here has one.
        Err(error) => ApiError::internal(error).into_response(""),
    }
}

/// Sets a header; a value that no header can hold is left out.
pub fn set(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// 204.
pub struct NoContent;

impl ApiResponse for NoContent {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![MetaResponse {
                description: described(204),
                status: Some(204),
                status_range: None,
                content: vec![],
                headers: vec![],
            }],
        }
    }

    fn register(_: &mut Registry) {}
}

impl IntoResponse for NoContent {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into()
    }
}

/// What stands for itself in a path segment.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A path segment, percent-encoded.
pub fn encode_segment(text: &str) -> String {
    utf8_percent_encode(text, UNRESERVED).to_string()
}

/// Cuts `rows`, of which one more than `limit` was asked for, to a page; `cursor` makes the next page's from its last
/// row. The store gives [`LIMIT_MAX`] rows at most, so behind a full page of that many there may be more.
pub fn page<R>(
    mut rows: Vec<R>,
    limit: usize,
    cursor: impl FnOnce(&R) -> String,
) -> (Vec<R>, Option<String>) {
    let more = rows.len() > limit || rows.len() as i64 == LIMIT_MAX;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(cursor);
    (rows, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_full_page_with_more_behind_it_has_a_cursor() {
        let last = |row: &i32| row.to_string();
        assert_eq!(
            page(vec![1, 2, 3], 2, last),
            (vec![1, 2], Some("2".to_owned()))
        );
        assert_eq!(page(vec![1, 2], 2, last), (vec![1, 2], None));
        assert_eq!(page(vec![], 2, last), (vec![], None));
    }

    #[test]
    fn a_location_follows_its_name_safely() {
        assert_eq!(encode_segment("a b/ä~"), "a%20b%2F%C3%A4~");
    }
}
