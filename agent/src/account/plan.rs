//! What to do about the difference between what was ordered and what is there. Pure:
//! `plan(desired, observed, guardrails, …) -> Plan`; every refused or waiting thing has a reason.

use std::collections::BTreeMap;

use outstation_protocol::model::{GroupSpec, Target};
use outstation_protocol::order::Intent;
use outstation_protocol::status::Held;
use outstation_protocol::{GroupName, InstanceId, TenantId};

use super::guardrails::{DestroyPolicy, DriftPolicy, Guardrails, LaunchTemplate, NoGuardrails};
use super::hooks::{Hook, Hooks};
use super::ledger::Accepted;
use super::refresh::{Image, Refresh, RefreshState, Rolling, rolling};
use super::scaling::Policy;

pub const TAG_TENANT: &str = "outstation:tenant";
pub const TAG_GROUP: &str = "outstation:group";
pub const TAG_KIND: &str = "outstation:kind";
pub const TAG_GENERATION: &str = "outstation:generation";
pub const TAG_ENVIRONMENT: &str = "outstation:environment";
pub const TAG_BUNDLE: &str = "outstation:bundle";
pub const TAG_OPTIONS: &str = "outstation:options";

/// The AutoScaling groups that carry our tenant's tag, by server group.
pub type Observed = BTreeMap<GroupName, ObservedGroup>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedGroup {
    pub min: u32,
    pub max: u32,
    pub desired: u32,
    /// Our scaling policy, when policies were last read.
    pub policy: Option<Policy>,
    /// Our lifecycle hooks, when they were last asked for; `None`: not known.
    pub hooks: Option<Hooks>,
    /// Where it places instances, in order.
    pub subnets: Vec<String>,
    pub zones: Vec<String>,
    pub launch_template: Option<LaunchTemplate>,
    pub image: Image,
    pub tags: BTreeMap<String, String>,
    pub instances: BTreeMap<InstanceId, ObservedInstance>,
    /// AWS is deleting it already.
    pub deleting: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedInstance {
    /// AWS's lifecycle state, such as `InService` or `Terminating:Wait`.
    pub lifecycle: String,
    pub healthy: bool,
}

impl ObservedGroup {
    /// Nodes that it has, is getting or may get without us.
    fn size(&self, accepted: Option<&Accepted>) -> u64 {
        let is_autoscaled = match accepted.map(|accepted| &accepted.order.intent) {
            Some(Intent::Apply(spec)) => spec.scaling.target().is_some(),
            Some(Intent::Destroy) | None => false,
        };
        let alone = if is_autoscaled || self.policy.is_some() { self.max } else { 0 };
        u64::from(self.desired.max(alone)).max(self.instances.len() as u64)
    }

    pub fn created(shape: &Shape) -> ObservedGroup {
        ObservedGroup {
            min: shape.min,
            max: shape.max,
            desired: shape.min,
            policy: None,
            hooks: Some(Hooks::OURS),
            subnets: sorted(&shape.subnets),
            zones: sorted(&shape.availability_zones),
            launch_template: Some(shape.launch_template.clone()),
            image: Image::default(),
            tags: shape.tags.clone(),
            instances: BTreeMap::new(),
            deleting: false,
        }
    }

    /// As it is once `action` is done: what is planned next must not wait for the next look.
    pub fn done(&mut self, action: &Action) {
        match action {
            Action::Create(_) | Action::Delete { .. } => {}
            Action::Resize { min, max, desired, .. } => {
                let desired = desired.unwrap_or(self.desired).clamp(*min, *max);
                (self.min, self.max, self.desired) = (*min, *max, desired);
            }
            Action::DrainToZero { .. } => (self.min, self.max, self.desired) = (0, 0, 0),
            Action::Track { target, .. } => self.policy = Some(Policy::Tracks(target.clone())),
            Action::TrackNothing { .. } => self.policy = None,
            Action::SetDesired { nodes, .. } => self.desired = *nodes,
            Action::PutDrainHook { .. } => {
                if let Some(hooks) = &mut self.hooks {
                    hooks.drain = Hook::Ours;
                }
            }
            Action::Place { subnets, zones, .. } => {
                (self.subnets, self.zones) = (sorted(subnets), sorted(zones));
            }
            Action::UseTemplate { launch_template, .. } => {
                self.launch_template = Some(launch_template.clone());
            }
            Action::StartRefresh { launch_template, .. } => {
                self.image.refresh = Some(Refresh {
                    state: RefreshState::UnderWay,
                    launch_template: Some(launch_template.clone()),
                    percent: 0,
                    to_update: u32::try_from(self.instances.len()).unwrap_or(u32::MAX),
                    reason: None,
                });
            }
            Action::CancelRefresh { .. } => {
                if let Some(refresh) = &mut self.image.refresh {
                    refresh.state = RefreshState::Cancelling;
                }
            }
            Action::Replace { instance, .. } => {
                if let Some(instance) = self.instances.get_mut(instance) {
                    instance.healthy = false;
                }
            }
            Action::Tag { tags, .. } => self.tags.extend(tags.clone()),
            Action::PutReadyHook { .. } => {
                if let Some(hooks) = &mut self.hooks {
                    hooks.ready = Hook::Ours;
                }
            }
        }
    }
}

impl ObservedInstance {
    pub fn is_leaving(&self) -> bool {
        self.lifecycle.starts_with("Terminat")
    }
}

/// An AutoScaling group as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    pub asg_name: String,
    pub min: u32,
    pub max: u32,
    /// What AWS keeps between the two; without one both are the same, and so is the desired count.
    pub target: Option<Target>,
    pub launch_template: LaunchTemplate,
    pub tags: BTreeMap<String, String>,
    pub subnets: Vec<String>,
    pub availability_zones: Vec<String>,
}

/// One AWS call. Each may be repeated: a lost reply costs nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Create(Shape),
    /// Without `desired` that is the autoscaler's business.
    Resize {
        asg_name: String,
        min: u32,
        max: u32,
        desired: Option<u32>,
    },
    Track {
        asg_name: String,
        target: Target,
    },
    TrackNothing {
        asg_name: String,
    },
    /// Within the bounds that the group has: all that profile `scale-only` does.
    SetDesired {
        asg_name: String,
        nodes: u32,
    },
    PutDrainHook {
        asg_name: String,
    },
    /// One of the two is empty.
    Place {
        asg_name: String,
        subnets: Vec<String>,
        zones: Vec<String>,
    },
    UseTemplate {
        asg_name: String,
        launch_template: LaunchTemplate,
    },
    /// Before each roll-out: without this hook AWS would go on as soon as a machine runs.
    PutReadyHook {
        asg_name: String,
    },
    /// Every instance is replaced that is not of this template, within the healthy share.
    StartRefresh {
        asg_name: String,
        launch_template: LaunchTemplate,
        min_healthy_percent: u32,
    },
    CancelRefresh {
        asg_name: String,
    },
    /// A node that does not work is called unhealthy: AWS drains it and launches another.
    Replace {
        instance: InstanceId,
        why: String,
        /// Its number in the account's count of replacements.
        number: u64,
    },
    /// The generation is among the tags, so they go last: until then the change is not done.
    Tag {
        asg_name: String,
        tags: BTreeMap<String, String>,
    },
    /// ForceDelete would cut off the drains: instances leave first.
    DrainToZero {
        asg_name: String,
    },
    Delete {
        asg_name: String,
    },
}

impl Action {
    /// In a plan of this `rolling`: outside of a roll-out the ready hook is drift like any other.
    fn is_about_image(&self, rolling: Option<&Rolling>) -> bool {
        match self {
            Action::PutReadyHook { .. } => rolling == Some(&Rolling::Start),
            Action::StartRefresh { .. } | Action::CancelRefresh { .. } => true,
            Action::Create(_)
            | Action::Resize { .. }
            | Action::Track { .. }
            | Action::TrackNothing { .. }
            | Action::SetDesired { .. }
            | Action::PutDrainHook { .. }
            | Action::Place { .. }
            | Action::UseTemplate { .. }
            | Action::Replace { .. }
            | Action::Tag { .. }
            | Action::DrainToZero { .. }
            | Action::Delete { .. } => false,
        }
    }

    /// The most nodes that it may lead to.
    pub fn nodes(&self) -> Option<u32> {
        match self {
            Action::Create(shape) => Some(shape.max),
            Action::Resize { max, .. } => Some(*max),
            Action::SetDesired { nodes, .. } => Some(*nodes),
            Action::DrainToZero { .. } | Action::Delete { .. } => Some(0),
            Action::Track { .. }
            | Action::TrackNothing { .. }
            | Action::PutDrainHook { .. }
            | Action::Place { .. }
            | Action::UseTemplate { .. }
            | Action::PutReadyHook { .. }
            | Action::StartRefresh { .. }
            | Action::CancelRefresh { .. }
            | Action::Replace { .. }
            | Action::Tag { .. } => None,
        }
    }

    /// What there may be of them without it.
    fn nodes_before(&self, observed: Option<&ObservedGroup>) -> u32 {
        match self {
            Action::Resize { desired: None, .. } => observed.map_or(0, |group| group.max),
            Action::Create(_)
            | Action::Resize { desired: Some(_), .. }
            | Action::Track { .. }
            | Action::TrackNothing { .. }
            | Action::SetDesired { .. }
            | Action::PutDrainHook { .. }
            | Action::Place { .. }
            | Action::UseTemplate { .. }
            | Action::PutReadyHook { .. }
            | Action::StartRefresh { .. }
            | Action::CancelRefresh { .. }
            | Action::Replace { .. }
            | Action::Tag { .. }
            | Action::DrainToZero { .. }
            | Action::Delete { .. } => observed.map_or(0, |group| group.desired),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupPlan {
    pub actions: Vec<Action>,
    pub held: Vec<Held>,
    /// What differs although nobody ordered it.
    pub drift: Vec<String>,
    /// Where it stands with an image that is not as wanted.
    pub rolling: Option<Rolling>,
}

pub type Plan = BTreeMap<GroupName, GroupPlan>;

/// Groups that nobody ordered are not in the plan, whatever their tags say.
pub fn plan(
    ledger: &BTreeMap<GroupName, Accepted>,
    observed: &Observed,
    guardrails: &Result<Guardrails, NoGuardrails>,
    tenant: &TenantId,
    link_live: bool,
) -> Plan {
    plan_each(ledger, observed, guardrails, link_live, |accepted, observed, guardrails| {
        (plan_group(accepted, observed, guardrails, tenant), vec![])
    })
}

/// Every group by `plan_group`, then what guardrails and link leave of it, beside what is told anyway.
pub(super) fn plan_each(
    ledger: &BTreeMap<GroupName, Accepted>,
    observed: &Observed,
    guardrails: &Result<Guardrails, NoGuardrails>,
    link_live: bool,
    plan_group: impl Fn(&Accepted, Option<&ObservedGroup>, &Guardrails) -> (GroupPlan, Vec<Held>),
) -> Plan {
    let mut sizes: BTreeMap<&GroupName, u64> =
        observed.iter().map(|(group, is)| (group, is.size(ledger.get(group)))).collect();
    let mut total: u64 = sizes.values().sum();
    let mut plans = Plan::new();
    for (group, accepted) in ledger {
        let own = sizes.get(group).copied().unwrap_or(0);
        let plan = match guardrails {
            Ok(guardrails) => {
                let around = Around { link_live, others: total - own };
                let (plan, told) = plan_group(accepted, observed.get(group), guardrails);
                let mut plan = restrain(plan, accepted, observed.get(group), guardrails, around);
                plan.held.extend(plan.rolling.as_ref().and_then(Rolling::held));
                plan.held.extend(told);
                plan
            }
            Err(NoGuardrails(why)) => GroupPlan {
                held: vec![held(
                    accepted,
                    "guardrails",
                    why,
                    "write guardrails/guardrails.toml in the account store",
                )],
                ..GroupPlan::default()
            },
        };
        // What grows first leaves less for the next.
        for nodes in plan.actions.iter().filter_map(Action::nodes) {
            let size = sizes.entry(group).or_default();
            total += u64::from(nodes).saturating_sub(*size);
            *size = (*size).max(u64::from(nodes));
        }
        plans.insert(group.clone(), plan);
    }
    plans
}

/// What bears on a group from outside it.
#[derive(Debug, Clone, Copy)]
struct Around {
    link_live: bool,
    /// Nodes of the other groups.
    others: u64,
}

fn plan_group(
    accepted: &Accepted,
    observed: Option<&ObservedGroup>,
    guardrails: &Guardrails,
    tenant: &TenantId,
) -> GroupPlan {
    let asg_name = guardrails.asg_name(&accepted.order.group);
    match (&accepted.order.intent, observed) {
        (Intent::Destroy, None) => GroupPlan::default(),
        (Intent::Destroy, Some(group)) => {
            let actions = if group.deleting {
                vec![]
            } else if group.max > 0 {
                vec![Action::DrainToZero { asg_name }]
            } else if group.instances.is_empty() {
                vec![Action::Delete { asg_name }]
            } else {
                vec![]
            };
            GroupPlan { actions, ..GroupPlan::default() }
        }
        (Intent::Apply(spec), None) => {
            let shape = shape(accepted, spec, guardrails, tenant);
            let target = shape.target.clone().map(|target| Action::Track { asg_name, target });
            let actions = [Action::Create(shape)].into_iter().chain(target).collect();
            GroupPlan { actions, ..GroupPlan::default() }
        }
        (Intent::Apply(_), Some(group)) if group.deleting => GroupPlan {
            held: vec![held(
                accepted,
                "deleting",
                "AWS is still deleting the former AutoScaling group of this name",
                "nobody has to do anything: it is created again afterwards",
            )],
            ..GroupPlan::default()
        },
        (Intent::Apply(spec), Some(group)) => {
            compare(&shape(accepted, spec, guardrails, tenant), group, guardrails)
        }
    }
}

fn shape(
    accepted: &Accepted,
    spec: &GroupSpec,
    guardrails: &Guardrails,
    tenant: &TenantId,
) -> Shape {
    let order = &accepted.order;
    let options: Vec<String> = spec.options.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let mut tags = spec.tags.clone();
    for (key, value) in [
        (TAG_TENANT, tenant.to_string()),
        (TAG_GROUP, order.group.to_string()),
        (TAG_KIND, spec.kind.to_string()),
        (TAG_GENERATION, order.generation.to_string()),
        (TAG_ENVIRONMENT, spec.environment.digest.to_string()),
        (TAG_BUNDLE, spec.bundle.to_string()),
        (TAG_OPTIONS, options.join(",")),
    ] {
        tags.insert(key.to_owned(), value);
    }
    Shape {
        asg_name: guardrails.asg_name(&order.group),
        min: spec.scaling.nodes_min(),
        max: spec.scaling.nodes_max(),
        target: spec.scaling.target().cloned(),
        launch_template: guardrails.launch_template.clone(),
        tags,
        subnets: guardrails.subnets.clone(),
        availability_zones: guardrails.availability_zones.clone(),
    }
}

fn compare(wanted: &Shape, observed: &ObservedGroup, guardrails: &Guardrails) -> GroupPlan {
    let rolling = rolling(&wanted.launch_template, observed);
    let mut plan = GroupPlan { rolling, ..GroupPlan::default() };
    let mut differences = Vec::new();
    let asg_name = wanted.asg_name.clone();
    let (min, max) = (wanted.min, wanted.max);
    // Between the bounds it is the autoscaler's, and AWS itself keeps it there.
    let desired = wanted.target.is_none().then_some(max);
    for (field, wanted, is) in [
        ("min size", Some(min), observed.min),
        ("max size", Some(max), observed.max),
        ("desired capacity", desired, observed.desired),
    ] {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != is) {
            differences.push(format!("{field} {wanted} -> {is}"));
        }
    }
    if !differences.is_empty() {
        plan.actions.push(Action::Resize { asg_name: asg_name.clone(), min, max, desired });
    }
    let policy = wanted.target.clone().map(Policy::Tracks);
    if observed.policy != policy {
        let text = |policy: &Option<Policy>| match policy {
            Some(policy) => policy.to_string(),
            None => "none".to_owned(),
        };
        differences.push(format!("scaling policy {} -> {}", text(&policy), text(&observed.policy)));
        let asg_name = asg_name.clone();
        plan.actions.push(match wanted.target.clone() {
            Some(target) => Action::Track { asg_name, target },
            None => Action::TrackNothing { asg_name },
        });
    }
    if plan.rolling == Some(Rolling::Adjust) {
        let is = observed.launch_template.as_ref();
        differences.push(format!(
            "launch template {} version {} -> {}",
            wanted.launch_template.name,
            wanted.launch_template.version,
            is.map_or("none".to_owned(), |is| format!("{} version {}", is.name, is.version))
        ));
        let launch_template = wanted.launch_template.clone();
        plan.actions.push(Action::UseTemplate { asg_name: asg_name.clone(), launch_template });
    }
    // A group in subnets has zones too: those of its subnets.
    let (what, places, is) = match wanted.subnets.is_empty() {
        true => ("zones", sorted(&wanted.availability_zones), &observed.zones),
        false => ("subnets", sorted(&wanted.subnets), &observed.subnets),
    };
    if *is != places {
        differences.push(format!("{what} {} -> {}", places.join(","), is.join(",")));
        plan.actions.push(Action::Place {
            asg_name: asg_name.clone(),
            subnets: wanted.subnets.clone(),
            zones: wanted.availability_zones.clone(),
        });
    }
    if let Some(drift) = observed.hooks.as_ref().and_then(Hooks::drain_drift) {
        differences.push(drift);
        plan.actions.push(Action::PutDrainHook { asg_name: asg_name.clone() });
    }
    if let Some(drift) = observed.hooks.as_ref().and_then(Hooks::ready_drift) {
        differences.push(drift);
        // A roll-out puts it anyway.
        if plan.rolling != Some(Rolling::Start) {
            plan.actions.push(Action::PutReadyHook { asg_name: asg_name.clone() });
        }
    }
    let tags: BTreeMap<String, String> = wanted
        .tags
        .iter()
        .filter(|(key, value)| observed.tags.get(*key) != Some(*value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    for (key, value) in &tags {
        let is = observed.tags.get(key).map_or("none", String::as_str);
        differences.push(format!("tag {key} {value:?} -> {is:?}"));
    }
    if !tags.is_empty() {
        plan.actions.push(Action::Tag { asg_name: asg_name.clone(), tags });
    }
    // Last: new instances have the new tags, and an order does not wait for an image.
    match &plan.rolling {
        Some(Rolling::Start) => plan.actions.extend([
            Action::PutReadyHook { asg_name: asg_name.clone() },
            Action::StartRefresh {
                asg_name,
                launch_template: wanted.launch_template.clone(),
                min_healthy_percent: guardrails.min_healthy_percent,
            },
        ]),
        Some(Rolling::Cancel { .. }) => plan.actions.push(Action::CancelRefresh { asg_name }),
        Some(Rolling::Adjust | Rolling::UnderWay { .. } | Rolling::Failed { .. }) | None => {}
    }
    let generation = |tags: &BTreeMap<String, String>| tags.get(TAG_GENERATION).cloned();
    if generation(&observed.tags) == generation(&wanted.tags) {
        plan.drift = differences;
    }
    plan
}

/// Takes out of a plan what may not be done now, and says why.
fn restrain(
    mut plan: GroupPlan,
    accepted: &Accepted,
    observed: Option<&ObservedGroup>,
    guardrails: &Guardrails,
    around: Around,
) -> GroupPlan {
    if plan.actions.is_empty() {
        return plan;
    }
    let is_drift = !plan.drift.is_empty();
    if is_drift && guardrails.drift == DriftPolicy::Report {
        // The image is what the guardrails themselves say.
        plan.actions.retain(|action| action.is_about_image(plan.rolling.as_ref()));
        if plan.actions.is_empty() {
            return plan;
        }
    }
    if guardrails.pause {
        plan.actions.clear();
        plan.held.push(held(
            accepted,
            "pause",
            "the account's guardrails say pause = true",
            "whoever may write guardrails/ in the account store can end the pause",
        ));
        return plan;
    }
    let running = observed.map_or(0, |group| group.desired);
    plan.actions.retain(|action| {
        // What follows a held action is held with it: the generation's tag must not be early.
        if !plan.held.is_empty() {
            return false;
        }
        let destroys = match action {
            Action::DrainToZero { .. } | Action::Delete { .. } => true,
            Action::SetDesired { .. } => accepted.order.is_tombstone(),
            Action::Create(_) | Action::Resize { .. } => false,
            Action::PutReadyHook { .. } if !action.is_about_image(plan.rolling.as_ref()) => {
                return true;
            }
            Action::PutReadyHook { .. }
            | Action::StartRefresh { .. }
            | Action::CancelRefresh { .. } => {
                if !around.link_live {
                    plan.held.push(held(
                        accepted,
                        "offline",
                        "no instance refresh is begun or cancelled without the broker",
                        "it goes on by itself when the control link is back; one that is under way goes on meanwhile",
                    ));
                }
                return around.link_live;
            }
            Action::Track { .. }
            | Action::TrackNothing { .. }
            | Action::PutDrainHook { .. }
            | Action::Place { .. }
            | Action::UseTemplate { .. }
            | Action::Replace { .. }
            | Action::Tag { .. } => return true,
        };
        let nodes = action.nodes().unwrap_or(0);
        let present = action.nodes_before(observed);
        if nodes > guardrails.nodes_per_group_max && nodes > present {
            plan.held.push(held(
                accepted,
                "nodes_per_group_max",
                &format!(
                    "{nodes} nodes: more than nodes_per_group_max {} of the account's guardrails",
                    guardrails.nodes_per_group_max
                ),
                "whoever may write guardrails/ in the account store can raise it",
            ));
            return false;
        }
        let total = around.others + u64::from(nodes);
        if total > u64::from(guardrails.nodes_total_max) && nodes > present {
            plan.held.push(held(
                accepted,
                "nodes_total_max",
                &format!(
                    "{nodes} nodes, with {} of the other groups, are more than nodes_total_max {} \
                     of the account's guardrails",
                    around.others, guardrails.nodes_total_max
                ),
                "it goes on by itself when the others have shrunk; whoever may write guardrails/ in \
                 the account store can raise it",
            ));
            return false;
        }
        let forbidden = match guardrails.destroy {
            DestroyPolicy::Allow => None,
            DestroyPolicy::Approve => guardrails.approvals.lack(accepted),
            DestroyPolicy::Never => Some(held(
                accepted,
                "destroy",
                "the account's guardrails say destroy = \"never\" by now",
                "whoever may write guardrails/ in the account store can allow it",
            )),
        };
        if let Some(held) = forbidden.filter(|_| destroys) {
            plan.held.push(held);
            return false;
        }
        if (destroys || nodes < running) && !around.link_live {
            plan.held.push(held(
                accepted,
                "offline",
                &format!("{running} -> {nodes} nodes: capacity is not lowered without the broker"),
                "it goes on by itself when the control link is back",
            ));
            return false;
        }
        true
    });
    plan
}

fn sorted(names: &[String]) -> Vec<String> {
    let mut names = names.to_vec();
    names.sort();
    names
}

pub(super) fn held(accepted: &Accepted, rule: &str, message: &str, hint: &str) -> Held {
    Held {
        generation: Some(accepted.order.generation),
        rule: rule.to_owned(),
        message: message.to_owned(),
        hint: hint.to_owned(),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
