//! Model providers that answer wrongly, late, or half.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use callboard_tests::{Answer, ModelStub, Server, Turn};
use serde_json::{Value, json};

fn agent(model: Value) -> Value {
    json!({
        "kind": "Agent", "metadata": {"name": "helper"}, "spec": {"model": model, "instructions": "Help."},
    })
}

/// Asks an agent on this provider once; the answer and how many requests the provider had.
async fn ask(model: &ModelStub) -> (Value, usize) {
    let server = Server::start().await;
    server.apply_json(&model.provider()).await;
    server.apply_json(&agent(json!("stub/m1"))).await;
    let session = server.open_session("helper").await;
    let answer = server.say(&session, "Hi").await;
    for text in [answer.to_string(), server.log()] {
        assert!(!text.contains("sk-stub-secret"), "the key leaked: {text}");
    }
    (answer, model.requests().len())
}

/// A provider whose first answers are these, and then it is well.
async fn recovering(first: Vec<Turn>) -> ModelStub {
    ModelStub::with(move |_, nth| {
        first
            .get(nth - 1)
            .cloned()
            .unwrap_or_else(|| Turn::text("Well again."))
    })
    .await
}

#[tokio::test]
async fn a_refused_key_fails_at_once_and_says_so() {
    let model = ModelStub::start(vec![Turn::error(401, "Incorrect API key provided")]).await;
    let (answer, requests) = ask(&model).await;
    assert_eq!(answer["status"], "failed", "{answer:#}");
    assert!(
        answer["error"]["code"].is_string() && answer["error"]["message"].is_string(),
        "{answer:#}"
    );
    assert_eq!(requests, 1, "waiting is no use");
}

#[tokio::test]
async fn a_wrong_request_fails_at_once() {
    let model = ModelStub::start(vec![Turn::error(400, "no such parameter")]).await;
    let (answer, requests) = ask(&model).await;
    assert_eq!(
        (&answer["status"], requests),
        (&json!("failed"), 1),
        "{answer:#}"
    );
}

#[tokio::test]
async fn too_many_requests_are_tried_again_when_the_provider_says() {
    let body =
        json!({"error": {"message": "Rate limit reached", "type": "rate_limit", "code": 429}});
    let headers = vec![
        ("content-type", "application/json".to_owned()),
        ("retry-after", "1".to_owned()),
    ];
    let limited = Turn::answer(Answer::Raw(429, headers, body.to_string().into_bytes()));
    let model = recovering(vec![limited]).await;
    let (answer, requests) = ask(&model).await;
    assert_eq!(answer["message"]["content"], "Well again.", "{answer:#}");
    assert_eq!(requests, 2);
    let at: Vec<_> = model.requests().iter().map(|request| request.at).collect();
    assert!(
        (at[1] - at[0]).as_millis() >= 900,
        "it asked too soon: {:?}",
        at[1] - at[0]
    );
}

#[tokio::test]
async fn passing_failures_are_tried_again() {
    let passing = [
        Turn::error(500, "internal"),
        Turn::error(503, "overloaded"),
        Turn::answer(Answer::Raw(
            502,
            vec![("content-type", "text/html".into())],
            b"<html>bad gateway</html>".to_vec(),
        )),
        Turn::answer(Answer::Close),
        Turn::half("This is cut in the middle of it all."),
        Turn::unfinished("This has no end."),
    ];
    for failure in passing {
        let model = recovering(vec![failure]).await;
        let (answer, requests) = ask(&model).await;
        assert_eq!(answer["status"], "completed", "{answer:#}");
        assert_eq!(
            answer["message"]["content"], "Well again.",
            "nothing of the first try is left: {answer:#}"
        );
        assert_eq!(requests, 2);
    }
}

#[tokio::test]
async fn garbage_is_never_taken_for_an_answer() {
    let garbage = [
        Answer::Raw(
            200,
            vec![("content-type", "text/event-stream".into())],
            b"data: {\"choices\": [{\n\n".to_vec(),
        ),
        Answer::Raw(
            200,
            vec![("content-type", "text/event-stream".into())],
            b"\x00\xff\xfe nonsense".to_vec(),
        ),
        Answer::Raw(
            200,
            vec![("content-type", "text/html".into())],
            b"<html>Sign in</html>".to_vec(),
        ),
        Answer::Raw(
            200,
            vec![("content-type", "application/json".into())],
            b"{}".to_vec(),
        ),
        Answer::Raw(200, Vec::new(), Vec::new()),
    ];
    for answer in garbage {
        let model = ModelStub::start(vec![Turn::answer(answer)]).await;
        let (answer, requests) = ask(&model).await;
        assert_eq!(answer["status"], "failed", "{answer:#}");
        assert!(answer["error"]["code"].is_string(), "{answer:#}");
        assert!(requests <= 10, "{requests} requests");
    }
}

#[tokio::test]
async fn a_provider_that_stays_down_ends_the_turn_but_not_the_session() {
    let down = Arc::new(AtomicUsize::new(1));
    let model = ModelStub::with({
        let down = down.clone();
        move |_, _| match down.load(Ordering::SeqCst) {
            0 => Turn::text("Back."),
            _ => Turn::error(500, "internal"),
        }
    })
    .await;
    let server = Server::start().await;
    server.apply_json(&model.provider()).await;
    server.apply_json(&agent(json!("stub/m1"))).await;
    let session = server.open_session("helper").await;
    let answer = server.say(&session, "Hi").await;
    assert_eq!(answer["status"], "failed", "{answer:#}");
    assert!(
        (2..=10).contains(&model.requests().len()),
        "tried again, but not for ever"
    );
    let events = server
        .events(&format!("/v1/sessions/{session}/events"), None)
        .await
        .until("turn.failed")
        .await;
    assert!(events.iter().any(|event| event.name == "turn.started"));
    down.store(0, Ordering::SeqCst);
    assert_eq!(
        server.say(&session, "And now?").await["message"]["content"],
        "Back."
    );
}

#[tokio::test]
async fn the_next_model_of_the_list_takes_over() {
    let (dead, alive) = (
        ModelStub::start(vec![Turn::error(401, "no")]).await,
        ModelStub::start(vec![Turn::text("From the second.")]).await,
    );
    let server = Server::start().await;
    for (model, name) in [(&dead, "first"), (&alive, "second")] {
        let mut provider = model.provider();
        provider["metadata"]["name"] = json!(name);
        server.apply_json(&provider).await;
    }
    server
        .apply_json(&agent(json!(["first/m1", "second/m2"])))
        .await;
    let session = server.open_session("helper").await;
    let answer = server.say(&session, "Hi").await;
    assert_eq!(
        answer["message"]["content"], "From the second.",
        "{answer:#}"
    );
    assert_eq!(alive.requests()[0].body["model"], "m2");
}

#[tokio::test]
async fn an_unknown_provider_fails_the_turn_with_its_name() {
    let server = Server::start().await;
    let reply = server.post("/v1/agents", &agent(json!("nowhere/m1"))).await;
    // It may be refused right away, or fail when it is needed: providers may come later.
    if reply.status == 201 {
        let session = server.open_session("helper").await;
        let answer = server.say(&session, "Hi").await;
        assert_eq!(answer["status"], "failed", "{answer:#}");
        assert!(
            answer["error"].to_string().contains("nowhere"),
            "{answer:#}"
        );
    } else {
        assert!(reply.expect(422).to_string().contains("nowhere"));
    }
}

#[tokio::test]
async fn tool_calls_that_were_cut_are_never_made() {
    let tools = callboard_tests::Stub::friendly().await;
    let model = ModelStub::with(|conversation, nth| match (conversation.len(), nth) {
        (_, 1) => {
            Turn::calls(&[("c1", "ask", json!({"q": "a long question that is cut"}))]).cut_after(6)
        }
        (2, _) => Turn::calls(&[("c1", "ask", json!({"q": "whole"}))]),
        _ => Turn::text("Done."),
    })
    .await;
    let server = Server::start().await;
    server.apply_json(&model.provider()).await;
    let mut document = agent(json!("stub/m1"));
    document["spec"]["tools"] = json!([{
        "node": "http.request", "name": "ask", "description": "Asks.",
        "with": {"method": "POST", "url": tools.url("/ask"), "body": {"q": "{{ $json.q }}"}},
        "parameters": {"type": "object", "required": ["q"], "properties": {"q": {"type": "string"}}},
    }]);
    server.apply_json(&document).await;
    let session = server.open_session("helper").await;
    let answer = server.say(&session, "Go").await;
    assert_eq!(answer["message"]["content"], "Done.", "{answer:#}");
    let asked: Vec<_> = tools
        .requests_to("/ask")
        .into_iter()
        .map(|request| request.body["q"].clone())
        .collect();
    assert_eq!(asked, [json!("whole")]);
}
