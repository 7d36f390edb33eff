//! Deciding: what each event leads to.

use std::time::Duration;

use callboard_runtime::{
    provider::{FinishReason, Message, ModelErrorKind, ToolCall, Usage},
    tool::{OnCrash, ToolError},
};
use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{
    ATTEMPTS_MAX, Answer, Backoff, CallPhase, CallTool, Decision, Effect, Event, ModelFailure,
    Partial, Phase, QUEUE_MAX, Queued, RECORDS_MAX, RESUMES_MAX, RETRY_AFTER_MAX, Refusal, Request,
    Session, Turn, advance::fault, bound_result,
};
use crate::{
    model::{
        record::{
            CallStatus, CancelRequested, Finish, Limit, MessageCompleted, MessageQueued,
            MessageRetracted, Record, ToolCallFinished, TurnCancelled, TurnError, TurnFailed,
            TurnLimited, TurnResumed, TurnStarted,
        },
        spec::DoubleTexting,
    },
    sessions::{Accepted, CancelMode},
};

/// One decision in the making.
pub(super) struct Deciding<'a> {
    pub session: &'a mut Session,
    pub at: DateTime<Utc>,
    pub decision: Decision,
}

impl Session {
    /// Decides what follows from `event`, which happened at `at`. Events about work that is not in flight any more
    /// change nothing.
    pub fn decide(&mut self, event: Event, at: DateTime<Utc>) -> Result<Decision, Refusal> {
        let mut deciding = Deciding {
            session: self,
            at,
            decision: Decision::default(),
        };
        match event {
            Event::MessageReceived { content, key } => deciding.message_received(content, key)?,
            Event::ModelAnswered { request, answer } => deciding.model_answered(request, answer),
            Event::ModelFailed {
                request,
                failure,
                partial,
            } => deciding.model_failed(request, failure, partial),
            Event::CallFinished { id, result } => deciding.call_finished(&id, result),
            Event::WallReached { turn, partial } => deciding.wall_reached(turn, partial),
            Event::CancelRequested { mode, partial } => deciding.cancel_requested(mode, partial)?,
            Event::Resumed => deciding.resumed(),
            Event::GivenUp { reason } => deciding.given_up(reason),
        }
        deciding.advance();
        Ok(deciding.decision)
    }
}

impl Deciding<'_> {
    /// Adds a record and takes it in.
    ///
    /// # Panics
    /// When the record is not legal here: the machine would write a journal that it cannot fold.
    pub fn record(&mut self, record: Record) {
        let seq = self.session.seq + 1;
        if let Err(fault) = self.session.apply(seq, &record, self.at) {
            panic!("decided on an illegal record: {fault}");
        }
        self.decision.records.push((seq, record));
    }

    pub fn effect(&mut self, effect: Effect) {
        self.decision.effects.push(effect);
    }

    fn message_received(
        &mut self,
        content: String,
        key: Option<(String, String)>,
    ) -> Result<(), Refusal> {
        if let Some((key, hash)) = &key
            && let Some(sent) = self.session.sent.get(key)
        {
            if sent.hash != *hash {
                return Err(Refusal::KeyReused);
            }
            self.decision.accepted = Some(Accepted {
                turn: sent.turn,
                after_seq: sent.after_seq,
            });
            return Ok(());
        }
        if self.session.seq >= RECORDS_MAX {
            return Err(Refusal::Full);
        }
        let turn = self.session.accepted + 1;
        let message = Message::User { content };
        let (idempotency_key, content_hash) = key.unzip();
        let after_seq = if self.session.turn.is_some() {
            let policy = self.session.agent.as_ref().map(|a| a.double_texting);
            if policy == Some(DoubleTexting::Reject) {
                return Err(Refusal::Running);
            }
            if self.session.queue.len() >= QUEUE_MAX {
                return Err(Refusal::QueueFull);
            }
            self.record(Record::MessageQueued(MessageQueued {
                turn,
                message,
                idempotency_key,
                content_hash,
            }));
            self.session.seq
        } else {
            let after_seq = self.session.seq;
            self.start_turn(Queued {
                turn,
                message,
                key: idempotency_key,
                hash: content_hash,
            });
            after_seq
        };
        self.decision.accepted = Some(Accepted { turn, after_seq });
        Ok(())
    }

    /// Begins a turn with the agent as it is now.
    pub fn start_turn(&mut self, next: Queued) {
        let agent = self.session.agent.clone();
        let queued = self.session.queue.front() == Some(&next);
        self.record(Record::TurnStarted(TurnStarted {
            turn: next.turn,
            message: next.message,
            agent_version: agent.as_ref().map_or(0, |agent| agent.version),
            queued,
            idempotency_key: next.key,
            content_hash: next.hash,
        }));
        self.session.set_turn_agent(agent);
    }

    /// The turn in progress, if `request` is what it waits for; the request is not in flight any more.
    fn take_request(&mut self, request: u64) -> Option<(&mut Turn, Request)> {
        let turn = self.session.turn.as_mut()?;
        if turn.request.as_ref()?.number != request {
            return None;
        }
        let request = turn.request.take()?;
        Some((turn, request))
    }

    fn model_answered(&mut self, request: u64, answer: Answer) {
        let Some((_, request)) = self.take_request(request) else {
            return;
        };
        let finish = match answer.finish {
            FinishReason::Length => Finish::Length,
            FinishReason::ContentFilter => Finish::ContentFilter,
            FinishReason::Stop | FinishReason::ToolCalls if answer.tool_calls.is_empty() => {
                Finish::Stop
            }
            FinishReason::Stop | FinishReason::ToolCalls => Finish::ToolCalls,
        };
        // Calls of an answer that was cut may be cut themselves.
        let tool_calls = if finish == Finish::ToolCalls {
            self.with_unique_ids(answer.tool_calls)
        } else {
            Vec::new()
        };
        self.complete_message(request, answer.content, tool_calls, answer.usage, finish);
    }

    /// Gives an id to each call whose id is missing, too long, or not the first of its name in this session.
    fn with_unique_ids(&self, mut calls: Vec<ToolCall>) -> Vec<ToolCall> {
        let mut seen = std::collections::HashSet::new();
        for (index, call) in calls.iter_mut().enumerate() {
            if call.id.is_empty()
                || call.id.len() > 128
                || self.session.call_ids.contains(&call.id)
                || seen.contains(&call.id)
            {
                let fresh = |n: usize| format!("call_{}_{n}", self.session.seq + 1);
                let mut n = index + 1;
                while self.session.call_ids.contains(&fresh(n)) || seen.contains(&fresh(n)) {
                    n += 1;
                }
                call.id = fresh(n);
            }
            seen.insert(call.id.clone());
        }
        calls
    }

    fn complete_message(
        &mut self,
        request: Request,
        content: String,
        tool_calls: Vec<ToolCall>,
        usage: Option<Usage>,
        finish: Finish,
    ) {
        let Some(turn) = &self.session.turn else {
            return;
        };
        let estimate = || Usage {
            input_tokens: request.chars.div_ceil(4),
            output_tokens: (content.chars().count() as u64).div_ceil(4),
            ..Usage::default()
        };
        self.record(Record::MessageCompleted(MessageCompleted {
            turn: turn.number,
            message_id: request.message_id,
            usage: usage.unwrap_or_else(estimate),
            usage_estimated: usage.is_none(),
            message: Message::Assistant {
                content,
                tool_calls,
            },
            model: request.model,
            finish,
        }));
    }

    fn model_failed(&mut self, request: u64, failure: ModelFailure, partial: Partial) {
        let Some((turn, request)) = self.take_request(request) else {
            return;
        };
        turn.attempts += 1;
        let models = turn.agent.as_ref().map_or(0, |agent| agent.models.len());
        let next_model = turn.model + 1 < models;
        // A wait that long is better spent on another model.
        let too_long = next_model
            && failure
                .retry_after
                .is_some_and(|wait| wait > RETRY_AFTER_MAX);
        if failure.kind.is_retryable() && turn.attempts < ATTEMPTS_MAX && !too_long {
            turn.backoff = Some(Backoff {
                failures: turn.attempts,
                at_least: failure
                    .retry_after
                    .unwrap_or(Duration::ZERO)
                    .min(RETRY_AFTER_MAX),
            });
        } else if next_model && may_fall_back(failure.kind) {
            turn.model += 1;
            turn.attempts = 0;
            turn.backoff = None;
        } else {
            return self.model_failed_for_good(request, failure, partial);
        }
        if partial.streamed {
            let turn = turn.number;
            self.record(Record::MessageRetracted(MessageRetracted {
                turn,
                message_id: request.message_id,
                reason: code(failure.kind),
            }));
        }
    }

    fn model_failed_for_good(&mut self, request: Request, failure: ModelFailure, partial: Partial) {
        if !partial.text.is_empty() {
            self.complete_message(request, partial.text, Vec::new(), None, Finish::Failed);
        }
        self.fail(&code(failure.kind), failure.message);
    }

    fn call_finished(&mut self, id: &str, result: Result<Value, ToolError>) {
        let Some(Turn {
            number,
            phase: Phase::Calls(calls),
            ..
        }) = &self.session.turn
        else {
            return;
        };
        let Some(call) = calls
            .iter()
            .find(|call| call.call.id == id && call.status == CallPhase::Started)
        else {
            return;
        };
        let record = finished(*number, &call.call, result);
        self.record(record);
    }

    fn wall_reached(&mut self, number: i64, partial: Partial) {
        let Some(turn) = &self.session.turn else {
            return;
        };
        if turn.number != number {
            return;
        }
        let wall = turn
            .agent
            .as_ref()
            .map_or(Duration::ZERO, |agent| agent.budgets.wall);
        let max = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        self.stop_work(Finish::Limited, partial, "limit", "the turn's time is up");
        self.limit(Limit {
            limit: "wall".to_owned(),
            used: max,
            max,
        });
    }

    fn cancel_requested(&mut self, mode: CancelMode, partial: Partial) -> Result<(), Refusal> {
        let Some(turn) = &self.session.turn else {
            return Err(Refusal::Idle);
        };
        let number = turn.number;
        let calls_in_flight = matches!(&turn.phase, Phase::Calls(calls)
            if calls.iter().any(|call| call.status == CallPhase::Started));
        if mode == CancelMode::AfterTool && calls_in_flight {
            if !turn.cancel_requested {
                self.record(Record::CancelRequested(CancelRequested {
                    turn: number,
                    mode: "after_tool".to_owned(),
                }));
            }
            return Ok(());
        }
        self.stop_work(
            Finish::Cancelled,
            partial,
            "cancelled",
            "the turn was cancelled",
        );
        self.cancelled();
        Ok(())
    }

    /// Takes up what a fold found unfinished.
    fn resumed(&mut self) {
        let Some(turn) = &self.session.turn else {
            return;
        };
        let (number, attempt) = (turn.number, turn.resumes + 1);
        self.record(Record::TurnResumed(TurnResumed {
            turn: number,
            attempt,
        }));
        if attempt > RESUMES_MAX {
            return self.given_up(format!(
                "the turn was interrupted {RESUMES_MAX} times and did not end"
            ));
        }
        for call in self.calls_in(|status| *status == CallPhase::Started) {
            let Some(turn) = &self.session.turn else {
                return;
            };
            let policy = turn
                .agent
                .as_ref()
                .map_or(OnCrash::Fail, |agent| agent.on_crash(&call.name));
            // Its own mark may have been the last thing that was saved of a call that is refused unrun.
            if let Some(error) = turn.agent.as_ref().and_then(|agent| fault(agent, &call)) {
                self.record(finished(number, &call, Err(error)));
                continue;
            }
            match policy {
                OnCrash::Retry if !turn.cancel_requested => self.call_tool(call),
                OnCrash::Retry | OnCrash::Fail | OnCrash::Ask => {
                    let error = ToolError::new(
                        "unknown_after_crash",
                        "the call was interrupted; whether it took effect is unknown",
                    );
                    self.record(finished(number, &call, Err(error)));
                }
            }
        }
    }

    fn given_up(&mut self, reason: String) {
        if self.session.turn.is_some() {
            self.stop_work(
                Finish::Failed,
                Partial::default(),
                "unknown_after_crash",
                "the turn was given up",
            );
            self.fail("crashed", reason);
        }
    }

    /// Runs a call that is marked as started.
    pub fn call_tool(&mut self, call: ToolCall) {
        let Some(turn) = &self.session.turn else {
            return;
        };
        let idempotency_key = format!("{}/{}/{}", self.session.id, turn.number, call.id);
        self.effect(Effect::CallTool(CallTool {
            call,
            idempotency_key,
        }));
    }

    /// Calls of the turn in the given state, in order.
    pub fn calls_in(&self, which: impl Fn(&CallPhase) -> bool) -> Vec<ToolCall> {
        match &self.session.turn {
            Some(Turn {
                phase: Phase::Calls(calls),
                ..
            }) => calls
                .iter()
                .filter(|call| which(&call.status))
                .map(|call| call.call.clone())
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Stops what is in flight: keeps what there is of a message, and closes every open call.
    pub fn stop_work(&mut self, finish: Finish, partial: Partial, code: &str, message: &str) {
        self.effect(Effect::StopWork);
        let Some(turn) = &mut self.session.turn else {
            return;
        };
        if let Some(request) = turn.request.take()
            && !partial.text.is_empty()
        {
            self.complete_message(request, partial.text, Vec::new(), None, finish);
        }
        self.close_calls(code, message);
    }

    /// Gives every open call its result: cancelled.
    pub fn close_calls(&mut self, code: &str, message: &str) {
        for call in self.calls_in(|status| !status.is_finished()) {
            let Some(turn) = &self.session.turn else {
                return;
            };
            self.record(Record::ToolCallFinished(ToolCallFinished {
                turn: turn.number,
                id: call.id,
                name: call.name,
                status: CallStatus::Cancelled,
                result: None,
                error: Some(ToolError::new(code, message)),
            }));
        }
    }

    pub fn fail(&mut self, code: &str, message: String) {
        self.end(|turn, usage| {
            Record::TurnFailed(TurnFailed {
                turn,
                error: TurnError {
                    code: code.to_owned(),
                    message,
                },
                usage,
            })
        });
    }

    pub fn limit(&mut self, limit: Limit) {
        self.end(|turn, usage| Record::TurnLimited(TurnLimited { turn, limit, usage }));
    }

    pub fn cancelled(&mut self) {
        self.end(|turn, usage| Record::TurnCancelled(TurnCancelled { turn, usage }));
    }

    /// Ends the turn with the record that `make` gives.
    pub fn end(&mut self, make: impl FnOnce(i64, crate::sessions::TurnUsage) -> Record) {
        let Some(turn) = &self.session.turn else {
            return;
        };
        let (number, usage) = (turn.number, turn.usage);
        self.record(make(number, usage));
        self.effect(Effect::TurnEnded(number));
    }
}

/// The record of a call's result, within its bounds.
pub(super) fn finished(turn: i64, call: &ToolCall, result: Result<Value, ToolError>) -> Record {
    let (status, result, error) = match result {
        Ok(value) => (CallStatus::Succeeded, Some(bound_result(value)), None),
        Err(error) if error.code == "cancelled" => (CallStatus::Cancelled, None, Some(error)),
        Err(error) => (CallStatus::Failed, None, Some(error)),
    };
    Record::ToolCallFinished(ToolCallFinished {
        turn,
        id: call.id.clone(),
        name: call.name.clone(),
        status,
        result,
        error,
    })
}

/// Whether another model may do better. One that refuses the request as wrong or withholds the answer is not
/// asked to be outdone.
fn may_fall_back(kind: ModelErrorKind) -> bool {
    !matches!(
        kind,
        ModelErrorKind::Rejected
            | ModelErrorKind::ContextOverflow
            | ModelErrorKind::ContentFiltered
    )
}

/// The stable name of a kind of failure.
pub(super) fn code(kind: ModelErrorKind) -> String {
    match serde_json::to_value(kind) {
        Ok(Value::String(name)) => name,
        _ => "model_failed".to_owned(),
    }
}
