//! Durations as documents write them: a number and one of `ms s m h d`, such as `500ms` or `2d`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// The longest duration a document may name: ten years.
pub const DURATION_MAX: Duration = Duration::from_secs(10 * 366 * 86_400);

/// Reads `500ms`, `30s`, `1.5h`, `2d`. The error is a sentence fragment that says what was expected.
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let expected = || format!("expected a duration such as 500ms, 30s, 5m, 2h or 2d, not `{text}`");
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .ok_or_else(expected)?;
    let number: f64 = text[..split].parse().map_err(|_| expected())?;
    let unit = match text[split..].trim() {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(expected()),
    };
    let duration = Duration::try_from_secs_f64(number * unit).map_err(|_| expected())?;
    if duration > DURATION_MAX {
        Err("a duration is at most 3660d".to_owned())
    } else {
        Ok(duration)
    }
}

/// For `#[serde(deserialize_with = "duration::deserialize")]` fields.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

/// For optional fields; absent and `null` are `None`.
pub fn deserialize_option<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    Option::<String>::deserialize(deserializer)?
        .map(|text| parse(&text).map_err(de::Error::custom))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read() {
        for (text, ms) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1.5h", 5_400_000),
            ("2d", 172_800_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "5", "m", "-1s", "5 parsecs", "1e9d", "4000d"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
