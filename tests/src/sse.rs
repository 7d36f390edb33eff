//! Reads event streams as a client does.

use std::{collections::VecDeque, pin::Pin};

use futures_util::{Stream, StreamExt};
use serde_json::Value;

use crate::wait::DEADLINE;

/// One event of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// `id:`, if this event has one.
    pub id: Option<String>,
    /// `event:`, else `message`.
    pub name: String,
    /// `data:`, as JSON where it is.
    pub data: Value,
}

type Chunks = Pin<Box<dyn Stream<Item = Option<Vec<u8>>> + Send>>;

/// An open event stream.
pub struct Events {
    chunks: Chunks,
    buffer: Vec<u8>,
    ready: VecDeque<Event>,
}

impl Events {
    /// Reads the body of a response.
    pub fn new(response: reqwest::Response) -> Self {
        let chunks = response
            .bytes_stream()
            .map(|chunk| chunk.ok().map(|bytes| bytes.to_vec()));
        Self {
            chunks: Box::pin(chunks),
            buffer: Vec::new(),
            ready: VecDeque::new(),
        }
    }

    /// The next event; `None` at the end of the stream, clean or not.
    ///
    /// # Panics
    /// When nothing comes in time.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let chunk = tokio::time::timeout(DEADLINE, self.chunks.next())
                .await
                .expect("the stream goes on or ends");
            match chunk {
                Some(Some(chunk)) => self.take(&chunk),
                Some(None) | None => return None,
            }
        }
    }

    /// All events up to and including the first one named `name`.
    ///
    /// # Panics
    /// When the stream ends before.
    pub async fn until(&mut self, name: &str) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            let last = event.name == name;
            events.push(event);
            if last {
                return events;
            }
        }
        panic!("the stream ended before `{name}`: {events:#?}");
    }

    /// All events up to the end of the stream.
    pub async fn rest(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }

    fn take(&mut self, chunk: &[u8]) {
        self.buffer
            .extend(chunk.iter().filter(|&&byte| byte != b'\r'));
        while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
            let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
            self.ready.extend(parse(&String::from_utf8_lossy(&block)));
        }
    }
}

/// A block of lines. Comments (keep-alives) and retry hints are no events.
fn parse(block: &str) -> Option<Event> {
    let (mut id, mut name, mut data) = (None, None, Vec::new());
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => id = Some(value.to_owned()),
            "event" => name = Some(value.to_owned()),
            "data" => data.push(value),
            _ => {}
        }
    }
    if name.is_none() && data.is_empty() {
        return None;
    }
    let data = data.join("\n");
    Some(Event {
        id,
        name: name.unwrap_or_else(|| "message".to_owned()),
        data: serde_json::from_str(&data).unwrap_or_else(|_| Value::from(data)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_events_and_comments_are_not() {
        let event = parse("id: 4\nevent: node.finished\ndata: {\"a\":\ndata: 1}\n\n").unwrap();
        assert_eq!(event.id.as_deref(), Some("4"));
        assert_eq!(event.name, "node.finished");
        assert_eq!(event.data["a"], 1);
        assert_eq!(parse(": keep-alive\n\n"), None);
    }
}
