//! After the trouble: what must be true in the end.

use std::sync::atomic::Ordering;

use outstation_agent::account::aws::DRAIN_HOOK;
use outstation_agent::account::entry::READY_HOOK;
use outstation_agent::account::scaling::TARGET_POLICY;
use outstation_aws_sim::model::HookName;
use outstation_aws_sim::model::group::Group;
use outstation_aws_sim::model::refresh::RefreshStatus;
use outstation_broker::store::orders::GroupRecord;
use outstation_protocol::order::Intent;
use outstation_protocol::{Generation, GroupName};

use crate::oracle::PREFIX;
use crate::tally;
use crate::world::World;

/// Far beyond the longest backoff, hook and lease together, and the turn of each drain hook to be looked at.
const SETTLE_MILLIS_MAX: u64 = 40 * 60 * 1000;
/// An apply after a broker was put back may collide with what the account has meanwhile.
const APPLIES_MAX: u32 = 4;

impl World {
    /// Waits until the account is as wanted; whoever was refused applies once more.
    pub fn settle(&mut self) {
        let started = self.now_millis;
        let mut applies = 0;
        loop {
            self.pass(10_000);
            if self.setup.scale_only {
                self.the_customer_obliges();
            }
            if self.weather.approvals {
                self.approve_all();
            }
            let refused = self.standing_refusals();
            if !refused.is_empty() && self.now_millis > started + 120_000 {
                applies += 1;
                assert!(applies <= APPLIES_MAX, "refused again and again: {refused:?}");
                for name in refused {
                    let wanted = self.people.wanted[&name].clone();
                    // What guardrails forbid also in calm is not wanted any more.
                    let wanted = wanted.filter(|spec| spec.scaling.nodes_max() <= 6);
                    let wanted = wanted.or_else(|| Some(crate::people::spec(1, 0, false)));
                    self.apply(&name, wanted);
                }
                self.pass(60_000);
                continue;
            }
            let missing = self.missing();
            if missing.is_empty() {
                let judged = self.cloud.sim.guard.judged().next();
                assert!(judged.is_some(), "nobody is held to the policy");
                let by_refresh = |group: &&Group| {
                    group.refreshes.iter().any(|it| it.status == RefreshStatus::Successful)
                };
                let rolled = self.cloud.sim.model.groups().filter(by_refresh).count();
                tally::ENDED.fetch_add(rolled as u64, Ordering::Relaxed);
                return;
            }
            assert!(
                self.now_millis < started + SETTLE_MILLIS_MAX,
                "not converged: {}",
                missing.join("; ")
            );
        }
    }

    fn records(&self) -> Vec<GroupRecord> {
        let Some(broker) = &self.broker else { return Vec::new() };
        self.people.wanted.keys().filter_map(|name| broker.group(name)).collect()
    }

    /// Groups whose newest order the account refuses.
    fn standing_refusals(&self) -> Vec<GroupName> {
        let refused = |record: &GroupRecord| {
            let refused = record.answers.refused.as_ref();
            refused.is_some_and(|(generation, digest, _)| {
                (*generation, *digest) == (record.generation, record.digest)
            })
        };
        self.records().iter().filter(|record| refused(record)).map(|r| r.group.clone()).collect()
    }

    /// Nodes of this group that serve what was accepted last.
    pub fn serving(&self, name: &GroupName) -> u32 {
        let bundle = match self.oracle.accepted.get(name).map(|(order, _)| &order.intent) {
            Some(Intent::Apply(spec)) => spec.bundle,
            Some(Intent::Destroy) | None => return 0,
        };
        let serving = self.nodes.values().filter(|node| {
            node.group == *name
                && !node.leaving
                && node.serves().is_some_and(|serves| serves.bundle == bundle)
        });
        u32::try_from(serving.count()).expect("a few")
    }

    /// As the broker knows it.
    pub fn newest(&self, name: &GroupName) -> Option<Generation> {
        self.broker.as_ref()?.group(name).map(|record| record.generation)
    }

    /// What is not as it shall be, in words.
    fn missing(&self) -> Vec<String> {
        if self.broker.is_none() || self.agents.len() != 1 {
            return vec!["a process is still down".to_owned()];
        }
        let mut missing = Vec::new();
        let drain_hook = HookName::try_from(DRAIN_HOOK.to_owned()).expect("valid");
        let ready_hook = HookName::try_from(READY_HOOK.to_owned()).expect("valid");
        for record in self.records() {
            let name = &record.group;
            let mut lacks = |what: String| missing.push(format!("{name}: {what}"));
            let head = (record.generation, record.digest);
            if record.answers.accepted != Some(head) {
                lacks(format!("accepted {:?}, newest {head:?}", record.answers.accepted));
                continue;
            }
            let Some((order, digest)) = self.oracle.accepted.get(name) else {
                lacks("nothing is in the ledger".to_owned());
                continue;
            };
            if (order.generation, *digest) != head {
                lacks(format!("the ledger holds generation {}", order.generation));
            }
            let status = record.answers.status.as_ref();
            if record.answers.converged.map(|(generation, _)| generation) != Some(record.generation)
            {
                lacks(format!("converged {:?}, {status:?}", record.answers.converged));
            }
            let asg = self
                .cloud
                .sim
                .model
                .groups()
                .find(|g| g.name.as_str() == format!("{PREFIX}{name}"));
            match (&order.intent, asg) {
                (Intent::Destroy, None) => {}
                (Intent::Destroy, Some(_)) => lacks("it still exists".to_owned()),
                (Intent::Apply(_), None) => lacks("it does not exist".to_owned()),
                (Intent::Apply(spec), Some(asg)) => {
                    let (min, max) = (spec.scaling.nodes_min(), spec.scaling.nodes_max());
                    let nodes = asg.desired;
                    let bounds = self.setup.scale_only || [asg.min, asg.max] == [min, max];
                    if !bounds || !(min..=max).contains(&nodes) {
                        lacks(format!("{min}..{max} wanted, {}/{nodes}/{}", asg.min, asg.max));
                    }
                    let ours = asg.policies.keys().any(|name| name.as_str() == TARGET_POLICY);
                    let hook = asg.hooks.get(&drain_hook);
                    if hook.is_none_or(|hook| hook.heartbeat.as_secs() != 90) {
                        lacks(format!("the drain hook is {hook:?}"));
                    }
                    let hook = asg.hooks.get(&ready_hook);
                    if !self.setup.scale_only
                        && hook.is_none_or(|hook| hook.heartbeat.as_secs() != 900)
                    {
                        lacks(format!("the ready hook is {hook:?}"));
                    }
                    if ours != spec.scaling.target().is_some() {
                        lacks(format!("a scaling policy of ours: {ours}"));
                    }
                    let version = self.rules.version;
                    let images = !self.setup.scale_only;
                    if images && asg.template.version != version.to_string() {
                        lacks(format!("image {version} wanted, {}", asg.template.version));
                    }
                    if images
                        && asg.instances.values().any(|held| {
                            !held.lifecycle.is_leaving() && held.template.version != version
                        })
                    {
                        lacks(format!("image {version} wanted, not of all instances"));
                    }
                    let serving = self.serving(name);
                    if serving != nodes {
                        lacks(format!("{nodes} wanted, {serving} serve the wanted bundle"));
                    }
                }
            }
        }
        missing
    }
}
