//! Random lives of a session: answers, failures, results, messages, cancels and crashes in any order.
//!
//! After every event the invariants are checked: places without gaps, one result per call before the next request,
//! results in call order, a fold equal to the living session, completed calls never made again, and calls that may
//! not run twice made at most once.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use callboard_runtime::{
    id::SessionId,
    provider::{FinishReason, Message, ModelErrorKind, ToolCall},
    tool::ToolError,
};
use chrono::{DateTime, Utc};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;

use super::{tests::agent, *};
use crate::model::spec::{AgentSpec, Budgets};

struct World {
    rng: StdRng,
    agent: Arc<AgentSpec>,
    session: Session,
    journal: Vec<(i64, DateTime<Utc>, Record)>,
    now: DateTime<Utc>,
    /// What is in flight.
    request: Option<u64>,
    calls: BTreeMap<String, String>,
    /// How often each call was made, by idempotency key.
    made: HashMap<String, (String, u32)>,
    done: HashSet<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let agent = Arc::new(AgentSpec {
            budgets: Budgets {
                model_calls: rng.random_range(2..12),
                tool_calls: rng.random_range(1..20),
                tokens: rng.random_bool(0.3).then(|| rng.random_range(50..2000)),
                wall: Duration::from_secs(300),
            },
            window: rng.random_bool(0.5).then(|| rng.random_range(1..10)),
            ..agent()
        });
        let mut session = Session::new(SessionId::new());
        session.set_agent(Some(agent.clone()));
        Self {
            rng,
            agent,
            session,
            journal: Vec::new(),
            now: DateTime::UNIX_EPOCH,
            request: None,
            calls: BTreeMap::new(),
            made: HashMap::new(),
            done: HashSet::new(),
        }
    }

    fn happen(&mut self, event: Event) {
        self.now += Duration::from_millis(self.rng.random_range(0..50));
        let Ok(decision) = self.session.decide(event, self.now) else {
            return;
        };
        for (seq, record) in decision.records {
            if let Record::ToolCallFinished(finished) = &record {
                assert!(self.done.insert(finished.id.clone()), "two results");
            }
            self.journal.push((seq, self.now, record));
        }
        for effect in decision.effects {
            self.perform(effect);
        }
        self.check();
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::StopWork => {
                self.request = None;
                self.calls.clear();
            }
            Effect::AskModel(ask) => {
                assert!(self.request.is_none(), "two requests at once");
                assert!(self.calls.is_empty(), "a request while calls run");
                assert_valid(&ask.request_body.messages);
                self.request = Some(ask.request);
            }
            Effect::CallTool(call) => {
                assert!(
                    !self.done.contains(&call.call.id),
                    "a finished call is made again"
                );
                let made = self
                    .made
                    .entry(call.idempotency_key)
                    .or_insert((call.call.name.clone(), 0));
                made.1 += 1;
                assert!(
                    made.0 != "pay" || made.1 == 1,
                    "made twice although it must not be"
                );
                self.calls.insert(call.call.id, call.call.name);
                assert!(self.calls.len() <= PARALLEL_CALLS_MAX);
                assert!(
                    self.calls.len() == 1 || !self.calls.values().any(|name| name == "alone"),
                    "an exclusive call has company"
                );
            }
            Effect::TurnEnded(turn) => assert!(self.session.result(turn).is_some()),
        }
    }

    fn check(&self) {
        for (index, (seq, _, _)) in self.journal.iter().enumerate() {
            assert_eq!(*seq, index as i64 + 1, "a gap in the journal");
        }
        if self.session.running_turn().is_some() {
            let busy = self.request.is_some() || !self.calls.is_empty();
            assert!(busy, "a running turn waits for nothing");
        } else {
            assert!(self.session.queue.is_empty(), "a message waits for nothing");
            assert_valid(self.session.conversation());
        }
    }

    fn check_fold(&self) {
        let folded = self.fold(self.journal.len());
        assert_eq!(folded.conversation(), self.session.conversation());
        assert_eq!(folded.usage(), self.session.usage());
        assert_eq!(folded.running_turn(), self.session.running_turn());
        assert_eq!(folded.turns(), self.session.turns());
        assert_eq!(folded.ended, self.session.ended);
    }

    fn fold(&self, len: usize) -> Session {
        let mut session = Session::new(self.session.id);
        for (seq, at, record) in &self.journal[..len] {
            let (kind, payload) = record.write();
            let read = Record::read(kind, payload).expect("what was written is read");
            session
                .apply(*seq, &read, *at)
                .expect("the journal is legal");
        }
        session
    }

    /// Everything after a random place is lost, as are all things in flight.
    fn crash(&mut self, keep: usize) {
        self.journal.truncate(keep);
        self.request = None;
        self.calls.clear();
        self.done = self
            .journal
            .iter()
            .filter_map(|(_, _, record)| match record {
                Record::ToolCallFinished(finished) => Some(finished.id.clone()),
                _ => None,
            })
            .collect();
        let mut session = self.fold(keep);
        session.set_agent(Some(self.agent.clone()));
        session.set_turn_agent(Some(self.agent.clone()));
        self.session = session;
        self.happen(Event::Resumed);
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..10 => self.happen(Event::MessageReceived {
                content: "more".to_owned(),
                key: None,
            }),
            10..13 => {
                let mode = if self.rng.random_bool(0.5) {
                    CancelMode::Now
                } else {
                    CancelMode::AfterTool
                };
                let partial = self.partial();
                self.happen(Event::CancelRequested { mode, partial });
            }
            13..14 => {
                let partial = self.partial();
                if let Some(turn) = self.session.running_turn() {
                    self.happen(Event::WallReached { turn, partial });
                }
            }
            14..18 => self.crash(self.journal.len()),
            18..25 => self.late(),
            _ => self.progress(),
        }
    }

    fn partial(&mut self) -> Partial {
        let streamed = self.request.is_some() && self.rng.random_bool(0.5);
        Partial {
            text: if streamed {
                "par".to_owned()
            } else {
                String::new()
            },
            streamed,
        }
    }

    /// Reports about work that is not in flight.
    fn late(&mut self) {
        let answer = self.random_answer();
        self.happen(Event::ModelAnswered { request: 0, answer });
        self.happen(Event::CallFinished {
            id: "c1000000".to_owned(),
            result: Ok(json!("late")),
        });
    }

    fn progress(&mut self) {
        if let Some(request) = self.request.take() {
            if self.rng.random_bool(0.2) {
                self.request = Some(request);
                let partial = self.partial();
                self.request = None;
                let kinds = [
                    ModelErrorKind::RateLimited,
                    ModelErrorKind::StreamTruncated,
                    ModelErrorKind::QuotaExhausted,
                    ModelErrorKind::Rejected,
                ];
                let kind = kinds[self.rng.random_range(0..kinds.len())];
                self.happen(Event::ModelFailed {
                    request,
                    failure: ModelFailure {
                        kind,
                        message: String::new(),
                        retry_after: None,
                    },
                    partial,
                });
            } else {
                let answer = self.random_answer();
                self.happen(Event::ModelAnswered { request, answer });
            }
        } else if !self.calls.is_empty() {
            let index = self.rng.random_range(0..self.calls.len());
            let id = self.calls.keys().nth(index).cloned().unwrap_or_default();
            self.calls.remove(&id);
            let result = if self.rng.random_bool(0.8) {
                Ok(json!(id))
            } else {
                Err(ToolError::new("failed", "no"))
            };
            self.happen(Event::CallFinished { id, result });
        } else {
            self.happen(Event::MessageReceived {
                content: "hello".to_owned(),
                key: None,
            });
        }
    }

    fn random_answer(&mut self) -> Answer {
        let count = if self.rng.random_bool(0.6) {
            self.rng.random_range(1..12)
        } else {
            0
        };
        let names = ["look", "pay", "alone", "nothing"];
        let tool_calls = (0..count)
            .map(|_| ToolCall {
                id: format!("c{}", self.rng.random_range(0..30)),
                name: names[self.rng.random_range(0..names.len())].to_owned(),
                arguments: if self.rng.random_bool(0.9) {
                    json!({"n": 1})
                } else {
                    json!("{broken")
                },
            })
            .collect();
        Answer {
            content: "text".to_owned(),
            tool_calls,
            usage: None,
            finish: match self.rng.random_range(0..20) {
                0 => FinishReason::Length,
                1 => FinishReason::ContentFilter,
                _ => FinishReason::Stop,
            },
        }
    }
}

/// Every call has exactly one result, right after its message, in the order of the calls.
fn assert_valid(messages: &[Message]) {
    let mut rest = messages.iter();
    while let Some(message) = rest.next() {
        match message {
            Message::Assistant { tool_calls, .. } => {
                for call in tool_calls {
                    let Some(Message::Tool { tool_call_id, .. }) = rest.next() else {
                        panic!("the call {} has no result: {messages:?}", call.id);
                    };
                    assert_eq!(*tool_call_id, call.id, "results out of order");
                }
            }
            Message::Tool { tool_call_id, .. } => panic!("{tool_call_id} answers nothing"),
            Message::System { .. } | Message::User { .. } => {}
        }
    }
}

#[test]
fn whatever_happens_the_transcript_stays_valid() {
    for seed in 0..100 {
        let mut world = World::new(seed);
        for step in 0..100 {
            world.step();
            if step % 9 == 0 {
                world.check_fold();
            }
        }
    }
}

#[test]
fn any_prefix_of_a_journal_can_be_taken_up() {
    for seed in 0..15 {
        let mut world = World::new(seed);
        for _ in 0..30 {
            world.step();
        }
        let whole = world.journal.clone();
        for keep in 0..whole.len() {
            // Calls that the lost records told of may be made again: this is another life.
            world.made.clear();
            world.journal = whole.clone();
            world.crash(keep);
            for _ in 0..200 {
                if world.session.running_turn().is_none() {
                    break;
                }
                world.progress();
            }
            assert_eq!(world.session.running_turn(), None, "the turn never ends");
            assert_valid(world.session.conversation());
        }
    }
}
