//! Keeps [`Membership`] running: without it the lease expires, and a host without peers would never notice.

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};

use super::{Membership, Setup};
use crate::actors::Backoff;

/// How long a stop waits for the child.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts renewing. The first pulse follows at once.
pub(crate) async fn start(setup: Setup) -> Result<ActorRef<Msg>, SpawnErr> {
    let (supervisor, _) = Actor::spawn(None, Supervisor, setup).await?;
    Ok(supervisor)
}

pub(crate) struct Supervisor;

pub(crate) enum Msg {
    /// Pulse now; soon again, if one is under way.
    Pulse,
    /// Start the child again.
    Restart,
}

pub(crate) struct State {
    setup: Setup,
    child: Option<ActorRef<super::Msg>>,
    /// Never reset: a child that failed once a day is no reason to hurry.
    backoff: Backoff,
}

impl Actor for Supervisor {
    type Msg = Msg;
    type State = State;
    type Arguments = Setup;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        setup: Setup,
    ) -> Result<State, ActorProcessingErr> {
        let mut state = State {
            setup,
            child: None,
            backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(1)),
        };
        state.start(&myself).await?;
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        msg: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Pulse => state.pulse(),
            Msg::Restart => {
                if let Err(error) = state.start(&myself).await {
                    tracing::error!(%error, "the lease is not renewed: starting that again");
                    state.restart(&myself);
                }
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let reason = match event {
            SupervisionEvent::ActorFailed(_, reason) => reason.to_string(),
            SupervisionEvent::ActorTerminated(_, _, reason) => reason.unwrap_or_default(),
            _ => return Ok(()),
        };
        tracing::error!(reason, "the lease is not renewed: starting that again");
        state.restart(&myself);
        Ok(())
    }

    async fn post_stop(
        &self,
        myself: ActorRef<Msg>,
        _: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        myself.stop_children_and_wait(None, Some(PATIENCE)).await;
        Ok(())
    }
}

impl State {
    async fn start(&mut self, myself: &ActorRef<Msg>) -> Result<(), SpawnErr> {
        let setup = self.setup.clone();
        let (child, _) = Actor::spawn_linked(None, Membership, setup, myself.get_cell()).await?;
        self.child = Some(child);
        Ok(())
    }

    fn restart(&mut self, myself: &ActorRef<Msg>) {
        self.child = None;
        myself.send_after(self.backoff.delay(), || Msg::Restart);
    }

    fn pulse(&self) {
        if let Some(child) = &self.child {
            drop(child.cast(super::Msg::Pulse)); // an error: a new one will pulse at once
        }
    }
}
