//! The caller's deadline, as gRPC sends it: `grpc-timeout: <up to 8 digits><unit>`.
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

use std::time::{Duration, Instant};

use http::HeaderMap;

/// What the server takes as a deadline.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For callers that name none.
    pub default: Duration,
    /// A worker is never given longer than this, whatever the caller says.
    pub max: Duration,
}

/// When the call that arrived `now` must be answered; `None` for a header that is not a timeout.
pub fn deadline(headers: &HeaderMap, limits: Limits, now: Instant) -> Option<Instant> {
    let timeout = match headers.get("grpc-timeout") {
        None => limits.default,
        Some(value) => parse(value.to_str().ok()?)?,
    };
    Some(now + timeout.min(limits.max))
}

fn parse(value: &str) -> Option<Duration> {
    let digits = value.get(..value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match value.as_bytes().last()? {
        b'H' => Some(Duration::from_secs(amount * 3600)),
        b'M' => Some(Duration::from_secs(amount * 60)),
        b'S' => Some(Duration::from_secs(amount)),
        b'm' => Some(Duration::from_millis(amount)),
        b'u' => Some(Duration::from_micros(amount)),
        b'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        let cases = [
            ("10S", Some(Duration::from_secs(10))),
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("7n", Some(Duration::from_nanos(7))),
            ("0m", Some(Duration::ZERO)),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("", None),
            ("S", None),
            ("10", None),
            ("10s", None),
            ("-1S", None),
            ("123456789S", None),
            ("1é", None),
        ];
        for (value, expected) in cases {
            assert_eq!(parse(value), expected, "{value:?}");
        }
    }

    #[test]
    fn default_and_cap() {
        let limits = Limits { default: Duration::from_secs(10), max: Duration::from_secs(60) };
        let now = Instant::now();
        let check = |value: Option<&str>, expected: Option<u64>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert("grpc-timeout", value.parse().unwrap());
            }
            let expected = expected.map(|secs| now + Duration::from_secs(secs));
            assert_eq!(deadline(&headers, limits, now), expected, "{value:?}");
        };
        check(None, Some(10));
        check(Some("3S"), Some(3));
        check(Some("99999999H"), Some(60));
        check(Some("soon"), None);
    }
}
