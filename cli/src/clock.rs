//! The one place that reads the clock.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub fn now_unix_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

pub fn now() -> Instant {
    Instant::now()
}
