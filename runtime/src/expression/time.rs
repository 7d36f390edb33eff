//! The clock of expressions: `$now` and `$today` in the workflow's time zone, and the offsets that scripts ask for.

use chrono::{DateTime, NaiveTime, Offset, SecondsFormat, TimeZone, Utc};
use chrono_tz::Tz;

use super::{Scope, value::Failure};

/// Milliseconds since 1970 that have a date in every library involved.
const MILLIS_MAX: i64 = 8_000_000_000_000_000;

/// The zone of this name. Fails for names that are not in the IANA list.
pub(super) fn zone(name: &str) -> Result<Tz, Failure> {
    if name.eq_ignore_ascii_case("utc") {
        return Ok(Tz::UTC);
    }
    name.parse()
        .map_err(|_| format!("`{name}` is no time zone"))
}

/// How far a zone's clocks are ahead of UTC at a moment, in minutes.
pub(super) fn offset(name: &str, millis: i64) -> Result<f64, Failure> {
    let moment = moment(millis)?;
    let offset = zone(name)?.offset_from_utc_datetime(&moment.naive_utc());
    Ok(f64::from(offset.fix().local_minus_utc()) / 60.0)
}

/// The moment at which a zone's clocks show `local`, given as if it were UTC. Of two such moments the earlier;
/// where clocks skip it, as much later as they skip.
pub(super) fn from_local(name: &str, local: i64) -> Result<i64, Failure> {
    let minute = 60_000.0;
    let at = |millis: i64| offset(name, millis).map(|minutes| (minutes * minute) as i64);
    // A day to either side no change can hide both offsets.
    let before = at(local - 86_400_000)?;
    let after = at(local + 86_400_000)?;
    for candidate in [local - before, local - after] {
        if candidate + at(candidate)? == local {
            return Ok(candidate);
        }
    }
    Ok(local - before)
}

/// `$now` as text.
pub(super) fn now(scope: &Scope) -> Result<String, Failure> {
    iso(scope, scope.now.timestamp_millis())
}

/// `$today` as text.
pub(super) fn today(scope: &Scope) -> Result<String, Failure> {
    let zone = zone(&scope.timezone)?;
    let midnight = scope
        .now
        .with_timezone(&zone)
        .date_naive()
        .and_time(NaiveTime::MIN);
    let millis = from_local(&scope.timezone, midnight.and_utc().timestamp_millis())?;
    iso(scope, millis)
}

fn iso(scope: &Scope, millis: i64) -> Result<String, Failure> {
    let zone = zone(&scope.timezone)?;
    let local = moment(millis)?.with_timezone(&zone);
    // Only UTC itself is written as `Z`.
    let utc = zone == Tz::UTC || zone == Tz::Etc__UTC;
    Ok(local.to_rfc3339_opts(SecondsFormat::Millis, utc))
}

fn moment(millis: i64) -> Result<DateTime<Utc>, Failure> {
    Some(millis)
        .filter(|millis| millis.abs() <= MILLIS_MAX)
        .and_then(DateTime::from_timestamp_millis)
        .ok_or_else(|| "the date is out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(now: &str, timezone: &str) -> Scope {
        Scope {
            now: now.parse().unwrap(),
            timezone: timezone.into(),
            ..Scope::default()
        }
    }

    #[test]
    fn now_and_today_are_those_of_the_zone() {
        let winter = scope("2024-01-15T23:30:00.123Z", "Europe/Berlin");
        assert_eq!(now(&winter).unwrap(), "2024-01-16T00:30:00.123+01:00");
        assert_eq!(today(&winter).unwrap(), "2024-01-16T00:00:00.000+01:00");
        let utc = scope("2024-07-15T23:30:00Z", "UTC");
        assert_eq!(now(&utc).unwrap(), "2024-07-15T23:30:00.000Z");
        assert!(now(&scope("2024-07-15T23:30:00Z", "Mars/Base")).is_err());
    }

    #[test]
    fn a_local_time_that_clocks_skip_or_repeat_has_one_moment() {
        let local = |text: &str| text.parse::<DateTime<Utc>>().unwrap().timestamp_millis();
        let utc = |text: &str| {
            let millis = from_local("Europe/Berlin", local(text)).unwrap();
            DateTime::from_timestamp_millis(millis)
                .unwrap()
                .to_rfc3339_opts(SecondsFormat::Secs, true)
        };
        assert_eq!(utc("2024-07-01T12:00:00Z"), "2024-07-01T10:00:00Z");
        assert_eq!(utc("2024-03-31T02:30:00Z"), "2024-03-31T01:30:00Z");
        assert_eq!(utc("2024-10-27T02:30:00Z"), "2024-10-27T00:30:00Z");
        assert_eq!(utc("2024-10-27T03:00:00Z"), "2024-10-27T02:00:00Z");
    }

    #[test]
    fn a_day_may_start_after_midnight() {
        let gap = scope("2018-11-04T12:00:00Z", "America/Sao_Paulo");
        assert_eq!(today(&gap).unwrap(), "2018-11-04T01:00:00.000-02:00");
    }
}
