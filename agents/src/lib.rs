//! Agents: definitions, the pure turn engine, model providers, and the actors of sessions.

pub mod model;
pub mod provider;
pub mod sessions;
