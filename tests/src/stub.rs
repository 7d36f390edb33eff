//! A local HTTP server that records what it is asked and answers as a test wants: late, wrongly, in pieces, never.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::wait::wait_until;

/// Requests larger than this are a mistake in a test.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Upper case.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// What follows `?`, as sent.
    pub query: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// As JSON where it is, else as a string; `Null` when empty.
    pub body: Value,
    /// How many requests to this path there were, this one included.
    pub nth: usize,
    /// When it was complete.
    pub at: Instant,
}

/// Holds answers back until a test lets them go.
#[derive(Clone)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets everything go, now and later.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn passed(&self) {
        // The sender lives in `self`, so there is always an answer.
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

/// What to answer.
#[derive(Clone)]
pub enum Answer {
    /// A whole answer with a JSON body.
    Json(u16, Value),
    /// A whole answer: status, headers, body.
    Raw(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// The same, but only once a gate is open.
    After(Gate, Box<Answer>),
    /// A stream of pieces, each sent on its own; the connection is cut after the last one when `cut` is set, else
    /// the stream ends as it should.
    Pieces {
        /// Its `content-type`.
        content_type: &'static str,
        /// What is sent.
        pieces: Vec<Piece>,
        /// Whether it breaks off.
        cut: bool,
    },
    /// Nothing, for as long as the client waits.
    Hang,
    /// The connection is closed without a word.
    Close,
}

/// A part of a streamed answer.
#[derive(Clone)]
pub enum Piece {
    /// Bytes.
    Bytes(Vec<u8>),
    /// The stream pauses until a gate is open.
    Wait(Gate),
}

impl Answer {
    /// 200 with a JSON body.
    pub fn ok(body: Value) -> Self {
        Self::Json(200, body)
    }

    /// This answer, held back by a gate.
    #[must_use]
    pub fn after(self, gate: &Gate) -> Self {
        Self::After(gate.clone(), Box::new(self))
    }
}

type Handler = dyn Fn(&Recorded) -> Answer + Send + Sync;

struct Shared {
    handler: Box<Handler>,
    requests: Mutex<Vec<Recorded>>,
    running: AtomicUsize,
    peak: AtomicUsize,
}

/// A running stub. It stops with this.
pub struct Stub {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: tokio::task::JoinHandle<()>,
}

impl Stub {
    /// Starts one. The handler sees each request after it was recorded.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start(handler: impl Fn(&Recorded) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            requests: Mutex::default(),
            running: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        });
        let listening = tokio::spawn({
            let shared = shared.clone();
            async move {
                // Ends its connections with itself.
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    connections.spawn(serve(stream, shared.clone()));
                }
            }
        });
        Self {
            address,
            shared,
            listening,
        }
    }

    /// A stub that answers everything with `{"ok": true}` and the request's number.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn friendly() -> Self {
        Self::start(|request| Answer::ok(serde_json::json!({"ok": true, "nth": request.nth}))).await
    }

    /// Its address with a path, as nodes are told it.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// All requests so far, in order of arrival.
    pub fn requests(&self) -> Vec<Recorded> {
        self.lock().clone()
    }

    /// The requests to one path.
    pub fn requests_to(&self, path: &str) -> Vec<Recorded> {
        let requests = self.requests().into_iter();
        requests.filter(|request| request.path == path).collect()
    }

    /// How many requests a path has had.
    pub fn count(&self, path: &str) -> usize {
        self.requests_to(path).len()
    }

    /// The most requests that were being answered at one time.
    pub fn peak(&self) -> usize {
        self.shared.peak.load(Ordering::SeqCst)
    }

    /// How many requests are being answered now.
    pub fn running(&self) -> usize {
        self.shared.running.load(Ordering::SeqCst)
    }

    /// Waits until a path has had so many requests.
    ///
    /// # Panics
    /// When that does not happen in time.
    pub async fn wait_for(&self, path: &str, count: usize) {
        wait_until(&format!("{count} requests to {path}"), || async {
            (self.count(path) >= count).then_some(())
        })
        .await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Recorded>> {
        self.shared
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Counts an answer in progress, however it ends.
struct Running<'a>(&'a Shared);

impl<'a> Running<'a> {
    fn new(shared: &'a Shared) -> Self {
        let running = shared.running.fetch_add(1, Ordering::SeqCst) + 1;
        shared.peak.fetch_max(running, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A client may go away at any time: errors only end the connection.
async fn serve(stream: TcpStream, shared: Arc<Shared>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut request = read(&mut stream).await?;
        {
            let mut requests = shared
                .requests
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let before = requests.iter().filter(|past| past.path == request.path);
            request.nth = before.count() + 1;
            requests.push(request.clone());
        }
        let running = Running::new(&shared);
        let mut answer = (shared.handler)(&request);
        // A client that gives up ends the waiting too, so that `running` tells the truth.
        let kept_open = tokio::select! {
            kept_open = async {
                while let Answer::After(gate, inner) = answer {
                    gate.passed().await;
                    answer = *inner;
                }
                Some(answer)
            } => kept_open,
            _ = stream.fill_buf() => None,
        };
        let answer = kept_open?;
        write(&mut stream, answer).await?;
        drop(running);
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Recorded> {
    let first = read_line(stream).await?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (path, query) = (path.to_owned(), query.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let line = read_line(stream).await?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let body = read_body(stream, &headers).await?;
    let text = String::from_utf8_lossy(&body).into_owned();
    Some(Recorded {
        method,
        path,
        query,
        headers,
        body: match text.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        },
        nth: 0,
        at: Instant::now(),
    })
}

async fn read_body(
    stream: &mut BufReader<TcpStream>,
    headers: &BTreeMap<String, String>,
) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if headers
        .get("transfer-encoding")
        .is_some_and(|value| value.contains("chunked"))
    {
        loop {
            let size = usize::from_str_radix(read_line(stream).await?.trim(), 16).ok()?;
            read_exact(stream, &mut body, size).await?;
            read_line(stream).await?;
            if size == 0 {
                return Some(body);
            }
        }
    }
    let length = headers
        .get("content-length")
        .map_or(Some(0), |value| value.parse().ok())?;
    read_exact(stream, &mut body, length).await?;
    Some(body)
}

async fn read_exact(
    stream: &mut BufReader<TcpStream>,
    body: &mut Vec<u8>,
    length: usize,
) -> Option<()> {
    if body.len() + length > BODY_BYTES_MAX {
        return None;
    }
    let start = body.len();
    body.resize(start + length, 0);
    stream.read_exact(&mut body[start..]).await.ok().map(drop)
}

async fn read_line(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    match stream.read_line(&mut line).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(line.trim_end_matches(['\r', '\n']).to_owned()),
    }
}

/// `None` ends the connection.
async fn write(stream: &mut BufReader<TcpStream>, answer: Answer) -> Option<()> {
    match answer {
        Answer::Json(status, body) => {
            let headers = vec![("content-type", "application/json".to_owned())];
            write_whole(stream, status, &headers, body.to_string().as_bytes()).await
        }
        Answer::Raw(status, headers, body) => write_whole(stream, status, &headers, &body).await,
        Answer::Pieces {
            content_type,
            pieces,
            cut,
        } => {
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n"
            );
            send(stream, head.as_bytes()).await?;
            for piece in pieces {
                write_piece(stream, piece).await?;
            }
            if cut {
                return None;
            }
            send(stream, b"0\r\n\r\n").await
        }
        Answer::Hang => {
            // Until the client goes away.
            let _ = stream.fill_buf().await;
            None
        }
        Answer::Close | Answer::After(..) => None,
    }
}

async fn write_piece(stream: &mut BufReader<TcpStream>, piece: Piece) -> Option<()> {
    match piece {
        Piece::Bytes(bytes) => {
            let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
            chunk.extend_from_slice(&bytes);
            chunk.extend_from_slice(b"\r\n");
            send(stream, &chunk).await
        }
        Piece::Wait(gate) => tokio::select! {
            () = gate.passed() => Some(()),
            _ = stream.fill_buf() => None,
        },
    }
}

async fn write_whole(
    stream: &mut BufReader<TcpStream>,
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
) -> Option<()> {
    let mut head = format!(
        "HTTP/1.1 {status} Stub\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    send(stream, &bytes).await
}

async fn send(stream: &mut BufReader<TcpStream>, bytes: &[u8]) -> Option<()> {
    stream.get_mut().write_all(bytes).await.ok()?;
    stream.get_mut().flush().await.ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::{Call, Method};

    #[tokio::test]
    async fn requests_are_recorded_counted_and_answered() {
        let gate = Gate::new();
        let stub = Stub::start({
            let gate = gate.clone();
            move |request| match &*request.path {
                "/late" => Answer::ok(json!({"nth": request.nth})).after(&gate),
                "/gone" => Answer::Close,
                _ => Answer::Raw(201, vec![("x-a", "b".into())], b"text".to_vec()),
            }
        })
        .await;
        let call = |path: &str| Call::new(Method::POST, &stub.url(path), "");
        let reply = call("/other?x=1").json(&json!({"a": 1})).send().await;
        assert_eq!((reply.status, reply.header("x-a")), (201, Some("b")));
        assert_eq!(reply.body, "text");
        assert_eq!(stub.requests()[0].body, json!({"a": 1}));
        assert_eq!(stub.requests()[0].query, "x=1");
        assert!(call("/gone").try_send().await.is_err());
        let late = tokio::spawn(call("/late").send());
        stub.wait_for("/late", 1).await;
        assert_eq!(stub.running(), 1);
        gate.open();
        assert_eq!(late.await.unwrap().expect(200)["nth"], 1);
    }
}
