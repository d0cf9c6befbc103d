//! As many groups as AWS allows an account, behind its throttle: counted in calls and in virtual time.

use std::collections::BTreeMap;

use outstation_agent::account::config::AwsConfig;
use outstation_aws_sim::wire::throttle::Throttle;
use outstation_protocol::GroupName;
use outstation_protocol::model::{GroupSpec, Scaling, Target, TargetValue};

use crate::oracle::PREFIX;
use crate::people::spec;
use crate::weather::Weather;
use crate::world::{Setup, World, group};

/// With the one that is changed meanwhile 500, AWS's limit.
const OTHERS: usize = 499;
const AWS_REQUESTS_PER_SECOND: u32 = 10;
const HOUR_MILLIS: u64 = 3600 * 1000;
const SETUP: Setup = Setup {
    reconcile_secs: 30,
    beat_millis: 60_000,
    tick_millis: 5_000,
    scale_only: false,
    requests_per_second: None,
};

fn autoscaled() -> GroupSpec {
    let percent = TargetValue::try_from(50.0).expect("valid");
    let target = Target::Cpu { percent };
    let mut spec = spec(1, 0, false);
    spec.scaling = Scaling::Autoscaling { min_nodes: 1, max_nodes: 2, target };
    spec
}

impl World {
    /// How long a change takes until the broker knows that it is done.
    fn change(&mut self, name: &GroupName, nodes: u32) -> u64 {
        let from = self.now_millis;
        self.apply(name, Some(spec(nodes, 0, false)));
        let newest = self.newest(name);
        while self.converged(name) != newest {
            assert!(self.now_millis < from + HOUR_MILLIS, "{name} never gets {nodes} nodes");
            self.pass(100);
        }
        self.now_millis - from
    }

    fn converged(&self, name: &GroupName) -> Option<outstation_protocol::Generation> {
        let record = self.broker.as_ref()?.group(name)?;
        record.answers.converged.map(|(generation, _)| generation)
    }

    fn made(&self, from: usize, action: &str) -> usize {
        self.calls[from..].iter().filter(|(_, made, _)| made == action).count()
    }
}

#[test]
fn five_hundred_groups_behind_a_throttle() {
    let mut world = World::new(500, Weather::default(), SETUP);
    world.calm_down();
    world.set_rules(crate::oracle::Rules { nodes_total_max: 2000, ..world.rules });
    world.cloud.throttle = Some(Throttle::new(AWS_REQUESTS_PER_SECOND));
    let single = group(OTHERS);
    world.apply(&single, Some(spec(1, 0, false)));
    world.settle();
    let alone: u64 = [2, 3].map(|nodes| world.change(&single, nodes)).iter().sum();

    let (begun, first) = (world.now_millis, world.calls.len());
    for index in 0..OTHERS {
        world.apply(&group(index), Some(autoscaled()));
    }
    world.pass(20_000);
    let amid: u64 = [4, 5].map(|nodes| world.change(&single, nodes)).iter().sum();
    let made = world.made(first, "CreateAutoScalingGroup");
    assert!((20..OTHERS - 50).contains(&made), "in the midst of it {made} are made");
    assert!(amid <= 3 * alone, "two changes took {amid} ms, alone {alone} ms");
    world.settle();
    let refused = world.cloud.throttle.as_ref().map_or(0, |throttle| throttle.refused);
    println!(
        "{OTHERS} groups in {} s, {} calls, {refused} refused; two changes in {amid} ms, alone in {alone} ms",
        (world.now_millis - begun) / 1000,
        world.calls.len() - first,
    );
    let created = world.made(first, "CreateAutoScalingGroup");
    assert_eq!((created, refused), (OTHERS, 0), "each once, and AWS never had to say no");

    // However the second begins: a burst and the rate.
    let rate = u64::from(AwsConfig::default().requests_per_second());
    let at: Vec<u64> = world.calls.iter().map(|(at, ..)| *at).collect();
    for (n, from) in at.iter().enumerate() {
        let within = at[n..].iter().take_while(|at| **at < from + 10_000).count() as u64;
        assert!(within <= 12 * rate + 1, "{within} calls in the 10 s after {from}");
    }

    world.a_quiet_hour();
}

/// Nodes that leave drain first, and each step of that shows at another look: it must not wait for all creations.
#[test]
fn a_scale_in_amid_five_hundred_creations() {
    // As often as a node asks whether it shall go: seldom beats would be all that is measured.
    let setup = Setup { beat_millis: 5_000, tick_millis: 1_000, ..SETUP };
    let mut world = World::new(502, Weather::default(), setup);
    world.calm_down();
    world.set_rules(crate::oracle::Rules { nodes_total_max: 2000, ..world.rules });
    world.cloud.throttle = Some(Throttle::new(AWS_REQUESTS_PER_SECOND));
    let single = group(OTHERS);
    world.apply(&single, Some(spec(5, 0, false)));
    world.settle();
    let alone: Vec<u64> = [4, 3, 2].map(|nodes| world.change(&single, nodes)).into();
    world.change(&single, 5);
    world.settle();

    let first = world.calls.len();
    for index in 0..OTHERS {
        world.apply(&group(index), Some(autoscaled()));
    }
    world.pass(20_000);
    let amid: Vec<u64> = [4, 3, 2].map(|nodes| world.change(&single, nodes)).into();
    let made = world.made(first, "CreateAutoScalingGroup");
    println!(
        "scale-ins amid creations took {amid:?} ms, alone {alone:?} ms; {made} were made meanwhile"
    );
    assert!((20..OTHERS - 50).contains(&made), "in the midst of it {made} are made");
    let [alone, amid] = [alone, amid].map(|all| all.iter().sum::<u64>());
    assert!(amid <= 3 * alone, "three scale-ins took {amid} ms, alone {alone} ms");
}

impl World {
    fn a_quiet_hour(&mut self) {
        self.pass(HOUR_MILLIS / 4);
        let from = self.calls.len();
        self.pass(HOUR_MILLIS + 60_000);
        let mut counts = BTreeMap::<&str, usize>::new();
        let mut hooks = BTreeMap::<&str, usize>::new();
        for (_, action, of) in &self.calls[from..] {
            *counts.entry(action.as_str()).or_default() += 1;
            if action == "DescribeLifecycleHooks" {
                *hooks.entry(of.as_str()).or_default() += 1;
            }
        }
        println!("a quiet hour: {counts:?}");
        let looks = HOUR_MILLIS as usize / 1000 / 30;
        let pages = counts.get("DescribeAutoScalingGroups").copied().unwrap_or(0)
            + counts.get("DescribePolicies").copied().unwrap_or(0);
        assert!(pages > looks && pages <= 12 * (looks + 3), "{pages} pages in {looks} looks");
        let known = ["DescribeAutoScalingGroups", "DescribePolicies", "DescribeLifecycleHooks"];
        let other: Vec<_> = counts.keys().filter(|action| !known.contains(action)).collect();
        assert!(other.is_empty(), "a quiet hour needs no {other:?}");
        for index in 0..=OTHERS {
            let name = format!("{PREFIX}{}", group(index));
            assert!(hooks.contains_key(name.as_str()), "nobody asked for the hooks of {name}");
        }
        let asked: usize = hooks.values().sum();
        assert!(asked <= 3 * (OTHERS + 1), "{asked} times in an hour");
    }
}

/// An agent that is told to be faster than AWS allows: it finds the pace by itself, and repeats nothing.
#[test]
fn an_agent_that_is_too_fast_slows_down() {
    let setup = Setup { requests_per_second: Some(40), ..SETUP };
    let mut world = World::new(501, Weather::default(), setup);
    world.calm_down();
    world.set_rules(crate::oracle::Rules { nodes_total_max: 2000, ..world.rules });
    world.cloud.throttle = Some(Throttle::new(AWS_REQUESTS_PER_SECOND));
    let groups = 150;
    for index in 0..groups {
        world.apply(&group(index), Some(spec(1, 0, false)));
    }
    world.settle();
    let refused = world.cloud.throttle.as_ref().map_or(0, |throttle| throttle.refused);
    let calls = world.calls.len() as u64;
    println!("{groups} groups: {calls} calls, {refused} refused");
    assert!(refused > 0 && refused < calls / 4, "{refused} of {calls} refused");
    assert_eq!(world.cloud.sim.model.groups().count(), groups);
}
