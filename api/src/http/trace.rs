//! The id that ties an answer, the log and the rows of one request together.

use std::{fmt, sync::Arc};

use poem::http::HeaderMap;

/// 32 lower-case hex digits, not all zero: a trace id of W3C trace context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceId(Arc<str>);

impl TraceId {
    /// The client's, when it sent a valid `traceparent` or `X-Trace-Id`; else a fresh one.
    pub fn of(headers: &HeaderMap) -> Self {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        header("traceparent")
            .and_then(trace_of_parent)
            .or_else(|| header("x-trace-id"))
            .and_then(Self::parse)
            .unwrap_or_else(|| Self(format!("{:032x}", rand::random::<u128>().max(1)).into()))
    }

    fn parse(text: &str) -> Option<Self> {
        let hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        (hex && text.bytes().any(|byte| byte != b'0'))
            .then(|| Self(text.to_ascii_lowercase().into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The trace id in `version-trace-parent-flags`. Later versions may append fields; `ff` is never valid.
fn trace_of_parent(parent: &str) -> Option<&str> {
    let mut parts = parent.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let sizes = version.len() == 2 && span.len() == 16 && flags.len() == 2;
    let plain = version != "00" || parts.next().is_none();
    (sizes && plain && version != "ff").then_some(trace)
}

#[cfg(test)]
mod tests {
    use poem::http::HeaderValue;

    use super::*;

    fn of(name: &'static str, value: &'static str) -> TraceId {
        TraceId::of(&HeaderMap::from_iter([(
            poem::http::HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )]))
    }

    #[test]
    fn the_clients_trace_is_kept() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(
            of(
                "traceparent",
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
            )
            .as_str(),
            id
        );
        assert_eq!(
            of("x-trace-id", "4BF92F3577B34DA6A3CE929D0E0E4736").as_str(),
            id
        );
    }

    #[test]
    fn what_is_no_trace_id_is_replaced() {
        for value in [
            "",
            "abc",
            "00000000000000000000000000000000",
            "zzf92f3577b34da6a3ce929d0e0e4736",
        ] {
            let id = of("x-trace-id", value);
            assert_ne!(id.as_str(), value);
            assert_eq!(id.as_str().len(), 32);
        }
        assert_eq!(
            of(
                "traceparent",
                "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
            )
            .as_str()
            .len(),
            32
        );
    }
}
