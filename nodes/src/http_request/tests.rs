//! The node against a local server that speaks HTTP.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use callboard_runtime::outbound::OutboundPolicy;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::testing::{code_of, input, shown};

/// Answers `METHOD /path` lines in turn with what `answer` makes of the whole request; `None` never answers.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

type Answer = fn(&str) -> Option<String>;

impl Server {
    async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, log.clone(), answer));
            }
        });
        Self { address, seen }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, log: Arc<Mutex<Vec<String>>>, answer: Answer) {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    loop {
        let head = text.find("\r\n\r\n").map(|end| end + 4);
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if head.is_some_and(|end| text.len() >= end + length.unwrap_or(0)) {
            break;
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
        }
    }
    let answer = answer(&text);
    log.lock().unwrap().push(text);
    match answer {
        Some(answer) => {
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
        None => {
            let _ = stream.read(&mut buffer).await;
        }
    }
}

fn answer(status: &str, headers: &str, body: &str) -> Option<String> {
    let length = body.len();
    Some(format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    ))
}

fn json_answer(body: &str) -> Option<String> {
    answer("200 OK", "content-type: application/json\r\n", body)
}

fn node(allowed: &[&str]) -> HttpRequest {
    let allowed: Vec<_> = allowed.iter().map(|entry| (*entry).to_owned()).collect();
    HttpRequest::new(OutboundClient::new(OutboundPolicy::parse(&allowed).unwrap()).unwrap())
}

async fn run(with: Value, items: Value) -> Result<Value, (String, String)> {
    let node = node(&["127.0.0.1"]);
    shown(node.run(input(&node, with, items)).await)
}

#[tokio::test]
async fn each_item_is_a_request_and_answers_know_their_item() {
    let server = Server::start(|text| {
        json_answer(if text.starts_with("GET /list") {
            r#"[{"n":1},{"n":2}]"#
        } else {
            r#"{"n":3}"#
        })
    })
    .await;
    let with = json!({"url": format!("{}{{{{ $json.path }}}}", server.url("/")), "query": {"q": "{{ $json.q }}"}});
    assert_eq!(
        run(with, json!([{"path": "one", "q": 5}, {"path": "list"}])).await,
        Ok(json!({"main": [[0, {"n": 3}], [1, {"n": 1}], [1, {"n": 2}]]}))
    );
    let seen = server.seen();
    assert!(
        seen[0].starts_with("GET /one?q=5 HTTP/1.1\r\n"),
        "{}",
        seen[0]
    );
    assert!(
        seen[0].contains("idempotency-key: execution/step/0/0\r\n"),
        "{}",
        seen[0]
    );
    assert!(seen[1].starts_with("GET /list HTTP/1.1\r\n"), "{}", seen[1]);
    assert!(
        seen[1].contains("idempotency-key: execution/step/0/1\r\n"),
        "{}",
        seen[1]
    );
}

#[tokio::test]
async fn a_body_is_sent_as_json() {
    let server = Server::start(|_| {
        answer(
            "201 Created",
            "content-type: text/plain\r\nx-a: 1\r\nx-a: 2\r\n",
            "made",
        )
    })
    .await;
    let with = json!({"method": "post", "url": server.url("/"), "body": {"name": "{{ $json.name }}"}, "headers": {"X-B": "c"}});
    let made = run(with, json!([{"name": "Ada"}])).await.unwrap();
    assert_eq!(
        made,
        json!({"main": [[0, {
            "status": 201,
            "headers": {"connection": "close", "content-length": "4", "content-type": "text/plain", "x-a": "1, 2"},
            "body": "made",
        }]]})
    );
    let seen = server.seen();
    assert!(seen[0].starts_with("POST / "), "{}", seen[0]);
    assert!(
        seen[0].contains("x-b: c\r\n") && seen[0].contains("content-type: application/json\r\n"),
        "{}",
        seen[0]
    );
    assert!(
        seen[0].contains("idempotency-key: execution/step/0\r\n"),
        "{}",
        seen[0]
    );
    assert!(seen[0].ends_with(r#"{"name":"Ada"}"#), "{}", seen[0]);
}

#[tokio::test]
async fn a_failed_status_says_what_to_do() {
    let server = Server::start(|text| {
        if text.starts_with("GET /busy") {
            answer("503 Busy", "retry-after: 7\r\n", "later")
        } else {
            answer(
                "404 Gone",
                "content-type: application/json\r\n",
                r#"{"code":"missing"}"#,
            )
        }
    })
    .await;
    let node = node(&["127.0.0.1"]);
    let with = json!({"url": server.url("/busy")});
    match node.run(input(&node, with, json!([{}]))).await {
        Err(NodeError::Transient {
            code,
            retry_after,
            details,
            ..
        }) => {
            assert_eq!(
                (code.as_str(), retry_after),
                ("http_status", Some(Duration::from_secs(7)))
            );
            assert_eq!(*details.unwrap(), json!({"status": 503, "body": "later"}));
        }
        other => panic!("{other:?}"),
    }
    let with = json!({"url": server.url("/other")});
    match node.run(input(&node, with, json!([{}, {}]))).await {
        Err(NodeError::Permanent { details, .. }) => {
            assert_eq!(
                *details.unwrap(),
                json!({"status": 404, "body": {"code": "missing"}})
            );
        }
        other => panic!("{other:?}"),
    }
    // The second item was not sent after the first failed.
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn what_keeps_a_request_from_an_answer_is_told_apart() {
    let silent = Server::start(|_| None).await;
    let broken = Server::start(|_| Some("nonsense\r\n\r\n".to_owned())).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    for (with, expected, transient, sent) in [
        (
            json!({"url": silent.url("/"), "timeout": "50ms"}),
            "timeout",
            true,
            true,
        ),
        (
            json!({"url": broken.url("/")}),
            "exchange_failed",
            true,
            true,
        ),
        (json!({"url": nobody}), "connection_failed", true, false),
        (
            json!({"url": "http://169.254.169.254/latest"}),
            "outbound_refused",
            false,
            false,
        ),
        (
            json!({"url": "http://2130706434/"}),
            "outbound_refused",
            false,
            false,
        ),
    ] {
        let node = node(&["127.0.0.1"]);
        let (code, details) = match node.run(input(&node, with.clone(), json!([{}]))).await {
            Err(NodeError::Transient { code, details, .. }) if transient => (code, details),
            Err(NodeError::Permanent { code, details, .. }) if !transient => (code, details),
            other => panic!("{with}: {other:?}"),
        };
        assert_eq!(code, expected);
        assert_eq!(details.unwrap()["may_have_been_sent"], sent, "{expected}");
    }
    for with in [
        json!({"url": "{{ 'x' }}"}),
        json!({}),
        json!({"url": "http://127.0.0.1/", "x": 1}),
    ] {
        assert_eq!(code_of(run(with, json!([{}])).await), "invalid_parameters");
    }
}

#[tokio::test]
async fn a_cancelled_run_ends_at_once() {
    let silent = Server::start(|_| None).await;
    let node = node(&["127.0.0.1"]);
    let input = input(&node, json!({"url": silent.url("/")}), json!([{}]));
    let cancel = input.cancel.clone();
    let run = tokio::spawn(async move { node.run(input).await });
    while silent.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    cancel.cancel();
    assert!(matches!(run.await.unwrap(), Err(NodeError::Cancelled)));
}

#[tokio::test]
async fn no_items_send_nothing() {
    assert_eq!(
        run(json!({"url": "http://127.0.0.1:1/"}), json!([])).await,
        Ok(json!({"main": []}))
    );
}

#[test]
fn only_reading_is_idempotent() {
    let node = node(&[]);
    for (with, effect) in [
        (json!({}), EffectClass::Idempotent),
        (json!({"method": "GET"}), EffectClass::Idempotent),
        (json!({"method": "head"}), EffectClass::Idempotent),
        (json!({"method": "POST"}), EffectClass::Effectful),
        (json!({"method": "DELETE"}), EffectClass::Effectful),
        (json!({"method": "{{ 'GET' }}"}), EffectClass::Effectful),
    ] {
        assert_eq!(node.effect(&with), effect, "{with}");
    }
}

#[test]
fn wrong_constants_are_found_offline() {
    let node = node(&[]);
    let with =
        json!({"method": "a b", "url": "ftp://x", "timeout": "2h", "headers": {"a b": 1, "ok": 2}});
    let faults = node.check(&with);
    let paths: Vec<_> = faults.iter().map(|fault| fault.path.join(".")).collect();
    assert_eq!(paths, ["method", "url", "timeout", "headers.a b"]);
    assert_eq!(
        node.check(&json!({"method": "{{ 1 }}", "url": "{{ 1 }}", "timeout": "{{ 1 }}s"})),
        []
    );
}
