//! The only path by which executions, node runs, waits and sessions are written: a few writer shards, each with a
//! connection of its own, and their supervisor.
//!
//! A shard that fails has lost what it had queued, and owners that appended without waiting do not know. Their journals
//! would have gaps, so the host gives up its right to write: it is fenced, and everything it owned is folded again
//! elsewhere, or here under a new id.

use std::{sync::Arc, time::Duration};

use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use sqlx::postgres::PgConnectOptions;

use self::writer::Writer;
use crate::{
    actors::standing::Standing,
    id::HostId,
    journal::{Journal, Shared},
};

pub(crate) mod shard;
#[cfg(test)]
mod tests;
mod writer;

/// What the persistence actor is started with.
pub(crate) struct Setup {
    pub(crate) host: HostId,
    pub(crate) database: PgConnectOptions,
    pub(crate) standing: Arc<Standing>,
    /// How many writers. As many fence rows were registered.
    pub(crate) shards: i16,
}

/// Starts the writers under a supervisor.
pub(crate) async fn start(setup: Setup) -> Result<(ActorRef<Msg>, Journal), SpawnErr> {
    let shared = Arc::new(Shared::new(Arc::clone(&setup.standing)));
    let (supervisor, _) = Actor::spawn(None, Persistence, Arc::clone(&setup.standing)).await?;
    let mut shards = Vec::new();
    for index in 0..setup.shards {
        let writer = Writer::new(&setup.database, setup.host, index, Arc::clone(&shared));
        let cell = supervisor.get_cell();
        let (shard, _) = Actor::spawn_linked(None, shard::Shard, writer, cell).await?;
        shards.push(shard);
    }
    Ok((supervisor, Journal::new(shards, shared)))
}

struct Persistence;

/// The supervisor takes no messages.
pub(crate) enum Msg {}

impl Actor for Persistence {
    type Msg = Msg;
    type State = Arc<Standing>;
    type Arguments = Arc<Standing>;

    async fn pre_start(
        &self,
        _: ActorRef<Msg>,
        standing: Arc<Standing>,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(standing)
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Msg>,
        event: SupervisionEvent,
        standing: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(_, reason) => {
                tracing::error!(%reason, "a writer of the journal failed");
                standing.lose();
            }
            SupervisionEvent::ActorTerminated(..) => standing.lose(),
            _ => {}
        }
        Ok(())
    }

    /// Without this the writers would be killed where they stand.
    async fn post_stop(
        &self,
        myself: ActorRef<Msg>,
        _: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        const PATIENCE: Duration = Duration::from_secs(5);
        myself.drain_children_and_wait(Some(PATIENCE)).await;
        Ok(())
    }
}
