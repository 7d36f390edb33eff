//! Agents: definitions, the pure turn engine, model providers, tools, and the actors of sessions.

mod actors;
pub mod agents;
mod events;
pub mod model;
pub mod node;
pub mod provider;
pub mod sessions;
pub mod tool;

pub use model::agent as definition;
