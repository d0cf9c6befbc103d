use std::collections::BTreeMap;

use outstation_protocol::Generation;
use outstation_protocol::model::Scaling;

use super::*;
use crate::account::approvals::Approvals;
use crate::account::guardrails;
use crate::account::testing::{group, identity, ledger_of, order, spec};

/// `a` as ordered with `nodes`, with the tags of `generation`.
fn as_ordered(nodes: u32, generation: u64) -> ObservedGroup {
    let order = order("a", 1, None, Intent::Apply(spec(nodes)));
    let accepted = ledger_of(&[order])[&group("a")].clone();
    let shape = shape(&accepted, &spec(nodes), &guardrails::sample(), &identity().tenant);
    let mut tags = shape.tags;
    tags.insert(TAG_GENERATION.to_owned(), generation.to_string());
    ObservedGroup {
        min: nodes,
        max: nodes,
        desired: nodes,
        image: Image {
            templates: [Some(shape.launch_template.clone())].into(),
            ..Image::default()
        },
        hooks: Some(Hooks::OURS),
        zones: shape.availability_zones,
        launch_template: Some(shape.launch_template),
        tags,
        instances: (0..nodes)
            .map(|n| {
                let id = InstanceId::try_from(format!("i-{n:017x}")).expect("valid");
                (id, ObservedInstance { lifecycle: "InService".to_owned(), healthy: true })
            })
            .collect(),
        ..ObservedGroup::default()
    }
}

/// The plan for the one group `a`, in words.
fn words(
    intent: Intent,
    generation: u64,
    observed: Option<ObservedGroup>,
    guardrails: Guardrails,
    link_live: bool,
) -> String {
    let parent = (generation > 1).then(|| outstation_protocol::Digest::of(b"parent"));
    let ledger = ledger_of(&[order("a", generation, parent, intent)]);
    let observed: Observed = observed.into_iter().map(|o| (group("a"), o)).collect();
    let mut plan = plan(&ledger, &observed, &Ok(guardrails), &identity().tenant, link_live);
    let plan = plan.remove(&group("a")).expect("every group of the ledger has a plan");
    let mut words: Vec<String> = plan
        .actions
        .iter()
        .map(|action| match action {
            Action::Create(shape) if shape.min == shape.max => {
                format!("create {} {}", shape.asg_name, shape.max)
            }
            Action::Create(Shape { asg_name, min, max, .. }) => {
                format!("create {asg_name} {min}..{max}")
            }
            Action::Resize { desired: Some(nodes), .. } => format!("resize {nodes}"),
            Action::Resize { min, max, desired: None, .. } => format!("resize {min}..{max}"),
            Action::Track { target, .. } => format!("track {target}"),
            Action::TrackNothing { .. } => "track nothing".to_owned(),
            Action::SetDesired { nodes, .. } => format!("set {nodes}"),
            Action::PutDrainHook { .. } => "hook".to_owned(),
            Action::Place { subnets, zones, .. } => {
                format!("place {}", [&subnets[..], zones].concat().join(","))
            }
            Action::UseTemplate { launch_template, .. } => {
                format!("template {}", launch_template.version)
            }
            Action::PutReadyHook { .. } => "ready hook".to_owned(),
            Action::StartRefresh { launch_template, min_healthy_percent, .. } => {
                format!("refresh to {} at {min_healthy_percent} %", launch_template.version)
            }
            Action::CancelRefresh { .. } => "cancel the refresh".to_owned(),
            Action::Replace { instance, .. } => format!("replace {instance}"),
            Action::Tag { tags, .. } => format!("tag {}", tags.len()),
            Action::DrainToZero { .. } => "drain".to_owned(),
            Action::Delete { .. } => "delete".to_owned(),
        })
        .collect();
    words.extend(plan.held.iter().map(|held| format!("held by {}", held.rule)));
    words.extend(plan.drift.iter().map(|drift| format!("drift {drift}")));
    words.join("; ")
}

#[test]
fn what_was_ordered_is_brought_about_step_by_step() {
    let rails = guardrails::sample;
    let with = |change: fn(&mut ObservedGroup)| {
        let mut observed = as_ordered(3, 1);
        change(&mut observed);
        Some(observed)
    };
    for (name, intent, generation, observed, wanted) in [
        ("new", Intent::Apply(spec(3)), 1, None, "create outstation-a 3"),
        ("as ordered", Intent::Apply(spec(3)), 1, Some(as_ordered(3, 1)), ""),
        ("grow", Intent::Apply(spec(5)), 2, Some(as_ordered(3, 1)), "resize 5; tag 1"),
        ("shrink", Intent::Apply(spec(2)), 2, Some(as_ordered(3, 1)), "resize 2; tag 1"),
        (
            "desired changed by hand",
            Intent::Apply(spec(3)),
            1,
            with(|o| {
                o.max = 5;
                o.desired = 5;
            }),
            "resize 3; drift max size 3 -> 5; drift desired capacity 3 -> 5",
        ),
        (
            "a tag changed by hand",
            Intent::Apply(spec(3)),
            1,
            with(|o| {
                o.tags.remove(TAG_KIND);
            }),
            "tag 1; drift tag outstation:kind \"transform\" -> \"none\"",
        ),
        (
            "the drain hook removed by hand",
            Intent::Apply(spec(3)),
            1,
            with(|o| o.hooks = Some(Hooks { drain: Hook::Missing, ..Hooks::OURS })),
            "hook; drift drain hook 90 s, CONTINUE -> none",
        ),
        (
            "the drain hook altered by hand",
            Intent::Apply(spec(3)),
            1,
            with(|o| {
                o.hooks =
                    Some(Hooks { drain: Hook::Other("30 s, ABANDON".to_owned()), ..Hooks::OURS })
            }),
            "hook; drift drain hook 90 s, CONTINUE -> 30 s, ABANDON",
        ),
        (
            "whether there is a hook is not known",
            Intent::Apply(spec(3)),
            1,
            with(|o| o.hooks = None),
            "",
        ),
        (
            "the ready hook removed by hand",
            Intent::Apply(spec(3)),
            1,
            with(|o| o.hooks = Some(Hooks { ready: Hook::Missing, ..Hooks::OURS })),
            "ready hook; drift ready hook 900 s, ABANDON -> none",
        ),
        (
            "both hooks altered by hand",
            Intent::Apply(spec(3)),
            1,
            with(|o| {
                let other = Hook::Other("60 s, CONTINUE".to_owned());
                o.hooks = Some(Hooks { drain: other.clone(), ready: other });
            }),
            "hook; ready hook; drift drain hook 90 s, CONTINUE -> 60 s, CONTINUE; \
             drift ready hook 900 s, ABANDON -> 60 s, CONTINUE",
        ),
        (
            "instances are placed elsewhere",
            Intent::Apply(spec(3)),
            1,
            with(|o| o.zones = vec!["eu-central-1b".to_owned(), "eu-central-1c".to_owned()]),
            "place eu-central-1a; drift zones eu-central-1a -> eu-central-1b,eu-central-1c",
        ),
        ("tombstone: drain first", Intent::Destroy, 2, Some(as_ordered(3, 1)), "drain"),
        (
            "tombstone: instances are leaving",
            Intent::Destroy,
            2,
            with(|o| (o.min, o.max, o.desired) = (0, 0, 0)),
            "",
        ),
        (
            "tombstone: empty",
            Intent::Destroy,
            2,
            with(|o| {
                (o.min, o.max, o.desired) = (0, 0, 0);
                o.instances.clear();
            }),
            "delete",
        ),
        ("tombstone: being deleted", Intent::Destroy, 2, with(|o| o.deleting = true), ""),
        ("tombstone: gone", Intent::Destroy, 2, None, ""),
        (
            "again while the old one is deleted",
            Intent::Apply(spec(3)),
            3,
            with(|o| o.deleting = true),
            "held by deleting",
        ),
    ] {
        assert_eq!(words(intent, generation, observed, rails(), true), wanted, "{name}");
    }
}

/// `destroy = "approve"`, and an approval of the tombstone as [`words`] makes it, if it is of this generation.
fn approve(generation: Generation) -> Guardrails {
    let parent = Some(outstation_protocol::Digest::of(b"parent"));
    let tombstone = ledger_of(&[order("a", generation.0, parent, Intent::Destroy)]);
    let tombstone = tombstone[&group("a")].clone();
    let approval = format!(
        r#"{{"group":"a","generation":{generation},"digest":"{}","who":"ann"}}"#,
        tombstone.digest
    );
    let mut rails = guardrails::sample();
    rails.destroy = DestroyPolicy::Approve;
    rails.approvals = Approvals::of(&tombstone, approval.as_bytes());
    rails
}

#[test]
fn what_may_not_be_done_is_held_with_its_rule() {
    let mut lowered = guardrails::sample();
    lowered.nodes_per_group_max = 4;
    let mut paused = guardrails::sample();
    paused.pause = true;
    let mut never = guardrails::sample();
    never.destroy = DestroyPolicy::Never;
    let mut report = guardrails::sample();
    report.drift = DriftPolicy::Report;
    let mut by_hand = as_ordered(3, 1);
    by_hand.desired = 2;
    by_hand.min = 2;
    for (name, intent, generation, observed, rails, live, wanted) in [
        (
            "ceiling lowered after acceptance",
            Intent::Apply(spec(5)),
            2,
            Some(as_ordered(3, 1)),
            lowered.clone(),
            true,
            "held by nodes_per_group_max",
        ),
        (
            "above the ceiling already, but shrinking",
            Intent::Apply(spec(5)),
            2,
            Some(as_ordered(8, 1)),
            lowered,
            true,
            "resize 5; tag 1",
        ),
        (
            "offline: no shrinking",
            Intent::Apply(spec(2)),
            2,
            Some(as_ordered(3, 1)),
            guardrails::sample(),
            false,
            "held by offline",
        ),
        (
            "offline: no end",
            Intent::Destroy,
            2,
            Some(as_ordered(3, 1)),
            guardrails::sample(),
            false,
            "held by offline",
        ),
        (
            "offline: drift that lowered is repaired",
            Intent::Apply(spec(3)),
            1,
            Some(by_hand.clone()),
            guardrails::sample(),
            false,
            "resize 3; drift min size 3 -> 2; drift desired capacity 3 -> 2",
        ),
        (
            "destroy forbidden after acceptance",
            Intent::Destroy,
            2,
            Some(as_ordered(3, 1)),
            never.clone(),
            true,
            "held by destroy",
        ),
        (
            "an end that nobody has approved",
            Intent::Destroy,
            2,
            Some(as_ordered(3, 1)),
            approve(Generation(1)),
            true,
            "held by destroy",
        ),
        (
            "an end that waits offline and for approval",
            Intent::Destroy,
            2,
            Some(as_ordered(3, 1)),
            approve(Generation(1)),
            false,
            "held by destroy",
        ),
        (
            "an approved end",
            Intent::Destroy,
            2,
            Some(as_ordered(3, 1)),
            approve(Generation(2)),
            true,
            "drain",
        ),
        (
            "an approved end, offline",
            Intent::Destroy,
            2,
            Some(as_ordered(3, 1)),
            approve(Generation(2)),
            false,
            "held by offline",
        ),
        (
            "drained, and the approval is taken back",
            Intent::Destroy,
            2,
            Some(as_ordered(0, 1)),
            approve(Generation(1)),
            true,
            "held by destroy",
        ),
        (
            "whatever ends nothing needs no approval",
            Intent::Apply(spec(0)),
            2,
            Some(as_ordered(3, 1)),
            approve(Generation(1)),
            true,
            "resize 0; tag 1",
        ),
        ("pause", Intent::Apply(spec(5)), 2, Some(as_ordered(3, 1)), paused, true, "held by pause"),
        (
            "drift is only reported",
            Intent::Apply(spec(3)),
            1,
            Some(by_hand),
            report,
            true,
            "drift min size 3 -> 2; drift desired capacity 3 -> 2",
        ),
    ] {
        assert_eq!(words(intent, generation, observed, rails, live), wanted, "{name}");
    }
}

/// Between 2 and 10 nodes at so many percent of CPU.
fn autoscaled(percent: f64) -> GroupSpec {
    let percent = percent.try_into().expect("valid");
    let target = Target::Cpu { percent };
    GroupSpec { scaling: Scaling::Autoscaling { min_nodes: 2, max_nodes: 10, target }, ..spec(0) }
}

/// The same as ordered, with so many nodes at present.
fn as_autoscaled(desired: u32, generation: u64) -> ObservedGroup {
    let target = autoscaled(60.0).scaling.target().cloned();
    let policy = target.map(Policy::Tracks);
    ObservedGroup { min: 2, max: 10, policy, ..as_ordered(desired, generation) }
}

#[test]
fn between_its_bounds_a_count_is_the_autoscalers_business() {
    let rails = guardrails::sample;
    let mut low = guardrails::sample();
    low.nodes_per_group_max = 9;
    let mut report = guardrails::sample();
    report.drift = DriftPolicy::Report;
    let with = |change: fn(&mut ObservedGroup)| {
        let mut observed = as_autoscaled(4, 1);
        change(&mut observed);
        Some(observed)
    };
    let to = |percent| Intent::Apply(autoscaled(percent));
    for (name, intent, generation, observed, rails, live, wanted) in [
        ("new", to(60.0), 1, None, rails(), true, "create outstation-a 2..10; track CPU 60 %"),
        ("few", to(60.0), 1, Some(as_autoscaled(2, 1)), rails(), true, ""),
        ("many", to(60.0), 1, Some(as_autoscaled(10, 1)), rails(), true, ""),
        ("many, offline", to(60.0), 1, Some(as_autoscaled(10, 1)), rails(), false, ""),
        (
            "from a fixed number: the count stays",
            to(60.0),
            2,
            Some(as_ordered(5, 1)),
            rails(),
            true,
            "resize 2..10; track CPU 60 %; tag 1",
        ),
        (
            "to a fixed number",
            Intent::Apply(spec(3)),
            2,
            Some(as_autoscaled(4, 1)),
            rails(),
            true,
            "resize 3; track nothing; tag 1",
        ),
        (
            "to a fixed number, offline",
            Intent::Apply(spec(3)),
            2,
            Some(as_autoscaled(4, 1)),
            rails(),
            false,
            "held by offline",
        ),
        ("another target", to(50.0), 2, with(|_| ()), rails(), true, "track CPU 50 %; tag 1"),
        (
            "bounds moved by hand",
            to(60.0),
            1,
            with(|o| (o.min, o.max) = (0, 20)),
            rails(),
            true,
            "resize 2..10; drift min size 2 -> 0; drift max size 10 -> 20",
        ),
        (
            "the policy removed by hand",
            to(60.0),
            1,
            with(|o| o.policy = None),
            rails(),
            true,
            "track CPU 60 %; drift scaling policy CPU 60 % -> none",
        ),
        (
            "the policy changed by hand, only reported",
            to(60.0),
            1,
            with(|o| o.policy = Some(Policy::Other("CPU 60 %, disabled".to_owned()))),
            report,
            true,
            "drift scaling policy CPU 60 % -> CPU 60 %, disabled",
        ),
        (
            "the ceiling is held against the most, not the present count",
            to(60.0),
            2,
            Some(as_ordered(3, 1)),
            low.clone(),
            true,
            "held by nodes_per_group_max",
        ),
        (
            "above the ceiling already, but a smaller most",
            to(60.0),
            2,
            with(|o| (o.min, o.max) = (2, 20)),
            low,
            true,
            "resize 2..10; tag 1",
        ),
        (
            "a most below the present count lowers capacity",
            to(60.0),
            2,
            with(|o| (o.min, o.max, o.desired) = (2, 20, 15)),
            rails(),
            false,
            "held by offline",
        ),
        ("its end", Intent::Destroy, 2, Some(as_autoscaled(4, 1)), rails(), true, "drain"),
    ] {
        assert_eq!(words(intent, generation, observed, rails, live), wanted, "{name}");
    }
}

/// `nodes_total_max` is 60: what may grow by itself counts with what it may grow to.
#[test]
fn an_autoscaled_group_takes_the_room_of_its_most() {
    let mut observed = Observed::from([(group("a"), as_autoscaled(2, 1))]);
    let check = |observed: &Observed, wanted: u32| {
        let orders = [
            order("a", 1, None, Intent::Apply(autoscaled(60.0))),
            order("b", 1, None, Intent::Apply(spec(wanted))),
        ];
        let mut rails = guardrails::sample();
        rails.nodes_per_group_max = 60;
        let plans = plan(&ledger_of(&orders), observed, &Ok(rails), &identity().tenant, true);
        plans[&group("b")].held.is_empty()
    };
    assert!(check(&observed, 50) && !check(&observed, 51));
    observed.clear();
    assert!(check(&observed, 50) && !check(&observed, 51), "also before it is there");
}

#[test]
fn a_group_that_nobody_ordered_is_left_alone() {
    let observed: Observed = [(group("stranger"), as_ordered(3, 1))].into();
    let plan =
        plan(&BTreeMap::new(), &observed, &Ok(guardrails::sample()), &identity().tenant, true);
    assert!(plan.is_empty());
}

#[test]
fn where_subnets_are_given_zones_follow_from_them() {
    let mut rails = guardrails::sample();
    rails.availability_zones.clear();
    rails.subnets = vec!["subnet-b".to_owned(), "subnet-a".to_owned()];
    let in_subnets = |subnets: &[&str]| {
        let subnets = subnets.iter().map(|subnet| (*subnet).to_owned()).collect();
        Some(ObservedGroup { subnets, ..as_ordered(3, 1) })
    };
    for (subnets, wanted) in [
        (&["subnet-a", "subnet-b"][..], ""),
        (&["subnet-a"], "place subnet-b,subnet-a; drift subnets subnet-a,subnet-b -> subnet-a"),
        (&[], "place subnet-b,subnet-a; drift subnets subnet-a,subnet-b -> "),
    ] {
        let observed = in_subnets(subnets);
        let apply = Intent::Apply(spec(3));
        assert_eq!(words(apply, 1, observed, rails.clone(), true), wanted, "{subnets:?}");
    }
}

#[test]
fn without_guardrails_nothing_moves() {
    let ledger = ledger_of(&[order("a", 1, None, Intent::Apply(spec(3)))]);
    let none = Err(NoGuardrails("cannot read it".to_owned()));
    let plan = plan(&ledger, &Observed::new(), &none, &identity().tenant, true);
    let plan = &plan[&group("a")];
    assert!(plan.actions.is_empty());
    assert_eq!(plan.held[0].message, "cannot read it");
}

/// `nodes_total_max` is 60 in the sample.
#[test]
fn a_group_grows_only_into_what_the_others_leave() {
    let orders = |a: u32, b: u32| {
        let parent = Some(outstation_protocol::Digest::of(b"parent"));
        let of = |name, nodes| order(name, 2, parent, Intent::Apply(spec(nodes)));
        ledger_of(&[of("a", a), of("b", b)])
    };
    let check = |(wanted_a, wanted_b), (has_a, has_b), wanted: [&str; 2]| {
        let mut observed = Observed::new();
        for (name, nodes) in [("a", has_a), ("b", has_b)] {
            observed.extend((nodes > 0).then(|| (group(name), as_ordered(nodes, 1))));
        }
        let ledger = orders(wanted_a, wanted_b);
        let plans = plan(&ledger, &observed, &Ok(guardrails::sample()), &identity().tenant, true);
        let words = ["a", "b"].map(|name| {
            let plan = &plans[&group(name)];
            match plan.actions.iter().find_map(Action::nodes) {
                Some(nodes) => nodes.to_string(),
                None => plan.held.first().map_or(String::new(), |held| held.rule.clone()),
            }
        });
        assert_eq!(words, wanted, "{wanted_a} and {wanted_b} wanted of {has_a} and {has_b}");
    };
    check((30, 30), (0, 0), ["30", "30"]);
    check((35, 30), (0, 0), ["35", "nodes_total_max"]);
    check((40, 20), (20, 40), ["nodes_total_max", "20"]);
    check((40, 20), (20, 20), ["40", ""]);
    // What still drains is still there.
    let mut draining = as_ordered(30, 1);
    (draining.min, draining.max, draining.desired) = (10, 10, 10);
    assert_eq!(draining.size(None), 30);
}

#[test]
fn what_was_done_is_planned_no_second_time() {
    let accepted =
        order("a", 2, Some(outstation_protocol::Digest::of(b"p")), Intent::Apply(spec(5)));
    let ledger = ledger_of(&[accepted]);
    let mut observed = Observed::from([(group("a"), as_ordered(3, 1))]);
    let rails = Ok(guardrails::sample());
    let next = |observed: &Observed| {
        let plans = plan(&ledger, observed, &rails, &identity().tenant, true);
        plans[&group("a")].actions.clone()
    };
    let first = next(&observed);
    assert_eq!(first.len(), 2);
    let here = observed.get_mut(&group("a")).expect("inserted above");
    here.done(&first[0]);
    assert_eq!(next(&observed), first[1..]);
    let here = observed.get_mut(&group("a")).expect("inserted above");
    here.done(&first[1]);
    assert_eq!(next(&observed), []);
    // And a group that was just created is as it was asked for.
    let created = next(&Observed::new());
    let [Action::Create(shape)] = &created[..] else { panic!("{created:?}") };
    let observed = Observed::from([(group("a"), ObservedGroup::created(shape))]);
    assert_eq!(next(&observed), []);
}

#[test]
fn a_new_image_is_rolled_out_last_and_never_offline() {
    let with_version = |version: u64| {
        let mut rails = guardrails::sample();
        rails.launch_template.version = version;
        rails
    };
    let refreshing = |status: &str, version: u64| {
        let mut observed = as_ordered(3, 1);
        let launch_template = LaunchTemplate { version, ..guardrails::sample().launch_template };
        observed.image.refresh = Some(Refresh {
            state: RefreshState::of(status),
            launch_template: Some(launch_template),
            percent: 10,
            to_update: 2,
            reason: None,
        });
        observed
    };
    let mut paused = with_version(2);
    paused.pause = true;
    let mut report = with_version(2);
    report.drift = DriftPolicy::Report;
    let mut drifted = as_ordered(3, 1);
    drifted.max = 5;
    for (name, nodes, observed, rails, live, wanted) in [
        ("begun", 3, as_ordered(3, 1), with_version(2), true, "ready hook; refresh to 2 at 90 %"),
        (
            "with an order",
            5,
            as_ordered(3, 1),
            with_version(2),
            true,
            "resize 5; tag 1; ready hook; refresh to 2 at 90 %",
        ),
        ("offline", 3, as_ordered(3, 1), with_version(2), false, "held by offline"),
        ("paused", 3, as_ordered(3, 1), paused, true, "held by pause"),
        (
            "drift is only reported, the image is rolled out",
            3,
            drifted,
            report,
            true,
            "ready hook; refresh to 2 at 90 %; drift max size 3 -> 5",
        ),
        ("under way", 3, refreshing("InProgress", 2), with_version(2), true, ""),
        (
            "under way, and a new order",
            5,
            refreshing("InProgress", 2),
            with_version(2),
            true,
            "resize 5; tag 1",
        ),
        (
            "another one is wanted",
            3,
            refreshing("InProgress", 2),
            with_version(3),
            true,
            "cancel the refresh",
        ),
        (
            "rolled back, not again",
            3,
            refreshing("RollbackSuccessful", 2),
            with_version(2),
            true,
            "held by instance_refresh",
        ),
        (
            "rolled back, and a new order",
            5,
            refreshing("RollbackSuccessful", 2),
            with_version(2),
            true,
            "resize 5; tag 1; held by instance_refresh",
        ),
        (
            "rolled back, a better one",
            3,
            refreshing("RollbackSuccessful", 2),
            with_version(3),
            true,
            "ready hook; refresh to 3 at 90 %",
        ),
    ] {
        let (generation, order) = if nodes == 3 { (1, spec(3)) } else { (2, spec(nodes)) };
        let got = words(Intent::Apply(order), generation, Some(observed), rails, live);
        assert_eq!(got, wanted, "{name}");
    }
}
