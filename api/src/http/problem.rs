//! What clients are told when something does not work.
//!
//! Faults of a request are 422 with a list of all of them, worded as Pydantic 2 words them; everything else is
//! a problem document (RFC 9457). A cause is kept apart from the public text and only ever logged.

use std::{borrow::Cow, error::Error as StdError, fmt, time::Duration};

use callboard_agents::sessions::SessionError;
use callboard_runtime::{
    document,
    executions::{ActionError, StartError},
    schema::Violation,
    store::StoreError,
};
use poem::{
    Response,
    error::ResponseError,
    http::{HeaderName, HeaderValue, StatusCode, header},
};
use poem_openapi::{
    ApiResponse, Object,
    registry::{MetaMediaType, MetaResponse, MetaResponses, Registry},
    types::Type,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// What a client may repeat after, when the store did not answer.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// One fault of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Object)]
#[oai(rename = "ValidationFault")]
pub struct Fault {
    /// Where: `body`, `query`, `path` or `header`, then names and indexes.
    pub loc: Vec<Value>,
    /// What is wrong.
    pub msg: String,
    /// A stable name for it, such as `missing`.
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    pub kind: String,
    /// More about it, where there is more.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub ctx: Option<Value>,
}

impl Fault {
    /// A fault at `loc`, whose first element says which part of the request.
    pub fn new(
        loc: impl IntoIterator<Item = impl Into<Value>>,
        kind: impl Into<String>,
        msg: impl Into<String>,
    ) -> Self {
        Self {
            loc: loc.into_iter().map(Into::into).collect(),
            msg: msg.into(),
            kind: kind.into(),
            ctx: None,
        }
    }

    /// A fault at `path` below the body.
    pub fn in_body(path: &[String], kind: impl Into<String>, msg: impl Into<String>) -> Self {
        let loc = std::iter::once(Value::from("body")).chain(path.iter().map(|part| segment(part)));
        Self::new(loc, kind, msg)
    }
}

/// An index is a number in `loc`, a name is text.
fn segment(part: &str) -> Value {
    match part.parse::<u32>() {
        Ok(index) if index.to_string() == part => index.into(),
        _ => part.into(),
    }
}

impl From<&Violation> for Fault {
    fn from(violation: &Violation) -> Self {
        Self::in_body(&violation.path, &violation.kind, &violation.message)
    }
}

impl From<&document::Fault> for Fault {
    fn from(fault: &document::Fault) -> Self {
        let mut this = Self::in_body(&fault.path, fault.kind, &fault.message);
        this.ctx = fault
            .position
            .map(|(line, column)| json!({ "line": line, "column": column }));
        this
    }
}

/// All faults of a request.
#[derive(Object)]
#[oai(rename = "ValidationProblem")]
struct ValidationProblem {
    /// One entry per fault.
    #[allow(dead_code, reason = "read by the schema only")]
    detail: Vec<Fault>,
}

/// What went wrong (RFC 9457).
#[derive(Object)]
#[allow(dead_code, reason = "read by the schema only")]
struct Problem {
    /// The status in words.
    title: String,
    /// The status of the answer.
    status: u16,
    /// What happened, for people.
    detail: String,
    /// What happened, for programs.
    code: String,
    /// Under which the log has more.
    trace_id: String,
    /// The execution this is about.
    execution_id: Option<String>,
    /// The session this is about.
    session_id: Option<String>,
    /// The scope the key lacks.
    scope: Option<String>,
    /// The bound that was reached.
    limit: Option<Value>,
}

/// An answer other than the wanted one. The only error that knows HTTP.
pub struct ApiError(Box<Inner>);

struct Inner {
    status: StatusCode,
    code: Cow<'static, str>,
    detail: Cow<'static, str>,
    members: Map<String, Value>,
    faults: Vec<Fault>,
    headers: Vec<(HeaderName, HeaderValue)>,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

/// What a handler gives.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// A problem with this status; `code` is for programs, `detail` for people.
    pub fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self(Box::new(Inner {
            status,
            code: code.into(),
            detail: detail.into(),
            members: Map::new(),
            faults: Vec::new(),
            headers: Vec::new(),
            cause: None,
        }))
    }

    /// A request with faults; there must be one.
    pub fn invalid(faults: Vec<Fault>) -> Self {
        debug_assert!(!faults.is_empty(), "a refusal names a fault");
        let mut this = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_request",
            "The request is not valid.",
        );
        this.0.faults = faults;
        this
    }

    /// The faults it lists; none unless it is a 422.
    pub fn into_faults(self) -> Vec<Fault> {
        self.0.faults
    }

    /// There is no such thing.
    pub fn not_found(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    /// It does not go together with what is there.
    pub fn conflict(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    /// Something broke here. The cause is logged, never shown.
    pub fn internal(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let mut this = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Something went wrong on the server. Its log has more under the trace id.",
        );
        this.0.cause = Some(cause.into());
        this
    }

    /// Not now; later perhaps.
    pub fn unavailable(code: &'static str, detail: &'static str, retry_after: Duration) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).retry_after(retry_after)
    }

    /// The host is stopping.
    pub fn draining() -> Self {
        Self::unavailable(
            "draining",
            "This host is stopping and starts nothing new.",
            Duration::from_secs(1),
        )
    }

    /// Too much is running.
    pub fn busy(detail: &'static str, retry_after: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail).retry_after(retry_after)
    }

    /// Adds a member to the problem document.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.members.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a header to the answer.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// Says when to try again; rounded up to whole seconds.
    #[must_use]
    fn retry_after(self, after: Duration) -> Self {
        let seconds = after.as_millis().div_ceil(1000).max(1) as u64;
        self.header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The answer. Logs what only the operator may know.
    pub fn into_response(self, trace_id: &str) -> Response {
        let Inner {
            status,
            code,
            detail,
            members,
            faults,
            headers,
            cause,
        } = *self.0;
        match &cause {
            Some(cause) => {
                let cause = Chain(cause.as_ref());
                tracing::error!(trace_id, %status, %code, %cause, "request failed");
            }
            // What the client is told is all there is to know: a run that failed, a probe while the host stops.
            None if status.is_server_error() => {
                tracing::debug!(trace_id, %status, %code, %detail, "request failed");
            }
            None => {}
        }
        let (content_type, body) = if faults.is_empty() {
            let mut problem = Map::new();
            problem.insert(
                "title".into(),
                status.canonical_reason().unwrap_or("Error").into(),
            );
            problem.insert("status".into(), status.as_u16().into());
            problem.insert("detail".into(), detail.into());
            problem.insert("code".into(), code.into());
            problem.insert("trace_id".into(), trace_id.into());
            problem.extend(members);
            ("application/problem+json", Value::Object(problem))
        } else {
            ("application/json", json!({ "detail": faults }))
        };
        let mut response = Response::builder()
            .status(status)
            .content_type(content_type)
            .body(body.to_string());
        for (name, value) in headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}

/// A cause with everything behind it.
struct Chain<'a>(&'a (dyn StdError + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: {} {:?}",
            self.0.status, self.0.code, self.0.detail, self.0.faults
        )
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.detail)
    }
}

impl StdError for ApiError {}

impl ResponseError for ApiError {
    fn status(&self) -> StatusCode {
        ApiError::status(self)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let mut this = match &error {
            StoreError::NotFound => return Self::not_found("There is no such thing."),
            StoreError::Conflict(_) => {
                Self::conflict("conflict", "It exists already, or was changed meanwhile.")
            }
            StoreError::Fenced => Self::unavailable(
                "fenced",
                "This host may not write at the moment. Try again, best elsewhere.",
                STORE_RETRY,
            ),
            StoreError::Closed => return Self::draining(),
            StoreError::Unconfirmed(_) => Self::unavailable(
                "database_unavailable",
                "The database gave no answer, so this may have happened or not. Repeat it with the same idempotency key.",
                STORE_RETRY,
            ),
            StoreError::Corrupt(_) => return Self::internal(error),
        };
        this.0.cause = Some(error.into());
        this
    }
}

impl From<StartError> for ApiError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::UnknownWorkflow(name) => Self::not_found(format!(
                "There is no workflow `{name}`, or not in that version."
            )),
            StartError::Disabled(name) => Self::conflict(
                "workflow_disabled",
                format!("Workflow `{name}` is disabled."),
            ),
            StartError::InvalidInput(violations) => Self::invalid(input_faults(&violations)),
            StartError::TooLarge(excess) => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "input_too_large",
                format!("An execution cannot start with so much: {excess}."),
            ),
            // Only executions start executions in a line; a client never does.
            StartError::Depth => Self::conflict("depth", format!("Not started: {error}.")),
            StartError::KeyReused => key_reused(),
            StartError::Busy(after) => Self::busy("Too many executions are running.", after),
            StartError::Draining => Self::draining(),
            StartError::Store(error) => error.into(),
        }
    }
}

fn key_reused() -> ApiError {
    ApiError::conflict(
        "idempotency_key_reused",
        "The idempotency key was used before with another body.",
    )
}

/// Violations of an execution's input, for a body that wraps it as `{"input": …}`.
fn input_faults(violations: &[Violation]) -> Vec<Fault> {
    violations
        .iter()
        .map(|violation| {
            let mut fault = Fault::from(violation);
            fault.loc.insert(1, "input".into());
            fault
        })
        .collect()
}

impl From<ActionError> for ApiError {
    fn from(error: ActionError) -> Self {
        match error {
            ActionError::NotFound(id) => Self::not_found(format!("There is no execution {id}.")),
            ActionError::Final(status) => Self::conflict(
                "execution_ended",
                format!("The execution is {} already.", status.as_str()),
            ),
            ActionError::Store(error) => error.into(),
        }
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::UnknownAgent(name) => {
                Self::not_found(format!("There is no agent `{name}`."))
            }
            SessionError::AgentDisabled(name) => {
                Self::conflict("agent_disabled", format!("Agent `{name}` is disabled."))
            }
            SessionError::NotFound(id) => Self::not_found(format!("There is no session {id}.")),
            SessionError::Running => Self::conflict("turn_in_progress", "A turn is in progress."),
            SessionError::Idle => Self::conflict("no_turn_in_progress", "No turn is in progress."),
            SessionError::KeyReused => Self::conflict(
                "idempotency_key_reused",
                "The idempotency key was used before with another message.",
            ),
            SessionError::Invalid(what) => Self::invalid(vec![Fault::new(
                ["body", "content"],
                "value_error",
                format!("Value error, {what}"),
            )]),
            SessionError::Busy(after) => Self::busy("Too many sessions are running.", after),
            SessionError::Store(error) => error.into(),
        }
    }
}

impl From<Vec<document::Fault>> for ApiError {
    fn from(faults: Vec<document::Fault>) -> Self {
        Self::invalid(faults.iter().map(Fault::from).collect())
    }
}

/// The statuses any operation may answer besides its own.
const ANSWERS: [(u16, &str); 10] = [
    (401, "No key, or not a valid one."),
    (403, "The key lacks a scope, which `scope` names."),
    (404, "There is no such thing."),
    (409, "It does not go together with what is there."),
    (413, "The body is too large."),
    (415, "The content type is not supported."),
    (422, "The request has faults; all of them are listed."),
    (
        429,
        "Too much is running; `Retry-After` says when to try again.",
    ),
    (500, "Something went wrong on the server."),
    (
        503,
        "The host is stopping, or its database does not answer; `Retry-After` says when to try again.",
    ),
];

impl ApiResponse for ApiError {
    fn meta() -> MetaResponses {
        let answer = |&(status, description): &(u16, &'static str)| MetaResponse {
            description,
            status: Some(status),
            status_range: None,
            content: vec![if status == 422 {
                MetaMediaType {
                    content_type: "application/json",
                    schema: ValidationProblem::schema_ref(),
                }
            } else {
                MetaMediaType {
                    content_type: "application/problem+json",
                    schema: Problem::schema_ref(),
                }
            }],
            headers: vec![],
        };
        MetaResponses {
            responses: ANSWERS.iter().map(answer).collect(),
        }
    }

    fn register(registry: &mut Registry) {
        ValidationProblem::register(registry);
        Problem::register(registry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body(response: Response) -> Value {
        response
            .into_body()
            .into_json()
            .await
            .expect("problems are JSON")
    }

    #[tokio::test]
    async fn a_problem_has_all_members_and_no_cause() {
        let error = ApiError::internal(StoreError::Corrupt("SELECT secret".into()))
            .with("execution_id", "e1");
        let response = error.into_response("abc");
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.content_type(), Some("application/problem+json"));
        let body = body(response).await;
        assert_eq!(body["title"], "Internal Server Error");
        assert_eq!(body["status"], 500);
        assert_eq!(body["code"], "internal");
        assert_eq!(body["trace_id"], "abc");
        assert_eq!(body["execution_id"], "e1");
        assert!(!body.to_string().contains("SELECT"), "{body}");
    }

    #[tokio::test]
    async fn faults_are_listed_without_an_envelope() {
        let faults = vec![Fault::in_body(
            &["spec".into(), "steps".into(), "0".into(), "007".into()],
            "missing",
            "Field required",
        )];
        let response = ApiError::invalid(faults).into_response("abc");
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(response.content_type(), Some("application/json"));
        assert_eq!(
            body(response).await,
            json!({ "detail": [{ "loc": ["body", "spec", "steps", 0, "007"], "msg": "Field required", "type": "missing" }] })
        );
    }

    #[test]
    fn what_is_busy_or_unavailable_says_when_to_try_again() {
        for (error, status, after) in [
            (
                ApiError::from(StartError::Busy(Duration::from_millis(1200))),
                429,
                "2",
            ),
            (ApiError::from(StartError::Draining), 503, "1"),
            (
                ApiError::from(StoreError::Unconfirmed("x".into())),
                503,
                "1",
            ),
        ] {
            let response = error.into_response("abc");
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(response.headers()[header::RETRY_AFTER], after);
        }
    }

    #[test]
    fn violations_of_an_input_point_into_the_body() {
        let violation = Violation {
            path: vec!["email".into()],
            message: "Field required".into(),
            kind: "missing".into(),
        };
        let error = ApiError::from(StartError::InvalidInput(vec![violation]));
        assert_eq!(error.0.faults[0].loc, ["body", "input", "email"]);
    }
}
