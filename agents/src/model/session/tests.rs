//! What the state machine does, case by case. `simulation` does the same in random order.

use std::{sync::Arc, time::Duration};

use callboard_runtime::{
    id::SessionId,
    provider::{FinishReason, Message, ModelErrorKind, ToolCall, Usage},
    schema::Schema,
    tool::{OnCrash, ToolError, ToolSpec},
};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::*;
use crate::model::spec::{AgentSpec, Budgets, DoubleTexting, ModelName, OutputSchema, ToolEntry};

pub(super) fn schema(value: &Value) -> Arc<Schema> {
    Arc::new(Schema::compile(value).expect("the schema is well formed"))
}

pub(super) fn tool(name: &str, on_crash: OnCrash, exclusive: bool) -> ToolEntry {
    let parameters = json!({"type": "object", "properties": {"n": {"type": "integer"}}});
    ToolEntry {
        schema: schema(&parameters),
        spec: ToolSpec {
            name: name.to_owned(),
            description: String::new(),
            parameters,
            on_crash,
            exclusive,
            timeout: Duration::from_secs(1),
        },
    }
}

pub(super) fn agent() -> AgentSpec {
    AgentSpec {
        name: "a".to_owned(),
        version: 1,
        models: vec![model("one"), model("two")],
        instructions: "be kind".to_owned(),
        tools: vec![
            tool("look", OnCrash::Retry, false),
            tool("pay", OnCrash::Fail, false),
            tool("alone", OnCrash::Retry, true),
        ],
        output: None,
        budgets: Budgets::default(),
        window: None,
        double_texting: DoubleTexting::Enqueue,
    }
}

fn model(name: &str) -> ModelName {
    ModelName {
        provider: "p".to_owned(),
        model: name.to_owned(),
    }
}

/// A session in hand, with its journal.
struct Hand {
    session: Session,
    journal: Vec<(i64, Record)>,
    now: DateTime<Utc>,
}

impl Hand {
    fn new(agent: AgentSpec) -> Self {
        let mut session = Session::new(SessionId::new());
        session.set_agent(Some(Arc::new(agent)));
        Self {
            session,
            journal: Vec::new(),
            now: DateTime::UNIX_EPOCH,
        }
    }

    fn decide(&mut self, event: Event) -> Decision {
        self.try_decide(event).expect("the event is accepted")
    }

    fn try_decide(&mut self, event: Event) -> Result<Decision, Refusal> {
        self.now += Duration::from_millis(10);
        let decision = self.session.decide(event, self.now)?;
        self.journal.extend(decision.records.clone());
        Ok(decision)
    }

    fn say(&mut self, text: &str) -> AskModel {
        let decision = self.decide(said(text, None));
        ask_of(decision)
    }

    fn answer(&mut self, ask: &AskModel, content: &str, calls: &[(&str, Value)]) -> Decision {
        self.decide(Event::ModelAnswered {
            request: ask.request,
            answer: answer(content, calls),
        })
    }

    fn fail(&mut self, ask: &AskModel, kind: ModelErrorKind, text: &str) -> Decision {
        self.decide(Event::ModelFailed {
            request: ask.request,
            failure: ModelFailure {
                kind,
                message: "no".to_owned(),
                retry_after: None,
            },
            partial: partial(text),
        })
    }

    fn finish(&mut self, id: &str, result: Value) -> Decision {
        self.decide(Event::CallFinished {
            id: id.to_owned(),
            result: Ok(result),
        })
    }

    /// The process dies; the journal is folded and taken up.
    fn crash(&mut self) -> Decision {
        let agent = self.session.agent.clone();
        let mut session = Session::new(self.session.id);
        for (seq, record) in &self.journal {
            session
                .apply(*seq, record, self.now)
                .expect("the journal is legal");
        }
        session.set_agent(agent.clone());
        session.set_turn_agent(agent);
        self.session = session;
        self.decide(Event::Resumed)
    }

    fn kinds(&self) -> Vec<&'static str> {
        self.journal
            .iter()
            .map(|(_, record)| record.kind())
            .collect()
    }

    fn last(&self) -> &Record {
        &self.journal.last().expect("there are records").1
    }
}

fn said(text: &str, key: Option<(&str, &str)>) -> Event {
    Event::MessageReceived {
        content: text.to_owned(),
        key: key.map(|(key, hash)| (key.to_owned(), hash.to_owned())),
    }
}

fn answer(content: &str, calls: &[(&str, Value)]) -> Answer {
    Answer {
        content: content.to_owned(),
        tool_calls: calls
            .iter()
            .enumerate()
            .map(|(i, (name, arguments))| ToolCall {
                id: format!("c{i}"),
                name: (*name).to_owned(),
                arguments: arguments.clone(),
            })
            .collect(),
        usage: Some(Usage {
            input_tokens: 10,
            output_tokens: 5,
            ..Usage::default()
        }),
        finish: FinishReason::Stop,
    }
}

fn partial(text: &str) -> Partial {
    Partial {
        text: text.to_owned(),
        streamed: !text.is_empty(),
    }
}

fn ask_of(decision: Decision) -> AskModel {
    decision
        .effects
        .into_iter()
        .find_map(|effect| match effect {
            Effect::AskModel(ask) => Some(*ask),
            _ => None,
        })
        .expect("the model is asked")
}

fn called(decision: &Decision) -> Vec<String> {
    decision
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::CallTool(call) => Some(call.call.id.clone()),
            _ => None,
        })
        .collect()
}

#[test]
fn a_plain_answer_completes_the_turn() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("hello");
    assert_eq!(ask.message_id, "msg_1");
    assert_eq!(ask.request_body.messages.len(), 2);
    hand.answer(&ask, "hi", &[]);
    assert_eq!(
        hand.kinds(),
        ["turn.started", "message.completed", "turn.completed"]
    );
    let result = hand.session.result(1).expect("the turn ended");
    assert_eq!(result.status, TurnStatus::Completed);
    assert_eq!(
        result.message,
        Some(json!({"role": "assistant", "content": "hi"}))
    );
    assert_eq!(result.usage.model_calls, 1);
    assert_eq!(result.usage.input_tokens, 10);
}

#[test]
fn results_are_in_call_order_whatever_the_finish_order() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    let decision = hand.answer(
        &ask,
        "",
        &[("look", json!({})), ("pay", json!({})), ("look", json!({}))],
    );
    assert_eq!(called(&decision), ["c0", "c1", "c2"]);
    hand.finish("c2", json!("third"));
    hand.finish("c0", json!("first"));
    let ask = ask_of(hand.finish("c1", json!("second")));
    let results: Vec<_> = ask
        .request_body
        .messages
        .iter()
        .filter_map(|message| match message {
            Message::Tool { content, .. } => Some(content.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(results, ["first", "second", "third"]);
}

#[test]
fn a_call_is_marked_as_started_before_it_runs() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    let decision = hand.answer(&ask, "", &[("look", json!({"n": 1}))]);
    assert_eq!(
        decision
            .records
            .iter()
            .map(|(_, r)| r.kind())
            .collect::<Vec<_>>(),
        ["message.completed", "tool_call.started"]
    );
    let Effect::CallTool(call) = &decision.effects[0] else {
        panic!("a call is made");
    };
    assert_eq!(call.idempotency_key, format!("{}/1/c0", hand.session.id));
}

#[test]
fn faulty_calls_go_back_to_the_model() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    let decision = hand.answer(
        &ask,
        "",
        &[
            ("nothing", json!({})),
            ("look", json!("{\"n\": 1")),
            ("look", json!({"n": "x"})),
        ],
    );
    let ask = ask_of(decision);
    let codes: Vec<_> = hand
        .journal
        .iter()
        .filter_map(|(_, record)| match record {
            Record::ToolCallFinished(f) => f.error.as_ref().map(|e| e.code.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(codes, ["not_found", "invalid_args", "invalid_args"]);
    assert_eq!(ask.request_body.messages.len(), 6);
}

#[test]
fn an_exclusive_call_runs_alone_and_in_its_place() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    let decision = hand.answer(
        &ask,
        "",
        &[
            ("look", json!({})),
            ("alone", json!({})),
            ("look", json!({})),
        ],
    );
    assert_eq!(called(&decision), ["c0"]);
    assert_eq!(called(&hand.finish("c0", json!(1))), ["c1"]);
    assert_eq!(called(&hand.finish("c1", json!(1))), ["c2"]);
}

#[test]
fn at_most_eight_calls_run_at_once() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    let calls = vec![("look", json!({})); 12];
    let decision = hand.answer(&ask, "", &calls);
    assert_eq!(called(&decision).len(), PARALLEL_CALLS_MAX);
    assert_eq!(called(&hand.finish("c3", json!(1))), ["c8"]);
}

#[test]
fn ids_that_are_missing_or_taken_are_replaced() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    let mut first = answer("", &[("look", json!({})), ("look", json!({}))]);
    first.tool_calls[1].id = String::new();
    hand.decide(Event::ModelAnswered {
        request: ask.request,
        answer: first,
    });
    hand.finish("c0", json!(1));
    let ask = ask_of(hand.finish("call_2_2", json!(1)));
    let decision = hand.answer(&ask, "", &[("look", json!({}))]);
    assert_ne!(called(&decision), ["c0"]);
}

#[test]
fn a_retryable_failure_is_tried_again_then_the_next_model_is_asked() {
    let mut hand = Hand::new(agent());
    let mut ask = hand.say("go");
    for failures in 1..3 {
        ask = ask_of(hand.fail(&ask, ModelErrorKind::Unavailable, ""));
        assert_eq!(ask.backoff.map(|b| b.failures), Some(failures));
        assert_eq!(ask.model, model("one"));
    }
    ask = ask_of(hand.fail(&ask, ModelErrorKind::Unavailable, ""));
    assert_eq!(ask.model, model("two"));
    assert_eq!(ask.backoff, None);
    assert_eq!(hand.kinds(), ["turn.started"]);
}

#[test]
fn a_spent_quota_is_not_waited_for() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    let ask = ask_of(hand.fail(&ask, ModelErrorKind::QuotaExhausted, ""));
    assert_eq!(ask.model, model("two"));
    hand.fail(&ask, ModelErrorKind::Auth, "");
    let Record::TurnFailed(failed) = hand.last() else {
        panic!("the turn failed");
    };
    assert_eq!(failed.error.code, "auth");
}

#[test]
fn a_refused_request_fails_at_once() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    hand.fail(&ask, ModelErrorKind::Rejected, "");
    assert_eq!(hand.kinds(), ["turn.started", "turn.failed"]);
}

#[test]
fn streamed_text_is_retracted_before_another_try() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    let again = ask_of(hand.fail(&ask, ModelErrorKind::StreamTruncated, "Hel"));
    assert_eq!(hand.kinds(), ["turn.started", "message.retracted"]);
    assert_ne!(ask.message_id, again.message_id);
    hand.answer(&again, "Hello", &[]);
    assert_eq!(hand.session.result(1).map(|r| r.usage.model_calls), Some(2));
}

#[test]
fn what_was_streamed_is_kept_when_a_turn_fails_for_good() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    hand.fail(&ask, ModelErrorKind::ContentFiltered, "Hel");
    let result = hand.session.result(1).expect("the turn ended");
    assert_eq!(result.status, TurnStatus::Failed);
    assert_eq!(
        result.message.map(|m| m["content"].clone()),
        Some(json!("Hel"))
    );
}

#[test]
fn retry_after_is_capped_and_a_longer_one_means_the_next_model() {
    let mut hand = Hand::new(agent());
    let failure = |secs| ModelFailure {
        kind: ModelErrorKind::RateLimited,
        message: String::new(),
        retry_after: Some(Duration::from_secs(secs)),
    };
    let ask = hand.say("go");
    let ask = ask_of(hand.decide(Event::ModelFailed {
        request: ask.request,
        failure: failure(3600),
        partial: Partial::default(),
    }));
    assert_eq!(ask.model, model("two"));
    let ask = ask_of(hand.decide(Event::ModelFailed {
        request: ask.request,
        failure: failure(3600),
        partial: Partial::default(),
    }));
    assert_eq!(ask.backoff.map(|b| b.at_least), Some(RETRY_AFTER_MAX));
}

#[test]
fn a_message_during_a_turn_waits_for_its_own() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("one");
    let decision = hand.decide(said("two", None));
    let accepted = decision.accepted.expect("it is accepted");
    assert_eq!((accepted.turn, accepted.after_seq), (2, 2));
    assert!(decision.effects.is_empty());
    let decision = hand.answer(&ask, "first", &[]);
    assert_eq!(hand.kinds().last(), Some(&"turn.started"));
    let ask = ask_of(decision);
    hand.answer(&ask, "second", &[]);
    assert_eq!(
        hand.session.result(2).map(|r| r.status),
        Some(TurnStatus::Completed)
    );
}

#[test]
fn a_message_during_a_turn_is_refused_where_the_agent_says_so() {
    let mut hand = Hand::new(AgentSpec {
        double_texting: DoubleTexting::Reject,
        ..agent()
    });
    hand.say("one");
    assert_eq!(
        hand.try_decide(said("two", None)).err(),
        Some(Refusal::Running)
    );
}

#[test]
fn the_queue_is_bounded() {
    let mut hand = Hand::new(agent());
    hand.say("one");
    for _ in 0..QUEUE_MAX {
        hand.decide(said("more", None));
    }
    assert_eq!(
        hand.try_decide(said("more", None)).err(),
        Some(Refusal::QueueFull)
    );
}

#[test]
fn a_key_means_the_same_message_for_ever() {
    let mut hand = Hand::new(agent());
    let first = hand.decide(said("one", Some(("k", "h")))).accepted;
    assert_eq!(hand.decide(said("one", Some(("k", "h")))).accepted, first);
    assert_eq!(
        hand.try_decide(said("other", Some(("k", "g")))).err(),
        Some(Refusal::KeyReused)
    );
    hand.crash();
    let again = hand.decide(said("one", Some(("k", "h"))));
    assert_eq!(again.accepted, first);
    assert!(again.records.is_empty());
}

#[test]
fn cancelling_now_keeps_what_was_said_and_closes_every_call() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    hand.answer(&ask, "", &[("look", json!({})), ("pay", json!({}))]);
    hand.finish("c0", json!("done"));
    let decision = hand.decide(Event::CancelRequested {
        mode: CancelMode::Now,
        partial: Partial::default(),
    });
    assert!(matches!(decision.effects[0], Effect::StopWork));
    assert_eq!(hand.kinds().last(), Some(&"turn.cancelled"));
    let texts: Vec<_> = hand
        .session
        .conversation()
        .iter()
        .skip(2)
        .cloned()
        .collect();
    assert_eq!(texts.len(), 2);

    let ask = hand.say("again");
    hand.decide(Event::CancelRequested {
        mode: CancelMode::Now,
        partial: partial("Hel"),
    });
    let result = hand.session.result(2).expect("the turn ended");
    assert_eq!(result.status, TurnStatus::Cancelled);
    assert_eq!(
        result.message.map(|m| m["content"].clone()),
        Some(json!("Hel"))
    );
    assert!(hand.answer(&ask, "late", &[]).records.is_empty());
}

#[test]
fn cancelling_after_the_tools_lets_those_in_flight_end() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    hand.answer(&ask, "", &[("alone", json!({})), ("look", json!({}))]);
    let cancel = || Event::CancelRequested {
        mode: CancelMode::AfterTool,
        partial: Partial::default(),
    };
    assert!(hand.decide(cancel()).effects.is_empty());
    let decision = hand.finish("c0", json!("paid"));
    assert!(called(&decision).is_empty());
    assert_eq!(
        hand.kinds()[4..],
        ["tool_call.finished", "tool_call.finished", "turn.cancelled"][..]
    );
    assert_eq!(hand.try_decide(cancel()).err(), Some(Refusal::Idle));
}

#[test]
fn a_call_in_flight_at_a_crash_follows_its_policy() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    hand.answer(
        &ask,
        "",
        &[("look", json!({})), ("pay", json!({})), ("look", json!({}))],
    );
    hand.finish("c2", json!("done"));
    let decision = hand.crash();
    assert_eq!(called(&decision), ["c0"]);
    let Record::ToolCallFinished(finished) = hand.last() else {
        panic!("the call that may not run twice is closed");
    };
    assert_eq!(
        finished.error.as_ref().map(|e| e.code.as_str()),
        Some("unknown_after_crash")
    );
}

#[test]
fn a_crash_while_the_model_answers_asks_again_under_another_message_id() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    let again = ask_of(hand.crash());
    assert_ne!(ask.message_id, again.message_id);
    assert_eq!(ask.request_body.messages, again.request_body.messages);
}

#[test]
fn a_turn_that_never_gets_further_is_given_up() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    hand.answer(&ask, "", &[("look", json!({}))]);
    for _ in 0..=RESUMES_MAX {
        hand.crash();
    }
    let result = hand.session.result(1).expect("the turn ended");
    assert_eq!(result.status, TurnStatus::Failed);
    assert_eq!(
        result.error.map(|e| e["code"].clone()),
        Some(json!("crashed"))
    );
}

#[test]
fn each_budget_ends_the_turn_as_limited() {
    let limit = |budgets: Budgets, rounds: usize| {
        let mut hand = Hand::new(AgentSpec { budgets, ..agent() });
        let mut ask = hand.say("go");
        for _ in 0..rounds {
            let decision = hand.answer(&ask, "working", &[("look", json!({}))]);
            let Some(id) = called(&decision).first().cloned() else {
                break;
            };
            let decision = hand.finish(&id, json!(1));
            match decision.effects.into_iter().find_map(|e| match e {
                Effect::AskModel(ask) => Some(*ask),
                _ => None,
            }) {
                Some(next) => ask = next,
                None => break,
            }
        }
        let result = hand.session.result(1).expect("the turn ended");
        assert_eq!(result.status, TurnStatus::Limited);
        assert_eq!(
            result.message.map(|m| m["content"].clone()),
            Some(json!("working"))
        );
        let limit = result.limit.expect("it names the limit");
        (
            limit["limit"].as_str().unwrap_or_default().to_owned(),
            limit["used"].as_u64().unwrap_or_default(),
        )
    };
    let all = Budgets::default();
    assert_eq!(
        limit(
            Budgets {
                model_calls: 2,
                ..all
            },
            9
        ),
        ("model_calls".to_owned(), 2)
    );
    assert_eq!(
        limit(
            Budgets {
                tool_calls: 2,
                ..all
            },
            9
        ),
        ("tool_calls".to_owned(), 2)
    );
    assert_eq!(
        limit(
            Budgets {
                tokens: Some(40),
                ..all
            },
            9
        ),
        ("tokens".to_owned(), 45)
    );
    assert_eq!(
        limit(
            Budgets {
                tokens: Some(30),
                ..all
            },
            9
        ),
        ("tokens".to_owned(), 30)
    );
}

#[test]
fn an_answer_beyond_the_token_budget_is_no_success() {
    let mut hand = Hand::new(AgentSpec {
        budgets: Budgets {
            tokens: Some(14),
            ..Budgets::default()
        },
        ..agent()
    });
    let ask = hand.say("go");
    hand.answer(&ask, "done", &[]);
    assert_eq!(
        hand.session.result(1).map(|r| r.status),
        Some(TurnStatus::Limited)
    );
}

#[test]
fn a_turn_whose_time_is_up_is_limited_and_keeps_its_text() {
    let mut hand = Hand::new(agent());
    hand.say("go");
    hand.decide(Event::WallReached {
        turn: 1,
        partial: partial("so far"),
    });
    let result = hand.session.result(1).expect("the turn ended");
    assert_eq!(result.status, TurnStatus::Limited);
    assert_eq!(
        result.message.map(|m| m["content"].clone()),
        Some(json!("so far"))
    );
    assert!(
        hand.decide(Event::WallReached {
            turn: 1,
            partial: partial("")
        })
        .records
        .is_empty()
    );
}

#[test]
fn downtime_is_not_charged_to_the_wall_budget() {
    let mut hand = Hand::new(agent());
    hand.say("go");
    hand.now += Duration::from_secs(3600);
    hand.crash();
    let left = hand.session.wall_left(hand.now).expect("a turn is running");
    assert!(left > Duration::from_secs(299), "{left:?}");
}

#[test]
fn a_structured_answer_is_read_and_mended() {
    let written = json!({"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]});
    let structured = AgentSpec {
        output: Some(OutputSchema {
            schema: schema(&written),
            written,
        }),
        ..agent()
    };
    let mut hand = Hand::new(structured.clone());
    let ask = hand.say("score it");
    assert!(ask.request_body.output_schema.is_some());
    let ask = ask_of(hand.answer(&ask, "{\"score\": \"high\"}", &[]));
    let Some(Message::User { content }) = ask.request_body.messages.last() else {
        panic!("the model is told what is wrong");
    };
    assert!(content.contains("score"), "{content}");
    hand.answer(&ask, "```json\n{\"score\": 7}\n```", &[]);
    assert_eq!(
        hand.session.result(1).and_then(|r| r.data),
        Some(json!({"score": 7}))
    );

    let mut hand = Hand::new(structured);
    let mut ask = hand.say("score it");
    for _ in 0..REPAIRS_MAX {
        ask = ask_of(hand.answer(&ask, "seven", &[]));
    }
    hand.answer(&ask, "seven", &[]);
    let Record::TurnFailed(failed) = hand.last() else {
        panic!("the turn failed");
    };
    assert_eq!(failed.error.code, "malformed_output");
}

#[test]
fn an_answer_cut_by_the_model_is_no_success_and_its_calls_are_not_made() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    let mut cut = answer("I will", &[("look", json!("{\"n"))]);
    cut.finish = FinishReason::Length;
    let decision = hand.decide(Event::ModelAnswered {
        request: ask.request,
        answer: cut,
    });
    assert!(called(&decision).is_empty());
    let Record::TurnFailed(failed) = hand.last() else {
        panic!("the turn failed");
    };
    assert_eq!(failed.error.code, "output_limit");
}

#[test]
fn a_turn_whose_agent_is_gone_fails() {
    let mut hand = Hand::new(agent());
    hand.say("one");
    hand.decide(said("two", None));
    hand.session.set_agent(None);
    hand.decide(Event::CancelRequested {
        mode: CancelMode::Now,
        partial: Partial::default(),
    });
    let result = hand.session.result(2).expect("the turn ended");
    assert_eq!(
        result.error.map(|e| e["code"].clone()),
        Some(json!("agent_unavailable"))
    );
}

#[test]
fn usage_is_estimated_where_the_provider_is_silent() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    let mut silent = answer("12345678", &[]);
    silent.usage = None;
    hand.decide(Event::ModelAnswered {
        request: ask.request,
        answer: silent,
    });
    let usage = hand.session.usage();
    assert_eq!(usage.output_tokens, 2);
    assert!(usage.input_tokens > 0);
}

#[test]
fn a_tool_that_reports_cancellation_is_recorded_as_cancelled() {
    let mut hand = Hand::new(agent());
    let ask = hand.say("go");
    hand.answer(&ask, "", &[("look", json!({}))]);
    hand.decide(Event::CallFinished {
        id: "c0".to_owned(),
        result: Err(ToolError::new("cancelled", "stopped")),
    });
    let statuses: Vec<_> = hand
        .journal
        .iter()
        .filter_map(|(_, record)| match record {
            Record::ToolCallFinished(finished) => Some(finished.status),
            _ => None,
        })
        .collect();
    assert_eq!(statuses, [crate::model::record::CallStatus::Cancelled]);
}
