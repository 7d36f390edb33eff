//! The pure part of agents: definitions, the journal's records, and the state machine of a session. No clock,
//! no randomness, no I/O, no async.

pub mod agent;
pub mod provider;
pub mod record;
pub mod session;
pub mod spec;
pub mod transcript;
