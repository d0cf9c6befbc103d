use outstation_protocol::model::{Scaling, Target};

use super::*;
use crate::account::guardrails::{self, DestroyPolicy, DriftPolicy};
use crate::account::testing::{group, identity, ledger_of, order, spec};

fn customers(min: u32, desired: u32, max: u32) -> Option<ObservedGroup> {
    Some(ObservedGroup { min, max, desired, ..ObservedGroup::default() })
}

fn autoscaled() -> Intent {
    let target = Target::Cpu { percent: 60.0.try_into().expect("valid") };
    let scaling = Scaling::Autoscaling { min_nodes: 2, max_nodes: 10, target };
    Intent::Apply(GroupSpec { scaling, ..spec(0) })
}

fn words(
    intent: Intent,
    observed: Option<ObservedGroup>,
    guardrails: Guardrails,
    link_live: bool,
    converged: bool,
) -> String {
    let parent = Some(outstation_protocol::Digest::of(b"parent"));
    let ledger = ledger_of(&[order("a", 2, parent, intent)]);
    let observed: Observed = observed.into_iter().map(|o| (group("a"), o)).collect();
    let done: Converged = [(group("a"), Generation(if converged { 2 } else { 1 }))].into();
    let tenant = &identity().tenant;
    let mut plans = plan(&ledger, &observed, &Ok(guardrails), tenant, link_live, &done);
    let plan = plans.remove(&group("a")).expect("every group of the ledger has a plan");
    let mut words: Vec<String> = plan
        .actions
        .iter()
        .map(|action| match action {
            Action::SetDesired { asg_name, nodes } => format!("set {asg_name} {nodes}"),
            other => panic!("{other:?}: not of this profile"),
        })
        .collect();
    words.extend(plan.held.iter().map(|held| format!("{}: {}", held.rule, held.message)));
    words.extend(plan.drift.iter().map(|drift| format!("drift {drift}")));
    words.join("; ")
}

#[test]
fn the_count_is_set_and_everything_else_is_told() {
    let apply = |nodes| Intent::Apply(spec(nodes));
    let tracked = || {
        let policy = match autoscaled() {
            Intent::Apply(spec) => spec.scaling.target().cloned().map(Policy::Tracks),
            Intent::Destroy => None,
        };
        customers(2, 1, 10).map(|group| ObservedGroup { policy, ..group })
    };
    for (name, intent, observed, wanted) in [
        ("as ordered", apply(3), customers(0, 3, 5), ""),
        ("grow", apply(5), customers(0, 3, 5), "set outstation-a 5"),
        ("shrink", apply(1), customers(1, 3, 5), "set outstation-a 1"),
        (
            "above what the customer allows",
            apply(8),
            customers(0, 3, 5),
            "set outstation-a 5; profile: 8 nodes are more than MaxSize 5 of outstation-a",
        ),
        (
            "below what the customer keeps",
            apply(1),
            customers(2, 3, 5),
            "set outstation-a 2; profile: 1 nodes are fewer than MinSize 2 of outstation-a",
        ),
        (
            "not there",
            apply(3),
            None,
            "profile: there is no AutoScaling group outstation-a that is tagged as ours",
        ),
        (
            "an end",
            Intent::Destroy,
            customers(1, 3, 5),
            "set outstation-a 1; profile: the group shall be gone: with profile scale-only this agent \
             lets it shrink to its MinSize 1, and deletes no AutoScaling group",
        ),
        ("ended", Intent::Destroy, None, ""),
        (
            "no policy",
            autoscaled(),
            customers(2, 4, 10),
            "profile: the scaling policy outstation-target of outstation-a is none, ordered is CPU 60 %",
        ),
        ("a policy that fits", autoscaled(), tracked(), "set outstation-a 2"),
        (
            "a policy that nobody ordered",
            apply(3),
            tracked(),
            "set outstation-a 3; profile: the scaling policy outstation-target of outstation-a is \
             CPU 60 %, ordered is none",
        ),
    ] {
        assert_eq!(words(intent, observed, guardrails::sample(), true, false), wanted, "{name}");
    }
}

#[test]
fn every_hint_says_who_must_do_what() {
    let hint = |intent: Intent, observed: Option<ObservedGroup>| {
        let parent = Some(outstation_protocol::Digest::of(b"parent"));
        let ledger = ledger_of(&[order("a", 2, parent, intent)]);
        let observed: Observed = observed.into_iter().map(|o| (group("a"), o)).collect();
        let rails = Ok(guardrails::sample());
        let plans = plan(&ledger, &observed, &rails, &identity().tenant, true, &Converged::new());
        plans[&group("a")].held.last().expect("something is told").hint.clone()
    };
    for (intent, observed, words) in [
        (Intent::Apply(spec(8)), customers(0, 3, 5), "can raise its MaxSize to 8"),
        (
            Intent::Apply(spec(3)),
            None,
            "make outstation-a with the tags outstation:tenant=dev and outstation:group=a",
        ),
        (Intent::Destroy, customers(0, 0, 5), "delete the AutoScaling group outstation-a yourself"),
        (autoscaled(), customers(2, 2, 10), "sets its target tracking policy outstation-target"),
    ] {
        let hint = hint(intent, observed);
        assert!(hint.contains(words), "{words:?} not in {hint:?}");
    }
}

#[test]
fn guardrails_and_the_link_hold_here_too() {
    let rails = |change: fn(&mut Guardrails)| {
        let mut rails = guardrails::sample();
        change(&mut rails);
        rails
    };
    let apply = |nodes| Intent::Apply(spec(nodes));
    let three = || customers(0, 3, 50);
    for (name, intent, rails, live, converged, wanted) in [
        ("pause", apply(5), rails(|r| r.pause = true), true, false, "pause: "),
        (
            "ceiling",
            apply(5),
            rails(|r| r.nodes_per_group_max = 4),
            true,
            false,
            "nodes_per_group_max: ",
        ),
        ("offline", apply(2), rails(|_| ()), false, false, "offline: 3 -> 2 nodes"),
        ("offline, up", apply(4), rails(|_| ()), false, false, "set outstation-a 4"),
        ("no end offline", Intent::Destroy, rails(|_| ()), false, false, "offline: 3 -> 0"),
        (
            "not approved",
            Intent::Destroy,
            rails(|r| r.destroy = DestroyPolicy::Approve),
            true,
            false,
            "destroy: destroy = \"approve\"",
        ),
        (
            "never",
            Intent::Destroy,
            rails(|r| r.destroy = DestroyPolicy::Never),
            true,
            false,
            "destroy: ",
        ),
        (
            "by hand, after it was done",
            apply(5),
            rails(|_| ()),
            true,
            true,
            "set outstation-a 5; drift desired capacity 5 -> 3",
        ),
        (
            "by hand, only reported",
            apply(5),
            rails(|r| r.drift = DriftPolicy::Report),
            true,
            true,
            "drift desired capacity 5 -> 3",
        ),
        (
            "an order is no drift",
            apply(5),
            rails(|r| r.drift = DriftPolicy::Report),
            true,
            false,
            "set outstation-a 5",
        ),
    ] {
        let words = words(intent, three(), rails, live, converged);
        assert!(words.starts_with(wanted), "{name}: {words}");
        assert_eq!(words.contains("set "), wanted.contains("set "), "{name}: {words}");
    }
}
