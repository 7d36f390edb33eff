//! Accepts connections, bounds them, and lets them finish when the host stops.
//!
//! Poem's own server has no limit on connections and no deadline for request headers, so a client that opens
//! sockets and says nothing could hold as many as it likes. Hyper is therefore driven directly.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use poem::{
    Addr, Endpoint, Response,
    http::uri::Scheme,
    web::{LocalAddr, RemoteAddr},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How many connections may be open at once; further ones wait in the kernel's backlog. Fewer where the process may
/// not have twice as many open files: without any left it could not reach its database.
const CONNECTIONS_MAX: usize = 8192;
/// How long a client may take to send the headers of a request, and to begin the next one. Longer than clients keep
/// idle connections, so that it is they who close them: else a request could meet a connection being closed.
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);
/// How often an HTTP/2 client is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How many header fields a request may have.
const HEADERS_MAX: usize = 100;
/// How many bytes the headers of a request may take.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// How many requests one HTTP/2 connection may have in flight.
const STREAMS_MAX: u32 = 256;
/// The pause after a failed accept: the usual reason is that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `endpoint` until `shutdown`; then finishes what is in flight for at most `drain_timeout`.
pub(super) async fn run<E>(
    listener: TcpListener,
    endpoint: E,
    shutdown: CancellationToken,
    drain_timeout: Duration,
) -> io::Result<()>
where
    E: Endpoint + 'static,
    E::Output: poem::IntoResponse,
{
    let service = Arc::new(Service {
        endpoint,
        local: LocalAddr(Addr::SocketAddr(listener.local_addr()?)),
        http: builder(),
        shutdown: shutdown.clone(),
        cut: CancellationToken::new(),
    });
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(connections_max()));
    while let Some((socket, remote, place)) = accept(&listener, &places, &shutdown).await {
        let service = service.clone();
        connections.spawn(async move {
            service.connection(socket, remote).await;
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    if timeout(drain_timeout, connections.wait()).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "cutting requests that did not finish in time"
        );
        service.cut.cancel();
        connections.wait().await;
    }
    Ok(())
}

/// Asks for as many open files as the process may have, and says how many of them connections may take.
fn connections_max() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    match getrlimit(Resource::Nofile).current {
        None => CONNECTIONS_MAX,
        Some(files) => CONNECTIONS_MAX.min(usize::try_from(files / 2).unwrap_or(usize::MAX)),
    }
}

/// The next connection, or `None` when the host stops.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, std::net::SocketAddr, OwnedSemaphorePermit)> {
    let next = async {
        // The semaphore is never closed; if it were, stopping to accept is right.
        let place = places.clone().acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((socket, remote)) => return Some((socket, remote, place)),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        accepted = next => accepted,
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX as u32)
        .keep_alive_interval(Some(PING_INTERVAL));
    builder
}

struct Service<E> {
    endpoint: E,
    local: LocalAddr,
    http: auto::Builder<TokioExecutor>,
    shutdown: CancellationToken,
    cut: CancellationToken,
}

impl<E> Service<E>
where
    E: Endpoint + 'static,
    E::Output: poem::IntoResponse,
{
    /// Serves one connection to its end.
    async fn connection(self: Arc<Self>, socket: TcpStream, remote: std::net::SocketAddr) {
        // Answers are written whole; waiting for more to send would only delay them.
        let _ = socket.set_nodelay(true);
        let remote = RemoteAddr(Addr::SocketAddr(remote));
        let this = self.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let this = this.clone();
            let request = (request, this.local.clone(), remote.clone(), Scheme::HTTP).into();
            async move {
                let response: Response = this.endpoint.get_response(request).await;
                Ok::<hyper::Response<_>, Infallible>(response.into())
            }
        });
        let connection = self
            .http
            .serve_connection_with_upgrades(TokioIo::new(socket), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => Some(ended),
            () = self.shutdown.cancelled() => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection => ended,
                    () = self.cut.cancelled() => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

#[cfg(test)]
mod tests {
    use poem::{endpoint::make, http::StatusCode};
    use tokio::{
        sync::{mpsc, watch},
        task::JoinHandle,
    };

    use super::*;

    /// A server whose `/slow` says that it was called and then waits for `open`.
    struct Fixture {
        url: String,
        shutdown: CancellationToken,
        called: mpsc::UnboundedReceiver<()>,
        open: watch::Sender<bool>,
        served: JoinHandle<io::Result<()>>,
    }

    async fn fixture(drain_timeout: Duration) -> Fixture {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let shutdown = CancellationToken::new();
        let (calls, called) = mpsc::unbounded_channel();
        let (open, opened) = watch::channel(false);
        let endpoint = make(move |request: poem::Request| {
            let (calls, mut opened) = (calls.clone(), opened.clone());
            async move {
                if request.uri().path() == "/slow" {
                    let _ = calls.send(());
                    let _ = opened.wait_for(|open| *open).await;
                }
                Ok::<_, poem::Error>(Response::builder().header("connection", "close").finish())
            }
        });
        let stop = shutdown.clone();
        let served =
            tokio::spawn(async move { run(listener, endpoint, stop, drain_timeout).await });
        Fixture {
            url,
            shutdown,
            called,
            open,
            served,
        }
    }

    fn get(url: String) -> JoinHandle<reqwest::Result<StatusCode>> {
        tokio::spawn(async move { reqwest::get(url).await.map(|response| response.status()) })
    }

    #[tokio::test]
    async fn requests_in_flight_finish_when_the_host_stops() {
        let mut server = fixture(Duration::from_secs(60)).await;
        let slow = get(format!("{}/slow", server.url));
        server.called.recv().await.expect("it was called");
        server.shutdown.cancel();
        server.open.send_replace(true);
        let slow = slow.await.expect("it does not panic");
        assert_eq!(slow.expect("it was finished"), StatusCode::OK);
        server
            .served
            .await
            .expect("it does not panic")
            .expect("it stopped well");
        assert!(get(server.url).await.expect("it does not panic").is_err());
    }

    #[tokio::test]
    async fn what_does_not_finish_in_time_is_cut() {
        let mut server = fixture(Duration::ZERO).await;
        let slow = get(format!("{}/slow", server.url));
        server.called.recv().await.expect("it was called");
        server.shutdown.cancel();
        server
            .served
            .await
            .expect("it does not panic")
            .expect("it stopped well");
        assert!(slow.await.expect("it does not panic").is_err());
    }
}
