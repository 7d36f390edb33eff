//! Executions through the API: starting, listing, watching, cancelling.

use std::collections::BTreeSet;

use callboard_tests::{Answer, Gate, Method, Reply, Server, Stub, wait_until};
use serde_json::{Value, json};

const ADD: &str = r#"
kind: Workflow
metadata: { name: add }
spec:
  steps:
    - { id: one, uses: set, with: { keep: all, values: { n: "{{ $json.n + 1 }}" } } }
    - { id: two, uses: set, with: { keep: all, values: { n: "{{ $json.n + 1 }}" } } }
"#;

/// A server with `add`, and with `call`, which waits for the stub between two quick steps.
async fn server_and_gate() -> (Server, Stub, Gate) {
    let gate = Gate::new();
    let stub = Stub::start({
        let gate = gate.clone();
        move |_| Answer::ok(json!({"answered": true})).after(&gate)
    })
    .await;
    let server = Server::start().await;
    server.apply(ADD).await;
    server
        .apply(
            &r#"
kind: Workflow
metadata: { name: call }
spec:
  steps:
    - { id: before, uses: noop }
    - { id: call, uses: http.request, with: { method: POST, url: "STUB/call" } }
    - { id: after, uses: http.request, with: { method: POST, url: "STUB/after" } }
"#
            .replace("STUB", &stub.url("")),
        )
        .await;
    (server, stub, gate)
}

fn ids(list: &Value) -> Vec<String> {
    let rows = list["data"]
        .as_array()
        .unwrap_or_else(|| panic!("{list:#}"));
    rows.iter()
        .map(|row| row["id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_start_is_accepted_with_its_place_and_its_details_are_whole() {
    let server = Server::start().await;
    server.apply(ADD).await;
    let reply = server
        .post("/v1/workflows/add/executions", &json!({"input": {"n": 1}}))
        .await;
    let location = reply.header("location").expect("where to look").to_owned();
    assert!(reply.header("x-trace-id").is_some());
    let id = reply.expect(202)["id"].as_str().unwrap().to_owned();
    assert!(
        location.ends_with(&format!("/v1/executions/{id}")),
        "{location}"
    );
    let run = server.finished(&id).await;
    let expected = [
        ("workflow", json!("add")),
        ("version", json!(1)),
        ("status", json!("succeeded")),
        ("trigger", json!("manual")),
        ("parent_id", Value::Null),
        ("retry_of", Value::Null),
        ("idempotency_key", Value::Null),
        ("input", json!({"n": 1})),
        ("output", json!({"n": 3})),
        ("error", Value::Null),
    ];
    for (member, value) in expected {
        assert_eq!(run[member], value, "{member}: {run:#}");
    }
    let (started, finished) = (
        run["started_at"].as_str().unwrap(),
        run["finished_at"].as_str().unwrap(),
    );
    assert!(
        started <= finished && started.ends_with('Z'),
        "{started} {finished}"
    );
    assert!(run["duration_ms"].is_number());
}

#[tokio::test]
async fn the_journal_has_every_node_run_in_order() {
    let server = Server::start().await;
    server.apply(ADD).await;
    let run = server.run("add", json!({"n": 1})).await;
    let rows = server.node_runs(run["id"].as_str().unwrap()).await;
    let steps: Vec<_> = rows
        .iter()
        .map(|row| row["step"].as_str().unwrap())
        .collect();
    assert_eq!(steps, ["trigger", "one", "two"]);
    for (seq, row) in rows.iter().enumerate() {
        assert_eq!(row["seq"], seq, "{row:#}");
        assert_eq!(
            (&row["status"], &row["attempt"]),
            (&json!("succeeded"), &json!(1)),
            "{row:#}"
        );
        for member in ["type", "started_at", "finished_at"] {
            assert!(row[member].is_string(), "{member}: {row:#}");
        }
    }
    assert_eq!(rows[1]["type"], "set");
    assert_eq!(rows[1]["port"], "main");
    assert_eq!(rows[2]["parent_seq"], 1);
    // Pages add up to the whole.
    let path = format!("/v1/executions/{}/node-runs", run["id"].as_str().unwrap());
    let first = server.get(&format!("{path}?limit=2")).await.expect(200);
    let cursor = first["next_cursor"].as_str().expect("there is more");
    let second = server
        .get(&format!("{path}?limit=2&cursor={cursor}"))
        .await
        .expect(200);
    assert_eq!(
        (
            first["data"].as_array().unwrap().len(),
            second["data"].as_array().unwrap().len()
        ),
        (2, 1)
    );
    assert!(second["next_cursor"].is_null());
}

#[tokio::test]
async fn lists_are_filtered_paged_and_without_payloads() {
    let server = Server::start().await;
    server.apply(ADD).await;
    server
        .apply("kind: Workflow\nmetadata: { name: stop }\nspec:\n  steps: [ { id: s, uses: stop_and_error, with: { message: m } } ]\n")
        .await;
    let mut started = Vec::new();
    for n in 0..7 {
        started.push(
            server.run("add", json!({"n": n})).await["id"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    let stopped = server.run("stop", json!({})).await["id"]
        .as_str()
        .unwrap()
        .to_owned();

    let list = server.get("/v1/executions").await.expect(200);
    assert_eq!(ids(&list).len(), 8);
    for row in list["data"].as_array().unwrap() {
        assert!(
            row.get("input").is_none() && row.get("output").is_none(),
            "{row:#}"
        );
    }
    for (query, expected) in [
        ("workflow=stop", vec![stopped.clone()]),
        ("status=failed", vec![stopped.clone()]),
        ("workflow=add&status=failed", vec![]),
        ("trigger=webhook", vec![]),
        ("started_after=2099-01-01T00:00:00Z", vec![]),
    ] {
        let list = server
            .get(&format!("/v1/executions?{query}"))
            .await
            .expect(200);
        assert_eq!(ids(&list), expected, "{query}");
    }
    let before = server
        .get("/v1/executions?started_before=2099-01-01T00:00:00Z")
        .await
        .expect(200);
    assert_eq!(ids(&before).len(), 8);

    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server
            .get(&format!("/v1/executions?workflow=add&limit=3{cursor}"))
            .await
            .expect(200);
        assert!(ids(&page).len() <= 3);
        seen.extend(ids(&page));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    seen.reverse();
    assert_eq!(seen, started, "newest first, each once");

    for (query, at) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=many", "limit"),
        ("status=odd", "status"),
        ("started_after=yesterday", "started_after"),
    ] {
        server
            .get(&format!("/v1/executions?{query}"))
            .await
            .expect_fault(&["query", at]);
    }
}

#[tokio::test]
async fn unknown_things_are_not_found() {
    let server = Server::start().await;
    let nobody = "/v1/executions/01890a5d-ac96-774b-bcce-b302099a8057";
    for path in [
        nobody.to_owned(),
        format!("{nobody}/node-runs"),
        format!("{nobody}/events"),
    ] {
        server.get(&path).await.expect_problem(404);
    }
    server
        .post(&format!("{nobody}/cancel"), &json!({}))
        .await
        .expect_problem(404);
    let reply = server.get("/v1/executions/not-an-id").await;
    assert!(matches!(reply.status, 404 | 422), "{reply:#?}");
    server
        .post("/v1/workflows/nobody/executions", &json!({"input": {}}))
        .await
        .expect_problem(404);
    server.get("/v1/nothing").await.expect_problem(404);
    server.delete("/v1/executions").await.expect_problem(405);
    server.apply(ADD).await;
    let reply = server
        .post(
            "/v1/workflows/add/executions",
            &json!({"input": {}, "version": 99}),
        )
        .await;
    assert!(matches!(reply.status, 404 | 422), "{reply:#?}");
}

#[tokio::test]
async fn a_run_keeps_the_version_it_started_with() {
    let (server, stub, gate) = server_and_gate().await;
    let id = server.begin("call", json!({})).await;
    stub.wait_for("/call", 1).await;
    let changed = "kind: Workflow\nmetadata: { name: call }\nspec:\n  steps:\n    - { id: other, uses: set, with: { keep: none, values: { version: 2 } } }\n";
    server.apply(changed).await;
    gate.open();
    let run = server.finished(&id).await;
    assert_eq!(
        (&run["version"], &run["output"]),
        (&json!(1), &json!({"answered": true})),
        "{run:#}"
    );
    let run = server.run("call", json!({})).await;
    assert_eq!(
        (&run["version"], &run["output"]),
        (&json!(2), &json!({"version": 2})),
        "{run:#}"
    );
    let old = server
        .call(Method::POST, "/v1/workflows/call/executions")
        .header("prefer", "wait=50")
        .json(&json!({"input": {}, "version": 1}))
        .send()
        .await
        .expect(200);
    assert_eq!(old["version"], 1);
}

#[tokio::test]
async fn prefer_wait_answers_with_the_end_or_with_where_to_look() {
    let (server, stub, gate) = server_and_gate().await;
    let wait = |workflow: &str, seconds: u32| {
        server
            .call(
                Method::POST,
                &format!("/v1/workflows/{workflow}/executions"),
            )
            .header("prefer", format!("wait={seconds}"))
            .json(&json!({"input": {"n": 0}}))
            .send()
    };
    assert_eq!(wait("add", 50).await.expect(200)["output"], json!({"n": 2}));
    let reply = wait("call", 1).await;
    assert!(reply.header("location").is_some());
    let id = reply.expect(202)["id"].as_str().unwrap().to_owned();
    stub.wait_for("/call", 1).await;
    gate.open();
    assert_eq!(server.finished(&id).await["status"], "succeeded");
}

#[tokio::test]
async fn an_idempotency_key_names_one_run() {
    let server = Server::start().await;
    server.apply(ADD).await;
    let start = |key: &str, n: i64| {
        server
            .call(Method::POST, "/v1/workflows/add/executions")
            .header("idempotency-key", key)
            .json(&json!({"input": {"n": n}}))
            .send()
    };
    let id = |reply: Reply| {
        assert!(matches!(reply.status, 200 | 202), "{reply:#?}");
        reply.body["id"].as_str().unwrap().to_owned()
    };
    let first = id(start("a", 1).await);
    assert_eq!(id(start("a", 1).await), first);
    server.finished(&first).await;
    assert_eq!(id(start("a", 1).await), first);
    start("a", 2).await.expect_problem(409);
    assert_ne!(id(start("b", 1).await), first);
    let at_once = futures_util::future::join_all((0..16).map(|_| start("c", 3))).await;
    let at_once: BTreeSet<String> = at_once.into_iter().map(id).collect();
    assert_eq!(at_once.len(), 1);
    let list = server.get("/v1/executions?workflow=add").await.expect(200);
    assert_eq!(ids(&list).len(), 3);
    assert_eq!(server.finished(&first).await["idempotency_key"], "a");
}

#[tokio::test]
async fn events_are_live_replayed_and_resumed_without_gap_or_duplicate() {
    let (server, stub, gate) = server_and_gate().await;
    let id = server.begin("call", json!({})).await;
    stub.wait_for("/call", 1).await;
    let path = format!("/v1/executions/{id}/events");
    let mut live = server.events(&path, None).await;
    // What was before the connection is replayed; then the stream stays open.
    let mut watched = live.until("node.started").await;
    let started = watched.last().unwrap();
    assert_eq!(
        (&started.id, &started.data["step"], &started.data["attempt"]),
        (&None, &json!("call"), &json!(1)),
        "what began before the connection is said to be in progress: {watched:#?}"
    );
    gate.open();
    watched.extend(live.until("execution.finished").await);
    assert!(live.next().await.is_none(), "nothing follows the end");

    let calls_begun = watched
        .iter()
        .filter(|event| event.name == "node.started" && event.data["step"] == "call");
    assert_eq!(calls_begun.count(), 1, "{watched:#?}");

    let journaled = |events: &[callboard_tests::Event]| -> Vec<(i64, String, Value)> {
        let with_id = events.iter().filter_map(|event| {
            let seq = event.id.as_ref()?.parse().unwrap();
            Some((seq, event.name.clone(), event.data.clone()))
        });
        with_id.collect()
    };
    let watched = journaled(&watched);
    let seqs: Vec<i64> = watched.iter().map(|(seq, ..)| *seq).collect();
    assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "{watched:?}");
    let (_, name, data) = watched.first().unwrap();
    assert_eq!(
        (name.as_str(), &data["status"], &data["version"]),
        ("execution.started", &json!("running"), &json!(1))
    );
    let finished = watched
        .iter()
        .filter(|(_, name, _)| name == "node.finished")
        .count();
    assert!(finished >= 3, "{watched:?}");

    let whole = journaled(&server.events(&path, None).await.rest().await);
    assert_eq!(whole, watched, "a replay is what was seen live");
    for at in 0..whole.len() {
        let rest = server
            .events(&path, Some(&whole[at].0.to_string()))
            .await
            .rest()
            .await;
        assert_eq!(journaled(&rest), whole[at + 1..], "after {}", whole[at].0);
    }
}

#[tokio::test]
async fn a_running_execution_is_cancelled_with_what_it_is_doing() {
    let (server, stub, gate) = server_and_gate().await;
    let id = server.begin("call", json!({})).await;
    stub.wait_for("/call", 1).await;
    let cancel = format!("/v1/executions/{id}/cancel");
    server.post(&cancel, &json!({})).await.expect(202);
    let run = server.wait_for_status(&id, &["cancelled"]).await;
    assert!(run["finished_at"].is_string(), "{run:#}");
    wait_until("the request is dropped", || async {
        (stub.running() == 0).then_some(())
    })
    .await;
    server.post(&cancel, &json!({})).await.expect_problem(409);
    gate.open();
    assert_eq!(stub.count("/after"), 0);
    // Final means final.
    assert_eq!(server.finished(&id).await, run);
    let events = server
        .events(&format!("/v1/executions/{id}/events"), None)
        .await
        .rest()
        .await;
    assert_eq!(events.last().unwrap().name, "execution.finished");
}

#[tokio::test]
async fn a_waiting_execution_is_cancelled_and_never_wakes() {
    let server = Server::start().await;
    server
        .apply("kind: Workflow\nmetadata: { name: nap }\nspec:\n  steps:\n    - { id: sleep, uses: wait.timer, with: { duration: 1h } }\n    - { id: after, uses: noop }\n")
        .await;
    let id = server.begin("nap", json!({})).await;
    server.wait_for_status(&id, &["waiting"]).await;
    let path = format!("/v1/executions/{id}/events");
    let said = server
        .events(&path, None)
        .await
        .until("execution.waiting")
        .await;
    let wait = &said.last().unwrap().data["waits"][0];
    assert_eq!(
        (&wait["step"], &wait["item_index"]),
        (&json!("sleep"), &Value::Null),
        "{said:#?}"
    );
    assert!(wait["wake_at"].is_string(), "{said:#?}");
    server
        .post(&format!("/v1/executions/{id}/cancel"), &json!({}))
        .await
        .expect(202);
    server.wait_for_status(&id, &["cancelled"]).await;
    assert!(server.runs_of(&id, "after").await.is_empty());
}

#[tokio::test]
async fn a_parent_that_is_cancelled_takes_its_child_along() {
    let (server, stub, _gate) = server_and_gate().await;
    server
        .apply("kind: Workflow\nmetadata: { name: parent }\nspec:\n  steps:\n    - { id: run, uses: workflow.execute, with: { workflow: call, input: {} } }\n")
        .await;
    let id = server.begin("parent", json!({})).await;
    stub.wait_for("/call", 1).await;
    server
        .post(&format!("/v1/executions/{id}/cancel"), &json!({}))
        .await
        .expect(202);
    server.wait_for_status(&id, &["cancelled"]).await;
    let children = server.get("/v1/executions?workflow=call").await.expect(200);
    server
        .wait_for_status(&ids(&children)[0], &["cancelled"])
        .await;
}
