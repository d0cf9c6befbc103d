//! Links that lose, repeat, reorder and delay, and links that are cut for a while.

use std::sync::atomic::Ordering;

use anyhow::Result;
use outstation_cli::dev::ServiceName;
use outstation_integration::ONE_AT_A_TIME;
use outstation_integration::fate::{Condition, Disturbance};
use outstation_integration::faults::Line;

use crate::{Day, NODES, lost_at_most};

const LIVE: &str = "control link live";

#[tokio::test(flavor = "multi_thread")]
async fn orders_pass_links_that_lose_a_tenth_and_links_that_are_cut_for_a_while() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let day = Day::begin("links", 0x5eed).await?;
    let world = &day.world;
    let load = day.load();

    for line in [Line::Control, Line::Nodes, Line::Callers, Line::Aws] {
        line.set(world, Condition::Bad(Disturbance::TENTH));
    }
    world.edit("desired_nodes=3", "desired_nodes=2")?;
    world.apply(2).await?;
    load.pass(200).await?;
    world.edit("desired_nodes=2", "desired_nodes=3")?;
    world.apply(NODES).await?;
    load.pass(200).await?;
    for line in [Line::Control, Line::Nodes, Line::Callers, Line::Aws] {
        line.set(world, Condition::Clear);
    }
    for link in [&world.links().control, &world.links().nodes] {
        println!("{:?}", link.counts());
        assert!(link.counts().lost.load(Ordering::Relaxed) > 0, "{:?}", link.counts());
    }

    // Shorter than any silence that either end would take for a death: the sessions go on.
    let live = day.said(ServiceName::AccountAgent, LIVE);
    let connected = day.said(ServiceName::AccountAgent, "node connected");
    world.edit("desired_nodes=3", "desired_nodes=2")?;
    for line in [Line::Control, Line::Nodes, Line::Callers, Line::Aws] {
        line.set(world, Condition::Cut);
    }
    let run = world.outstation(&["apply", ".", "--no-wait"])?;
    assert_eq!(run.code, 0, "the broker is there: {run}");
    load.pass(200).await?;
    let before = world.system.instances().await?.len();
    assert_eq!(before, NODES as usize, "nobody in the account can have heard of it");
    for line in [Line::Control, Line::Nodes, Line::Callers, Line::Aws] {
        line.set(world, Condition::Clear);
    }
    world.ready(2).await?;
    assert_eq!(day.said(ServiceName::AccountAgent, LIVE), live, "the same control session");
    let again = day.said(ServiceName::AccountAgent, "node connected");
    assert_eq!(again, connected, "the same sessions of the nodes");
    lost_at_most(load, 0).await?;
    day.end().await
}
