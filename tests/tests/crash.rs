//! `kill -9` at every moment that matters: nothing acknowledged is lost, nothing recorded runs again.

use std::collections::{BTreeMap, BTreeSet};

use callboard_tests::{Answer, Gate, Method, ModelStub, Recorded, Server, Stub, Turn, wait_until};
use serde_json::{Value, json};

fn key_of(request: &Recorded) -> String {
    let key = request.headers.get("idempotency-key");
    key.unwrap_or_else(|| panic!("no idempotency key: {request:?}"))
        .clone()
}

/// Three effects, each after the one before.
fn three_posts(stub: &Stub) -> String {
    r#"
kind: Workflow
metadata: { name: effects }
spec:
  steps:
    - { id: p1, uses: http.request, with: { method: POST, url: "STUB/p1", body: { n: "{{ $json.n }}" } } }
    - { id: s1, uses: set, with: { keep: all, values: { first: "{{ $json.token }}" } } }
    - { id: p2, uses: http.request, with: { method: POST, url: "STUB/p2", body: { first: "{{ $json.first }}" } } }
    - { id: s2, uses: set, with: { keep: all, values: { second: "{{ $json.token }}", first: "{{ $('s1').item.json.first }}" } } }
    - { id: p3, uses: http.request, with: { method: POST, url: "STUB/p3", body: { second: "{{ $json.second }}" } } }
    - { id: last, uses: set, with: { keep: none, values: { tokens: ["{{ $('s1').item.json.first }}", "{{ $('s2').item.json.second }}", "{{ $json.token }}"] } } }
"#
    .replace("STUB", &stub.url(""))
}

/// The journal is gap-free and has one recorded result per step.
async fn assert_recorded_once(server: &Server, id: &str, steps: &[&str]) {
    let rows = server.node_runs(id).await;
    let seqs: Vec<_> = rows
        .iter()
        .map(|row| row["seq"].as_i64().unwrap())
        .collect();
    assert_eq!(
        seqs,
        (0..i64::try_from(rows.len()).unwrap()).collect::<Vec<_>>()
    );
    for step in steps {
        let results = rows
            .iter()
            .filter(|row| row["step"] == *step && row["status"] == "succeeded");
        assert_eq!(results.count(), 1, "{step}: {rows:#?}");
    }
}

#[tokio::test]
async fn a_workflow_killed_at_any_step_goes_on_where_it_was() {
    for killed_at in 1..=3 {
        let gate = Gate::new();
        let held = format!("/p{killed_at}");
        let stub = Stub::start({
            let (gate, held) = (gate.clone(), held.clone());
            move |request| {
                // Another token for every request: a step that ran twice would be seen downstream.
                let answer =
                    Answer::ok(json!({"token": format!("{}-{}", request.path, request.nth)}));
                if request.path == held && request.nth == 1 {
                    answer.after(&gate)
                } else {
                    answer
                }
            }
        })
        .await;
        let mut server = Server::start().await;
        server.apply(&three_posts(&stub)).await;
        let id = server.begin("effects", json!({"n": 1})).await;
        stub.wait_for(&held, 1).await;
        server.kill9().await;
        server.restart().await;
        let run = server.finished(&id).await;
        assert_eq!(run["status"], "succeeded", "killed at {killed_at}: {run:#}");
        let tokens: Vec<Value> = (1..=3)
            .map(|step| {
                json!(format!(
                    "/p{step}-{}",
                    if step == killed_at { 2 } else { 1 }
                ))
            })
            .collect();
        assert_eq!(
            run["output"],
            json!({"tokens": tokens}),
            "killed at {killed_at}"
        );
        for step in 1..=3 {
            let requests = stub.requests_to(&format!("/p{step}"));
            assert_eq!(
                requests.len(),
                if step == killed_at { 2 } else { 1 },
                "/p{step}, killed at {killed_at}"
            );
            let keys: BTreeSet<_> = requests.iter().map(key_of).collect();
            assert_eq!(keys.len(), 1, "one key for all tries of one step: {keys:?}");
        }
        assert_recorded_once(
            &server,
            &id,
            &["trigger", "p1", "s1", "p2", "s2", "p3", "last"],
        )
        .await;
    }
}

#[tokio::test]
async fn many_runs_survive_several_kills_with_one_result_each() {
    const RUNS: usize = 30;
    let stub = Stub::start(|request| {
        Answer::ok(json!({"token": format!("{}-{}", request.path, request.nth)}))
    })
    .await;
    let mut server = Server::start().await;
    server.apply(&three_posts(&stub)).await;
    let mut ids = Vec::new();
    for n in 0..RUNS {
        ids.push(server.begin("effects", json!({"n": n})).await);
        if n % 10 == 9 {
            // Wherever they are: some are done, some are in the middle, the last has just been acknowledged.
            server.restart().await;
        }
    }
    for id in &ids {
        let run = server.finished(id).await;
        assert_eq!(run["status"], "succeeded", "{run:#}");
        assert_recorded_once(&server, id, &["p1", "s1", "p2", "s2", "p3", "last"]).await;
    }
    let requests = stub.requests();
    let mut by_key: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for request in &requests {
        by_key
            .entry(key_of(request))
            .or_default()
            .push(request.body.clone());
    }
    assert_eq!(by_key.len(), RUNS * 3, "every effect has a key of its own");
    for (key, bodies) in by_key {
        assert!(
            bodies.windows(2).all(|pair| pair[0] == pair[1]),
            "{key} was repeated with another body: {bodies:?}"
        );
    }
}

#[tokio::test]
async fn an_acknowledged_start_is_never_lost() {
    let stub = Stub::friendly().await;
    let mut server = Server::start().await;
    server
        .apply(&format!(
            "kind: Workflow\nmetadata: {{ name: hook }}\nspec:\n  trigger: {{ type: webhook, path: /hook, method: POST, respond: immediately }}\n  steps:\n    - {{ id: call, uses: http.request, with: {{ method: POST, url: \"{}\" }} }}\n",
            stub.url("/call")
        ))
        .await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let reply = server.post("/hooks/hook", &json!({"n": n})).await;
        let location = reply.header("location").unwrap().to_owned();
        reply.expect(202);
        server.restart().await;
        ids.push(location.rsplit('/').next().unwrap().to_owned());
    }
    for id in ids {
        assert_eq!(server.finished(&id).await["status"], "succeeded");
    }
    assert!(stub.count("/call") >= 5);
}

#[tokio::test]
async fn a_caller_that_was_cut_off_asks_again_and_gets_the_same_run() {
    let gate = Gate::new();
    let stub = Stub::start({
        let gate = gate.clone();
        move |request| {
            let answer = Answer::ok(json!({"nth": request.nth}));
            if request.nth == 1 {
                answer.after(&gate)
            } else {
                answer
            }
        }
    })
    .await;
    let mut server = Server::start().await;
    server
        .apply(&format!(
            "kind: Workflow\nmetadata: {{ name: pay }}\nspec:\n  trigger: {{ type: webhook, path: /pay, method: POST }}\n  steps:\n    - {{ id: call, uses: http.request, with: {{ method: POST, url: \"{}\" }} }}\n",
            stub.url("/pay")
        ))
        .await;
    let call = |server: &Server| {
        server
            .call(Method::POST, "/hooks/pay")
            .header("idempotency-key", "order-1")
            .json(&json!({"n": 1}))
    };
    let cut_off = tokio::spawn(call(&server).try_send());
    stub.wait_for("/pay", 1).await;
    server.kill9().await;
    assert!(cut_off.await.unwrap().is_err());
    server.restart().await;
    assert_eq!(call(&server).send().await.expect(200), json!({"nth": 2}));
    assert_eq!(call(&server).send().await.expect(200), json!({"nth": 2}));
    assert_eq!(stub.count("/pay"), 2);
    let list = server.get("/v1/executions?workflow=pay").await.expect(200);
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn timers_outlive_the_process() {
    let mut server = Server::start().await;
    server
        .apply("kind: Workflow\nmetadata: { name: nap }\nspec:\n  steps:\n    - { id: sleep, uses: wait.timer, with: { duration: 3s } }\n    - { id: after, uses: set, with: { keep: all, values: { awake: true } } }\n")
        .await;
    let id = server.begin("nap", json!({"n": 1})).await;
    server.wait_for_status(&id, &["waiting"]).await;
    server.kill9().await;
    server.restart().await;
    let run = server.finished(&id).await;
    assert_eq!(run["output"], json!({"n": 1, "awake": true}), "{run:#}");
    assert!(run["duration_ms"].as_i64().unwrap() >= 3000, "{run:#}");
    assert_recorded_once(&server, &id, &["sleep", "after"]).await;
}

#[tokio::test]
async fn a_parent_gets_its_childs_result_whoever_dies_in_between() {
    let gate = Gate::new();
    let stub = Stub::start({
        let gate = gate.clone();
        move |request| {
            let answer = Answer::ok(json!({"nth": request.nth}));
            if request.nth == 1 {
                answer.after(&gate)
            } else {
                answer
            }
        }
    })
    .await;
    let mut server = Server::start().await;
    server
        .apply(
            &r#"
kind: Workflow
metadata: { name: child }
spec:
  steps: [ { id: call, uses: http.request, with: { method: POST, url: "STUB/child" } } ]
---
kind: Workflow
metadata: { name: parent }
spec:
  steps:
    - { id: run, uses: workflow.execute, with: { workflow: child, input: {} } }
    - { id: after, uses: set, with: { keep: all, values: { done: true } } }
"#
            .replace("STUB", &stub.url("")),
        )
        .await;
    let id = server.begin("parent", json!({})).await;
    stub.wait_for("/child", 1).await;
    server.restart().await;
    let run = server.finished(&id).await;
    assert_eq!(run["output"], json!({"nth": 2, "done": true}), "{run:#}");
    let children = server
        .get("/v1/executions?workflow=child")
        .await
        .expect(200);
    assert_eq!(
        children["data"].as_array().unwrap().len(),
        1,
        "the child was started once: {children:#}"
    );
}

#[tokio::test]
async fn cancelled_stays_cancelled() {
    let stub = Stub::start(|_| Answer::Hang).await;
    let mut server = Server::start().await;
    server.apply(&three_posts(&stub)).await;
    let id = server.begin("effects", json!({"n": 1})).await;
    stub.wait_for("/p1", 1).await;
    server
        .post(&format!("/v1/executions/{id}/cancel"), &json!({}))
        .await
        .expect(202);
    server.restart().await;
    assert_eq!(server.finished(&id).await["status"], "cancelled");
    assert_eq!(stub.count("/p1"), 1);
}

/// A server with an agent that has two tools, and its session.
async fn agent_with_tools(model: &ModelStub, tools: &Stub) -> (Server, String) {
    let server = Server::start().await;
    server.apply_json(&model.provider()).await;
    let tool = |name: &str| {
        json!({
            "node": "http.request", "name": name, "description": "Asks.",
            "with": {"method": "POST", "url": tools.url(&format!("/{name}")), "body": {"q": "{{ $json.q }}"}},
            "parameters": {"type": "object", "required": ["q"], "properties": {"q": {"type": "string"}}},
        })
    };
    let spec = json!({"model": "stub/m1", "instructions": "Help.", "tools": [tool("quick"), tool("slow")]});
    server
        .apply_json(&json!({"kind": "Agent", "metadata": {"name": "helper"}, "spec": spec}))
        .await;
    let session = server.open_session("helper").await;
    (server, session)
}

/// Hands over a message without waiting for its turn.
async fn hand_over(server: &Server, session: &str) {
    let message = json!({"content": "Go"});
    let sending = server
        .call(Method::POST, &format!("/v1/sessions/{session}/messages"))
        .json(&message)
        .try_send();
    // The connection ends with the server.
    tokio::spawn(sending);
}

async fn completed(server: &Server, session: &str) -> Vec<callboard_tests::Event> {
    server
        .events(&format!("/v1/sessions/{session}/events"), None)
        .await
        .until("turn.completed")
        .await
}

/// Every call has one result, every seq is there, and the turn ended once.
fn assert_turn_recorded_once(events: &[callboard_tests::Event], calls: &[&str]) {
    let seqs: Vec<i64> = events
        .iter()
        .filter_map(|event| event.id.as_ref()?.parse().ok())
        .collect();
    assert!(
        seqs.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "{seqs:?}"
    );
    for call in calls {
        let finished = events
            .iter()
            .filter(|event| event.name == "tool_call.finished" && event.data["id"] == *call);
        assert_eq!(finished.count(), 1, "{call}: {events:#?}");
    }
    assert_eq!(
        events
            .iter()
            .filter(|event| event.name == "turn.started")
            .count(),
        1,
        "{events:#?}"
    );
}

#[tokio::test]
async fn a_turn_killed_while_a_tool_runs_repeats_only_that_call() {
    let gate = Gate::new();
    let tools = Stub::start({
        let gate = gate.clone();
        move |request| {
            let answer = Answer::ok(json!({"nth": request.nth}));
            if request.path == "/slow" && request.nth == 1 {
                answer.after(&gate)
            } else {
                answer
            }
        }
    })
    .await;
    let calls = [
        ("c1", "quick", json!({"q": "a"})),
        ("c2", "slow", json!({"q": "b"})),
    ];
    let model = ModelStub::start(vec![Turn::calls(&calls), Turn::text("Done.")]).await;
    let (mut server, session) = agent_with_tools(&model, &tools).await;
    let events_path = format!("/v1/sessions/{session}/events");
    let mut live = server.events(&events_path, None).await;
    hand_over(&server, &session).await;
    tools.wait_for("/slow", 1).await;
    live.until("tool_call.finished").await;
    server.restart().await;
    let events = completed(&server, &session).await;
    assert_turn_recorded_once(&events, &["c1", "c2"]);
    assert_eq!(tools.count("/quick"), 1, "a recorded call never runs again");
    let slow = tools.requests_to("/slow");
    assert_eq!(slow.len(), 2);
    assert_eq!(key_of(&slow[0]), key_of(&slow[1]));
    assert_eq!(
        model.requests().len(),
        2,
        "a recorded answer of the model is never asked for again"
    );
    let transcript = server
        .get(&format!("/v1/sessions/{session}/messages"))
        .await
        .expect(200);
    let roles: Vec<_> = transcript["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["user", "assistant", "tool", "tool", "assistant"]);
}

#[tokio::test]
async fn a_turn_killed_while_the_model_speaks_asks_it_again() {
    let gate = Gate::new();
    let tools = Stub::friendly().await;
    let model = ModelStub::with({
        let gate = gate.clone();
        move |conversation, nth| match (conversation.len(), nth) {
            (2, _) => Turn::calls(&[("c1", "quick", json!({"q": "a"}))]),
            (_, 2) => Turn::text("Half of this was said before.").paused_after(4, &gate),
            _ => Turn::text("Whole."),
        }
    })
    .await;
    let (mut server, session) = agent_with_tools(&model, &tools).await;
    let events_path = format!("/v1/sessions/{session}/events");
    let mut live = server.events(&events_path, None).await;
    hand_over(&server, &session).await;
    live.until("message.delta").await;
    server.restart().await;
    let events = completed(&server, &session).await;
    assert_turn_recorded_once(&events, &["c1"]);
    assert_eq!(tools.count("/quick"), 1);
    assert_eq!(model.requests().len(), 3);
    let said = events
        .iter()
        .rfind(|event| event.name == "message.completed")
        .unwrap();
    assert_eq!(said.data["message"]["content"], "Whole.");
    // The session is fit for more.
    assert_eq!(server.say(&session, "More").await["status"], "completed");
}

#[tokio::test]
async fn an_agent_inside_a_workflow_survives_with_it() {
    let gate = Gate::new();
    let tools = Stub::start({
        let gate = gate.clone();
        move |request| {
            let answer = Answer::ok(json!({"nth": request.nth}));
            if request.path == "/slow" && request.nth == 1 {
                answer.after(&gate)
            } else {
                answer
            }
        }
    })
    .await;
    let calls = [("c1", "slow", json!({"q": "b"}))];
    let model = ModelStub::start(vec![Turn::calls(&calls), Turn::text("Done.")]).await;
    let (mut server, _) = agent_with_tools(&model, &tools).await;
    server
        .apply("kind: Workflow\nmetadata: { name: asks }\nspec:\n  steps:\n    - { id: ask, uses: agent, with: { agent: helper, input: Go } }\n    - { id: keep, uses: set, with: { keep: none, values: { said: \"{{ $json.text }}\" } } }\n")
        .await;
    let id = server.begin("asks", json!({})).await;
    tools.wait_for("/slow", 1).await;
    server.restart().await;
    let run = server.finished(&id).await;
    assert_eq!(run["output"], json!({"said": "Done."}), "{run:#}");
    assert_eq!(tools.count("/slow"), 2);
    assert_eq!(
        model.requests().len(),
        2,
        "the agent's first answer was recorded"
    );
    wait_until("no session is left running", || async {
        let list = server.get("/v1/sessions?agent=helper").await.expect(200);
        let idle = list["data"]
            .as_array()?
            .iter()
            .all(|session| session["status"] == "idle");
        idle.then_some(())
    })
    .await;
}
