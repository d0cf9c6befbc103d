//! Full jitter: a random pause below a bound that doubles. Callers that lost the same server at the same
//! moment do not come back at the same moment.

use std::time::Duration;

#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    attempts: u32,
}

impl Backoff {
    pub const fn new(first: Duration, max: Duration) -> Self {
        Backoff { first, max, attempts: 0 }
    }

    /// The next pause; `random` is uniform in 0..1.
    pub fn next(&mut self, random: f64) -> Duration {
        let bound = self.first.saturating_mul(1 << self.attempts.min(20)).min(self.max);
        self.attempts = self.attempts.saturating_add(1);
        bound.mul_f64(random.clamp(0.0, 1.0))
    }

    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_up_to_the_maximum() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let mut pauses = |random: f64, count: usize| -> Vec<u128> {
            let pauses = (0..count).map(|_| backoff.next(random).as_millis()).collect();
            backoff.reset();
            pauses
        };
        assert_eq!(pauses(1.0, 7), [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(pauses(0.5, 3), [25, 50, 100]);
        assert_eq!(pauses(0.0, 3), [0, 0, 0]);
        assert_eq!(pauses(1.0, 100)[99], 1000);
    }
}
