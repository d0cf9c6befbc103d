//! The only place of this crate that reads a clock.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

pub fn now() -> Instant {
    Instant::now()
}

/// When this program started, on both sides of the same clock.
static START: LazyLock<(Instant, u64)> = LazyLock::new(|| {
    let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has this clock");
    let nanos = monotonic.tv_sec() as u64 * 1_000_000_000 + monotonic.tv_nsec() as u64;
    (Instant::now(), nanos)
});

/// The moment as another process of this machine reads it off its monotonic clock.
pub fn monotonic_nanos(at: Instant) -> u64 {
    let (start, nanos) = *START;
    nanos.saturating_add(u64::try_from(at.saturating_duration_since(start).as_nanos()).unwrap_or(0))
}

pub fn unix_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
