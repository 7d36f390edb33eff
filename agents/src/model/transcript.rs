//! The transcript: what was said, as clients page through it.

use callboard_runtime::{provider::Message, tool::ToolError};
use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{
    record::{CallStatus, Record, ToolCallFinished},
    session::tool_text,
};
use crate::sessions::TranscriptRow;

/// How many records before a place in the journal must be read to know all rows after it: more than a message and
/// everything that can come between it and the last result of its calls.
pub const LOOKBACK: i64 = 256;

/// A record with its place and time.
pub type Placed = (i64, DateTime<Utc>, Record);

/// Builds rows from records that come in order.
///
/// A message stands where it came, even when its turn began later.
/// Results of calls are stored as they arrive, but read in the order of the calls: the rows of one message's calls
/// share out the places of their records in that order, once all of them are there.
#[derive(Default)]
pub struct Transcript {
    rows: Vec<TranscriptRow>,
    group: Option<Group>,
}

struct Group {
    calls: Vec<String>,
    results: Vec<(i64, DateTime<Utc>, ToolCallFinished)>,
}

impl Transcript {
    /// Takes in the next record.
    pub fn push(&mut self, (seq, at, record): Placed) {
        match record {
            Record::TurnStarted(started) if !started.queued => {
                self.push_user(seq, at, started.message);
            }
            Record::MessageQueued(queued) => self.push_user(seq, at, queued.message),
            Record::MessageCompleted(completed) => {
                if let Message::Assistant {
                    content,
                    tool_calls,
                } = completed.message
                {
                    let mut row = row(seq, "assistant", content, at);
                    if !tool_calls.is_empty() {
                        row.tool_calls = serde_json::to_value(&tool_calls).ok();
                        self.group = Some(Group {
                            calls: tool_calls.into_iter().map(|call| call.id).collect(),
                            results: Vec::new(),
                        });
                    }
                    self.rows.push(row);
                }
            }
            Record::ToolCallFinished(finished) => self.push_result(seq, at, finished),
            _ => {}
        }
    }

    fn push_user(&mut self, seq: i64, at: DateTime<Utc>, message: Message) {
        if let Message::User { content } = message {
            self.rows.push(row(seq, "user", content, at));
        }
    }

    fn push_result(&mut self, seq: i64, at: DateTime<Utc>, finished: ToolCallFinished) {
        let Some(group) = &mut self.group else {
            return;
        };
        group.results.push((seq, at, finished));
        if group.results.len() < group.calls.len() {
            return;
        }
        let Some(Group { calls, results }) = self.group.take() else {
            return;
        };
        let places: Vec<_> = results.iter().map(|(seq, at, _)| (*seq, *at)).collect();
        for (id, (seq, at)) in calls.into_iter().zip(places) {
            let text = results
                .iter()
                .find(|(_, _, finished)| finished.id == id)
                .map(|(_, _, finished)| text(finished))
                .unwrap_or_default();
            let mut row = row(seq, "tool", text, at);
            row.tool_call_id = Some(id);
            self.rows.push(row);
        }
    }

    /// The rows after `after_seq`, at most `limit`.
    pub fn rows(self, after_seq: i64, limit: usize) -> Vec<TranscriptRow> {
        self.rows
            .into_iter()
            .filter(|row| row.seq > after_seq)
            .take(limit)
            .collect()
    }

    /// How many rows there are after `after_seq`.
    pub fn count(&self, after_seq: i64) -> usize {
        self.rows.iter().filter(|row| row.seq > after_seq).count()
    }
}

fn row(seq: i64, role: &'static str, content: String, created_at: DateTime<Utc>) -> TranscriptRow {
    TranscriptRow {
        seq,
        role,
        content,
        tool_calls: None,
        tool_call_id: None,
        created_at,
    }
}

/// What the model reads of a result.
fn text(finished: &ToolCallFinished) -> String {
    observation(
        finished.status,
        finished.result.as_ref(),
        finished.error.as_ref(),
    )
}

/// The text that the model reads for a finished call.
pub(super) fn observation(
    status: CallStatus,
    result: Option<&Value>,
    error: Option<&ToolError>,
) -> String {
    match (status, error) {
        (CallStatus::Succeeded, _) | (_, None) => tool_text(result.unwrap_or(&Value::Null)),
        (_, Some(error)) => tool_text(&serde_json::json!({"error": error})),
    }
}

#[cfg(test)]
mod tests {
    use callboard_runtime::provider::{ToolCall, Usage};
    use serde_json::json;

    use super::*;
    use crate::model::record::{Finish, MessageCompleted};

    fn finished(id: &str) -> Record {
        Record::ToolCallFinished(ToolCallFinished {
            turn: 1,
            id: id.into(),
            name: "t".into(),
            status: CallStatus::Succeeded,
            result: Some(json!(id)),
            error: None,
        })
    }

    fn asked(ids: &[&str]) -> Record {
        Record::MessageCompleted(MessageCompleted {
            turn: 1,
            message_id: "m".into(),
            message: Message::Assistant {
                content: String::new(),
                tool_calls: ids
                    .iter()
                    .map(|id| ToolCall {
                        id: (*id).into(),
                        name: "t".into(),
                        arguments: json!({}),
                    })
                    .collect(),
            },
            model: "a/b".into(),
            usage: Usage::default(),
            usage_estimated: false,
            finish: Finish::ToolCalls,
        })
    }

    #[test]
    fn results_stand_in_the_order_of_the_calls_whatever_came_first() {
        let mut transcript = Transcript::default();
        let now = Utc::now();
        for (seq, record) in [
            (2, asked(&["a", "b", "c"])),
            (6, finished("c")),
            (7, finished("a")),
            (9, finished("b")),
        ] {
            transcript.push((seq, now, record));
        }
        let rows: Vec<_> = transcript
            .rows(2, 10)
            .into_iter()
            .map(|row| (row.seq, row.tool_call_id, row.content))
            .collect();
        let expected = [(6, "a"), (7, "b"), (9, "c")]
            .map(|(seq, id)| (seq, Some(id.to_owned()), id.to_owned()));
        assert_eq!(rows, expected);
    }

    #[test]
    fn a_group_is_shown_only_when_it_is_complete() {
        let mut transcript = Transcript::default();
        let now = Utc::now();
        transcript.push((2, now, asked(&["a", "b"])));
        transcript.push((5, now, finished("b")));
        assert_eq!(transcript.count(2), 0);
    }
}
