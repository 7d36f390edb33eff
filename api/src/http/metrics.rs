//! What the front counts of itself.

use std::{
    fmt::{self, Write},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the histogram of durations, in microseconds.
const BUCKETS_US: [u64; 12] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
    30_000_000,
];
/// Statuses that are counted apart; any other counts with the last.
const STATUSES: [u16; 20] = [
    200, 201, 202, 204, 400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 500, 502, 503, 504,
    0,
];

/// Which kind of route answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Everything but the rest.
    Api,
    /// `/hooks/…`
    Hooks,
    /// Health, metrics, documentation.
    Service,
}

impl RouteKind {
    const ALL: [Self; 3] = [Self::Api, Self::Hooks, Self::Service];

    /// Of a path.
    pub fn of(path: &str) -> Self {
        match path.split('/').nth(1) {
            Some("hooks") => Self::Hooks,
            Some("health" | "metrics" | "docs" | "openapi.json") => Self::Service,
            _ => Self::Api,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Hooks => "hooks",
            Self::Service => "service",
        }
    }
}

/// Counters of the front.
#[derive(Default)]
pub struct Metrics {
    kinds: [Counters; RouteKind::ALL.len()],
    in_flight: AtomicU64,
    panics: AtomicU64,
}

#[derive(Default)]
struct Counters {
    by_status: [AtomicU64; STATUSES.len()],
    buckets: [AtomicU64; BUCKETS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Metrics {
    /// Counts a request as in flight until the guard is dropped.
    pub fn begin(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(self)
    }

    /// Counts an answer. For streams `elapsed` ends with the headers.
    pub fn answered(&self, kind: RouteKind, status: u16, elapsed: Duration) {
        let counters = &self.kinds[kind as usize];
        let status = STATUSES
            .iter()
            .position(|known| *known == status)
            .unwrap_or(STATUSES.len() - 1);
        counters.by_status[status].fetch_add(1, Relaxed);
        let us = elapsed.as_micros() as u64;
        if let Some(bucket) = BUCKETS_US.iter().position(|bound| us <= *bound) {
            counters.buckets[bucket].fetch_add(1, Relaxed);
        }
        counters.count.fetch_add(1, Relaxed);
        counters.sum_us.fetch_add(us, Relaxed);
    }

    /// Counts a handler that panicked.
    pub fn panicked(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    /// Writes everything in the text format of Prometheus.
    pub fn write(&self, out: &mut Exposition) {
        out.family(
            "callboard_http_requests_total",
            "counter",
            "Answers by kind of route and status.",
        );
        for kind in RouteKind::ALL {
            for (status, count) in STATUSES.iter().zip(&self.kinds[kind as usize].by_status) {
                let count = count.load(Relaxed);
                if count > 0 {
                    let status = if *status == 0 {
                        "other".to_owned()
                    } else {
                        status.to_string()
                    };
                    out.sample(
                        &format!("{{route=\"{}\",status=\"{status}\"}}", kind.as_str()),
                        count,
                    );
                }
            }
        }
        self.write_durations(out);
        out.gauge(
            "callboard_http_requests_in_flight",
            "Requests being answered.",
            self.in_flight.load(Relaxed),
        );
        out.counter(
            "callboard_http_panics_total",
            "Handlers that panicked.",
            self.panics.load(Relaxed),
        );
    }

    fn write_durations(&self, out: &mut Exposition) {
        const NAME: &str = "callboard_http_request_duration_seconds";
        out.family(
            NAME,
            "histogram",
            "Time to the answer, of streams to its headers.",
        );
        for kind in RouteKind::ALL {
            let (counters, route) = (&self.kinds[kind as usize], kind.as_str());
            let mut below = 0;
            for (bound, bucket) in BUCKETS_US.iter().zip(&counters.buckets) {
                below += bucket.load(Relaxed);
                let bound = *bound as f64 / 1e6;
                out.named(
                    &format!("{NAME}_bucket{{route=\"{route}\",le=\"{bound}\"}}"),
                    below,
                );
            }
            let count = counters.count.load(Relaxed);
            out.named(
                &format!("{NAME}_bucket{{route=\"{route}\",le=\"+Inf\"}}"),
                count,
            );
            out.named(
                &format!("{NAME}_sum{{route=\"{route}\"}}"),
                counters.sum_us.load(Relaxed) as f64 / 1e6,
            );
            out.named(&format!("{NAME}_count{{route=\"{route}\"}}"), count);
        }
    }
}

/// A request in flight.
pub struct InFlight<'a>(&'a Metrics);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// Text for Prometheus, in the making.
#[derive(Default)]
pub struct Exposition {
    text: String,
    family: &'static str,
}

impl Exposition {
    /// Begins a metric.
    pub fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.family = name;
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// A sample of the metric begun last; `labels` with their braces, or nothing.
    pub fn sample(&mut self, labels: &str, value: impl fmt::Display) {
        let family = self.family;
        self.line(format_args!("{family}{labels} {value}"));
    }

    /// A metric of one sample that may fall.
    pub fn gauge(&mut self, name: &'static str, help: &str, value: impl fmt::Display) {
        self.family(name, "gauge", help);
        self.sample("", value);
    }

    /// A metric of one sample that only rises.
    pub fn counter(&mut self, name: &'static str, help: &str, value: impl fmt::Display) {
        self.family(name, "counter", help);
        self.sample("", value);
    }

    fn named(&mut self, sample: &str, value: impl fmt::Display) {
        self.line(format_args!("{sample} {value}"));
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{line}");
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_written() {
        let metrics = Metrics::default();
        let in_flight = metrics.begin();
        metrics.answered(
            RouteKind::of("/hooks/leads"),
            200,
            Duration::from_micros(700),
        );
        metrics.answered(RouteKind::of("/hooks/leads"), 418, Duration::from_secs(60));
        let mut out = Exposition::default();
        metrics.write(&mut out);
        drop(in_flight);
        let text = out.finish();
        for line in [
            "callboard_http_requests_total{route=\"hooks\",status=\"200\"} 1",
            "callboard_http_requests_total{route=\"hooks\",status=\"other\"} 1",
            "callboard_http_request_duration_seconds_bucket{route=\"hooks\",le=\"0.0005\"} 0",
            "callboard_http_request_duration_seconds_bucket{route=\"hooks\",le=\"30\"} 1",
            "callboard_http_request_duration_seconds_bucket{route=\"hooks\",le=\"+Inf\"} 2",
            "callboard_http_requests_in_flight 1",
        ] {
            assert!(
                text.lines().any(|written| written == line),
                "{line} is missing in\n{text}"
            );
        }
        assert_eq!(metrics.in_flight.load(Relaxed), 0);
    }
}
