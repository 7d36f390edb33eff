//! The live tail of one execution: its journal, then what happens from then on.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::BoxStream};
use serde_json::Value;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{ActionError, Host, STARTED_SEQ, view};
use crate::{
    actors::execution,
    core::Core,
    events::Event,
    id::ExecutionId,
    model::execution::Wait,
    store::{
        StoreError,
        executions::{self, ExecutionSummary},
        node_runs,
        rows::{ExecutionStatus, NodeRunRow, WaitRow},
        waits,
    },
};

/// How many journal rows are read at once.
const PAGE: i64 = 200;
/// How often the journal is read although no event came: another host may own the execution.
const POLL: Duration = Duration::from_secs(2);
/// How long the execution's actor may take to say what is in progress.
const IN_PROGRESS_MAX: Duration = Duration::from_secs(1);
/// How many events may wait for a slow reader.
const AHEAD_MAX: usize = 64;

pub(super) async fn events(
    host: &Arc<Host>,
    id: ExecutionId,
    after: Option<i64>,
) -> Result<BoxStream<'static, Event>, ActionError> {
    // Subscribed before the journal is read: what happens in between comes twice, never not at all.
    let live = host.core.events.subscribe(id.0);
    let stored = executions::get(&host.core.db, id)
        .await?
        .ok_or(ActionError::NotFound(id))?;
    let (sender, receiver) = mpsc::channel(AHEAD_MAX);
    let mut tail = Tail {
        core: host.core.clone(),
        host: host.clone(),
        id,
        last: after.unwrap_or(STARTED_SEQ),
        told: Vec::new(),
        sender,
    };
    tokio::spawn(async move {
        if after.is_none() {
            // As it was said then, whatever has become of it.
            let data = summary(&stored.summary, "running");
            if tail
                .send(Some(STARTED_SEQ), "execution.started", data)
                .await
                .is_none()
            {
                return;
            }
        }
        let closed = tail.sender.clone();
        tokio::select! {
            _ = tail.run(live) => {}
            () = closed.closed() => {}
        }
    });
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        Some((receiver.recv().await?, receiver))
    });
    Ok(stream.boxed())
}

struct Tail {
    core: Core,
    host: Arc<Host>,
    id: ExecutionId,
    /// Seq of the last journaled event that was sent.
    last: i64,
    /// What was said to be in progress, and may be said once more by events that were under way.
    told: Vec<Value>,
    sender: mpsc::Sender<Event>,
}

impl Tail {
    /// `None` when it is over: the execution finished, or the reader left.
    async fn run(&mut self, mut live: broadcast::Receiver<Event>) -> Option<()> {
        self.catch_up(true).await?;
        self.in_progress().await?;
        loop {
            match tokio::time::timeout(POLL, live.recv()).await {
                Ok(Ok(event)) => self.live(event).await?,
                Ok(Err(broadcast::error::RecvError::Lagged(_))) => self.catch_up(false).await?,
                Ok(Err(broadcast::error::RecvError::Closed)) => {
                    live = self.core.events.subscribe(self.id.0);
                    self.catch_up(false).await?;
                }
                Err(_) => self.catch_up(false).await?,
            }
        }
    }

    async fn live(&mut self, event: Event) -> Option<()> {
        let finished = event.name == "execution.finished";
        match event.seq {
            Some(seq) if seq <= self.last => return if finished { None } else { Some(()) },
            // A row between was published before this tail listened.
            Some(seq) if seq > self.last + 1 => return self.catch_up(false).await,
            Some(seq) => self.last = seq,
            None if event.name == "node.started" && self.was_told(&event.data) => return Some(()),
            None => {}
        }
        self.sender.send(event).await.ok()?;
        if finished { None } else { Some(()) }
    }

    /// Sends `node.started` for what began before anybody listened. Asked after the journal was read, so what has
    /// ended by now is not said to run.
    async fn in_progress(&mut self) -> Option<()> {
        let Some(actor) = self.host.registry.actor(self.id) else {
            return Some(());
        };
        let (reply, answer) = oneshot::channel();
        if actor.cast(execution::Msg::InProgress(reply)).is_err() {
            return Some(());
        }
        // An actor that stops does not answer: what it carried is told by who carries it on.
        if let Ok(Ok(begun)) = tokio::time::timeout(IN_PROGRESS_MAX, answer).await {
            for data in begun {
                self.told.push(data.clone());
                self.send(None, "node.started", data).await?;
            }
        }
        Some(())
    }

    fn was_told(&mut self, data: &Value) -> bool {
        const ATTEMPT: [&str; 4] = ["step", "item_index", "visit", "attempt"];
        let is_same = |told: &Value| ATTEMPT.iter().all(|name| told[name] == data[name]);
        let place = self.told.iter().position(is_same);
        place.map(|place| self.told.swap_remove(place)).is_some()
    }

    /// Sends what the journal has beyond `last`.
    async fn catch_up(&mut self, first: bool) -> Option<()> {
        // The status is read before the rows: when it is final, no row can come after them.
        let stored = match executions::get(&self.core.db, self.id).await {
            Ok(stored) => stored?,
            Err(error) => return self.unread(&error),
        };
        loop {
            let rows = match node_runs::list(&self.core.db, self.id, self.last as i32, PAGE).await {
                Ok(rows) => rows,
                Err(error) => return self.unread(&error),
            };
            for row in &rows {
                self.send_row(row).await?;
            }
            if (rows.len() as i64) < PAGE {
                break;
            }
        }
        if stored.summary.status.is_final() {
            if self.has_seen_the_end().await {
                return None;
            }
            let mut data = summary(&stored.summary, stored.summary.status.as_str());
            if let Some(at) = stored.summary.finished_at {
                data["finished_at"] = view::time(at);
                data["duration_ms"] = (at - stored.summary.started_at).num_milliseconds().into();
            }
            data["output"] = stored.output.unwrap_or_default();
            data["error"] = stored.error.unwrap_or_default();
            self.send(Some(self.last + 1), "execution.finished", data)
                .await?;
            return None;
        }
        if first && stored.summary.status == ExecutionStatus::Waiting {
            let rows = match waits::of(&self.core.db, self.id).await {
                Ok(rows) => rows,
                Err(error) => return self.unread(&error),
            };
            let mut data = summary(&stored.summary, "waiting");
            let waits = rows.iter().filter_map(stored_wait);
            data["waits"] = waits.map(|wait| view::wait(&wait)).collect();
            self.send(None, "execution.waiting", data).await?;
        }
        Some(())
    }

    /// Whether the reader came with the id of `execution.finished`, which is one past the last row's.
    async fn has_seen_the_end(&self) -> bool {
        let last_row = node_runs::list(&self.core.db, self.id, self.last as i32 - 1, 1).await;
        self.last >= 0 && last_row.is_ok_and(|rows| rows.is_empty())
    }

    async fn send_row(&mut self, row: &NodeRunRow) -> Option<()> {
        self.last = row.seq.into();
        self.send(Some(self.last), "node.finished", view::node_run(row))
            .await
    }

    async fn send(&self, seq: Option<i64>, name: &'static str, data: Value) -> Option<()> {
        self.sender
            .send(Event {
                seq,
                name,
                data: Arc::new(data),
            })
            .await
            .ok()
    }

    /// The journal cannot be read just now; the next event or poll tries again.
    fn unread(&self, error: &StoreError) -> Option<()> {
        tracing::debug!(execution = %self.id, %error, "the journal could not be read for a tail");
        Some(())
    }
}

fn summary(summary: &ExecutionSummary, status: &str) -> Value {
    view::summary(
        summary.id,
        (&summary.workflow, summary.version),
        &summary.trigger,
        status,
        summary.started_at,
    )
}

/// What a stored row waits for; `None` for one that is no wait. Its key is `scope/step/visit/attempt`, and the scope of an
/// element of a map ends with the element's place, as in `lines/0[2]`.
fn stored_wait(row: &WaitRow) -> Option<Wait> {
    if !matches!(row.kind.as_str(), "timer" | "child") {
        return None;
    }
    let mut parts = row.key.rsplitn(4, '/');
    let (_attempt, _visit, step) = (parts.next()?, parts.next()?, parts.next()?);
    let scope = parts.next().unwrap_or_default();
    let index = scope
        .strip_suffix(']')
        .and_then(|scope| scope.rsplit_once('['));
    Some(Wait {
        step: step.into(),
        item_index: index.and_then(|(_, index)| index.parse().ok()),
        wake_at: row.wake_at,
    })
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    #[test]
    fn a_stored_wait_names_its_step_and_element() {
        let row = |kind: &str, key: &str| WaitRow {
            execution_id: ExecutionId::new(),
            key: key.to_owned(),
            kind: kind.to_owned(),
            wake_at: None,
            child_id: None,
            data: None,
            started_at: DateTime::UNIX_EPOCH,
        };
        let wait = |kind: &str, key: &str| {
            stored_wait(&row(kind, key)).map(|wait| (wait.step.to_string(), wait.item_index))
        };
        assert_eq!(wait("timer", "pause/0/1"), Some(("pause".to_owned(), None)));
        assert_eq!(
            wait("child", "outer/0[1]/inner/2[30]/nap/0/3"),
            Some(("nap".to_owned(), Some(30)))
        );
        assert_eq!(wait("map", "lines/0/1"), None);
        assert_eq!(wait("started", "pay/0/1/started"), None);
    }
}
