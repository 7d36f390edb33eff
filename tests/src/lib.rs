//! What scenarios stand on: a real Postgres, the real binary, and local servers that speak the wire formats of
//! others.
//!
//! Every test has a database, a data directory and ports of its own, so tests of one file run side by side.
//! Nothing here waits for a duration: everything waits for a condition with a deadline. Failures panic with what
//! was seen, since the callers are tests.

pub mod database;
pub mod http;
pub mod model;
mod scratch;
pub mod server;
pub mod sse;
pub mod stub;
pub mod wait;

pub use database::Database;
pub use http::{Method, Reply};
pub use model::{ModelStub, Turn};
pub use scratch::{account_that_is_not_root, is_root, open_directory};
pub use server::{Options, Server};
pub use sse::{Event, Events};
pub use stub::{Answer, Gate, Recorded, Stub};
pub use wait::{DEADLINE, wait_until};
