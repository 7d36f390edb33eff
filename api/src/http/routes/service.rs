//! Health and metrics.

use std::{net::IpAddr, sync::Arc, time::Duration};

use poem::{Addr, Request, web::RemoteAddr};
use poem_openapi::{Object, OpenApi, payload::PlainText};
use serde::Serialize;
use tokio::time::timeout;

use super::Tag;
use crate::http::{
    State,
    answer::Found,
    metrics::Exposition,
    problem::{ApiError, ApiResult},
};

/// How long the database may take to answer before the host counts as not ready.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

pub struct Operations(pub Arc<State>);

/// `{"status": "ok"}`
#[derive(Object, Serialize)]
struct Health {
    /// `ok`
    status: &'static str,
}

#[OpenApi(tag = "Tag::Service")]
impl Operations {
    /// Whether the process lives
    ///
    /// Needs no key. Answers as long as the process can answer at all.
    #[oai(path = "/health/live", method = "get", operation_id = "health_live")]
    async fn live(&self) -> ApiResult<Found<Health>> {
        Ok(Found::new(Health { status: "ok" }))
    }

    /// Whether the host takes work
    ///
    /// Needs no key. 503 while the host stops, is fenced, has no database, or has more to write than it should.
    #[oai(path = "/health/ready", method = "get", operation_id = "health_ready")]
    async fn ready(&self) -> ApiResult<Found<Health>> {
        let core = &self.0.app.core;
        self.0.takes_work()?;
        let not_ready = |code, detail| ApiError::unavailable(code, detail, Duration::from_secs(1));
        let probe = sqlx::query_scalar::<_, i32>("SELECT 1").fetch_one(&core.db);
        if !matches!(timeout(PROBE_TIMEOUT, probe).await, Ok(Ok(_))) {
            return Err(not_ready("database_unavailable", "The database does not answer."));
        }
        if core.journal.is_saturated() {
            return Err(not_ready("saturated", "More waits to be written than should be."));
        }
        Ok(Found::new(Health { status: "ok" }))
    }

    /// Counters in the text format of Prometheus
    ///
    /// Scope `metrics:read`, unless the request comes from the machine itself.
    #[oai(path = "/metrics", method = "get", operation_id = "metrics")]
    async fn metrics(&self, request: &Request) -> ApiResult<PlainText<String>> {
        if !is_local(request) {
            self.0.keys.caller(request, false).await?.require("metrics:read")?;
        }
        let mut out = Exposition::default();
        self.0.metrics.write(&mut out);
        Ok(PlainText(out.finish()))
    }
}

/// Whether a request was made on this machine. One that a proxy passed on was not, wherever the proxy is.
fn is_local(request: &Request) -> bool {
    let forwarded = ["forwarded", "x-forwarded-for", "x-real-ip"].iter().any(|name| request.headers().contains_key(*name));
    let RemoteAddr(Addr::SocketAddr(address)) = request.remote_addr() else { return false };
    let ip = match address.ip() {
        IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
        ip => ip,
    };
    !forwarded && ip.is_loopback()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn from(address: &str) -> poem::RequestBuilder {
        let address: SocketAddr = address.parse().expect("it is an address");
        Request::builder().remote_addr(RemoteAddr(Addr::SocketAddr(address)))
    }

    #[test]
    fn only_unforwarded_requests_from_this_machine_are_local() {
        assert!(is_local(&from("127.0.0.1:5").finish()));
        assert!(is_local(&from("[::1]:5").finish()));
        assert!(is_local(&from("[::ffff:127.0.0.1]:5").finish()));
        assert!(!is_local(&from("10.0.0.1:5").finish()));
        assert!(!is_local(&from("127.0.0.1:5").header("X-Forwarded-For", "8.8.8.8").finish()));
    }
}
