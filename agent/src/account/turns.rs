//! Whose turn it is: calls are scarce, and no group waits behind all the others. Pure.

use std::collections::BTreeMap;

use outstation_protocol::GroupName;

/// Who had a turn when.
#[derive(Debug, Default)]
pub struct Turns {
    made: u64,
    last: BTreeMap<GroupName, u64>,
}

impl Turns {
    /// Of groups that want a turn: whoever waits longest goes first, and groups that are there alternate with those that
    /// are yet to be made, so that a change to one does not wait for five hundred creations, nor a creation for ever.
    pub fn order<'a>(&self, groups: impl Iterator<Item = (&'a GroupName, bool)>) -> Vec<GroupName> {
        let (mut there, mut new) = (Vec::new(), Vec::new());
        for (group, is_there) in groups {
            let last = self.last.get(group).copied().unwrap_or(0);
            if is_there { &mut there } else { &mut new }.push((last, group));
        }
        there.sort_unstable();
        new.sort_unstable();
        let (mut there, mut new) = (there.into_iter(), new.into_iter());
        let mut order = Vec::new();
        loop {
            let pair = [there.next(), new.next()];
            if pair == [None, None] {
                return order;
            }
            order.extend(pair.into_iter().flatten().map(|(_, group)| group.clone()));
        }
    }

    pub fn had(&mut self, group: &GroupName) {
        self.made += 1;
        self.last.insert(group.clone(), self.made);
    }

    pub fn forget_others(&mut self, is_known: impl Fn(&GroupName) -> bool) {
        self.last.retain(|group, _| is_known(group));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_turn_before_anybody_has_another_and_a_change_passes_creations() {
        let name = |n: usize| GroupName::try_from(format!("g{n}")).expect("valid");
        let groups: Vec<(GroupName, bool)> = (0..6).map(|n| (name(n), n == 5)).collect();
        let mut turns = Turns::default();
        let order = |turns: &Turns| turns.order(groups.iter().map(|(name, there)| (name, *there)));
        let first = order(&turns);
        assert_eq!(first[0], name(5), "the one that is there goes with the first of the new");
        let mut had = Vec::new();
        for _ in 0..3 {
            for group in order(&turns).iter().take(2) {
                turns.had(group);
                had.push(group.to_string());
            }
        }
        assert_eq!(had, ["g5", "g0", "g5", "g1", "g5", "g2"], "neither kind starves the other");
        let alike: Vec<(GroupName, bool)> = (0..4).map(|n| (name(n), true)).collect();
        let mut turns = Turns::default();
        let mut had = Vec::new();
        for _ in 0..8 {
            let next = turns.order(alike.iter().map(|(name, there)| (name, *there)))[0].clone();
            turns.had(&next);
            had.push(next.to_string());
        }
        assert_eq!(had, ["g0", "g1", "g2", "g3", "g0", "g1", "g2", "g3"]);
    }
}
