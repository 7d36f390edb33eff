//! What a model is sent: the conversation within its window, and results within their bounds.

use callboard_runtime::provider::{Message, ModelRequest, ToolDefinition};
use serde_json::Value;

use super::{Session, Turn};

/// How much of a result the model reads, in bytes.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;
/// How much of a result is kept in the journal, in bytes of JSON.
pub const RESULT_BYTES_MAX: usize = 1024 * 1024;

impl Session {
    /// The request that the turn in progress must make next. The same journal gives the same request.
    pub(super) fn request_body(&self) -> Option<ModelRequest> {
        let Turn {
            agent: Some(agent),
            model,
            ..
        } = self.turn.as_ref()?
        else {
            return None;
        };
        let mut messages = Vec::new();
        if !agent.instructions.is_empty() {
            messages.push(Message::System {
                content: agent.instructions.clone(),
            });
        }
        let from = window_start(&self.turn_starts, self.conversation.len(), agent.window);
        messages.extend_from_slice(&self.conversation[from..]);
        Some(ModelRequest {
            model: agent.models.get(*model)?.model.clone(),
            messages,
            tools: agent
                .tools
                .iter()
                .map(|tool| ToolDefinition {
                    name: tool.spec.name.clone(),
                    description: tool.spec.description.clone(),
                    parameters: tool.spec.parameters.clone(),
                })
                .collect(),
            output_schema: agent.output.as_ref().map(|output| output.written.clone()),
        })
    }

    /// Text of the turn's last answer.
    pub(super) fn last_answer(&self) -> &str {
        let index = self.turn.as_ref().and_then(|turn| turn.answer);
        match index.and_then(|index| self.conversation.get(index)) {
            Some(Message::Assistant { content, .. }) => content,
            _ => "",
        }
    }
}

/// Index of the first message that the model sees: the earliest start of a turn from which at most `window`
/// messages follow, or the start of the last turn when that alone is longer. So a call is never split from its
/// result.
fn window_start(turn_starts: &[usize], len: usize, window: Option<usize>) -> usize {
    let Some(window) = window else {
        return 0;
    };
    turn_starts
        .iter()
        .copied()
        .find(|start| len - start <= window)
        .or(turn_starts.last().copied())
        .unwrap_or(0)
}

/// Length of a request's texts, for estimates where a provider tells no usage.
pub(super) fn chars(request: &ModelRequest) -> u64 {
    request
        .messages
        .iter()
        .map(|message| match message {
            Message::System { content }
            | Message::User { content }
            | Message::Tool { content, .. } => content.chars().count() as u64,
            Message::Assistant {
                content,
                tool_calls,
            } => {
                content.chars().count() as u64
                    + tool_calls
                        .iter()
                        .map(|call| (call.name.len() + call.arguments.to_string().len()) as u64)
                        .sum::<u64>()
            }
        })
        .sum()
}

/// A result as the model reads it: text as it is, everything else as JSON, cut at 64 KiB with a note.
pub fn tool_text(result: &Value) -> String {
    let text = match result {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    cut(text, TEXT_BYTES_MAX)
}

/// A result as the journal keeps it: whole up to 1 MiB of JSON, else its text, cut, with a note.
pub fn bound_result(result: Value) -> Value {
    // Escapes can make JSON longer than the text it holds, so strings are measured as JSON too.
    let json = result.to_string();
    if json.len() <= RESULT_BYTES_MAX {
        return result;
    }
    let text = match result {
        Value::String(text) => text,
        _ => json,
    };
    // A character may take six bytes when escaped.
    Value::String(cut(text, RESULT_BYTES_MAX / 6))
}

fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text;
    }
    let whole = text.len();
    let mut end = bytes_max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.push_str(&format!(
        "\n[cut: the first {end} of {whole} bytes are shown]"
    ));
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_window_begins_at_a_turn() {
        let starts = [0, 4, 6];
        assert_eq!(window_start(&starts, 9, None), 0);
        assert_eq!(window_start(&starts, 9, Some(9)), 0);
        assert_eq!(window_start(&starts, 9, Some(8)), 4);
        assert_eq!(window_start(&starts, 9, Some(3)), 6);
    }

    #[test]
    fn a_turn_longer_than_the_window_is_kept_whole() {
        assert_eq!(window_start(&[0, 4], 20, Some(5)), 4);
    }

    #[test]
    fn a_long_result_is_cut_between_characters_and_says_so() {
        let text = tool_text(&json!("ä".repeat(TEXT_BYTES_MAX)));
        assert!(text.contains("[cut: the first 65536 of 131072 bytes are shown]"));
        assert!(text.starts_with("ää"));
    }

    #[test]
    fn a_kept_result_is_within_its_bound_however_it_is_escaped() {
        let kept = bound_result(json!("\u{1}".repeat(2 * RESULT_BYTES_MAX)));
        assert!(kept.to_string().len() <= RESULT_BYTES_MAX + 100);
        let small = json!({"a": [1, 2]});
        assert_eq!(bound_result(small.clone()), small);
    }
}
