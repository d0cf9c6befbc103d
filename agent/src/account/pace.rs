//! One token bucket for all calls of this agent: AWS has one for the whole account, and others need theirs. It slows down
//! when AWS says so, and recovers. Deciding is pure: time is an argument.

use std::time::{Duration, Instant};

/// Calls at once after a rest, in seconds' worth of the rate.
const BURST_SECS: f64 = 2.0;
/// However often AWS says no: one call in two seconds finds out whether it still does.
const RATE_MIN: f64 = 0.5;
/// From nothing to the configured rate.
const RECOVERY_SECS: f64 = 60.0;
/// Calls that were under way together are told "too many" together: that counts once.
const SLOWED_AGAIN: Duration = Duration::from_secs(1);

/// When the next call may be made.
#[derive(Debug)]
pub struct Pace {
    rate_max: f64,
    /// Calls per second at present.
    rate: f64,
    tokens: f64,
    at: Instant,
    slowed: Option<Instant>,
}

impl Pace {
    pub fn new(rate_max: u32, now: Instant) -> Pace {
        let rate_max = f64::from(rate_max.max(1));
        Pace { rate_max, rate: rate_max, tokens: rate_max * BURST_SECS, at: now, slowed: None }
    }

    /// Takes a turn, and says how long to wait for it. Turns come in the order in which they were taken.
    pub fn take(&mut self, now: Instant) -> Duration {
        self.advance(now);
        self.tokens -= 1.0;
        Duration::from_secs_f64((-self.tokens / self.rate).max(0.0))
    }

    /// A turn that was not used.
    pub fn give_back(&mut self, now: Instant) {
        self.advance(now);
        self.tokens = (self.tokens + 1.0).min(self.rate * BURST_SECS);
    }

    /// AWS has said that calls come too fast.
    pub fn slow_down(&mut self, now: Instant) {
        self.advance(now);
        if self.slowed.is_some_and(|at| now.saturating_duration_since(at) < SLOWED_AGAIN) {
            return;
        }
        self.slowed = Some(now);
        self.rate = (self.rate / 2.0).max(RATE_MIN);
        self.tokens = self.tokens.min(0.0);
    }

    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// What has come in since: turns, and speed.
    fn advance(&mut self, now: Instant) {
        let secs = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.tokens = (self.tokens + secs * self.rate).min(self.rate * BURST_SECS);
        self.rate = (self.rate + secs * self.rate_max / RECOVERY_SECS).min(self.rate_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: f64) -> Duration {
        Duration::from_secs_f64(secs)
    }

    fn millis(wait: Duration) -> u128 {
        wait.as_millis()
    }

    #[test]
    fn a_burst_then_the_rate_and_turns_in_order() {
        let start = Instant::now();
        let mut pace = Pace::new(5, start);
        let waits: Vec<u128> = (0..13).map(|_| millis(pace.take(start))).collect();
        assert_eq!(waits[..10], [0; 10]);
        assert_eq!(waits[10..], [200, 400, 600]);
        assert_eq!(millis(pace.take(start + secs(0.6))), 200, "behind those that wait");
        pace.give_back(start + secs(0.6));
        assert_eq!(
            millis(pace.take(start + secs(0.6))),
            200,
            "a turn given back is the next one's"
        );
        let rested = start + secs(3600.0);
        let free = (0..100).filter(|_| pace.take(rested).is_zero()).count();
        assert_eq!(free, 10, "a long rest is no more than a burst");
    }

    #[test]
    fn it_never_makes_more_calls_than_burst_and_rate_allow() {
        let start = Instant::now();
        for asked_every_millis in [1_u64, 7, 150, 400] {
            let mut pace = Pace::new(5, start);
            let made: Vec<Duration> = (0..500)
                .map(|n| Duration::from_millis(n * asked_every_millis))
                .map(|at| at + pace.take(start + at))
                .collect();
            for (n, from) in made.iter().enumerate() {
                let within = made[n..].iter().filter(|at| **at < *from + secs(10.0)).count();
                assert!(within <= 10 + 50, "{within} calls in 10 s");
            }
        }
    }

    #[test]
    fn too_fast_halves_it_once_and_it_recovers() {
        let start = Instant::now();
        let mut pace = Pace::new(8, start);
        for _ in 0..10 {
            pace.slow_down(start);
        }
        assert!((pace.rate() - 4.0).abs() < 1e-9, "one answer for all that were under way");
        assert_eq!(millis(pace.take(start)), 250, "no burst is left");
        pace.slow_down(start + secs(2.0));
        assert!(pace.rate() < 2.2, "{}", pace.rate());
        for n in 0..100 {
            pace.slow_down(start + secs(2.0 + f64::from(n)));
        }
        assert!(pace.rate() >= RATE_MIN && pace.rate() < 0.8, "{}", pace.rate());
        pace.take(start + secs(101.0 + RECOVERY_SECS));
        assert!((pace.rate() - 8.0).abs() < 1e-9, "as before, a minute later");
    }
}
