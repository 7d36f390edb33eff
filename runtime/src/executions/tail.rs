//! The live tail of one execution: its journal, then what happens from then on.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::BoxStream};
use tokio::sync::{broadcast, mpsc};

use super::{ActionError, STARTED_SEQ, view};
use crate::{
    core::Core,
    events::Event,
    id::ExecutionId,
    store::{
        StoreError, executions, node_runs,
        rows::{ExecutionStatus, NodeRunRow},
    },
};

/// How many journal rows are read at once.
const PAGE: i64 = 200;
/// How often the journal is read although no event came: another host may own the execution.
const POLL: Duration = Duration::from_secs(2);
/// How many events may wait for a slow reader.
const AHEAD_MAX: usize = 64;

pub(super) async fn events(
    core: &Core,
    id: ExecutionId,
    after: Option<i64>,
) -> Result<BoxStream<'static, Event>, ActionError> {
    // Subscribed before the journal is read: what happens in between comes twice, never not at all.
    let live = core.events.subscribe(id.0);
    let stored = executions::get(&core.db, id)
        .await?
        .ok_or(ActionError::NotFound(id))?;
    let (sender, receiver) = mpsc::channel(AHEAD_MAX);
    let mut tail = Tail {
        core: core.clone(),
        id,
        last: after.unwrap_or(STARTED_SEQ),
        sender,
    };
    tokio::spawn(async move {
        if after.is_none() {
            let data = view::summary(
                id,
                &stored.summary.workflow,
                &stored.summary.trigger,
                stored.summary.status.as_str(),
                stored.summary.started_at,
            );
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
    id: ExecutionId,
    /// Seq of the last journaled event that was sent.
    last: i64,
    sender: mpsc::Sender<Event>,
}

impl Tail {
    /// `None` when it is over: the execution finished, or the reader left.
    async fn run(&mut self, mut live: broadcast::Receiver<Event>) -> Option<()> {
        self.catch_up(true).await?;
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
            None => {}
        }
        self.sender.send(event).await.ok()?;
        if finished { None } else { Some(()) }
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
            let mut data = view::summary(
                self.id,
                &stored.summary.workflow,
                &stored.summary.trigger,
                stored.summary.status.as_str(),
                stored.summary.started_at,
            );
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
            let data = view::summary(
                self.id,
                &stored.summary.workflow,
                &stored.summary.trigger,
                "waiting",
                stored.summary.started_at,
            );
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

    async fn send(
        &self,
        seq: Option<i64>,
        name: &'static str,
        data: serde_json::Value,
    ) -> Option<()> {
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
