//! The stream of a session's events: first what is stored, then what happens, without gap or duplicate.
//!
//! Watchers hear records and deltas from the hub in the one order that [`crate::actors::live`] gives them. What a
//! watcher missed (it came later, it fell behind, the session's actor was replaced) is read again: records from the
//! journal, the text of the message in progress from the session's voice.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use callboard_runtime::{
    events::Event,
    id::SessionId,
    store::{StoreError, session_events, sessions},
};
use futures_util::stream::{self, BoxStream, StreamExt};
use serde_json::{Value, json};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::{
    actors::{
        Shared,
        live::{LOADED, Said, Snapshot, ends_message},
    },
    model::record::event_name,
    sessions::{SessionError, StreamEvent},
};

/// How many records are read at once.
const PAGE: i64 = 200;
/// A watcher of a session that another host runs hears nothing here, so it looks this often.
const LOOK: std::time::Duration = std::time::Duration::from_secs(5);

/// A place in the stream: a record, and characters of the message that began after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    seq: i64,
    offset: Option<usize>,
}

impl Cursor {
    /// Reads `SEQ` or `SEQ.OFFSET`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (seq, offset) = match text.split_once('.') {
            Some((seq, offset)) => (seq, Some(offset.parse().ok()?)),
            None => (text, None),
        };
        let seq = seq.parse().ok().filter(|seq| *seq >= 0)?;
        Some(Self { seq, offset })
    }
}

/// The events after `after`; from the beginning without one.
pub(crate) async fn events(
    shared: Arc<Shared>,
    id: SessionId,
    after: Option<&str>,
) -> Result<BoxStream<'static, StreamEvent>, SessionError> {
    let cursor = match after {
        Some(text) => Cursor::parse(text)
            .ok_or_else(|| SessionError::Invalid(format!("`{text}` is not the id of an event")))?,
        None => Cursor::default(),
    };
    let hub = shared.core.events.subscribe(id.0);
    let db = &shared.core.db;
    if sessions::get(db, id).await?.is_none() {
        return Err(SessionError::NotFound(id));
    }
    if cursor.seq > 0
        && session_events::list(db, id, cursor.seq - 1, 1)
            .await?
            .is_empty()
    {
        let text = format!("there is no event `{}` yet", cursor.seq);
        return Err(SessionError::Invalid(text));
    }
    let watcher = Watcher {
        shared,
        id,
        hub,
        seq: cursor.seq,
        message: None,
        ended: 0,
        begin: cursor.offset,
        ready: VecDeque::new(),
        behind: true,
    };
    Ok(stream::unfold(watcher, |mut watcher| async move {
        let event = watcher.next().await?;
        Some((event, watcher))
    })
    .boxed())
}

struct Watcher {
    shared: Arc<Shared>,
    id: SessionId,
    hub: Receiver<Event>,
    /// The last record that was sent.
    seq: i64,
    /// The message in progress, and how many of its characters were sent.
    message: Option<(String, usize)>,
    /// The last record sent that ended a message: deltas of messages that began before it are void.
    ended: i64,
    /// How many characters of the message in progress the client has from an earlier stream.
    begin: Option<usize>,
    ready: VecDeque<StreamEvent>,
    /// Something may have been missed.
    behind: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<StreamEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.behind {
                if let Err(error) = self.catch_up().await {
                    if !matches!(error, StoreError::Unconfirmed(_)) {
                        tracing::warn!(id = %self.id, %error, "a watcher of a session is cut off");
                        return None;
                    }
                    tokio::time::sleep(LOOK).await;
                }
                continue;
            }
            match tokio::time::timeout(LOOK, self.hub.recv()).await {
                Ok(Ok(event)) => self.hear(&event),
                Ok(Err(RecvError::Lagged(_))) => self.behind = true,
                Ok(Err(RecvError::Closed)) => {
                    // The last one who spoke is gone; the next one speaks through a new channel.
                    self.hub = self.shared.core.events.subscribe(self.id.0);
                    self.behind = true;
                }
                Err(_) => self.behind = self.shared.lives.find(self.id).is_none(),
            }
        }
    }

    fn hear(&mut self, event: &Event) {
        match event.seq {
            Some(seq) if seq <= self.seq => {}
            Some(seq) if seq == self.seq + 1 => {
                self.send_record(seq, event.name, Value::clone(&event.data));
            }
            Some(_) => self.behind = true,
            None if event.name == LOADED => self.behind = true,
            None => self.hear_delta(event),
        }
    }

    fn hear_delta(&mut self, event: &Event) {
        let data = &event.data;
        let text = |name: &str| data[name].as_str().unwrap_or_default();
        let number = |name: &str| data[name].as_u64().unwrap_or_default() as usize;
        let (message_id, delta) = (text("message_id"), text("delta"));
        if data["base"].as_i64().unwrap_or_default() < self.ended {
            return;
        }
        if event.name != "message.delta" {
            let id = format!("{}.{}", self.seq, number("chars"));
            let data =
                json!({"message_id": message_id, "offset": number("offset"), "delta": delta});
            self.push(id, event.name, data);
            return;
        }
        let heard = match &self.message {
            Some((id, heard)) if id == message_id => *heard,
            _ => 0,
        };
        let offset = number("offset");
        if offset > heard {
            self.behind = true;
            return;
        }
        let skip = heard - offset;
        let rest: String = delta.chars().skip(skip).collect();
        let message_id = message_id.to_owned();
        self.send_text(&message_id, heard, &rest);
    }

    /// Reads what was missed. Records that are durable but not published yet are left to be heard: their place among
    /// the deltas is not settled.
    async fn catch_up(&mut self) -> Result<(), StoreError> {
        let before = self.shared.lives.find(self.id);
        let snapshot = before.as_ref().map(|live| live.snapshot());
        let rows = session_events::list(&self.shared.core.db, self.id, self.seq, PAGE).await?;
        let more = rows.len() as i64 == PAGE;
        if before.is_none() && self.shared.lives.find(self.id).is_some() {
            return Ok(()); // it has a voice now: look again
        }
        let published = snapshot
            .as_ref()
            .map_or(i64::MAX, |snapshot| snapshot.published);
        let rows: Vec<_> = rows
            .into_iter()
            .filter(|row| row.seq <= published)
            .collect();
        let last = !more || rows.last().is_some_and(|row| row.seq == published);
        let records = rows
            .into_iter()
            .map(|row| (row.seq, row.kind, row.payload))
            .collect();
        self.replay(records, snapshot.unwrap_or_default());
        self.behind = !last;
        Ok(())
    }

    /// Sends records, and the text of the message in progress, in the order in which they were published.
    fn replay(&mut self, records: Vec<(i64, String, Value)>, snapshot: Snapshot) {
        let said = snapshot.message;
        let mut places: BTreeMap<i64, usize> = BTreeMap::new();
        if let Some(said) = &said {
            places.extend(said.records.iter().copied());
            self.resume(said);
        }
        for (seq, kind, payload) in records {
            if let (Some(said), Some(&chars)) = (&said, places.get(&seq)) {
                self.say(said, chars);
            }
            let Some(name) = event_name(&kind) else {
                tracing::warn!(id = %self.id, kind, "a record of a later version");
                continue;
            };
            self.send_record(seq, name, payload);
        }
        if let Some(said) = &said
            && self.seq >= said.base_seq
            && said.records.iter().all(|(seq, _)| *seq <= self.seq)
        {
            self.say(said, said.chars);
        }
    }

    /// Settles how much of the message in progress the client has from before.
    fn resume(&mut self, said: &Said) {
        if self
            .message
            .as_ref()
            .is_some_and(|(id, _)| *id == said.message_id)
        {
            return;
        }
        // What was heard of another message was replaced or voided by records since.
        let offset = if self.seq >= said.base_seq {
            let place = said.offset_at(self.seq);
            self.begin.take().unwrap_or(place).min(said.chars)
        } else {
            0
        };
        self.message = Some((said.message_id.clone(), offset));
    }

    /// Sends the text of a message up to `chars`, in the deltas it came in.
    fn say(&mut self, said: &Said, chars: usize) {
        if said.base_seq < self.ended {
            return;
        }
        let heard = match &self.message {
            Some((id, heard)) if *id == said.message_id => *heard,
            _ => 0,
        };
        let mut rest = said.text.chars().skip(heard);
        let mut begin = heard;
        for &end in said
            .ends
            .iter()
            .filter(|end| (heard + 1..=chars).contains(*end))
        {
            let delta: String = rest.by_ref().take(end - begin).collect();
            self.send_text(&said.message_id, begin, &delta);
            begin = end;
        }
    }

    fn send_text(&mut self, message_id: &str, offset: usize, delta: &str) {
        if delta.is_empty() {
            return;
        }
        let end = offset + delta.chars().count();
        self.message = Some((message_id.to_owned(), end));
        let data = json!({"message_id": message_id, "offset": offset, "delta": delta});
        self.push(format!("{}.{end}", self.seq), "message.delta", data);
    }

    fn send_record(&mut self, seq: i64, name: &str, mut data: Value) {
        if let Some(members) = data.as_object_mut() {
            // For telling a repeated message from another one under the same key; no business of clients.
            members.remove("content_hash");
        }
        self.seq = seq;
        self.begin = None;
        if ends_message(name) {
            self.ended = seq;
            self.message = None;
        }
        self.push(seq.to_string(), name, data);
    }

    fn push(&mut self, id: String, name: &str, data: Value) {
        self.ready.push_back(StreamEvent {
            id,
            name: name.to_owned(),
            data,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_places_with_or_without_an_offset() {
        let cursor = |seq, offset| Some(Cursor { seq, offset });
        assert_eq!(Cursor::parse("0"), cursor(0, None));
        assert_eq!(Cursor::parse("17.4"), cursor(17, Some(4)));
        for text in ["", "x", "-1", "1.x", "1.-2", "1.2.3"] {
            assert_eq!(Cursor::parse(text), None, "{text}");
        }
    }
}
