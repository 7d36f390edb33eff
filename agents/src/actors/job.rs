//! One piece of slow work, as an actor: killing it drops the work where it waits, and a panic ends nothing else.

use futures_util::future::BoxFuture;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};

/// Runs a future that reports by itself, then stops.
pub struct Job;

/// Starts `work` as a child of `parent`. Its failure and its end reach the parent as supervision events.
pub async fn start(parent: ActorCell, work: BoxFuture<'static, ()>) -> Result<ActorCell, SpawnErr> {
    let (job, _) = Actor::spawn_linked(None, Job, work, parent).await?;
    Ok(job.get_cell())
}

impl Actor for Job {
    type Msg = ();
    type State = Option<BoxFuture<'static, ()>>;
    type Arguments = BoxFuture<'static, ()>;

    async fn pre_start(
        &self,
        myself: ActorRef<()>,
        work: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        myself.cast(())?;
        Ok(Some(work))
    }

    async fn handle(
        &self,
        myself: ActorRef<()>,
        (): (),
        work: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(work) = work.take() {
            work.await;
        }
        myself.stop(None);
        Ok(())
    }
}
