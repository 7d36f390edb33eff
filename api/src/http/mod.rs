//! Serves HTTP: the API, webhooks, event streams, health, metrics and the documentation.
//!
//! The front holds nothing that must survive it: every answer that promises something is sent after the
//! store confirmed it, and every stream can be resumed by its last event id.

use std::{io, sync::Arc, time::Duration};

use callboard_agents::sessions::Sessions;
use callboard_runtime::{core::Core, executions::Executions, node::NodeRegistry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub mod keys;
mod server;

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
    /// Cancelled to stop: nothing new is accepted, what runs is finished.
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
        shutdown,
        drain_timeout,
        ..
    } = options;
    drop(app);
    server::run(listener, poem::Route::new(), shutdown, drain_timeout).await
}
