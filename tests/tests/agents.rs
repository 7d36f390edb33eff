//! Agents: turns, tools, budgets, streams, cancelling, and agents as steps of workflows.

use std::collections::BTreeSet;

use callboard_tests::{
    Answer, Event, Events, Gate, Method, ModelStub, Server, Stub, Turn, wait_until,
};
use serde_json::{Value, json};

async fn server_with(model: &ModelStub, agent: Value) -> Server {
    let server = Server::start().await;
    server.apply_json(&model.provider()).await;
    server.apply_json(&agent).await;
    server
}

/// An agent named `helper` on the stub, with more members of its spec.
fn agent(more: Value) -> Value {
    let mut spec = json!({"model": "stub/m1", "instructions": "Help."});
    for (name, value) in more.as_object().unwrap() {
        spec[name] = value.clone();
    }
    json!({"kind": "Agent", "metadata": {"name": "helper"}, "spec": spec})
}

/// A tool that asks a path of a stub.
fn http_tool(name: &str, stub: &Stub, path: &str) -> Value {
    json!({
        "node": "http.request", "name": name, "description": "Asks.",
        "with": {"method": "POST", "url": stub.url(path), "body": {"q": "{{ $json.q }}"}},
        "parameters": {"type": "object", "required": ["q"], "properties": {"q": {"type": "string"}}},
    })
}

fn messages_path(session: &str) -> String {
    format!("/v1/sessions/{session}/messages")
}

async fn stream(server: &Server, session: &str, content: &str) -> Events {
    server
        .call(Method::POST, &messages_path(session))
        .json(&json!({"content": content}))
        .events()
        .await
}

fn deltas(events: &[Event]) -> String {
    let deltas = events.iter().filter(|event| event.name == "message.delta");
    deltas
        .map(|event| event.data["delta"].as_str().unwrap())
        .collect()
}

/// The `seq` of the events that are in the journal.
fn seqs(events: &[Event]) -> Vec<i64> {
    events
        .iter()
        .filter_map(|event| event.id.as_ref()?.parse().ok())
        .collect()
}

#[tokio::test]
async fn an_agent_answers_and_remembers_the_conversation() {
    let model = ModelStub::start(vec![Turn::text("Hello, you."), Turn::text("Still here.")]).await;
    let server = server_with(&model, agent(json!({}))).await;
    let session = server.open_session("helper").await;
    let answer = server.say(&session, "Hi").await;
    assert_eq!(
        (&answer["turn"], &answer["status"]),
        (&json!(1), &json!("completed")),
        "{answer:#}"
    );
    assert_eq!(answer["message"]["role"], "assistant");
    assert_eq!(answer["message"]["content"], "Hello, you.");
    let usage = &answer["usage"];
    assert_eq!(
        (&usage["model_calls"], &usage["tool_calls"]),
        (&json!(1), &json!(0)),
        "{usage:#}"
    );
    assert_eq!(
        (&usage["input_tokens"], &usage["output_tokens"]),
        (&json!(10), &json!(5)),
        "{usage:#}"
    );
    assert_eq!(
        server.say(&session, "And now?").await["message"]["content"],
        "Still here."
    );

    let request = &model.requests()[1];
    assert_eq!(request.headers["authorization"], "Bearer sk-stub-secret");
    assert_eq!(
        (&request.body["model"], &request.body["stream"]),
        (&json!("m1"), &json!(true))
    );
    let roles: Vec<_> = request.body["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"]);

    let transcript = server.get(&messages_path(&session)).await.expect(200);
    let rows = transcript["data"].as_array().unwrap();
    let said: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row["role"].as_str().unwrap(),
                row["content"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        said,
        [
            ("user", "Hi"),
            ("assistant", "Hello, you."),
            ("user", "And now?"),
            ("assistant", "Still here.")
        ]
    );
    let list = server.get("/v1/sessions?agent=helper").await.expect(200);
    assert_eq!(list["data"][0]["id"], session.as_str());
    assert_eq!(
        server
            .get(&format!("/v1/sessions/{session}"))
            .await
            .expect(200)["agent"],
        "helper"
    );
    server
        .delete(&format!("/v1/sessions/{session}"))
        .await
        .expect(204);
    server
        .get(&format!("/v1/sessions/{session}"))
        .await
        .expect_problem(404);
}

#[tokio::test]
async fn unknown_agents_and_sessions_are_not_found_and_empty_messages_refused() {
    let model = ModelStub::start(vec![Turn::text("x")]).await;
    let server = server_with(&model, agent(json!({}))).await;
    server
        .post("/v1/agents/nobody/sessions", &json!({}))
        .await
        .expect_problem(404);
    let nobody = "/v1/sessions/01890a5d-ac96-774b-bcce-b302099a8057";
    server.get(nobody).await.expect_problem(404);
    server
        .get(&format!("{nobody}/events"))
        .await
        .expect_problem(404);
    server
        .post(&format!("{nobody}/messages"), &json!({"content": "x"}))
        .await
        .expect_problem(404);
    let session = server.open_session("helper").await;
    let path = messages_path(&session);
    server
        .post(&path, &json!({}))
        .await
        .expect_fault(&["body", "content"]);
    server
        .post(&path, &json!({"content": 5}))
        .await
        .expect_fault(&["body", "content"]);
    server
        .post(&path, &json!({"content": ""}))
        .await
        .expect(422);
    server
        .post(&path, &json!({"content": "x", "contents": 1}))
        .await
        .expect_fault(&["body", "contents"]);
    assert_eq!(model.requests().len(), 0);
    // Nothing runs that could be cancelled.
    let cancel = format!("/v1/sessions/{session}/cancel");
    server
        .post(&cancel, &json!({"mode": "now"}))
        .await
        .expect_problem(409);
    server
        .post(&cancel, &json!({"mode": "softly"}))
        .await
        .expect_fault(&["body", "mode"]);
}

#[tokio::test]
async fn a_stream_shows_the_turn_as_it_happens() {
    let gate = Gate::new();
    let text = "A longer answer, in pieces, with ünïcödé.";
    let model = ModelStub::start(vec![Turn::text(text).paused_after(4, &gate)]).await;
    let server = server_with(&model, agent(json!({}))).await;
    let session = server.open_session("helper").await;
    let mut live = stream(&server, &session, "Hi").await;
    let mut events = live.until("message.delta").await;
    // The model has not finished, and its words are here.
    assert_eq!(events[0].name, "turn.started");
    gate.open();
    events.extend(live.until("turn.completed").await);
    assert_eq!(deltas(&events), text);
    let completed = events
        .iter()
        .find(|event| event.name == "message.completed")
        .unwrap();
    assert_eq!(completed.data["message"]["content"], text, "{completed:#?}");
    assert_eq!(events.last().unwrap().data["usage"]["model_calls"], 1);
    let seqs = seqs(&events);
    assert!(
        seqs.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "gap-free: {seqs:?}"
    );
    for delta in events.iter().filter(|event| event.name == "message.delta") {
        let (seq, offset) = delta
            .id
            .as_ref()
            .unwrap()
            .split_once('.')
            .expect("SEQ.OFFSET");
        assert!(
            seq.parse::<i64>().is_ok() && offset.parse::<i64>().is_ok(),
            "{delta:?}"
        );
    }
}

#[tokio::test]
async fn a_stream_that_broke_is_resumed_without_gap_or_duplicate() {
    let gate = Gate::new();
    let text = "One two three four five six seven eight nine ten.";
    let model = ModelStub::start(vec![Turn::text(text).paused_after(8, &gate)]).await;
    let server = server_with(&model, agent(json!({}))).await;
    let session = server.open_session("helper").await;
    let mut live = stream(&server, &session, "Count").await;
    let mut before = live.until("message.delta").await;
    before.extend(live.next().await);
    drop(live);
    // The turn belongs to the session: nobody watches, and it goes on.
    let path = format!("/v1/sessions/{session}/events");
    let last = before.last().unwrap().id.clone().unwrap();
    let mut resumed = server.events(&path, Some(&last)).await;
    gate.open();
    let after = resumed.until("turn.completed").await;
    let completed = after
        .iter()
        .find(|event| event.name == "message.completed")
        .unwrap();
    assert_eq!(completed.data["message"]["content"], text);
    let seen = deltas(&before) + &deltas(&after);
    // What is missing comes as further deltas, or as the message that replaced them.
    assert!(
        seen == text || (deltas(&after).is_empty() && text.starts_with(&seen)),
        "{seen:?}"
    );
    let all: Vec<i64> = seqs(&before).into_iter().chain(seqs(&after)).collect();
    assert!(all.windows(2).all(|pair| pair[1] == pair[0] + 1), "{all:?}");

    // Long afterwards the journal gives the same, from any place.
    let whole = server
        .events(&path, None)
        .await
        .until("turn.completed")
        .await;
    assert_eq!(seqs(&whole), all);
    for (at, seq) in all.iter().enumerate().take(all.len() - 1) {
        let rest = server
            .events(&path, Some(&seq.to_string()))
            .await
            .until("turn.completed")
            .await;
        assert_eq!(seqs(&rest), all[at + 1..], "after {seq}");
        let rest = server
            .events(&format!("{path}?after={seq}"), None)
            .await
            .until("turn.completed")
            .await;
        assert_eq!(seqs(&rest), all[at + 1..], "after {seq}");
    }
}

#[tokio::test]
async fn tools_of_one_turn_run_at_the_same_time_and_answer_in_order() {
    let gate = Gate::new();
    let tools = Stub::start({
        let gate = gate.clone();
        move |request| {
            let answer = Answer::ok(json!({"heard": request.body["q"]}));
            // The first call answers last.
            if request.path == "/first" {
                answer.after(&gate)
            } else {
                answer
            }
        }
    })
    .await;
    let calls = [
        ("c1", "first", json!({"q": "a"})),
        ("c2", "second", json!({"q": "b"})),
        ("c3", "history", json!({"n": 20})),
    ];
    let model = ModelStub::start(vec![Turn::calls(&calls), Turn::text("Done.")]).await;
    let server = Server::start().await;
    server.apply_json(&model.provider()).await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: history, description: "What was." }
spec:
  trigger: { type: manual, input_schema: { type: object, required: [n], properties: { n: { type: integer } } } }
  steps:
    - { id: add, uses: set, with: { keep: none, values: { n: "{{ $json.n + 1 }}" } } }
"#,
        )
        .await;
    let tools_of_agent = json!([
        http_tool("first", &tools, "/first"), http_tool("second", &tools, "/second"), {"workflow": "history"},
    ]);
    server
        .apply_json(&agent(json!({"tools": tools_of_agent})))
        .await;
    let session = server.open_session("helper").await;
    let mut live = stream(&server, &session, "Ask them").await;
    tools.wait_for("/first", 1).await;
    tools.wait_for("/second", 1).await;
    let mut events = Vec::new();
    while events
        .iter()
        .filter(|event: &&Event| event.name == "tool_call.finished")
        .count()
        < 2
    {
        events.extend(live.next().await);
    }
    // Two are done while the first one still waits; the model has not been asked again.
    assert_eq!(model.requests().len(), 1);
    gate.open();
    events.extend(live.until("turn.completed").await);
    let started: BTreeSet<_> = events
        .iter()
        .filter(|event| event.name == "tool_call.started")
        .map(|event| event.data["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(started, ["c1", "c2", "c3"].map(str::to_owned).into());
    assert_eq!(events.last().unwrap().data["usage"]["tool_calls"], 3);

    let offered = model.requests()[0].body["tools"].clone();
    let names: Vec<_> = offered
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| tool["function"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["first", "second", "history"]);
    let conversation = model.requests()[1].body["messages"]
        .as_array()
        .unwrap()
        .clone();
    let results: Vec<_> = conversation
        .iter()
        .filter(|message| message["role"] == "tool")
        .map(|message| {
            (
                message["tool_call_id"].as_str().unwrap(),
                message["content"].as_str().unwrap(),
            )
        })
        .collect();
    let ids: Vec<_> = results.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, ["c1", "c2", "c3"], "in the order of the calls");
    for (n, part) in ["\"a\"", "\"b\"", "21"].iter().enumerate() {
        assert!(results[n].1.contains(part), "{results:?}");
    }
    let children = server
        .get("/v1/executions?workflow=history")
        .await
        .expect(200);
    assert_eq!(children["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_call_that_is_wrong_goes_back_to_the_model() {
    let tools = Stub::friendly().await;
    let calls = [
        ("c1", "ask", json!({"q": 5})),
        ("c2", "unknown_tool", json!({})),
        ("c3", "ask", json!({"q": "right"})),
    ];
    let model = ModelStub::start(vec![Turn::calls(&calls), Turn::text("I see.")]).await;
    let server = server_with(
        &model,
        agent(json!({"tools": [http_tool("ask", &tools, "/ask")]})),
    )
    .await;
    let session = server.open_session("helper").await;
    let answer = server.say(&session, "Go").await;
    assert_eq!(answer["status"], "completed", "{answer:#}");
    assert_eq!(tools.count("/ask"), 1, "only the right call was made");
    let conversation = model.requests()[1].body["messages"]
        .as_array()
        .unwrap()
        .clone();
    let results = conversation
        .iter()
        .filter(|message| message["role"] == "tool")
        .count();
    assert_eq!(results, 3, "every call has its result: {conversation:#?}");
}

#[tokio::test]
async fn a_tool_that_fails_is_an_observation_and_not_the_end() {
    let tools = Stub::start(|_| Answer::Json(404, json!({"reason": "gone"}))).await;
    let model = ModelStub::start(vec![
        Turn::calls(&[("c1", "ask", json!({"q": "x"}))]),
        Turn::text("Sorry."),
    ])
    .await;
    let server = server_with(
        &model,
        agent(json!({"tools": [http_tool("ask", &tools, "/ask")]})),
    )
    .await;
    let session = server.open_session("helper").await;
    let answer = server.say(&session, "Go").await;
    assert_eq!(answer["message"]["content"], "Sorry.", "{answer:#}");
    let events = server
        .events(&format!("/v1/sessions/{session}/events"), None)
        .await
        .until("turn.completed")
        .await;
    let finished = events
        .iter()
        .find(|event| event.name == "tool_call.finished")
        .unwrap();
    assert!(!finished.data["error"].is_null(), "{finished:#?}");
}

#[tokio::test]
async fn budgets_end_a_turn_as_limited() {
    let tools = Stub::friendly().await;
    // A model that never comes to an end.
    let endless = || async {
        ModelStub::with(|conversation, _| {
            let id = format!("c{}", conversation.len());
            Turn::calls(&[(id.as_str(), "ask", json!({"q": "more"}))])
        })
        .await
    };
    for (budget, limit) in [
        (json!({"model_calls": 3}), "model_calls"),
        (json!({"tool_calls": 2}), "tool_calls"),
        (json!({"tokens": 40}), "tokens"),
    ] {
        let model = endless().await;
        let spec = json!({"tools": [http_tool("ask", &tools, "/ask")], "budgets": budget});
        let server = server_with(&model, agent(spec)).await;
        let session = server.open_session("helper").await;
        let answer = server.say(&session, "Go").await;
        assert_eq!(answer["status"], "limited", "{answer:#}");
        assert_eq!(answer["limit"]["limit"], limit, "{answer:#}");
        assert!(
            answer["limit"]["max"].is_number() && answer["limit"]["used"].is_number(),
            "{answer:#}"
        );
        assert!(model.requests().len() <= 4, "{}", model.requests().len());
        let events = server
            .events(&format!("/v1/sessions/{session}/events"), None)
            .await
            .until("turn.limited")
            .await;
        assert_eq!(events.last().unwrap().data["limit"], limit);
    }
    // Time runs out while the model says nothing.
    let model = ModelStub::start(vec![Turn::answer(Answer::Hang)]).await;
    let server = server_with(&model, agent(json!({"budgets": {"wall": "500ms"}}))).await;
    let session = server.open_session("helper").await;
    let answer = server.say(&session, "Go").await;
    assert_eq!(
        (&answer["status"], &answer["limit"]["limit"]),
        (&json!("limited"), &json!("wall")),
        "{answer:#}"
    );
}

#[tokio::test]
async fn a_running_turn_is_cancelled_and_the_session_goes_on() {
    let tools = Stub::start(|_| Answer::Hang).await;
    let model = ModelStub::with(|conversation, _| match conversation.last() {
        Some(message) if message["content"] == "Hang" => {
            Turn::calls(&[("c1", "ask", json!({"q": "x"}))])
        }
        _ => Turn::text("Fine."),
    })
    .await;
    let server = server_with(
        &model,
        agent(json!({"tools": [http_tool("ask", &tools, "/ask")]})),
    )
    .await;
    let session = server.open_session("helper").await;
    let message = json!({"content": "Hang"});
    let waiting = tokio::spawn(
        server
            .call(Method::POST, &messages_path(&session))
            .json(&message)
            .send(),
    );
    tools.wait_for("/ask", 1).await;
    server
        .post(
            &format!("/v1/sessions/{session}/cancel"),
            &json!({"mode": "now"}),
        )
        .await
        .expect(202);
    let answer = waiting.await.unwrap().expect(200);
    assert_eq!(answer["status"], "cancelled", "{answer:#}");
    wait_until("the tool's request is dropped", || async {
        (tools.running() == 0).then_some(())
    })
    .await;
    server
        .events(&format!("/v1/sessions/{session}/events"), None)
        .await
        .until("turn.cancelled")
        .await;
    assert_eq!(
        server.say(&session, "Go on").await["message"]["content"],
        "Fine."
    );
    // The call that was cut has a result, or the model would refuse the conversation.
    let conversation = model.requests().last().unwrap().body["messages"]
        .as_array()
        .unwrap()
        .clone();
    let results: Vec<_> = conversation
        .iter()
        .filter(|message| message["role"] == "tool")
        .collect();
    assert_eq!(results.len(), 1, "{conversation:#?}");
    assert_eq!(results[0]["tool_call_id"], "c1");
}

#[tokio::test]
async fn a_message_under_the_same_key_is_one_turn() {
    let model = ModelStub::start(vec![Turn::text("Once."), Turn::text("Twice.")]).await;
    let server = server_with(&model, agent(json!({}))).await;
    let session = server.open_session("helper").await;
    let send = |content: &str| {
        server
            .call(Method::POST, &messages_path(&session))
            .header("idempotency-key", "m1")
            .json(&json!({"content": content}))
            .send()
    };
    let first = send("Hi").await.expect(200);
    let again = send("Hi").await.expect(200);
    assert_eq!(
        (&again["turn"], &again["message"]),
        (&first["turn"], &first["message"])
    );
    assert_eq!(model.requests().len(), 1);
    send("Something else").await.expect_problem(409);
}

#[tokio::test]
async fn a_second_message_waits_or_is_refused() {
    for policy in ["enqueue", "reject"] {
        let gate = Gate::new();
        let model = ModelStub::start(vec![
            Turn::text("First.").paused_after(2, &gate),
            Turn::text("Second."),
        ])
        .await;
        let server = server_with(&model, agent(json!({"double_texting": policy}))).await;
        let session = server.open_session("helper").await;
        let send = |content: &str| {
            let message = json!({"content": content});
            tokio::spawn(
                server
                    .call(Method::POST, &messages_path(&session))
                    .json(&message)
                    .send(),
            )
        };
        let first = send("One");
        model.wait_for(1).await;
        let second = send("Two");
        if policy == "reject" {
            second.await.unwrap().expect_problem(409);
            gate.open();
            assert_eq!(
                first.await.unwrap().expect(200)["message"]["content"],
                "First."
            );
        } else {
            wait_until("the second message is accepted", || async {
                let transcript = server.get(&messages_path(&session)).await.expect(200);
                transcript.to_string().contains("Two").then_some(())
            })
            .await;
            assert_eq!(model.requests().len(), 1, "one turn at a time");
            gate.open();
            assert_eq!(
                first.await.unwrap().expect(200)["message"]["content"],
                "First."
            );
            assert_eq!(
                second.await.unwrap().expect(200)["message"]["content"],
                "Second."
            );
        }
    }
}

#[tokio::test]
async fn an_agent_with_a_schema_answers_with_data() {
    let model = ModelStub::start(vec![Turn::text("{\"score\": 7}")]).await;
    let schema = json!({"type": "object", "required": ["score"], "properties": {"score": {"type": "integer"}}});
    let server = server_with(&model, agent(json!({"output_schema": schema}))).await;
    let session = server.open_session("helper").await;
    let answer = server.say(&session, "Score it").await;
    assert_eq!(answer["data"], json!({"score": 7}), "{answer:#}");
}

#[tokio::test]
async fn an_agent_is_a_step_of_a_workflow() {
    let tools = Stub::friendly().await;
    let model = ModelStub::start(vec![
        Turn::calls(&[("c1", "ask", json!({"q": "x"}))]),
        Turn::text("Scored 7."),
    ])
    .await;
    let server = server_with(
        &model,
        agent(json!({"tools": [http_tool("ask", &tools, "/ask")]})),
    )
    .await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: scoring }
spec:
  steps:
    - { id: score, uses: agent, with: { agent: helper, input: "Score {{ $json.name }}" } }
    - { id: keep, uses: set, with: { keep: none, values: { said: "{{ $json.text }}" } } }
"#,
        )
        .await;
    let run = server.run("scoring", json!({"name": "Ann"})).await;
    assert_eq!(run["output"], json!({"said": "Scored 7."}), "{run:#}");
    let asked = model.requests()[0].body["messages"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .clone();
    assert_eq!(asked["content"], "Score Ann");
    assert_eq!(tools.count("/ask"), 1);
}
