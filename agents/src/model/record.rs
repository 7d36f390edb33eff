//! The records of a session's journal. Each is a row of `session_events` and, once durable, an event of the
//! session's stream under the same name.
//!
//! Readers of later versions must understand every record written here; an unknown kind is refused, never skipped.

use callboard_runtime::{
    provider::{Message, Usage},
    tool::ToolError,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::sessions::TurnUsage;

/// One record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "payload")]
pub enum Record {
    /// A message came while a turn was in progress; its own turn comes later.
    #[serde(rename = "message.queued")]
    MessageQueued(MessageQueued),
    /// A turn begins.
    #[serde(rename = "turn.started")]
    TurnStarted(TurnStarted),
    /// A turn goes on after its actor or its host died. What was streamed of an unfinished message is void.
    #[serde(rename = "turn.resumed")]
    TurnResumed(TurnResumed),
    /// The model answered. Replaces the message's deltas.
    #[serde(rename = "message.completed")]
    MessageCompleted(MessageCompleted),
    /// The model's answer broke off and is asked for again. Voids the message's deltas.
    #[serde(rename = "message.retracted")]
    MessageRetracted(MessageRetracted),
    /// The answer did not fit the agent's `output_schema`; the model is told why and asked again.
    #[serde(rename = "answer.rejected")]
    AnswerRejected(AnswerRejected),
    /// A call is about to run. Committed before it does.
    #[serde(rename = "tool_call.started")]
    ToolCallStarted(ToolCallStarted),
    /// A call has its one result.
    #[serde(rename = "tool_call.finished")]
    ToolCallFinished(ToolCallFinished),
    /// The turn ends when the calls in flight have.
    #[serde(rename = "turn.cancel_requested")]
    CancelRequested(CancelRequested),
    /// A turn ended with an answer.
    #[serde(rename = "turn.completed")]
    TurnCompleted(TurnCompleted),
    /// A turn ended by an error.
    #[serde(rename = "turn.failed")]
    TurnFailed(TurnFailed),
    /// A turn ended by request.
    #[serde(rename = "turn.cancelled")]
    TurnCancelled(TurnCancelled),
    /// A turn ended at a budget.
    #[serde(rename = "turn.limited")]
    TurnLimited(TurnLimited),
}

/// See [`Record::MessageQueued`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MessageQueued {
    /// Number of the turn that will answer it.
    pub turn: i64,
    /// A user message.
    pub message: Message,
    /// As the client gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// SHA-256 of the content, hexadecimal; with a key only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_hash: Option<String>,
}

/// See [`Record::TurnStarted`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnStarted {
    /// From 1, without gaps.
    pub turn: i64,
    /// The user message that it answers.
    pub message: Message,
    /// The version of the agent it keeps to its end; 0 when the agent is gone.
    pub agent_version: i32,
    /// The message was journaled before, as [`Record::MessageQueued`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub queued: bool,
    /// As the client gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// SHA-256 of the content, hexadecimal; with a key only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_hash: Option<String>,
}

/// See [`Record::TurnResumed`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnResumed {
    /// Which.
    pub turn: i64,
    /// 1 for the first time.
    pub attempt: u32,
}

/// See [`Record::MessageCompleted`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MessageCompleted {
    /// Of which turn.
    pub turn: i64,
    /// As in its deltas.
    pub message_id: String,
    /// An assistant message.
    pub message: Message,
    /// `provider/model` that answered.
    pub model: String,
    /// What it cost.
    pub usage: Usage,
    /// The provider told nothing: `usage` is computed from the length of the texts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub usage_estimated: bool,
    /// Why it ended.
    pub finish: Finish,
}

/// Why a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model said all it wanted.
    Stop,
    /// It wants tools called.
    ToolCalls,
    /// It ran into its output limit.
    Length,
    /// The provider withheld the rest.
    ContentFilter,
    /// The turn was cancelled: this is what there was.
    Cancelled,
    /// The turn's time was up: this is what there was.
    Limited,
    /// The provider failed for good: this is what there was.
    Failed,
}

/// See [`Record::MessageRetracted`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MessageRetracted {
    /// Of which turn.
    pub turn: i64,
    /// As in its deltas.
    pub message_id: String,
    /// Code of the error that broke it off.
    pub reason: String,
}

/// See [`Record::AnswerRejected`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnswerRejected {
    /// Of which turn.
    pub turn: i64,
    /// 1 for the first time in the turn.
    pub attempt: u32,
    /// What the model is told.
    pub reason: String,
}

/// See [`Record::ToolCallStarted`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCallStarted {
    /// Of which turn.
    pub turn: i64,
    /// Id of the call, unique in the session.
    pub id: String,
    /// Name of the tool.
    pub name: String,
    /// As the model gave them; a string when they were no JSON.
    pub arguments: Value,
}

/// See [`Record::ToolCallFinished`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCallFinished {
    /// Of which turn.
    pub turn: i64,
    /// Id of the call.
    pub id: String,
    /// Name of the tool.
    pub name: String,
    /// How it ended.
    pub status: CallStatus,
    /// What it gave, when it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it gave nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ToolError>,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallStatus {
    /// With a result.
    Succeeded,
    /// With an error, which the model is told.
    Failed,
    /// With its turn, or never begun.
    Cancelled,
}

/// See [`Record::CancelRequested`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CancelRequested {
    /// Which turn.
    pub turn: i64,
    /// `after_tool`.
    pub mode: String,
}

/// See [`Record::TurnCompleted`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnCompleted {
    /// Which.
    pub turn: i64,
    /// What it used.
    pub usage: TurnUsage,
    /// The structured answer of an agent with an `output_schema`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

/// See [`Record::TurnFailed`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnFailed {
    /// Which.
    pub turn: i64,
    /// Why.
    pub error: TurnError,
    /// What it used.
    pub usage: TurnUsage,
}

/// Why a turn failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnError {
    /// A stable name: that of a model failure such as `auth`, or `malformed_output`, `output_limit`,
    /// `agent_unavailable`, `crashed`.
    pub code: String,
    /// For people; no secrets.
    pub message: String,
}

/// See [`Record::TurnCancelled`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnCancelled {
    /// Which.
    pub turn: i64,
    /// What it used.
    pub usage: TurnUsage,
}

/// See [`Record::TurnLimited`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnLimited {
    /// Which.
    pub turn: i64,
    /// Which budget.
    #[serde(flatten)]
    pub limit: Limit,
    /// What it used.
    pub usage: TurnUsage,
}

/// A budget that was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// `model_calls`, `tool_calls`, `tokens` or `wall`.
    pub limit: String,
    /// How much was used; for `wall` in milliseconds.
    pub used: u64,
    /// How much there was; for `wall` in milliseconds.
    pub max: u64,
}

impl Record {
    /// Its name and what it carries, as stored and as streamed.
    pub fn write(&self) -> (&'static str, Value) {
        let mut value = serde_json::to_value(self).unwrap_or(Value::Null);
        (self.kind(), value["payload"].take())
    }

    /// Reads what [`Record::write`] gave. The error is a sentence.
    pub fn read(kind: &str, payload: Value) -> Result<Self, String> {
        serde_json::from_value(json!({"kind": kind, "payload": payload}))
            .map_err(|fault| format!("the record `{kind}` cannot be read: {fault}"))
    }

    /// Its name.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::MessageQueued(_) => "message.queued",
            Self::TurnStarted(_) => "turn.started",
            Self::TurnResumed(_) => "turn.resumed",
            Self::MessageCompleted(_) => "message.completed",
            Self::MessageRetracted(_) => "message.retracted",
            Self::AnswerRejected(_) => "answer.rejected",
            Self::ToolCallStarted(_) => "tool_call.started",
            Self::ToolCallFinished(_) => "tool_call.finished",
            Self::CancelRequested(_) => "turn.cancel_requested",
            Self::TurnCompleted(_) => "turn.completed",
            Self::TurnFailed(_) => "turn.failed",
            Self::TurnCancelled(_) => "turn.cancelled",
            Self::TurnLimited(_) => "turn.limited",
        }
    }
}

/// The name that the stream uses for a stored kind; `None` for a kind this version does not know.
pub fn event_name(kind: &str) -> Option<&'static str> {
    [
        "message.queued",
        "turn.started",
        "turn.resumed",
        "message.completed",
        "message.retracted",
        "answer.rejected",
        "tool_call.started",
        "tool_call.finished",
        "turn.cancel_requested",
        "turn.completed",
        "turn.failed",
        "turn.cancelled",
        "turn.limited",
    ]
    .into_iter()
    .find(|name| *name == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let records = [
            Record::ToolCallFinished(ToolCallFinished {
                turn: 1,
                id: "c".into(),
                name: "t".into(),
                status: CallStatus::Failed,
                result: None,
                error: Some(ToolError::new("timeout", "too slow")),
            }),
            Record::TurnLimited(TurnLimited {
                turn: 2,
                limit: Limit {
                    limit: "tokens".into(),
                    used: 7,
                    max: 5,
                },
                usage: TurnUsage::default(),
            }),
            Record::MessageCompleted(MessageCompleted {
                turn: 1,
                message_id: "msg_1".into(),
                message: Message::Assistant {
                    content: "hi".into(),
                    tool_calls: vec![],
                },
                model: "a/b".into(),
                usage: Usage::default(),
                usage_estimated: true,
                finish: Finish::Stop,
            }),
        ];
        for record in records {
            let (kind, payload) = record.write();
            assert_eq!(event_name(kind), Some(kind));
            assert_eq!(Record::read(kind, payload), Ok(record));
        }
    }

    #[test]
    fn the_shapes_are_those_of_the_stream() {
        let (_, payload) = Record::TurnLimited(TurnLimited {
            turn: 2,
            limit: Limit {
                limit: "wall".into(),
                used: 1000,
                max: 1000,
            },
            usage: TurnUsage::default(),
        })
        .write();
        assert_eq!(payload["limit"], "wall");
        assert_eq!(payload["used"], 1000);
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        assert!(Record::read("turn.rewound", json!({})).is_err());
    }
}
