//! `spec.settings`.

use chrono_tz::{TZ_VARIANTS, Tz};

use crate::{
    document::{reader::Reader, wording},
    model::graph::Settings,
    tool::OnCrash,
};

const PARALLEL_MAX: i64 = 1_000;
const NODE_RUNS_MAX: i64 = 1_000_000;

/// The settings, and what steps that say nothing else do after a crash.
pub(super) fn read(settings: Option<&Reader<'_>>) -> Option<(Settings, OnCrash)> {
    let mut read = Settings::default();
    let Some(settings) = settings else {
        return Some((read, OnCrash::default()));
    };
    let mut fields = settings.fields()?;
    read.timeout = fields
        .optional("timeout")
        .and_then(|timeout| timeout.duration());
    let parallel = fields
        .optional("max_parallel")
        .map(|max| max.integer(1..=PARALLEL_MAX));
    let node_runs = fields
        .optional("max_node_runs")
        .map(|max| max.integer(1..=NODE_RUNS_MAX));
    let zone = fields.optional("timezone").map(|zone| timezone(&zone));
    let on_crash = fields.optional("on_crash").map(|choice| on_crash(&choice));
    fields.later(&[
        "concurrency",
        "debounce",
        "error_workflow",
        "priority",
        "rate_limit",
    ]);
    fields.finish();
    read.max_parallel = parallel.unwrap_or(Some(read.max_parallel))?;
    read.max_node_runs = node_runs.unwrap_or(Some(read.max_node_runs))?;
    if let Some(zone) = zone {
        read.timezone = zone?.into();
    }
    Some((read, on_crash.unwrap_or(Some(OnCrash::default()))?))
}

/// `retry` or `fail`; `ask` waits for approvals, which this version does not have.
pub(super) fn on_crash(choice: &Reader<'_>) -> Option<OnCrash> {
    if choice.value() == "ask" {
        choice.unsupported("`on_crash: ask` is");
        return None;
    }
    choice.choice(&[("retry", OnCrash::Retry), ("fail", OnCrash::Fail)])
}

/// An IANA name, spelled as the zone database spells it.
fn timezone<'a>(zone: &Reader<'a>) -> Option<&'a str> {
    let name = zone.text(1..=64)?;
    if name.parse::<Tz>().is_err() {
        let closest = wording::closest(name, TZ_VARIANTS.iter().map(|zone| zone.name()));
        let hint = closest.map(|name| format!("; did you mean `{name}`?"));
        let message = "Input should be an IANA time zone such as `UTC` or `Europe/Berlin`";
        zone.fault(
            "value_error",
            message.to_owned() + &hint.unwrap_or_default(),
        );
        return None;
    }
    Some(name)
}
