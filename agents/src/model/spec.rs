//! What the state machine must know of an agent: a definition with its tools looked up and its schemas compiled.

use std::{fmt, sync::Arc, time::Duration};

use callboard_runtime::{
    schema::Schema,
    tool::{OnCrash, ToolSpec},
};
use serde_json::Value;

/// One version of an agent, ready to take turns.
#[derive(Clone, Debug)]
pub struct AgentSpec {
    /// `metadata.name`.
    pub name: String,
    /// The document's version.
    pub version: i32,
    /// The model, then its fallbacks. At least one.
    pub models: Vec<ModelName>,
    /// The system message; none when empty.
    pub instructions: String,
    /// In the order of the document, which is the order the model sees.
    pub tools: Vec<ToolEntry>,
    /// The shape of the answer, when it must be data.
    pub output: Option<OutputSchema>,
    /// What one turn may use.
    pub budgets: Budgets,
    /// How many messages the model sees at most. A turn is never split.
    pub window: Option<usize>,
    /// What happens to a message that comes during a turn.
    pub double_texting: DoubleTexting,
}

impl AgentSpec {
    /// The tool of this name.
    pub fn tool(&self, name: &str) -> Option<&ToolEntry> {
        self.tools.iter().find(|tool| tool.spec.name == name)
    }

    /// What becomes of a call of this tool that was in flight in a crash. A tool that is gone is not called again.
    pub fn on_crash(&self, name: &str) -> OnCrash {
        self.tool(name)
            .map_or(OnCrash::Fail, |tool| tool.spec.on_crash)
    }
}

/// A tool as the state machine knows it.
#[derive(Clone, Debug)]
pub struct ToolEntry {
    /// What it is.
    pub spec: ToolSpec,
    /// Its `parameters`, compiled.
    pub schema: Arc<Schema>,
}

/// The schema of an answer.
#[derive(Clone, Debug)]
pub struct OutputSchema {
    /// As written.
    pub written: Value,
    /// The same, compiled.
    pub schema: Arc<Schema>,
}

/// A model at a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    /// Name of the Provider document.
    pub provider: String,
    /// The model's name there.
    pub model: String,
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.provider, self.model)
    }
}

/// What one turn may use. Reaching one of them ends the turn as `limited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Requests to a model, the retracted ones included.
    pub model_calls: u64,
    /// Calls of tools.
    pub tool_calls: u64,
    /// Tokens sent and received.
    pub tokens: Option<u64>,
    /// Time, downtime between a crash and the resumption not counted.
    pub wall: Duration,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            model_calls: 20,
            tool_calls: 50,
            tokens: None,
            wall: Duration::from_secs(300),
        }
    }
}

/// What happens to a message that comes during a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DoubleTexting {
    /// It waits for its own turn.
    #[default]
    Enqueue,
    /// It is refused.
    Reject,
}
