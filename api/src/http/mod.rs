//! Serves HTTP: the API, webhooks, event streams, health, metrics and the documentation.
//!
//! The front holds nothing that must survive it: every answer that promises something is sent after the
//! store confirmed it, and every stream can be resumed by its last event id.

use std::{io, sync::Arc, time::Duration};

use callboard_agents::sessions::Sessions;
use callboard_runtime::{core::Core, executions::Executions, node::NodeRegistry};
use poem::Request;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

mod answer;
mod auth;
mod body;
mod front;
mod hooks;
mod input;
pub mod keys;
mod metrics;
mod openapi;
mod origin;
mod problem;
mod routes;
mod server;
mod sse;
#[cfg(test)]
mod tests;
mod trace;

use problem::{ApiError, ApiResult};

/// The running host that the front speaks for. Cloning it is cheap.
#[derive(Clone)]
pub struct App {
    /// What every part of the host shares.
    pub core: Core,
    /// Starts, watches and cancels executions.
    pub executions: Executions,
    /// Opens and drives sessions.
    pub sessions: Sessions,
    /// The node types workflows are compiled against.
    pub nodes: Arc<NodeRegistry>,
}

/// How HTTP is served.
pub struct ServeOptions {
    /// Where connections come in; already bound, so that a taken port is found before anything starts.
    pub listener: TcpListener,
    /// Lets every request through with all scopes. The caller refuses it on addresses that others can reach.
    pub no_auth: bool,
    /// The largest request body in bytes; a larger one is answered 413.
    pub max_body: usize,
    /// Cancelled to drain: requests are still answered, those that would start something with 503.
    pub draining: CancellationToken,
    /// Cancelled to stop: no connection is accepted, streams end, what is in flight is finished.
    pub shutdown: CancellationToken,
    /// How long requests in flight may take to finish after `shutdown`; then they are cut.
    pub drain_timeout: Duration,
}

/// Serves until `shutdown` is cancelled and the requests in flight are done or cut.
///
/// # Errors
/// When the listener breaks for good.
pub async fn serve(app: App, options: ServeOptions) -> io::Result<()> {
    let ServeOptions {
        listener,
        no_auth,
        max_body,
        draining,
        shutdown,
        drain_timeout,
    } = options;
    let state = State::new(app, no_auth, max_body, draining, shutdown.clone());
    server::run(listener, front::Front::new(state), shutdown, drain_timeout).await
}

/// What every request may need.
struct State {
    app: App,
    max_body: usize,
    draining: CancellationToken,
    shutdown: CancellationToken,
    keys: auth::Keys,
    hooks: hooks::Hooks,
    metrics: metrics::Metrics,
    /// Held while a document is checked against the others and stored, so that two requests to this host
    /// cannot both find a name or a webhook's path free.
    documents_changing: tokio::sync::Mutex<()>,
}

impl State {
    fn new(
        app: App,
        no_auth: bool,
        max_body: usize,
        draining: CancellationToken,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            keys: auth::Keys::new(app.core.db.clone(), no_auth),
            hooks: hooks::Hooks::default(),
            metrics: metrics::Metrics::default(),
            documents_changing: tokio::sync::Mutex::default(),
            app,
            max_body,
            draining,
            shutdown,
        })
    }

    /// The state that [`front::Front`] put beside the request.
    fn of(request: &Request) -> ApiResult<&Arc<Self>> {
        request
            .extensions()
            .get()
            .ok_or_else(|| ApiError::internal("a request came past the front"))
    }

    /// Whether the host is stopping, whichever part of it has been reached.
    fn is_stopping(&self) -> bool {
        self.draining.is_cancelled() || self.shutdown.is_cancelled()
    }

    /// # Errors
    /// 503 when the host is stopping: what is started now would be handed over at once.
    fn takes_work(&self) -> ApiResult<()> {
        if self.is_stopping() {
            Err(ApiError::draining())
        } else {
            Ok(())
        }
    }

    /// What `waiting` gives, or `None` when the host stops first: whoever waits is then told where to look.
    async fn unless_stopped<T>(&self, waiting: impl Future<Output = Option<T>>) -> Option<T> {
        tokio::select! {
            biased;
            found = waiting => found,
            () = self.shutdown.cancelled() => None,
        }
    }
}
