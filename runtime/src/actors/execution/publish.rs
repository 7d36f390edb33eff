//! Telling those who watch an execution, once what they are told is durable.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{ExecutionActor, State};
use crate::{
    events::Event,
    executions::{STARTED_SEQ, view},
    model::execution::{End, RunKey, RunRecord},
};

/// Something to tell.
pub(super) enum Notice {
    Started,
    Run(Arc<RunRecord>),
    /// With what it waits for: the step, and when the wait ends by itself.
    Waiting(Vec<(Arc<str>, Option<DateTime<Utc>>)>),
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
            let step = state.execution.step(key);
            let data = json!({
                "step": &*step.id,
                "type": &*step.uses,
                "item_index": state.execution.item_index(key),
                "visit": key.visit,
                "attempt": attempt,
                "started_at": view::time(at),
            });
            self.host.core.events.publish(
                id,
                Event {
                    seq: None,
                    name: "node.started",
                    data: Arc::new(data),
                },
            );
        }
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
                let wait = |(step, wake_at): &(Arc<str>, Option<DateTime<Utc>>)| json!({"step": &**step, "wake_at": wake_at.map(view::time)});
                data["waits"] = waits.iter().map(wait).collect();
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
        {
            let mut data = view::summary(
                state.execution.id(),
                &state.execution.graph().name,
                &state.trigger,
                status,
                state.execution.started_at(),
            );
            data["version"] = state.version.into();
            data
        }
    }
}
