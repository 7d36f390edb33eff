//! The HTTP front and what the command line shares with it.

pub mod cli;
pub mod config;
pub mod http;
pub mod serve;
