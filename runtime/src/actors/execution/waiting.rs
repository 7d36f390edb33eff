//! Timers, the time limit, and when an execution that only waits is given up by its actor.

use chrono::{DateTime, TimeDelta, Utc};
use ractor::ActorRef;

use super::{ExecutionActor, Msg, State};
use crate::{
    actors::AbortOnDrop,
    model::execution::{Event, RunKey},
};

/// A wait that ends sooner than this is not worth giving the actor up for.
const PASSIVATION_MIN: TimeDelta = TimeDelta::milliseconds(250);

impl ExecutionActor {
    /// Whether nothing is left to do for so long that the actor should go.
    pub(super) fn may_passivate(&self, state: &State) -> bool {
        let Some(wake_at) = state.execution.is_waiting() else {
            return false;
        };
        let now = Utc::now();
        state.held.is_empty()
            && state.children_starting.is_empty()
            && state.linger_until <= now
            && wake_at.is_none_or(|at| at > now + PASSIVATION_MIN)
    }

    /// While an execution that only waits is kept for a little longer: looks again when that is over.
    pub(super) fn look_again(&self, myself: &ActorRef<Msg>, state: &State) {
        let left = state.linger_until - Utc::now();
        if left > TimeDelta::zero() && state.execution.is_waiting().is_some() {
            myself.send_after(
                left.to_std().unwrap_or_default() + std::time::Duration::from_millis(1),
                || Msg::Idle,
            );
        }
    }

    pub(super) fn deadline_reached(&self, myself: &ActorRef<Msg>, state: &mut State) {
        let now = Utc::now();
        match state.execution.deadline() {
            // Waiting does not count; what was waited is known once the wait is over.
            Some(_) if state.execution.is_waiting().is_some() => {
                self.arm_deadline(myself, state, now + TimeDelta::seconds(1))
            }
            Some(deadline) if deadline > now => self.arm_deadline(myself, state, deadline),
            Some(_) => self.decide(myself, state, Event::TimedOut { at: now }),
            None => {}
        }
    }

    pub(super) fn arm_deadline(
        &self,
        myself: &ActorRef<Msg>,
        state: &mut State,
        at: DateTime<Utc>,
    ) {
        let after = (at - Utc::now()).to_std().unwrap_or_default();
        let timer = myself.send_after(after, || Msg::Deadline);
        // A timer holds on to its actor, so it must go with it.
        state.deadline = Some(AbortOnDrop(timer.abort_handle()));
    }

    pub(super) fn arm(
        &self,
        myself: &ActorRef<Msg>,
        state: &mut State,
        key: RunKey,
        at: DateTime<Utc>,
        message: fn(RunKey) -> Msg,
    ) {
        let (to, after) = (
            myself.clone(),
            (at - Utc::now()).to_std().unwrap_or_default(),
        );
        let timer = tokio::spawn(async move {
            tokio::time::sleep(after).await;
            // Wall clock and timer may differ by a little; a wait must never seem to end early.
            while Utc::now() < at {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            drop(to.cast(message(key)));
        });
        state.timers.insert(key, AbortOnDrop(timer.abort_handle()));
    }
}
