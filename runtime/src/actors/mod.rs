//! One actor per file: mailboxes, timers and children. What to do is decided in `model`, what to write in `store`.

pub mod execution;
pub mod execution_manager;
pub mod membership;
pub mod node_runner;
pub mod persistence;
pub mod standing;

use std::time::Duration;

use tokio::task::AbortHandle;

/// Ends a task with its owner.
pub(crate) struct AbortOnDrop(pub(crate) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A growing delay between attempts: doubles from `first` up to `max`, less a random part of up to a half, so that
/// those who failed together do not come back together.
pub(crate) struct Backoff {
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, max: Duration) -> Self {
        Self { max, next: first }
    }

    /// The delay before the next attempt.
    pub(crate) fn delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.max);
        delay.mul_f64(rand::random_range(0.5..=1.0))
    }
}
