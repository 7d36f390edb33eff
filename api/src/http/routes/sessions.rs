//! Conversations with agents.

use std::{sync::Arc, time::Duration};

use callboard_agents::sessions::{
    self as agent, CancelMode, OpenSession, SendMessage, TranscriptRow, TurnResult,
};
use callboard_runtime::id::SessionId;
use chrono::{DateTime, Utc};
use futures_util::{Stream, StreamExt, future, stream};
use poem::{
    IntoResponse, Request, Response,
    http::{HeaderMap, StatusCode, header},
    web::sse::Event,
};
use poem_openapi::{
    ApiResponse, Object, OpenApi,
    param::{Header, Path, Query},
    registry::{MetaResponses, Registry},
    types::Type,
};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::Tag;
use crate::http::{
    State,
    answer::{self, Accepted, Created, Found, NoContent},
    auth::{AgentsRead, AgentsRun, Auth, StreamAuth},
    input::{
        self, Body, BodyType, Cursor, Faults, Fields, IdempotencyKey, Limit, Param, ParamType,
        Wrong,
    },
    problem::{ApiError, ApiResult},
    sse::{self, EVENT_STREAM, Events},
};

/// How long a caller that does not stream waits for the end of a turn; then it is told where to look.
const TURN_WAIT: Duration = Duration::from_secs(300);
/// The longest message, in bytes.
const CONTENT_MAX: usize = 1024 * 1024;

pub struct Operations(pub Arc<State>);

/// A session to be opened. Nothing can be said about it yet.
#[derive(Object)]
struct SessionCreate {}

impl BodyType for SessionCreate {
    const OPTIONAL: bool = true;

    fn read(_: &mut Fields) -> Option<Self> {
        Some(Self {})
    }
}

/// A session.
#[derive(Object, Serialize)]
struct SessionDetails {
    /// Its id.
    id: Uuid,
    /// Name of the agent.
    agent: String,
    /// `idle` or `running`.
    status: String,
    /// The execution it works for.
    execution_id: Option<Uuid>,
    /// Totals: `{model_calls, tool_calls, input_tokens, output_tokens, cost_usd}`.
    usage: Value,
    /// When it was opened.
    created_at: DateTime<Utc>,
    /// When it last changed.
    updated_at: DateTime<Utc>,
}

impl From<agent::SessionView> for SessionDetails {
    fn from(session: agent::SessionView) -> Self {
        Self {
            id: session.id.0,
            agent: session.agent,
            status: session.status,
            execution_id: session.execution_id.map(|id| id.0),
            usage: session.usage,
            created_at: session.created_at,
            updated_at: session.updated_at,
        }
    }
}

/// A session, in short.
#[derive(Object, Serialize)]
struct SessionListItem {
    /// Its id.
    id: Uuid,
    /// Name of the agent.
    agent: String,
    /// `idle` or `running`.
    status: String,
    /// The execution it works for.
    execution_id: Option<Uuid>,
    /// When it was opened.
    created_at: DateTime<Utc>,
    /// When it last changed.
    updated_at: DateTime<Utc>,
}

impl From<agent::SessionView> for SessionListItem {
    fn from(session: agent::SessionView) -> Self {
        Self {
            id: session.id.0,
            agent: session.agent,
            status: session.status,
            execution_id: session.execution_id.map(|id| id.0),
            created_at: session.created_at,
            updated_at: session.updated_at,
        }
    }
}

/// A page of sessions.
#[derive(Object, Serialize)]
struct SessionList {
    /// The page.
    data: Vec<SessionListItem>,
    /// For `cursor`, when there is more.
    next_cursor: Option<String>,
}

/// A message to the agent.
#[derive(Object)]
struct MessageCreate {
    /// Text.
    #[oai(validator(min_length = 1, max_length = 1048576))]
    content: String,
    /// Files beside the text; none are taken yet.
    #[allow(dead_code, reason = "read by the schema only")]
    #[oai(validator(max_items = 0))]
    attachments: Option<Vec<Value>>,
}

impl BodyType for MessageCreate {
    fn read(fields: &mut Fields) -> Option<Self> {
        let content: Option<String> = fields.required("content");
        match &content {
            Some(text) if text.is_empty() => {
                fields.fault(
                    "content",
                    Wrong::new(
                        "string_too_short",
                        "String should have at least 1 character",
                    ),
                );
            }
            Some(text) if text.len() > CONTENT_MAX => {
                fields.fault(
                    "content",
                    Wrong::new(
                        "string_too_long",
                        format!("String should have at most {CONTENT_MAX} characters"),
                    ),
                );
            }
            _ => {}
        }
        let attachments: Option<Vec<Value>> = fields.optional("attachments");
        if attachments.is_some_and(|attachments| !attachments.is_empty()) {
            fields.fault(
                "attachments",
                Wrong::new(
                    "value_error",
                    "Value error, messages cannot have attachments yet",
                ),
            );
        }
        content.map(|content| Self {
            content,
            attachments: None,
        })
    }
}

/// A row of the transcript.
#[derive(Object, Serialize)]
struct MessageListItem {
    /// Its place in the session's journal.
    seq: i64,
    /// `user`, `assistant` or `tool`.
    role: String,
    /// Text.
    content: String,
    /// `[{id, name, arguments}]`
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Value>,
    /// The call a tool row answers.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<String>,
    /// When.
    created_at: DateTime<Utc>,
}

impl From<TranscriptRow> for MessageListItem {
    fn from(row: TranscriptRow) -> Self {
        Self {
            seq: row.seq,
            role: row.role.to_owned(),
            content: row.content,
            tool_calls: row.tool_calls,
            tool_call_id: row.tool_call_id,
            created_at: row.created_at,
        }
    }
}

/// A page of the transcript, oldest first.
#[derive(Object, Serialize)]
struct MessageList {
    /// The page.
    data: Vec<MessageListItem>,
    /// For `cursor`, when there is more.
    next_cursor: Option<String>,
}

/// How a turn ended.
#[derive(Object)]
#[allow(dead_code, reason = "read by the schema only")]
struct TurnDetails {
    /// Its number, from 1.
    turn: i64,
    /// `completed`, `failed`, `limited` or `cancelled`.
    status: String,
    /// `{role, content}`
    message: Option<Value>,
    /// The structured answer of an agent with an `output_schema`.
    data: Option<Value>,
    /// Which budget ended it: `{limit, used, max}`.
    limit: Option<Value>,
    /// Why it failed: `{code, message}`.
    error: Option<Value>,
    /// `{model_calls, tool_calls, input_tokens, output_tokens, cost_usd}`
    usage: Value,
}

/// A turn that goes on.
#[derive(Object, Serialize)]
struct TurnAccepted {
    /// The session.
    session_id: Uuid,
    /// The turn's number.
    turn: i64,
}

/// What a message is answered with.
enum MessageAnswer {
    /// The turn, when it ended in time.
    Turn(Box<TurnResult>),
    /// The turn's events.
    Stream(Events),
    /// Where to look, when it goes on.
    GoesOn(Accepted<TurnAccepted>),
}

impl ApiResponse for MessageAnswer {
    fn meta() -> MetaResponses {
        let mut ended = answer::json_meta::<TurnDetails>(200);
        ended.description =
            "The turn; with `Accept: text/event-stream` its events up to the one that ends it.";
        ended.content.push(sse::stream_meta());
        MetaResponses {
            responses: vec![ended, answer::json_meta::<TurnAccepted>(202)],
        }
    }

    fn register(registry: &mut Registry) {
        TurnDetails::register(registry);
        TurnAccepted::register(registry);
    }
}

impl IntoResponse for MessageAnswer {
    fn into_response(self) -> Response {
        match self {
            Self::Turn(turn) => answer::json(StatusCode::OK, &turn),
            Self::Stream(events) => events.into_response(),
            Self::GoesOn(reply) => reply.into_response(),
        }
    }
}

/// `{"mode": "now" | "after_tool"}`
#[derive(Object)]
struct SessionCancel {
    /// `now` cuts tool calls in flight, which is the default; `after_tool` waits for them.
    mode: Option<String>,
}

impl BodyType for SessionCancel {
    const OPTIONAL: bool = true;

    fn read(fields: &mut Fields) -> Option<Self> {
        let mode: Option<String> = fields.optional("mode");
        if mode
            .as_ref()
            .is_some_and(|mode| !matches!(mode.as_str(), "now" | "after_tool"))
        {
            fields.fault(
                "mode",
                Wrong::new("literal_error", input::one_of(&["now", "after_tool"])),
            );
        }
        Some(Self { mode })
    }
}

/// `SEQ`, or `SEQ.OFFSET` for deltas.
struct EventId(String);

impl ParamType for EventId {
    fn schema() -> poem_openapi::registry::MetaSchema {
        poem_openapi::registry::MetaSchema {
            pattern: Some(r"^\d+(\.\d+)?$".to_owned()),
            ..String::schema()
        }
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let number = |part: &str| {
            part.bytes().all(|byte| byte.is_ascii_digit()) && part.parse::<i64>().is_ok()
        };
        let (seq, offset) = text.split_once('.').unwrap_or((text, "0"));
        if number(seq) && number(offset) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Wrong::new(
                "value_error",
                "Value error, this is not the id of an event",
            ))
        }
    }
}

/// Whether the events of a turn are wanted instead of its result.
fn wants_stream(headers: &HeaderMap) -> bool {
    let accepted = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    accepted
        .flat_map(|value| value.split(','))
        .any(|range| range.split(';').next().unwrap_or_default().trim() == EVENT_STREAM)
}

/// The events of one turn, out of those of its session: from its start up to the one that ends it. Turns
/// that were before it in line are left out.
fn of_turn(
    events: impl Stream<Item = agent::StreamEvent> + Send + 'static,
    turn: i64,
) -> impl Stream<Item = Event> + Send + 'static {
    let begun = move |event: &agent::StreamEvent| {
        event.name == "turn.started" && event.data["turn"] == turn
    };
    let events = Box::pin(events.skip_while(move |event| future::ready(!begun(event))));
    // Ended by the last event itself, not by the one after it, which may never come.
    stream::unfold(Some(events), |events| async {
        let mut events = events?;
        let event = events.next().await?;
        let rest = (!ends_turn(&event.name)).then_some(events);
        Some((sse::event(Some(event.id), &event.name, &event.data), rest))
    })
}

fn ends_turn(name: &str) -> bool {
    matches!(
        name,
        "turn.completed" | "turn.failed" | "turn.cancelled" | "turn.limited"
    )
}

fn place(id: SessionId) -> String {
    format!("/v1/sessions/{id}")
}

/// Errors that are about a session name it.
fn about<E: Into<ApiError>>(id: SessionId) -> impl FnOnce(E) -> ApiError {
    move |error| error.into().with("session_id", id.to_string())
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Sessions")]
impl Operations {
    /// Open a session
    ///
    /// Scope `agents:run`.
    #[oai(
        path = "/agents/:name/sessions",
        method = "post",
        operation_id = "create_session"
    )]
    async fn create(
        &self,
        _auth: Auth<AgentsRun>,
        name: Path<String>,
        #[oai(name = "Idempotency-Key")] key: Header<Option<Param<IdempotencyKey>>>,
        body: Body<SessionCreate>,
    ) -> ApiResult<Created<SessionDetails>> {
        let mut faults = Faults::default();
        let key = faults.parsed_header("idempotency-key", key.0);
        let body = faults.body(body);
        faults.check(body)?;
        self.0.takes_work()?;
        let options = OpenSession {
            idempotency_key: key.map(|key| key.0),
            execution_id: None,
        };
        let session = self.0.app.sessions.open(&name, options).await?;
        let place = place(session.id);
        Ok(Created::new(session.into()).at(place))
    }

    /// List sessions
    ///
    /// Newest first. Scope `agents:read`.
    #[oai(path = "/sessions", method = "get", operation_id = "list_sessions")]
    async fn list(
        &self,
        _auth: Auth<AgentsRead>,
        /// Of this agent only.
        agent: Query<Option<String>>,
        limit: Query<Option<Param<Limit>>>,
        cursor: Query<Option<Param<Cursor<SessionId>>>>,
    ) -> ApiResult<Found<SessionList>> {
        let mut faults = Faults::default();
        let limit = faults.query("limit", limit.0).unwrap_or_default().0;
        let before = faults.query("cursor", cursor.0).map(|cursor| cursor.0);
        faults.check(Some(()))?;
        let rows = self
            .0
            .app
            .sessions
            .list(agent.0.as_deref(), before, limit as i64 + 1)
            .await?;
        let (page, next_cursor) = answer::page(rows, limit, |last| Cursor(last.id).encode());
        Ok(Found::new(SessionList {
            data: page.into_iter().map(Into::into).collect(),
            next_cursor,
        }))
    }

    /// Get a session
    ///
    /// Scope `agents:read`.
    #[oai(path = "/sessions/:id", method = "get", operation_id = "get_session")]
    async fn get(
        &self,
        _auth: Auth<AgentsRead>,
        id: Path<Param<SessionId>>,
    ) -> ApiResult<Found<SessionDetails>> {
        let id = session_id(id)?;
        Ok(Found::new(
            self.0.app.sessions.get(id).await.map_err(about(id))?.into(),
        ))
    }

    /// Delete a session
    ///
    /// With its transcript; a running turn is cancelled first. Scope `agents:run`.
    #[oai(
        path = "/sessions/:id",
        method = "delete",
        operation_id = "delete_session"
    )]
    async fn delete(
        &self,
        _auth: Auth<AgentsRun>,
        id: Path<Param<SessionId>>,
    ) -> ApiResult<NoContent> {
        let id = session_id(id)?;
        self.0.app.sessions.delete(id).await.map_err(about(id))?;
        Ok(NoContent)
    }

    /// Send a message
    ///
    /// Answers when the turn ended, or streams its events with `Accept: text/event-stream`. A disconnect cancels
    /// nothing. Scope `agents:run`.
    #[oai(
        path = "/sessions/:id/messages",
        method = "post",
        operation_id = "create_message"
    )]
    async fn send(
        &self,
        _auth: Auth<AgentsRun>,
        request: &Request,
        id: Path<Param<SessionId>>,
        /// Repeating a message under the same key asks nothing anew.
        #[oai(name = "Idempotency-Key")]
        key: Header<Option<Param<IdempotencyKey>>>,
        body: Body<MessageCreate>,
    ) -> ApiResult<MessageAnswer> {
        let mut faults = Faults::default();
        let id = faults.path("id", id.0);
        let key = faults.parsed_header("idempotency-key", key.0);
        let body = faults.body(body);
        let (id, body) = faults.check(id.zip(body))?;
        self.0.takes_work()?;
        let message = SendMessage {
            content: body.content,
            idempotency_key: key.map(|key| key.0),
        };
        let sessions = &self.0.app.sessions;
        let accepted = sessions.send(id, message).await.map_err(about(id))?;
        if wants_stream(request.headers()) {
            let events = sessions
                .events(id, Some(&accepted.after_seq.to_string()))
                .await
                .map_err(about(id))?;
            return Ok(MessageAnswer::Stream(Events::new(of_turn(
                events,
                accepted.turn,
            ))));
        }
        let turn = sessions
            .turn(id, accepted.turn, TURN_WAIT)
            .await
            .map_err(about(id))?;
        Ok(match turn {
            Some(turn) => MessageAnswer::Turn(Box::new(turn)),
            None => MessageAnswer::GoesOn(
                Accepted::new(TurnAccepted {
                    session_id: id.0,
                    turn: accepted.turn,
                })
                .at(place(id)),
            ),
        })
    }

    /// List the messages of a session
    ///
    /// Oldest first. Scope `agents:read`.
    #[oai(
        path = "/sessions/:id/messages",
        method = "get",
        operation_id = "list_messages"
    )]
    async fn messages(
        &self,
        _auth: Auth<AgentsRead>,
        id: Path<Param<SessionId>>,
        limit: Query<Option<Param<Limit>>>,
        cursor: Query<Option<Param<Cursor<i64>>>>,
    ) -> ApiResult<Found<MessageList>> {
        let mut faults = Faults::default();
        let id = faults.path("id", id.0);
        let limit = faults.query("limit", limit.0).unwrap_or_default().0;
        let after = faults
            .query("cursor", cursor.0)
            .map_or(0, |cursor| cursor.0);
        let id = faults.check(id)?;
        let rows = self
            .0
            .app
            .sessions
            .transcript(id, after, limit as i64 + 1)
            .await
            .map_err(about(id))?;
        let (page, next_cursor) = answer::page(rows, limit, |last| Cursor(last.seq).encode());
        Ok(Found::new(MessageList {
            data: page.into_iter().map(Into::into).collect(),
            next_cursor,
        }))
    }

    /// Follow a session
    ///
    /// First what was, then what happens. Scope `agents:read`.
    #[oai(
        path = "/sessions/:id/events",
        method = "get",
        operation_id = "session_events"
    )]
    async fn events(
        &self,
        _auth: StreamAuth<AgentsRead>,
        id: Path<Param<SessionId>>,
        /// The id of the last event that is known; `Last-Event-ID` says the same and wins.
        after: Query<Option<Param<EventId>>>,
        #[oai(name = "Last-Event-ID")] last: Header<Option<Param<EventId>>>,
    ) -> ApiResult<Events> {
        let mut faults = Faults::default();
        let id = faults.path("id", id.0);
        let after = faults.query("after", after.0);
        let after = faults.parsed_header("last-event-id", last.0).or(after);
        let id = faults.check(id)?;
        let events = self
            .0
            .app
            .sessions
            .events(id, after.as_ref().map(|after| after.0.as_str()))
            .await;
        let events = events
            .map_err(about(id))?
            .map(|event| sse::event(Some(event.id), &event.name, &event.data));
        Ok(Events::until(
            events,
            self.0.shutdown.clone().cancelled_owned(),
        ))
    }

    /// Cancel the running turn
    ///
    /// 409 when none is running. Scope `agents:run`.
    #[oai(
        path = "/sessions/:id/cancel",
        method = "post",
        operation_id = "cancel_session"
    )]
    async fn cancel(
        &self,
        _auth: Auth<AgentsRun>,
        id: Path<Param<SessionId>>,
        body: Body<SessionCancel>,
    ) -> ApiResult<Accepted<SessionDetails>> {
        let mut faults = Faults::default();
        let id = faults.path("id", id.0);
        let body = faults.body(body);
        let (id, body) = faults.check(id.zip(body))?;
        let mode = match body.mode.as_deref() {
            Some("after_tool") => CancelMode::AfterTool,
            _ => CancelMode::Now,
        };
        self.0
            .app
            .sessions
            .cancel(id, mode)
            .await
            .map_err(about(id))?;
        let session = self.0.app.sessions.get(id).await.map_err(about(id))?;
        Ok(Accepted::new(session.into()).at(place(id)))
    }
}

fn session_id(id: Path<Param<SessionId>>) -> ApiResult<SessionId> {
    let mut faults = Faults::default();
    let id = faults.path("id", id.0);
    faults.check(id)
}

#[cfg(test)]
mod tests {
    use poem::http::HeaderValue;
    use serde_json::json;

    use super::*;

    fn event(seq: i64, name: &str, data: Value) -> agent::StreamEvent {
        agent::StreamEvent {
            id: seq.to_string(),
            name: name.to_owned(),
            data,
        }
    }

    #[tokio::test]
    async fn a_turns_stream_begins_and_ends_with_the_turn() {
        let events = stream::iter([
            event(4, "message.queued", json!({ "turn": 2 })),
            event(5, "turn.completed", json!({ "turn": 1 })),
            event(6, "turn.started", json!({ "turn": 2 })),
            event(7, "message.completed", json!({})),
            event(8, "turn.limited", json!({ "turn": 2 })),
        ])
        .chain(stream::pending());
        let names: Vec<String> = of_turn(events, 2)
            .map(|event| match event {
                Event::Message { id, event, .. } => format!("{id} {event}"),
                Event::Retry { .. } => String::new(),
            })
            .collect()
            .await;
        assert_eq!(
            names,
            ["6 turn.started", "7 message.completed", "8 turn.limited"]
        );
    }

    #[test]
    fn a_stream_is_sent_to_whom_accepts_one() {
        let accepts = |value: &'static str| {
            wants_stream(&HeaderMap::from_iter([(
                header::ACCEPT,
                HeaderValue::from_static(value),
            )]))
        };
        assert!(accepts("text/event-stream"));
        assert!(accepts("application/json, text/event-stream;q=0.9"));
        assert!(!accepts("*/*"));
        assert!(!accepts("application/json"));
    }

    #[test]
    fn event_ids_are_a_place_and_perhaps_an_offset() {
        for id in ["0", "17", "17.4"] {
            assert!(EventId::parse(id).is_ok(), "{id}");
        }
        for text in ["", "-1", "1.", ".1", "1.2.3", "a"] {
            assert!(EventId::parse(text).is_err(), "{text}");
        }
    }
}
