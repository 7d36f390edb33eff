//! One actor per file: mailboxes, timers and children. What to do is decided in `model`, what to write in `store`.

pub mod execution;
pub mod execution_manager;
pub mod node_runner;
