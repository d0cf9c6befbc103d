//! Full load with a kill every few seconds. Afterwards nothing has grown and nothing is left.

use std::time::Duration;

use anyhow::{Context as _, Result};
use outstation_integration::parts::{Part, assert_census, census, strike};
use outstation_integration::usage::{Measured, Slack};
use outstation_integration::{
    LONG, Load, ONE_AT_A_TIME, World, assert_released, listeners_of, number, processes,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use crate::{Day, NODES, lost_at_most, until};

/// More than three nodes of two workers can do at once: there is always somebody who waits.
const LANES: usize = 16;
const KILL_EVERY: std::ops::Range<u64> = 1500..4000;
/// An allocator's arenas, connections that close in a moment, threads of a pool that have not ended
/// yet. What leaks 20 KiB or a tenth of a descriptor with each of a long run's kills is above it.
const SLACK: Slack = Slack { private_kib: 4 * 1024, descriptors: 16, threads: 4 };

/// Who dies in which third: so each part is once among the survivors.
const THIRDS: [(&str, &[Part]); 3] = [
    (
        "on the nodes",
        &[Part::Worker, Part::WarmParent, Part::TransformServer, Part::NodeAgent, Part::Instance],
    ),
    ("above the nodes", &[Part::AccountAgent, Part::Broker]),
    ("anywhere", &Part::ALL),
];

/// The suite does this for 20 s; `OUTSTATION_SOAK_SECS=600` is the documented longer run, and
/// `OUTSTATION_SEED` repeats one.
#[tokio::test(flavor = "multi_thread")]
async fn after_full_load_with_kills_nothing_has_grown_and_nothing_is_left() -> Result<()> {
    let secs = number("OUTSTATION_SOAK_SECS").unwrap_or(20);
    let seed = number("OUTSTATION_SEED").unwrap_or(0x5eed);
    println!("OUTSTATION_SEED={seed} OUTSTATION_SOAK_SECS={secs} cargo nextest run soak");
    let mut random = StdRng::seed_from_u64(seed);

    let _turn = ONE_AT_A_TIME.lock().await;
    let day = Day::of(World::start("soak").await?).await?;
    let world = &day.world;
    let state = world.system.layout().state.clone();
    let before = census(&state);
    let load = Load::start(&day.caller, &day.rows, LANES);
    // Everything has been used once, and every part has come back once, before it counts.
    load.pass(2000).await?;
    for part in Part::ALL {
        strike(world, part).await?;
        settled(&day).await?;
    }
    load.pass(2000).await?;
    let warm = Measured::now(&state);

    let mut kills = 0;
    for (where_, parts) in THIRDS {
        // A worker that was just forked has yet to import what functions import when they are called.
        load.pass(2000).await?;
        let begun = Measured::now(&state);
        let until_then = Instant::now() + Duration::from_secs(secs) / 3;
        while Instant::now() < until_then {
            load.pass(1).await?;
            tokio::time::sleep(Duration::from_millis(random.random_range(KILL_EVERY))).await;
            // Somebody has to be left to serve.
            day.caller.wait_for_endpoints(2, LONG).await?;
            let part = parts[random.random_range(0..parts.len())];
            // None is there if it has just died and is not back yet.
            kills += usize::from(strike(world, part).await.is_ok());
        }
        settled(&day).await.with_context(|| format!("after kills {where_}"))?;
        flat(where_, &begun, &state).await?;
    }
    flat("since the warm-up", &warm, &state).await?;
    let calls = load.calls();
    lost_at_most(load, LANES * (kills + Part::ALL.len())).await?;
    println!("{kills} kills in {secs} s under {calls} calls");
    settled(&day).await?;
    assert_census(&state, &before).await;

    let listeners = listeners_of(&processes(&state));
    day.end().await?;
    assert_eq!(processes(&state), Default::default());
    assert_released(&listeners);
    Ok(())
}

/// As ordered, and as the callers see it.
async fn settled(day: &Day) -> Result<()> {
    until("three nodes that serve", || async {
        let instances = day.world.system.instances().await?;
        let serving = instances.iter().filter(|i| i.lifecycle_state == "InService").count();
        Ok(instances.len() == NODES as usize && serving == NODES as usize)
    })
    .await?;
    day.world.ready(NODES).await?;
    day.caller.wait_for_endpoints(NODES as usize, LONG).await?;
    Ok(())
}

/// Waits until nothing is above `before` any more; what never comes down has grown.
async fn flat(since: &str, before: &Measured, state: &std::path::Path) -> Result<()> {
    let deadline = Instant::now() + LONG;
    loop {
        let now = Measured::now(state);
        let grown = now.grown(before, SLACK);
        if grown.is_empty() {
            println!("{since}: survivors {:?}", now.survivors(before));
            let roles = now.by_role();
            for (role, was) in before.by_role() {
                println!("  {role:?}: {was} -> {}", roles.get(&role).copied().unwrap_or_default());
            }
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "{since}, this has grown: {grown:#?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
