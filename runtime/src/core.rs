//! What every part of a running host shares.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sqlx::PgPool;

use crate::{
    documents::Documents,
    events::EventHub,
    id::HostId,
    journal::Journal,
    outbound::{OutboundClient, OutboundPolicy},
};

/// How a host is set up. Read once at start and checked as a whole by [`Config::check`].
#[derive(Clone, Debug)]
pub struct Config {
    /// A Postgres URL.
    pub database_url: String,
    /// `host-label`s, for placement.
    pub labels: BTreeMap<String, String>,
    /// How long this host may write without renewing. 2 s to 60 s.
    pub lease: Duration,
    /// How many executions may run at once here; more are refused with 429.
    pub running_max: usize,
    /// Where nodes, tools and providers may connect to.
    pub outbound: OutboundPolicy,
    /// Names of environment variables that expressions may read.
    pub env_allowed: Vec<String>,
    /// No other process can be using this database: what earlier hosts left is adopted at once instead of
    /// after their leases.
    pub exclusive: bool,
}

/// The shared parts of a running host. Cloning it is cheap; all clones are one.
#[derive(Clone)]
pub struct Core {
    /// The database, for reads and for writes that belong to no owner.
    pub db: PgPool,
    /// The one path by which owners write.
    pub journal: Journal,
    /// Live tails.
    pub events: EventHub,
    /// Definitions.
    pub documents: Documents,
    /// The one client for requests to the outside.
    pub outbound: OutboundClient,
    /// This process.
    pub host_id: HostId,
    /// How it was set up.
    pub config: Arc<Config>,
}
