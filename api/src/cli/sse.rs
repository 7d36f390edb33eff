//! Reads server-sent events from a stream of bytes, cut anywhere.

use serde_json::Value;

/// The longest event that is read, in bytes: beyond it the stream is not one of ours.
const EVENT_BYTES_MAX: usize = 64 << 20;

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The last id of the stream, this event's included. Empty: none was sent.
    pub id: String,
    /// Such as `node.finished`; `message` when the server named none.
    pub name: String,
    /// What it carries; text that is not JSON as a string.
    pub data: Value,
}

/// The stream holds an event of absurd size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Puts events together from pieces of a stream.
#[derive(Debug, Default)]
pub struct Parser {
    buffer: Vec<u8>,
    id: String,
    name: String,
    data: Option<String>,
}

impl Parser {
    /// Takes the next piece; gives the events that it completes.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        let mut start = 0;
        while let Some((length, end)) = line_end(&self.buffer[start..]) {
            let line = String::from_utf8_lossy(&self.buffer[start..start + length]).into_owned();
            start += end;
            events.extend(self.line(&line));
        }
        self.buffer.drain(..start);
        if self.buffer.len() + self.data.as_ref().map_or(0, String::len) > EVENT_BYTES_MAX {
            return Err(TooLong);
        }
        Ok(events)
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => value.clone_into(&mut self.id),
            "event" => value.clone_into(&mut self.name),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            // Comments keep the connection open; `retry` is ours to decide.
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Event> {
        let name = std::mem::take(&mut self.name);
        let data = self.data.take()?;
        Some(Event {
            id: self.id.clone(),
            name: if name.is_empty() { "message".to_owned() } else { name },
            data: serde_json::from_str(&data).unwrap_or(Value::String(data)),
        })
    }
}

/// Length of the first line and of the line with its end. A carriage return that ends the piece is not yet
/// known to be the whole end, so it waits for more.
fn line_end(bytes: &[u8]) -> Option<(usize, usize)> {
    let at = bytes.iter().position(|&byte| byte == b'\n' || byte == b'\r')?;
    match (bytes[at], bytes.get(at + 1)) {
        (b'\n', _) => Some((at, at + 1)),
        (_, None) => None,
        (_, Some(b'\n')) => Some((at, at + 2)),
        _ => Some((at, at + 1)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const STREAM: &str = ": hello\n\nid: 1\nevent: a\ndata: {\"x\":\ndata: 1}\n\nevent: b\r\ndata:text\r\n\r\nid: 7\n\n";

    fn expected() -> Vec<Event> {
        vec![
            Event { id: "1".into(), name: "a".into(), data: json!({"x": 1}) },
            Event { id: "1".into(), name: "b".into(), data: json!("text") },
        ]
    }

    #[test]
    fn events_are_the_same_however_the_stream_is_cut() {
        for size in 1..STREAM.len() {
            let mut parser = Parser::default();
            let events: Vec<Event> = STREAM
                .as_bytes()
                .chunks(size)
                .flat_map(|piece| parser.push(piece).unwrap_or_default())
                .collect();
            assert_eq!(events, expected(), "in pieces of {size}");
        }
    }

    #[test]
    fn an_event_without_data_is_none() {
        let mut parser = Parser::default();
        assert_eq!(parser.push(b"event: x\n\n"), Ok(vec![]));
        let next = parser.push(b"data: 1\n\n").unwrap_or_default();
        assert_eq!(next.first().map(|event| event.name.as_str()), Some("message"));
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; 1 << 20];
        assert!((0..=65).any(|_| parser.push(&piece).is_err()));
    }
}
