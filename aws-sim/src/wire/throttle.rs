//! AWS's budget of calls for one account and region: a bucket that everybody shares. What it refuses is `Throttling`.

use time::OffsetDateTime;

/// So many calls per second, and so many at once.
#[derive(Debug, Clone)]
pub struct Throttle {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Option<OffsetDateTime>,
    pub refused: u64,
}

impl Throttle {
    pub fn new(per_second: u32) -> Throttle {
        let per_second = f64::from(per_second);
        Throttle { per_second, burst: per_second, tokens: per_second, at: None, refused: 0 }
    }

    /// Whether a call of now is let through.
    pub fn admits(&mut self, now: OffsetDateTime) -> bool {
        if let Some(at) = self.at {
            let secs = (now - at).as_seconds_f64().max(0.0);
            self.tokens = (self.tokens + secs * self.per_second).min(self.burst);
        }
        self.at = Some(now);
        let admits = self.tokens >= 1.0;
        if admits {
            self.tokens -= 1.0;
        } else {
            self.refused += 1;
        }
        admits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_a_second_and_no_more() {
        let start = OffsetDateTime::UNIX_EPOCH;
        let mut throttle = Throttle::new(10);
        let let_in = |throttle: &mut Throttle, millis: i64| {
            let now = start + time::Duration::milliseconds(millis);
            (0..100).filter(|_| throttle.admits(now)).count()
        };
        assert_eq!(let_in(&mut throttle, 0), 10);
        assert_eq!(let_in(&mut throttle, 550), 5);
        assert_eq!(let_in(&mut throttle, 60_000), 10);
        assert_eq!(throttle.refused, 275);
    }
}
