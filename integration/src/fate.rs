//! What becomes of a datagram between two parties. Pure: from a seed and the datagram's place in
//! its flow, so that a run can be repeated.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// How a link is at the moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Condition {
    Clear,
    Bad(Disturbance),
    /// A black hole: nothing passes and nobody is told.
    Cut,
}

/// Shares are of all datagrams, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Disturbance {
    pub dropped: f64,
    pub duplicated: f64,
    /// Held back by `late` on top, so that later ones overtake them.
    pub reordered: f64,
    pub late: Duration,
    /// Every datagram takes a time between nothing and this.
    pub delay_max: Duration,
}

impl Disturbance {
    /// One in ten lost, one in ten twice, one in ten overtaken, up to 20 ms for each: far worse than
    /// any network on which somebody would run a control plane.
    pub const TENTH: Disturbance = Disturbance {
        dropped: 0.1,
        duplicated: 0.1,
        reordered: 0.1,
        late: Duration::from_millis(50),
        delay_max: Duration::from_millis(20),
    };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

/// A datagram (or a chunk of a stream) by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub flow: u64,
    pub way: Way,
    /// Within its flow and way.
    pub number: u64,
}

/// After how long each copy arrives; none: it is lost.
pub fn fate(seed: u64, place: Place, condition: &Condition) -> Vec<Duration> {
    match condition {
        Condition::Clear => vec![Duration::ZERO],
        Condition::Cut => Vec::new(),
        Condition::Bad(disturbance) => {
            let mut random = random_at(seed, place);
            if random.random_bool(disturbance.dropped) {
                return Vec::new();
            }
            let copies = if random.random_bool(disturbance.duplicated) { 2 } else { 1 };
            (0..copies)
                .map(|_| {
                    let late = random.random_bool(disturbance.reordered);
                    let held_back = if late { disturbance.late } else { Duration::ZERO };
                    disturbance.delay_max.mul_f64(random.random()) + held_back
                })
                .collect()
        }
    }
}

fn random_at(seed: u64, place: Place) -> StdRng {
    let way = match place.way {
        Way::ToServer => 0u64,
        Way::ToClient => 1,
    };
    let mut bytes = [0; 32];
    for (chunk, part) in bytes.chunks_exact_mut(8).zip([seed, place.flow, way, place.number]) {
        chunk.copy_from_slice(&part.to_le_bytes());
    }
    StdRng::from_seed(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u64) -> Place {
        Place { flow: 1, way: Way::ToServer, number }
    }

    fn tenth(seed: u64, place: Place) -> Vec<Duration> {
        fate(seed, place, &Condition::Bad(Disturbance::TENTH))
    }

    #[test]
    fn a_clear_link_delivers_at_once_and_a_cut_one_nothing() {
        for number in 0..100 {
            assert_eq!(fate(7, at(number), &Condition::Clear), [Duration::ZERO]);
            assert!(fate(7, at(number), &Condition::Cut).is_empty());
        }
    }

    #[test]
    fn the_same_seed_and_place_have_the_same_fate_and_others_have_others() {
        let fates = |seed: u64, flow: u64, way: Way| -> Vec<Vec<Duration>> {
            (0..200).map(|number| tenth(seed, Place { flow, way, number })).collect()
        };
        let one = fates(7, 1, Way::ToServer);
        assert_eq!(one, fates(7, 1, Way::ToServer));
        assert_ne!(one, fates(8, 1, Way::ToServer));
        assert_ne!(one, fates(7, 2, Way::ToServer));
        assert_ne!(one, fates(7, 1, Way::ToClient));
    }

    #[test]
    fn shares_are_as_said() {
        const MANY: u64 = 20_000;
        let fates: Vec<Vec<Duration>> = (0..MANY).map(|number| tenth(0x5eed, at(number))).collect();
        let share = |count: usize| count as f64 / MANY as f64;
        let lost = share(fates.iter().filter(|copies| copies.is_empty()).count());
        let twice = share(fates.iter().filter(|copies| copies.len() == 2).count());
        let late = share(
            fates.iter().flatten().filter(|after| **after >= Disturbance::TENTH.late).count(),
        );
        assert!((lost - 0.1).abs() < 0.01, "{lost} lost");
        assert!((twice - 0.09).abs() < 0.01, "{twice} twice");
        assert!((late - 0.099).abs() < 0.01, "{late} late");
        let most = fates.iter().flatten().max().expect("some arrive");
        assert!(*most <= Disturbance::TENTH.late + Disturbance::TENTH.delay_max);
    }

    #[test]
    fn later_ones_overtake() {
        // Sent a millisecond apart.
        let mut arrivals: Vec<(Duration, u64)> = (0..200)
            .flat_map(|number| {
                let sent = Duration::from_millis(number);
                tenth(7, at(number)).into_iter().map(move |after| (sent + after, number))
            })
            .collect();
        arrivals.sort();
        assert!(arrivals.windows(2).any(|pair| pair[0].1 > pair[1].1));
    }
}
