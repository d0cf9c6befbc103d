//! The only place that reads the wall clock; everything that decides is given the time.

use std::time::Duration;

use time::OffsetDateTime;

pub fn utc() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// Seconds since 1970. A clock before that reads as 0: certificates and tokens then look not yet
/// valid, rather than valid for ever.
pub fn unix_secs() -> u64 {
    u64::try_from(utc().unix_timestamp()).unwrap_or(0)
}

/// How long from `now_unix_secs` to `at_unix_secs`; nothing if that has passed.
pub fn until(at_unix_secs: u64, now_unix_secs: u64) -> Duration {
    Duration::from_secs(at_unix_secs.saturating_sub(now_unix_secs))
}
