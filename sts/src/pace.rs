//! How often STS is asked, for whom. Pure. Who makes a proof costs us a call to STS before anything
//! is known of them, so each source has a small budget, and each account and region a larger one
//! that no single source can use up.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Sources that have used some of their budget lately: some 100 bytes each.
const SOURCES_MAX: usize = 4096;
/// Accounts and regions; they are registered by people.
const AUDIENCES_MAX: usize = 4096;

/// So many at once, and another one each time the period has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub burst: u32,
    pub every: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of one address for one audience. Many agents may share an address, as behind a NAT.
    pub source: Rate,
    pub audience: Rate,
}

impl Limits {
    /// An account has one or two agents, which enroll every few days.
    pub const CONTROL_LINK: Limits = Limits {
        source: Rate { burst: 20, every: Duration::from_secs(5) },
        audience: Rate { burst: 100, every: Duration::from_secs(1) },
    };
    /// Each node has its own address and enrolls hourly; a whole fleet may boot at once.
    pub const NODE_LINK: Limits = Limits {
        source: Rate { burst: 20, every: Duration::from_secs(5) },
        audience: Rate { burst: 2000, every: Duration::from_millis(20) },
    };
}

/// Try again after this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait(pub Duration);

/// What is left of each budget. One that has refilled is forgotten.
#[derive(Debug)]
pub struct Pace {
    limits: Limits,
    sources: BTreeMap<(IpAddr, String), Instant>,
    audiences: BTreeMap<String, Instant>,
}

impl Pace {
    pub fn new(limits: Limits) -> Pace {
        Pace { limits, sources: BTreeMap::new(), audiences: BTreeMap::new() }
    }

    /// Takes one call out of both budgets, or out of neither.
    pub fn take(&mut self, source: IpAddr, audience: &str, now: Instant) -> Result<(), Wait> {
        let Limits { source: per_source, audience: per_audience } = self.limits;
        let key = (source, audience.to_owned());
        let of_source = next(self.sources.get(&key), per_source, now)?;
        let of_audience = next(self.audiences.get(audience), per_audience, now)?;
        make_room(&mut self.sources, &key, SOURCES_MAX, per_source, now)?;
        make_room(&mut self.audiences, &key.1, AUDIENCES_MAX, per_audience, now)?;
        self.audiences.insert(key.1.clone(), of_audience);
        self.sources.insert(key, of_source);
        Ok(())
    }
}

/// When the budget will be whole again after one more call (the generic cell rate algorithm).
fn next(whole_at: Option<&Instant>, rate: Rate, now: Instant) -> Result<Instant, Wait> {
    let whole_at = whole_at.copied().unwrap_or(now).max(now) + rate.every;
    let ahead = whole_at - now;
    match ahead.checked_sub(rate.every * rate.burst) {
        Some(wait) if !wait.is_zero() => Err(Wait(wait)),
        Some(_) | None => Ok(whole_at),
    }
}

fn make_room<K: Ord>(
    budgets: &mut BTreeMap<K, Instant>,
    key: &K,
    entries_max: usize,
    rate: Rate,
    now: Instant,
) -> Result<(), Wait> {
    if budgets.len() < entries_max || budgets.contains_key(key) {
        return Ok(());
    }
    budgets.retain(|_, whole_at| *whole_at > now);
    if budgets.len() < entries_max { Ok(()) } else { Err(Wait(rate.every)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        source: Rate { burst: 3, every: Duration::from_secs(10) },
        audience: Rate { burst: 5, every: Duration::from_secs(1) },
    };

    fn address(last: u32) -> IpAddr {
        IpAddr::from(u32::to_be_bytes(0x0a00_0000 + last))
    }

    #[test]
    fn a_source_has_its_burst_and_then_its_rate() {
        let (mut pace, start) = (Pace::new(LIMITS), Instant::now());
        let mut take = |secs| pace.take(address(1), "a", start + Duration::from_secs(secs));
        for _ in 0..3 {
            assert_eq!(take(0), Ok(()));
        }
        assert_eq!(take(0), Err(Wait(Duration::from_secs(10))));
        assert_eq!(take(9), Err(Wait(Duration::from_secs(1))), "asking costs nothing");
        assert_eq!(take(10), Ok(()));
        assert_eq!(take(10), Err(Wait(Duration::from_secs(10))));
        for _ in 0..3 {
            assert_eq!(take(100), Ok(()), "the whole burst again");
        }
    }

    #[test]
    fn an_audience_has_its_own_and_others_are_not_held_up() {
        let (mut pace, now) = (Pace::new(LIMITS), Instant::now());
        let mut take = |source, audience| pace.take(address(source), audience, now);
        for source in 0..5 {
            assert_eq!(take(source, "a"), Ok(()));
        }
        assert_eq!(take(9, "a"), Err(Wait(Duration::from_secs(1))));
        assert_eq!(take(9, "b"), Ok(()), "another account");
        assert_eq!(take(0, "b"), Ok(()), "a source's budget is one for each account");
    }

    #[test]
    fn strangers_cost_no_memory_beyond_the_bound() {
        let wide = Rate { burst: u32::MAX, every: Duration::from_nanos(1) };
        let (mut pace, now) = (Pace::new(Limits { audience: wide, ..LIMITS }), Instant::now());
        for source in 0..u32::try_from(SOURCES_MAX).expect("small") {
            assert_eq!(pace.take(address(source), "a", now), Ok(()));
        }
        let stranger = address(u32::try_from(SOURCES_MAX).expect("small"));
        assert_eq!(pace.take(stranger, "a", now), Err(Wait(LIMITS.source.every)));
        assert_eq!(pace.take(address(0), "a", now), Ok(()), "who is known goes on");
        let later = now + Duration::from_secs(10);
        assert_eq!(pace.take(stranger, "a", later), Ok(()), "others have refilled");
        assert!(pace.sources.len() <= 2, "and are forgotten: {}", pace.sources.len());
    }
}
