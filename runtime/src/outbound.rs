//! The one HTTP client for everything that nodes, tools and providers send: it resolves names itself, refuses
//! private, loopback and metadata addresses unless allowed, and checks every redirect again.

/// Where requests may go besides public addresses.
#[derive(Clone, Debug, Default)]
pub struct OutboundPolicy {
    /// Networks and host names, as given to `--allow-outbound`.
    pub allowed: Vec<String>,
}

/// A guarded HTTP client. Cloning it is cheap; all clones share connections.
#[derive(Clone)]
pub struct OutboundClient {}
