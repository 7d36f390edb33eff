//! The events of sessions, and those of one turn.

use callboard_agents::sessions as agent;
use futures_util::{Stream, StreamExt, future, stream};
use poem::{
    http::{HeaderMap, header},
    web::sse::Event,
};
use poem_openapi::registry::MetaSchema;

use crate::http::{
    input::{ParamType, Wrong},
    sse::{self, EVENT_STREAM},
};

/// `SEQ`, or `SEQ.OFFSET` for deltas.
pub struct EventId(pub String);

impl ParamType for EventId {
    fn schema() -> MetaSchema {
        MetaSchema {
            pattern: Some(r"^\d+(\.\d+)?$".to_owned()),
            ..String::schema()
        }
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let number = |part: &str| {
            part.bytes().all(|byte| byte.is_ascii_digit()) && part.parse::<i64>().is_ok()
        };
        let (seq, offset) = text.split_once('.').unwrap_or((text, "0"));
        if number(seq) && number(offset) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Wrong::new(
                "value_error",
                "Value error, this is not the id of an event",
            ))
        }
    }
}

/// Whether the events of a turn are wanted instead of its result.
pub fn wants_stream(headers: &HeaderMap) -> bool {
    let accepted = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    accepted
        .flat_map(|value| value.split(','))
        .any(|range| range.split(';').next().unwrap_or_default().trim() == EVENT_STREAM)
}

/// The events of one turn, out of those of its session: from its start up to the one that ends it. Turns
/// that were before it in line are left out.
pub fn of_turn(
    events: impl Stream<Item = agent::StreamEvent> + Send + 'static,
    turn: i64,
) -> impl Stream<Item = Event> + Send + 'static {
    let begun = move |event: &agent::StreamEvent| {
        event.name == "turn.started" && event.data["turn"] == turn
    };
    let events = Box::pin(events.skip_while(move |event| future::ready(!begun(event))));
    // Ended by the last event itself, not by the one after it, which may never come.
    stream::unfold(Some(events), |events| async {
        let mut events = events?;
        let event = events.next().await?;
        let rest = (!ends_turn(&event.name)).then_some(events);
        Some((sse::event(Some(event.id), &event.name, &event.data), rest))
    })
}

fn ends_turn(name: &str) -> bool {
    matches!(
        name,
        "turn.completed" | "turn.failed" | "turn.cancelled" | "turn.limited"
    )
}

#[cfg(test)]
mod tests {
    use poem::http::HeaderValue;
    use serde_json::{Value, json};

    use super::*;

    fn event(seq: i64, name: &str, data: Value) -> agent::StreamEvent {
        agent::StreamEvent {
            id: seq.to_string(),
            name: name.to_owned(),
            data,
        }
    }

    #[tokio::test]
    async fn a_turns_stream_begins_and_ends_with_the_turn() {
        let events = stream::iter([
            event(4, "message.queued", json!({ "turn": 2 })),
            event(5, "turn.completed", json!({ "turn": 1 })),
            event(6, "turn.started", json!({ "turn": 2 })),
            event(7, "message.completed", json!({})),
            event(8, "turn.limited", json!({ "turn": 2 })),
        ])
        .chain(stream::pending());
        let names: Vec<String> = of_turn(events, 2)
            .map(|event| match event {
                Event::Message { id, event, .. } => format!("{id} {event}"),
                Event::Retry { .. } => String::new(),
            })
            .collect()
            .await;
        assert_eq!(
            names,
            ["6 turn.started", "7 message.completed", "8 turn.limited"]
        );
    }

    #[test]
    fn a_stream_is_sent_to_whom_accepts_one() {
        let accepts = |value: &'static str| {
            wants_stream(&HeaderMap::from_iter([(
                header::ACCEPT,
                HeaderValue::from_static(value),
            )]))
        };
        assert!(accepts("text/event-stream"));
        assert!(accepts("application/json, text/event-stream;q=0.9"));
        assert!(!accepts("*/*"));
        assert!(!accepts("application/json"));
    }

    #[test]
    fn event_ids_are_a_place_and_perhaps_an_offset() {
        for id in ["0", "17", "17.4"] {
            assert!(EventId::parse(id).is_ok(), "{id}");
        }
        for text in ["", "-1", "1.", ".1", "1.2.3", "a"] {
            assert!(EventId::parse(text).is_err(), "{text}");
        }
    }
}
