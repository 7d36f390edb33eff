//! Telling those who watch an execution, once what they are told is durable.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{ExecutionActor, State};
use crate::{
    events::Event,
    executions::{STARTED_SEQ, view},
    model::execution::{End, RunRecord},
    node::NodeRunIdentity,
};

/// Something to tell.
pub(super) enum Notice {
    Started,
    Run(Arc<RunRecord>),
    Waiting,
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
        run: &NodeRunIdentity,
        at: DateTime<Utc>,
    ) {
        let id = state.execution.id().0;
        if self.host.core.events.is_watched(id) {
            let data = json!({"step": &*run.step, "visit": run.visit, "attempt": run.attempt, "started_at": view::time(at)});
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
            Notice::Waiting => (None, "execution.waiting", self.summary(state, "waiting")),
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
            &state.execution.graph().name,
            &state.trigger,
            status,
            state.execution.started_at(),
        )
    }
}
