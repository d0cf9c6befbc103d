//! The only place that reads clocks. What must be simulated carries a [`Clock`]; the rest asks the
//! machine's directly.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub fn now() -> Instant {
    Instant::now()
}

/// Seconds since 1970; 0 on a machine whose clock is before that.
pub fn unix_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Where a part takes its time from. Clones show the same time.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    #[default]
    System,
    /// Stands still until it is turned: a simulated month passes in a second.
    Manual(Arc<ManualClock>),
}

impl Clock {
    pub fn now(&self) -> Instant {
        match self {
            Clock::System => now(),
            Clock::Manual(clock) => clock.now(),
        }
    }

    pub fn unix_secs(&self) -> u64 {
        match self {
            Clock::System => unix_secs(),
            Clock::Manual(clock) => clock.unix_millis() / 1000,
        }
    }
}

/// Two clocks, as a machine has them: one that only goes forward, and one that shows the time of day
/// and may be set.
#[derive(Debug)]
pub struct ManualClock {
    start: Instant,
    elapsed_millis: AtomicU64,
    unix_millis: AtomicU64,
}

impl ManualClock {
    pub fn new(unix_secs: u64) -> Arc<ManualClock> {
        Arc::new(ManualClock {
            start: Instant::now(),
            elapsed_millis: AtomicU64::new(0),
            unix_millis: AtomicU64::new(unix_secs * 1000),
        })
    }

    pub fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.elapsed_millis.load(Ordering::Relaxed))
    }

    pub fn unix_millis(&self) -> u64 {
        self.unix_millis.load(Ordering::Relaxed)
    }

    pub fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.elapsed_millis.fetch_add(millis, Ordering::Relaxed);
        self.unix_millis.fetch_add(millis, Ordering::Relaxed);
    }

    /// Sets the time of day, as an administrator or NTP would; the other clock goes on as it did.
    pub fn set_unix_millis(&self, unix_millis: u64) {
        self.unix_millis.store(unix_millis, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_stands_still_until_it_is_turned() {
        let manual = ManualClock::new(1000);
        let clock = Clock::Manual(manual.clone());
        let start = clock.now();
        manual.advance(Duration::from_millis(2500));
        assert_eq!((clock.now() - start, clock.unix_secs()), (Duration::from_millis(2500), 1002));
        manual.set_unix_millis(500_000);
        assert_eq!((clock.now() - start, clock.unix_secs()), (Duration::from_millis(2500), 500));
    }
}
