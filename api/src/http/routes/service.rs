//! Health and metrics.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use poem::{Addr, Request, http::HeaderMap, web::RemoteAddr};
use poem_openapi::{Object, OpenApi, payload::PlainText};
use serde::Serialize;
use tokio::time::timeout;

use super::Tag;
use crate::http::{
    State,
    answer::Found,
    metrics::Exposition,
    origin,
    problem::{ApiError, ApiResult},
};

/// How long the database may take to answer before the host counts as not ready.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

pub struct Operations(pub Arc<State>);

/// `{"status": "ok"}`
#[derive(Object, Serialize)]
struct Health {
    /// `ok`
    status: String,
}

#[OpenApi(tag = "Tag::Service")]
impl Operations {
    /// Whether the process lives
    ///
    /// Needs no key. Answers as long as the process can answer at all.
    #[oai(path = "/health/live", method = "get", operation_id = "health_live")]
    async fn live(&self) -> ApiResult<Found<Health>> {
        Ok(Found::new(Health {
            status: "ok".to_owned(),
        }))
    }

    /// Whether the host takes work
    ///
    /// Needs no key. 503 while the host stops, is fenced, has no database, or has more to write than it should.
    #[oai(path = "/health/ready", method = "get", operation_id = "health_ready")]
    async fn ready(&self) -> ApiResult<Found<Health>> {
        let core = &self.0.app.core;
        self.0.takes_work()?;
        let not_ready = |code, detail| ApiError::unavailable(code, detail, Duration::from_secs(1));
        if core.is_fenced() {
            return Err(not_ready("fenced", "This host may not write any more."));
        }
        let probe = sqlx::query_scalar::<_, i32>("SELECT 1").fetch_one(&core.db);
        if !core.journal.is_connected() || !matches!(timeout(PROBE_TIMEOUT, probe).await, Ok(Ok(_)))
        {
            return Err(not_ready(
                "database_unavailable",
                "The database does not answer.",
            ));
        }
        if !core.may_start_effects() {
            return Err(not_ready(
                "lease_lost",
                "This host could not renew its lease.",
            ));
        }
        if core.journal.is_saturated() {
            return Err(not_ready(
                "saturated",
                "More waits to be written than should be.",
            ));
        }
        Ok(Found::new(Health {
            status: "ok".to_owned(),
        }))
    }

    /// Counters in the text format of Prometheus
    ///
    /// Scope `metrics:read`, unless the request comes from the machine itself.
    #[oai(path = "/metrics", method = "get", operation_id = "metrics")]
    async fn metrics(&self, request: &Request) -> ApiResult<PlainText<String>> {
        let local = is_local(request.remote_addr(), request.headers());
        if !local || origin::check(request).is_err() {
            self.0
                .keys
                .caller(request, false)
                .await?
                .require("metrics:read")?;
        }
        let mut out = Exposition::default();
        self.0.metrics.write(&mut out);
        self.write_host(&mut out);
        Ok(PlainText(out.finish()))
    }
}

impl Operations {
    fn write_host(&self, out: &mut Exposition) {
        let app = &self.0.app;
        let (journal, stats) = (&app.core.journal, app.core.journal.stats());
        let (rows, bytes) = journal.queued();
        let seconds = stats.commit_micros.load(Relaxed) as f64 / 1e6;
        out.gauge(
            "callboard_executions_running",
            "Executions that run on this host.",
            app.executions.running(),
        );
        out.gauge(
            "callboard_journal_queued_rows",
            "Rows that wait to be written.",
            rows,
        );
        out.gauge(
            "callboard_journal_queued_bytes",
            "About how many bytes they have.",
            bytes,
        );
        out.gauge(
            "callboard_database_connected",
            "Whether all writers reach the database.",
            u8::from(journal.is_connected()),
        );
        out.gauge(
            "callboard_host_leased",
            "Whether this host's lease is good.",
            u8::from(app.core.may_start_effects()),
        );
        out.counter(
            "callboard_journal_batches_total",
            "Transactions of the journal.",
            stats.batches.load(Relaxed),
        );
        out.counter(
            "callboard_journal_rows_total",
            "Rows written to the journal.",
            stats.rows.load(Relaxed),
        );
        out.counter(
            "callboard_journal_bytes_total",
            "About how many bytes they had.",
            stats.bytes.load(Relaxed),
        );
        out.counter(
            "callboard_journal_commit_seconds_total",
            "Time spent in commits.",
            seconds,
        );
        out.counter(
            "callboard_journal_retries_total",
            "Batches that were sent again.",
            stats.retries.load(Relaxed),
        );
        out.counter(
            "callboard_journal_refusals_total",
            "Owners whose writes were refused.",
            stats.refusals.load(Relaxed),
        );
        out.gauge(
            "callboard_documents_revision",
            "The change of documents that memory follows.",
            app.core.documents.revision(),
        );
    }
}

/// Whether a request was made on this machine. One that a proxy passed on was not, wherever the proxy is.
fn is_local(remote: &RemoteAddr, headers: &HeaderMap) -> bool {
    let forwarded = ["forwarded", "x-forwarded-for", "x-real-ip"]
        .iter()
        .any(|name| headers.contains_key(*name));
    let RemoteAddr(Addr::SocketAddr(address)) = remote else {
        return false;
    };
    !forwarded && address.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use poem::http::{HeaderName, HeaderValue};

    use super::*;

    fn from(address: &str, forwarded: bool) -> bool {
        let address: SocketAddr = address.parse().expect("it is an address");
        let header = (
            HeaderName::from_static("x-forwarded-for"),
            HeaderValue::from_static("192.0.2.1"),
        );
        let headers = forwarded.then_some(header).into_iter().collect();
        is_local(&RemoteAddr(Addr::SocketAddr(address)), &headers)
    }

    #[test]
    fn only_unforwarded_requests_from_this_machine_are_local() {
        assert!(from("127.0.0.1:5", false));
        assert!(from("[::1]:5", false));
        assert!(from("[::ffff:127.0.0.1]:5", false));
        assert!(!from("10.0.0.1:5", false));
        assert!(!from("127.0.0.1:5", true));
    }
}
