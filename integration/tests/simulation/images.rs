//! Images, step by step: the healthy share while one is rolled out, one that does not work, and an agent that dies at any
//! moment of it.

use std::collections::BTreeSet;

use outstation_aws_sim::model::refresh::RefreshStatus;
use outstation_protocol::GroupName;
use outstation_protocol::status::{GroupPhase, GroupStatus};

use crate::cloud::BROKEN_VERSION;
use crate::oracle::{PREFIX, Rules};
use crate::people::spec;
use crate::weather::Weather;
use crate::world::{Setup, World, group};

const NODES: u32 = 3;

/// One group as ordered, and nothing goes wrong by itself.
fn settled() -> World {
    let mut world = World::new(5, Weather::default(), Setup::default());
    world.calm_down();
    world.apply(&group(0), Some(spec(NODES, 0, false)));
    world.settle();
    world
}

fn want_image(world: &mut World, version: u32) {
    let rules = Rules { version, ..world.rules };
    world.set_rules(rules);
}

fn status(world: &World, name: &GroupName) -> GroupStatus {
    let record = world.broker.as_ref().and_then(|broker| broker.group(name));
    record.and_then(|record| record.answers.status).expect("a status")
}

/// How each refresh of the group stands, newest first.
fn refreshes(world: &World) -> Vec<RefreshStatus> {
    let name = format!("{PREFIX}{}", group(0));
    let found = world.cloud.sim.model.groups().find(|held| held.name.as_str() == name);
    found.expect("it is there").refreshes.iter().map(|refresh| refresh.status).collect()
}

#[test]
fn as_many_nodes_serve_while_an_image_is_rolled_out() {
    let mut world = settled();
    want_image(&mut world, 2);
    let mut told = BTreeSet::new();
    for _ in 0..300 {
        world.pass(1000);
        let serving = world.serving(&group(0));
        assert!(serving >= NODES, "{serving} serve: {:?}", status(&world, &group(0)));
        let status = status(&world, &group(0));
        told.insert((status.phase.to_string(), status.reason));
    }
    world.settle();
    assert_eq!(refreshes(&world), [RefreshStatus::Successful]);
    let percents = ["0 %", "33 %", "66 %"];
    for percent in percents {
        let is_told = |(phase, reason): &(String, String)| {
            phase == "UPDATING" && reason.contains(&format!("version 2 is at {percent}"))
        };
        assert!(told.iter().any(is_told), "{percent} in {told:?}");
    }
}

#[test]
fn an_image_that_does_not_work_is_rolled_back_told_and_not_tried_again() {
    let mut world = settled();
    want_image(&mut world, BROKEN_VERSION);
    for minute in 0..180 {
        world.pass(60_000);
        let serving = world.serving(&group(0));
        assert!(serving >= NODES, "minute {minute}: {serving} serve");
    }
    assert_eq!(refreshes(&world), [RefreshStatus::RollbackSuccessful], "once");
    let told = status(&world, &group(0));
    assert_eq!(told.phase, GroupPhase::Error);
    assert!(told.reason.contains("version 4 failed and was rolled back"), "{}", told.reason);
    assert!(told.held.iter().any(|held| held.rule == "instance_refresh"), "{:?}", told.held);
    // An order does not wait for it, and a better image is rolled out.
    world.apply(&group(0), Some(spec(NODES + 1, 1, false)));
    world.pass(120_000);
    assert_eq!(world.serving(&group(0)), NODES + 1);
    want_image(&mut world, 2);
    world.settle();
    assert_eq!(refreshes(&world), [RefreshStatus::Successful, RefreshStatus::RollbackSuccessful]);
}

#[test]
fn an_agent_that_dies_at_any_moment_of_a_roll_out_begins_none_twice() {
    for moment in 0..40 {
        let mut world = settled();
        want_image(&mut world, 2);
        world.pass(moment * 400);
        let pid = *world.agents.keys().next().expect("one agent");
        world.crash_agent(pid);
        world.settle();
        assert_eq!(refreshes(&world), [RefreshStatus::Successful], "killed after {moment} * 0.4 s");
    }
}

#[test]
fn without_the_broker_none_is_begun_and_one_under_way_goes_on() {
    let mut world = settled();
    want_image(&mut world, 2);
    world.pass(3000);
    assert_eq!(refreshes(&world), [RefreshStatus::InProgress]);
    world.stop_broker();
    world.pass(600_000);
    assert_eq!(refreshes(&world), [RefreshStatus::Successful]);
    want_image(&mut world, 3);
    world.pass(600_000);
    assert_eq!(refreshes(&world).len(), 1, "not begun");
    world.bring_the_broker_back(false, 1);
    world.settle();
    assert_eq!(refreshes(&world), [RefreshStatus::Successful; 2]);
}
