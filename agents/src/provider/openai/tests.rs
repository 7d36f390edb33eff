//! Against a local server that speaks the wire format, well and badly.

use std::sync::{Arc, Mutex};

use callboard_runtime::{
    outbound::{OutboundPolicy, parse_url},
    provider::{FinishReason, ToolCall, ToolDefinition, Usage},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

/// What the server does after it has read a request.
#[derive(Clone)]
enum Act {
    /// Writes this, then closes.
    Write(Vec<u8>),
    /// Writes this, then resets the connection.
    Reset(Vec<u8>),
    /// Writes this, then says nothing until the client goes.
    Stall(Vec<u8>),
}

struct Server {
    base: String,
    requests: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Server {
    async fn start(act: Act) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, act.clone(), seen.clone()));
            }
        });
        Self {
            base: format!("http://{address}/v1"),
            requests,
        }
    }

    fn provider(&self, key: &str, timeout: Duration) -> OpenAi {
        let policy = OutboundPolicy::parse(&["127.0.0.0/8".to_owned()]).expect("the policy is one");
        let settings = OpenAiSettings {
            base_url: parse_url(&self.base).expect("the URL is one"),
            api_key: key.to_owned(),
            timeout,
            idle_timeout: timeout,
        };
        OpenAi::new(
            settings,
            OutboundClient::new(policy).expect("the client is set up"),
        )
        .expect("the settings are sound")
    }
}

async fn serve(mut socket: TcpStream, act: Act, seen: Arc<Mutex<Vec<(String, Value)>>>) {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        let mut buffer = [0; 4096];
        let n = socket.read(&mut buffer).await.unwrap_or(0);
        if n == 0 {
            return;
        }
        bytes.extend_from_slice(&buffer[..n]);
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .and_then(|length| length.trim().parse().ok())
            .unwrap_or(0);
        if bytes.len() >= end + 4 + length {
            break (head, bytes[end + 4..end + 4 + length].to_vec());
        }
    };
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    seen.lock().expect("the lock is sound").push((head, body));
    match act {
        Act::Write(answer) => {
            let _ = socket.write_all(&answer).await;
            let _ = socket.shutdown().await;
        }
        Act::Reset(answer) => {
            let _ = socket.write_all(&answer).await;
            let _ = socket.flush().await;
            socket.set_zero_linger().expect("the socket is open");
        }
        Act::Stall(answer) => {
            let _ = socket.write_all(&answer).await;
            let mut rest = [0; 1];
            let _ = socket.read(&mut rest).await;
        }
    }
}

fn http(status: &str, content_type: &str, headers: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\n{headers}connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

fn sse(body: &str) -> Vec<u8> {
    http("200 OK", "text/event-stream", "", body)
}

fn events(chunks: &[Value]) -> String {
    chunks
        .iter()
        .map(|chunk| format!("data: {chunk}\n\n"))
        .collect()
}

fn request() -> ModelRequest {
    ModelRequest {
        model: "m".to_owned(),
        messages: vec![
            Message::System {
                content: "be kind".to_owned(),
            },
            Message::User {
                content: "the secret prompt".to_owned(),
            },
        ],
        tools: Vec::new(),
        output_schema: None,
    }
}

async fn ask(provider: &OpenAi) -> Result<Vec<ModelEvent>, ModelError> {
    provider.stream(request()).await?.try_collect().await
}

async fn answer_to(act: Act) -> Result<Vec<ModelEvent>, ModelError> {
    let server = Server::start(act).await;
    ask(&server.provider("", Duration::from_secs(20))).await
}

fn text(content: &str) -> Value {
    json!({"choices": [{"delta": {"content": content}}]})
}

fn stop() -> Value {
    json!({"choices": [{"delta": {}, "finish_reason": "stop"}]})
}

fn hello() -> Vec<ModelEvent> {
    vec![
        ModelEvent::Text("Hel".into()),
        ModelEvent::Text("lo".into()),
        ModelEvent::Finished(FinishReason::Stop),
    ]
}

#[tokio::test]
async fn a_streamed_answer_is_read() {
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}});
    let body = events(&[text("Hel"), text("lo"), stop(), usage]) + "data: [DONE]\n\n";
    let server = Server::start(Act::Write(sse(&body))).await;
    let got = ask(&server.provider("sk-1", Duration::from_secs(20))).await;
    let mut expected = hello();
    expected.insert(
        2,
        ModelEvent::Usage(Usage {
            input_tokens: 3,
            output_tokens: 2,
            ..Usage::default()
        }),
    );
    assert_eq!(got.expect("the answer is complete"), expected);
    let requests = server.requests.lock().expect("the lock is sound");
    let (head, body) = &requests[0];
    assert!(head.starts_with("post /v1/chat/completions"), "{head}");
    assert!(head.contains("authorization: bearer sk-1"), "{head}");
    assert_eq!(body["stream"], true);
    assert_eq!(body["stream_options"]["include_usage"], true);
    assert_eq!(body["messages"][1]["content"], "the secret prompt");
}

#[tokio::test]
async fn a_server_without_keys_gets_none() {
    let server = Server::start(Act::Write(sse(&events(&[text("x"), stop()])))).await;
    ask(&server.provider("", Duration::from_secs(20)))
        .await
        .expect("the answer is complete");
    let requests = server.requests.lock().expect("the lock is sound");
    assert!(!requests[0].0.contains("authorization"));
}

#[tokio::test]
async fn a_stream_without_done_is_complete_when_it_finished() {
    let got = answer_to(Act::Write(sse(&events(&[text("Hel"), text("lo"), stop()])))).await;
    assert_eq!(got.expect("the answer is complete"), hello());
}

#[tokio::test]
async fn a_stream_that_just_ends_was_cut() {
    let got = answer_to(Act::Write(sse(&events(&[text("Hel")])))).await;
    assert_eq!(
        got.map_err(|e| e.kind),
        Err(ModelErrorKind::StreamTruncated)
    );
}

#[tokio::test]
async fn a_connection_that_breaks_is_told_from_an_end() {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let event = events(&[text("Hel")]);
    let broken = format!("{head}{:x}\r\n{event}\r\n", event.len()).into_bytes();
    let got = answer_to(Act::Reset(broken)).await;
    assert_eq!(got.map_err(|e| e.kind), Err(ModelErrorKind::Connection));
}

#[tokio::test]
async fn nobody_listening_is_a_connection_failure() {
    let server = Server::start(Act::Write(Vec::new())).await;
    let mut provider = server.provider("", Duration::from_secs(20));
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port is free");
    let port = free.local_addr().expect("it is bound").port();
    drop(free);
    provider = OpenAi::new(
        OpenAiSettings {
            base_url: parse_url(&format!("http://127.0.0.1:{port}/v1")).expect("the URL is one"),
            ..provider.settings.clone()
        },
        provider.outbound.clone(),
    )
    .expect("the settings are sound");
    let got = ask(&provider).await;
    assert_eq!(got.map_err(|e| e.kind), Err(ModelErrorKind::Connection));
}

#[tokio::test]
async fn a_private_address_is_refused_unless_allowed() {
    let settings = OpenAiSettings {
        base_url: parse_url("http://127.0.0.1:9/v1").expect("the URL is one"),
        api_key: String::new(),
        timeout: Duration::from_secs(20),
        idle_timeout: Duration::from_secs(20),
    };
    let guarded = OutboundClient::new(OutboundPolicy::default()).expect("the client is set up");
    let provider = OpenAi::new(settings, guarded).expect("the settings are sound");
    let got = ask(&provider).await;
    assert_eq!(got.map_err(|e| e.kind), Err(ModelErrorKind::Rejected));
}

#[tokio::test]
async fn an_error_within_the_stream_is_an_error() {
    for error in [
        json!({"error": {"message": "overloaded", "code": 503}}),
        json!({"error": "overloaded"}),
    ] {
        let got = answer_to(Act::Write(sse(&events(&[text("Hel"), error])))).await;
        let error = got.expect_err("it is an error");
        assert_eq!(error.kind, ModelErrorKind::Unavailable);
        assert_eq!(error.message, "overloaded");
    }
}

#[tokio::test]
async fn a_whole_answer_is_taken_although_a_stream_was_asked_for() {
    let answer = json!({"choices": [{"message": {"role": "assistant", "content": "Hello"},
        "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}});
    for content_type in ["application/json", "text/event-stream"] {
        let act = Act::Write(http("200 OK", content_type, "", &answer.to_string()));
        let got = answer_to(act).await.expect("the answer is complete");
        assert_eq!(got[0], ModelEvent::Text("Hello".into()));
        assert_eq!(got.last(), Some(&ModelEvent::Finished(FinishReason::Stop)));
    }
}

#[tokio::test]
async fn an_error_with_a_status_of_success_is_an_error() {
    let body =
        json!({"error": {"message": "no such model", "code": "model_not_found"}}).to_string();
    let got = answer_to(Act::Write(http("200 OK", "application/json", "", &body))).await;
    assert_eq!(got.map_err(|e| e.kind), Err(ModelErrorKind::NotFound));
}

#[tokio::test]
async fn what_is_neither_stream_nor_json_is_malformed() {
    for body in ["<html>hello</html>", "", "hello there\n\n", "{\"a\":"] {
        let got = answer_to(Act::Write(http("200 OK", "text/html", "", body))).await;
        assert_eq!(
            got.map_err(|e| e.kind),
            Err(ModelErrorKind::Malformed),
            "{body}"
        );
    }
}

#[tokio::test]
async fn an_event_that_is_no_json_is_malformed_and_not_repeated() {
    let body = events(&[text("Hel")]) + "data: the secret answer\n\n";
    let error = answer_to(Act::Write(sse(&body)))
        .await
        .expect_err("it is an error");
    assert_eq!(error.kind, ModelErrorKind::Malformed);
    assert!(!error.message.contains("secret"));
}

#[tokio::test]
async fn errors_keep_status_words_and_the_wait_asked_for() {
    let body = json!({"error": {"message": "slow down, sk-secret-key", "code": 429}}).to_string();
    let act = Act::Write(http(
        "429 Too Many Requests",
        "application/json",
        "retry-after: 3\r\n",
        &body,
    ));
    let server = Server::start(act).await;
    let error = ask(&server.provider("sk-secret-key", Duration::from_secs(20)))
        .await
        .expect_err("it is an error");
    assert_eq!(error.kind, ModelErrorKind::RateLimited);
    assert_eq!(error.status, Some(429));
    assert_eq!(error.retry_after, Some(Duration::from_secs(3)));
    assert_eq!(error.message, "slow down, *** (HTTP 429)");
    assert_eq!(server.requests.lock().expect("the lock is sound").len(), 1);
}

#[tokio::test]
async fn a_failing_server_is_asked_once() {
    let act = Act::Write(http(
        "500 Internal Server Error",
        "text/html",
        "",
        "<html></html>",
    ));
    let server = Server::start(act).await;
    let error = ask(&server.provider("", Duration::from_secs(20)))
        .await
        .expect_err("it is an error");
    assert_eq!(error.kind, ModelErrorKind::Unavailable);
    assert_eq!(server.requests.lock().expect("the lock is sound").len(), 1);
}

#[tokio::test]
async fn silence_is_a_timeout_before_and_after_the_first_event() {
    for said in [
        Vec::new(),
        sse(""),
        sse(": ping\n\n"),
        sse(&events(&[text("Hel")])),
    ] {
        let server = Server::start(Act::Stall(said)).await;
        let got = ask(&server.provider("", Duration::from_millis(100))).await;
        assert_eq!(got.map_err(|e| e.kind), Err(ModelErrorKind::Timeout));
    }
}

#[tokio::test]
async fn a_server_that_never_closes_has_still_answered() {
    let said = sse(&events(&[text("Hel"), text("lo"), stop()]));
    let server = Server::start(Act::Stall(said)).await;
    let got = ask(&server.provider("", Duration::from_millis(200))).await;
    assert_eq!(got.expect("the answer is complete"), hello());
}

#[tokio::test]
async fn dropping_the_stream_lets_go_of_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port is free");
    let base = format!("http://{}/v1", listener.local_addr().expect("it is bound"));
    let server = Server {
        base,
        requests: Arc::default(),
    };
    let provider = server.provider("", Duration::from_secs(20));
    let gone = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a client comes");
        let mut buffer = [0; 16 * 1024];
        let _ = socket.read(&mut buffer).await;
        let said = sse(&events(&[text("Hel")]));
        socket.write_all(&said).await.expect("the client reads");
        while socket.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
    });
    let mut stream = provider.stream(request()).await.expect("the stream opens");
    assert!(matches!(stream.next().await, Some(Ok(ModelEvent::Text(_)))));
    drop(stream);
    tokio::time::timeout(Duration::from_secs(20), gone)
        .await
        .expect("the connection is closed")
        .expect("the server is sound");
}

#[tokio::test]
async fn calls_arrive_whole() {
    let piece = |arguments: &str| {
        json!({"choices": [{"delta": {"tool_calls": [
            {"index": 0, "id": "c1", "function": {"name": "look", "arguments": arguments}}]}}]})
    };
    let end = json!({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]});
    let body = events(&[piece("{\"id\""), piece(": 7}"), end]);
    let got = answer_to(Act::Write(sse(&body)))
        .await
        .expect("the answer is complete");
    assert_eq!(
        got[0],
        ModelEvent::ToolCall(ToolCall {
            id: "c1".to_owned(),
            name: "look".to_owned(),
            arguments: json!({"id": 7}),
        })
    );
}

#[test]
fn a_key_that_fits_no_header_is_refused_at_load() {
    let outbound = OutboundClient::new(OutboundPolicy::default()).expect("the client is set up");
    let settings = OpenAiSettings {
        base_url: parse_url("https://api.example/v1").expect("the URL is one"),
        api_key: "sk\n1".to_owned(),
        timeout: Duration::from_secs(1),
        idle_timeout: Duration::from_secs(1),
    };
    let error = OpenAi::new(settings, outbound).expect_err("it is refused");
    assert!(!error.contains("sk"));
}

#[test]
fn the_request_carries_tools_results_and_schema() {
    let request = ModelRequest {
        model: "m".to_owned(),
        messages: vec![
            Message::Assistant {
                content: String::new(),
                tool_calls: vec![
                    ToolCall {
                        id: "a".to_owned(),
                        name: "look".to_owned(),
                        arguments: json!({"id": 7}),
                    },
                    ToolCall {
                        id: "b".to_owned(),
                        name: "look".to_owned(),
                        arguments: json!("{broken"),
                    },
                ],
            },
            Message::Tool {
                tool_call_id: "a".to_owned(),
                content: "found".to_owned(),
            },
        ],
        tools: vec![ToolDefinition {
            name: "look".to_owned(),
            description: "d".to_owned(),
            parameters: json!({"type": "object"}),
        }],
        output_schema: Some(json!({"type": "object"})),
    };
    let body = body(&request);
    let calls = &body["messages"][0]["tool_calls"];
    assert_eq!(body["messages"][0]["content"], Value::Null);
    assert_eq!(calls[0]["function"]["arguments"], "{\"id\":7}");
    let wrapped = calls[1]["function"]["arguments"]
        .as_str()
        .expect("it is text");
    assert!(serde_json::from_str::<Value>(wrapped).is_ok());
    assert_eq!(body["messages"][1]["tool_call_id"], "a");
    assert_eq!(body["tools"][0]["function"]["name"], "look");
    assert_eq!(
        body["response_format"]["json_schema"]["schema"]["type"],
        "object"
    );
}
