//! The pure part of the engine: compiled workflows and the state machine of an execution. No clock, no
//! randomness, no I/O, no async.

pub mod execution;
pub mod graph;
