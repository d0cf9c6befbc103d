//! One look at the account: its groups every time, what has to be asked for separately only as often
//! as it may matter.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outstation_protocol::GroupName;
use outstation_protocol::order::Intent;

use super::aws::{Aws, CallError};
use super::backoff::Class;
use super::config::{Config, Profile};
use super::guardrails::Guardrails;
use super::hooks::Hooks;
use super::ledger::Accepted;
use super::plan::{Action, Observed, TAG_GENERATION};
use super::scaling::Policies;

/// What nobody is expected to change is read again after so long.
const READ_AGAIN: Duration = Duration::from_secs(30 * 60);

/// What was seen, as far as it need not be read at every look.
#[derive(Default)]
pub struct Eyes {
    policies: Option<(Instant, Policies)>,
    /// By AutoScaling group's name.
    hooks: BTreeMap<String, (Instant, Option<Hooks>)>,
    /// When some of them were asked for last.
    swept: Option<Instant>,
}

impl Eyes {
    pub async fn look(
        &mut self,
        aws: &Aws,
        config: &Config,
        guardrails: &Guardrails,
        ledger: &BTreeMap<GroupName, Accepted>,
        now: Instant,
    ) -> Result<Observed, CallError> {
        let mut observed = aws.observe(&config.tenant, guardrails).await?;
        let is_fresh = self.policies.as_ref().is_some_and(|(at, _)| now < *at + READ_AGAIN);
        if !is_fresh || policies_matter(ledger, &observed, config.profile) {
            self.policies = Some((now, aws.policies().await?));
        }
        if config.profile == Profile::Manage {
            self.look_at_hooks(aws, config, guardrails, &observed, now).await?;
        }
        for (name, group) in &mut observed {
            let asg_name = guardrails.asg_name(name);
            group.hooks = self.hooks.get(&asg_name).and_then(|(_, hooks)| hooks.clone());
            group.policy =
                self.policies.as_ref().and_then(|(_, policies)| policies.get(&asg_name)).cloned();
        }
        Ok(observed)
    }

    /// A few groups at a time, one call each: AWS does not tell hooks of several groups at once. However busy looks are, no
    /// more often than those of a quiet account; and one that cannot be asked for blocks no other.
    async fn look_at_hooks(
        &mut self,
        aws: &Aws,
        config: &Config,
        guardrails: &Guardrails,
        observed: &Observed,
        now: Instant,
    ) -> Result<(), CallError> {
        let there: Vec<String> = observed.keys().map(|group| guardrails.asg_name(group)).collect();
        self.hooks.retain(|asg_name, _| there.contains(asg_name));
        let interval = config.reconcile_interval();
        if self.swept.is_some_and(|at| now < at + interval) {
            return Ok(());
        }
        self.swept = Some(now);
        let known: BTreeMap<&String, Option<Instant>> =
            there.iter().map(|name| (name, self.hooks.get(name).map(|(at, _)| *at))).collect();
        for asg_name in due(&known, interval, now) {
            match aws.hooks(&asg_name).await {
                Ok(Some(hooks)) => drop(self.hooks.insert(asg_name, (now, Some(hooks)))),
                Ok(None) => drop(self.hooks.remove(&asg_name)),
                // That is the role's policy, and nobody else's turn would be better.
                Err(error) if error.class() == Class::Permission => return Err(error),
                Err(error) => {
                    tracing::warn!(asg_name, %error, "its lifecycle hooks are asked for again later");
                    let known = self.hooks.remove(&asg_name).and_then(|(_, hooks)| hooks);
                    self.hooks.insert(asg_name, (now, known));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// What this call may change is read again before it counts.
    pub fn changing(&mut self, action: &Action) {
        match action {
            Action::Track { .. } | Action::TrackNothing { .. } | Action::Delete { .. } => {
                self.policies = None;
            }
            Action::PutDrainHook { asg_name } | Action::PutReadyHook { asg_name } => {
                self.hooks.remove(asg_name);
            }
            Action::Create(_)
            | Action::Resize { .. }
            | Action::SetDesired { .. }
            | Action::DrainToZero { .. }
            | Action::Place { .. }
            | Action::UseTemplate { .. }
            | Action::StartRefresh { .. }
            | Action::CancelRefresh { .. }
            | Action::Replace { .. }
            | Action::Tag { .. } => {}
        }
    }

    /// With its hooks, so that it need not be asked for at once.
    pub fn created(&mut self, asg_name: &str, now: Instant) {
        self.hooks.insert(asg_name.to_owned(), (now, Some(Hooks::OURS)));
    }
}

/// An account of fixed groups, all as ordered, is not asked for policies at every look: they could not
/// change a count there. In a group of the customer they can.
fn policies_matter(
    ledger: &BTreeMap<GroupName, Accepted>,
    observed: &Observed,
    profile: Profile,
) -> bool {
    ledger.iter().any(|(group, Accepted { order, .. })| {
        let Some(group) = observed.get(group) else { return false };
        match &order.intent {
            Intent::Apply(spec) => {
                let generation = order.generation.to_string();
                spec.scaling.target().is_some()
                    || (profile == Profile::Manage
                        && group.tags.get(TAG_GENERATION) != Some(&generation))
            }
            Intent::Destroy => false,
        }
    })
}

/// Whose hook is asked for now: those never asked for, then the longest unasked, so many that all of
/// them have had their turn in time if looks come at `interval`.
fn due(
    known: &BTreeMap<&String, Option<Instant>>,
    interval: Duration,
    now: Instant,
) -> Vec<String> {
    let mut due: Vec<(Option<Instant>, &String)> = known
        .iter()
        .filter(|(_, at)| at.is_none_or(|at| now >= at + READ_AGAIN))
        .map(|(name, at)| (*at, *name))
        .collect();
    due.sort();
    let looks = (READ_AGAIN.as_secs() / interval.as_secs().max(1)).max(1);
    let a_look = known.len().div_ceil(usize::try_from(looks).unwrap_or(usize::MAX));
    due.into_iter().take(a_look).map(|(_, name)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_asked_for_in_turn_and_each_at_least_hourly() {
        let names: Vec<String> = (0..500).map(|n| format!("outstation-{n:03}")).collect();
        let start = Instant::now();
        for interval_secs in [1, 30, 600] {
            let interval = Duration::from_secs(interval_secs);
            let mut asked: BTreeMap<&String, Option<Instant>> =
                names.iter().map(|name| (name, None)).collect();
            let (mut now, mut most, mut gap) = (start, 0, Duration::ZERO);
            while now < start + Duration::from_secs(4 * 3600) {
                let turn = due(&asked, interval, now);
                most = most.max(turn.len());
                for name in &turn {
                    let at = asked.get_mut(name).expect("one of them");
                    gap = gap.max(now - at.unwrap_or(start));
                    *at = Some(now);
                }
                now += interval;
            }
            assert!(asked.values().all(Option::is_some));
            assert!(gap <= Duration::from_secs(3600), "{interval_secs} s: {gap:?}");
            assert!(most <= 1 + 500 * interval_secs as usize / 1800, "{interval_secs} s: {most}");
        }
    }
}
