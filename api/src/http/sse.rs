//! Server-sent events.

use std::time::Duration;

use futures_util::{Stream, StreamExt};
use poem::{
    IntoResponse, Response,
    web::sse::{Event, SSE},
};
use poem_openapi::{
    ApiResponse,
    registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry},
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::State;

/// How often a silent stream says that it lives: proxies cut what is silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The media type of event streams.
pub const EVENT_STREAM: &str = "text/event-stream";

/// A stream of events as an answer.
pub struct Events(SSE);

impl Events {
    /// Sends `events` as they come, until the host stops: whoever follows resumes elsewhere with its last event id.
    pub fn new(events: impl Stream<Item = Event> + Send + 'static, state: &State) -> Self {
        Self::until(events, state.shutdown.clone())
    }

    fn until(events: impl Stream<Item = Event> + Send + 'static, stop: CancellationToken) -> Self {
        let events = events.take_until(stop.cancelled_owned());
        Self(SSE::new(events).keep_alive(KEEP_ALIVE))
    }
}

/// One event. One without an id leaves the client's last event id as it is.
pub fn event(id: Option<String>, name: &str, data: &Value) -> Event {
    let event = Event::message(data.to_string()).event_type(name);
    match id {
        Some(id) => event.id(id),
        None => event,
    }
}

/// The documentation of an event stream.
pub fn stream_meta() -> MetaMediaType {
    MetaMediaType {
        content_type: EVENT_STREAM,
        schema: MetaSchemaRef::Inline(Box::new(MetaSchema::new("string"))),
    }
}

impl ApiResponse for Events {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![MetaResponse {
                description: "Events as they happen. `Last-Event-ID` or `?after=` resumes without gap or duplicate.",
                status: Some(200),
                status_range: None,
                content: vec![stream_meta()],
                headers: vec![],
            }],
        }
    }

    fn register(_: &mut Registry) {}
}

impl IntoResponse for Events {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn an_event_without_a_place_in_the_journal_has_no_id() {
        let events = stream::iter([
            event(Some("3".into()), "node.finished", &json!({ "a": "x\ny" })),
            event(None, "node.started", &json!({})),
        ]);
        let response = Events::until(events, CancellationToken::new()).into_response();
        assert_eq!(response.content_type(), Some(EVENT_STREAM));
        assert_eq!(
            response
                .into_body()
                .into_string()
                .await
                .expect("it is text"),
            "id: 3\nevent: node.finished\ndata: {\"a\":\"x\\ny\"}\n\nevent: node.started\ndata: {}\n\n"
        );
    }
}
