//! Whether this host may act: what its lease and its fence say, for everybody to look at without asking anybody.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// The standing of this host. Times are of the monotonic clock, which goes on while the process is frozen.
pub(crate) struct Standing {
    origin: Instant,
    lease: Duration,
    /// When the last successful renewal was asked for, in microseconds since `origin`, plus one; 0: never.
    renewed: AtomicU64,
    fenced: AtomicBool,
    lost: Notify,
    /// The last attempt to renew got an answer.
    reached: AtomicBool,
}

impl Standing {
    pub(crate) fn new(lease: Duration) -> Self {
        Self {
            origin: Instant::now(),
            lease,
            renewed: AtomicU64::new(0),
            fenced: AtomicBool::new(false),
            lost: Notify::new(),
            reached: AtomicBool::new(true),
        }
    }

    /// The lease was renewed by a request made at `asked`: the database counted it from then or later.
    pub(crate) fn renew(&self, asked: Instant) {
        let micros = asked.saturating_duration_since(self.origin).as_micros() as u64;
        self.renewed.fetch_max(micros + 1, Ordering::AcqRel);
    }

    /// The lease was given up.
    pub(crate) fn release(&self) {
        self.renewed.store(0, Ordering::Release);
    }

    /// Whether the last attempt to renew got an answer.
    pub(crate) fn is_reached(&self) -> bool {
        self.reached.load(Ordering::Relaxed)
    }

    pub(crate) fn set_reached(&self, reached: bool) {
        self.reached.store(reached, Ordering::Relaxed);
    }

    /// The host may never write again.
    pub(crate) fn lose(&self) {
        if !self.fenced.swap(true, Ordering::AcqRel) {
            tracing::error!("this host is fenced: it stops everything it owned");
        }
        self.lost.notify_one();
    }

    /// Whether the host may never write again.
    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Waits until [`Standing::lose`], if that was not before. For one waiter at a time.
    pub(crate) async fn lost(&self) {
        let lost = self.lost.notified();
        if !self.is_fenced() {
            lost.await;
        }
    }

    /// Whether the lease is good now: not fenced, and renewed less than a lease ago.
    pub(crate) fn is_good(&self) -> bool {
        !self.is_fenced()
            && match self.renewed.load(Ordering::Acquire) {
                0 => false,
                micros => {
                    let renewed = self.origin + Duration::from_micros(micros - 1);
                    renewed.elapsed() < self.lease
                }
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_good_from_its_renewal_until_it_expires() {
        let lease = Duration::from_secs(5);
        let standing = Standing::new(lease);
        assert!(!standing.is_good(), "never renewed");
        standing.renew(Instant::now());
        assert!(standing.is_good());

        let long_ago = Standing {
            origin: Instant::now() - 2 * lease,
            ..Standing::new(lease)
        };
        long_ago.renew(long_ago.origin);
        assert!(!long_ago.is_good(), "renewed too long ago");
        long_ago.renew(Instant::now());
        assert!(long_ago.is_good(), "renewed again");
    }

    #[test]
    fn a_fenced_host_never_has_a_good_lease() {
        let standing = Standing::new(Duration::from_secs(5));
        standing.lose();
        standing.renew(Instant::now());
        assert!(!standing.is_good());
    }
}
