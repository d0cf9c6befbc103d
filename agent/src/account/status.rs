//! What is told of a group: phase, counts and reasons. Pure.

use outstation_protocol::ids::{Digest, Generation, GroupName};
use outstation_protocol::model::Scaling;
use outstation_protocol::order::Intent;
use outstation_protocol::status::{
    DRIFT_ENTRIES_MAX, Drift, GroupPhase, GroupStatus, Held, NODE_ENTRIES_MAX, NodePhase,
    NodeStatus,
};

use super::ledger::Accepted;
use super::plan::{Action, GroupPlan, ObservedGroup};
use super::refresh::Rolling;

/// What the reconciler remembers of a group from one look to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    pub converged: Option<Generation>,
    /// Newest first.
    pub drift: Vec<Drift>,
    /// The last AWS call that failed, until a later look succeeds.
    pub failure: Option<Held>,
    pub phase: Option<(GroupPhase, u64)>,
}

impl Memory {
    /// Notes drift once, however many looks see it.
    pub fn note_drift(&mut self, changes: &[String], repaired: bool, now_unix_secs: u64) {
        if changes.is_empty() {
            return;
        }
        let change = changes.join(", ");
        let seen = |drift: &Drift| drift.change == change && drift.repaired == repaired;
        if !repaired && self.drift.first().is_some_and(seen) {
            return;
        }
        self.drift.insert(0, Drift { change, repaired, at_unix_secs: now_unix_secs });
        self.drift.truncate(DRIFT_ENTRIES_MAX);
    }
}

/// A group's status and, when it is as ordered, the digest of what was observed.
pub fn assess(
    group: &GroupName,
    accepted: &Accepted,
    plan: &GroupPlan,
    observed: Option<&ObservedGroup>,
    mut nodes: Vec<NodeStatus>,
    memory: &mut Memory,
    now_unix_secs: u64,
) -> (GroupStatus, Option<Digest>) {
    let (desired_nodes, bundle) = match &accepted.order.intent {
        Intent::Apply(spec) => (nodes_wanted(&spec.scaling, observed), Some(spec.bundle)),
        Intent::Destroy => (0, None),
    };
    let is_autoscaled = match &accepted.order.intent {
        Intent::Apply(spec) => spec.scaling.target().is_some(),
        Intent::Destroy => false,
    };
    let observed_nodes = observed.map_or(0, |group| count(group.instances.len()));
    let ready = |node: &&NodeStatus| node.phase == NodePhase::Ready && node.bundle == bundle;
    let ready_nodes = count(nodes.iter().filter(ready).count());
    let mut held = plan.held.clone();
    held.extend(memory.failure.clone());

    let done = plan.actions.is_empty()
        && plan.drift.is_empty()
        && plan.rolling.is_none()
        && held.is_empty()
        && ready_nodes == desired_nodes
        // While it scales in there are more, which drain.
        && (observed_nodes == desired_nodes || is_autoscaled);
    let (phase, reason) = match &accepted.order.intent {
        Intent::Destroy if observed.is_none() && held.is_empty() => {
            (GroupPhase::Deleted, "deleted".to_owned())
        }
        Intent::Destroy if !held.is_empty() => {
            (GroupPhase::Deleting, format!("held: {}", held[0].message))
        }
        Intent::Destroy => {
            (GroupPhase::Deleting, format!("{observed_nodes} instances still to drain and end"))
        }
        Intent::Apply(_) if done => {
            (GroupPhase::Ready, format!("{ready_nodes} of {desired_nodes} nodes ready"))
        }
        Intent::Apply(_) => unfinished(accepted, plan, observed, &held, memory, &nodes, || {
            describe_nodes(ready_nodes, desired_nodes, observed_nodes, &nodes)
        }),
    };
    let since = match memory.phase {
        Some((before, since)) if before == phase => since,
        Some(_) | None => now_unix_secs,
    };
    memory.phase = Some((phase, since));

    let finished = matches!(phase, GroupPhase::Ready | GroupPhase::Deleted);
    let converged = finished.then(|| {
        memory.converged = Some(accepted.order.generation);
        Digest::of(format!("{group} {observed:?}").as_bytes())
    });
    nodes.truncate(NODE_ENTRIES_MAX);
    let status = GroupStatus {
        phase,
        desired_nodes,
        observed_nodes,
        ready_nodes,
        reason,
        phase_since_unix_secs: since,
        held,
        drift: memory.drift.clone(),
        nodes,
    };
    (status, converged)
}

/// For an autoscaled group that is what AWS has made of it, between its bounds.
fn nodes_wanted(scaling: &Scaling, observed: Option<&ObservedGroup>) -> u32 {
    match scaling {
        Scaling::Provisioned { desired_nodes } => *desired_nodes,
        Scaling::Autoscaling { min_nodes, max_nodes, .. } => {
            observed.map_or(*min_nodes, |group| group.desired.clamp(*min_nodes, *max_nodes))
        }
    }
}

/// The autoscaler has changed its mind, and nothing is wrong but that nodes are on their way.
fn is_scaling(accepted: &Accepted, plan: &GroupPlan, nodes: &[NodeStatus]) -> bool {
    let autoscaled = match &accepted.order.intent {
        Intent::Apply(spec) => spec.scaling.target().is_some(),
        Intent::Destroy => false,
    };
    autoscaled
        && plan.drift.is_empty()
        && nodes.iter().all(|node| node.phase != NodePhase::Unhealthy)
}

fn unfinished(
    accepted: &Accepted,
    plan: &GroupPlan,
    observed: Option<&ObservedGroup>,
    held: &[Held],
    memory: &Memory,
    statuses: &[NodeStatus],
    nodes: impl Fn() -> String,
) -> (GroupPhase, String) {
    if memory.failure.is_some() {
        let message = held.last().map_or(String::new(), |held| held.message.clone());
        return (GroupPhase::Error, message);
    }
    let told = plan.rolling.as_ref().map(Rolling::told);
    if let Some(Rolling::UnderWay { .. } | Rolling::Failed { .. }) = &plan.rolling
        && let Some(told) = told
    {
        return told;
    }
    if let Some(held) = held.first() {
        let is_as_ordered = memory.converged == Some(accepted.order.generation);
        let phase = match observed {
            None => GroupPhase::Pending,
            // No order waits: a node is to be replaced, and may not be.
            Some(_) if is_as_ordered && held.generation.is_none() => GroupPhase::Degraded,
            Some(_) => GroupPhase::Updating,
        };
        return (phase, format!("held: {}", held.message));
    }
    if let Some(told) = told {
        return told;
    }
    if observed.is_none() {
        return (GroupPhase::Creating, "the AutoScaling group is being created".to_owned());
    }
    let underway = plan.actions.iter().any(|action| match action {
        Action::Resize { .. }
        | Action::Track { .. }
        | Action::TrackNothing { .. }
        | Action::SetDesired { .. }
        | Action::PutDrainHook { .. }
        | Action::Place { .. }
        | Action::UseTemplate { .. }
        | Action::Tag { .. } => true,
        Action::Create(_)
        | Action::DrainToZero { .. }
        | Action::Delete { .. }
        | Action::PutReadyHook { .. }
        | Action::StartRefresh { .. }
        | Action::CancelRefresh { .. }
        | Action::Replace { .. } => false,
    });
    match memory.converged {
        Some(generation) if generation == accepted.order.generation => {
            let drift = plan.drift.join(", ");
            if is_scaling(accepted, plan, statuses) {
                return (GroupPhase::Updating, format!("scaling: {}", nodes()));
            }
            let reason = if drift.is_empty() { nodes() } else { format!("drift: {drift}") };
            (GroupPhase::Degraded, reason)
        }
        Some(_) => (GroupPhase::Updating, nodes()),
        None if underway => (GroupPhase::Updating, nodes()),
        None => (GroupPhase::Creating, nodes()),
    }
}

/// `1 of 3 nodes ready, 2 warming: ImportError …`
fn describe_nodes(ready: u32, desired: u32, observed: u32, nodes: &[NodeStatus]) -> String {
    let mut phases: std::collections::BTreeMap<NodePhase, u32> = Default::default();
    for node in nodes.iter().filter(|node| node.phase != NodePhase::Ready) {
        *phases.entry(node.phase).or_default() += 1;
    }
    let mut text = format!("{ready} of {desired} nodes ready");
    for (phase, count) in phases {
        text.push_str(&format!(", {count} {phase}"));
    }
    if observed < desired {
        text.push_str(&format!(", {} not launched yet", desired - observed));
    }
    let reason = nodes
        .iter()
        .filter(|node| node.phase != NodePhase::Booting)
        .find_map(|node| node.reason.clone());
    match reason {
        Some(reason) => format!("{text}: {reason}"),
        None => text,
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::testing::{accepted, group, order, spec};
    use outstation_protocol::InstanceId;

    fn observed(instances: u32) -> ObservedGroup {
        ObservedGroup {
            min: 3,
            max: 3,
            desired: 3,
            instances: (0..instances)
                .map(|n| {
                    let id = InstanceId::try_from(format!("i-{n:08x}")).expect("valid");
                    let lifecycle = "InService".to_owned();
                    (id, super::super::plan::ObservedInstance { lifecycle, healthy: true })
                })
                .collect(),
            ..ObservedGroup::default()
        }
    }

    fn nodes(phases: &[NodePhase]) -> Vec<NodeStatus> {
        phases
            .iter()
            .enumerate()
            .map(|(n, phase)| NodeStatus {
                instance: InstanceId::try_from(format!("i-{n:08x}")).expect("valid"),
                phase: *phase,
                endpoint: None,
                bundle: Some(Digest::of(b"bundle")),
                reason: None,
                since_unix_secs: 0,
            })
            .collect()
    }

    fn words(
        intent: Intent,
        observed: Option<ObservedGroup>,
        phases: &[NodePhase],
        memory: &mut Memory,
    ) -> String {
        let parent = Digest::of(b"parent");
        let accepted = accepted(&order("a", 2, Some(parent), intent));
        let (status, converged) = assess(
            &group("a"),
            &accepted,
            &GroupPlan::default(),
            observed.as_ref(),
            nodes(phases),
            memory,
            100,
        );
        format!("{} {}{}", status.phase, status.reason, if converged.is_some() { " *" } else { "" })
    }

    #[test]
    fn a_phase_says_where_a_group_stands_and_why() {
        use NodePhase::{Ready, Warming};
        let apply = || Intent::Apply(spec(3));
        let before = || Memory { converged: Some(Generation(1)), ..Memory::default() };
        let now = || Memory { converged: Some(Generation(2)), ..Memory::default() };
        for (intent, observed, phases, mut memory, wanted) in [
            (
                apply(),
                None,
                &[][..],
                Memory::default(),
                "CREATING the AutoScaling group is being created",
            ),
            (
                apply(),
                Some(observed(2)),
                &[Ready, Warming],
                Memory::default(),
                "CREATING 1 of 3 nodes ready, 1 warming, 1 not launched yet",
            ),
            (
                apply(),
                Some(observed(3)),
                &[Ready; 3],
                Memory::default(),
                "READY 3 of 3 nodes ready *",
            ),
            (
                apply(),
                Some(observed(2)),
                &[Ready; 2],
                now(),
                "DEGRADED 2 of 3 nodes ready, 1 not launched yet",
            ),
            (
                apply(),
                Some(observed(3)),
                &[Ready, Ready, Warming],
                before(),
                "UPDATING 2 of 3 nodes ready, 1 warming",
            ),
            (
                Intent::Destroy,
                Some(observed(1)),
                &[],
                now(),
                "DELETING 1 instances still to drain and end",
            ),
            (Intent::Destroy, None, &[], now(), "DELETED deleted *"),
        ] {
            assert_eq!(words(intent, observed, phases, &mut memory), wanted);
        }
    }

    #[test]
    fn a_failing_call_is_an_error_with_its_reason() {
        let failure = Held {
            generation: None,
            rule: "aws".into(),
            message: "CreateAutoScalingGroup: AccessDenied".into(),
            hint: "give the role that action".into(),
        };
        let mut memory = Memory { failure: Some(failure), ..Memory::default() };
        let words = words(Intent::Apply(spec(3)), None, &[], &mut memory);
        assert_eq!(words, "ERROR CreateAutoScalingGroup: AccessDenied");
    }

    #[test]
    fn drift_that_is_only_reported_is_noted_once() {
        let mut memory = Memory::default();
        let change = ["max size 3 -> 5".to_owned()];
        memory.note_drift(&change, false, 1);
        memory.note_drift(&change, false, 2);
        assert_eq!(memory.drift.len(), 1);
        for at in 3..20 {
            memory.note_drift(&change, true, at);
        }
        assert_eq!(memory.drift.len(), DRIFT_ENTRIES_MAX);
        assert_eq!(memory.drift[0].at_unix_secs, 19, "newest first");
    }
}
