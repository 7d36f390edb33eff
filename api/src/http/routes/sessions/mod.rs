//! Conversations with agents.

use std::{sync::Arc, time::Duration};

use callboard_agents::sessions::{CancelMode, OpenSession, SendMessage};
use callboard_runtime::id::SessionId;
use futures_util::StreamExt;
use poem::Request;
use poem_openapi::{
    OpenApi,
    param::{Header, Path, Query},
};

mod turn;
mod types;

use self::{
    turn::{EventId, of_turn, wants_stream},
    types::{
        MessageAnswer, MessageCreate, MessageList, SessionCancel, SessionCreate, SessionDetails,
        SessionList, TurnAccepted,
    },
};
use super::Tag;
use crate::http::{
    State,
    answer::{self, Accepted, Created, Found, NoContent},
    auth::{AgentsRead, AgentsRun, Auth, StreamAuth},
    input::{Body, Cursor, Faults, IdempotencyKey, Limit, Param},
    problem::{ApiError, ApiResult},
    sse::{self, Events},
};

/// How long a caller that does not stream waits for the end of a turn; then it is told where to look.
const TURN_WAIT: Duration = Duration::from_secs(300);

pub struct Operations(pub Arc<State>);

fn place(id: SessionId) -> String {
    format!("/v1/sessions/{id}")
}

/// Errors that are about a session name it.
fn about<E: Into<ApiError>>(id: SessionId) -> impl FnOnce(E) -> ApiError {
    move |error| error.into().with("session_id", id.to_string())
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Sessions")]
impl Operations {
    /// Open a session
    ///
    /// Scope `agents:run`.
    #[oai(
        path = "/agents/:name/sessions",
        method = "post",
        operation_id = "create_session"
    )]
    async fn create(
        &self,
        _auth: Auth<AgentsRun>,
        request: &Request,
        name: Path<String>,
        #[oai(name = "Idempotency-Key")] _key: Header<Option<Param<IdempotencyKey>>>,
        body: Body<SessionCreate>,
    ) -> ApiResult<Created<SessionDetails>> {
        let mut faults = Faults::default();
        let key = faults.header::<IdempotencyKey>("idempotency-key", request.headers());
        let body = faults.body(body);
        faults.check(body)?;
        self.0.takes_work()?;
        let options = OpenSession {
            idempotency_key: key.map(|key| key.0),
            execution_id: None,
        };
        let session = self.0.app.sessions.open(&name, options).await?;
        let place = place(session.id);
        Ok(Created::new(session.into()).at(place))
    }

    /// List sessions
    ///
    /// Newest first. Scope `agents:read`.
    #[oai(path = "/sessions", method = "get", operation_id = "list_sessions")]
    async fn list(
        &self,
        _auth: Auth<AgentsRead>,
        /// Of this agent only.
        agent: Query<Option<Param<String>>>,
        limit: Query<Option<Param<Limit>>>,
        cursor: Query<Option<Param<Cursor<SessionId>>>>,
    ) -> ApiResult<Found<SessionList>> {
        let mut faults = Faults::default();
        let agent = faults.query("agent", agent.0);
        let limit = faults.query("limit", limit.0).unwrap_or_default().0;
        let before = faults.query("cursor", cursor.0).map(|cursor| cursor.0);
        faults.check(Some(()))?;
        let rows = self
            .0
            .app
            .sessions
            .list(agent.as_deref(), before, limit as i64 + 1)
            .await?;
        let (page, next_cursor) = answer::page(rows, limit, |last| Cursor(last.id).encode());
        Ok(Found::new(SessionList {
            data: page.into_iter().map(Into::into).collect(),
            next_cursor,
        }))
    }

    /// Get a session
    ///
    /// Scope `agents:read`.
    #[oai(path = "/sessions/:id", method = "get", operation_id = "get_session")]
    async fn get(
        &self,
        _auth: Auth<AgentsRead>,
        id: Path<Param<SessionId>>,
    ) -> ApiResult<Found<SessionDetails>> {
        let id = session_id(id)?;
        Ok(Found::new(
            self.0.app.sessions.get(id).await.map_err(about(id))?.into(),
        ))
    }

    /// Delete a session
    ///
    /// With its transcript; a running turn is cancelled first. Scope `agents:run`.
    #[oai(
        path = "/sessions/:id",
        method = "delete",
        operation_id = "delete_session"
    )]
    async fn delete(
        &self,
        _auth: Auth<AgentsRun>,
        id: Path<Param<SessionId>>,
    ) -> ApiResult<NoContent> {
        let id = session_id(id)?;
        self.0.app.sessions.delete(id).await.map_err(about(id))?;
        Ok(NoContent)
    }

    /// Send a message
    ///
    /// Answers when the turn ended, or streams its events with `Accept: text/event-stream`. A disconnect cancels
    /// nothing. Scope `agents:run`.
    #[oai(
        path = "/sessions/:id/messages",
        method = "post",
        operation_id = "create_message"
    )]
    async fn send(
        &self,
        _auth: Auth<AgentsRun>,
        request: &Request,
        id: Path<Param<SessionId>>,
        /// Repeating a message under the same key asks nothing anew.
        #[oai(name = "Idempotency-Key")]
        _key: Header<Option<Param<IdempotencyKey>>>,
        body: Body<MessageCreate>,
    ) -> ApiResult<MessageAnswer> {
        let mut faults = Faults::default();
        let id = faults.path("id", id.0);
        let key = faults.header::<IdempotencyKey>("idempotency-key", request.headers());
        let body = faults.body(body);
        let (id, body) = faults.check(id.zip(body))?;
        self.0.takes_work()?;
        let message = SendMessage {
            content: body.content,
            idempotency_key: key.map(|key| key.0),
        };
        let sessions = &self.0.app.sessions;
        let accepted = sessions.send(id, message).await.map_err(about(id))?;
        if wants_stream(request.headers()) {
            let events = sessions
                .events(id, Some(&accepted.after_seq.to_string()))
                .await
                .map_err(about(id))?;
            let events = of_turn(events, accepted.turn);
            return Ok(MessageAnswer::Stream(Events::new(events, &self.0)));
        }
        let turn = async {
            let turn = sessions.turn(id, accepted.turn, TURN_WAIT).await;
            turn.transpose()
        };
        let turn = self.0.unless_stopped(turn).await.transpose();
        let turn = turn.map_err(about(id))?;
        Ok(match turn {
            Some(turn) => MessageAnswer::Turn(Box::new(turn)),
            None => MessageAnswer::GoesOn(
                Accepted::new(TurnAccepted {
                    session_id: id.0,
                    turn: accepted.turn,
                })
                .at(place(id)),
            ),
        })
    }

    /// List the messages of a session
    ///
    /// Oldest first. Scope `agents:read`.
    #[oai(
        path = "/sessions/:id/messages",
        method = "get",
        operation_id = "list_messages"
    )]
    async fn messages(
        &self,
        _auth: Auth<AgentsRead>,
        id: Path<Param<SessionId>>,
        limit: Query<Option<Param<Limit>>>,
        cursor: Query<Option<Param<Cursor<i64>>>>,
    ) -> ApiResult<Found<MessageList>> {
        let mut faults = Faults::default();
        let id = faults.path("id", id.0);
        let limit = faults.query("limit", limit.0).unwrap_or_default().0;
        let after = faults
            .query("cursor", cursor.0)
            .map_or(0, |cursor| cursor.0);
        let id = faults.check(id)?;
        let rows = self
            .0
            .app
            .sessions
            .transcript(id, after, limit as i64 + 1)
            .await
            .map_err(about(id))?;
        let (page, next_cursor) = answer::page(rows, limit, |last| Cursor(last.seq).encode());
        Ok(Found::new(MessageList {
            data: page.into_iter().map(Into::into).collect(),
            next_cursor,
        }))
    }

    /// Follow a session
    ///
    /// First what was, then what happens. Scope `agents:read`.
    #[oai(
        path = "/sessions/:id/events",
        method = "get",
        operation_id = "session_events"
    )]
    async fn events(
        &self,
        _auth: StreamAuth<AgentsRead>,
        id: Path<Param<SessionId>>,
        /// The id of the last event that is known; `Last-Event-ID` says the same and wins.
        after: Query<Option<Param<EventId>>>,
        #[oai(name = "Last-Event-ID")] last: Header<Option<Param<EventId>>>,
    ) -> ApiResult<Events> {
        let mut faults = Faults::default();
        let id = faults.path("id", id.0);
        let after = faults.query("after", after.0);
        let after = faults.parsed_header("last-event-id", last.0).or(after);
        let id = faults.check(id)?;
        let events = self
            .0
            .app
            .sessions
            .events(id, after.as_ref().map(|after| after.0.as_str()))
            .await;
        let events = events
            .map_err(about(id))?
            .map(|event| sse::event(Some(event.id), &event.name, &event.data));
        Ok(Events::new(events, &self.0))
    }

    /// Cancel the running turn
    ///
    /// 409 when none is running. Scope `agents:run`.
    #[oai(
        path = "/sessions/:id/cancel",
        method = "post",
        operation_id = "cancel_session"
    )]
    async fn cancel(
        &self,
        _auth: Auth<AgentsRun>,
        id: Path<Param<SessionId>>,
        body: Body<SessionCancel>,
    ) -> ApiResult<Accepted<SessionDetails>> {
        let mut faults = Faults::default();
        let id = faults.path("id", id.0);
        let body = faults.body(body);
        let (id, body) = faults.check(id.zip(body))?;
        let mode = match body.mode.as_deref() {
            Some("after_tool") => CancelMode::AfterTool,
            _ => CancelMode::Now,
        };
        self.0
            .app
            .sessions
            .cancel(id, mode)
            .await
            .map_err(about(id))?;
        let session = self.0.app.sessions.get(id).await.map_err(about(id))?;
        Ok(Accepted::new(session.into()).at(place(id)))
    }
}

fn session_id(id: Path<Param<SessionId>>) -> ApiResult<SessionId> {
    let mut faults = Faults::default();
    let id = faults.path("id", id.0);
    faults.check(id)
}
