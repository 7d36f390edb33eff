//! A provider that needs no model: what it says is written in its document. For examples and tests.
//!
//! ```yaml
//! kind: Provider
//! metadata: { name: scripted }
//! spec:
//!   type: scripted
//!   chunk: 16            # characters per delta (16)
//!   delay: 20ms          # before each delta (none)
//!   replies:             # the first one that fits answers
//!     - model: support   # only for `scripted/support` (any)
//!       when: [refund, money back]   # only when the last user message holds one of these, whatever the case (any)
//!       steps:           # the first answers the message, the next one what follows its calls, and so on
//!         - text: Let me look.
//!           tool_calls: [{ name: order_status, arguments: { order: "A-1" } }]
//!         - text: "It is {{ $json.tools.order_status.status }}."
//!     - data: { score: 80 }          # a reply of one step needs no list; `data` is answered as JSON
//! ```
//!
//! Strings are templates over `$json`: `message` is the last user message, `input` the same read as JSON where it is
//! JSON, `tools.NAME` the latest result of that tool and `results` all results since that message, as JSON where they
//! are JSON. A step may also have `reasoning`, `wait` (before its first delta), `usage {input_tokens, output_tokens}`
//! (else computed from the length of the texts), `finish: length | content_filter`, and to misbehave `error: KIND` with
//! `retry_after`, or `cut: true`, both after its text.
//!
//! It remembers nothing: which step answers is the number of answers since the last user message, and the last step
//! goes on for ever. So a turn that is taken up after a crash gets the answer it would have got.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_trait::async_trait;
use callboard_runtime::{
    expression::Scope,
    item::Item,
    provider::{
        FinishReason, Message, ModelError, ModelErrorKind, ModelEvent, ModelProvider, ModelRequest,
        ToolCall, Usage,
    },
};
use chrono::Utc;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use serde_json::{Map, Value, json};

use crate::model::provider::{Reply, Script, Step};

/// Answers from a script.
#[derive(Debug)]
pub struct Scripted {
    script: Arc<Script>,
}

impl Scripted {
    /// A provider that says what `script` says.
    pub fn new(script: Script) -> Self {
        Self {
            script: Arc::new(script),
        }
    }
}

/// What is sent, each after a wait.
type Line = (Duration, Result<ModelEvent, ModelError>);

#[async_trait]
impl ModelProvider for Scripted {
    async fn stream(
        &self,
        request: ModelRequest,
    ) -> Result<BoxStream<'static, Result<ModelEvent, ModelError>>, ModelError> {
        let script = self.script.clone();
        // Templates may need a script engine, which must not hold up the runtime.
        let lines = tokio::task::spawn_blocking(move || lines(&script, &request))
            .await
            .map_err(|_| failure(ModelErrorKind::Unavailable, "the script panicked"))??;
        Ok(stream::unfold(lines, |mut lines| async move {
            let (wait, event) = lines.pop_front()?;
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            Some((event, lines))
        })
        .boxed())
    }
}

fn lines(script: &Script, request: &ModelRequest) -> Result<VecDeque<Line>, ModelError> {
    let said = Said::read(&request.messages);
    let reply = script
        .replies
        .iter()
        .find(|reply| fits(reply, request, &said.message))
        .ok_or_else(|| failure(ModelErrorKind::Rejected, "no reply of the script fits"))?;
    let step = reply
        .steps
        .get(said.answers)
        .or(reply.steps.last())
        .ok_or_else(|| failure(ModelErrorKind::Rejected, "the reply has no steps"))?;
    let content = step
        .content
        .resolve(&said.scope(), 0)
        .map_err(|fault| failure(ModelErrorKind::Rejected, &format!("the script: {fault}")))?;
    Ok(perform(script, step, &content, request))
}

fn fits(reply: &Reply, request: &ModelRequest, message: &str) -> bool {
    let message = message.to_lowercase();
    reply
        .model
        .as_ref()
        .is_none_or(|model| *model == request.model)
        && (reply.when.is_empty() || reply.when.iter().any(|text| message.contains(text)))
}

fn perform(
    script: &Script,
    step: &Step,
    content: &Value,
    request: &ModelRequest,
) -> VecDeque<Line> {
    let text = match (content.get("data"), content.get("text")) {
        (Some(data), _) => data.to_string(),
        (None, Some(text)) => as_text(text),
        (None, None) => String::new(),
    };
    let reasoning = content.get("reasoning").map(as_text).unwrap_or_default();
    let calls = read_calls(content.get("tool_calls"));
    let mut events: Vec<_> = chunks(&reasoning, script.chunk)
        .map(ModelEvent::Reasoning)
        .chain(chunks(&text, script.chunk).map(ModelEvent::Text))
        .map(|event| (script.delay, Ok(event)))
        .collect();
    if let Some(kind) = step.error {
        let mut error = failure(kind, "the script says so");
        error.retry_after = step.retry_after;
        events.push((Duration::ZERO, Err(error)));
    } else if !step.cut {
        let usage = step.usage.unwrap_or_else(|| estimate(request, &text));
        let finish = step.finish.unwrap_or(if calls.is_empty() {
            FinishReason::Stop
        } else {
            FinishReason::ToolCalls
        });
        let rest = calls
            .into_iter()
            .map(ModelEvent::ToolCall)
            .chain([ModelEvent::Usage(usage), ModelEvent::Finished(finish)]);
        events.extend(rest.map(|event| (Duration::ZERO, Ok(event))));
    }
    if let Some((wait, _)) = events.first_mut() {
        *wait += step.wait;
    }
    events.into()
}

fn as_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn read_calls(calls: Option<&Value>) -> Vec<ToolCall> {
    let calls = calls.and_then(Value::as_array).into_iter().flatten();
    calls
        .map(|call| ToolCall {
            id: String::new(),
            name: as_text(&call["name"]),
            arguments: match call.get("arguments") {
                None | Some(Value::Null) => json!({}),
                Some(arguments) => arguments.clone(),
            },
        })
        .collect()
}

fn chunks(text: &str, size: usize) -> impl Iterator<Item = String> {
    let characters: Vec<char> = text.chars().collect();
    characters
        .chunks(size)
        .map(|chunk| chunk.iter().collect())
        .collect::<Vec<String>>()
        .into_iter()
}

/// As a rule of thumb, a token has four characters.
fn estimate(request: &ModelRequest, text: &str) -> Usage {
    let sent: usize = request
        .messages
        .iter()
        .map(|message| match message {
            Message::System { content }
            | Message::User { content }
            | Message::Assistant { content, .. }
            | Message::Tool { content, .. } => content.chars().count(),
        })
        .sum();
    Usage {
        input_tokens: sent.div_ceil(4) as u64,
        output_tokens: text.chars().count().div_ceil(4) as u64,
        ..Usage::default()
    }
}

fn failure(kind: ModelErrorKind, message: &str) -> ModelError {
    ModelError {
        kind,
        message: message.to_owned(),
        status: None,
        retry_after: None,
    }
}

/// What a script may refer to.
#[derive(Debug, Default, PartialEq)]
struct Said {
    message: String,
    /// How many answers came since the message.
    answers: usize,
    tools: Map<String, Value>,
    results: Vec<Value>,
}

impl Said {
    fn read(messages: &[Message]) -> Self {
        let mut said = Self::default();
        let mut names = std::collections::HashMap::new();
        for message in messages {
            match message {
                Message::System { .. } => {}
                Message::User { content } => {
                    said.message = content.clone();
                    said.answers = 0;
                    said.results.clear();
                }
                Message::Assistant { tool_calls, .. } => {
                    said.answers += 1;
                    names.extend(tool_calls.iter().map(|call| (&call.id, &call.name)));
                }
                Message::Tool {
                    tool_call_id,
                    content,
                } => {
                    let result = json_or_text(content);
                    if let Some(name) = names.get(tool_call_id) {
                        said.tools.insert((*name).clone(), result.clone());
                    }
                    said.results.push(result);
                }
            }
        }
        said
    }

    fn scope(self) -> Scope {
        let json = json!({
            "input": json_or_text(&self.message),
            "message": self.message,
            "tools": self.tools,
            "results": self.results,
        });
        Scope {
            input: Arc::new(vec![Item::new(json)]),
            execution: Arc::default(),
            workflow: Arc::default(),
            trigger: Arc::default(),
            vars: Arc::default(),
            env: Arc::default(),
            now: Utc::now(),
            timezone: "UTC".into(),
            run_index: 0,
            steps: Default::default(),
        }
    }
}

fn json_or_text(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Object(_) | Value::Array(_) | Value::Number(_) | Value::Bool(_))) => {
            value
        }
        _ => Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests;
