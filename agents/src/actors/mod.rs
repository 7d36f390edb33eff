//! The actors of sessions: a manager, one actor per live session, and one per request or call in progress.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use callboard_runtime::{core::Core, id::SessionId};

use crate::{agents::Agents, provider::Providers};

pub mod job;
pub mod live;
pub mod load;
pub mod manager;
pub mod session;
pub mod work;

use live::Live;

/// How much and how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many sessions are in memory at once.
    pub live_max: usize,
    /// How long a session stays in memory after its last turn.
    pub linger: Duration,
    /// The delay before a failed session's actor is started again; four times as long each time.
    pub restart_delay: Duration,
    /// How often that is tried before its turn is given up.
    pub restarts_max: u32,
    /// The first delay before a failed request to a model is made again; twice as long each time.
    pub backoff: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            live_max: 4096,
            linger: Duration::from_secs(15),
            restart_delay: Duration::from_millis(100),
            restarts_max: 3,
            backoff: Duration::from_millis(500),
        }
    }
}

/// What all sessions of a host share.
pub struct Shared {
    /// The host.
    pub core: Core,
    /// Agents, ready for use.
    pub agents: Agents,
    /// Providers, ready for use.
    pub providers: Providers,
    /// What sessions are saying right now.
    pub lives: Lives,
    /// How much and how long.
    pub limits: Limits,
    /// How many sessions are this host's to write to.
    pub owned: AtomicUsize,
}

/// This host's right to write to a session; counted as long as it lasts.
pub struct Owned(Arc<Shared>);

impl Owned {
    /// One more.
    pub fn new(shared: &Arc<Shared>) -> Self {
        shared.owned.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.owned.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the sessions of this host are saying right now. An entry lasts as long as the session's actor.
#[derive(Default)]
pub struct Lives {
    by_session: Mutex<HashMap<SessionId, Weak<Live>>>,
}

impl Lives {
    /// The session's voice, when its actor is here.
    pub fn find(&self, id: SessionId) -> Option<Arc<Live>> {
        let lives = self
            .by_session
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        lives.get(&id)?.upgrade()
    }

    /// Makes it known. Replaces that of an earlier actor.
    pub fn insert(&self, id: SessionId, live: &Arc<Live>) {
        let mut lives = self
            .by_session
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if lives.len() % 1024 == 1023 {
            lives.retain(|_, live| live.strong_count() > 0);
        }
        lives.insert(id, Arc::downgrade(live));
    }

    /// Forgets it, when no other actor has taken its place.
    pub fn remove(&self, id: SessionId) {
        let mut lives = self
            .by_session
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if lives.get(&id).is_some_and(|live| live.strong_count() == 0) {
            lives.remove(&id);
        }
    }
}
