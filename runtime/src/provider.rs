//! The contract of model providers: one streamed request to one model.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a model is asked.
#[derive(Clone, Debug)]
pub struct ModelRequest {
    /// The model's name at its provider.
    pub model: String,
    /// The conversation; the system message, if any, comes first.
    pub messages: Vec<Message>,
    /// The tools it may call, in a fixed order.
    pub tools: Vec<ToolDefinition>,
    /// JSON Schema of the answer, when it must be data.
    pub output_schema: Option<Value>,
}

/// A tool as the model sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ToolDefinition {
    /// The name it is called by.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// JSON Schema of the arguments.
    pub parameters: Value,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Message {
    /// What the agent is.
    System {
        /// Text.
        content: String,
    },
    /// What a person or a workflow said.
    User {
        /// Text.
        content: String,
    },
    /// What the model said.
    Assistant {
        /// Text; empty when it only called tools.
        content: String,
        /// The calls it asks for, in order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<ToolCall>,
    },
    /// What a call gave.
    Tool {
        /// The call it answers.
        tool_call_id: String,
        /// The result as text; JSON for data.
        content: String,
    },
}

/// A call that a model asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The model's id; unique within a conversation (the engine makes one where the model gave none).
    pub id: String,
    /// Name of the tool.
    pub name: String,
    /// As the model wrote them: an object if well formed, else the raw text as a string.
    pub arguments: Value,
}

/// What arrives while a model answers.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelEvent {
    /// More of the answer's text.
    Text(String),
    /// More of the reasoning, where the provider shows it.
    Reasoning(String),
    /// A complete call; providers assemble the pieces.
    ToolCall(ToolCall),
    /// What it cost. May be absent.
    Usage(Usage),
    /// The answer is complete. Always the last event; a stream that ends without it was cut.
    Finished(FinishReason),
}

/// Why a model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// It said all it wanted.
    Stop,
    /// It wants tools called.
    ToolCalls,
    /// It ran into its output limit.
    Length,
    /// The provider withheld the answer.
    ContentFilter,
}

/// Tokens of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Sent.
    pub input_tokens: u64,
    /// Received, reasoning included.
    pub output_tokens: u64,
    /// Of the sent ones, those the provider had cached.
    pub cached_tokens: u64,
    /// Of the received ones, those spent on reasoning.
    pub reasoning_tokens: u64,
}

/// A place that answers model requests.
#[async_trait]
pub trait ModelProvider: Send + Sync + 'static {
    /// Starts one request. Never retries: that is the turn engine's. Dropping the stream cancels the request.
    async fn stream(
        &self,
        request: ModelRequest,
    ) -> Result<BoxStream<'static, Result<ModelEvent, ModelError>>, ModelError>;
}

/// Why a model gave no complete answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ModelError {
    /// What kind of failure.
    pub kind: ModelErrorKind,
    /// For people; never the request.
    pub message: String,
    /// The provider's HTTP status.
    pub status: Option<u16>,
    /// What the provider asked to wait.
    pub retry_after: Option<Duration>,
}

/// Kinds of failure, by what may be done about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelErrorKind {
    /// Too many requests: wait.
    RateLimited,
    /// The account is spent: waiting is no use.
    QuotaExhausted,
    /// The provider is busy or broken for now (5xx).
    Unavailable,
    /// The key was refused.
    Auth,
    /// No such model.
    NotFound,
    /// The request was refused as wrong.
    Rejected,
    /// The conversation is too long.
    ContextOverflow,
    /// The provider withheld the answer.
    ContentFiltered,
    /// Nothing came in time, or nothing more.
    Timeout,
    /// No connection, or it broke.
    Connection,
    /// The stream ended without a finish reason.
    StreamTruncated,
    /// What came was not what the protocol says.
    Malformed,
}

impl ModelErrorKind {
    /// Whether the same request may succeed a little later.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::RateLimited
                | Self::Unavailable
                | Self::Timeout
                | Self::Connection
                | Self::StreamTruncated
                | Self::Malformed
        )
    }
}
