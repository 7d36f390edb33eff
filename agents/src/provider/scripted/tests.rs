//! What scripts say.

use callboard_runtime::document;
use futures_util::TryStreamExt;

use super::*;
use crate::model::provider::{ProviderDefinition, compile};

fn provider(replies: &str) -> Scripted {
    let text = format!(
        "kind: Provider\nmetadata: {{ name: p }}\nspec:\n  type: scripted\n  replies:\n{replies}"
    );
    let documents = document::read(&text, None).expect("the form is right");
    match compile(&documents[0]) {
        Ok(ProviderDefinition::Scripted(script)) => Scripted::new(script),
        other => panic!("the script is sound: {other:?}"),
    }
}

fn request(messages: Vec<Message>) -> ModelRequest {
    ModelRequest {
        model: "m".to_owned(),
        messages,
        tools: Vec::new(),
        output_schema: None,
    }
}

fn user(text: &str) -> Message {
    Message::User {
        content: text.to_owned(),
    }
}

fn called(name: &str) -> Message {
    Message::Assistant {
        content: String::new(),
        tool_calls: vec![ToolCall {
            id: "c".to_owned(),
            name: name.to_owned(),
            arguments: json!({}),
        }],
    }
}

fn result(text: &str) -> Message {
    Message::Tool {
        tool_call_id: "c".to_owned(),
        content: text.to_owned(),
    }
}

async fn ask(provider: &Scripted, messages: Vec<Message>) -> Vec<ModelEvent> {
    let stream = provider
        .stream(request(messages))
        .await
        .expect("it answers");
    stream.try_collect().await.expect("the answer is complete")
}

fn text(events: &[ModelEvent]) -> String {
    events
        .iter()
        .filter_map(|event| match event {
            ModelEvent::Text(text) => Some(text.as_str()),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn the_first_reply_that_fits_answers() {
    let provider = provider(
        "  - { model: other, text: no }\n  - { when: [Refund, money], text: refund it }\n  - { text: hello }\n",
    );
    assert_eq!(
        text(&ask(&provider, vec![user("I want a REFUND")]).await),
        "refund it"
    );
    assert_eq!(text(&ask(&provider, vec![user("hi")]).await), "hello");
}

#[tokio::test]
async fn steps_follow_the_answers_and_quote_results() {
    let provider = provider(
        "  - steps:\n    - { text: Looking., tool_calls: [{ name: look, arguments: { id: \"{{ $json.input.id }}\" } }] }\n\
         \x20   - { text: \"It is {{ $json.tools.look.status }}.\" }\n",
    );
    let first = ask(&provider, vec![user("{\"id\": 7}")]).await;
    assert!(first.contains(&ModelEvent::ToolCall(ToolCall {
        id: String::new(),
        name: "look".to_owned(),
        arguments: json!({"id": 7}),
    })));
    assert_eq!(
        first.last(),
        Some(&ModelEvent::Finished(FinishReason::ToolCalls))
    );
    let conversation = vec![
        user("{\"id\": 7}"),
        called("look"),
        result("{\"status\": \"sent\"}"),
    ];
    assert_eq!(
        text(&ask(&provider, conversation.clone()).await),
        "It is sent."
    );
    assert_eq!(
        ask(&provider, conversation.clone()).await,
        ask(&provider, conversation).await
    );
}

#[tokio::test]
async fn data_is_answered_as_json() {
    let provider =
        provider("  - data: { score: \"{{ $json.input.employees + 1 }}\", reason: big }\n");
    let events = ask(&provider, vec![user("{\"employees\": 79}")]).await;
    let data: Value = serde_json::from_str(&text(&events)).expect("it is JSON");
    assert_eq!(data, json!({"score": 80, "reason": "big"}));
}

#[tokio::test]
async fn text_comes_in_chunks_of_characters() {
    let provider = provider("  - { text: \"äöüäöüäöüäöüäöüäöü\" }\n");
    let events = ask(&provider, vec![user("x")]).await;
    assert_eq!(events[0], ModelEvent::Text("äöüäöüäöüäöüäöüä".into()));
    assert_eq!(events[1], ModelEvent::Text("öü".into()));
}

#[tokio::test]
async fn failures_are_played() {
    let provider = provider(
        "  - { when: a, text: so far, error: rate_limited, retry_after: 3s }\n  - { when: b, text: so far, cut: true }\n",
    );
    let events: Vec<_> = provider
        .stream(request(vec![user("a")]))
        .await
        .expect("it answers")
        .collect()
        .await;
    let Some(Err(error)) = events.last() else {
        panic!("it fails");
    };
    assert_eq!(error.kind, ModelErrorKind::RateLimited);
    assert_eq!(error.retry_after, Some(Duration::from_secs(3)));
    let cut = ask(&provider, vec![user("b")]).await;
    assert_eq!(cut, [ModelEvent::Text("so far".into())]);
    assert!(provider.stream(request(vec![user("c")])).await.is_err());
}
