//! Runs of workflows: started, looked at, followed, cancelled.

use std::{sync::Arc, time::Duration};

use callboard_runtime::{
    executions::StartExecution,
    id::ExecutionId,
    store::{
        executions::{self, ExecutionFilter, ExecutionSummary, StoredExecution},
        node_runs,
        rows::{ExecutionStatus, NodeRunRow},
    },
};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use poem::{IntoResponse, Request, Response};
use poem_openapi::{
    ApiResponse, Object, OpenApi,
    param::{Header, Path, Query},
    registry::{MetaResponses, Registry},
    types::Type,
};
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use uuid::Uuid;

use super::Tag;
use crate::http::{
    State,
    answer::{self, Accepted, Found},
    auth::{Auth, ExecutionsRead, ExecutionsWrite, StreamAuth, WorkflowsRun},
    input::{Body, BodyType, Cursor, Faults, Fields, IdempotencyKey, Limit, Param, Wrong},
    problem::{ApiError, ApiResult},
    sse::{self, Events},
    trace::TraceId,
};

/// How long `Prefer: wait` may ask for.
const WAIT_MAX: Duration = Duration::from_secs(300);

pub struct Operations(pub Arc<State>);

/// An execution to be started.
#[derive(Object)]
struct ExecutionCreate {
    /// What the workflow works on; a list is one item per element.
    input: Option<Value>,
    /// A version; the current one unless said.
    version: Option<i32>,
}

impl BodyType for ExecutionCreate {
    const OPTIONAL: bool = true;

    fn read(fields: &mut Fields) -> Option<Self> {
        let input = fields.raw("input");
        let version: Option<i32> = fields.optional("version");
        if version.is_some_and(|version| version < 1) {
            fields.fault(
                "version",
                Wrong::new(
                    "greater_than_equal",
                    "Input should be greater than or equal to 1",
                ),
            );
        }
        Some(Self { input, version })
    }
}

/// A run, without what it was given and what it gave.
#[derive(Object, Serialize)]
struct ExecutionListItem {
    /// Its id.
    id: Uuid,
    /// Name of the workflow.
    workflow: String,
    /// The version it runs.
    version: i32,
    /// `queued`, `running`, `waiting`, `succeeded`, `failed` or `cancelled`; the last three are final.
    status: String,
    /// How it was started: `manual`, `webhook`, …
    trigger: String,
    /// When it was accepted.
    started_at: DateTime<Utc>,
    /// When it ended.
    finished_at: Option<DateTime<Utc>>,
    /// From its start to its end.
    duration_ms: Option<i64>,
    /// The host it runs on.
    host: Option<Uuid>,
    /// The execution that waits for it or started it.
    parent_id: Option<Uuid>,
    /// Of which execution it is another try.
    retry_of: Option<Uuid>,
    /// Under which it was started.
    idempotency_key: Option<String>,
}

impl From<ExecutionSummary> for ExecutionListItem {
    fn from(row: ExecutionSummary) -> Self {
        Self {
            id: row.id.0,
            workflow: row.workflow,
            version: row.version,
            status: row.status.as_str().to_owned(),
            trigger: row.trigger,
            duration_ms: row
                .finished_at
                .map(|end| (end - row.started_at).num_milliseconds().max(0)),
            started_at: row.started_at,
            finished_at: row.finished_at,
            host: row.host_id.map(|id| id.0),
            parent_id: row.parent_id.map(|id| id.0),
            retry_of: row.retry_of.map(|id| id.0),
            idempotency_key: row.idempotency_key,
        }
    }
}

/// A run.
#[derive(Object, Serialize)]
struct ExecutionDetails {
    #[serde(flatten)]
    #[oai(flatten)]
    summary: ExecutionListItem,
    /// What it was given.
    input: Value,
    /// What it gave: the last step's item, or all its items as a list.
    output: Option<Value>,
    /// Why it failed: `{code, message, step}`.
    error: Option<Value>,
}

impl From<StoredExecution> for ExecutionDetails {
    fn from(row: StoredExecution) -> Self {
        Self {
            summary: row.summary.into(),
            input: row.input,
            output: row.output,
            error: row.error,
        }
    }
}

/// A page of runs, newest first.
#[derive(Object, Serialize)]
struct ExecutionList {
    /// The page.
    data: Vec<ExecutionListItem>,
    /// For `cursor`, when there is more.
    next_cursor: Option<String>,
}

/// One attempt of one visit to one step, ended.
#[derive(Object)]
#[allow(dead_code, reason = "read by the schema only")]
struct NodeRunListItem {
    /// Its place in the journal, from 0.
    seq: i32,
    /// Id of the step.
    step: String,
    /// Node type.
    #[oai(rename = "type")]
    node_type: String,
    /// From 1.
    attempt: i32,
    /// `succeeded`, `failed`, `skipped` or `cancelled`.
    status: String,
    /// The port its items left on.
    port: Option<String>,
    /// Index of the element, inside a `map`.
    item_index: Option<i32>,
    /// The host it ran on.
    host: Uuid,
    /// When the attempt began.
    started_at: DateTime<Utc>,
    /// When it ended.
    finished_at: DateTime<Utc>,
    /// From its start to its end.
    duration_ms: i64,
    /// The items on `port`.
    output: Option<Value>,
    /// `{code, message, …}`
    error: Option<Value>,
    /// `seq` of the row whose items started it.
    parent_seq: Option<i32>,
}

/// A page of the journal.
#[derive(Object)]
#[allow(dead_code, reason = "read by the schema only")]
struct NodeRunList {
    /// The page.
    data: Vec<NodeRunListItem>,
    /// For `cursor`, when there is more.
    next_cursor: Option<String>,
}

/// A row of [`NodeRunList`] as it is sent: its payloads go from the store to the client as the text they are.
#[derive(Serialize)]
struct SentNodeRun {
    seq: i32,
    step: String,
    r#type: String,
    attempt: i32,
    status: &'static str,
    port: Option<String>,
    item_index: Option<i32>,
    host: Uuid,
    started_at: DateTime<Utc>,
    finished_at: DateTime<Utc>,
    duration_ms: i64,
    output: Option<Box<RawValue>>,
    error: Option<Box<RawValue>>,
    parent_seq: Option<i32>,
}

impl TryFrom<NodeRunRow> for SentNodeRun {
    type Error = serde_json::Error;

    fn try_from(row: NodeRunRow) -> Result<Self, Self::Error> {
        let duration = row.finished_at - row.started_at;
        Ok(Self {
            seq: row.seq,
            step: row.step,
            r#type: row.node_type,
            attempt: row.attempt,
            status: row.status.as_str(),
            port: row.port,
            item_index: row.item_index,
            host: row.host_id.0,
            started_at: row.started_at,
            finished_at: row.finished_at,
            duration_ms: duration.num_milliseconds().max(0),
            output: row.output.map(RawValue::from_string).transpose()?,
            error: row.error.map(RawValue::from_string).transpose()?,
            parent_seq: row.parent_seq,
        })
    }
}

/// [`NodeRunList`] as it is sent.
#[derive(Serialize)]
struct SentNodeRuns {
    data: Vec<SentNodeRun>,
    next_cursor: Option<String>,
}

/// A page of the journal as an answer.
struct NodeRunsAnswer(SentNodeRuns);

impl ApiResponse for NodeRunsAnswer {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![answer::json_meta::<NodeRunList>(200)],
        }
    }

    fn register(registry: &mut Registry) {
        NodeRunList::register(registry);
    }
}

impl IntoResponse for NodeRunsAnswer {
    fn into_response(self) -> Response {
        Found::new(self.0).into_response()
    }
}

/// What starting an execution is answered with.
enum StartAnswer {
    /// It ended while the caller waited.
    Ended(Found<ExecutionDetails>),
    /// It goes on.
    Accepted(Accepted<ExecutionDetails>),
}

impl ApiResponse for StartAnswer {
    fn meta() -> MetaResponses {
        let mut ended = answer::json_meta::<ExecutionDetails>(200);
        ended.description =
            "It ended within the time that `Prefer: wait` named, whatever its status.";
        MetaResponses {
            responses: vec![ended, answer::json_meta::<ExecutionDetails>(202)],
        }
    }

    fn register(registry: &mut Registry) {
        ExecutionDetails::register(registry);
    }
}

impl IntoResponse for StartAnswer {
    fn into_response(self) -> Response {
        match self {
            Self::Ended(reply) => reply.into_response(),
            Self::Accepted(reply) => reply.into_response(),
        }
    }
}

/// The seconds in `Prefer: …, wait=N` (RFC 7240). What is not understood is ignored, as the standard asks.
fn wait_of(prefer: &str) -> Option<Duration> {
    prefer
        .split([',', ';'])
        .filter_map(|preference| preference.trim().split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"))
        .and_then(|(_, seconds)| seconds.trim().trim_matches('"').parse().ok())
        .map(|seconds| Duration::from_secs(seconds).min(WAIT_MAX))
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Executions")]
impl Operations {
    /// Start an execution
    ///
    /// 202 once it is durable; with `Prefer: wait=N` 200 when it ended within N seconds. Scope `workflows:run`.
    #[oai(
        path = "/workflows/:name/executions",
        method = "post",
        operation_id = "create_execution"
    )]
    async fn create(
        &self,
        _auth: Auth<WorkflowsRun>,
        request: &Request,
        name: Path<String>,
        /// Repeating a start under the same key gives the same execution.
        #[oai(name = "Idempotency-Key")]
        _key: Header<Option<Param<IdempotencyKey>>>,
        /// `wait=N`: wait up to N seconds, at most 300, for the end.
        #[oai(name = "Prefer")]
        prefer: Header<Option<String>>,
        body: Body<ExecutionCreate>,
    ) -> ApiResult<StartAnswer> {
        let mut faults = Faults::default();
        let key = faults.header::<IdempotencyKey>("idempotency-key", request.headers());
        let body = faults.body(body);
        let body = faults.check(body)?;
        self.0.takes_work()?;
        let start = StartExecution {
            workflow: name.0,
            version: body.version,
            trigger: "manual",
            input: body.input.unwrap_or_default(),
            trigger_data: Value::Null,
            idempotency_key: key.map(|key| key.0),
            parent_id: None,
            trace_id: request
                .extensions()
                .get::<TraceId>()
                .map(ToString::to_string),
        };
        self.start(start, prefer.0.as_deref().and_then(wait_of))
            .await
    }

    /// List executions
    ///
    /// Newest first, without payloads. Scope `executions:read`.
    #[oai(path = "/executions", method = "get", operation_id = "list_executions")]
    #[allow(clippy::too_many_arguments, reason = "they are the query's parameters")]
    async fn list(
        &self,
        _auth: Auth<ExecutionsRead>,
        /// Of this workflow only.
        workflow: Query<Option<Param<String>>>,
        status: Query<Option<Param<ExecutionStatus>>>,
        /// `manual`, `webhook`, …
        trigger: Query<Option<Param<String>>>,
        started_after: Query<Option<Param<DateTime<Utc>>>>,
        started_before: Query<Option<Param<DateTime<Utc>>>>,
        limit: Query<Option<Param<Limit>>>,
        cursor: Query<Option<Param<Cursor<ExecutionId>>>>,
    ) -> ApiResult<Found<ExecutionList>> {
        let mut faults = Faults::default();
        let workflow = faults.query("workflow", workflow.0);
        let trigger = faults.query("trigger", trigger.0);
        let status = faults.query("status", status.0);
        let started_after = faults.query("started_after", started_after.0);
        let started_before = faults.query("started_before", started_before.0);
        let limit = faults.query("limit", limit.0).unwrap_or_default().0;
        let cursor = faults.query("cursor", cursor.0).map(|cursor| cursor.0);
        faults.check(Some(()))?;
        let filter = ExecutionFilter {
            workflow,
            status,
            trigger,
            started_after,
            started_before,
            cursor,
            limit: limit as i64 + 1,
        };
        let rows = executions::list(&self.0.app.core.db, &filter).await?;
        let (page, next_cursor) = answer::page(rows, limit, |last| Cursor(last.id).encode());
        Ok(Found::new(ExecutionList {
            data: page.into_iter().map(Into::into).collect(),
            next_cursor,
        }))
    }

    /// Get an execution
    ///
    /// Scope `executions:read`.
    #[oai(
        path = "/executions/:id",
        method = "get",
        operation_id = "get_execution"
    )]
    async fn get(
        &self,
        _auth: Auth<ExecutionsRead>,
        id: Path<Param<ExecutionId>>,
    ) -> ApiResult<Found<ExecutionDetails>> {
        Ok(Found::new(self.details(execution_id(id)?).await?))
    }

    /// List the node runs of an execution
    ///
    /// Its journal: one row per attempt that ended, in order. Scope `executions:read`.
    #[oai(
        path = "/executions/:id/node-runs",
        method = "get",
        operation_id = "list_node_runs"
    )]
    async fn node_runs(
        &self,
        _auth: Auth<ExecutionsRead>,
        id: Path<Param<ExecutionId>>,
        limit: Query<Option<Param<Limit>>>,
        cursor: Query<Option<Param<Cursor<i32>>>>,
    ) -> ApiResult<NodeRunsAnswer> {
        let mut faults = Faults::default();
        let id = faults.path("id", id.0);
        let limit = faults.query("limit", limit.0).unwrap_or_default().0;
        let after = faults
            .query("cursor", cursor.0)
            .map_or(-1, |cursor| cursor.0);
        let id = faults.check(id)?;
        let db = &self.0.app.core.db;
        let rows = node_runs::list(db, id, after, limit as i64 + 1).await?;
        if rows.is_empty() && executions::get(db, id).await?.is_none() {
            return Err(unknown(id));
        }
        let (page, next_cursor) = answer::page(rows, limit, |last| Cursor(last.seq).encode());
        let data = page
            .into_iter()
            .map(SentNodeRun::try_from)
            .collect::<Result<_, _>>()
            .map_err(ApiError::internal)?;
        Ok(NodeRunsAnswer(SentNodeRuns { data, next_cursor }))
    }

    /// Follow an execution
    ///
    /// First what was, then what happens, up to `execution.finished`. Scope `executions:read`.
    #[oai(
        path = "/executions/:id/events",
        method = "get",
        operation_id = "execution_events"
    )]
    async fn events(
        &self,
        _auth: StreamAuth<ExecutionsRead>,
        id: Path<Param<ExecutionId>>,
        /// The id of the last event that is known; `Last-Event-ID` says the same and wins.
        after: Query<Option<Param<i64>>>,
        #[oai(name = "Last-Event-ID")] last: Header<Option<Param<i64>>>,
    ) -> ApiResult<Events> {
        let mut faults = Faults::default();
        let id = faults.path("id", id.0);
        let after = faults.query("after", after.0);
        let after = faults.parsed_header("last-event-id", last.0).or(after);
        let id = faults.check(id)?;
        let events = self
            .0
            .app
            .executions
            .events(id, after)
            .await
            .map_err(about(id))?;
        let events = events.map(|event| {
            sse::event(
                event.seq.map(|seq| seq.to_string()),
                event.name,
                &event.data,
            )
        });
        Ok(Events::new(events, &self.0))
    }

    /// Cancel an execution
    ///
    /// 409 when it has ended. Scope `executions:write`.
    #[oai(
        path = "/executions/:id/cancel",
        method = "post",
        operation_id = "cancel_execution"
    )]
    async fn cancel(
        &self,
        _auth: Auth<ExecutionsWrite>,
        id: Path<Param<ExecutionId>>,
    ) -> ApiResult<Accepted<ExecutionDetails>> {
        let id = execution_id(id)?;
        self.0.app.executions.cancel(id).await.map_err(about(id))?;
        Ok(Accepted::new(self.details(id).await?).at(place(id)))
    }
}

impl Operations {
    async fn details(&self, id: ExecutionId) -> ApiResult<ExecutionDetails> {
        let row = executions::get(&self.0.app.core.db, id).await?;
        row.map(Into::into).ok_or_else(|| unknown(id))
    }

    async fn start(&self, start: StartExecution, wait: Option<Duration>) -> ApiResult<StartAnswer> {
        let executions = &self.0.app.executions;
        let (id, ended) = match wait {
            None => (executions.start(start).await?.id, false),
            Some(wait) => {
                let mut started = executions.start_watched(start).await?;
                let ended = self.0.unless_stopped(started.watch.ended(wait)).await;
                let ended = ended.is_some();
                started.watch.stored().await?;
                (started.id, ended)
            }
        };
        let details = self.details(id).await?;
        Ok(if ended {
            StartAnswer::Ended(Found::new(details).at(place(id)))
        } else {
            StartAnswer::Accepted(Accepted::new(details).at(place(id)))
        })
    }
}

fn execution_id(id: Path<Param<ExecutionId>>) -> ApiResult<ExecutionId> {
    let mut faults = Faults::default();
    let id = faults.path("id", id.0);
    faults.check(id)
}

fn unknown(id: ExecutionId) -> ApiError {
    ApiError::not_found(format!("There is no execution {id}.")).with("execution_id", id.to_string())
}

fn place(id: ExecutionId) -> String {
    format!("/v1/executions/{id}")
}

/// Errors that are about an execution name it.
fn about<E: Into<ApiError>>(id: ExecutionId) -> impl FnOnce(E) -> ApiError {
    move |error| error.into().with("execution_id", id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preference_to_wait_is_read_and_bounded() {
        let seconds = |prefer| wait_of(prefer).map(|wait| wait.as_secs());
        assert_eq!(seconds("wait=5"), Some(5));
        assert_eq!(seconds("respond-async, wait = 10"), Some(10));
        assert_eq!(seconds("Wait=\"7\""), Some(7));
        assert_eq!(seconds("wait=100000"), Some(300));
        assert_eq!(seconds("wait=soon"), None);
        assert_eq!(seconds("respond-async"), None);
    }
}
