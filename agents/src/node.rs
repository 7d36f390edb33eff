//! `agent`: asks an agent and waits for its answer.
//!
//! A run opens a session and sends one message, both under its idempotency key: tried again after a crash, it joins the
//! session and the turn that are there. With `session` it speaks in an existing session instead.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use callboard_runtime::{
    id::{ExecutionId, SessionId},
    item::Item,
    node::{
        AsyncNode, EffectClass, Node, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeRegistry,
        NodeType, ParameterFault, Ports,
    },
    store::{StoreError, executions},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::sessions::{OpenSession, SendMessage, SessionError, Sessions, TurnResult, TurnStatus};

/// How long one look at a turn lasts; it is looked at again until it ends.
const LOOK: Duration = Duration::from_secs(60);
/// How long a run waits for its session to be free.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often, and how far apart, it is asked whether the execution of a dropped run has ended.
const ENDS: u32 = 50;
const END_LOOK: Duration = Duration::from_millis(200);
/// What it waits between two tries when the database gave no answer.
const RETRY: Duration = Duration::from_millis(500);

/// The sessions that the `agent` node works with: it must be registered before they can be started.
#[derive(Clone, Default)]
pub struct LateSessions {
    sessions: Arc<OnceLock<Sessions>>,
}

impl LateSessions {
    /// Gives the node its sessions. Only the first call counts.
    pub fn set(&self, sessions: Sessions) {
        drop(self.sessions.set(sessions)); // an error: they were set before
    }
}

/// Adds the `agent` node type. It fails until its sessions are set.
///
/// # Panics
/// When the name is taken.
pub fn register(registry: &mut NodeRegistry) -> LateSessions {
    let late = LateSessions::default();
    registry.asynchronous(AgentNode { late: late.clone() });
    late
}

struct AgentNode {
    late: LateSessions,
}

#[derive(Deserialize)]
struct AgentParams {
    agent: String,
    input: Value,
    #[serde(default)]
    session: Option<String>,
}

impl Node for AgentNode {
    fn node_type(&self) -> NodeType {
        NodeType {
            name: "agent",
            version: 1,
            summary: "Asks an agent and waits for its answer.",
            effect: EffectClass::Effectful,
            parameters: json!({
                "type": "object",
                "properties": {
                    "agent": {"type": "string", "minLength": 1, "description": "Name of the agent."},
                    "input": {"description": "What it is asked: text, or data, which it reads as JSON."},
                    "session": {
                        "type": ["string", "null"],
                        "description": "Id of a session to speak in. A new one is opened otherwise."
                    }
                },
                "required": ["agent", "input"]
            }),
            several_inputs: false,
        }
    }

    fn ports(&self, _with: &Value) -> Ports {
        Ports::Named(vec![callboard_runtime::node::MAIN.to_owned()])
    }

    fn check(&self, with: &Value) -> Vec<ParameterFault> {
        let mut faults = Vec::new();
        if with.get("input").is_some_and(|input| input == "") {
            faults.push(ParameterFault {
                path: vec!["input".to_owned()],
                message: "An agent cannot be asked nothing".to_owned(),
            });
        }
        faults
    }
}

#[async_trait]
impl AsyncNode for AgentNode {
    async fn run(&self, input: NodeInput) -> Result<NodeOutcome, NodeError> {
        let sessions = self
            .late
            .sessions
            .get()
            .ok_or_else(|| NodeError::transient("unavailable", "agents are not started yet"))?;
        let count = input.items().len().max(1);
        let mut items = Vec::with_capacity(count);
        for index in 0..count {
            items.push(ask(sessions, &input, index).await?.paired(index));
        }
        Ok(NodeOutput::main(items).into())
    }
}

/// Asks for one item. Items after the first have keys of their own.
async fn ask(sessions: &Sessions, input: &NodeInput, index: usize) -> Result<Item, NodeError> {
    let params: AgentParams = input.parameters_elsewhere(index).await?;
    let content = match params.input {
        Value::String(text) => text,
        Value::Null => String::new(),
        data => data.to_string(),
    };
    let key = match index {
        0 => input.identity.idempotency_key.to_string(),
        _ => format!("{}/{index}", input.identity.idempotency_key),
    };
    let id = match params.session.filter(|id| !id.is_empty()) {
        Some(id) => id.parse().map_err(|_| {
            NodeError::permanent(
                "invalid_parameters",
                format!("`{id}` is not the id of a session"),
            )
        })?,
        None => {
            let options = OpenSession {
                idempotency_key: Some(key.clone()),
                execution_id: Some(input.identity.execution_id),
            };
            let opened = patiently(input, || sessions.open(&params.agent, options.clone())).await?;
            opened.id
        }
    };
    let message = SendMessage {
        content,
        idempotency_key: Some(key),
    };
    let accepted = patiently(input, || sessions.send(id, message.clone())).await?;
    let mut guard = CancelOnDrop {
        sessions,
        execution: input.identity.execution_id,
        id,
        turn: Some(accepted.turn),
    };
    let result = loop {
        tokio::select! {
            result = sessions.turn(id, accepted.turn, LOOK) => {
                match result {
                    Ok(Some(result)) => break result,
                    Ok(None) => {}
                    Err(error) => return Err(failed(error).await),
                }
            }
            () = input.cancel.cancelled() => return Err(NodeError::Cancelled),
        }
    };
    guard.turn = None;
    item(id, result)
}

/// Tries again while too much is going on, or a session that this run opened before a crash waits to be adopted.
async fn patiently<T, F: Future<Output = Result<T, SessionError>>>(
    input: &NodeInput,
    attempt: impl Fn() -> F,
) -> Result<T, NodeError> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let wait = match &error {
            SessionError::Busy(wait) => (*wait).min(LOOK),
            SessionError::Store(StoreError::Unconfirmed(_)) => RETRY,
            _ => return Err(failed(error).await),
        };
        if tokio::time::Instant::now() + wait > deadline {
            return Err(failed(error).await);
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = input.cancel.cancelled() => return Err(NodeError::Cancelled),
        }
    }
}

/// Cancels the turn of a run that was dropped, when the execution has ended. Otherwise the run is tried again, here or on
/// another host, and joins the same turn.
struct CancelOnDrop<'a> {
    sessions: &'a Sessions,
    execution: ExecutionId,
    id: SessionId,
    turn: Option<i64>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        let Some(turn) = self.turn else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (sessions, execution, id) = (self.sessions.clone(), self.execution, self.id);
        runtime.spawn(async move {
            if !ends_soon(&sessions, execution).await {
                return;
            }
            match sessions.cancel_turn(id, turn).await {
                Ok(()) | Err(SessionError::Idle | SessionError::NotFound(_)) => {}
                Err(error) => tracing::warn!(%id, %error, "the turn of a cancelled run goes on"),
            }
        });
    }
}

/// Whether an execution whose run was dropped has ended. Its end may be on its way to the store.
async fn ends_soon(sessions: &Sessions, id: ExecutionId) -> bool {
    for _ in 0..ENDS {
        match executions::get(&sessions.shared.core.db, id).await {
            Ok(Some(stored)) if stored.summary.status.is_final() => return true,
            Ok(None) | Err(StoreError::Closed) => return false,
            Ok(Some(_)) | Err(_) => tokio::time::sleep(END_LOOK).await,
        }
    }
    false
}

fn item(id: SessionId, result: TurnResult) -> Result<Item, NodeError> {
    match result.status {
        TurnStatus::Completed => {
            let text = result
                .message
                .as_ref()
                .map(|message| message["content"].clone());
            let mut json = json!({"text": text.unwrap_or_default(), "session_id": id});
            if let Some(data) = result.data {
                json["data"] = data;
            }
            Ok(Item::new(json))
        }
        TurnStatus::Failed => {
            let why = |name: &str| {
                let error = result.error.as_ref();
                error
                    .and_then(|error| error[name].as_str())
                    .unwrap_or("failed")
                    .to_owned()
            };
            let message = format!("the agent failed: {} ({})", why("message"), why("code"));
            Err(with_details("agent_failed", message, id, &result))
        }
        TurnStatus::Limited => {
            let limit = result
                .limit
                .as_ref()
                .and_then(|limit| limit["limit"].as_str());
            let message = format!(
                "the agent reached its budget of {}",
                limit.unwrap_or("work")
            );
            Err(with_details("agent_limited", message, id, &result))
        }
        TurnStatus::Cancelled => {
            let message = "the agent's turn was cancelled".to_owned();
            Err(with_details("agent_cancelled", message, id, &result))
        }
    }
}

fn with_details(code: &str, message: String, id: SessionId, result: &TurnResult) -> NodeError {
    NodeError::Permanent {
        code: code.to_owned(),
        message,
        details: Some(Box::new(json!({
            "session_id": id,
            "usage": result.usage,
            "error": result.error,
            "limit": result.limit,
        }))),
    }
}

/// Why a run failed. Never comes back when the host is stopping or was fenced: that is no end of the run, which is
/// dropped with the host, and the next owner's joins the same turn.
async fn failed(error: SessionError) -> NodeError {
    let message = error.to_string();
    match error {
        SessionError::Store(StoreError::Closed | StoreError::Fenced) => {
            std::future::pending().await
        }
        SessionError::UnknownAgent(_)
        | SessionError::AgentDisabled(_)
        | SessionError::NotFound(_)
        | SessionError::Invalid(_)
        | SessionError::KeyReused => NodeError::permanent("agent_unavailable", message),
        SessionError::Running | SessionError::Idle => NodeError::transient("agent_busy", message),
        SessionError::Busy(wait) => NodeError::Transient {
            code: "agent_busy".to_owned(),
            message,
            retry_after: Some(wait),
            details: None,
        },
        SessionError::Store(StoreError::Corrupt(_)) => {
            NodeError::permanent("agent_failed", message)
        }
        SessionError::Store(_) => NodeError::transient("unavailable", message),
    }
}
