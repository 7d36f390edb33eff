//! The state machine of a session.
//!
//! [`Session::apply`] folds records; [`Session::decide`] answers an event with the records to commit and the effects
//! to perform once they are durable. Both go through the same `apply`, so a session that was folded from its journal
//! and one that lived through it are the same. Every call that a model asks for gets exactly one
//! [`Record::ToolCallFinished`] before the next request to a model: `advance` cannot reach the request otherwise.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use callboard_runtime::{
    id::SessionId,
    provider::{FinishReason, Message, ModelErrorKind, ModelRequest, ToolCall, Usage},
    tool::ToolError,
};
use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{
    record::{Finish, Limit, Record, TurnError},
    spec::{AgentSpec, ModelName},
};
use crate::sessions::{Accepted, CancelMode, TurnResult, TurnStatus, TurnUsage};

mod advance;
mod answer;
mod apply;
mod decide;
mod request;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use request::{RESULT_BYTES_MAX, TEXT_BYTES_MAX, bound_result, tool_text};

/// How many messages may wait for their turns.
pub const QUEUE_MAX: usize = 32;
/// How many records a session may have; a message beyond that is refused.
pub const RECORDS_MAX: i64 = 100_000;
/// How many calls of one turn run at once.
pub const PARALLEL_CALLS_MAX: usize = 8;
/// How many calls one message may ask for; the rest is refused as malformed before it gets here.
pub const CALLS_PER_MESSAGE_MAX: usize = 64;
/// How often one model is tried for one request.
const ATTEMPTS_MAX: u32 = 3;
/// How often the model may mend an answer that does not fit.
const REPAIRS_MAX: u32 = 2;
/// How often a turn is resumed before it is failed.
const RESUMES_MAX: u32 = 10;
/// The longest wait that a provider may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// A session: what its journal says, and what is in flight.
#[derive(Clone, Debug)]
pub struct Session {
    id: SessionId,
    /// `seq` of the last record.
    seq: i64,
    /// Everything said in turns that began, results of calls in the order of the calls.
    conversation: Vec<Message>,
    /// Index of each turn's user message in `conversation`.
    turn_starts: Vec<usize>,
    /// Ids of all calls so far.
    call_ids: HashSet<String>,
    /// Messages by idempotency key.
    sent: HashMap<String, Sent>,
    /// Messages whose turns have not begun.
    queue: VecDeque<Queued>,
    /// How many messages were accepted; the number of the last one's turn.
    accepted: i64,
    /// How each turn ended, the first turn first.
    ended: Vec<Ended>,
    /// The turn in progress.
    turn: Option<Turn>,
    /// What the ended turns used.
    usage: TurnUsage,
    /// The agent that new turns begin with. Not part of the journal.
    agent: Option<Arc<AgentSpec>>,
    /// Counts requests to models in this process. Not part of the journal.
    requests: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct Sent {
    hash: String,
    turn: i64,
    after_seq: i64,
}

#[derive(Clone, Debug, PartialEq)]
struct Queued {
    turn: i64,
    message: Message,
    key: Option<String>,
    hash: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Ended {
    status: TurnStatus,
    /// Index of the turn's last answer in `conversation`.
    answer: Option<usize>,
    data: Option<Value>,
    limit: Option<Limit>,
    error: Option<TurnError>,
    usage: TurnUsage,
}

#[derive(Clone, Debug)]
struct Turn {
    number: i64,
    agent_version: i32,
    usage: TurnUsage,
    phase: Phase,
    repairs: u32,
    resumes: u32,
    cancel_requested: bool,
    /// A call was refused because the tool budget is spent.
    calls_spent: bool,
    answer: Option<usize>,
    /// Time spent up to `last_at`.
    ran: Duration,
    last_at: DateTime<Utc>,
    /// What follows is not part of the journal.
    agent: Option<Arc<AgentSpec>>,
    /// Index of the model in use.
    model: usize,
    /// Failed tries of the request in hand on that model.
    attempts: u32,
    backoff: Option<Backoff>,
    /// The request in flight.
    request: Option<Request>,
}

/// A request in flight.
#[derive(Clone, Debug)]
struct Request {
    number: u64,
    message_id: String,
    model: String,
    chars: u64,
}

/// What a turn waits for.
#[derive(Clone, Debug, PartialEq)]
enum Phase {
    /// An answer of the model.
    Model,
    /// Nothing: the model gave an answer without calls, and what follows is not recorded yet.
    Answered(Finish),
    /// The results of these calls, in the model's order.
    Calls(Vec<Call>),
}

#[derive(Clone, Debug, PartialEq)]
struct Call {
    call: ToolCall,
    status: CallPhase,
}

#[derive(Clone, Debug, PartialEq)]
enum CallPhase {
    Waiting,
    Started,
    Finished { text: String },
}

/// Something that happened to a session.
#[derive(Clone, Debug)]
pub enum Event {
    /// A person or a workflow said something.
    MessageReceived {
        /// Text.
        content: String,
        /// As the client gave it, with the hash of the content.
        key: Option<(String, String)>,
    },
    /// The model answered request `request`.
    ModelAnswered {
        /// From [`AskModel`].
        request: u64,
        /// What it said.
        answer: Answer,
    },
    /// Request `request` failed.
    ModelFailed {
        /// From [`AskModel`].
        request: u64,
        /// How.
        failure: ModelFailure,
        /// What was streamed of it.
        partial: Partial,
    },
    /// A call has ended.
    CallFinished {
        /// Which.
        id: String,
        /// What it gave.
        result: Result<Value, ToolError>,
    },
    /// The time of a turn is up.
    WallReached {
        /// Which.
        turn: i64,
        /// What was streamed of the message in progress.
        partial: Partial,
    },
    /// The turn in progress is not wanted any more.
    CancelRequested {
        /// When to stop.
        mode: CancelMode,
        /// What was streamed of the message in progress.
        partial: Partial,
    },
    /// The session was folded from its journal, and nothing is in flight.
    Resumed,
    /// The session's actor failed too often.
    GivenUp {
        /// What happened, for people.
        reason: String,
    },
}

/// A complete answer of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Text.
    pub content: String,
    /// Calls, in order. Ids may be empty.
    pub tool_calls: Vec<ToolCall>,
    /// What the provider says it cost.
    pub usage: Option<Usage>,
    /// Why it ended.
    pub finish: FinishReason,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFailure {
    /// What kind of failure.
    pub kind: ModelErrorKind,
    /// For people.
    pub message: String,
    /// What the provider asked to wait.
    pub retry_after: Option<Duration>,
}

/// What was streamed of a message that did not complete.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Partial {
    /// Its text.
    pub text: String,
    /// Whether any delta was sent, of the text or of the reasoning.
    pub streamed: bool,
}

/// The answer to an event.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// `seq` and record, to commit together, in order.
    pub records: Vec<(i64, Record)>,
    /// To perform when the records are durable, except [`Effect::StopWork`], which is performed at once.
    pub effects: Vec<Effect>,
    /// Where an accepted message went. To be told when the records are durable.
    pub accepted: Option<Accepted>,
}

/// Something to do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Ask a model.
    AskModel(Box<AskModel>),
    /// Call a tool.
    CallTool(CallTool),
    /// Stop the request and all calls in flight.
    StopWork,
    /// Tell whoever waits for the end of this turn.
    TurnEnded(i64),
}

/// A request to a model.
#[derive(Clone, Debug)]
pub struct AskModel {
    /// Number of the request, for [`Event::ModelAnswered`] and [`Event::ModelFailed`].
    pub request: u64,
    /// Id of the message it will give.
    pub message_id: String,
    /// `seq` of the last record before the message begins.
    pub base_seq: i64,
    /// Where to ask.
    pub model: ModelName,
    /// What to wait first.
    pub backoff: Option<Backoff>,
    /// What to ask.
    pub request_body: ModelRequest,
}

/// A wait before another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// How many tries failed, at least 1.
    pub failures: u32,
    /// What the provider asked for; bounded.
    pub at_least: Duration,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct CallTool {
    /// The call.
    pub call: ToolCall,
    /// `session/turn/call`.
    pub idempotency_key: String,
}

/// Why an event is refused. Nothing changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A turn is in progress and the agent wants no message during one.
    Running,
    /// No turn is in progress.
    Idle,
    /// The idempotency key was used with another message.
    KeyReused,
    /// Too many messages wait.
    QueueFull,
    /// The session has too many records.
    Full,
}

impl Session {
    /// A session without records.
    pub fn new(id: SessionId) -> Self {
        Self {
            id,
            seq: 0,
            conversation: Vec::new(),
            turn_starts: Vec::new(),
            call_ids: HashSet::new(),
            sent: HashMap::new(),
            queue: VecDeque::new(),
            accepted: 0,
            ended: Vec::new(),
            turn: None,
            usage: TurnUsage::default(),
            agent: None,
            requests: 0,
        }
    }

    /// The agent that turns begin with from now on; `None` when there is none that could be used.
    pub fn set_agent(&mut self, agent: Option<Arc<AgentSpec>>) {
        self.agent = agent;
    }

    /// The agent that the turn in progress began with; needed after a fold. Without it the turn fails.
    pub fn set_turn_agent(&mut self, agent: Option<Arc<AgentSpec>>) {
        if let Some(turn) = &mut self.turn {
            turn.agent = agent;
        }
    }

    /// Version of the agent that the turn in progress began with.
    pub fn turn_agent_version(&self) -> Option<i32> {
        self.turn.as_ref().map(|turn| turn.agent_version)
    }

    /// The agent of the turn in progress.
    pub fn turn_agent(&self) -> Option<&Arc<AgentSpec>> {
        self.turn.as_ref().and_then(|turn| turn.agent.as_ref())
    }

    /// `seq` of the last record; 0 when there is none.
    pub fn seq(&self) -> i64 {
        self.seq
    }

    /// Number of the turn in progress.
    pub fn running_turn(&self) -> Option<i64> {
        self.turn.as_ref().map(|turn| turn.number)
    }

    /// How many messages were accepted.
    pub fn turns(&self) -> i64 {
        self.accepted
    }

    /// What all turns used so far, the one in progress included.
    pub fn usage(&self) -> TurnUsage {
        match &self.turn {
            Some(turn) => add(self.usage, turn.usage),
            None => self.usage,
        }
    }

    /// How long the turn in progress may still run, seen from `now`.
    pub fn wall_left(&self, now: DateTime<Utc>) -> Option<Duration> {
        let turn = self.turn.as_ref()?;
        let wall = turn.agent.as_ref()?.budgets.wall;
        Some(wall.saturating_sub(turn.ran + since(turn.last_at, now)))
    }

    /// How a turn ended. `None` when it has not.
    pub fn result(&self, turn: i64) -> Option<TurnResult> {
        let ended = self
            .ended
            .get(usize::try_from(turn.checked_sub(1)?).ok()?)?;
        Some(TurnResult {
            turn,
            status: ended.status,
            message: ended.answer.and_then(|index| self.answer_at(index)),
            data: ended.data.clone(),
            limit: ended.limit.as_ref().map(to_json),
            error: ended.error.as_ref().map(to_json),
            usage: ended.usage,
        })
    }

    fn answer_at(&self, index: usize) -> Option<Value> {
        match self.conversation.get(index)? {
            Message::Assistant { content, .. } => {
                Some(serde_json::json!({"role": "assistant", "content": content}))
            }
            _ => None,
        }
    }

    /// What the model has been told so far.
    #[cfg(test)]
    pub(crate) fn conversation(&self) -> &[Message] {
        &self.conversation
    }
}

fn to_json<T: serde::Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

fn add(a: TurnUsage, b: TurnUsage) -> TurnUsage {
    TurnUsage {
        model_calls: a.model_calls + b.model_calls,
        tool_calls: a.tool_calls + b.tool_calls,
        input_tokens: a.input_tokens + b.input_tokens,
        output_tokens: a.output_tokens + b.output_tokens,
        cost_usd: a.cost_usd + b.cost_usd,
    }
}

/// Time from `earlier` to `later`; none when the clock went back.
fn since(earlier: DateTime<Utc>, later: DateTime<Utc>) -> Duration {
    (later - earlier).to_std().unwrap_or_default()
}

impl CallPhase {
    fn is_finished(&self) -> bool {
        matches!(self, Self::Finished { .. })
    }
}

impl Session {
    /// Whether this request to a model is in flight, as far as the machine knows.
    pub fn awaits_model(&self, request: u64) -> bool {
        let turn = self.turn.as_ref();
        turn.and_then(|turn| turn.request.as_ref())
            .is_some_and(|waiting| waiting.number == request)
    }

    /// Whether this call is in flight, as far as the machine knows.
    pub fn awaits_call(&self, id: &str) -> bool {
        match self.turn.as_ref().map(|turn| &turn.phase) {
            Some(Phase::Calls(calls)) => calls
                .iter()
                .any(|call| call.call.id == id && call.status == CallPhase::Started),
            _ => false,
        }
    }
}
