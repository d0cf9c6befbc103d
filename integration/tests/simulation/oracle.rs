//! What must hold whatever happens. Watches every order that is accepted and every call that the
//! agents send to AWS.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use outstation_agent::account::guardrails::{DestroyPolicy, LaunchTemplate};
use outstation_agent::account::plan::{Observed, ObservedGroup, TAG_GENERATION};
use outstation_aws_sim::wire::query::Params;
use outstation_protocol::model::{GroupSpec, Scaling, Target};
use outstation_protocol::order::{Intent, Order};
use outstation_protocol::{Digest, Generation, GroupName};

use crate::tally;

pub const PREFIX: &str = "outstation-";

/// The part of the guardrails that the runs change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    pub valid: bool,
    pub pause: bool,
    pub destroy: DestroyPolicy,
    pub nodes_per_group_max: u32,
    pub nodes_total_max: u32,
    /// Of the launch template.
    pub version: u32,
    pub min_healthy_percent: u32,
    pub replacements_per_hour: u32,
    pub changes_per_hour: Option<u32>,
}

impl Rules {
    fn allow_changes(&self) -> bool {
        self.valid && !self.pause
    }
}

/// What the sender of a call went by.
pub struct Basis<'a> {
    pub live: bool,
    /// The account as its last describe showed it.
    pub shown: &'a Observed,
}

#[derive(Default)]
pub struct Oracle {
    /// The agent may set desired capacity, and nothing else.
    scale_only: bool,
    /// The newest order in the account store.
    pub accepted: BTreeMap<GroupName, (Order, Digest)>,
    /// What `guardrails/approvals/` holds now, as far as it is well-formed.
    pub approved: BTreeMap<GroupName, (Generation, Digest)>,
    created: BTreeMap<(GroupName, String), u32>,
    replaced: BTreeSet<(u64, String)>,
    /// When changes were accepted that count, in true time.
    changed: Vec<u64>,
}

impl Oracle {
    pub fn of(scale_only: bool) -> Oracle {
        Oracle { scale_only, ..Oracle::default() }
    }

    /// An agent has just written this into the account store.
    pub fn accepted(&mut self, order: &Order, digest: Digest) {
        if let Some((before, had)) = self.accepted.get(&order.group) {
            let again = before.generation == order.generation && *had == digest;
            assert!(
                again || before.generation < order.generation,
                "group {} went from generation {} to {}",
                order.group,
                before.generation,
                order.generation
            );
        }
        self.accepted.insert(order.group.clone(), (order.clone(), digest));
    }

    /// An agent sends this call to AWS.
    pub fn sent(&self, form: &Params, basis: Option<Basis<'_>>, rules: Rules) {
        let action = form.get("Action").unwrap_or_default().to_owned();
        if action.starts_with("Describe") || action == "CompleteLifecycleAction" {
            return;
        }
        if action == "SetInstanceHealth" {
            return self.check_replacement(form, basis, rules);
        }
        let name = form.get("AutoScalingGroupName").or(form.get("Tags.member.1.ResourceId"));
        let group = name
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|group| GroupName::try_from(group).ok());
        let known = group.and_then(|group| self.accepted.get(&group));
        let Some((order, _)) = known else {
            panic!("{action} of {name:?}: nobody ordered that");
        };
        let basis = basis.unwrap_or_else(|| panic!("{action} of {name:?} outside of a look"));
        let group = &order.group;
        assert!(
            rules.allow_changes(),
            "{action} of {group} under a pause or without valid guardrails"
        );
        let shown = basis.shown.get(group);
        match action.as_str() {
            "SetDesiredCapacity" => {
                assert!(self.scale_only, "{action} of {group}: no call of this profile");
                self.check_desired(form, order, &basis, rules);
            }
            other if self.scale_only => panic!("{other} of {group}: a call of another profile"),
            "CreateAutoScalingGroup" => {
                self.check_size(&action, form, order, &basis, rules);
                assert!(shown.is_none(), "{group} is created although it was shown");
            }
            "PutLifecycleHook" => {
                let hook = form.get("LifecycleHookName");
                assert!(
                    matches!(hook, Some("outstation-ready" | "outstation-drain")),
                    "{group}: {hook:?}"
                );
                assert!(!order.is_tombstone(), "{group} is at its end and gets a hook");
            }
            "UpdateAutoScalingGroup" => {
                if form.get("MaxSize").is_some() {
                    self.check_size(&action, form, order, &basis, rules);
                }
            }
            "PutScalingPolicy" => {
                let target = target_of(order);
                let said = form.get("TargetTrackingConfiguration.TargetValue");
                let said: Option<f64> = said.and_then(|text| text.parse().ok());
                assert!(
                    target.is_some() && said == target,
                    "{group} is told to track {said:?}, ordered is {target:?}"
                );
            }
            "DeletePolicy" => {
                assert_eq!(target_of(order), None, "{group} is ordered to track a target");
            }
            "CreateOrUpdateTags" => {
                let generation = (1..20).find_map(|n| {
                    let key = form.get(&format!("Tags.member.{n}.Key"))?;
                    (key == TAG_GENERATION).then(|| form.get(&format!("Tags.member.{n}.Value")))?
                });
                let right = generation.is_none_or(|tag| tag == order.generation.to_string());
                assert!(
                    right,
                    "{group} is tagged {generation:?}, accepted is {}",
                    order.generation
                );
            }
            "DeleteAutoScalingGroup" => {
                assert!(form.get("ForceDelete").is_none(), "{group}: a forced delete");
                self.check_end(&action, order, &basis, rules);
            }
            "StartInstanceRefresh" => {
                let number = |name: &str| form.get(name).and_then(|text| text.parse::<u32>().ok());
                let said = |name: &str| form.get(&format!("Preferences.{name}"));
                assert!(basis.live, "{group}: a refresh is begun while offline");
                let is_old = |template: &Option<LaunchTemplate>| {
                    template.as_ref().is_none_or(|it| it.version != u64::from(rules.version))
                };
                let shown = shown.unwrap_or_else(|| panic!("{group} was not shown"));
                assert!(shown.image.templates.iter().any(is_old), "{group}: no old instance shown");
                assert_eq!(
                    number("DesiredConfiguration.LaunchTemplate.Version"),
                    Some(rules.version),
                    "{group}: the image is what the guardrails say"
                );
                let least = number("Preferences.MinHealthyPercentage");
                assert_eq!(least, Some(rules.min_healthy_percent), "{group}: its healthy share");
                assert_eq!(said("MaxHealthyPercentage"), Some("100"), "{group}: launch first");
                assert_eq!(
                    (said("SkipMatching"), said("AutoRollback")),
                    (Some("true"), Some("true"))
                );
            }
            "CancelInstanceRefresh" => assert!(basis.live, "{group}: cancelled while offline"),
            other => panic!("{other}: not a call that the agent may make"),
        }
    }

    fn check_replacement(&self, form: &Params, basis: Option<Basis<'_>>, rules: Rules) {
        let instance = form.get("InstanceId").unwrap_or_default();
        let basis = basis.unwrap_or_else(|| panic!("{instance} is replaced outside of a look"));
        assert!(rules.allow_changes(), "{instance} is replaced under a pause");
        assert_eq!(form.get("HealthStatus"), Some("Unhealthy"));
        let of = |group: &&ObservedGroup| group.instances.keys().any(|id| id.as_str() == instance);
        let group = basis.shown.values().find(of);
        let is_in_service = group.is_some_and(|group| {
            group
                .instances
                .iter()
                .any(|(id, held)| id.as_str() == instance && held.lifecycle == "InService")
        });
        assert!(is_in_service, "{instance} is replaced, and was not shown in service");
    }

    /// The order that [`Oracle::accepted`] is told of next: whether it could be accepted so soon.
    pub fn changes(&mut self, order: &Order, now_millis: u64, rules: Rules) {
        const HOUR_MILLIS: u64 = 3600 * 1000;
        let Some(per_hour) = rules.changes_per_hour else { return };
        let before = self.accepted.get(&order.group);
        if before.is_some_and(|(before, _)| before.intent == order.intent) {
            return;
        }
        tally::CHANGED.fetch_add(1, Ordering::Relaxed);
        self.changed.retain(|at| now_millis < at + HOUR_MILLIS);
        self.changed.push(now_millis);
        let within = self.changed.len();
        assert!(within <= per_hour as usize, "{within} changes within an hour, {per_hour} allowed");
    }

    /// What AWS has been told to replace, in true time.
    pub fn replaced(&mut self, instance: &str, now_millis: u64, rules: Rules) {
        const HOUR_MILLIS: u64 = 3600 * 1000;
        self.replaced.retain(|(at, _)| now_millis < at + HOUR_MILLIS);
        self.replaced.insert((now_millis, instance.to_owned()));
        let within = self.replaced.len();
        let most = rules.replacements_per_hour as usize;
        assert!(within <= most, "{within} replacements within an hour: {:?}", self.replaced);
    }

    fn check_size(
        &self,
        action: &str,
        form: &Params,
        order: &Order,
        basis: &Basis<'_>,
        rules: Rules,
    ) {
        let count =
            |name: &str| -> Option<u32> { form.get(name).and_then(|text| text.parse().ok()) };
        let group = &order.group;
        let (Some(min), Some(nodes)) = (count("MinSize"), count("MaxSize")) else {
            panic!("{action} of {group} without bounds")
        };
        let desired = count("DesiredCapacity");
        let running = basis.shown.get(group).map_or(0, |group| group.desired);
        let mut shown = running;
        match &order.intent {
            Intent::Apply(GroupSpec {
                scaling: Scaling::Autoscaling { min_nodes, max_nodes, .. },
                ..
            }) => {
                assert_eq!((min, nodes), (*min_nodes, *max_nodes), "{group}: not as accepted");
                let created = action == "CreateAutoScalingGroup";
                assert_eq!(desired, created.then_some(min), "{group}: the autoscaler's business");
                shown = basis.shown.get(group).map_or(0, |group| group.max);
            }
            Intent::Apply(GroupSpec {
                scaling: Scaling::Provisioned { desired_nodes }, ..
            }) => {
                assert_eq!(nodes, *desired_nodes, "{action} of {group}: not as accepted");
                assert_eq!((min, desired), (nodes, Some(nodes)), "{group} is pinned");
            }
            Intent::Destroy => {
                assert_eq!(nodes, 0, "{action} of {group}, which has a tombstone");
                self.check_end(action, order, basis, rules);
            }
        }
        assert!(basis.live || nodes >= running, "{group}: {running} -> {nodes} while offline");
        self.check_ceilings(group, (shown, nodes), basis, rules);
    }

    /// Profile `scale-only`: as near to the order as the customer's bounds allow.
    fn check_desired(&self, form: &Params, order: &Order, basis: &Basis<'_>, rules: Rules) {
        let group = &order.group;
        let nodes: Option<u32> = form.get("DesiredCapacity").and_then(|text| text.parse().ok());
        let nodes = nodes.expect("a number");
        let shown = basis.shown.get(group).unwrap_or_else(|| panic!("{group} was not shown"));
        let wanted = match &order.intent {
            Intent::Apply(spec) => {
                shown.desired.clamp(spec.scaling.nodes_min(), spec.scaling.nodes_max())
            }
            Intent::Destroy => {
                self.check_end("SetDesiredCapacity", order, basis, rules);
                0
            }
        };
        let (min, max) = (shown.min, shown.max);
        assert_eq!(nodes, wanted.clamp(min, max), "{group}: {wanted} ordered within {min}..{max}");
        assert!(basis.live || nodes >= shown.desired, "{group} shrinks to {nodes} while offline");
        self.check_ceilings(group, (shown.desired, nodes), basis, rules);
    }

    fn check_ceilings(
        &self,
        group: &GroupName,
        (shown, nodes): (u32, u32),
        basis: &Basis<'_>,
        rules: Rules,
    ) {
        let ceiling = rules.nodes_per_group_max;
        assert!(nodes <= ceiling || nodes <= shown, "{group}: {shown} -> {nodes}, above {ceiling}");
        let alone = |name: &GroupName, observed: &ObservedGroup| {
            let ordered =
                self.accepted.get(name).is_some_and(|(order, _)| target_of(order).is_some());
            ordered || observed.policy.is_some()
        };
        let others: u32 = basis
            .shown
            .iter()
            .filter(|(name, _)| *name != group)
            .map(|(name, observed)| match alone(name, observed) {
                true => observed.desired.max(observed.max),
                false => observed.desired,
            })
            .sum();
        let total = rules.nodes_total_max;
        assert!(
            nodes <= shown || others + nodes <= total,
            "{group}: {shown} -> {nodes} beside {others} others, above {total} in all"
        );
    }

    fn check_end(&self, action: &str, order: &Order, basis: &Basis<'_>, rules: Rules) {
        let group = &order.group;
        assert!(order.is_tombstone(), "{action} of {group} without a tombstone");
        assert!(basis.live, "{action} of {group} while offline");
        match rules.destroy {
            DestroyPolicy::Allow => {}
            DestroyPolicy::Never => panic!("{action} of {group}: destroy = never"),
            DestroyPolicy::Approve => {
                let digest = self.accepted.get(group).map(|(_, digest)| *digest);
                let approved = self.approved.get(group);
                let matches = approved.is_some_and(|(generation, of)| {
                    (*generation, Some(*of)) == (order.generation, digest)
                });
                assert!(matches, "{action} of {group} {}: approved {approved:?}", order.generation);
                tally::APPROVED.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// What AWS did: a group came into being.
    pub fn created(&mut self, form: &Params) {
        let name = form.get("AutoScalingGroupName").unwrap_or_default().to_owned();
        let group = GroupName::try_from(&name[PREFIX.len()..]).expect("checked when it was sent");
        let generation = (1..20).find_map(|n| {
            let key = form.get(&format!("Tags.member.{n}.Key"))?;
            (key == TAG_GENERATION).then(|| form.get(&format!("Tags.member.{n}.Value")))?
        });
        let generation = generation.expect("created with its generation").to_owned();
        let count = self.created.entry((group.clone(), generation.clone())).or_default();
        *count += 1;
        assert_eq!(*count, 1, "{group} was created {count} times for generation {generation}");
    }
}

/// The number that the order's target has.
fn target_of(order: &Order) -> Option<f64> {
    match &order.intent {
        Intent::Apply(spec) => spec.scaling.target().map(|target| match target {
            Target::Cpu { percent: value } | Target::Metric { value, .. } => value.get(),
        }),
        Intent::Destroy => None,
    }
}
