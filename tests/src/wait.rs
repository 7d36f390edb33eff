//! Waiting for conditions.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// How long anything may take before a test gives up. An idle machine needs a small part of it; one that builds and
/// tests other things beside may need much of it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Tries until there is a value.
///
/// # Panics
/// When [`DEADLINE`] passes: the message names `what`.
pub async fn wait_until<T, F>(what: &str, mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = attempt().await {
            return value;
        }
        assert!(Instant::now() < deadline, "gave up waiting: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
