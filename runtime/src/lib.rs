//! The engine of Callboard: definitions, the pure state machine, expressions, actors, the store, and the
//! contracts that nodes, tools and model providers implement.

mod actors;
pub mod bounds;
pub mod core;
pub mod document;
pub mod documents;
pub mod duration;
pub mod events;
pub mod executions;
pub mod expression;
mod graphs;
pub mod id;
pub mod item;
pub mod journal;
pub mod model;
pub mod node;
pub mod outbound;
pub mod postgres;
pub mod provider;
pub mod schema;
pub mod store;
pub mod tool;
