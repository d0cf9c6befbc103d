//! Who is next, fairly: start-time fair queueing. Each key has a tag that grows by what its work cost,
//! divided by its weight; the lowest tag goes first. Who was away gets little credit for it: enough that two calls that
//! happen to come together both go before those of a flood.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// Keys that are remembered though nothing of theirs waits: what they owe is forgotten beyond that.
const REMEMBERED_MAX: usize = 4096;

/// How far behind whoever went last one may start: in nanoseconds, divided by the weight, as what is charged.
const CREDIT: u64 = 2_000_000;

#[derive(Debug)]
pub struct Shares<K> {
    /// The tag of whoever went last.
    clock: u64,
    tags: HashMap<K, u64>,
    /// Those for whom something waits.
    active: BTreeSet<(u64, K)>,
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Shares { clock: 0, tags: HashMap::new(), active: BTreeSet::new() }
    }
}

impl<K: Copy + Ord + Hash> Shares<K> {
    /// Something waits for `key` from now on.
    pub fn join(&mut self, key: K) {
        let tag = self.tags.get(&key).copied().unwrap_or(0);
        let tag = tag.max(self.clock.saturating_sub(CREDIT));
        self.tags.insert(key, tag);
        self.active.insert((tag, key));
    }

    /// Nothing waits for it any more.
    pub fn leave(&mut self, key: K) {
        if let Some(tag) = self.tags.get(&key) {
            self.active.remove(&(*tag, key));
        }
        if self.tags.len() > REMEMBERED_MAX {
            let (clock, active) = (self.clock, &self.active);
            self.tags.retain(|key, tag| *tag > clock || active.contains(&(*tag, *key)));
            if self.tags.len() > REMEMBERED_MAX {
                self.tags.retain(|key, tag| active.contains(&(*tag, *key)));
            }
        }
    }

    /// Those for whom something waits, the next one first.
    pub fn in_turn(&self) -> impl Iterator<Item = K> {
        self.active.iter().map(|(_, key)| *key)
    }

    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// `key` has had its turn, which cost so much of its share.
    pub fn charge(&mut self, key: K, cost: u64) {
        let Some(tag) = self.tags.get_mut(&key) else { return };
        let waits = self.active.remove(&(*tag, key));
        self.clock = self.clock.max(*tag);
        *tag = tag.saturating_add(cost);
        if waits {
            self.active.insert((*tag, key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who goes, when each key always has more and costs what is given.
    fn order(costs: &[(char, u64)], turns: usize) -> String {
        let mut shares = Shares::default();
        costs.iter().for_each(|(key, _)| shares.join(*key));
        (0..turns)
            .map(|_| {
                let next = shares.in_turn().next().unwrap();
                shares.charge(next, costs.iter().find(|(key, _)| *key == next).unwrap().1);
                next
            })
            .collect()
    }

    #[test]
    fn shares_are_of_cost_and_not_of_turns() {
        assert_eq!(order(&[('a', 1), ('b', 1)], 6), "ababab");
        assert_eq!(order(&[('a', 3), ('b', 1)], 8), "abbbabbb");
        assert_eq!(order(&[('a', 10)], 3), "aaa");
    }

    #[test]
    fn who_was_away_has_saved_little_and_who_owes_still_does() {
        let turn = CREDIT / 2;
        let mut shares = Shares::default();
        shares.join('a');
        (0..100).for_each(|_| shares.charge('a', turn));
        shares.join('b');
        let order: String = (0..7)
            .map(|_| {
                let next = shares.in_turn().next().unwrap();
                shares.charge(next, turn);
                next
            })
            .collect();
        assert_eq!(order, "bbbabab", "b had two turns more, not a hundred");
        shares.charge('a', 1000 * turn);
        shares.leave('a');
        shares.join('a');
        assert_eq!(shares.in_turn().collect::<String>(), "ba", "leaving pays no debt");
    }

    #[test]
    fn who_asks_for_less_than_its_share_goes_first_each_time() {
        let turn = CREDIT / 2;
        let mut shares = Shares::default();
        shares.join("flood");
        for _ in 0..50 {
            (0..8).for_each(|_| shares.charge("flood", turn));
            // Two at once.
            for _ in 0..2 {
                shares.join("quiet");
                assert_eq!(shares.in_turn().next(), Some("quiet"));
                shares.charge("quiet", turn);
            }
            shares.leave("quiet");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut shares = Shares::default();
        for key in 0..3 * REMEMBERED_MAX {
            shares.join(key);
            shares.charge(key, u64::MAX / 2);
            shares.leave(key);
        }
        assert!(shares.tags.len() <= REMEMBERED_MAX + 1 && shares.active() == 0);
    }
}
