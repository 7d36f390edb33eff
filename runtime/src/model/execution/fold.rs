//! From stored rows back to state.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{
    Child, Execution, RunKey, RunRecord, RunState, WaitFor, Waiting, journal::read_ports,
    map::Mapping,
};
use crate::{
    id::ExecutionId,
    item::Item,
    model::graph::Graph,
    store::rows::{NodeRunRow, NodeRunStatus, WaitRow},
};

/// A stored wait, until the visit it belongs to has begun.
#[derive(Debug)]
pub(super) enum Restored {
    Timer(DateTime<Utc>, DateTime<Utc>),
    Child(Box<Child>, DateTime<Utc>),
    Map(Vec<Item>, DateTime<Utc>),
    Started,
}

/// Why rows give no state. None of it can happen to rows that this engine wrote for this graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// A row names a step that the pinned version does not have.
    #[error("row {seq} names the unknown step `{step}`")]
    UnknownStep {
        /// The row.
        seq: i32,
        /// The name.
        step: String,
    },
    /// A row records a visit that nothing led to.
    #[error("row {seq} records a visit to `{step}` that nothing led to")]
    Unexpected {
        /// The row.
        seq: i32,
        /// The step.
        step: String,
    },
    /// A row's JSON cannot be read.
    #[error("row {seq} cannot be read: {reason}")]
    Unreadable {
        /// The row.
        seq: i32,
        /// Why.
        reason: String,
    },
    /// A wait's JSON cannot be read.
    #[error("wait `{key}` cannot be read")]
    UnreadableWait {
        /// Its key.
        key: String,
    },
}

impl Execution {
    /// The state that these rows, in `seq` order, and these open waits tell of. No rows: not begun.
    pub fn fold(
        id: ExecutionId,
        graph: Arc<Graph>,
        started_at: DateTime<Utc>,
        rows: &[NodeRunRow],
        waits: &[WaitRow],
    ) -> Result<Self, FoldError> {
        let mut execution = Self::new(id, graph, started_at);
        for wait in waits {
            execution
                .restored
                .insert(wait.key.clone(), read_wait(wait)?);
        }
        for row in rows {
            execution.fold_row(row)?;
        }
        Ok(execution)
    }

    fn fold_row(&mut self, row: &NodeRunRow) -> Result<(), FoldError> {
        let root = row.seq == 0;
        let Some(frame) = self
            .scopes
            .get(row.scope.as_str())
            .copied()
            .or(root.then_some(0))
        else {
            // A body that has ended: its map's own row says what came of it. Only the joins that were skipped with
            // its last step are recorded after that.
            let is_recorded = |skip: &RunRecord| {
                (&*skip.scope, &*skip.step, skip.key.visit as i32)
                    == (row.scope.as_str(), row.step.as_str(), row.visit)
            };
            self.skips.retain(|skip| !is_recorded(skip));
            let place = (row.seq, &*row.node_type, &*row.scope);
            self.pass(place, row.started_at, row.finished_at);
            return Ok(());
        };
        let body = if root {
            &self.graph.body
        } else {
            &self.frame(frame).body
        };
        let unknown = || FoldError::UnknownStep {
            seq: row.seq,
            step: row.step.clone(),
        };
        let step = if root {
            0
        } else {
            body.find(&row.step).ok_or_else(unknown)?
        };
        let definition = &body.steps[step];
        let unreadable = |error: serde_json::Error| FoldError::Unreadable {
            seq: row.seq,
            reason: error.to_string(),
        };
        let record = RunRecord {
            key: RunKey {
                frame,
                step,
                visit: row.visit as u32,
            },
            attempt: row.attempt as u32,
            status: row.status,
            ports: read_ports(row.port.as_deref(), row.output.as_deref()).map_err(unreadable)?,
            bytes: row.output.as_deref().map_or(0, str::len),
            error: row
                .error
                .as_deref()
                .map(serde_json::from_str)
                .transpose()
                .map_err(unreadable)?,
            retry_at: row.retry_at,
            seq: row.seq,
            parent_seq: row.parent_seq,
            started_at: row.started_at,
            finished_at: row.finished_at,
            step: definition.id.clone(),
            uses: definition.uses.clone(),
            scope: row.scope.as_str().into(),
            item_index: row.item_index.map(|index| index as usize),
        };
        if !root && row.status != NodeRunStatus::Skipped && !self.runs.contains_key(&record.key) {
            return Err(FoldError::Unexpected {
                seq: row.seq,
                step: row.step.clone(),
            });
        }
        self.apply(&record);
        Ok(())
    }

    /// A visit began while folding: a wait may be stored for it.
    pub(super) fn restore(&mut self, key: RunKey) {
        let wait_key = self.wait_key(key);
        let (started_at, for_what) = match self.restored.remove(&wait_key) {
            Some(Restored::Timer(until, started_at)) => (started_at, WaitFor::Time(until)),
            Some(Restored::Child(child, started_at)) => (started_at, WaitFor::Child(child)),
            Some(Restored::Map(elements, started_at)) => {
                return self.begin_map(key, Mapping::new(elements, started_at));
            }
            Some(Restored::Started) | None => return,
        };
        if let Some(run) = self.runs.get_mut(&key) {
            run.state = RunState::Waiting(Waiting {
                started_at,
                for_what,
            });
        }
    }
}

fn read_wait(wait: &WaitRow) -> Result<Restored, FoldError> {
    let unreadable = || FoldError::UnreadableWait {
        key: wait.key.clone(),
    };
    let data = wait.data.as_deref().unwrap_or("null");
    match wait.kind.as_str() {
        "timer" => Ok(Restored::Timer(
            wait.wake_at.ok_or_else(unreadable)?,
            wait.started_at,
        )),
        "child" => Ok(Restored::Child(
            serde_json::from_str(data).map_err(|_| unreadable())?,
            wait.started_at,
        )),
        "map" => Ok(Restored::Map(
            serde_json::from_str(data).map_err(|_| unreadable())?,
            wait.started_at,
        )),
        "started" => Ok(Restored::Started),
        _ => Err(unreadable()),
    }
}
