//! How long a slot pauses before it starts its next worker.

use std::time::Duration;

#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

/// How a worker ended, as far as its replacement is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It never loaded the bundle.
    NeverReady,
    /// It had loaded the bundle and lived so long, and nothing that it ran is to blame.
    Died { lived: Duration },
    /// It ended in the middle of a call. The function is to blame, and a pause would punish the others.
    DiedOfCall,
    /// We ended it, at a caller's deadline.
    Killed,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    /// Often enough that a repaired environment is noticed soon, seldom enough that importing
    /// pandas over and over does not load the instance.
    const MAX: Duration = Duration::from_secs(15);
    /// A worker that lived this long was well: its death starts a new count.
    const WELL: Duration = Duration::from_secs(10);

    pub fn next(&mut self, ended: Ended) -> Duration {
        match ended {
            Ended::Killed | Ended::DiedOfCall => return Duration::ZERO,
            Ended::Died { lived } if lived >= Self::WELL => {
                self.failures = 0;
                return Duration::ZERO;
            }
            Ended::Died { .. } | Ended::NeverReady => {}
        }
        self.failures = self.failures.saturating_add(1);
        Self::FIRST.saturating_mul(1 << (self.failures - 1).min(16)).min(Self::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_between_workers() {
        let check = |ends: &[Ended], expected: &[u64]| {
            let mut backoff = Backoff::default();
            let pauses: Vec<u64> =
                ends.iter().map(|end| backoff.next(*end).as_millis() as u64).collect();
            assert_eq!(pauses, expected, "{ends:?}");
        };
        let died = |secs| Ended::Died { lived: Duration::from_secs(secs) };
        check(&[Ended::Killed, Ended::DiedOfCall, Ended::Killed], &[0, 0, 0]);
        check(
            &[Ended::NeverReady; 10],
            &[100, 200, 400, 800, 1600, 3200, 6400, 12800, 15000, 15000],
        );
        check(
            &[died(0), died(1), Ended::Killed, died(2), died(10), died(0)],
            &[100, 200, 0, 400, 0, 100],
        );
    }
}
