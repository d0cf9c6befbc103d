//! Nodes that do not work are replaced because they say so, or say nothing: bounded by the guardrails, and never on the
//! broker's word. Pure, but for the few objects in which replacements are counted.

use std::collections::BTreeMap;
use std::io;

use outstation_protocol::InstanceId;
use outstation_protocol::status::{Held, NodePhase};
use serde::{Deserialize, Serialize};

use super::guardrails::Guardrails;
use super::numbered;
use super::plan::{Action, Observed, ObservedGroup, Plan};
use super::registry::Registry;
use crate::store::AccountStore;

const PREFIX: &str = "state/replacements";
const HOUR_SECS: u64 = 3600;
/// A call that AWS did not heed (a grace period, a stale describe) is repeated after so long.
const REPEAT_SECS: u64 = 120;

/// One replacement, as it is written before the call is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    pub instance: InstanceId,
    pub at_unix_secs: u64,
}

/// The newest replacements of this account, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    next: u64,
    pub newest: Vec<Replaced>,
}

impl History {
    /// Reads as many as the bound needs.
    pub fn read(store: &AccountStore, count: u32) -> io::Result<History> {
        let (next, newest) = numbered::newest(store, PREFIX, count)?;
        Ok(History { next, newest })
    }

    fn last(&self, instance: &InstanceId) -> Option<u64> {
        let of = self.newest.iter().filter(|replaced| replaced.instance == *instance);
        of.map(|replaced| replaced.at_unix_secs).max()
    }

    /// A time in the future was written by an agent whose clock was wrong: it counts as now.
    fn within_an_hour(&self, now_unix_secs: u64) -> usize {
        let fresh = |replaced: &&Replaced| replaced.at_unix_secs + HOUR_SECS > now_unix_secs;
        self.newest.iter().filter(fresh).count()
    }
}

/// Written before the call is made: a crash between the two costs one replacement of the hour. Fails if another agent
/// has taken this number.
pub fn note(store: &AccountStore, number: u64, replaced: &Replaced) -> io::Result<()> {
    numbered::note(store, PREFIX, number, replaced)
}

/// Since when AWS has shown an instance in service; forgotten with the process, which makes it patient.
#[derive(Debug, Default)]
pub struct FirstSeen(BTreeMap<InstanceId, u64>);

impl FirstSeen {
    pub fn look(&mut self, observed: &Observed, now_unix_secs: u64) {
        let in_service: Vec<&InstanceId> = observed
            .values()
            .flat_map(|group| &group.instances)
            .filter(|(_, instance)| instance.lifecycle == "InService")
            .map(|(id, _)| id)
            .collect();
        self.0.retain(|id, _| in_service.contains(&id));
        for id in in_service {
            self.0.entry(id.clone()).or_insert(now_unix_secs);
        }
    }

    #[cfg(test)]
    fn of(ids: &[(InstanceId, u64)]) -> FirstSeen {
        FirstSeen(ids.iter().cloned().collect())
    }
}

/// What a decision about nodes is made from.
pub struct Facts<'a> {
    pub observed: &'a Observed,
    pub registry: &'a Registry,
    pub first_seen: &'a FirstSeen,
    pub history: &'a Result<History, String>,
    pub now_unix_secs: u64,
}

/// Adds to the plans what has to be replaced now, and what waits.
pub fn add(plans: &mut Plan, facts: &Facts<'_>, guardrails: &Guardrails) {
    let done = facts.history.as_ref().map_or(0, |held| held.within_an_hour(facts.now_unix_secs));
    let mut left = (guardrails.replacements_per_hour as usize).saturating_sub(done);
    let mut number = facts.history.as_ref().map_or(0, |history| history.next);
    for (group, plan) in plans {
        let Some(observed) = facts.observed.get(group) else { continue };
        // What is leaving, or being replaced anyway, is left to AWS.
        if observed.max == 0 || observed.deleting || plan.rolling.is_some() {
            continue;
        }
        let Broken { nodes: broken, silent } =
            broken(observed, facts, guardrails.node_patience_secs);
        let Some((_, first)) = broken.first() else { continue };
        let held = |rule: &str, message: String, hint: &str| Held {
            generation: None,
            rule: rule.to_owned(),
            message,
            hint: hint.to_owned(),
        };
        let most = tolerated(observed.desired, guardrails.min_healthy_percent);
        if guardrails.pause {
            let message =
                format!("{} nodes are to be replaced ({first}): pause = true", broken.len());
            let hint = "whoever may write guardrails/ in the account store can end the pause";
            plan.held.push(held("pause", message, hint));
            continue;
        }
        if broken.len() > most as usize {
            let message = format!(
                "{} of {} nodes do not work ({first}): more than min_healthy_percent {} lets go at a time, so it is \
                 hardly the nodes; none is replaced",
                broken.len(),
                observed.desired,
                guardrails.min_healthy_percent
            );
            let hint = "look at what they have in common: bundle, image, network; whoever may write guardrails/ in the \
                account store can lower min_healthy_percent";
            plan.held.push(held("min_healthy_percent", message, hint));
            continue;
        }
        if silent && !facts.registry.is_anybody_heard() {
            let message = format!(
                "no node at all is heard ({first}): it is hardly the nodes; none is replaced"
            );
            let hint =
                "look at the network between nodes and account agent, and at its [nodes] listen";
            plan.held.push(held("silence", message, hint));
            continue;
        }
        let history = match facts.history {
            Ok(history) => history,
            Err(why) => {
                let message = format!(
                    "nodes are to be replaced ({first}), and replacements cannot be counted: {why}"
                );
                let hint = "look at state/replacements/ of the account store";
                plan.held.push(held("account_store", message, hint));
                continue;
            }
        };
        for (instance, why) in broken {
            let asked = history.last(&instance);
            // Asked for already: AWS has not come to it, or a grace period keeps it.
            if asked.is_some_and(|at| facts.now_unix_secs < at + REPEAT_SECS) {
                continue;
            }
            if left == 0 {
                let message = format!(
                    "{instance} {why}: {} were replaced within the hour, replacements_per_hour of the account's guardrails",
                    guardrails.replacements_per_hour
                );
                let hint = "it goes on by itself; whoever may write guardrails/ in the account store can raise it";
                plan.held.push(held("replacements_per_hour", message, hint));
                break;
            }
            left -= 1;
            plan.actions.push(Action::Replace { instance, why, number });
            number += 1;
        }
    }
}

/// So many may be broken at a time, as AWS rounds: one at least.
fn tolerated(desired: u32, min_healthy_percent: u32) -> u32 {
    let least = (u64::from(desired) * u64::from(min_healthy_percent)).div_ceil(100);
    desired.saturating_sub(u32::try_from(least).unwrap_or(u32::MAX)).max(1)
}

#[derive(Default)]
struct Broken {
    /// With why.
    nodes: Vec<(InstanceId, String)>,
    /// Some of them by their silence alone.
    silent: bool,
}

/// Nodes that AWS takes for healthy and that do not work.
fn broken(observed: &ObservedGroup, facts: &Facts<'_>, patience_secs: u64) -> Broken {
    let now = facts.now_unix_secs;
    let is_long_ago = |since: u64| since > 0 && since + patience_secs <= now;
    let works =
        |id: &InstanceId| facts.registry.get(id).is_some_and(|node| node.phase == NodePhase::Ready);
    let some_work = observed.instances.keys().any(works);
    let mut broken = Broken::default();
    for (id, instance) in &observed.instances {
        if instance.lifecycle != "InService" || !instance.healthy {
            continue;
        }
        let seen = facts.first_seen.0.get(id).copied().unwrap_or(now);
        let why = match facts.registry.get(id) {
            // Code that works nowhere is not its fault.
            Some(node) if node.phase == NodePhase::Unhealthy => {
                let is_its_own = some_work || node.was_ready;
                (is_its_own && is_long_ago(node.since_unix_secs)).then(|| match &node.reason {
                    Some(reason) => format!("says that it does not work: {reason}"),
                    None => "says that it does not work".to_owned(),
                })
            }
            Some(node) => node
                .lost_at_unix_secs
                .filter(|lost| is_long_ago((*lost).max(seen)))
                .map(|lost| format!("has not been heard for {} s", now.saturating_sub(lost))),
            None => is_long_ago(seen)
                .then(|| format!("runs for {} s and was never heard", now.saturating_sub(seen))),
        };
        if let Some(why) = why {
            broken.silent |=
                facts.registry.get(id).is_none_or(|node| node.phase != NodePhase::Unhealthy);
            broken.nodes.push((id.clone(), why));
        }
    }
    broken
}

#[cfg(test)]
#[path = "replacements_tests.rs"]
mod tests;
