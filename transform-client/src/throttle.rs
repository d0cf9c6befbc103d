//! What the group would only refuse is not sent: a refusal costs a server time that an answer could have had, and the caller
//! a round trip. Adaptive throttling
//! (<https://sre.google/sre-book/handling-overload/>), for each target on its own. Pure: `now` is an argument,
//! randomness is seeded.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Targets that are remembered; a bundle has fewer. Beyond that a name is not throttled.
const TARGETS_MAX: usize = 1024;
/// What is left of a target that nobody has called for a while.
const FORGOTTEN: f64 = 0.5;

#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// So many times what the group takes are sent: what it refuses of that tells whether it can take more by now.
    pub ratio: f64,
    /// How long an outcome counts.
    pub memory: Duration,
    /// So many refusals say nothing yet.
    pub spare: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config { ratio: 1.1, memory: Duration::from_secs(2), spare: 10.0 }
    }
}

/// Of calls that have ended, fading.
#[derive(Debug)]
struct Seen {
    asked: f64,
    taken: f64,
    as_of: Instant,
}

impl Seen {
    fn fade(&mut self, now: Instant, memory: Duration) {
        let age = now.saturating_duration_since(self.as_of);
        let left = (-age.as_secs_f64() / memory.as_secs_f64()).exp();
        self.asked *= left;
        self.taken *= left;
        self.as_of = now;
    }
}

#[derive(Debug)]
pub struct Throttle {
    config: Config,
    rng: SmallRng,
    targets: HashMap<String, Seen>,
}

impl Throttle {
    pub fn new(config: Config, seed: u64) -> Self {
        Throttle { config, rng: SmallRng::seed_from_u64(seed), targets: HashMap::new() }
    }

    /// Whether a call is to be sent. What is not counts as refused.
    pub fn admits(&mut self, target: &str, now: Instant) -> bool {
        let Some(seen) = self.targets.get_mut(target) else { return true };
        seen.fade(now, self.config.memory);
        let excess = seen.asked - self.config.ratio * seen.taken - self.config.spare;
        if excess <= 0.0 || self.rng.random::<f64>() >= excess / (seen.asked + 1.0) {
            return true;
        }
        seen.asked += 1.0;
        false
    }

    /// A call that was sent has ended: refused for want of room, or not.
    pub fn ended(&mut self, target: &str, refused: bool, now: Instant) {
        if !self.targets.contains_key(target) {
            if self.targets.len() >= TARGETS_MAX {
                self.forget(now);
            }
            if self.targets.len() >= TARGETS_MAX {
                return;
            }
            let seen = Seen { asked: 0.0, taken: 0.0, as_of: now };
            self.targets.insert(target.to_owned(), seen);
        }
        let Some(seen) = self.targets.get_mut(target) else { return };
        seen.fade(now, self.config.memory);
        seen.asked += 1.0;
        if !refused {
            seen.taken += 1.0;
        }
    }

    fn forget(&mut self, now: Instant) {
        let memory = self.config.memory;
        self.targets.retain(|_, seen| {
            seen.fade(now, memory);
            seen.asked >= FORGOTTEN
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group that takes `takes` calls a second, of `offered`; what is sent, taken and not sent in the last of the seconds.
    fn steady(
        throttle: &mut Throttle,
        now: &mut Instant,
        secs: u32,
        offered: u32,
        takes: u32,
    ) -> [u32; 3] {
        let mut counts = [0; 3];
        for second in 0..secs {
            counts = [0; 3];
            for call in 0..offered {
                *now += Duration::from_secs(1) / offered;
                if !throttle.admits("f", *now) {
                    counts[2] += 1;
                    continue;
                }
                // What it takes is spread over the second, as a server's queue does it.
                let refused = counts[1] >= takes.min(takes * (call + 1) / offered + 1);
                throttle.ended("f", refused, *now);
                counts[0] += 1;
                counts[1] += u32::from(!refused);
            }
            assert_eq!(counts[0] + counts[2], offered, "second {second}");
        }
        counts
    }

    #[test]
    fn a_group_that_refuses_is_sent_little_more_than_it_takes() {
        let (mut throttle, mut now) = (Throttle::new(Config::default(), 1), Instant::now());
        let [sent, taken, _] = steady(&mut throttle, &mut now, 20, 2000, 1000);
        assert!((950..=1001).contains(&taken), "{taken} taken");
        assert!((1000..=1200).contains(&sent), "{sent} sent");
    }

    #[test]
    fn a_group_that_takes_everything_again_gets_everything_again() {
        let (mut throttle, mut now) = (Throttle::new(Config::default(), 2), Instant::now());
        steady(&mut throttle, &mut now, 20, 2000, 500);
        let [sent, ..] = steady(&mut throttle, &mut now, 1, 2000, 4000);
        assert!(sent < 1500, "{sent} sent in the first second: not all at once");
        assert_eq!(steady(&mut throttle, &mut now, 30, 2000, 4000), [2000, 2000, 0]);
    }

    #[test]
    fn some_refusals_among_many_answers_change_nothing() {
        let (mut throttle, mut now) = (Throttle::new(Config::default(), 3), Instant::now());
        assert_eq!(steady(&mut throttle, &mut now, 20, 1000, 950)[2], 0);
    }

    #[test]
    fn a_few_refusals_say_nothing_and_old_ones_are_forgotten() {
        let (mut throttle, now) = (Throttle::new(Config::default(), 4), Instant::now());
        (0..10).for_each(|_| throttle.ended("f", true, now));
        assert!((0..100).all(|_| throttle.admits("f", now)));
        (0..1000).for_each(|_| throttle.ended("f", true, now));
        assert!((0..100).any(|_| !throttle.admits("f", now)));
        assert!((0..100).all(|_| throttle.admits("g", now)), "another target");
        assert!((0..100).all(|_| throttle.admits("f", now + Duration::from_secs(12))));
    }

    #[test]
    fn names_without_end_are_not_kept() {
        let (mut throttle, now) = (Throttle::new(Config::default(), 5), Instant::now());
        let name = |n: usize| format!("f{n}");
        (0..2 * TARGETS_MAX).for_each(|n| throttle.ended(&name(n), true, now));
        assert_eq!(throttle.targets.len(), TARGETS_MAX);
        throttle.ended("new", true, now + Duration::from_secs(60));
        assert_eq!(throttle.targets.len(), 1);
    }
}
