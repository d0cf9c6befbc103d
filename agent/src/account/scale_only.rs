//! Profile `scale-only`: the customer made the AutoScaling groups, and this agent sets their desired
//! capacity inside the customer's bounds. Whatever else an order asks for is told, with who must do
//! it. Pure.

use std::collections::BTreeMap;

use outstation_protocol::model::GroupSpec;
use outstation_protocol::order::Intent;
use outstation_protocol::status::Held;
use outstation_protocol::{Generation, GroupName, TenantId};

use super::guardrails::{Guardrails, NoGuardrails};
use super::ledger::Accepted;
use super::plan::{
    Action, GroupPlan, Observed, ObservedGroup, Plan, TAG_GROUP, TAG_TENANT, held, plan_each,
};
use super::scaling::{Policy, TARGET_POLICY};

/// Which generation of each group was seen to be done: groups of the customer carry no generation's
/// tag, so what is drift and what is not done yet is known by this alone.
pub type Converged = BTreeMap<GroupName, Generation>;

pub const RULE: &str = "profile";

/// Groups that nobody ordered are not in the plan, whatever their tags say.
pub fn plan(
    ledger: &BTreeMap<GroupName, Accepted>,
    observed: &Observed,
    guardrails: &Result<Guardrails, NoGuardrails>,
    tenant: &TenantId,
    link_live: bool,
    converged: &Converged,
) -> Plan {
    plan_each(ledger, observed, guardrails, link_live, |accepted, observed, guardrails| {
        let asg_name = guardrails.asg_name(&accepted.order.group);
        plan_group(accepted, observed, &asg_name, tenant, converged)
    })
}

/// What may be done, and what is told beside it whatever becomes of that.
fn plan_group(
    accepted: &Accepted,
    observed: Option<&ObservedGroup>,
    asg_name: &str,
    tenant: &TenantId,
    converged: &Converged,
) -> (GroupPlan, Vec<Held>) {
    let told = |(message, hint): (String, String)| held(accepted, RULE, &message, &hint);
    let nothing = |told: Vec<Held>| (GroupPlan::default(), told);
    match (&accepted.order.intent, observed) {
        (Intent::Destroy, None) => nothing(vec![]),
        (Intent::Destroy, Some(group)) if group.deleting => nothing(vec![]),
        (Intent::Destroy, Some(group)) => {
            let told = told((
                format!(
                    "the group shall be gone: with profile scale-only this agent lets it shrink to \
                     its MinSize {}, and deletes no AutoScaling group",
                    group.min
                ),
                format!("delete the AutoScaling group {asg_name} yourself"),
            ));
            let actions = set(group, group.min, asg_name);
            (GroupPlan { actions, ..GroupPlan::default() }, vec![told])
        }
        (Intent::Apply(_), None) => {
            let group = &accepted.order.group;
            nothing(vec![told((
                format!("there is no AutoScaling group {asg_name} that is tagged as ours"),
                format!(
                    "with profile scale-only this agent makes none: make {asg_name} with the tags \
                     {TAG_TENANT}={tenant} and {TAG_GROUP}={group}, both propagated to instances"
                ),
            ))])
        }
        (Intent::Apply(_), Some(group)) if group.deleting => nothing(vec![told((
            format!("AWS is deleting the AutoScaling group {asg_name}"),
            "make it again, or destroy the group".to_owned(),
        ))]),
        (Intent::Apply(spec), Some(group)) => {
            let (actions, wanted) = resize(spec, group, asg_name);
            let mut plan = GroupPlan { actions, ..GroupPlan::default() };
            let generation = accepted.order.generation;
            if !plan.actions.is_empty() && converged.get(&accepted.order.group) == Some(&generation)
            {
                plan.drift.push(format!("desired capacity {wanted} -> {}", group.desired));
            }
            (plan, missing(spec, group, asg_name).into_iter().map(told).collect())
        }
    }
}

/// The count that comes nearest to the order inside the customer's bounds.
fn resize(spec: &GroupSpec, group: &ObservedGroup, asg_name: &str) -> (Vec<Action>, u32) {
    let ordered = group.desired.clamp(spec.scaling.nodes_min(), spec.scaling.nodes_max());
    let wanted = ordered.min(group.max).max(group.min);
    (set(group, wanted, asg_name), wanted)
}

fn set(group: &ObservedGroup, nodes: u32, asg_name: &str) -> Vec<Action> {
    if group.desired == nodes {
        return vec![];
    }
    vec![Action::SetDesired { asg_name: asg_name.to_owned(), nodes }]
}

/// What of the order only the customer can bring about: message and hint.
fn missing(spec: &GroupSpec, group: &ObservedGroup, asg_name: &str) -> Vec<(String, String)> {
    let mut missing = Vec::new();
    let (least, most) = (spec.scaling.nodes_min(), spec.scaling.nodes_max());
    if most > group.max {
        missing.push((
            format!("{most} nodes are more than MaxSize {} of {asg_name}", group.max),
            format!("whoever owns the AutoScaling group can raise its MaxSize to {most}"),
        ));
    }
    if most < group.min || (spec.scaling.target().is_some() && least < group.min) {
        missing.push((
            format!("{least} nodes are fewer than MinSize {} of {asg_name}", group.min),
            format!("whoever owns the AutoScaling group can lower its MinSize to {least}"),
        ));
    }
    let policy = spec.scaling.target().cloned().map(Policy::Tracks);
    if group.policy != policy {
        let is = group.policy.as_ref().map_or("none".to_owned(), Policy::to_string);
        let wanted = policy.map_or("none".to_owned(), |policy| policy.to_string());
        missing.push((
            format!("the scaling policy {TARGET_POLICY} of {asg_name} is {is}, ordered is {wanted}"),
            format!(
                "with profile scale-only this agent changes no policies: whoever owns the AutoScaling \
                 group sets its target tracking policy {TARGET_POLICY} to {wanted}"
            ),
        ));
    }
    missing
}

#[cfg(test)]
#[path = "scale_only_tests.rs"]
mod tests;
