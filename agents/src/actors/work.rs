//! The slow work of sessions: requests to models and calls of tools. Each reports to its session once.

use std::{sync::Arc, time::Duration};

use callboard_runtime::{
    core::Core,
    id::SessionId,
    provider::{FinishReason, ModelError, ModelErrorKind, ModelEvent},
    tool::{Tool, ToolContext, ToolError},
};
use futures_util::StreamExt;
use ractor::ActorRef;
use rand::RngExt;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Shared, live::Live, session::Msg};
use crate::model::session::{
    Answer, AskModel, Backoff, CALLS_PER_MESSAGE_MAX, CallTool, ModelFailure,
};

/// No wait before another try is longer, unless the provider asks for it.
const BACKOFF_MAX: Duration = Duration::from_secs(8);

/// Asks a model and tells the session what came of it.
pub(super) async fn ask(
    shared: Arc<Shared>,
    live: Arc<Live>,
    session: ActorRef<Msg>,
    ask: AskModel,
) {
    let request = ask.request;
    if let Some(backoff) = ask.backoff {
        tokio::time::sleep(delay(backoff, shared.limits.backoff)).await;
    }
    may_start(&shared.core).await;
    let (provider, model) = (ask.model.provider.clone(), ask.model.model.clone());
    tracing::debug!(provider, model, request, "asking a model");
    let outcome = match answer(&shared, &live, ask).await {
        Ok(answer) => Msg::Answered {
            request,
            answer: Box::new(answer),
        },
        Err(error) => {
            tracing::info!(provider, model, kind = ?error.kind, status = error.status, "a model failed");
            Msg::Failed {
                request,
                failure: ModelFailure {
                    kind: error.kind,
                    message: error.message,
                    retry_after: error.retry_after,
                },
            }
        }
    };
    drop(session.cast(outcome)); // an error: the session is gone, and with it the need for an answer
}

async fn answer(shared: &Shared, live: &Live, ask: AskModel) -> Result<Answer, ModelError> {
    let provider = shared.providers.find(&ask.model.provider)?;
    let mut stream = provider.stream(ask.request_body).await?;
    let mut content = String::new();
    let mut tool_calls = Vec::new();
    let mut usage = None;
    while let Some(event) = stream.next().await {
        match event? {
            ModelEvent::Text(delta) => {
                live.text(ask.request, &delta);
                content.push_str(&delta);
            }
            ModelEvent::Reasoning(delta) => live.reasoning(ask.request, &delta),
            ModelEvent::ToolCall(call) if tool_calls.len() < CALLS_PER_MESSAGE_MAX => {
                tool_calls.push(call);
            }
            ModelEvent::ToolCall(_) => {
                return Err(failure(
                    ModelErrorKind::Malformed,
                    "the answer asks for too many calls",
                ));
            }
            ModelEvent::Usage(spent) => usage = Some(spent),
            ModelEvent::Finished(finish) => {
                return finished(content, tool_calls, usage, finish);
            }
        }
    }
    Err(failure(
        ModelErrorKind::StreamTruncated,
        "the answer ended without a finish reason",
    ))
}

fn finished(
    content: String,
    tool_calls: Vec<callboard_runtime::provider::ToolCall>,
    usage: Option<callboard_runtime::provider::Usage>,
    finish: FinishReason,
) -> Result<Answer, ModelError> {
    Ok(Answer {
        content,
        tool_calls,
        usage,
        finish,
    })
}

fn failure(kind: ModelErrorKind, message: &str) -> ModelError {
    ModelError {
        kind,
        message: message.to_owned(),
        status: None,
        retry_after: None,
    }
}

/// Full jitter: anything up to the exponential delay, so that those who failed together do not come back together; but
/// no less than the provider asked for.
fn delay(backoff: Backoff, base: Duration) -> Duration {
    let most = base
        .saturating_mul(1 << (backoff.failures - 1).min(16))
        .min(BACKOFF_MAX);
    let jitter = most.mul_f64(rand::rng().random_range(0.0..=1.0));
    jitter.max(backoff.at_least)
}

/// Calls a tool and tells the session what came of it.
pub(super) async fn call(
    core: Core,
    session: ActorRef<Msg>,
    session_id: SessionId,
    tool: Arc<dyn Tool>,
    call: CallTool,
    cancel: CancellationToken,
) {
    may_start(&core).await;
    let id = call.call.id.clone();
    let context = ToolContext {
        session_id,
        call_id: id.clone(),
        idempotency_key: call.idempotency_key.into(),
        cancel: cancel.clone(),
    };
    let timeout = tool.spec().timeout;
    let mut running = tool.call(context, call.call.arguments);
    let result = tokio::select! {
        result = &mut running => result,
        () = tokio::time::sleep(timeout) => {
            // Before the future is dropped, so that it knows why.
            cancel.cancel();
            Err(ToolError::new("timeout", format!("no result within {} ms", timeout.as_millis())))
        }
    };
    drop(running);
    report(&session, id, result);
}

/// Tells a session what a call gave.
pub(super) fn report(session: &ActorRef<Msg>, id: String, result: Result<Value, ToolError>) {
    drop(session.cast(Msg::CallFinished { id, result })); // an error: the session is gone
}

/// Waits until this host may start something that has effects outside. For ever, when it is fenced: then its sessions
/// are stopped.
async fn may_start(core: &Core) {
    let mut pulse = core.pulse.clone();
    while !core.may_start_effects() {
        if pulse.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_bounded_and_never_shorter_than_asked() {
        let base = Duration::from_millis(500);
        for failures in 1..40 {
            let short = delay(
                Backoff {
                    failures,
                    at_least: Duration::ZERO,
                },
                base,
            );
            assert!(short <= BACKOFF_MAX);
            let asked = Duration::from_secs(20);
            let long = delay(
                Backoff {
                    failures,
                    at_least: asked,
                },
                base,
            );
            assert!(long >= asked);
        }
    }
}
