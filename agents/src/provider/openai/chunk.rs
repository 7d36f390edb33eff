//! Reads the chunks of a streamed chat completion, whatever a server makes of that format.
//!
//! What is tolerated, because servers in use do it: chunks without `choices` or with a null `delta`; `message` for
//! `delta`; content as a list of parts; calls without `index`, `id` or `type`, with the same index for different ids,
//! with their name repeated, with arguments as an object; usage that lacks members or counts below zero; any word as
//! finish reason. What is not: an answer without a finish reason, which was cut.

use callboard_runtime::provider::{
    FinishReason, ModelError, ModelErrorKind, ModelEvent, ToolCall, Usage,
};
use serde_json::Value;

use super::error;
use crate::model::session::CALLS_PER_MESSAGE_MAX;

/// The longest answer, in bytes of text.
const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The longest arguments of one call, in bytes.
const ARGUMENTS_BYTES_MAX: usize = 1024 * 1024;

/// Puts an answer together.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    text_bytes: usize,
    calls: Vec<PartialCall>,
    usage: Option<Usage>,
    finish: Option<FinishReason>,
    chunks: usize,
}

#[derive(Debug, Default)]
struct PartialCall {
    index: Option<u64>,
    id: String,
    name: String,
    text: String,
    object: Option<Value>,
}

impl Assembler {
    /// Takes in one chunk. Gives what can be told at once.
    pub fn push(&mut self, chunk: &Value) -> Result<Vec<ModelEvent>, ModelError> {
        self.chunks += 1;
        if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
            return Err(error::in_stream(error));
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| usage.is_object()) {
            self.usage = Some(read_usage(usage));
        }
        let mut events = Vec::new();
        let choices = chunk.get("choices").and_then(Value::as_array);
        let first = choices
            .into_iter()
            .flatten()
            .find(|choice| choice.get("index").and_then(Value::as_u64).unwrap_or(0) == 0);
        if let Some(choice) = first {
            let delta = ["delta", "message"]
                .into_iter()
                .find_map(|name| choice.get(name).filter(|delta| delta.is_object()));
            if let Some(delta) = delta {
                self.push_delta(delta, &mut events)?;
            }
            if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str)
                && !reason.is_empty()
            {
                self.finish = Some(read_finish(reason)?);
            }
        }
        Ok(events)
    }

    fn push_delta(
        &mut self,
        delta: &Value,
        events: &mut Vec<ModelEvent>,
    ) -> Result<(), ModelError> {
        for name in ["reasoning_content", "reasoning"] {
            if let Some(text) = delta.get(name).and_then(Value::as_str)
                && !text.is_empty()
            {
                events.push(ModelEvent::Reasoning(text.to_owned()));
                break;
            }
        }
        for name in ["content", "refusal"] {
            let text = text_of(delta.get(name));
            if !text.is_empty() {
                self.text_bytes += text.len();
                if self.text_bytes > TEXT_BYTES_MAX {
                    return Err(malformed("the answer is longer than 4 MiB"));
                }
                events.push(ModelEvent::Text(text));
            }
        }
        if let Some(calls) = delta.get("tool_calls").and_then(Value::as_array) {
            for (position, call) in calls.iter().enumerate() {
                self.push_call(position, call)?;
            }
        } else if let Some(call) = delta.get("function_call").filter(|call| call.is_object()) {
            self.push_call(0, &serde_json::json!({"function": call}))?;
        }
        Ok(())
    }

    fn push_call(&mut self, position: usize, piece: &Value) -> Result<(), ModelError> {
        let index = piece.get("index").and_then(Value::as_u64);
        let id = match piece.get("id") {
            Some(Value::String(id)) => id.clone(),
            Some(Value::Number(id)) => id.to_string(),
            _ => String::new(),
        };
        let function = ["function", "custom"]
            .into_iter()
            .find_map(|name| piece.get(name))
            .unwrap_or(piece);
        let name = function.get("name").and_then(Value::as_str).unwrap_or("");
        let arguments = function
            .get("arguments")
            .or_else(|| function.get("input"))
            .unwrap_or(&Value::Null);
        let at = match self.find_call(index, &id, position, name) {
            Some(at) => at,
            None if self.calls.len() >= CALLS_PER_MESSAGE_MAX => {
                return Err(malformed("the answer asks for more than 64 calls"));
            }
            None => {
                self.calls.push(PartialCall::default());
                self.calls.len() - 1
            }
        };
        self.calls[at].take_in(index, id, name, arguments)
    }

    /// The call that a piece belongs to: by index, else by id, else by position.
    fn find_call(
        &self,
        index: Option<u64>,
        id: &str,
        position: usize,
        name: &str,
    ) -> Option<usize> {
        let same_id = |call: &PartialCall| id.is_empty() || call.id.is_empty() || call.id == id;
        if let Some(index) = index {
            // The last one of this index: servers that send one index for all calls send them one after the other.
            return self
                .calls
                .iter()
                .rposition(|call| call.index == Some(index))
                .filter(|&at| {
                    let call = &self.calls[at];
                    same_id(call) && !(id.is_empty() && !name.is_empty() && call.is_complete())
                });
        }
        if !id.is_empty() {
            return self.calls.iter().rposition(|call| call.id == id);
        }
        if name.is_empty() {
            let last = self.calls.len().checked_sub(1);
            return Some(position).filter(|&at| at < self.calls.len()).or(last);
        }
        // A name may begin a call or come again with every piece of one.
        let continues = |call: &PartialCall| call.name == name && !call.is_complete();
        if self.calls.get(position).is_some_and(continues) {
            return Some(position);
        }
        (position == 0)
            .then(|| self.calls.iter().rposition(continues))
            .flatten()
    }

    /// Whether the finish reason has arrived. Only usage may follow it.
    pub fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// The stream has ended: gives the rest of the answer.
    pub fn finish(self) -> Result<Vec<ModelEvent>, ModelError> {
        let Some(mut finish) = self.finish else {
            return Err(if self.chunks == 0 {
                malformed("the answer holds no events")
            } else {
                ModelError {
                    kind: ModelErrorKind::StreamTruncated,
                    message: "the answer ended without a finish reason".to_owned(),
                    status: None,
                    retry_after: None,
                }
            });
        };
        if finish == FinishReason::ToolCalls && self.calls.is_empty() {
            if self.text_bytes == 0 {
                return Err(malformed("the answer announces calls and holds none"));
            }
            finish = FinishReason::Stop;
        }
        let mut events: Vec<_> = self
            .calls
            .into_iter()
            .map(|call| ModelEvent::ToolCall(call.complete()))
            .collect();
        events.extend(self.usage.map(ModelEvent::Usage));
        events.push(ModelEvent::Finished(finish));
        Ok(events)
    }
}

impl PartialCall {
    /// Whether nothing more is to be expected for it.
    fn is_complete(&self) -> bool {
        self.object.is_some() || serde_json::from_str::<Value>(&self.text).is_ok()
    }

    fn take_in(
        &mut self,
        index: Option<u64>,
        id: String,
        name: &str,
        arguments: &Value,
    ) -> Result<(), ModelError> {
        self.index = self.index.or(index);
        if self.id.is_empty() {
            self.id = id;
        }
        // The whole name with every piece, or a name in pieces: both are in use.
        if self.name != name {
            self.name.push_str(name);
        }
        match arguments {
            Value::String(text) => self.text.push_str(text),
            Value::Null => {}
            other => self.object = Some(other.clone()),
        }
        if self.text.len() > ARGUMENTS_BYTES_MAX {
            return Err(malformed("the arguments of a call are longer than 1 MiB"));
        }
        Ok(())
    }

    fn complete(self) -> ToolCall {
        ToolCall {
            id: self.id,
            name: self.name,
            arguments: match self.object {
                Some(object) => object,
                None => read_arguments(self.text),
            },
        }
    }
}

/// Arguments as a value: nothing at all is no arguments, JSON text in a JSON string is unwrapped once, and what is not
/// JSON stays text, so that it can be told from an empty object.
fn read_arguments(text: String) -> Value {
    if text.trim().is_empty() {
        return Value::Object(serde_json::Map::new());
    }
    match serde_json::from_str::<Value>(&text) {
        Ok(Value::String(inner)) => match serde_json::from_str::<Value>(&inner) {
            Ok(value @ Value::Object(_)) => value,
            _ => Value::String(text),
        },
        Ok(value @ Value::Object(_)) => value,
        _ => Value::String(text),
    }
}

fn text_of(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts
            .iter()
            .filter_map(|part| part.get("text").and_then(Value::as_str).or(part.as_str()))
            .collect(),
        _ => String::new(),
    }
}

fn read_usage(usage: &Value) -> Usage {
    let count = |path: &[&str]| {
        let found = path.iter().try_fold(usage, |value, name| value.get(name));
        match found {
            Some(number) => number
                .as_u64()
                .or_else(|| number.as_f64().filter(|n| *n > 0.0).map(|n| n as u64))
                .unwrap_or(0),
            None => 0,
        }
    };
    let either = |a: &[&str], b: &[&str]| count(a).max(count(b));
    Usage {
        input_tokens: either(&["prompt_tokens"], &["input_tokens"]),
        output_tokens: either(&["completion_tokens"], &["output_tokens"]),
        cached_tokens: either(
            &["prompt_tokens_details", "cached_tokens"],
            &["input_tokens_details", "cached_tokens"],
        ),
        reasoning_tokens: either(
            &["completion_tokens_details", "reasoning_tokens"],
            &["output_tokens_details", "reasoning_tokens"],
        ),
    }
}

fn read_finish(reason: &str) -> Result<FinishReason, ModelError> {
    Ok(match reason {
        "tool_calls" | "function_call" | "tool_use" => FinishReason::ToolCalls,
        "length" | "max_tokens" | "max_length" => FinishReason::Length,
        "content_filter" | "safety" => FinishReason::ContentFilter,
        "error" | "abort" | "aborted" => {
            return Err(ModelError {
                kind: ModelErrorKind::Unavailable,
                message: format!("the provider ended the answer with `{reason}`"),
                status: None,
                retry_after: None,
            });
        }
        // `stop`, `eos`, `end_turn`, `stop_sequence` and whatever else means that the model is done.
        _ => FinishReason::Stop,
    })
}

pub(super) fn malformed(message: &str) -> ModelError {
    ModelError {
        kind: ModelErrorKind::Malformed,
        message: message.to_owned(),
        status: None,
        retry_after: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(chunks: &[Value]) -> Result<Vec<ModelEvent>, ModelError> {
        let mut assembler = Assembler::default();
        let mut events = Vec::new();
        for chunk in chunks {
            events.extend(assembler.push(chunk)?);
        }
        events.extend(assembler.finish()?);
        Ok(events)
    }

    fn calls(deltas: &[Value]) -> Vec<(String, Value)> {
        let mut chunks: Vec<_> = deltas
            .iter()
            .map(|calls| json!({"choices": [{"delta": {"tool_calls": calls}}]}))
            .collect();
        chunks.push(json!({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}));
        read(&chunks)
            .expect("the answer is complete")
            .into_iter()
            .filter_map(|event| match event {
                ModelEvent::ToolCall(call) => Some((call.name, call.arguments)),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn text_usage_and_finish_are_read() {
        let events = read(&[
            json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
            json!({"choices": [{"delta": {"content": "Hel"}}]}),
            json!({"choices": [{"delta": {"content": [{"type": "text", "text": "lo"}]}}]}),
            json!({"choices": [{"delta": null, "finish_reason": "eos"}]}),
            json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": -1,
                "prompt_tokens_details": {"cached_tokens": 3}}}),
        ]);
        assert_eq!(
            events.expect("the answer is complete"),
            [
                ModelEvent::Text("Hel".into()),
                ModelEvent::Text("lo".into()),
                ModelEvent::Usage(Usage {
                    input_tokens: 7,
                    cached_tokens: 3,
                    ..Usage::default()
                }),
                ModelEvent::Finished(FinishReason::Stop),
            ]
        );
    }

    #[test]
    fn reasoning_is_kept_apart() {
        let events = read(&[
            json!({"choices": [{"delta": {"reasoning_content": "hm"}}]}),
            json!({"choices": [{"delta": {"reasoning": "hm"}}]}),
            json!({"choices": [{"delta": {"content": "yes"}, "finish_reason": "stop"}]}),
        ])
        .expect("the answer is complete");
        assert_eq!(events[..2], vec![ModelEvent::Reasoning("hm".into()); 2][..]);
    }

    #[test]
    fn calls_are_assembled_by_index() {
        let got = calls(&[
            json!([{"index": 0, "id": "a", "type": "function", "function": {"name": "x", "arguments": ""}}]),
            json!([{"index": 1, "id": "b", "function": {"name": "y", "arguments": "{\"q\""}}]),
            json!([{"index": 0, "function": {"arguments": "{\"p\":1}"}}]),
            json!([{"index": 1, "function": {"arguments": ":2}"}}]),
        ]);
        assert_eq!(
            got,
            [("x".into(), json!({"p": 1})), ("y".into(), json!({"q": 2}))]
        );
    }

    #[test]
    fn calls_without_index_are_assembled_by_id() {
        let got = calls(&[
            json!([{"id": "a", "type": "", "function": {"name": "x", "arguments": "{"}}]),
            json!([{"id": "b", "function": {"name": "y", "arguments": "{}"}}]),
            json!([{"id": "a", "function": {"name": "x", "arguments": "}"}}]),
        ]);
        assert_eq!(got, [("x".into(), json!({})), ("y".into(), json!({}))]);
    }

    #[test]
    fn calls_without_index_and_id_are_assembled_by_position() {
        let got = calls(&[
            json!([{"function": {"name": "x", "arguments": "{\"p\""}}, {"function": {"name": "y", "arguments": "{"}}]),
            json!([{"function": {"arguments": ":1}"}}, {"function": {"arguments": "}"}}]),
        ]);
        assert_eq!(
            got,
            [("x".into(), json!({"p": 1})), ("y".into(), json!({}))]
        );
    }

    #[test]
    fn whole_calls_with_arguments_as_objects_stay_apart() {
        let got = calls(&[
            json!([{"function": {"name": "x", "arguments": {"p": 1}}}]),
            json!([{"function": {"name": "x", "arguments": {"p": 2}}}]),
        ]);
        assert_eq!(
            got,
            [("x".into(), json!({"p": 1})), ("x".into(), json!({"p": 2}))]
        );
    }

    #[test]
    fn one_index_for_several_calls_does_not_mix_them() {
        let got = calls(&[
            json!([{"index": 0, "id": "a", "function": {"name": "x", "arguments": "{\"p\":1}"}}]),
            json!([{"index": 0, "id": "b", "function": {"name": "y", "arguments": "{\"p\":2}"}}]),
        ]);
        assert_eq!(
            got,
            [("x".into(), json!({"p": 1})), ("y".into(), json!({"p": 2}))]
        );
    }

    #[test]
    fn arguments_that_are_no_json_stay_text_and_none_are_an_empty_object() {
        let got = calls(&[
            json!([{"index": 0, "function": {"name": "x", "arguments": "{\"p\": "}}]),
            json!([{"index": 1, "function": {"name": "y"}}]),
            json!([{"index": 2, "function": {"name": "z", "arguments": "\"{\\\"p\\\":1}\""}}]),
            json!([{"index": 3, "function": {"name": "n", "arguments": "[1]"}}]),
        ]);
        assert_eq!(
            got,
            [
                ("x".into(), json!("{\"p\": ")),
                ("y".into(), json!({})),
                ("z".into(), json!({"p": 1})),
                ("n".into(), json!("[1]")),
            ]
        );
    }

    #[test]
    fn an_answer_without_finish_reason_was_cut() {
        let error =
            read(&[json!({"choices": [{"delta": {"content": "Hel"}, "finish_reason": ""}]})]);
        assert_eq!(
            error.map_err(|e| e.kind),
            Err(ModelErrorKind::StreamTruncated)
        );
        assert_eq!(
            read(&[]).map_err(|e| e.kind),
            Err(ModelErrorKind::Malformed)
        );
    }

    #[test]
    fn an_error_in_the_stream_is_an_error() {
        let error = read(&[json!({"error": {"message": "overloaded", "code": 503}})]);
        assert_eq!(error.map_err(|e| e.kind), Err(ModelErrorKind::Unavailable));
        let error = read(&[json!({"choices": [{"finish_reason": "error"}]})]);
        assert_eq!(error.map_err(|e| e.kind), Err(ModelErrorKind::Unavailable));
    }

    #[test]
    fn chunks_that_say_nothing_are_passed_over() {
        let events = read(&[
            json!({}),
            json!({"choices": null}),
            json!({"choices": [{"delta": {}}]}),
            json!({"choices": [{"finish_reason": "stop", "delta": {}}]}),
        ]);
        assert_eq!(events.map(|e| e.len()).map_err(|e| e.kind), Ok(1));
    }

    #[test]
    fn more_than_can_be_held_is_refused() {
        let mut assembler = Assembler::default();
        let big = "x".repeat(1024 * 1024);
        let chunk = json!({"choices": [{"delta": {"content": big}}]});
        let refused = (0..5).any(|_| assembler.push(&chunk).is_err());
        assert!(refused);
    }
}
