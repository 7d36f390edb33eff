//! Folding: what each record changes. The only place where a session changes by what is journaled.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Call, CallPhase, Ended, Phase, Queued, Sent, Session, Turn, add, since};
use crate::{
    model::{
        record::{
            AnswerRejected, CallStatus, MessageCompleted, MessageQueued, Record, ToolCallFinished,
            TurnStarted,
        },
        transcript::observation,
    },
    sessions::{TurnStatus, TurnUsage},
};
use callboard_runtime::provider::Message;

impl Session {
    /// Takes in the record at place `seq`, made at `at`. An error is a sentence: the journal is not one that this
    /// machine writes.
    pub fn apply(&mut self, seq: i64, record: &Record, at: DateTime<Utc>) -> Result<(), String> {
        if seq != self.seq + 1 {
            return Err(format!("record {seq} follows record {}", self.seq));
        }
        match record {
            Record::MessageQueued(queued) => self.apply_queued(seq, queued),
            Record::TurnStarted(started) => self.apply_started(seq, started, at)?,
            other => self.apply_in_turn(other, at)?,
        }
        self.seq = seq;
        Ok(())
    }

    fn apply_queued(&mut self, seq: i64, queued: &MessageQueued) {
        self.accepted = queued.turn;
        self.remember(
            &queued.idempotency_key,
            &queued.content_hash,
            queued.turn,
            seq,
        );
        self.queue.push_back(Queued {
            turn: queued.turn,
            message: queued.message.clone(),
            key: queued.idempotency_key.clone(),
            hash: queued.content_hash.clone(),
        });
    }

    fn apply_started(
        &mut self,
        seq: i64,
        started: &TurnStarted,
        at: DateTime<Utc>,
    ) -> Result<(), String> {
        if self.turn.is_some() || started.turn != self.ended.len() as i64 + 1 {
            return Err(format!("turn {} begins out of turn", started.turn));
        }
        if self.queue.front().is_some_and(|q| q.turn == started.turn) {
            self.queue.pop_front();
        }
        self.accepted = self.accepted.max(started.turn);
        self.remember(
            &started.idempotency_key,
            &started.content_hash,
            started.turn,
            seq - 1,
        );
        self.turn_starts.push(self.conversation.len());
        self.conversation.push(started.message.clone());
        self.turn = Some(Turn {
            number: started.turn,
            agent_version: started.agent_version,
            usage: TurnUsage::default(),
            phase: Phase::Model,
            repairs: 0,
            resumes: 0,
            cancel_requested: false,
            calls_spent: false,
            answer: None,
            ran: Duration::ZERO,
            last_at: at,
            agent: None,
            model: 0,
            attempts: 0,
            backoff: None,
            request: None,
        });
        Ok(())
    }

    fn remember(&mut self, key: &Option<String>, hash: &Option<String>, turn: i64, after_seq: i64) {
        if let (Some(key), Some(hash)) = (key, hash) {
            self.sent.entry(key.clone()).or_insert_with(|| Sent {
                hash: hash.clone(),
                turn,
                after_seq,
            });
        }
    }

    fn apply_in_turn(&mut self, record: &Record, at: DateTime<Utc>) -> Result<(), String> {
        let Some(turn) = &mut self.turn else {
            return Err(format!("`{}` outside of a turn", record.kind()));
        };
        if !matches!(record, Record::TurnResumed(_)) {
            turn.ran += since(turn.last_at, at);
        }
        turn.last_at = turn.last_at.max(at);
        match record {
            Record::TurnResumed(resumed) => turn.resumes = resumed.attempt,
            Record::CancelRequested(_) => turn.cancel_requested = true,
            Record::MessageRetracted(_) => {
                turn.usage.model_calls += 1;
                turn.request = None;
            }
            Record::MessageCompleted(completed) => self.apply_message(completed)?,
            Record::AnswerRejected(rejected) => self.apply_rejected(rejected)?,
            Record::ToolCallStarted(started) => {
                turn.usage.tool_calls += 1;
                call(turn, &started.id)?.status = CallPhase::Started;
            }
            Record::ToolCallFinished(finished) => self.apply_finished(finished)?,
            Record::TurnCompleted(end) => {
                self.end(TurnStatus::Completed, end.usage, |e| {
                    e.data = end.data.clone()
                })?;
            }
            Record::TurnFailed(end) => {
                self.end(TurnStatus::Failed, end.usage, |e| {
                    e.error = Some(end.error.clone());
                })?;
            }
            Record::TurnCancelled(end) => self.end(TurnStatus::Cancelled, end.usage, |_| ())?,
            Record::TurnLimited(end) => {
                self.end(TurnStatus::Limited, end.usage, |e| {
                    e.limit = Some(end.limit.clone());
                })?;
            }
            Record::MessageQueued(_) | Record::TurnStarted(_) => {}
        }
        Ok(())
    }

    fn apply_message(&mut self, completed: &MessageCompleted) -> Result<(), String> {
        let Some(turn) = &mut self.turn else {
            return Err("a message outside of a turn".to_owned());
        };
        let Message::Assistant { tool_calls, .. } = &completed.message else {
            return Err("an answer that is not the assistant's".to_owned());
        };
        if turn.phase != Phase::Model {
            return Err("an answer that nothing asked for".to_owned());
        }
        turn.usage.add_model_call(completed.usage);
        turn.answer = Some(self.conversation.len());
        turn.request = None;
        turn.attempts = 0;
        turn.backoff = None;
        turn.phase = if tool_calls.is_empty() {
            Phase::Answered(completed.finish)
        } else {
            self.call_ids
                .extend(tool_calls.iter().map(|call| call.id.clone()));
            Phase::Calls(
                tool_calls
                    .iter()
                    .map(|call| Call {
                        call: call.clone(),
                        status: CallPhase::Waiting,
                    })
                    .collect(),
            )
        };
        self.conversation.push(completed.message.clone());
        Ok(())
    }

    fn apply_rejected(&mut self, rejected: &AnswerRejected) -> Result<(), String> {
        let Some(turn) = &mut self.turn else {
            return Err("a rejection outside of a turn".to_owned());
        };
        turn.repairs = rejected.attempt;
        turn.phase = Phase::Model;
        self.conversation.push(Message::User {
            content: rejected.reason.clone(),
        });
        Ok(())
    }

    /// Results reach the conversation when the last of them is there, in the order of the calls.
    fn apply_finished(&mut self, finished: &ToolCallFinished) -> Result<(), String> {
        let Some(turn) = &mut self.turn else {
            return Err("a result outside of a turn".to_owned());
        };
        let call = call(turn, &finished.id)?;
        if call.status.is_finished() {
            return Err(format!("the call {} has two results", finished.id));
        }
        call.status = CallPhase::Finished {
            text: observation(
                finished.status,
                finished.result.as_ref(),
                finished.error.as_ref(),
            ),
        };
        if finished.status == CallStatus::Cancelled
            && finished
                .error
                .as_ref()
                .is_some_and(|error| error.code == "limit")
        {
            turn.calls_spent = true;
        }
        if let Phase::Calls(calls) = &turn.phase
            && calls.iter().all(|call| call.status.is_finished())
        {
            let Phase::Calls(calls) = std::mem::replace(&mut turn.phase, Phase::Model) else {
                return Ok(());
            };
            self.conversation
                .extend(calls.into_iter().filter_map(|call| match call.status {
                    CallPhase::Finished { text } => Some(Message::Tool {
                        tool_call_id: call.call.id,
                        content: text,
                    }),
                    _ => None,
                }));
        }
        Ok(())
    }

    fn end(
        &mut self,
        status: TurnStatus,
        usage: TurnUsage,
        fill: impl FnOnce(&mut Ended),
    ) -> Result<(), String> {
        let Some(turn) = self.turn.take() else {
            return Err("the end of no turn".to_owned());
        };
        if matches!(turn.phase, Phase::Calls(_)) {
            return Err(format!("turn {} ends with open calls", turn.number));
        }
        self.usage = add(self.usage, usage);
        let mut ended = Ended {
            status,
            answer: turn.answer,
            data: None,
            limit: None,
            error: None,
            usage,
        };
        fill(&mut ended);
        self.ended.push(ended);
        Ok(())
    }
}

fn call<'a>(turn: &'a mut Turn, id: &str) -> Result<&'a mut Call, String> {
    let Phase::Calls(calls) = &mut turn.phase else {
        return Err(format!("the call {id} was not asked for"));
    };
    calls
        .iter_mut()
        .find(|call| call.call.id == id)
        .ok_or_else(|| format!("the call {id} was not asked for"))
}
