//! When the service of an instance is started again: systemd's `Restart=always` with growing pauses.

use std::time::{Duration, Instant};

/// Pauses double from the first to the last; a service that was up this long starts again from the first.
const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(5);
const STEADY: Duration = Duration::from_secs(10);

/// Pure: told when the service started and ended, says how long to wait.
#[derive(Debug, Clone, Copy)]
pub struct Restarts {
    pause: Duration,
    started: Instant,
}

impl Restarts {
    pub fn new(now: Instant) -> Self {
        Restarts { pause: FIRST, started: now }
    }

    pub fn started(&mut self, now: Instant) {
        self.started = now;
    }

    /// The pause before the next start.
    pub fn ended(&mut self, now: Instant) -> Duration {
        if now.duration_since(self.started) >= STEADY {
            self.pause = FIRST;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LAST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_reset_after_steady_life() {
        let mut now = Instant::now();
        let mut restarts = Restarts::new(now);
        let mut life = |secs: u64| {
            restarts.started(now);
            now += Duration::from_secs(secs);
            u64::try_from(restarts.ended(now).as_millis()).unwrap()
        };
        let pauses: Vec<u64> = (0..8).map(|_| life(1)).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(life(10), 100);
        assert_eq!(life(9), 200);
    }
}
