//! Rows as owners write them. JSON columns are text already: a value is serialised once, by whoever has it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::id::{ExecutionId, HostId, SessionId};

/// JSON text, ready for a column.
pub type Json = String;

/// Where an execution stands. The last three are final and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecutionStatus {
    /// Accepted, not begun.
    Queued,
    /// Owned by a host.
    Running,
    /// Nothing to do before a wait ends; owned by nobody, costs no memory.
    Waiting,
    /// Ended well.
    Succeeded,
    /// Ended by an error.
    Failed,
    /// Ended by request.
    Cancelled,
}

impl ExecutionStatus {
    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Reads what [`ExecutionStatus::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::Queued,
            Self::Running,
            Self::Waiting,
            Self::Succeeded,
            Self::Failed,
            Self::Cancelled,
        ]
        .into_iter()
        .find(|status| status.as_str() == text)
    }

    /// Whether nothing can change it any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// How a node run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeRunStatus {
    /// It gave output.
    Succeeded,
    /// It gave an error.
    Failed,
    /// It can never run, and a join must know.
    Skipped,
    /// It was told to stop.
    Cancelled,
}

impl NodeRunStatus {
    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
        }
    }

    /// Reads what [`NodeRunStatus::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::Succeeded,
            Self::Failed,
            Self::Skipped,
            Self::Cancelled,
        ]
        .into_iter()
        .find(|status| status.as_str() == text)
    }
}

/// One change that an owner wants saved. Repeating any of them is harmless.
#[derive(Clone, Debug)]
pub enum Write {
    /// A new execution. With an idempotency key that is taken, nothing is written: read back who has it.
    ExecutionStarted(Box<NewExecution>),
    /// An execution moved on.
    ExecutionChanged(Box<ExecutionChange>),
    /// A node run ended.
    NodeRun(Box<NodeRunRow>),
    /// A node run waits.
    WaitOpened(Box<WaitRow>),
    /// Its wait is over.
    WaitClosed {
        /// Whose.
        execution_id: ExecutionId,
        /// [`WaitRow::key`].
        key: String,
    },
    /// A new session. With an idempotency key that is taken, nothing is written: read back who has it.
    SessionOpened(Box<NewSession>),
    /// A session moved on.
    SessionChanged(Box<SessionChange>),
    /// Something happened in a session.
    SessionEvent(Box<SessionEventRow>),
}

/// A row of `executions` as it begins.
#[derive(Clone, Debug)]
pub struct NewExecution {
    /// Its id.
    pub id: ExecutionId,
    /// Name of the workflow.
    pub workflow: String,
    /// The version it runs, whatever comes later.
    pub version: i32,
    /// `manual`, `webhook`, `workflow`, …
    pub trigger: String,
    /// `Running` or `Queued`.
    pub status: ExecutionStatus,
    /// Who owns it.
    pub host_id: Option<HostId>,
    /// The body it was started with.
    pub input: Json,
    /// `$trigger` without the body: query, headers, params, method, path.
    pub trigger_data: Option<Json>,
    /// The execution that waits for it or started it.
    pub parent_id: Option<ExecutionId>,
    /// Of which execution it is another try.
    pub retry_of: Option<ExecutionId>,
    /// Unique per workflow.
    pub idempotency_key: Option<String>,
    /// SHA-256 of the body, to tell a repeated request from another one under the same key.
    pub input_hash: Option<Vec<u8>>,
    /// From the request that started it.
    pub trace_id: Option<String>,
    /// When it was accepted.
    pub started_at: DateTime<Utc>,
}

/// New values of a row of `executions`. All columns are written.
#[derive(Clone, Debug)]
pub struct ExecutionChange {
    /// Which.
    pub id: ExecutionId,
    /// Its status from now on.
    pub status: ExecutionStatus,
    /// Its owner from now on; nobody while it waits or when it ended.
    pub host_id: Option<HostId>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// What it gave.
    pub output: Option<Json>,
    /// Why it failed: `{code, message, step}`.
    pub error: Option<Json>,
    /// Its parent: a final status makes the parent's wait for it due, in the same transaction.
    pub parent_id: Option<ExecutionId>,
}

/// A row of `node_runs`, the journal of an execution. One per attempt that ended.
#[derive(Clone, Debug)]
pub struct NodeRunRow {
    /// Whose.
    pub execution_id: ExecutionId,
    /// Its place in the journal, from 0 without gaps.
    pub seq: i32,
    /// Id of the step.
    pub step: String,
    /// Node type.
    pub node_type: String,
    /// Which bodies it ran in: empty at the top, else one `step.visit[index]` per level, joined by `/`.
    pub scope: String,
    /// How often the step was entered before in that scope.
    pub visit: i32,
    /// From 1.
    pub attempt: i32,
    /// How it ended.
    pub status: NodeRunStatus,
    /// The port its items left on; the first when several did.
    pub port: Option<String>,
    /// The items on `port`: a list. When items left on several ports, an object of lists by port.
    pub output: Option<Json>,
    /// `{code, message, …}`.
    pub error: Option<Json>,
    /// Index of the element, inside a `map`.
    pub item_index: Option<i32>,
    /// `seq` of the row whose items started it.
    pub parent_seq: Option<i32>,
    /// When the next attempt is due, if there is one.
    pub retry_at: Option<DateTime<Utc>>,
    /// The host it ran on.
    pub host_id: HostId,
    /// When the attempt began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
}

/// A row of `waits`: a node run that goes on later.
#[derive(Clone, Debug)]
pub struct WaitRow {
    /// Whose.
    pub execution_id: ExecutionId,
    /// Unique in the execution: `scope/step/visit/attempt`.
    pub key: String,
    /// `timer`, `child`, or `started` for a node run that must not be repeated after a crash.
    pub kind: String,
    /// When it ends by itself.
    pub wake_at: Option<DateTime<Utc>>,
    /// The execution whose end it waits for.
    pub child_id: Option<ExecutionId>,
    /// What the node run needs when it goes on.
    pub data: Option<Json>,
    /// When the node run began.
    pub started_at: DateTime<Utc>,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    /// No turn is in progress; owned by nobody.
    Idle,
    /// A turn is in progress; owned by a host.
    Running,
}

impl SessionStatus {
    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Running => "running",
        }
    }

    /// Reads what [`SessionStatus::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Idle, Self::Running]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// A row of `sessions` as it begins: idle.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// Its id.
    pub id: SessionId,
    /// Name of the agent.
    pub agent: String,
    /// The execution it works for.
    pub execution_id: Option<ExecutionId>,
    /// Unique over all sessions.
    pub idempotency_key: Option<String>,
    /// When it was opened.
    pub created_at: DateTime<Utc>,
}

/// New values of a row of `sessions`. All columns are written.
#[derive(Clone, Debug)]
pub struct SessionChange {
    /// Which.
    pub id: SessionId,
    /// Its status from now on.
    pub status: SessionStatus,
    /// Its owner from now on.
    pub host_id: Option<HostId>,
    /// Totals so far, as the API shows them.
    pub usage: Json,
    /// When.
    pub updated_at: DateTime<Utc>,
}

/// A row of `session_events`, the journal of a session.
#[derive(Clone, Debug)]
pub struct SessionEventRow {
    /// Whose.
    pub session_id: SessionId,
    /// Its place in the journal, from 1 without gaps.
    pub seq: i64,
    /// As on the event stream: `turn.started`, `message.completed`, …
    pub kind: String,
    /// What the event carries.
    pub payload: Json,
    /// When.
    pub created_at: DateTime<Utc>,
}

/// Whose journal a write belongs to: all writes of one owner keep their order.
pub type Owner = Uuid;
