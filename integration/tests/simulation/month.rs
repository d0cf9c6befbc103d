//! Thirty days without a broker, and its return with a database from before.

use outstation_protocol::Generation;
use rand::Rng as _;

use crate::people::{GROUPS, spec};
use crate::weather::Weather;
use crate::world::{Setup, World, group};

const HOUR_MILLIS: u64 = 3600 * 1000;
const NODES: u32 = 2;

/// Looks, heartbeats and ticks of a quiet account, far apart: the month has 720 hours.
const SETUP: Setup = Setup {
    reconcile_secs: 600,
    beat_millis: 60_000,
    tick_millis: 10_000,
    scale_only: false,
    requests_per_second: None,
};

#[test]
fn a_month_without_a_broker_and_its_return_with_an_older_database() {
    let mut world = World::new(30, Weather::default(), SETUP);
    world.calm_down();
    for index in 0..GROUPS {
        world.apply(&group(index), Some(spec(1, 0, false)));
    }
    world.settle();
    // What the broker will come back with: generation 1 of every group, and not the last group.
    world.back_up_the_broker();
    for index in 0..GROUPS {
        world.apply(&group(index), Some(spec(NODES, 1, false)));
    }
    let late = group(GROUPS);
    world.apply(&late, Some(spec(NODES, 1, false)));
    world.settle();
    let ledger = world.oracle.accepted.clone();

    world.stop_broker();
    for hour in 0..720 {
        if hour % 6 == 0 {
            world.a_machine_dies();
        }
        if hour % 50 == 10 {
            // Less than ordered is repaired, more is left alone until the broker is back.
            let nodes = world.random.random_range(0..4);
            world.somebody_sets(&group(0), nodes);
        }
        world.pass(HOUR_MILLIS);
        if hour % 6 == 1 {
            for index in 0..=GROUPS {
                let serving = world.serving(&group(index));
                assert!(serving >= NODES, "hour {hour}: {serving} nodes of {} serve", group(index));
            }
        }
    }
    assert_eq!(world.oracle.accepted, ledger, "nothing has moved");

    world.bring_the_broker_back(true, 1000);
    world.pass(10_000);
    assert_eq!(world.newest(&group(0)), Some(Generation(1)), "it is behind");
    world.settle();
    assert_eq!(world.oracle.accepted, ledger, "no agent went back");
    for index in 0..=GROUPS {
        assert_eq!(world.newest(&group(index)), Some(ledger[&group(index)].0.generation));
    }
    // And what is applied next is accepted at the first attempt.
    world.apply(&group(0), Some(spec(1, 2, false)));
    world.settle();
    assert_eq!(world.oracle.accepted[&group(0)].0.generation, Generation(3));
}
