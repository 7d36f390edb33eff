//! Telling those who watch an execution, once what they are told is durable.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{ExecutionActor, State};
use crate::{
    events::Event,
    executions::{STARTED_SEQ, view},
    model::execution::{End, InProgress, RunKey, RunRecord, Wait},
};

/// Something to tell.
pub(super) enum Notice {
    Started,
    Run(Arc<RunRecord>),
    Waiting(Vec<Wait>),
    Ended(End),
}

impl ExecutionActor {
    /// Publishes what became durable. Nothing is built when nobody watches.
    pub(super) fn publish_saved(&self, state: &mut State) {
        let watched = self.host.core.events.is_watched(state.execution.id().0);
        while state
            .notices
            .front()
            .is_some_and(|(mark, _)| *mark <= state.saved)
        {
            let Some((_, notice)) = state.notices.pop_front() else {
                return;
            };
            if watched {
                self.host
                    .core
                    .events
                    .publish(state.execution.id().0, self.event(state, notice));
            }
        }
    }

    /// Says that a node run begins. Live only.
    pub(super) fn publish_node_started(
        &self,
        state: &State,
        key: RunKey,
        attempt: u32,
        at: DateTime<Utc>,
    ) {
        let id = state.execution.id().0;
        if self.host.core.events.is_watched(id) {
            let data = Arc::new(node_started(state, key, attempt, at));
            self.host.core.events.publish(
                id,
                Event {
                    seq: None,
                    name: "node.started",
                    data,
                },
            );
        }
    }

    /// `node.started` of what is in progress, for those who begin to watch in the middle of it.
    pub(super) fn in_progress(&self, state: &State) -> Vec<Value> {
        let begun = state.execution.in_progress().into_iter();
        begun
            .filter_map(
                |InProgress {
                     key,
                     attempt,
                     started_at,
                 }| {
                    let at = started_at.or_else(|| state.began.get(&key).copied())?;
                    Some(node_started(state, key, attempt, at))
                },
            )
            .collect()
    }

    fn event(&self, state: &State, notice: Notice) -> Event {
        let execution = &state.execution;
        let (seq, name, data) = match notice {
            Notice::Started => (
                Some(STARTED_SEQ),
                "execution.started",
                self.summary(state, "running"),
            ),
            Notice::Run(record) => (
                Some(record.seq.into()),
                "node.finished",
                view::node_run(&record.to_row(execution, self.host.core.host_id)),
            ),
            Notice::Waiting(waits) => {
                let mut data = self.summary(state, "waiting");
                data["waits"] = waits.iter().map(view::wait).collect();
                (None, "execution.waiting", data)
            }
            Notice::Ended(end) => {
                let mut data = self.summary(state, end.status.as_str());
                data["finished_at"] = view::time(end.at);
                data["duration_ms"] = json!((end.at - execution.started_at()).num_milliseconds());
                data["output"] = state.output(&end.output);
                data["error"] = end.error.unwrap_or_default();
                (
                    Some(i64::from(execution.last_seq()) + 1),
                    "execution.finished",
                    data,
                )
            }
        };
        Event {
            seq,
            name,
            data: Arc::new(data),
        }
    }

    fn summary(&self, state: &State, status: &str) -> Value {
        view::summary(
            state.execution.id(),
            (&state.execution.graph().name, state.version),
            &state.trigger,
            status,
            state.execution.started_at(),
        )
    }
}

fn node_started(state: &State, key: RunKey, attempt: u32, at: DateTime<Utc>) -> Value {
    let step = state.execution.step(key);
    json!({
        "step": &*step.id,
        "type": &*step.uses,
        "item_index": state.execution.item_index(key),
        "visit": key.visit,
        "attempt": attempt,
        "started_at": view::time(at),
    })
}
