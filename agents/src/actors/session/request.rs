//! What is asked of a session, and when it can be answered.

use std::time::Duration;

use ractor::ActorRef;

use super::{Event, Handled, Msg, Ownership, Reply, Stage, State};
use crate::{
    model::session::Refusal,
    sessions::{Accepted, CancelMode, SendMessage, SessionError, TurnResult},
};

/// What to wait before trying again what another host or too much work prevents.
const BUSY: Duration = Duration::from_secs(1);

/// Something that is asked of a session.
pub enum Request {
    /// Take this message.
    Send {
        /// The message; within its bounds.
        message: SendMessage,
        /// Told when it is durable.
        reply: Reply<Accepted>,
    },
    /// Tell how this turn ended, when it has. `None`: it is not ours to know yet.
    Turn {
        /// Which.
        turn: i64,
        /// Told when the end is durable.
        reply: Reply<Option<TurnResult>>,
    },
    /// Cancel the turn in progress.
    Cancel {
        /// When.
        mode: CancelMode,
        /// Only this one.
        turn: Option<i64>,
        /// Told when that is durable.
        reply: Reply<()>,
    },
    /// Go on with the turn in progress: this host owns the session.
    Resume,
    /// Cancel what is in progress and take nothing more: the session is about to be deleted.
    Close {
        /// Told when nothing more will be written.
        reply: Reply<()>,
    },
}

impl Request {
    /// Answers with an error.
    pub fn refuse(self, error: SessionError) {
        match self {
            Self::Send { reply, .. } => drop(reply.send(Err(error))),
            Self::Turn { reply, .. } => drop(reply.send(Err(error))),
            Self::Cancel { reply, .. } | Self::Close { reply } => drop(reply.send(Err(error))),
            Self::Resume => {}
        }
    }
}

/// What must happen before a request can be answered.
enum Need {
    Nothing,
    /// The journal's tail, and the right to write where `true`.
    Load(bool),
    /// That everything appended is durable.
    Quiet,
}

impl State {
    pub(super) fn requested(&mut self, request: Request) {
        self.handled += 1;
        if self.closing {
            request.refuse(SessionError::NotFound(self.id));
        } else {
            self.pending.push_back(request);
        }
    }

    /// Answers requests in order, as far as that can be done without waiting.
    pub(super) async fn pump(&mut self, myself: &ActorRef<Msg>) -> Handled {
        while self.stage != Stage::Loading {
            let Some(request) = self.pending.front() else {
                return Ok(());
            };
            match self.need(request) {
                Need::Quiet if !self.held.is_empty() => return Ok(()),
                Need::Load(_) if !self.held.is_empty() => return Ok(()),
                Need::Load(claim) => {
                    return self.load(myself, claim).await;
                }
                Need::Nothing | Need::Quiet => {}
            }
            self.fresh = false;
            if let Some(request) = self.pending.pop_front() {
                self.answer(myself, request).await?;
            }
        }
        Ok(())
    }

    fn need(&self, request: &Request) -> Need {
        let ours = self.ownership == Ownership::Ours;
        if self.stage == Stage::Unloaded {
            return Need::Load(matches!(request, Request::Send { .. }));
        }
        match request {
            Request::Send { .. } if !ours && !self.claimed_in_vain() => Need::Load(true),
            Request::Cancel { .. } | Request::Resume if !ours && !self.fresh => Need::Load(false),
            Request::Turn { turn, .. }
                if !ours && !self.fresh && self.session.result(*turn).is_none() =>
            {
                Need::Load(false)
            }
            Request::Turn { turn, .. } if self.session.result(*turn).is_some() => Need::Quiet,
            Request::Close { .. } if !ours && !self.fresh => Need::Load(false),
            _ => Need::Nothing,
        }
    }

    /// The session was just loaded, and is another host's.
    fn claimed_in_vain(&self) -> bool {
        self.fresh && self.ownership == Ownership::Others
    }

    async fn answer(&mut self, myself: &ActorRef<Msg>, request: Request) -> Handled {
        match request {
            Request::Send { message, reply } => self.send(myself, message, reply).await,
            Request::Turn { turn, reply } => {
                self.turn(turn, reply);
                Ok(())
            }
            Request::Cancel { mode, turn, reply } => self.cancel(myself, mode, turn, reply).await,
            Request::Resume => Ok(()),
            Request::Close { reply } => self.close(myself, reply).await,
        }
    }

    async fn send(
        &mut self,
        myself: &ActorRef<Msg>,
        message: SendMessage,
        reply: Reply<Accepted>,
    ) -> Handled {
        if self.ownership != Ownership::Ours {
            drop(reply.send(Err(SessionError::Busy(BUSY))));
            return Ok(());
        }
        if let Err(error) = self.shared.agents.current(&self.agent) {
            drop(reply.send(Err(error)));
            return Ok(());
        }
        let at = self.prepare();
        match self.session.decide(Self::message_event(message), at) {
            Ok(decision) => {
                let answer = Self::accept(reply, decision.accepted);
                self.commit(myself, decision, at, vec![answer]).await
            }
            Err(refusal) => {
                drop(reply.send(Err(error_of(refusal))));
                Ok(())
            }
        }
    }

    fn turn(&mut self, turn: i64, reply: Reply<Option<TurnResult>>) {
        if let Some(result) = self.session.result(turn) {
            drop(reply.send(Ok(Some(result))));
        } else if turn < 1 || turn > self.session.turns() {
            let error = SessionError::Invalid(format!("there is no turn {turn}"));
            drop(reply.send(Err(error)));
        } else if self.ownership == Ownership::Ours {
            let waiters = self.waiters.entry(turn).or_default();
            waiters.retain(|waiter| !waiter.is_closed());
            waiters.push(reply);
        } else {
            drop(reply.send(Ok(None)));
        }
    }

    async fn cancel(
        &mut self,
        myself: &ActorRef<Msg>,
        mode: CancelMode,
        turn: Option<i64>,
        reply: Reply<()>,
    ) -> Handled {
        if self.ownership != Ownership::Ours {
            let error = match self.ownership {
                Ownership::Others => SessionError::Busy(BUSY),
                Ownership::Nobody | Ownership::Ours => SessionError::Idle,
            };
            drop(reply.send(Err(error)));
            return Ok(());
        }
        let running = self.session.running_turn();
        if running.is_none() || turn.is_some_and(|turn| running != Some(turn)) {
            drop(reply.send(Err(SessionError::Idle)));
            return Ok(());
        }
        let event = self.cancel_event(mode);
        self.decide_for(myself, event, reply).await
    }

    async fn decide_for(
        &mut self,
        myself: &ActorRef<Msg>,
        event: Event,
        reply: Reply<()>,
    ) -> Handled {
        let at = self.prepare();
        match self.session.decide(event, at) {
            Ok(decision) => {
                let answer = Box::new(move || drop(reply.send(Ok(()))));
                self.commit(myself, decision, at, vec![answer]).await
            }
            Err(refusal) => {
                drop(reply.send(Err(error_of(refusal))));
                Ok(())
            }
        }
    }

    /// Cancels turn after turn until none is in progress: messages may be waiting.
    async fn close(&mut self, myself: &ActorRef<Msg>, reply: Reply<()>) -> Handled {
        if self.ownership == Ownership::Others {
            drop(reply.send(Err(SessionError::Busy(BUSY))));
            return Ok(());
        }
        self.closing = true;
        for request in self.pending.drain(..) {
            request.refuse(SessionError::NotFound(self.id));
        }
        while self.ownership == Ownership::Ours && self.session.running_turn().is_some() {
            let event = self.cancel_event(CancelMode::Now);
            self.happened(myself, event).await?;
        }
        self.when_quiet(Box::new(move || drop(reply.send(Ok(())))));
        Ok(())
    }

    /// Runs `answer` when everything appended so far is durable.
    fn when_quiet(&mut self, answer: Box<dyn FnOnce() + Send>) {
        match self.held.back_mut() {
            Some(held) => held.answers.push(answer),
            None => answer(),
        }
    }
}

fn error_of(refusal: Refusal) -> SessionError {
    match refusal {
        Refusal::Running => SessionError::Running,
        Refusal::Idle => SessionError::Idle,
        Refusal::KeyReused => SessionError::KeyReused,
        Refusal::QueueFull => SessionError::Busy(BUSY),
        Refusal::Full => SessionError::Invalid(
            "the session has as many records as a session may have; open another one".to_owned(),
        ),
    }
}
