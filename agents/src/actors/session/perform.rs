//! Doing what was decided: telling watchers, asking models, calling tools, stopping both.

use std::sync::Arc;

use callboard_runtime::{provider::ModelErrorKind, tool::ToolError};
use chrono::{DateTime, Utc};
use ractor::ActorRef;
use tokio_util::sync::CancellationToken;

use super::{Handled, Held, Msg, Running, State, Work};
use crate::{
    actors::{job, work},
    agents::PreparedAgent,
    model::session::{AskModel, CallTool, Effect, Event, ModelFailure},
};

impl State {
    /// Tells and does what was held.
    pub(super) async fn release(&mut self, myself: &ActorRef<Msg>, held: Held) -> Handled {
        for (seq, record) in &held.records {
            self.live.publish(*seq, record);
        }
        for answer in held.answers {
            answer();
        }
        for effect in held.effects {
            self.perform(myself, effect).await?;
        }
        Ok(())
    }

    pub(super) async fn perform(&mut self, myself: &ActorRef<Msg>, effect: Effect) -> Handled {
        match effect {
            Effect::AskModel(ask) => self.ask(myself, *ask).await,
            Effect::CallTool(call) => self.call(myself, call).await,
            Effect::TurnEnded(turn) => {
                self.tell(turn);
                Ok(())
            }
            Effect::StopWork => {
                self.stop_work();
                Ok(())
            }
        }
    }

    pub(super) async fn ask(&mut self, myself: &ActorRef<Msg>, ask: AskModel) -> Handled {
        let request = ask.request;
        if !self.session.awaits_model(request) {
            return Ok(()); // stopped while it waited for its mark
        }
        self.live
            .begin(request, ask.message_id.clone(), ask.base_seq);
        let (shared, live) = (Arc::clone(&self.shared), Arc::clone(&self.live));
        let work = work::ask(shared, live, myself.clone(), ask);
        let cell = job::start(myself.get_cell(), Box::pin(work)).await?;
        let what = Work::Model(request);
        self.jobs.insert(cell.get_id(), Running { cell, what });
        Ok(())
    }

    pub(super) async fn call(&mut self, myself: &ActorRef<Msg>, call: CallTool) -> Handled {
        let id = call.call.id.clone();
        if !self.session.awaits_call(&id) {
            return Ok(()); // stopped while it waited for its mark
        }
        let tool = self
            .turn_agent
            .as_ref()
            .and_then(|agent| agent.tool(&call.call.name));
        let Some(tool) = tool.cloned() else {
            let error = ToolError::new("not_found", "the tool does not exist any more");
            work::report(myself, id, Err(error));
            return Ok(());
        };
        let cancel = CancellationToken::new();
        let core = self.shared.core.clone();
        let work = work::call(core, myself.clone(), self.id, tool, call, cancel.clone());
        let cell = job::start(myself.get_cell(), Box::pin(work)).await?;
        let what = Work::Call(id, cancel);
        self.jobs.insert(cell.get_id(), Running { cell, what });
        Ok(())
    }

    /// Stops all work at once. What it was doing is told by its token, before it is dropped.
    pub(super) fn stop_work(&mut self) {
        for (_, running) in self.jobs.drain() {
            if let Work::Call(_, cancel) = &running.what {
                cancel.cancel();
            }
            running.cell.kill();
        }
    }

    pub(super) async fn failed(
        &mut self,
        myself: &ActorRef<Msg>,
        request: u64,
        failure: ModelFailure,
    ) -> Handled {
        if !self.session.awaits_model(request) {
            return Ok(());
        }
        let partial = self.live.close();
        let event = Event::ModelFailed {
            request,
            failure,
            partial,
        };
        self.happened(myself, event).await
    }

    pub(super) async fn panicked(&mut self, myself: &ActorRef<Msg>, what: Work) -> Handled {
        match what {
            Work::Load => Err("the session could not be loaded by a fault of ours".into()),
            Work::Model(request) => {
                let failure = ModelFailure {
                    kind: ModelErrorKind::Malformed,
                    message: "the provider failed by a fault of its own".to_owned(),
                    retry_after: None,
                };
                self.failed(myself, request, failure).await
            }
            Work::Call(id, _) => {
                let result = Err(ToolError::new(
                    "failed",
                    "the tool failed by a fault of its own",
                ));
                self.happened(myself, Event::CallFinished { id, result })
                    .await
            }
        }
    }

    pub(super) async fn wall_reached(&mut self, myself: &ActorRef<Msg>, turn: i64) -> Handled {
        if self.session.running_turn() != Some(turn) {
            return Ok(());
        }
        let partial = self.live.close();
        self.happened(myself, Event::WallReached { turn, partial })
            .await
    }

    /// After a decision: the agent of a turn that has just begun is the current one.
    pub(super) fn follow_agent(&mut self) {
        let Some(spec) = self.session.turn_agent() else {
            self.turn_agent = None;
            return;
        };
        let same = |agent: &Option<Arc<PreparedAgent>>| {
            agent
                .as_ref()
                .is_some_and(|agent| Arc::ptr_eq(&agent.spec, spec))
        };
        if !same(&self.turn_agent) && same(&self.current) {
            self.turn_agent = self.current.clone();
        }
    }

    /// Sets the timer of the turn in progress.
    pub(super) fn arm(&mut self, myself: &ActorRef<Msg>, now: DateTime<Utc>) {
        let running = self.session.running_turn();
        if self.wall.as_ref().map(|(turn, _)| *turn) == running {
            return;
        }
        self.disarm();
        if let (Some(turn), Some(left)) = (running, self.session.wall_left(now)) {
            let timer = myself.send_after(left, move || Msg::WallReached(turn));
            self.wall = Some((turn, timer.abort_handle()));
        }
    }

    pub(super) fn disarm(&mut self) {
        if let Some((_, timer)) = self.wall.take() {
            timer.abort();
        }
    }

    /// Tells whoever waits for the end of a turn.
    pub(super) fn tell(&mut self, turn: i64) {
        for waiter in self.waiters.remove(&turn).unwrap_or_default() {
            drop(waiter.send(Ok(self.session.result(turn))));
        }
    }
}
