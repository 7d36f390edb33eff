//! What workflows do, step kind by step kind, seen through the API.

use std::collections::BTreeSet;

use callboard_tests::{Answer, Gate, Server, Stub, wait_until};
use serde_json::{Value, json};

fn error_code(execution: &Value) -> &str {
    execution["error"]["code"].as_str().unwrap_or("none")
}

#[track_caller]
fn succeeded(execution: &Value) -> &Value {
    assert_eq!(execution["status"], "succeeded", "{execution:#}");
    &execution["output"]
}

#[track_caller]
fn failed(execution: &Value) -> &str {
    assert_eq!(execution["status"], "failed", "{execution:#}");
    error_code(execution)
}

#[tokio::test]
async fn set_steps_build_items_and_keep_what_they_are_told_to() {
    let server = Server::start().await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: sets }
spec:
  steps:
    - id: all
      uses: set
      with: { keep: all, values: { a.b: "{{ $json.n + 1 }}", text: "n is {{ $json.n }}{{ $json.missing }}" } }
    - id: some
      uses: set
      with: { keep: [a, n], values: { c: [1, "{{ $json.a.b }}"] } }
---
kind: Workflow
metadata: { name: none }
spec:
  steps:
    - { id: only, uses: set, with: { keep: none, values: { x: "{{ $json.n * 2 }}" } } }
    - { id: same, uses: noop }
"#,
        )
        .await;
    let run = server.run("sets", json!({"n": 1, "other": true})).await;
    assert_eq!(
        succeeded(&run),
        &json!({"a": {"b": 2}, "n": 1, "c": [1, 2]})
    );
    let id = run["id"].as_str().unwrap();
    let all = &server.runs_of(id, "all").await[0]["output"][0];
    assert_eq!(
        all["json"]["text"].as_str().or(all["text"].as_str()),
        Some("n is 1")
    );
    let run = server.run("none", json!({"n": 2, "other": true})).await;
    assert_eq!(succeeded(&run), &json!({"x": 4}));
}

#[tokio::test]
async fn if_and_switch_choose_the_port() {
    let server = Server::start().await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: branch }
spec:
  steps:
    - id: big
      uses: if
      with: { condition: "{{ $json.n > 10 }}" }
      routes: { "true": large }
    - { id: large, uses: set, with: { keep: none, values: { is: big } } }
    - { id: small, uses: set, with: { keep: none, values: { is: small } }, after: [big.false] }
---
kind: Workflow
metadata: { name: cases }
spec:
  steps:
    - id: choose
      uses: switch
      with: { value: "{{ $json.color }}", cases: { warm: red, cold: blue } }
      routes: { warm: w, cold: c, default: d }
    - { id: w, uses: set, with: { keep: none, values: { is: warm } } }
    - { id: c, uses: set, with: { keep: none, values: { is: cold } } }
    - { id: d, uses: set, with: { keep: none, values: { is: neither } } }
---
kind: Workflow
metadata: { name: rules }
spec:
  steps:
    - id: choose
      uses: switch
      with: { rules: { few: "{{ $json.n < 3 }}", many: "{{ $json.n > 100 }}" } }
      routes: { few: f, many: m, default: end }
    - { id: f, uses: set, with: { keep: none, values: { is: few } } }
    - { id: m, uses: set, with: { keep: none, values: { is: many } } }
"#,
        )
        .await;
    for (workflow, input, output) in [
        ("branch", json!({"n": 11}), "big"),
        ("branch", json!({"n": 10}), "small"),
        ("cases", json!({"color": "red"}), "warm"),
        ("cases", json!({"color": "blue"}), "cold"),
        ("cases", json!({"color": "green"}), "neither"),
        ("rules", json!({"n": 1}), "few"),
        ("rules", json!({"n": 101}), "many"),
    ] {
        let run = server.run(workflow, input.clone()).await;
        assert_eq!(
            succeeded(&run),
            &json!({"is": output}),
            "{workflow} {input}"
        );
    }
    let run = server.run("rules", json!({"n": 50})).await;
    succeeded(&run);
    let chosen = server.runs_of(run["id"].as_str().unwrap(), "choose").await;
    assert_eq!(chosen[0]["port"], "default");
}

#[tokio::test]
async fn lists_are_split_filtered_sorted_cut_and_put_together() {
    let server = Server::start().await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: lists }
spec:
  steps:
    - { id: split, uses: split_out, with: { field_to_split_out: people } }
    - { id: adults, uses: filter, with: { condition: "{{ $json.age >= 18 }}" } }
    - { id: sorted, uses: sort, with: { fields: [{ field: age, order: descending }] } }
    - { id: first, uses: limit, with: { max_items: 2 } }
    - { id: names, uses: code, with: { code: "return {name: $json.name.toUpperCase()}", mode: each } }
---
kind: Workflow
metadata: { name: together }
spec:
  steps:
    - { id: split, uses: split_out, with: { field_to_split_out: people } }
    - { id: all, uses: aggregate, with: { aggregate: all_item_data, destination_field_name: people } }
---
kind: Workflow
metadata: { name: merged }
spec:
  steps:
    - { id: left, uses: set, with: { keep: none, values: { from: left } }, after: [trigger] }
    - { id: right, uses: set, with: { keep: none, values: { from: right } }, after: [trigger] }
    - { id: both, uses: merge, with: { mode: append }, after: [left, right] }
"#,
        )
        .await;
    let people = json!({"people": [
        {"name": "ann", "age": 30}, {"name": "bob", "age": 12}, {"name": "cyd", "age": 50}, {"name": "dan", "age": 40},
    ]});
    let run = server.run("lists", people.clone()).await;
    assert_eq!(succeeded(&run), &json!([{"name": "CYD"}, {"name": "DAN"}]));
    let run = server.run("together", people.clone()).await;
    assert_eq!(succeeded(&run), &people);
    let run = server.run("merged", json!({})).await;
    assert_eq!(
        succeeded(&run),
        &json!([{"from": "left"}, {"from": "right"}])
    );
}

#[tokio::test]
async fn code_returns_objects_and_lists_and_is_stopped_when_it_runs_away() {
    let server = Server::start().await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: sum }
spec:
  steps:
    - { id: sum, uses: code, with: { code: "return {sum: items.reduce((s, i) => s + (i.json ?? i).n, 0)}", mode: all } }
---
kind: Workflow
metadata: { name: spread }
spec:
  steps:
    - { id: spread, uses: code, with: { code: "return [1, 2, 3].map(n => ({n: n * $json.n}))" } }
---
kind: Workflow
metadata: { name: endless }
spec:
  steps:
    - { id: spin, uses: code, with: { code: "while (true) {}" } }
---
kind: Workflow
metadata: { name: thrown }
spec:
  steps:
    - { id: throw, uses: code, with: { code: "throw new Error('no such luck')" } }
"#,
        )
        .await;
    let run = server
        .run("sum", json!([{"n": 1}, {"n": 2}, {"n": 3}]))
        .await;
    // The body was a list, so the output is one.
    assert_eq!(succeeded(&run), &json!([{"sum": 6}]));
    let run = server.run("spread", json!({"n": 10})).await;
    assert_eq!(succeeded(&run), &json!([{"n": 10}, {"n": 20}, {"n": 30}]));
    let run = server.run("endless", json!({})).await;
    failed(&run);
    assert_eq!(run["error"]["step"], "spin");
    let run = server.run("thrown", json!({})).await;
    failed(&run);
    assert!(
        run["error"]["message"]
            .as_str()
            .unwrap()
            .contains("no such luck"),
        "{run:#}"
    );
}

#[tokio::test]
async fn joins_wait_for_all_any_or_a_number() {
    let gate = Gate::new();
    let stub = Stub::start({
        let gate = gate.clone();
        move |request| match &*request.path {
            "/slow" => Answer::ok(json!({"from": "slow"})).after(&gate),
            path => Answer::ok(json!({"from": path})),
        }
    })
    .await;
    let server = Server::start().await;
    for join in ["all", "any", "2"] {
        server
            .apply(
                &r#"
kind: Workflow
metadata: { name: join-JOIN }
spec:
  steps:
    - { id: a, uses: http.request, with: { url: "STUB/a" }, after: [trigger] }
    - { id: b, uses: http.request, with: { url: "STUB/b" }, after: [trigger] }
    - { id: slow, uses: http.request, with: { url: "STUB/slow" }, after: [trigger] }
    - { id: joined, uses: http.request, with: { method: POST, url: "STUB/joined-JOIN" }, after: [a, b, slow], join: JOIN }
"#
                .replace("STUB", &stub.url(""))
                .replace("JOIN", join),
            )
            .await;
    }
    let any = server.begin("join-any", json!({})).await;
    let two = server.begin("join-2", json!({})).await;
    let all = server.begin("join-all", json!({})).await;
    stub.wait_for("/joined-any", 1).await;
    stub.wait_for("/joined-2", 1).await;
    stub.wait_for("/slow", 3).await;
    // The joins of the others have fired although `slow` has not answered; this one's must not have.
    assert_eq!(stub.count("/joined-all"), 0);
    gate.open();
    for id in [&any, &two, &all] {
        succeeded(&server.finished(id).await);
        assert_eq!(server.runs_of(id, "joined").await.len(), 1);
    }
    // One visit, with an item from each input that it waited for.
    for (join, items) in [("all", 3), ("any", 1), ("2", 2)] {
        assert_eq!(stub.count(&format!("/joined-{join}")), items);
    }
}

#[tokio::test]
async fn a_join_of_all_does_not_wait_for_a_branch_that_was_not_taken() {
    let server = Server::start().await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: skip }
spec:
  steps:
    - { id: big, uses: if, with: { condition: "{{ $json.n > 1 }}" }, routes: { "true": score } }
    - { id: score, uses: set, with: { keep: all, values: { score: 1 } } }
    - { id: store, uses: set, with: { keep: all, values: { stored: true } }, after: [score, big.false] }
"#,
        )
        .await;
    let run = server.run("skip", json!({"n": 2})).await;
    assert_eq!(
        succeeded(&run),
        &json!({"n": 2, "score": 1, "stored": true})
    );
    let run = server.run("skip", json!({"n": 1})).await;
    assert_eq!(succeeded(&run), &json!({"n": 1, "stored": true}));
}

#[tokio::test]
async fn a_route_may_lead_backwards_and_is_bounded() {
    let server = Server::start().await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: count }
spec:
  steps:
    - { id: add, uses: set, with: { keep: all, values: { n: "{{ $json.n + 1 }}" } } }
    - { id: enough, uses: if, with: { condition: "{{ $json.n >= 5 }}" }, routes: { "true": done, "false": add } }
    - { id: done, uses: set, with: { keep: all, values: { done: true } } }
---
kind: Workflow
metadata: { name: forever }
spec:
  settings: { max_node_runs: 50 }
  steps:
    - { id: one, uses: noop }
    - { id: two, uses: noop, routes: { main: one } }
"#,
        )
        .await;
    let run = server.run("count", json!({"n": 0})).await;
    assert_eq!(succeeded(&run), &json!({"n": 5, "done": true}));
    assert_eq!(
        server
            .runs_of(run["id"].as_str().unwrap(), "add")
            .await
            .len(),
        5
    );
    let run = server.run("forever", json!({})).await;
    assert_eq!(failed(&run), "max_node_runs");
}

#[tokio::test]
async fn a_failed_step_fails_continues_or_takes_the_error_port() {
    let stub = Stub::start(|_| Answer::Json(404, json!({"reason": "no such thing"}))).await;
    let server = Server::start().await;
    server
        .apply(
            &r#"
kind: Workflow
metadata: { name: fails }
spec:
  steps:
    - { id: call, uses: http.request, with: { url: "STUB/x" } }
    - { id: never, uses: set, with: { values: { reached: true } } }
---
kind: Workflow
metadata: { name: continues }
spec:
  steps:
    - { id: call, uses: http.request, with: { url: "STUB/x" }, on_error: continue }
    - { id: next, uses: set, with: { keep: all, values: { reached: true } } }
---
kind: Workflow
metadata: { name: routes }
spec:
  steps:
    - { id: call, uses: http.request, with: { url: "STUB/x" }, on_error: route, routes: { main: good, error: bad } }
    - { id: good, uses: set, with: { keep: all, values: { took: main } } }
    - { id: bad, uses: set, with: { keep: all, values: { took: error } } }
"#
            .replace("STUB", &stub.url("")),
        )
        .await;
    let run = server.run("fails", json!({})).await;
    failed(&run);
    assert_eq!(run["error"]["step"], "call");
    let id = run["id"].as_str().unwrap();
    assert!(server.runs_of(id, "never").await.is_empty());
    let call = &server.runs_of(id, "call").await[0];
    assert_eq!(call["status"], "failed");
    assert_eq!(call["error"]["status"], 404, "{call:#}");
    for (workflow, member, value) in [
        ("continues", "reached", json!(true)),
        ("routes", "took", json!("error")),
    ] {
        let run = server.run(workflow, json!({})).await;
        let output = succeeded(&run);
        assert_eq!(output[member], value, "{output:#}");
        assert_eq!(output["error"]["step"], "call", "{output:#}");
        assert!(output["error"]["code"].is_string() && output["error"]["message"].is_string());
    }
}

#[tokio::test]
async fn a_transient_failure_is_tried_again_under_the_same_key() {
    let stub = Stub::start(|request| match (&*request.path, request.nth) {
        ("/flaky", 1) => Answer::Json(503, json!({})),
        ("/flaky", 2) => Answer::Close,
        ("/wrong", _) => Answer::Json(400, json!({})),
        ("/down", _) => Answer::Json(500, json!({})),
        _ => Answer::ok(json!({"ok": true})),
    })
    .await;
    let server = Server::start().await;
    for path in ["flaky", "wrong", "down"] {
        server
            .apply(
                &r#"
kind: Workflow
metadata: { name: PATH }
spec:
  steps:
    - id: call
      uses: http.request
      with: { method: POST, url: "STUB/PATH", body: { a: 1 } }
      retry: { max_attempts: 3, backoff: exponential, initial: 10ms, max: 50ms }
"#
                .replace("STUB", &stub.url(""))
                .replace("PATH", path),
            )
            .await;
    }
    let run = server.run("flaky", json!({})).await;
    assert_eq!(succeeded(&run), &json!({"ok": true}));
    let attempts = server.runs_of(run["id"].as_str().unwrap(), "call").await;
    let attempts: Vec<_> = attempts
        .iter()
        .map(|run| (run["attempt"].clone(), run["status"].clone()))
        .collect();
    assert_eq!(
        attempts,
        [
            (json!(1), json!("failed")),
            (json!(2), json!("failed")),
            (json!(3), json!("succeeded"))
        ]
    );
    let keys: BTreeSet<_> = stub
        .requests_to("/flaky")
        .into_iter()
        .map(|request| request.headers.get("idempotency-key").cloned())
        .collect();
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert!(keys.iter().all(Option::is_some));
    // A request that is wrong stays wrong.
    failed(&server.run("wrong", json!({})).await);
    assert_eq!(stub.count("/wrong"), 1);
    failed(&server.run("down", json!({})).await);
    assert_eq!(stub.count("/down"), 3);
}

#[tokio::test]
async fn an_attempt_and_a_run_end_at_their_timeouts() {
    let stub = Stub::start(|request| match (&*request.path, request.nth) {
        ("/second", 2) => Answer::ok(json!({"nth": 2})),
        _ => Answer::Hang,
    })
    .await;
    let server = Server::start().await;
    server
        .apply(
            &r#"
kind: Workflow
metadata: { name: attempt }
spec:
  steps:
    - { id: call, uses: http.request, with: { url: "STUB/attempt" }, timeout: 200ms }
---
kind: Workflow
metadata: { name: again }
spec:
  steps:
    - id: call
      uses: http.request
      with: { url: "STUB/second" }
      timeout: 200ms
      retry: { max_attempts: 2, initial: 10ms }
---
kind: Workflow
metadata: { name: whole }
spec:
  settings: { timeout: 300ms }
  steps:
    - { id: call, uses: http.request, with: { url: "STUB/whole" } }
"#
            .replace("STUB", &stub.url("")),
        )
        .await;
    let run = server.run("attempt", json!({})).await;
    assert_eq!(failed(&run), "timeout");
    let run = server.run("again", json!({})).await;
    assert_eq!(succeeded(&run), &json!({"nth": 2}));
    let run = server.run("whole", json!({})).await;
    assert_eq!(failed(&run), "timeout");
    wait_until("requests that timed out are dropped", || async {
        (stub.running() == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn map_keeps_the_order_bounds_parallelism_and_collects_failures() {
    let gate = Gate::new();
    let stub = Stub::start({
        let gate = gate.clone();
        move |request| match &*request.query {
            "n=3" => Answer::Json(400, json!({})),
            // The first elements answer last.
            "n=0" | "n=1" => Answer::ok(json!({"was": request.query})).after(&gate),
            _ => Answer::ok(json!({"was": request.query})),
        }
    })
    .await;
    let server = Server::start().await;
    server
        .apply(
            &r#"
kind: Workflow
metadata: { name: collect }
spec:
  steps:
    - id: each
      uses: map
      with: { items: "{{ $json.list }}", max_parallel: 3, on_item_error: collect }
      steps:
        - { id: call, uses: http.request, with: { url: "STUB/each?n={{ $json.n }}" } }
        - { id: shape, uses: set, with: { keep: none, values: { was: "{{ $json.was }}" } } }
---
kind: Workflow
metadata: { name: strict }
spec:
  steps:
    - id: each
      uses: map
      with: { items: "{{ $json.list }}", max_parallel: 1 }
      steps:
        - { id: call, uses: http.request, with: { url: "STUB/strict?n={{ $json.n }}" } }
---
kind: Workflow
metadata: { name: doubled }
spec:
  steps:
    - id: each
      uses: map
      with: { items: "{{ $json.list }}" }
      steps:
        - { id: double, uses: code, with: { code: "return {n: $json.n * 2}" } }
    - { id: total, uses: code, with: { code: "return {total: items.reduce((s, i) => s + (i.json ?? i).n, 0)}" } }
"#
            .replace("STUB", &stub.url("")),
        )
        .await;
    let list =
        |count: usize| json!({"list": (0..count).map(|n| json!({"n": n})).collect::<Vec<_>>()});
    let id = server.begin("collect", list(8)).await;
    // With the first two held back, one place is left for all the others.
    stub.wait_for("/each", 8).await;
    assert_eq!(stub.peak(), 3);
    gate.open();
    let run = server.finished(&id).await;
    let output = succeeded(&run).as_array().unwrap().clone();
    assert_eq!(output.len(), 8, "{output:#?}");
    for (n, item) in output.iter().enumerate() {
        if n == 3 {
            assert!(!item["error"].is_null(), "{item:#}");
        } else {
            assert_eq!(item, &json!({"was": format!("n={n}")}));
        }
    }
    let indexes: BTreeSet<_> = server
        .runs_of(&id, "call")
        .await
        .iter()
        .filter_map(|run| run["item_index"].as_i64())
        .collect();
    assert_eq!(indexes, (0..8).collect());

    failed(&server.run("strict", list(6)).await);
    // One at a time, and nothing after the failure.
    assert_eq!(stub.count("/strict"), 4);
    let run = server.run("doubled", list(200)).await;
    assert_eq!(succeeded(&run), &json!({"total": 199 * 200}));
    let run = server.run("doubled", list(0)).await;
    assert_eq!(run["status"], "succeeded", "{run:#}");
}

#[tokio::test]
async fn parallel_branches_run_at_the_same_time_within_their_limit() {
    let gate = Gate::new();
    let stub = Stub::start({
        let gate = gate.clone();
        move |_| Answer::ok(json!({})).after(&gate)
    })
    .await;
    let server = Server::start().await;
    let steps: String = (0..5)
        .map(|n| format!("    - {{ id: s{n}, uses: http.request, with: {{ url: \"STUB/PATH\" }}, after: [trigger] }}\n"))
        .collect();
    for (name, limit) in [("wide", 16), ("narrow", 2)] {
        let document = format!(
            "kind: Workflow\nmetadata: {{ name: {name} }}\nspec:\n  settings: {{ max_parallel: {limit} }}\n  steps:\n{steps}"
        );
        server
            .apply(
                &document
                    .replace("STUB", &stub.url(""))
                    .replace("PATH", name),
            )
            .await;
    }
    let wide = server.begin("wide", json!({})).await;
    stub.wait_for("/wide", 5).await;
    assert_eq!(stub.running(), 5);
    gate.open();
    succeeded(&server.finished(&wide).await);

    let gate = Gate::new();
    let stub = Stub::start({
        let gate = gate.clone();
        move |_| Answer::ok(json!({})).after(&gate)
    })
    .await;
    let document = format!(
        "kind: Workflow\nmetadata: {{ name: narrow }}\nspec:\n  settings: {{ max_parallel: 2 }}\n  steps:\n{steps}"
    );
    server
        .apply(
            &document
                .replace("STUB", &stub.url(""))
                .replace("PATH", "narrow"),
        )
        .await;
    let narrow = server.begin("narrow", json!({})).await;
    stub.wait_for("/narrow", 2).await;
    gate.open();
    succeeded(&server.finished(&narrow).await);
    assert_eq!((stub.count("/narrow"), stub.peak()), (5, 2));
}

#[tokio::test]
async fn a_timer_passivates_the_run_and_wakes_it() {
    let server = Server::start().await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: nap }
spec:
  steps:
    - { id: sleep, uses: wait.timer, with: { duration: 1500ms } }
    - { id: after, uses: set, with: { keep: all, values: { awake: true } } }
---
kind: Workflow
metadata: { name: past }
spec:
  steps:
    - { id: sleep, uses: wait.until, with: { time: "2001-02-03T04:05:06Z" } }
    - { id: after, uses: set, with: { keep: all, values: { awake: true } } }
"#,
        )
        .await;
    let id = server.begin("nap", json!({"n": 1})).await;
    server.wait_for_status(&id, &["waiting"]).await;
    let run = server.finished(&id).await;
    assert_eq!(succeeded(&run), &json!({"n": 1, "awake": true}));
    assert!(run["duration_ms"].as_i64().unwrap() >= 1500, "{run:#}");
    let run = server.run("past", json!({})).await;
    assert_eq!(succeeded(&run), &json!({"awake": true}));
}

#[tokio::test]
async fn a_workflow_runs_another_and_waits_or_does_not() {
    let server = Server::start().await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: child }
spec:
  steps:
    - { id: double, uses: set, with: { keep: none, values: { n: "{{ $json.n * 2 }}" } } }
---
kind: Workflow
metadata: { name: broken-child }
spec:
  steps:
    - { id: stop, uses: stop_and_error, with: { message: "on purpose", code: planned } }
---
kind: Workflow
metadata: { name: waits }
spec:
  steps:
    - { id: call, uses: workflow.execute, with: { workflow: child, input: { n: "{{ $json.n + 1 }}" } } }
    - { id: shape, uses: set, with: { keep: all, values: { got: "{{ $json.n }}" } } }
---
kind: Workflow
metadata: { name: detached }
spec:
  steps:
    - { id: call, uses: workflow.execute, with: { workflow: child, input: { n: 5 }, wait: false } }
---
kind: Workflow
metadata: { name: breaks }
spec:
  steps:
    - { id: call, uses: workflow.execute, with: { workflow: broken-child, input: {} } }
"#,
        )
        .await;
    let run = server.run("waits", json!({"n": 1})).await;
    assert_eq!(succeeded(&run), &json!({"n": 4, "got": 4}));
    let children = server
        .get("/v1/executions?workflow=child")
        .await
        .expect(200);
    let child = children["data"][0]["id"].as_str().unwrap();
    assert_eq!(
        server
            .get(&format!("/v1/executions/{child}"))
            .await
            .expect(200)["parent_id"],
        run["id"]
    );

    let run = server.run("detached", json!({})).await;
    let child = succeeded(&run)["execution_id"].as_str().unwrap().to_owned();
    assert_eq!(succeeded(&server.finished(&child).await), &json!({"n": 10}));

    let run = server.run("breaks", json!({})).await;
    assert_eq!(failed(&run), "child_failed");
    assert_eq!(run["error"]["step"], "call");
}

#[tokio::test]
async fn stop_and_error_ends_the_run_with_its_words() {
    let server = Server::start().await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: stops }
spec:
  steps:
    - { id: stop, uses: stop_and_error, with: { message: "too few: {{ $json.n }}", code: too_few } }
    - { id: never, uses: noop }
"#,
        )
        .await;
    let run = server.run("stops", json!({"n": 1})).await;
    assert_eq!(failed(&run), "too_few");
    assert_eq!(run["error"]["message"], "too few: 1");
    assert_eq!(run["error"]["step"], "stop");
}

#[tokio::test]
async fn expressions_see_the_run_and_fail_with_their_position() {
    let server = Server::start().await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: sees }
spec:
  steps:
    - { id: first, uses: set, with: { keep: none, values: { a: 1 } } }
    - { id: second, uses: set, with: { keep: none, values: { b: 2 } } }
    - id: all
      uses: set
      with:
        keep: none
        values:
          a: "{{ $('first').item.json.a }}"
          input: "{{ $('trigger').item.json.who }}"
          workflow: "{{ $workflow.name }}"
          execution: "{{ $execution.id }}"
          gone: "{{ $json.nothing }}"
          text: "[{{ $json.nothing }}]"
          year: "{{ $now.year > 2000 }}"
---
kind: Workflow
metadata: { name: throws }
spec:
  steps:
    - { id: bad, uses: set, with: { values: { x: "{{ $json.a.b.c() }}" } } }
"#,
        )
        .await;
    let run = server.run("sees", json!({"who": "me"})).await;
    let expected = json!({
        "a": 1, "input": "me", "workflow": "sees", "execution": run["id"], "text": "[]", "year": true,
    });
    assert_eq!(succeeded(&run), &expected);
    let run = server.run("throws", json!({})).await;
    assert_eq!(failed(&run), "expression_error");
    assert_eq!(run["error"]["step"], "bad");
}

#[tokio::test]
async fn http_requests_carry_what_they_are_told_and_read_what_comes() {
    let stub = Stub::start(|request| match &*request.path {
        "/text" => Answer::Raw(
            200,
            vec![("content-type", "text/plain".into()), ("x-a", "b".into())],
            b"hello".to_vec(),
        ),
        "/moved" => Answer::Raw(
            302,
            vec![("location", "http://169.254.169.254/secrets".into())],
            Vec::new(),
        ),
        "/list" => Answer::ok(json!([{"n": 1}, {"n": 2}])),
        _ => Answer::Json(201, json!({"made": true})),
    })
    .await;
    let server = Server::start().await;
    server
        .apply(
            &r#"
kind: Workflow
metadata: { name: posts }
spec:
  steps:
    - id: call
      uses: http.request
      with:
        method: POST
        url: "STUB/things"
        query: { q: "a b", n: "{{ $json.n }}" }
        headers: { X-Custom: "v{{ $json.n }}" }
        body: { n: "{{ $json.n }}" }
        full: true
---
kind: Workflow
metadata: { name: texts }
spec:
  steps: [ { id: call, uses: http.request, with: { url: "STUB/text" } } ]
---
kind: Workflow
metadata: { name: moved }
spec:
  steps: [ { id: call, uses: http.request, with: { url: "STUB/moved" } } ]
---
kind: Workflow
metadata: { name: metadata }
spec:
  steps: [ { id: call, uses: http.request, with: { url: "http://169.254.169.254/latest/meta-data" } } ]
"#
            .replace("STUB", &stub.url("")),
        )
        .await;
    let run = server.run("posts", json!({"n": 7})).await;
    let output = succeeded(&run);
    assert_eq!(
        (&output["status"], &output["body"]),
        (&json!(201), &json!({"made": true})),
        "{output:#}"
    );
    let request = &stub.requests_to("/things")[0];
    assert_eq!(
        (&*request.method, &request.body),
        ("POST", &json!({"n": 7}))
    );
    assert_eq!(request.headers["x-custom"], "v7");
    assert!(
        request.query.contains("n=7") && !request.query.contains(' '),
        "{}",
        request.query
    );
    let run = server.run("texts", json!({})).await;
    let output = succeeded(&run);
    assert_eq!(
        (&output["status"], &output["body"]),
        (&json!(200), &json!("hello")),
        "{output:#}"
    );
    assert_eq!(output["headers"]["x-a"], "b");
    // Addresses of the inside are refused, also at the end of a redirect.
    failed(&server.run("moved", json!({})).await);
    failed(&server.run("metadata", json!({})).await);
}
