//! Advancing: what a session owes when nothing else happens. Does nothing while it waits for work in flight.

use callboard_runtime::{provider::ToolCall, tool::ToolError};
use serde_json::Value;

use super::{
    AskModel, CallPhase, Effect, PARALLEL_CALLS_MAX, Phase, REPAIRS_MAX, Request, Turn, answer,
    decide::{Deciding, finished},
};
use crate::model::{
    record::{
        AnswerRejected, CallStatus, Finish, Limit, Record, ToolCallFinished, ToolCallStarted,
        TurnCompleted,
    },
    spec::AgentSpec,
};

/// What to do next.
enum Next {
    Wait,
    StartQueued,
    FailWithoutAgent,
    Cancel,
    Limit(Limit),
    Ask,
    Conclude(Finish),
    Schedule,
}

impl Deciding<'_> {
    /// Goes on until everything that can be done without waiting is done.
    pub fn advance(&mut self) {
        loop {
            match self.next() {
                Next::Wait => return,
                Next::StartQueued => self.start_queued(),
                Next::FailWithoutAgent => {
                    self.close_calls("cancelled", "the agent is gone");
                    self.fail(
                        "agent_unavailable",
                        "the agent does not exist any more, is disabled or cannot be used".into(),
                    );
                }
                Next::Cancel => {
                    self.close_calls("cancelled", "the turn was cancelled");
                    self.cancelled();
                }
                Next::Limit(limit) => {
                    self.close_calls("limit", "the turn's budget is spent");
                    self.limit(limit);
                }
                Next::Ask => return self.ask(),
                Next::Conclude(finish) => self.conclude(finish),
                Next::Schedule => {
                    if !self.schedule() {
                        return;
                    }
                }
            }
        }
    }

    fn next(&self) -> Next {
        let Some(turn) = &self.session.turn else {
            return match self.session.queue.front() {
                Some(_) => Next::StartQueued,
                None => Next::Wait,
            };
        };
        if turn.request.is_some() {
            return Next::Wait;
        }
        let started = matches!(&turn.phase, Phase::Calls(calls)
            if calls.iter().any(|call| call.status == CallPhase::Started));
        let Some(agent) = &turn.agent else {
            // Calls in flight report first.
            return if started {
                Next::Wait
            } else {
                Next::FailWithoutAgent
            };
        };
        if turn.cancel_requested {
            return if started { Next::Wait } else { Next::Cancel };
        }
        match &turn.phase {
            Phase::Model => match spent(turn, agent) {
                Some(limit) => Next::Limit(limit),
                None => Next::Ask,
            },
            Phase::Answered(finish) => Next::Conclude(*finish),
            Phase::Calls(_) if !started && tokens(turn, agent, true).is_some() => {
                tokens(turn, agent, true).map_or(Next::Wait, Next::Limit)
            }
            Phase::Calls(_) => Next::Schedule,
        }
    }

    fn start_queued(&mut self) {
        if let Some(queued) = self.session.queue.front().cloned() {
            self.start_turn(queued);
        }
    }

    fn ask(&mut self) {
        let base_seq = self.session.seq;
        let Some(body) = self.session.request_body() else {
            return;
        };
        self.session.requests += 1;
        let number = self.session.requests;
        let Some(Turn {
            agent: Some(agent),
            model,
            backoff,
            request,
            ..
        }) = &mut self.session.turn
        else {
            return;
        };
        let model = agent.models[*model].clone();
        let message_id = format!("msg_{base_seq}");
        *request = Some(Request {
            number,
            message_id: message_id.clone(),
            model: model.to_string(),
            chars: super::request::chars(&body),
        });
        let ask = AskModel {
            request: number,
            message_id,
            base_seq,
            backoff: *backoff,
            model,
            request_body: body,
        };
        self.effect(Effect::AskModel(Box::new(ask)));
    }

    /// What follows an answer without calls.
    fn conclude(&mut self, finish: Finish) {
        let Some(turn) = &self.session.turn else {
            return;
        };
        let Some(agent) = turn.agent.clone() else {
            return;
        };
        let over = tokens(turn, &agent, true);
        match finish {
            Finish::Length => {
                return self.fail(
                    "output_limit",
                    "the model ran into its output limit; the answer is cut".to_owned(),
                );
            }
            Finish::ContentFilter => {
                return self.fail(
                    "content_filtered",
                    "the provider withheld the answer".to_owned(),
                );
            }
            Finish::Cancelled => return self.cancelled(),
            Finish::Limited | Finish::Failed => {
                return self.fail("crashed", "the turn was interrupted at its end".to_owned());
            }
            Finish::Stop | Finish::ToolCalls => {}
        }
        if let Some(limit) = over {
            return self.limit(limit);
        }
        match &agent.output {
            None => self.complete(None),
            Some(output) => match answer::read(self.session.last_answer(), output) {
                Ok(data) => self.complete(Some(data)),
                Err(fault) => self.reject(fault),
            },
        }
    }

    fn complete(&mut self, data: Option<Value>) {
        self.end(|turn, usage| Record::TurnCompleted(TurnCompleted { turn, usage, data }));
    }

    fn reject(&mut self, fault: answer::Fault) {
        let Some(turn) = &self.session.turn else {
            return;
        };
        if turn.repairs >= REPAIRS_MAX {
            return self.fail("malformed_output", fault.summary);
        }
        let rejected = AnswerRejected {
            turn: turn.number,
            attempt: turn.repairs + 1,
            reason: fault.for_model,
        };
        self.record(Record::AnswerRejected(rejected));
    }

    /// Starts what may start and closes what cannot. Says whether the phase changed.
    ///
    /// Calls start in order: one that must run alone waits for those before it and holds up those after it.
    fn schedule(&mut self) -> bool {
        loop {
            let Some(Turn {
                number,
                phase: Phase::Calls(calls),
                agent: Some(agent),
                usage,
                ..
            }) = &self.session.turn
            else {
                return true;
            };
            let number = *number;
            let exclusive = |name: &str| agent.tool(name).is_some_and(|t| t.spec.exclusive);
            let running: Vec<_> = calls
                .iter()
                .filter(|call| call.status == CallPhase::Started)
                .collect();
            let Some(next) = calls
                .iter()
                .find(|call| call.status == CallPhase::Waiting)
                .map(|call| call.call.clone())
            else {
                return false;
            };
            if usage.tool_calls >= agent.budgets.tool_calls {
                self.record(Record::ToolCallFinished(ToolCallFinished {
                    turn: number,
                    id: next.id,
                    name: next.name,
                    status: CallStatus::Cancelled,
                    result: None,
                    error: Some(ToolError::new("limit", "the budget of tool calls is spent")),
                }));
                continue;
            }
            let fault = fault(agent, &next);
            let free = running.len() < PARALLEL_CALLS_MAX
                && !running.iter().any(|call| exclusive(&call.call.name))
                && (running.is_empty() || !exclusive(&next.name));
            if fault.is_none() && !free {
                return false;
            }
            self.record(Record::ToolCallStarted(ToolCallStarted {
                turn: number,
                id: next.id.clone(),
                name: next.name.clone(),
                arguments: next.arguments.clone(),
            }));
            match fault {
                Some(error) => self.record(finished(number, &next, Err(error))),
                None => self.call_tool(next),
            }
        }
    }
}

/// Why a call cannot be made as the model wants it.
pub(super) fn fault(agent: &AgentSpec, call: &ToolCall) -> Option<ToolError> {
    let Some(tool) = agent.tool(&call.name) else {
        let known: Vec<_> = agent.tools.iter().map(|t| t.spec.name.as_str()).collect();
        return Some(ToolError::new(
            "not_found",
            format!(
                "there is no tool `{}`; there is {}",
                call.name.chars().take(64).collect::<String>(),
                if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                }
            ),
        ));
    };
    if !call.arguments.is_object() {
        return Some(ToolError::new(
            "invalid_args",
            "the arguments are not a JSON object",
        ));
    }
    let violations = tool.schema.violations(&call.arguments);
    (!violations.is_empty())
        .then(|| ToolError::new("invalid_args", answer::describe(&violations, "arguments")))
}

/// The budget that allows no further request, if there is one.
fn spent(turn: &Turn, agent: &AgentSpec) -> Option<Limit> {
    if turn.calls_spent {
        return Some(Limit {
            limit: "tool_calls".to_owned(),
            used: turn.usage.tool_calls,
            max: agent.budgets.tool_calls,
        });
    }
    if turn.usage.model_calls >= agent.budgets.model_calls {
        return Some(Limit {
            limit: "model_calls".to_owned(),
            used: turn.usage.model_calls,
            max: agent.budgets.model_calls,
        });
    }
    tokens(turn, agent, false)
}

/// The token budget, if it is spent, or overspent.
fn tokens(turn: &Turn, agent: &AgentSpec, over: bool) -> Option<Limit> {
    let max = agent.budgets.tokens?;
    let used = turn.usage.input_tokens + turn.usage.output_tokens;
    (used > max || (used == max && !over)).then(|| Limit {
        limit: "tokens".to_owned(),
        used,
        max,
    })
}
