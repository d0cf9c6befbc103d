//! What the account store and the account say together: read again at every look, so that another
//! agent's acceptance, a person's decision or a lost file is seen without a restart.

use std::collections::BTreeMap;
use std::time::Duration;

use outstation_protocol::GroupName;
use outstation_protocol::ids::Generation;
use outstation_protocol::status::{GroupPhase, GroupStatus, Held, NODE_ENTRIES_MAX, NodePhase};

use super::floor::{self, Contradiction, Floors, Standing, contradictions};
use super::ledger::{Accepted, Ledger, Trouble};
use super::plan::{Observed, ObservedGroup, Plan};
use super::shared::{Shared, lock};
use super::status::Memory;

/// What a look starts from.
pub struct Known {
    pub accepted: BTreeMap<GroupName, Accepted>,
    floors: Floors,
    trouble: Vec<Trouble>,
    contradictions: Vec<Contradiction>,
}

impl Shared {
    /// Reads the account store again and holds it against what was observed; `blind` says why that
    /// is not what is there now.
    pub fn recall(&self, observed: &Observed, blind: Option<String>) -> Known {
        self.refresh_ledger();
        let (accepted, floors, trouble) = self.with_ledger(|ledger| {
            (ledger.accepted().clone(), ledger.floors().clone(), ledger.trouble().to_vec())
        });
        let contradictions = contradictions(&accepted, &floors, observed);
        let contradictions = self.config.profile.counts(contradictions);
        match blind {
            None => self.stand(Standing::of(&accepted, observed, contradictions.clone())),
            Some(why) => self.stand_blind(why),
        }
        Known { accepted, floors, trouble, contradictions }
    }

    /// True if the account store holds something else than when it was last read.
    pub fn refresh_ledger(&self) -> bool {
        let (before, changed, trouble) = self.with_ledger(|ledger| {
            let before = ledger.trouble().to_vec();
            let changed = ledger.refresh();
            if changed {
                self.weigh(ledger);
            }
            (before, changed, ledger.trouble().to_vec())
        });
        for Trouble { message, .. } in trouble.iter().filter(|t| !before.contains(t)) {
            tracing::error!(error = message, "the account store cannot be read");
        }
        if changed {
            self.changed.send_modify(|count| *count += 1);
            self.ledger_changed.send_modify(|count| *count += 1);
        }
        changed || trouble != before
    }

    /// Holds a ledger that others have changed against what was last seen, before an order can be
    /// judged by it: the next look may be too late.
    pub fn weigh(&self, ledger: &Ledger) {
        let (accepted, floors) = (ledger.accepted(), ledger.floors());
        let observed = lock(&self.observed).clone();
        let found = contradictions(accepted, floors, &observed);
        let found = self.config.profile.counts(found);
        let looked = match *self.standing.borrow() {
            Standing::NotLooked | Standing::Blind(_) => false,
            Standing::Clear { .. } | Standing::Contradicted(_) => true,
        };
        if looked {
            self.stand(Standing::of(accepted, &observed, found));
        }
    }

    /// The account could not be looked at; what was seen before counts on.
    pub fn stand_blind(&self, why: String) {
        let never_looked =
            matches!(*self.standing.borrow(), Standing::NotLooked | Standing::Blind(_));
        if never_looked {
            self.stand(Standing::Blind(why));
        }
    }

    fn stand(&self, standing: Standing) {
        let before = self.standing.borrow().clone();
        if before == standing {
            return;
        }
        let (then, now) = (before.contradictions(), standing.contradictions());
        for contradiction in now.iter().filter(|c| !then.contains(c)) {
            tracing::error!(group = %contradiction.group,
                generation = contradiction.ledger.map(|Generation(generation)| generation),
                reason = contradiction.message(), hint = floor::HINT, "contradiction");
        }
        for contradiction in then.iter().filter(|c| !now.contains(c)) {
            tracing::info!(group = %contradiction.group, "the contradiction is over");
        }
        self.standing.send_replace(standing);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Waits for the first look at the account, at most so long.
    pub async fn looked(&self, at_most: Duration) {
        let mut standing = self.standing.subscribe();
        let looked = standing.wait_for(|standing| *standing != Standing::NotLooked);
        let _ = tokio::time::timeout(at_most, looked).await;
    }
}

impl Known {
    /// Nothing is settled while people have something to decide or to mend.
    pub fn is_settled(&self) -> bool {
        self.contradictions.is_empty() && self.trouble.is_empty()
    }

    /// The account is ahead of this group's order.
    pub fn contradicts(&self, group: &GroupName) -> bool {
        self.contradictions.iter().any(|contradiction| contradiction.group == *group)
    }

    /// Takes out of the plans what may not be done as long as the account store is in doubt.
    pub fn hold(&self, plans: &mut Plan) {
        floor::hold(plans, &self.accepted, &self.contradictions);
        for trouble in &self.trouble {
            let concerned = |group: &GroupName| trouble.group.as_ref().is_none_or(|g| g == group);
            for (group, plan) in plans.iter_mut().filter(|(group, _)| concerned(group)) {
                plan.actions.clear();
                plan.held.push(Held {
                    generation: self.accepted.get(group).map(|a| a.order.generation),
                    rule: "account_store".to_owned(),
                    message: trouble.message.clone(),
                    hint: "restore it, or the account store, from a version before".to_owned(),
                });
            }
        }
    }

    /// Groups without an order that counts, and why each is left alone.
    pub fn left_alone(&self, observed: &Observed) -> BTreeMap<GroupName, Vec<Held>> {
        floor::left_alone(&self.accepted, &self.floors, observed, &self.contradictions)
    }
}

/// What is told of a group without an order that it could be held against.
pub fn status_as_it_is(
    held: Vec<Held>,
    observed: Option<&ObservedGroup>,
    mut nodes: Vec<outstation_protocol::status::NodeStatus>,
    memory: &mut Memory,
    now_unix_secs: u64,
) -> GroupStatus {
    let phase = if observed.is_some() { GroupPhase::Updating } else { GroupPhase::Pending };
    let since = match memory.phase {
        Some((before, since)) if before == phase => since,
        Some(_) | None => now_unix_secs,
    };
    memory.phase = Some((phase, since));
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let ready_nodes = count(nodes.iter().filter(|n| n.phase == NodePhase::Ready).count());
    let observed_nodes = count(observed.map_or(0, |group| group.instances.len()));
    nodes.truncate(NODE_ENTRIES_MAX);
    let reason = held.first().map(|held| format!("held: {}", held.message)).unwrap_or_default();
    GroupStatus {
        phase,
        desired_nodes: observed.map_or(0, |group| group.desired),
        observed_nodes,
        ready_nodes,
        reason,
        phase_since_unix_secs: since,
        held,
        drift: memory.drift.clone(),
        nodes,
    }
}

#[cfg(test)]
#[path = "recall_tests.rs"]
mod tests;
