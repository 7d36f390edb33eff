//! What follows when appends are durable, or never will be.

use std::collections::VecDeque;

use ractor::ActorRef;

use super::{ExecutionActor, Mark, Msg, State};
use crate::{
    actors::execution_manager as manager,
    executions::Ended,
    model::execution::{Decision, Effect},
    store::StoreError,
};

impl ExecutionActor {
    pub(super) fn saved(
        &self,
        myself: &ActorRef<Msg>,
        state: &mut State,
        mark: Mark,
        result: Result<(), StoreError>,
    ) {
        match result {
            Ok(()) => {
                state.saved = state.saved.max(mark);
                state
                    .progress
                    .send_modify(|progress| progress.stored = Some(Ok(())));
                self.release(myself, state);
            }
            Err(StoreError::Fenced | StoreError::Closed) => {
                state.progress.send_modify(|progress| {
                    progress.stored.get_or_insert(Err(StoreError::Fenced));
                });
                self.host.kill_runs(state.execution.id());
                myself.stop(None);
            }
            Err(error) => self.refused(myself, state, &error),
        }
    }

    /// The store will not take what this execution wrote, whatever is tried: it fails, and says so.
    pub(super) fn refused(&self, myself: &ActorRef<Msg>, state: &mut State, error: &StoreError) {
        tracing::error!(execution = %state.execution.id(), %error, "what the execution wrote was refused");
        self.host.kill_runs(state.execution.id());
        state.progress.send_modify(|progress| {
            progress.stored.get_or_insert(Err(error.clone()));
        });
        self.tell_manager(manager::Msg::Unsaveable(
            state.execution.id(),
            error.to_string(),
        ));
        myself.stop(None);
    }

    /// Performs, publishes and answers what was waiting for marks that are durable now.
    pub(super) fn release(&self, myself: &ActorRef<Msg>, state: &mut State) {
        self.publish_saved(state);
        if state.saved == state.appended && !state.put_off.is_empty() {
            self.tell(myself, Msg::Continue(std::mem::take(&mut state.put_off)));
        }
        let mut decision = Decision::default();
        while state
            .held
            .front()
            .is_some_and(|(mark, _)| *mark <= state.saved)
        {
            let Some((_, effect)) = state.held.pop_front() else {
                break;
            };
            match effect {
                Effect::Start { key, attempt, .. } => decision.effects.push(Effect::Start {
                    key,
                    attempt,
                    barrier: false,
                }),
                Effect::Expand { key, .. } => decision.effects.push(Effect::Expand {
                    key,
                    barrier: false,
                }),
                Effect::StartChild(_, child) => {
                    self.host.start_child(myself, state.execution.id(), *child)
                }
                Effect::CancelChild(child) => self.host.cancel_child(child),
                Effect::Respond(response) => state.progress.send_modify(|progress| {
                    progress.response.get_or_insert(response);
                }),
                Effect::Kill(_) | Effect::Delay(..) | Effect::WakeAt(..) => {}
            }
        }
        if state.leaving.is_some_and(|mark| mark <= state.saved) {
            self.leave(myself, state);
        } else if !decision.effects.is_empty()
            || (state.leaving.is_none() && self.may_passivate(state))
        {
            self.run(myself, state, decision, VecDeque::new());
        } else {
            self.look_again(myself, state);
        }
    }

    pub(super) fn leave(&self, myself: &ActorRef<Msg>, state: &mut State) {
        for reply in state.cancel_replies.drain(..) {
            drop(reply.send(Ok(())));
        }
        if let Some(end) = state.execution.ended() {
            let ended = Ended {
                status: end.status,
                output: state.output(&end.output),
                error: end.error.clone(),
            };
            if let Some(parent) = state.parent_id {
                self.host.child_ended(parent, state.execution.id(), &ended);
            }
            state
                .progress
                .send_modify(|progress| progress.ended = Some(ended));
        } else {
            let wake_at = state.execution.is_waiting().flatten();
            self.tell_manager(manager::Msg::Passivated(wake_at));
        }
        myself.stop(None);
    }
}
