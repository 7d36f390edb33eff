//! What a session is saying right now, and the one order in which it is heard.
//!
//! Records are published when they are durable, deltas as they come. Both go through one lock, so all watchers hear
//! them in the same order, and a watcher that comes in the middle of a message can be told what it missed: the text so
//! far, and after which character a record came in between.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use callboard_runtime::events::{Event, EventHub};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::model::{record::Record, session::Partial};

/// Published without a place in the journal when a session was loaded: records may have become durable that nobody
/// published, so watchers look.
pub const LOADED: &str = "session.loaded";

/// Whether a record of this kind ends the message in progress: it replaces its deltas or makes them void.
pub fn ends_message(kind: &str) -> bool {
    matches!(
        kind,
        "message.completed"
            | "message.retracted"
            | "turn.resumed"
            | "turn.completed"
            | "turn.failed"
            | "turn.cancelled"
            | "turn.limited"
    )
}

/// A session's voice.
pub struct Live {
    topic: Uuid,
    hub: EventHub,
    state: Mutex<State>,
}

struct State {
    /// `seq` of the last record that was published.
    published: i64,
    message: Option<Message>,
}

struct Message {
    request: u64,
    /// Nothing more is added: the request is being stopped.
    closed: bool,
    reasoning_chars: usize,
    said: Said,
}

/// A message in progress.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// Its id.
    pub message_id: String,
    /// `seq` of the last record before it.
    pub base_seq: i64,
    /// Its text so far.
    pub text: String,
    /// Characters of the text so far.
    pub chars: usize,
    /// Characters at the end of each delta.
    pub ends: Vec<usize>,
    /// Records that were published in its midst, each with the characters before it.
    pub records: Vec<(i64, usize)>,
    /// Whether anything was heard of it.
    pub streamed: bool,
}

impl Said {
    /// How many characters whoever heard everything up to record `seq` has heard. `None`: that was before the message.
    pub fn offset_at(&self, seq: i64) -> usize {
        self.records
            .iter()
            .rev()
            .find(|(record, _)| *record <= seq)
            .map_or(0, |(_, chars)| *chars)
    }
}

/// What is being said at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// `seq` of the last record that was published.
    pub published: i64,
    /// The message in progress.
    pub message: Option<Said>,
}

impl Live {
    /// The voice of a session whose records up to `published` are durable and known.
    pub fn new(topic: Uuid, hub: EventHub, published: i64) -> Arc<Self> {
        Arc::new(Self {
            topic,
            hub,
            state: Mutex::new(State {
                published,
                message: None,
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells watchers to look at the journal.
    pub fn announce(&self) {
        self.publish_event(None, LOADED, Value::Null);
    }

    /// A message begins: the answer to `request`.
    pub fn begin(&self, request: u64, message_id: String, base_seq: i64) {
        self.state().message = Some(Message {
            request,
            closed: false,
            reasoning_chars: 0,
            said: Said {
                message_id,
                base_seq,
                ..Said::default()
            },
        });
    }

    /// More of its text. Nothing when that message is not in progress any more.
    pub fn text(&self, request: u64, delta: &str) {
        self.delta(request, |message| {
            let offset = message.said.chars;
            message.said.chars += delta.chars().count();
            message.said.text.push_str(delta);
            message.said.ends.push(message.said.chars);
            ("message.delta", offset, delta)
        });
    }

    /// More of its reasoning. Nothing when that message is not in progress any more.
    pub fn reasoning(&self, request: u64, delta: &str) {
        self.delta(request, |message| {
            let offset = message.reasoning_chars;
            message.reasoning_chars += delta.chars().count();
            ("reasoning.delta", offset, delta)
        });
    }

    fn delta<'a>(
        &self,
        request: u64,
        take_in: impl FnOnce(&mut Message) -> (&'static str, usize, &'a str),
    ) {
        let mut state = self.state();
        let Some(message) = state
            .message
            .as_mut()
            .filter(|message| message.request == request && !message.closed)
        else {
            return;
        };
        message.said.streamed = true;
        let (name, offset, delta) = take_in(message);
        let data = json!({
            "message_id": message.said.message_id,
            "offset": offset,
            "delta": delta,
            "chars": message.said.chars,
            "base": message.said.base_seq,
        });
        // Published under the lock: this is what makes the order one.
        self.publish_event(None, name, data);
    }

    /// What there is of the message in progress; nothing is added to it from now on.
    pub fn close(&self) -> Partial {
        let mut state = self.state();
        let Some(message) = state.message.as_mut() else {
            return Partial::default();
        };
        message.closed = true;
        Partial {
            text: message.said.text.clone(),
            streamed: message.said.streamed,
        }
    }

    /// A record became durable.
    pub fn publish(&self, seq: i64, record: &Record) {
        let (name, payload) = record.write();
        let mut state = self.state();
        state.published = seq;
        if ends_message(name) {
            state.message = None;
        } else if let Some(message) = &mut state.message {
            let chars = message.said.chars;
            message.said.records.push((seq, chars));
        }
        self.publish_event(Some(seq), name, payload);
    }

    /// What is being said now.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        Snapshot {
            published: state.published,
            message: state.message.as_ref().map(|message| message.said.clone()),
        }
    }

    fn publish_event(&self, seq: Option<i64>, name: &'static str, data: Value) {
        let event = Event {
            seq,
            name,
            data: Arc::new(data),
        };
        self.hub.publish(self.topic, event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::record::CancelRequested;

    #[test]
    fn a_record_in_the_midst_of_a_message_keeps_its_place() {
        let live = Live::new(Uuid::now_v7(), EventHub::default(), 4);
        live.begin(1, "msg_4".to_owned(), 4);
        live.text(1, "häl");
        let record = Record::CancelRequested(CancelRequested {
            turn: 1,
            mode: "after_tool".to_owned(),
        });
        live.publish(5, &record);
        live.text(1, "lo");
        let said = live.snapshot().message.expect("a message is in progress");
        assert_eq!((said.text.as_str(), said.chars), ("hällo", 5));
        assert_eq!(said.offset_at(4), 0);
        assert_eq!(said.offset_at(5), 3);
        assert_eq!(said.offset_at(6), 3);
    }

    #[test]
    fn a_stopped_request_adds_nothing() {
        let live = Live::new(Uuid::now_v7(), EventHub::default(), 0);
        live.begin(1, "msg_0".to_owned(), 0);
        live.text(1, "a");
        assert_eq!(live.close().text, "a");
        live.text(1, "b");
        live.begin(2, "msg_1".to_owned(), 1);
        live.text(1, "c");
        assert_eq!(
            live.snapshot().message.map(|said| said.text),
            Some(String::new())
        );
    }
}
