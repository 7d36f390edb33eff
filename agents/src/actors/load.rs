//! Taking a session into memory: who owns it, and what its journal says.

use std::sync::Arc;

use callboard_runtime::{
    id::{HostId, SessionId},
    store::{
        StoreError,
        rows::{SessionChange, SessionStatus, Write},
        session_events,
        sessions::{self, StoredSession},
    },
};

use chrono::Utc;

use super::Shared;
use crate::{
    agents::PreparedAgent,
    model::{record::Record, session::Session},
    sessions::SessionError,
};
/// How many records are read at once.
const PAGE: i64 = 500;
/// How often an idle session that another host may be claiming is claimed.
const CLAIMS_MAX: usize = 3;

/// A session as loaded.
pub struct Loaded {
    /// Folded up to its last record.
    pub session: Session,
    /// Name of its agent.
    pub agent: String,
    /// Who may write to it.
    pub ownership: Ownership,
    /// The agent that the turn in progress began with.
    pub turn_agent: Option<Arc<PreparedAgent>>,
}

/// Who may write to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// This host.
    Ours,
    /// Nobody: no turn is in progress.
    Nobody,
    /// Another host, or one that is gone and whose sessions are about to be adopted.
    Others,
}

/// Reads what follows `session` in its journal. With `claim`, an idle session is this host's from then on.
/// `reopen` when the journal refused something of it before.
pub async fn load(
    shared: &Shared,
    id: SessionId,
    session: Session,
    claim: bool,
    reopen: bool,
) -> Result<Loaded, SessionError> {
    let core = &shared.core;
    if reopen {
        // Says what became of the writes before; what matters is that they are settled.
        if let Err(error) = core.journal.reopen(id.0).await {
            tracing::debug!(%id, %error, "writes of a failed actor were lost");
        }
    }
    let (row, ownership, claimed) = own(shared, id, claim).await?;
    let read = read(shared, &row, ownership, session).await;
    if read.is_err() && claimed {
        release(shared, &row).await;
    }
    read
}

/// A claimed session that cannot be read is nobody's again; whoever comes next tries anew.
async fn release(shared: &Shared, row: &StoredSession) {
    let change = Write::SessionChanged(Box::new(SessionChange {
        id: row.id,
        status: SessionStatus::Idle,
        host_id: None,
        usage: row.usage.to_string(),
        updated_at: Utc::now(),
    }));
    if let Err(error) = shared.core.journal.save(row.id.0, vec![change]).await {
        tracing::warn!(id = %row.id, %error, "a session that cannot be read stays claimed");
    }
}

async fn read(
    shared: &Shared,
    row: &StoredSession,
    ownership: Ownership,
    mut session: Session,
) -> Result<Loaded, SessionError> {
    let (core, id) = (&shared.core, row.id);
    loop {
        let rows = session_events::list(&core.db, id, session.seq(), PAGE).await?;
        let more = rows.len() as i64 == PAGE;
        for row in rows {
            let record = Record::read(&row.kind, row.payload).map_err(StoreError::Corrupt)?;
            session
                .apply(row.seq, &record, row.created_at)
                .map_err(StoreError::Corrupt)?;
        }
        if !more {
            break;
        }
    }
    let turn_agent = match session.turn_agent_version() {
        Some(version) if ownership == Ownership::Ours => {
            shared.agents.version(&row.agent, version).await?
        }
        _ => None,
    };
    session.set_turn_agent(turn_agent.as_ref().map(|agent| Arc::clone(&agent.spec)));
    Ok(Loaded {
        session,
        agent: row.agent.clone(),
        ownership,
        turn_agent,
    })
}

async fn own(
    shared: &Shared,
    id: SessionId,
    claim: bool,
) -> Result<(StoredSession, Ownership, bool), SessionError> {
    let core = &shared.core;
    for _ in 0..CLAIMS_MAX {
        let row = sessions::get(&core.db, id)
            .await?
            .ok_or(SessionError::NotFound(id))?;
        let ownership = owner_of(&row, core.host_id);
        if ownership != Ownership::Nobody || !claim {
            return Ok((row, ownership, false));
        }
        if sessions::claim_idle(&core.db, core.host_id, id).await? {
            return Ok((row, Ownership::Ours, true));
        }
        if core.is_fenced() {
            return Err(StoreError::Fenced.into());
        }
    }
    Err(StoreError::Conflict("the session cannot be claimed".to_owned()).into())
}

fn owner_of(row: &StoredSession, me: HostId) -> Ownership {
    match (row.status, row.host_id) {
        (SessionStatus::Running, Some(host)) if host == me => Ownership::Ours,
        (SessionStatus::Running, _) => Ownership::Others,
        (SessionStatus::Idle, _) => Ownership::Nobody,
    }
}
