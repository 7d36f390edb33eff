//! Workflows, requests and servers that mean no good: none of them takes the server down, or gets at what is not theirs.

use std::time::Duration;

use callboard_tests::{Answer, Method, ModelStub, Options, Server, Stub, Turn, wait_until};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn code(execution: &Value) -> &str {
    execution["error"]["code"].as_str().unwrap_or("none")
}

async fn is_alive(server: &Server) {
    server.get("/health/ready").await.expect(200);
}

#[tokio::test]
async fn a_long_loop_ends_and_the_server_goes_on() {
    let server = Server::start().await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: long }
spec:
  settings: { max_node_runs: 30000 }
  steps:
    - id: count
      uses: set
      with: { values: { n: "{{ $json.n + 1 }}" } }
    - id: enough
      uses: if
      with: { condition: "{{ $json.n >= 10000 }}" }
      routes: { "true": end, "false": count }
"#,
        )
        .await;
    let run = server.run("long", json!({"n": 0})).await;
    assert_eq!(run["output"], json!({"n": 10000}), "{run:#}");
    is_alive(&server).await;
}

#[tokio::test]
async fn what_grows_without_end_fails_and_the_server_goes_on() {
    let server = Server::start().await;
    let copies: serde_json::Map<String, Value> = (0..100)
        .map(|i| (format!("copy{i}"), json!("{{ $json.text }}")))
        .collect();
    for (name, first) in [
        (
            "deeper",
            json!({"id": "a", "uses": "set", "with": {"keep": "none", "values": {"x": "{{ $json }}"}}}),
        ),
        (
            "wider",
            json!({"id": "a", "uses": "set", "with": {"values": copies}}),
        ),
        (
            "longer",
            json!({"id": "a", "uses": "split_out",
                "with": {"field_to_split_out": "list", "include": "all_other_fields"}}),
        ),
    ] {
        let again = json!({"id": "b", "uses": "if", "with": {"condition": "{{ true }}"}, "routes": {"true": "a"}});
        let steps = json!([first, again]);
        let document =
            json!({"kind": "Workflow", "metadata": {"name": name}, "spec": {"steps": steps}});
        server.apply_json(&document).await;
        let input = json!({"text": "x".repeat(1 << 20), "list": vec![0; 200]});
        let run = server.run(name, input).await;
        assert_eq!(run["status"], "failed", "{name}");
        assert!(
            matches!(code(&run), "output_too_large" | "expression_error"),
            "{name}: {:#}",
            run["error"]
        );
        is_alive(&server).await;
    }
    let elements = json!({"input": vec![0; 100_001]});
    let reply = server
        .post("/v1/workflows/deeper/executions", &elements)
        .await;
    assert_eq!(reply.expect_problem(413)["code"], "input_too_large");
}

#[tokio::test]
async fn a_workflow_that_runs_itself_comes_to_an_end() {
    let server = Server::start().await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: waits }
spec: { steps: [ { id: again, uses: workflow.execute, with: { workflow: waits } } ] }
---
kind: Workflow
metadata: { name: leaves }
spec: { steps: [ { id: again, uses: workflow.execute, with: { workflow: leaves, wait: false } } ] }
"#,
        )
        .await;
    let run = server.run("waits", json!({})).await;
    assert_eq!(code(&run), "child_failed", "{run:#}");
    let all = server
        .get("/v1/executions?workflow=waits")
        .await
        .expect(200);
    assert_eq!(all["data"].as_array().map(Vec::len), Some(20));

    server.run("leaves", json!({})).await;
    let last = wait_until("the line of executions ends", || async {
        let failed = server
            .get("/v1/executions?workflow=leaves&status=failed")
            .await;
        let failed = failed.expect(200);
        failed["data"][0]["id"].as_str().map(str::to_owned)
    })
    .await;
    let last = server
        .get(&format!("/v1/executions/{last}"))
        .await
        .expect(200);
    assert_eq!(code(&last), "depth", "{last:#}");
}

#[tokio::test]
async fn an_agent_whose_tool_asks_it_again_comes_to_an_end() {
    // Whoever is asked calls the tool; whoever has its result says so.
    let model = ModelStub::with(|conversation, _| {
        match conversation.last().map(|message| &message["role"]) {
            Some(role) if role == "tool" => Turn::text("done"),
            _ => Turn::calls(&[("call", "again", json!({}))]),
        }
    })
    .await;
    let server = Server::start().await;
    server.apply_json(&model.provider()).await;
    server
        .apply(
            r#"
kind: Agent
metadata: { name: caller }
spec: { model: stub/m, tools: [ { workflow: again } ] }
---
kind: Workflow
metadata: { name: again }
spec: { steps: [ { id: ask, uses: agent, with: { agent: caller, input: "go on" } } ] }
"#,
        )
        .await;
    let run = server.run("again", json!({})).await;
    assert_eq!(run["status"], "succeeded", "{run:#}");
    let all = server
        .get("/v1/executions?workflow=again")
        .await
        .expect(200);
    assert_eq!(
        all["data"].as_array().map(Vec::len),
        Some(20),
        "each is a child of the one before"
    );
}

#[tokio::test]
async fn without_keys_pages_and_names_from_elsewhere_are_not_answered() {
    let server = Options::new().flag("--no-auth").start().await;
    for (name, public) in [("private", false), ("open", true)] {
        server
            .apply_json(&json!({
                "kind": "Workflow",
                "metadata": {"name": name},
                "spec": {
                    "trigger": {"type": "webhook", "path": format!("/{name}"), "method": "POST", "public": public},
                    "steps": [{"id": "a", "uses": "noop"}],
                },
            }))
            .await;
    }
    let call = |path: &str, header: (&str, &str)| {
        let method = if path.starts_with("/hooks") {
            Method::POST
        } else {
            Method::GET
        };
        server
            .call_as("", method, path)
            .header(header.0, header.1)
            .send()
    };
    let elsewhere = [
        ("host", "evil.example"),
        ("origin", "https://evil.example"),
        ("sec-fetch-site", "cross-site"),
    ];
    for header in elsewhere {
        for path in ["/v1/workflows", "/v1/keys", "/hooks/private"] {
            call(path, header).await.expect_problem(403);
        }
        assert_eq!(call("/metrics", header).await.status, 403, "{header:?}");
        // Whoever made it public meant everybody.
        call("/hooks/open", header).await.expect(200);
        call("/health/live", header).await.expect(200);
    }
    call("/v1/workflows", ("origin", "http://localhost:5173"))
        .await
        .expect(200);
    call("/hooks/private", ("sec-fetch-site", "same-origin"))
        .await
        .expect(200);
}

#[tokio::test]
async fn a_page_that_a_workflow_answers_with_has_no_origin_and_no_say_in_the_connection() {
    let server = Server::start().await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: page }
spec:
  trigger: { type: webhook, path: /page, method: POST, public: true }
  steps:
    - id: answer
      uses: respond
      with: { headers: "{{ $json.headers }}", body: "<script>1</script>" }
"#,
        )
        .await;
    let page = |headers: Value| {
        let call = server.call_as("", Method::POST, "/hooks/page");
        call.json(&json!({"headers": headers})).send()
    };
    let reply = page(json!({
        "content-type": "text/html",
        "content-length": "1",
        "transfer-encoding": "chunked",
        "service-worker-allowed": "/",
        "x-content-type-options": "none",
    }))
    .await;
    assert_eq!(
        (reply.status, &reply.body),
        (200, &json!("<script>1</script>"))
    );
    assert_eq!(reply.header("content-type"), Some("text/html"));
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(reply.header("service-worker-allowed"), None);
    let policy = reply.header("content-security-policy").unwrap_or_default();
    assert!(
        policy.starts_with("sandbox ") && !policy.contains("allow-same-origin"),
        "{policy}"
    );

    for value in ["a\r\nevil: 1", "a\nevil: 1", "a\0"] {
        let reply = page(json!({"x-text": value})).await;
        assert_eq!(reply.header("evil"), None);
        assert_eq!(reply.expect_problem(500)["code"], "invalid_parameters");
    }
}

/// All that is stored, as text.
const ROWS_WITH_CANARIES: &str = "
    SELECT (SELECT count(*) FROM documents t WHERE t::text LIKE '%canary%')
         + (SELECT count(*) FROM document_versions t WHERE t::text LIKE '%canary%')
         + (SELECT count(*) FROM executions t WHERE t::text LIKE '%canary%')
         + (SELECT count(*) FROM node_runs t WHERE t::text LIKE '%canary%')
         + (SELECT count(*) FROM waits t WHERE t::text LIKE '%canary%')
         + (SELECT count(*) FROM sessions t WHERE t::text LIKE '%canary%')
         + (SELECT count(*) FROM session_events t WHERE t::text LIKE '%canary%')
         + (SELECT count(*) FROM api_keys t WHERE t::text LIKE '%canary%')";

#[tokio::test]
async fn keys_and_what_the_environment_holds_are_in_no_log_row_answer_or_prompt() {
    // A provider that repeats the key it refuses, as some do.
    let provider = Stub::start(|request| {
        let sent = request.headers.get("authorization").cloned();
        Answer::Json(
            401,
            json!({"error": {"message": format!("no such key: {sent:?}")}}),
        )
    })
    .await;
    let server = Options::new()
        .env("RUST_LOG", "trace")
        .env("PROVIDER_KEY", "sk-canary-provider")
        .env("OTHER_SECRET", "canary-environment")
        .start()
        .await;
    server
        .apply_json(&json!({
            "kind": "Provider",
            "metadata": {"name": "stub"},
            "spec": {"type": "openai", "base_url": provider.url("/v1"), "api_key": "${PROVIDER_KEY}"},
        }))
        .await;
    server
        .apply(
            r#"
kind: Agent
metadata: { name: helper }
spec: { model: stub/m, instructions: "${OTHER_SECRET} {{ $env.OTHER_SECRET }}" }
---
kind: Workflow
metadata: { name: curious }
spec:
  trigger: { type: webhook, path: /curious, method: POST }
  steps:
    - id: look
      uses: set
      with: { values: { seen: "{{ $trigger }}", env: "{{ $env }}", one: "{{ $env.OTHER_SECRET }}", key: "{{ $env.PROVIDER_KEY }}" } }
    - { id: ask, uses: agent, on_error: continue, with: { agent: helper, input: "{{ $json }}" } }
"#,
        )
        .await;
    let key = server
        .key("curious", &["workflows:run", "executions:read"])
        .await;
    let reply = server
        .call_as(&key, Method::POST, &format!("/hooks/curious?key={key}"))
        .header("cookie", "session=canary-cookie")
        .header("x-api-key", "canary-header")
        .header("proxy-authorization", "Basic canary-proxy")
        .json(&json!({"a": 1}))
        .send()
        .await;
    let answer = reply.expect(200).to_string();
    server
        .call_as("cb_canary_wrong", Method::GET, "/v1/workflows")
        .send()
        .await
        .expect_problem(401);
    let listed = server.get("/v1/keys").await.expect(200).to_string();
    let log = server.log();
    assert!(log.contains("TRACE"), "the log tells all it can");
    assert_eq!(provider.requests().len(), 1);
    let asked = provider.requests()[0].body.to_string();
    for (place, text) in [
        ("answer", &answer),
        ("list", &listed),
        ("log", &log),
        ("prompt", &asked),
    ] {
        assert!(!text.contains("canary"), "{place}");
        assert!(!text.contains(&key), "{place}");
    }
    assert_eq!(server.database().number(ROWS_WITH_CANARIES).await, 0);
}

#[tokio::test]
async fn settings_of_the_server_are_not_for_documents_to_read() {
    let server = Server::start().await;
    for name in ["CALLBOARD_ADMIN_KEY", "DATABASE_URL", "PGPASSWORD"] {
        let document = json!({
            "kind": "Provider",
            "metadata": {"name": "thief"},
            "spec": {"type": "openai", "base_url": format!("http://127.0.0.1:1/${{{name}}}"), "api_key": "x"},
        });
        let reply = server.post("/v1/providers", &document).await;
        reply.expect_fault(&["body", "spec", "base_url"]);
    }
}

#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_else_out() {
    let server = Server::start().await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        let mut socket = tokio::net::TcpStream::connect(server.address())
            .await
            .expect("it listens");
        socket
            .write_all(b"POST /hooks/x HTTP/1.1\r\nhost: x\r\n")
            .await
            .expect("it is sent");
        silent.push(socket);
    }
    is_alive(&server).await;
}

#[tokio::test]
async fn requests_that_are_none_are_refused_and_end_their_connection() {
    let server = Server::start().await;
    for (request, status) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00"[..], "400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: a\0b\r\n\r\n", "400"),
        (b"POST /hooks/x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}", "400"),
        (b"POST /hooks/x HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", "400"),
    ] {
        let mut socket = tokio::net::TcpStream::connect(server.address()).await.expect("it listens");
        socket.write_all(request).await.expect("it is sent");
        let mut answer = String::new();
        let read = tokio::time::timeout(Duration::from_secs(30), socket.read_to_string(&mut answer));
        read.await.expect("the connection ends").expect("it is text");
        assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
    }
    is_alive(&server).await;
}
