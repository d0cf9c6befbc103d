//! When to dial the broker again. Pure.

use std::time::Duration;

const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A session that lasted so long was a good one: the next dial starts without a history.
const GOOD_SESSION: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct Redial {
    attempts: u32,
}

impl Redial {
    /// After an attempt that lasted so long, `jitter` from 0 to 1. Full jitter, also after a clean
    /// end: a fleet must not come back in step.
    pub fn pause(
        &mut self,
        lasted: Duration,
        retry_after: Option<Duration>,
        jitter: f64,
    ) -> Duration {
        if lasted >= GOOD_SESSION {
            self.attempts = 0;
        }
        self.attempts = self.attempts.saturating_add(1);
        let ceiling = RETRY_MIN.saturating_mul(1 << self.attempts.min(10)).min(RETRY_MAX);
        retry_after.unwrap_or_default() + ceiling.mul_f64(jitter)
    }

    pub fn attempts(&self) -> u32 {
        self.attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_minute_and_a_good_session_ends_their_growth() {
        let mut redial = Redial::default();
        let mut pause = |lasted, retry_after, jitter| {
            redial.pause(Duration::from_secs(lasted), retry_after, jitter).as_millis()
        };
        let growing: Vec<u128> = (0..9).map(|_| pause(0, None, 1.0)).collect();
        assert_eq!(growing, [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(pause(0, None, 0.0), 0, "full jitter");
        assert_eq!(pause(60, None, 1.0), 500, "after a good session");
        let told = Some(Duration::from_secs(30));
        assert_eq!(pause(0, told, 1.0), 31_000, "what the broker asks for comes on top");
    }
}
