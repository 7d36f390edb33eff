//! Webhook triggers: who may call them, when they answer, and with what.

use callboard_tests::{Answer, Gate, Method, Options, Server, Stub};
use serde_json::{Value, json};

/// A workflow of one webhook.
fn hook(name: &str, trigger: &str, steps: &str) -> String {
    format!(
        "kind: Workflow\nmetadata: {{ name: {name} }}\nspec:\n  trigger: {{ type: webhook, path: /{name}, method: POST{trigger} }}\n  steps:\n{steps}"
    )
}

const ADD: &str =
    "    - { id: add, uses: set, with: { keep: all, values: { n: \"{{ $json.n + 1 }}\" } } }\n";

#[tokio::test]
async fn the_last_step_answers() {
    let server = Server::start().await;
    server.apply(&hook("one", "", ADD)).await;
    let spread = "    - { id: spread, uses: code, with: { code: \"return [{n: 1}, {n: 2}]\" } }\n";
    server.apply(&hook("several", "", spread)).await;
    assert_eq!(
        server
            .post("/hooks/one", &json!({"n": 1}))
            .await
            .expect(200),
        json!({"n": 2})
    );
    // A list is one item per element, and is answered by a list even when there is one.
    assert_eq!(
        server
            .post("/hooks/one", &json!([{"n": 1}, {"n": 2}]))
            .await
            .expect(200),
        json!([{"n": 2}, {"n": 3}])
    );
    assert_eq!(
        server
            .post("/hooks/one", &json!([{"n": 1}]))
            .await
            .expect(200),
        json!([{"n": 2}])
    );
    assert_eq!(
        server.post("/hooks/several", &json!({})).await.expect(200),
        json!([{"n": 1}, {"n": 2}])
    );
    let list = server
        .get("/v1/executions?workflow=one&trigger=webhook")
        .await
        .expect(200);
    assert_eq!(list["data"].as_array().unwrap().len(), 3, "{list:#}");
}

#[tokio::test]
async fn an_immediate_answer_is_sent_when_the_run_is_durable() {
    let gate = Gate::new();
    let stub = Stub::start({
        let gate = gate.clone();
        move |_| Answer::ok(json!({"late": true})).after(&gate)
    })
    .await;
    let server = Server::start().await;
    let call = format!(
        "    - {{ id: call, uses: http.request, with: {{ url: \"{}\" }} }}\n",
        stub.url("/x")
    );
    server
        .apply(&hook("now", ", respond: immediately", &call))
        .await;
    let reply = server.post("/hooks/now", &json!({})).await;
    let location = reply.header("location").expect("where to look").to_owned();
    reply.expect(202);
    let path = location
        .strip_prefix(&server.url(""))
        .unwrap_or(&location)
        .to_owned();
    let execution = server.get(&path).await.expect(200);
    assert!(execution["finished_at"].is_null(), "{execution:#}");
    gate.open();
    let run = server.finished(execution["id"].as_str().unwrap()).await;
    assert_eq!(run["output"], json!({"late": true}));
}

#[tokio::test]
async fn a_respond_step_answers_and_the_run_goes_on() {
    let gate = Gate::new();
    let stub = Stub::start({
        let gate = gate.clone();
        move |_| Answer::ok(json!({"done": true})).after(&gate)
    })
    .await;
    let server = Server::start().await;
    let steps = format!(
        r#"    - id: answer
      uses: respond
      with: {{ status: 418, headers: {{ X-Tea: "{{{{ $json.kind }}}}" }}, body: {{ tea: "{{{{ $json.kind }}}}" }} }}
    - {{ id: call, uses: http.request, with: {{ method: POST, url: "{}" }} }}
"#,
        stub.url("/later")
    );
    server
        .apply(&hook("tea", ", respond: respond_step", &steps))
        .await;
    let reply = server.post("/hooks/tea", &json!({"kind": "green"})).await;
    assert_eq!(reply.header("x-tea"), Some("green"));
    assert_eq!(reply.expect(418), json!({"tea": "green"}));
    stub.wait_for("/later", 1).await;
    let list = server.get("/v1/executions?workflow=tea").await.expect(200);
    let id = list["data"][0]["id"].as_str().unwrap().to_owned();
    assert!(list["data"][0]["finished_at"].is_null(), "{list:#}");
    gate.open();
    assert_eq!(server.finished(&id).await["status"], "succeeded");
}

#[tokio::test]
async fn a_run_that_outlives_the_wait_is_accepted() {
    let server = Server::start().await;
    // Nobody waits longer for a run than it may run; time spent waiting does not count as running.
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: slow }
spec:
  trigger: { type: webhook, path: /slow, method: POST }
  settings: { timeout: 1s }
  steps:
    - { id: sleep, uses: wait.timer, with: { duration: 1h } }
"#,
        )
        .await;
    let reply = server.post("/hooks/slow", &json!({})).await;
    let location = reply.header("location").expect("where to look").to_owned();
    reply.expect(202);
    let id = location.rsplit('/').next().unwrap();
    assert_eq!(
        server.wait_for_status(id, &["waiting", "failed"]).await["status"],
        "waiting"
    );
}

#[tokio::test]
async fn a_stream_sends_the_events_of_the_run() {
    let server = Server::start().await;
    server.apply(&hook("live", ", respond: stream", ADD)).await;
    let mut events = server
        .call(Method::POST, "/hooks/live")
        .json(&json!({"n": 1}))
        .events()
        .await;
    let names: Vec<String> = events
        .until("execution.finished")
        .await
        .into_iter()
        .map(|event| event.name)
        .collect();
    assert!(names.contains(&"execution.started".to_owned()), "{names:?}");
    assert!(names.contains(&"node.finished".to_owned()), "{names:?}");
}

#[tokio::test]
async fn a_failed_run_is_a_problem_with_its_execution() {
    let server = Server::start().await;
    let steps = "    - { id: stop, uses: stop_and_error, with: { message: \"not today\", code: closed } }\n";
    server.apply(&hook("closed", "", steps)).await;
    let problem = server
        .post("/hooks/closed", &json!({}))
        .await
        .expect_problem(500);
    let id = problem["execution_id"]
        .as_str()
        .unwrap_or_else(|| panic!("{problem:#}"));
    assert_eq!(server.finished(id).await["error"]["code"], "closed");
}

#[tokio::test]
async fn a_workflow_sees_the_request_that_started_it() {
    let server = Server::start().await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: echo }
spec:
  trigger: { type: webhook, path: "/orders/{id}/items", method: PUT }
  steps:
    - id: echo
      uses: set
      with:
        keep: none
        values:
          id: "{{ $trigger.params.id }}"
          q: "{{ $trigger.query.q }}"
          header: "{{ $trigger.headers['x-custom'] }}"
          method: "{{ $trigger.method }}"
          path: "{{ $trigger.path }}"
          body: "{{ $trigger.body.n }}"
          secret: "{{ $trigger.headers.authorization }}"
"#,
        )
        .await;
    let reply = server
        .call(Method::PUT, "/hooks/orders/42/items?q=a%20b")
        .header("x-custom", "yes")
        .json(&json!({"n": 1}))
        .send()
        .await;
    let mut body = reply.expect(200);
    assert!(
        body["path"].as_str().unwrap().ends_with("/orders/42/items"),
        "{body:#}"
    );
    body.as_object_mut().unwrap().remove("path");
    // The caller's key is no business of the workflow.
    let secret = body.as_object_mut().unwrap().remove("secret");
    assert!(!secret.is_some_and(|secret| secret.to_string().contains("cb_test")));
    assert_eq!(
        body,
        json!({"id": "42", "q": "a b", "header": "yes", "method": "PUT", "body": 1})
    );
}

#[tokio::test]
async fn only_claimed_paths_and_methods_exist_and_only_callers_with_the_scope_get_in() {
    let server = Server::start().await;
    server.apply(&hook("private", "", ADD)).await;
    server.apply(&hook("public", ", public: true", ADD)).await;
    server
        .apply(
            "kind: Workflow\nmetadata: { name: special, required_scope: orders:place }\nspec:\n  trigger: { type: webhook, path: /special, method: POST }\n  steps:\n    - { id: same, uses: noop }\n",
        )
        .await;
    server
        .post("/hooks/unknown", &json!({}))
        .await
        .expect_problem(404);
    server.get("/hooks/private").await.expect_problem(404);
    let without = |path: &str| {
        server
            .call_as("", Method::POST, path)
            .json(&json!({"n": 1}))
    };
    without("/hooks/private").send().await.expect_problem(401);
    assert_eq!(
        without("/hooks/public").send().await.expect(200),
        json!({"n": 2})
    );
    let reader = server.key("reader", &["executions:read"]).await;
    let runner = server.key("runner", &["workflows:run"]).await;
    let placer = server.key("placer", &["orders:place"]).await;
    let call = |key: &str, path: &str| {
        server
            .call_as(key, Method::POST, path)
            .json(&json!({"n": 1}))
            .send()
    };
    assert_eq!(
        call(&reader, "/hooks/private").await.expect_problem(403)["scope"],
        "workflows:run"
    );
    call(&runner, "/hooks/private").await.expect(200);
    assert_eq!(
        call(&runner, "/hooks/special").await.expect_problem(403)["scope"],
        "orders:place"
    );
    call(&placer, "/hooks/special").await.expect(200);
    // A name that is gone claims nothing, and one that is new its path at once.
    server.delete("/v1/workflows/public").await.expect(204);
    without("/hooks/public").send().await.expect_problem(404);
    server.apply(&hook("later", ", public: true", ADD)).await;
    without("/hooks/later").send().await.expect(200);
    let switch = async |enabled: bool| {
        let body = json!({"enabled": enabled});
        server.patch("/v1/workflows/later", &body).await.expect(200)
    };
    switch(false).await;
    without("/hooks/later").send().await.expect_problem(404);
    switch(true).await;
    without("/hooks/later").send().await.expect(200);
}

#[tokio::test]
async fn input_and_answer_are_held_to_their_schemas() {
    let server = Server::start().await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: typed }
spec:
  trigger:
    type: webhook
    path: /typed
    method: POST
    input_schema: { type: object, required: [n], properties: { n: { type: integer }, mode: { type: string } } }
    response_schema: { type: object, required: [m], properties: { m: { type: integer } } }
  steps:
    - { id: choose, uses: switch, with: { value: "{{ $json.mode }}", cases: { lacks: lacks, wrong: wrong } }, routes: { lacks: lacks, wrong: wrong, default: fine } }
    - { id: lacks, uses: set, with: { keep: none, values: { other: 1 } } }
    - { id: wrong, uses: set, with: { keep: none, values: { m: text } } }
    - { id: fine, uses: set, with: { keep: none, values: { m: "{{ $json.n }}", internal: secret } } }
"#,
        )
        .await;
    assert_eq!(
        server
            .post("/hooks/typed", &json!({"n": 1}))
            .await
            .expect(200),
        json!({"m": 1})
    );
    server
        .post("/hooks/typed", &json!({}))
        .await
        .expect_fault(&["body", "n"]);
    server
        .post("/hooks/typed", &json!({"n": "one"}))
        .await
        .expect_fault(&["body", "n"]);
    for mode in ["lacks", "wrong"] {
        let problem = server
            .post("/hooks/typed", &json!({"n": 1, "mode": mode}))
            .await
            .expect_problem(500);
        assert_eq!(problem["code"], "response_invalid", "{problem:#}");
    }
    // What was refused never was an execution.
    let list = server
        .get("/v1/executions?workflow=typed")
        .await
        .expect(200);
    assert_eq!(list["data"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_repeated_request_is_the_same_run() {
    let stub = Stub::friendly().await;
    let server = Server::start().await;
    let call = format!(
        "    - {{ id: call, uses: http.request, with: {{ method: POST, url: \"{}\" }} }}\n",
        stub.url("/once")
    );
    server.apply(&hook("once", "", &call)).await;
    let send = |key: &str, body: Value| {
        server
            .call(Method::POST, "/hooks/once")
            .header("idempotency-key", key)
            .json(&body)
            .send()
    };
    let first = send("k1", json!({"n": 1})).await.expect(200);
    assert_eq!(send("k1", json!({"n": 1})).await.expect(200), first);
    assert_eq!(stub.count("/once"), 1);
    send("k1", json!({"n": 2})).await.expect_problem(409);
    send("k2", json!({"n": 2})).await.expect(200);
    assert_eq!(stub.count("/once"), 2);
}

#[tokio::test]
async fn bodies_over_the_limit_and_of_other_kinds_are_refused() {
    let server = Options::new()
        .flag("--max-body")
        .flag("64KiB")
        .start()
        .await;
    server.apply(&hook("small", "", ADD)).await;
    let call = |content_type: &str, body: String| {
        server
            .call(Method::POST, "/hooks/small")
            .body(content_type, body)
            .send()
    };
    let large = json!({"n": 1, "text": "x".repeat(70_000)}).to_string();
    call("application/json", large).await.expect_problem(413);
    call("application/json", "{\"n\": ".to_owned())
        .await
        .expect(422);
    let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
    call("application/json", deep).await.expect(422);
    assert_eq!(
        server
            .post("/hooks/small", &json!({"n": 1}))
            .await
            .expect(200),
        json!({"n": 2})
    );
}
