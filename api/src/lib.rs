//! The HTTP front and what the command line shares with it.

pub mod http;
