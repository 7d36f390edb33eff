//! The handle through which owners save: executions, node runs, waits, sessions.

use crate::store::{
    StoreError,
    rows::{Owner, Write},
};

/// Called once when everything appended with it is durable, or will never be.
pub type OnSaved = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Appends to the journals of executions and sessions. Cloning it is cheap; all clones are one.
#[derive(Clone)]
pub struct Journal {}

impl Journal {
    /// Queues `writes` behind everything appended for `owner` before, and returns at once. All of them are
    /// written in one transaction, after or together with the earlier ones.
    pub fn append(&self, owner: Owner, writes: Vec<Write>, on_saved: Option<OnSaved>) {
        let _ = (owner, writes, on_saved);
        unimplemented!()
    }

    /// As [`Journal::append`], and waits until it is durable.
    pub async fn save(&self, owner: Owner, writes: Vec<Write>) -> Result<(), StoreError> {
        let (done, saved) = tokio::sync::oneshot::channel();
        self.append(
            owner,
            writes,
            Some(Box::new(move |result| drop(done.send(result)))),
        );
        saved.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Whether so much is queued that nothing new should be started.
    pub fn is_saturated(&self) -> bool {
        unimplemented!()
    }
}
