//! The client against real sockets on this machine.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::HeaderValue;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

/// 200,000 zero bytes, compressed.
const ZEROS_GZIP: &str = "H4sIAAAAAAACA+3BMQEAAADCoPVPbQZ/oAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAACA1wB7WOBcQA0DAA==";
const HELLO_GZIP: &str = "H4sIAAAAAAACA8tIzcnJBwCGphA2BQAAAA==";

/// Answers every request with what `answer` makes of it, one request per connection. Never answers when that is `None`.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (seen.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, log.clone(), answer.clone()));
            }
        });
        Self { address, seen }
    }

    fn url(&self, path: &str) -> Url {
        parse_url(&format!("http://{}{path}", self.address)).unwrap()
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    log: Arc<Mutex<Vec<String>>>,
    answer: Arc<impl Fn(&str) -> Option<Vec<u8>>>,
) {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    loop {
        let head_end = text.find("\r\n\r\n").map(|end| end + 4);
        let length = text
            .to_ascii_lowercase()
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok())
            .unwrap_or(0);
        if head_end.is_some_and(|end| text.len() >= end + length) {
            break;
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
        }
    }
    let bytes = answer(&text);
    log.lock().unwrap().push(text);
    match bytes {
        Some(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
        None => {
            // Open until the client gives up.
            let _ = stream.read(&mut buffer).await;
        }
    }
}

fn ok(headers: &str, body: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    Some(bytes)
}

fn redirect(status: u16, location: &str) -> Option<Vec<u8>> {
    Some(
        format!("HTTP/1.1 {status} Go\r\nConnection: close\r\nContent-Length: 0\r\nLocation: {location}\r\n\r\n")
            .into_bytes(),
    )
}

fn client(allowed: &[&str]) -> OutboundClient {
    let allowed: Vec<_> = allowed.iter().map(|entry| (*entry).to_owned()).collect();
    OutboundClient::new(OutboundPolicy::parse(&allowed).unwrap()).unwrap()
}

fn get(url: Url) -> OutboundRequest {
    OutboundRequest::new(Method::GET, url)
}

#[tokio::test]
async fn a_request_is_sent_as_it_is_and_its_answer_read() {
    let server = Server::start(|_| ok("X-Kind: test\r\n", b"hello")).await;
    let mut request = OutboundRequest::new(Method::POST, server.url("/a?b=c#d"));
    request
        .headers
        .insert("x-test", HeaderValue::from_static("1"));
    request
        .headers
        .insert("content-length", HeaderValue::from_static("999"));
    request.body = Some(Bytes::from_static(b"payload"));
    let response = client(&["127.0.0.1"]).send(request).await.unwrap();
    assert_eq!(response.status, StatusCode::OK);
    assert_eq!(response.headers["x-kind"], "test");
    assert_eq!(&response.body[..], b"hello");
    let seen = server.seen();
    assert_eq!(seen.len(), 1);
    assert!(
        seen[0].starts_with("POST /a?b=c HTTP/1.1\r\n"),
        "{}",
        seen[0]
    );
    assert!(seen[0].contains("content-length: 7\r\n") && !seen[0].contains("999"));
    assert!(seen[0].contains("x-test: 1\r\n") && seen[0].contains("user-agent: callboard/"));
    assert!(seen[0].ends_with("payload"));
}

#[tokio::test]
async fn an_address_that_is_not_allowed_is_never_connected_to() {
    let server = Server::start(|_| ok("", b"")).await;
    let port = server.address.port();
    let guarded = client(&[]);
    for host in [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "2130706433",
        "[::ffff:127.0.0.1]",
    ] {
        let url = parse_url(&format!("http://{host}:{port}/")).unwrap();
        let fault = guarded.send(get(url)).await.unwrap_err();
        assert!(
            matches!(fault, OutboundError::Refused { .. }),
            "{host}: {fault:?}"
        );
        assert!(
            !fault.may_have_been_sent() && !fault.is_transient(),
            "{host}"
        );
    }
    assert_eq!(server.seen(), Vec::<String>::new());
}

#[tokio::test]
async fn the_client_underneath_refuses_names_too() {
    let server = Server::start(|_| ok("", b"")).await;
    let url = format!("http://localhost:{}/", server.address.port());
    let fault = client(&[]).http().get(&url).send().await.unwrap_err();
    assert!(find_refused(&fault).is_some(), "{fault:?}");
    assert!(client(&["localhost"]).http().get(&url).send().await.is_ok());
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_name_that_is_allowed_may_resolve_to_any_address() {
    let server = Server::start(|_| ok("", b"hello")).await;
    let url = parse_url(&format!("http://localhost:{}/", server.address.port())).unwrap();
    let response = client(&["localhost"]).send(get(url)).await.unwrap();
    assert_eq!(&response.body[..], b"hello");
}

#[tokio::test]
async fn a_redirect_to_a_private_address_is_refused() {
    for target in ["http://10.0.0.1/", "http://[::1]:1/", "//169.254.169.254/x"] {
        let server = Server::start(move |_| redirect(302, target)).await;
        let fault = client(&["127.0.0.1"])
            .send(get(server.url("/")))
            .await
            .unwrap_err();
        assert!(
            matches!(
                fault,
                OutboundError::Refused {
                    redirected: true,
                    ..
                }
            ),
            "{target}: {fault:?}"
        );
        assert!(fault.may_have_been_sent());
    }
    for target in ["file:///etc/passwd", "gopher://127.0.0.1/"] {
        let server = Server::start(move |_| redirect(302, target)).await;
        let fault = client(&["127.0.0.1"])
            .send(get(server.url("/")))
            .await
            .unwrap_err();
        assert!(
            matches!(fault, OutboundError::Redirect(_)),
            "{target}: {fault:?}"
        );
    }
}

#[tokio::test]
async fn a_redirect_to_another_origin_leaves_credentials_behind() {
    let there = Server::start(|_| ok("", b"there")).await;
    let target = there.url("/there").to_string();
    let here = Server::start(move |text| {
        if text.starts_with("POST /one") {
            redirect(307, "/two")
        } else {
            redirect(303, &target)
        }
    })
    .await;
    let mut url = here.url("/one");
    url.set_username("ada").unwrap();
    url.set_password(Some("secret")).unwrap();
    let mut request = OutboundRequest::new(Method::POST, url);
    request
        .headers
        .insert("x-api-key", HeaderValue::from_static("secret"));
    request.body = Some(Bytes::from_static(b"payload"));
    let response = client(&["127.0.0.1"]).send(request).await.unwrap();
    assert_eq!(&response.body[..], b"there");
    assert_eq!(response.url, there.url("/there"));
    for text in here.seen() {
        assert!(
            text.contains("authorization: Basic YWRhOnNlY3JldA==\r\n"),
            "{text}"
        );
        assert!(
            text.contains("x-api-key: secret\r\n") && text.ends_with("payload"),
            "{text}"
        );
    }
    let seen = there.seen();
    assert!(seen[0].starts_with("GET /there "), "{}", seen[0]);
    for secret in ["authorization", "x-api-key", "payload", "referer"] {
        assert!(!seen[0].contains(secret), "{}", seen[0]);
    }
}

#[tokio::test]
async fn redirects_end_somewhere() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let server = Server::start(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        redirect(302, "/again")
    })
    .await;
    let client = client(&["127.0.0.1"]);
    let fault = client.send(get(server.url("/"))).await.unwrap_err();
    assert!(matches!(fault, OutboundError::Redirect(_)), "{fault:?}");
    assert_eq!(count.load(Ordering::SeqCst), REDIRECTS_MAX + 1);
    let mut request = get(server.url("/"));
    request.follow_redirects = false;
    let response = client.send(request).await.unwrap();
    assert_eq!(response.status, StatusCode::FOUND);
}

#[tokio::test]
async fn an_answer_is_counted_after_decompression() {
    let server = Server::start(|text| {
        let body = if text.contains("/small") {
            HELLO_GZIP
        } else {
            ZEROS_GZIP
        };
        ok(
            "Content-Encoding: gzip\r\n",
            &BASE64_STANDARD.decode(body).unwrap(),
        )
    })
    .await;
    let client = client(&["127.0.0.1"]);
    let small = client.send(get(server.url("/small"))).await.unwrap();
    assert_eq!(&small.body[..], b"hello");
    let mut request = get(server.url("/"));
    request.max_response_bytes = 199_999;
    assert_eq!(
        client.send(request.clone()).await.unwrap_err(),
        OutboundError::TooLarge(199_999)
    );
    request.max_response_bytes = 200_000;
    assert_eq!(client.send(request).await.unwrap().body.len(), 200_000);
}

#[tokio::test]
async fn an_answer_without_end_is_cut_at_the_limit() {
    let server = Server::start(|text| {
        let length = if text.contains("/said") {
            "Content-Length: 1000000\r\n"
        } else {
            ""
        };
        let mut bytes =
            format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{length}\r\n").into_bytes();
        bytes.resize(bytes.len() + 50_000, b'x');
        Some(bytes)
    })
    .await;
    for path in ["/said", "/unsaid"] {
        let mut request = get(server.url(path));
        request.max_response_bytes = 40_000;
        let fault = client(&["127.0.0.1"]).send(request).await.unwrap_err();
        assert_eq!(fault, OutboundError::TooLarge(40_000), "{path}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_on() {
    for sent in [
        None,
        Some(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n".as_slice()),
    ] {
        let (gone, mut told) = tokio::sync::mpsc::channel(1);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = parse_url(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
            stream.write_all(sent.unwrap_or_default()).await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            gone.send(()).await.unwrap();
        });
        let mut request = get(url);
        request.timeout = Duration::from_millis(100);
        let fault = client(&["127.0.0.1"]).send(request).await.unwrap_err();
        assert_eq!(fault, OutboundError::Timeout(Duration::from_millis(100)));
        assert!(fault.may_have_been_sent() && fault.is_transient());
        // The connection is closed, not left to the server.
        told.recv().await.unwrap();
    }
}

#[tokio::test]
async fn faults_say_what_happened_and_nothing_secret() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let url = parse_url(&format!("http://ada:secret@{address}/path?key=secret")).unwrap();
    let client = client(&["127.0.0.1"]);
    let fault = client.send(get(url)).await.unwrap_err();
    assert!(matches!(fault, OutboundError::Connect { .. }), "{fault:?}");
    assert!(fault.to_string().contains(&address.to_string()), "{fault}");
    assert!(!fault.may_have_been_sent() && fault.is_transient());
    let server = Server::start(|_| Some(b"nonsense\r\n\r\n".to_vec())).await;
    let mut broken = server.url("/path?key=secret");
    broken.set_username("secret").unwrap();
    let other = client.send(get(broken)).await.unwrap_err();
    assert!(matches!(other, OutboundError::Protocol(_)), "{other:?}");
    for fault in [fault, other] {
        let text = format!("{fault} {fault:?}");
        assert!(!text.contains("secret") && !text.contains("path"), "{text}");
    }
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_before_anything_happens() {
    for text in [
        "",
        "/x",
        "example.org",
        "ftp://example.org/",
        "data:,x",
        "http://",
        "http://a b/",
    ] {
        assert!(
            matches!(parse_url(text), Err(OutboundError::InvalidUrl(_))),
            "{text}"
        );
    }
    let long = format!("http://example.org/{}", "x".repeat(URL_BYTES_MAX));
    assert!(parse_url(&long).is_err());
    let url = parse_url("http://127.0.0.1:1/").unwrap();
    let mut request = OutboundRequest::new(Method::CONNECT, url);
    let client = client(&["127.0.0.1"]);
    let fault = client.send(request.clone()).await.unwrap_err();
    assert!(matches!(fault, OutboundError::InvalidRequest(_)));
    request.method = Method::GET;
    let large = HeaderValue::from_str(&"x".repeat(HEADER_BYTES_MAX)).unwrap();
    request.headers.insert("x-large", large);
    let fault = client.send(request).await.unwrap_err();
    assert!(matches!(fault, OutboundError::InvalidRequest(_)));
}
