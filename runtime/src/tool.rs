//! The contract of tools: what an agent may call.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::id::SessionId;

/// What becomes of work that was in flight when its host died.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnCrash {
    /// Run it again, with the same idempotency key.
    #[default]
    Retry,
    /// Never run it twice: it counts as failed, with code `unknown_after_crash`.
    Fail,
    /// Never run it twice unasked: a person decides.
    Ask,
}

/// What a model is told of a tool, and what the engine must know to call it.
#[derive(Clone, Debug)]
pub struct ToolSpec {
    /// `[A-Za-z0-9_-]{1,64}`, unique within an agent.
    pub name: String,
    /// For the model.
    pub description: String,
    /// JSON Schema (2020-12) of the arguments, an object schema.
    pub parameters: Value,
    /// After a crash in mid-call.
    pub on_crash: OnCrash,
    /// Never runs beside another call of the same turn.
    pub exclusive: bool,
    /// A call that takes longer has failed with code `timeout`.
    pub timeout: Duration,
}

/// One call of a tool.
#[derive(Clone, Debug)]
pub struct ToolContext {
    /// The conversation it is made for.
    pub session_id: SessionId,
    /// The model's id of the call.
    pub call_id: String,
    /// `session/turn/call`: the same for every attempt, on every host.
    pub idempotency_key: Arc<str>,
    /// Cancelled with the turn, or when the call timed out.
    pub cancel: CancellationToken,
}

/// A tool. Arguments reach it only after they passed its schema.
#[async_trait]
pub trait Tool: Send + Sync + 'static {
    /// What it is. Must not change while the process lives.
    fn spec(&self) -> &ToolSpec;

    /// Calls it. Dropping the future cancels the call.
    async fn call(&self, context: ToolContext, arguments: Value) -> Result<Value, ToolError>;
}

/// Why a call gave no result. The model is told `code` and `message` as an observation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct ToolError {
    /// `invalid_args`, `timeout`, `failed`, `not_found`, `denied`, `unknown_after_crash`, …
    pub code: String,
    /// For the model and for people; no secrets.
    pub message: String,
}

impl ToolError {
    /// An error with this code and message.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
        }
    }
}
