//! Live tails: what happens to an execution or a session, for whoever watches from this process.
//!
//! Delivery is best effort and bounded. A watcher that falls behind is told so and reads the journal, which
//! has everything but the ephemeral events.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;
use tokio::sync::broadcast;
use uuid::Uuid;

/// How many events a watcher may be behind.
const BACKLOG_MAX: usize = 1024;

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its place in the journal. `None`: ephemeral, never replayed.
    pub seq: Option<i64>,
    /// Such as `node.finished`.
    pub name: &'static str,
    /// What it carries.
    pub data: Arc<Value>,
}

/// Hands events to watchers. Cloning it is cheap; all clones are one.
#[derive(Clone, Default)]
pub struct EventHub {
    topics: Arc<Mutex<HashMap<Uuid, broadcast::Sender<Event>>>>,
}

impl EventHub {
    /// Watches one execution or session from now on.
    pub fn subscribe(&self, id: Uuid) -> broadcast::Receiver<Event> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topics
            .entry(id)
            .or_insert_with(|| broadcast::channel(BACKLOG_MAX).0)
            .subscribe()
    }

    /// Whether anybody watches: events that are costly to build need not be built for nobody.
    pub fn is_watched(&self, id: Uuid) -> bool {
        self.topics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(&id)
    }

    /// Tells whoever watches. Forgets the topic when the last watcher has gone.
    pub fn publish(&self, id: Uuid, event: Event) {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = topics.get(&id)
            && sender.send(event).is_err()
        {
            topics.remove(&id);
        }
    }
}
