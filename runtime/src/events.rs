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
/// Fewer topics than this are not looked through.
const CROWDED_MIN: usize = 64;

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
    topics: Arc<Mutex<Topics>>,
}

#[derive(Default)]
struct Topics {
    by_id: HashMap<Uuid, broadcast::Sender<Event>>,
    /// With so many of them, those that nobody watches any more are forgotten.
    crowded: usize,
}

impl EventHub {
    /// Watches one execution or session from now on.
    pub fn subscribe(&self, id: Uuid) -> broadcast::Receiver<Event> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if topics.by_id.len() >= topics.crowded {
            topics.by_id.retain(|_, topic| topic.receiver_count() > 0);
            topics.crowded = (2 * topics.by_id.len()).max(CROWDED_MIN);
        }
        topics
            .by_id
            .entry(id)
            .or_insert_with(|| broadcast::channel(BACKLOG_MAX).0)
            .subscribe()
    }

    /// Whether anybody watches: events that are costly to build need not be built for nobody.
    pub fn is_watched(&self, id: Uuid) -> bool {
        self.topics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .by_id
            .get(&id)
            .is_some_and(|topic| topic.receiver_count() > 0)
    }

    /// Tells whoever watches. Forgets the topic when the last watcher has gone.
    pub fn publish(&self, id: Uuid, event: Event) {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = topics.by_id.get(&id)
            && sender.send(event).is_err()
        {
            topics.by_id.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_that_nobody_watches_any_more_are_forgotten() {
        let hub = EventHub::default();
        let watched = Uuid::now_v7();
        let _receiver = hub.subscribe(watched);
        for _ in 0..10 * CROWDED_MIN {
            let id = Uuid::now_v7();
            drop(hub.subscribe(id));
            assert!(!hub.is_watched(id));
        }
        assert!(hub.is_watched(watched));
        let kept = hub.topics.lock().expect("no panic").by_id.len();
        assert!(kept <= CROWDED_MIN, "{kept} are kept");
    }
}
