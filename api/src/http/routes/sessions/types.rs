//! What clients say to sessions and hear from them.

use callboard_agents::sessions::{self as agent, TranscriptRow, TurnResult};
use chrono::{DateTime, Utc};
use poem::{IntoResponse, Response, http::StatusCode};
use poem_openapi::{
    ApiResponse, Object,
    registry::{MetaResponses, Registry},
    types::Type,
};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::http::{
    answer::{self, Accepted},
    input::{self, BodyType, Fields, Wrong},
    sse::{self, Events},
};

/// The longest message, in bytes.
const CONTENT_MAX: usize = 1024 * 1024;

/// A session to be opened. Nothing can be said about it yet.
#[derive(Object)]
pub struct SessionCreate {}

impl BodyType for SessionCreate {
    const OPTIONAL: bool = true;

    fn read(_: &mut Fields) -> Option<Self> {
        Some(Self {})
    }
}

/// A session.
#[derive(Object, Serialize)]
pub struct SessionDetails {
    /// Its id.
    pub id: Uuid,
    /// Name of the agent.
    pub agent: String,
    /// `idle` or `running`.
    pub status: String,
    /// The execution it works for.
    pub execution_id: Option<Uuid>,
    /// Totals: `{model_calls, tool_calls, input_tokens, output_tokens, cost_usd}`.
    pub usage: Value,
    /// When it was opened.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
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
pub struct SessionListItem {
    /// Its id.
    pub id: Uuid,
    /// Name of the agent.
    pub agent: String,
    /// `idle` or `running`.
    pub status: String,
    /// The execution it works for.
    pub execution_id: Option<Uuid>,
    /// When it was opened.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
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
pub struct SessionList {
    /// The page.
    pub data: Vec<SessionListItem>,
    /// For `cursor`, when there is more.
    pub next_cursor: Option<String>,
}

/// A message to the agent.
#[derive(Object)]
pub struct MessageCreate {
    /// Text.
    #[oai(validator(min_length = 1, max_length = 1048576))]
    pub content: String,
    /// Files beside the text; none are taken yet.
    #[allow(dead_code, reason = "read by the schema only")]
    #[oai(validator(max_items = 0))]
    pub attachments: Option<Vec<Value>>,
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
pub struct MessageListItem {
    /// Its place in the session's journal.
    pub seq: i64,
    /// `user`, `assistant` or `tool`.
    pub role: String,
    /// Text.
    pub content: String,
    /// `[{id, name, arguments}]`
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Value>,
    /// The call a tool row answers.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// When.
    pub created_at: DateTime<Utc>,
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
pub struct MessageList {
    /// The page.
    pub data: Vec<MessageListItem>,
    /// For `cursor`, when there is more.
    pub next_cursor: Option<String>,
}

/// How a turn ended.
#[derive(Object)]
#[allow(dead_code, reason = "read by the schema only")]
pub struct TurnDetails {
    /// Its number, from 1.
    pub turn: i64,
    /// `completed`, `failed`, `limited` or `cancelled`.
    pub status: String,
    /// `{role, content}`
    pub message: Option<Value>,
    /// The structured answer of an agent with an `output_schema`.
    pub data: Option<Value>,
    /// Which budget ended it: `{limit, used, max}`.
    pub limit: Option<Value>,
    /// Why it failed: `{code, message}`.
    pub error: Option<Value>,
    /// `{model_calls, tool_calls, input_tokens, output_tokens, cost_usd}`
    pub usage: Value,
}

/// A turn that goes on.
#[derive(Object, Serialize)]
pub struct TurnAccepted {
    /// The session.
    pub session_id: Uuid,
    /// The turn's number.
    pub turn: i64,
}

/// What a message is answered with.
pub enum MessageAnswer {
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
pub struct SessionCancel {
    /// `now` cuts tool calls in flight, which is the default; `after_tool` waits for them.
    pub mode: Option<String>,
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
