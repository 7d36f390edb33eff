//! The handle through which sessions are opened, spoken to and watched.

use std::{sync::Arc, time::Duration};

use callboard_runtime::{
    core::Core,
    executions::Executions,
    id::{ExecutionId, SessionId},
    node::NodeRegistry,
    provider::Usage,
    store::StoreError,
};
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use serde::Serialize;
use serde_json::Value;

/// Opens sessions and runs their turns on this host. Cloning it is cheap; all clones are one.
#[derive(Clone)]
pub struct Sessions {}

/// How a session is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenSession {
    /// Unique over all sessions: the same key gives the same session.
    pub idempotency_key: Option<String>,
    /// The execution it works for.
    pub execution_id: Option<ExecutionId>,
}

/// A session as clients see it.
#[derive(Clone, Debug, Serialize)]
pub struct SessionView {
    /// Its id.
    pub id: SessionId,
    /// Name of the agent.
    pub agent: String,
    /// `idle` or `running`.
    pub status: String,
    /// The execution it works for.
    pub execution_id: Option<ExecutionId>,
    /// Totals: `{model_calls, tool_calls, input_tokens, output_tokens, cost_usd}`.
    pub usage: Value,
    /// When it was opened.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// A message to an agent.
#[derive(Clone, Debug, Default)]
pub struct SendMessage {
    /// Text. Not empty, at most 1 MiB.
    pub content: String,
    /// The same key within a session is the same message: it is answered again, not asked again.
    pub idempotency_key: Option<String>,
}

/// A message that is durable: its turn will run, whatever happens to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Number of the turn that answers it, from 1.
    pub turn: i64,
    /// Events of that turn have greater `seq`.
    pub after_seq: i64,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnStatus {
    /// With an answer.
    Completed,
    /// By an error.
    Failed,
    /// At a budget.
    Limited,
    /// By request.
    Cancelled,
}

/// The answer to a message, as `POST …/messages` gives it.
#[derive(Clone, Debug, Serialize)]
pub struct TurnResult {
    /// Its number.
    pub turn: i64,
    /// How it ended.
    pub status: TurnStatus,
    /// `{role: "assistant", content}`; what there was of it, when it did not complete.
    pub message: Option<Value>,
    /// The structured answer of an agent with an `output_schema`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
    /// Which budget ended it: `{limit, used, max}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Value>,
    /// Why it failed: `{code, message}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Value>,
    /// What this turn used.
    pub usage: TurnUsage,
}

/// What a turn or a session used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, serde::Deserialize)]
pub struct TurnUsage {
    /// Requests to a model.
    pub model_calls: u64,
    /// Calls of tools.
    pub tool_calls: u64,
    /// Tokens sent.
    pub input_tokens: u64,
    /// Tokens received.
    pub output_tokens: u64,
    /// Price of it all where known, else 0.
    pub cost_usd: f64,
}

impl TurnUsage {
    /// Adds one model request.
    pub fn add_model_call(&mut self, usage: Usage) {
        self.model_calls += 1;
        self.input_tokens += usage.input_tokens;
        self.output_tokens += usage.output_tokens;
    }
}

/// An event of a session's stream.
#[derive(Clone, Debug)]
pub struct StreamEvent {
    /// The SSE id: `SEQ`, or `SEQ.OFFSET` for deltas.
    pub id: String,
    /// Such as `message.delta`.
    pub name: String,
    /// What it carries.
    pub data: Value,
}

/// A row of the transcript.
#[derive(Clone, Debug, Serialize)]
pub struct TranscriptRow {
    /// Its place in the session's journal.
    pub seq: i64,
    /// `user`, `assistant` or `tool`.
    pub role: &'static str,
    /// Text.
    pub content: String,
    /// `[{id, name, arguments}]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Value>,
    /// The call a tool row answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// When.
    pub created_at: DateTime<Utc>,
}

/// When a running turn is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelMode {
    /// At once; tool calls in flight are cut.
    Now,
    /// When the tool calls in flight have ended.
    AfterTool,
}

/// Why something could not be done with a session.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SessionError {
    /// No agent of this name.
    #[error("there is no agent `{0}`")]
    UnknownAgent(String),
    /// It is disabled.
    #[error("agent `{0}` is disabled")]
    AgentDisabled(String),
    /// No such session.
    #[error("there is no session {0}")]
    NotFound(SessionId),
    /// A turn is running and the agent's `double_texting` is `reject`.
    #[error("a turn is in progress")]
    Running,
    /// Nothing is running that could be cancelled.
    #[error("no turn is in progress")]
    Idle,
    /// The key was used with another message.
    #[error("the idempotency key was used before with another message")]
    KeyReused,
    /// The message cannot be taken: empty, too long.
    #[error("{0}")]
    Invalid(String),
    /// Too much is running: try again after this long.
    #[error("too many sessions are running")]
    Busy(Duration),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Sessions {
    /// Starts the session manager of this host; turns that a dead host left are resumed.
    pub async fn start(
        core: Core,
        executions: Executions,
        nodes: Arc<NodeRegistry>,
    ) -> Result<Self, StoreError> {
        let _ = (core, executions, nodes);
        unimplemented!()
    }

    /// Opens a session. Returns when it is durable.
    pub async fn open(
        &self,
        agent: &str,
        options: OpenSession,
    ) -> Result<SessionView, SessionError> {
        let _ = (agent, options);
        unimplemented!()
    }

    /// Hands over a message. Returns when it is durable; the turn runs whether or not anybody watches.
    pub async fn send(
        &self,
        id: SessionId,
        message: SendMessage,
    ) -> Result<Accepted, SessionError> {
        let _ = (id, message);
        unimplemented!()
    }

    /// Waits for the end of a turn. `None` when it has not ended within `timeout`.
    pub async fn turn(
        &self,
        id: SessionId,
        turn: i64,
        timeout: Duration,
    ) -> Result<Option<TurnResult>, SessionError> {
        let _ = (id, turn, timeout);
        unimplemented!()
    }

    /// The session's events after `after` (an SSE id as sent before), first the stored ones, then live ones
    /// without gap or duplicate. Ends only when dropped.
    pub async fn events(
        &self,
        id: SessionId,
        after: Option<&str>,
    ) -> Result<BoxStream<'static, StreamEvent>, SessionError> {
        let _ = (id, after);
        unimplemented!()
    }

    /// Cancels the running turn. Returns when that is durable.
    pub async fn cancel(&self, id: SessionId, mode: CancelMode) -> Result<(), SessionError> {
        let _ = (id, mode);
        unimplemented!()
    }

    /// One session.
    pub async fn get(&self, id: SessionId) -> Result<SessionView, SessionError> {
        let _ = id;
        unimplemented!()
    }

    /// Sessions, newest first, of one agent or all; those before `before`.
    pub async fn list(
        &self,
        agent: Option<&str>,
        before: Option<SessionId>,
        limit: i64,
    ) -> Result<Vec<SessionView>, SessionError> {
        let _ = (agent, before, limit);
        unimplemented!()
    }

    /// The transcript, oldest first; rows after `after_seq`.
    pub async fn transcript(
        &self,
        id: SessionId,
        after_seq: i64,
        limit: i64,
    ) -> Result<Vec<TranscriptRow>, SessionError> {
        let _ = (id, after_seq, limit);
        unimplemented!()
    }

    /// Removes a session and its journal; a running turn is cancelled first.
    pub async fn delete(&self, id: SessionId) -> Result<(), SessionError> {
        let _ = id;
        unimplemented!()
    }
}
