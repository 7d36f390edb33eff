//! Requests to the server under test.

use std::time::Duration;

pub use reqwest::Method;
use serde_json::Value;

use crate::sse::Events;

/// What came back.
#[derive(Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// All headers.
    pub headers: reqwest::header::HeaderMap,
    /// The body, as JSON where it is, else as a string; `Null` when empty.
    pub body: Value,
}

impl Reply {
    /// The body, if the status is the expected one.
    ///
    /// # Panics
    /// When it is another: the message has everything that came.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(
            self.status, status,
            "unexpected answer: {:#?}\n{:#}",
            self.headers, self.body
        );
        self.body
    }

    /// Checks that it is a problem document of this status and returns it.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn expect_problem(self, status: u16) -> Value {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{self:#?}"
        );
        let body = self.expect(status);
        assert_eq!(body["status"], status, "{body:#}");
        for member in ["title", "detail", "code", "trace_id"] {
            assert!(body[member].is_string(), "no `{member}`: {body:#}");
        }
        body
    }

    /// Checks that it is a 422 whose details name `location`, and returns that detail.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn expect_fault(self, location: &[&str]) -> Value {
        let body = self.expect(422);
        let details = body["detail"]
            .as_array()
            .unwrap_or_else(|| panic!("{body:#}"));
        for detail in details {
            assert!(
                detail["loc"].is_array() && detail["msg"].is_string() && detail["type"].is_string(),
                "{detail:#}"
            );
        }
        let path = |detail: &Value| -> Vec<String> {
            let parts = detail["loc"].as_array().into_iter().flatten();
            parts
                .map(|part| {
                    part.as_str()
                        .map_or_else(|| part.to_string(), str::to_owned)
                })
                .collect()
        };
        details
            .iter()
            .find(|detail| path(detail) == location)
            .unwrap_or_else(|| panic!("nothing at {location:?}: {body:#}"))
            .clone()
    }

    /// A header, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A request that is being put together.
pub struct Call {
    request: reqwest::RequestBuilder,
}

impl Call {
    /// A request with a key, unless that is empty.
    pub fn new(method: Method, url: &str, key: &str) -> Self {
        // One client per request: a pooled connection to a server that was killed would fail the next request.
        let request = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(120))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("a client can be built")
            .request(method, url);
        Self {
            request: match key {
                "" => request,
                key => request.bearer_auth(key),
            },
        }
    }

    /// With a JSON body.
    #[must_use]
    pub fn json(self, body: &Value) -> Self {
        Self {
            request: self.request.json(body),
        }
    }

    /// With any body.
    #[must_use]
    pub fn body(self, content_type: &str, body: impl Into<reqwest::Body>) -> Self {
        Self {
            request: self.request.header("content-type", content_type).body(body),
        }
    }

    /// With a header.
    #[must_use]
    pub fn header(self, name: &str, value: impl AsRef<str>) -> Self {
        Self {
            request: self.request.header(name, value.as_ref()),
        }
    }

    /// Sends it.
    ///
    /// # Errors
    /// When there was no whole answer.
    pub async fn try_send(self) -> Result<Reply, reqwest::Error> {
        let response = self.request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let body = match text.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        };
        Ok(Reply {
            status,
            headers,
            body,
        })
    }

    /// Sends it.
    ///
    /// # Panics
    /// When there was no whole answer.
    pub async fn send(self) -> Reply {
        self.try_send().await.expect("the server answers")
    }

    /// Sends it for an event stream.
    ///
    /// # Panics
    /// When something else came.
    pub async fn events(self) -> Events {
        let response = self
            .request
            .header("accept", "text/event-stream")
            .send()
            .await
            .expect("the server answers");
        assert_eq!(response.status(), 200, "an event stream");
        let content_type = response.headers().get("content-type");
        assert!(
            content_type.is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream")),
            "{content_type:?}"
        );
        Events::new(response)
    }
}
