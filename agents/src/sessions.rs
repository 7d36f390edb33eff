//! The handle through which sessions are opened, spoken to and watched.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use callboard_runtime::{
    core::Core,
    executions::Executions,
    id::{ExecutionId, SessionId},
    node::NodeRegistry,
    provider::Usage,
    store::{
        StoreError,
        rows::{NewSession, SessionStatus, Write},
        session_events,
        sessions::{self, SessionFilter, StoredSession},
    },
};
use chrono::{DateTime, SubsecRound, Utc};
use futures_util::stream::BoxStream;
use ractor::{Actor, ActorRef};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use crate::{
    actors::{
        Limits, Lives, Shared,
        manager::{self, Manager},
        session::{Reply, Request},
    },
    agents::Agents,
    model::{
        record::Record,
        transcript::{LOOKBACK, Transcript},
    },
    provider::Providers,
    tool::Workshop,
};

/// The longest message, in bytes.
const CONTENT_BYTES_MAX: usize = 1024 * 1024;
/// The longest idempotency key, in bytes.
const KEY_BYTES_MAX: usize = 512;
/// How many records are read at once.
const PAGE: i64 = 500;
/// How often a turn is looked at that nobody here tells of.
const LOOK: Duration = Duration::from_millis(500);

/// Opens sessions and runs their turns on this host. Cloning it is cheap; all clones are one.
#[derive(Clone)]
pub struct Sessions {
    pub(crate) shared: Arc<Shared>,
    manager: ActorRef<manager::Msg>,
}

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
        Self::start_with(core, executions, nodes, Limits::default()).await
    }

    /// As [`Sessions::start`], with other limits.
    pub(crate) async fn start_with(
        core: Core,
        executions: Executions,
        nodes: Arc<NodeRegistry>,
        limits: Limits,
    ) -> Result<Self, StoreError> {
        let env: serde_json::Map<_, _> = core
            .config
            .env_allowed
            .iter()
            .filter_map(|name| Some((name.clone(), Value::String(std::env::var(name).ok()?))))
            .collect();
        let workshop = Workshop {
            executions,
            documents: core.documents.clone(),
            env: Arc::new(Value::Object(env)),
        };
        let shared = Arc::new(Shared {
            agents: Agents::new(core.documents.clone(), nodes, workshop),
            providers: Providers::new(core.documents.clone(), core.outbound.clone()),
            lives: Lives::default(),
            owned: AtomicUsize::new(0),
            limits,
            core,
        });
        let actor = Manager {
            shared: Arc::clone(&shared),
        };
        let (manager, _) = Actor::spawn(None, actor, ())
            .await
            .map_err(|error| StoreError::Conflict(format!("sessions did not start: {error}")))?;
        let mut pulse = shared.core.pulse.clone();
        let beat = manager.clone();
        tokio::spawn(async move {
            while beat.cast(manager::Msg::Pulse).is_ok() && pulse.changed().await.is_ok() {}
        });
        Ok(Self { shared, manager })
    }

    /// Opens a session. Returns when it is durable. `KeyReused` when the key belongs to a session of another agent.
    pub async fn open(
        &self,
        agent: &str,
        options: OpenSession,
    ) -> Result<SessionView, SessionError> {
        self.shared.agents.current(agent)?;
        check_key(options.idempotency_key.as_deref())?;
        let new = NewSession {
            id: SessionId::new(),
            agent: agent.to_owned(),
            execution_id: options.execution_id,
            idempotency_key: options.idempotency_key.clone(),
            // As the database will give it back.
            created_at: Utc::now().trunc_subsecs(6),
        };
        let (core, id) = (&self.shared.core, new.id);
        let view = SessionView {
            id,
            agent: new.agent.clone(),
            status: SessionStatus::Idle.as_str().to_owned(),
            execution_id: new.execution_id,
            usage: to_json(TurnUsage::default()),
            created_at: new.created_at,
            updated_at: new.created_at,
        };
        let write = Write::SessionOpened(Box::new(new));
        core.journal.save(id.0, vec![write]).await?;
        let Some(key) = options.idempotency_key else {
            return Ok(view);
        };
        // The key may have been taken: whoever has it is the session.
        let stored = sessions::find_by_key(&core.db, &key)
            .await?
            .ok_or(SessionError::Store(StoreError::NotFound))?;
        if stored.agent != agent {
            return Err(SessionError::KeyReused);
        }
        Ok(view_of(stored))
    }

    /// Hands over a message. Returns when it is durable; the turn runs whether or not anybody watches.
    pub async fn send(
        &self,
        id: SessionId,
        message: SendMessage,
    ) -> Result<Accepted, SessionError> {
        if message.content.is_empty() {
            return Err(SessionError::Invalid("a message is not empty".to_owned()));
        }
        if message.content.len() > CONTENT_BYTES_MAX {
            return Err(SessionError::Invalid(
                "a message is at most 1 MiB long".to_owned(),
            ));
        }
        check_key(message.idempotency_key.as_deref())?;
        self.ask(id, |reply| Request::Send { message, reply }).await
    }

    /// Waits for the end of a turn. `None` when it has not ended within `timeout`. `Invalid` when no such turn was
    /// accepted.
    pub async fn turn(
        &self,
        id: SessionId,
        turn: i64,
        timeout: Duration,
    ) -> Result<Option<TurnResult>, SessionError> {
        let look = async {
            loop {
                match self.ask(id, |reply| Request::Turn { turn, reply }).await {
                    Ok(Some(result)) => return Ok(result),
                    // Another host runs it, or its actor was replaced.
                    Ok(None)
                    | Err(
                        SessionError::Busy(_) | SessionError::Store(StoreError::Unconfirmed(_)),
                    ) => {
                        tokio::time::sleep(LOOK).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        match tokio::time::timeout(timeout, look).await {
            Ok(result) => result.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// The session's events after `after` (an SSE id as sent before), first the stored ones, then live ones
    /// without gap or duplicate. Ends only when dropped.
    ///
    /// Besides those that every client knows there are `message.queued`, `turn.resumed`, `message.retracted` (the deltas of
    /// that message are void), `answer.rejected` and `turn.cancel_requested`.
    pub async fn events(
        &self,
        id: SessionId,
        after: Option<&str>,
    ) -> Result<BoxStream<'static, StreamEvent>, SessionError> {
        crate::events::events(Arc::clone(&self.shared), id, after).await
    }

    /// Cancels the running turn. Returns when that is durable.
    pub async fn cancel(&self, id: SessionId, mode: CancelMode) -> Result<(), SessionError> {
        self.ask(id, |reply| Request::Cancel {
            mode,
            turn: None,
            reply,
        })
        .await
    }

    /// Cancels this turn at once. `Idle` when it is not the one in progress.
    pub(crate) async fn cancel_turn(&self, id: SessionId, turn: i64) -> Result<(), SessionError> {
        self.ask(id, |reply| Request::Cancel {
            mode: CancelMode::Now,
            turn: Some(turn),
            reply,
        })
        .await
    }

    /// One session.
    pub async fn get(&self, id: SessionId) -> Result<SessionView, SessionError> {
        let stored = sessions::get(&self.shared.core.db, id).await?;
        stored.map(view_of).ok_or(SessionError::NotFound(id))
    }

    /// Sessions, newest first, of one agent or all; those before `before`. `limit` is 1..=1000.
    pub async fn list(
        &self,
        agent: Option<&str>,
        before: Option<SessionId>,
        limit: i64,
    ) -> Result<Vec<SessionView>, SessionError> {
        let filter = SessionFilter {
            agent: agent.map(str::to_owned),
            cursor: before,
            limit,
        };
        let stored = sessions::list(&self.shared.core.db, &filter).await?;
        Ok(stored.into_iter().map(view_of).collect())
    }

    /// The transcript, oldest first; rows after `after_seq`, at most `limit`, which is 1..=1001. Results of calls stand in
    /// the order of the calls, and only when all calls of their message have ended.
    pub async fn transcript(
        &self,
        id: SessionId,
        after_seq: i64,
        limit: i64,
    ) -> Result<Vec<TranscriptRow>, SessionError> {
        let db = &self.shared.core.db;
        if sessions::get(db, id).await?.is_none() {
            return Err(SessionError::NotFound(id));
        }
        let limit = limit.clamp(1, 1001) as usize;
        let mut transcript = Transcript::default();
        let mut read = (after_seq - LOOKBACK).max(0);
        loop {
            let rows = session_events::list(db, id, read, PAGE).await?;
            let more = rows.len() as i64 == PAGE;
            for row in rows {
                read = row.seq;
                let record = Record::read(&row.kind, row.payload).map_err(StoreError::Corrupt)?;
                transcript.push((row.seq, row.created_at, record));
            }
            if !more || transcript.count(after_seq) >= limit {
                return Ok(transcript.rows(after_seq, limit));
            }
        }
    }

    /// Removes a session and its journal; a running turn is cancelled first, and so are those that wait.
    pub async fn delete(&self, id: SessionId) -> Result<(), SessionError> {
        let (reply, answer) = oneshot::channel();
        self.tell(manager::Msg::Delete(id, reply))?;
        answer.await.map_err(|_| lost())?
    }

    /// How many sessions have a turn in progress here.
    pub fn running(&self) -> usize {
        self.shared.owned.load(Ordering::Relaxed)
    }

    /// From now on takes over no session of another host. Messages are still taken: steps of executions that are
    /// running to their end send some, and it is for the front to refuse others.
    pub fn close(&self) {
        drop(self.tell(manager::Msg::Drain)); // an error: it has stopped already
    }

    /// Closes, and gives turns in progress up to `timeout` to end. What runs longer is stopped where it is; the next
    /// host resumes it.
    pub async fn drain(&self, timeout: Duration) {
        self.close();
        let deadline = tokio::time::Instant::now() + timeout;
        while self.running() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let (done, stopped) = oneshot::channel();
        if self.tell(manager::Msg::StopAll(done)).is_ok() {
            drop(stopped.await);
        }
    }

    async fn ask<T>(
        &self,
        id: SessionId,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, SessionError> {
        let (reply, answer) = oneshot::channel();
        self.tell(manager::Msg::Deliver(id, Box::new(request(reply))))?;
        answer.await.map_err(|_| lost())?
    }

    fn tell(&self, message: manager::Msg) -> Result<(), SessionError> {
        self.manager
            .cast(message)
            .map_err(|_| SessionError::Store(StoreError::Closed))
    }
}

/// Whoever was asked is gone.
fn lost() -> SessionError {
    let text = "the session failed before it could answer".to_owned();
    SessionError::Store(StoreError::Unconfirmed(text))
}

fn check_key(key: Option<&str>) -> Result<(), SessionError> {
    match key {
        Some(key) if key.is_empty() || key.len() > KEY_BYTES_MAX => Err(SessionError::Invalid(
            format!("an idempotency key has 1 to {KEY_BYTES_MAX} bytes"),
        )),
        _ => Ok(()),
    }
}

/// SHA-256 of a message's content, hexadecimal: tells a repeated message from another one under the same key.
pub(crate) fn content_hash(content: &str) -> String {
    Sha256::digest(content.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn view_of(stored: StoredSession) -> SessionView {
    let usage: TurnUsage = serde_json::from_value(stored.usage).unwrap_or_default();
    SessionView {
        id: stored.id,
        agent: stored.agent,
        status: stored.status.as_str().to_owned(),
        execution_id: stored.execution_id,
        usage: to_json(usage),
        created_at: stored.created_at,
        updated_at: stored.updated_at,
    }
}

fn to_json(usage: TurnUsage) -> Value {
    serde_json::to_value(usage).unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests;
