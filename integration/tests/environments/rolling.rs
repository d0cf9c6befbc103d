//! A new environment goes through a group of five under load.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use outstation_cli::view::GroupView;
use outstation_integration::{LONG, Load, ONE_AT_A_TIME, World};

pub fn require(world: &World, requirements: &str) -> Result<()> {
    Ok(fs::write(world.declarations().join("requirements.txt"), requirements)?)
}

/// Both have all that the example imports.
const ONE: &str = "holidays==0.109\npython-dateutil==2.9.0.post0\nsix==1.17.0\ntzdata==2026.6\n";
const OTHER: &str = "holidays==0.109\npython-dateutil==2.9.0.post0\nsix==1.16.0\ntzdata==2026.6\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_new_environment_goes_through_five_nodes_and_a_bad_one_stops_at_the_first() -> Result<()>
{
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("environment-rolling").await?;
    require(&world, ONE)?;
    world.edit("desired_nodes=3", "desired_nodes=5")?;
    world.apply(5).await?;
    let rows = world.rows(&world.departures()?[..500]).await?;
    let caller = world.caller().await?;
    let load = Load::start(&caller, &rows, 8);
    load.pass(500).await?;

    require(&world, OTHER)?;
    world.apply(5).await?;
    load.pass(500).await?;

    // Declared where `boto3` is, built where it is not: it fails at its import, on the nodes.
    world.edit("from outstation import", "import boto3\nfrom outstation import")?;
    require(&world, "holidays==0.109\n")?;
    let run = world.outstation(&["apply", ".", "--no-wait"])?;
    assert_eq!(run.code, 0, "{run}");
    let group = world
        .system
        .wait_group(&world.group, LONG, |group| reasons(group).len() == 1)
        .await
        .with_context(|| world.system.log_tails(20))?;
    let reason = reasons(&group).remove(0);
    assert!(reason.contains("generation 2 stays, because 3 does not come up"), "{reason}");
    assert!(reason.contains("boto3"), "the server's own words: {reason}");
    load.pass(2_000).await?;
    let group = world.system.wait_group(&world.group, LONG, |_| true).await?;
    assert_eq!(reasons(&group).len(), 1, "it stops at the first node");
    let nodes = group.status.iter().flat_map(|status| &status.nodes);
    let serving = nodes.filter(|node| node.phase == "ready" && node.endpoint.is_some());
    assert_eq!(serving.count(), 5, "which serves the old one, as do the others");
    let told = world.outstation(&["describe", "delay_tsg"])?;
    assert!(told.stdout.contains("boto3"), "describe tells why: {told}");

    // Mended, it goes through.
    world.edit("import boto3\n", "")?;
    require(&world, ONE)?;
    world.apply(5).await?;
    load.pass(500).await?;
    let (calls, failures) = load.stop().await?;
    assert!(failures.is_empty(), "{} of {calls}: {}", failures.len(), failures[0]);
    tokio::time::timeout(Duration::from_secs(60), world.system.shutdown()).await?
}

/// Of nodes that do not serve what they should.
fn reasons(group: &GroupView) -> Vec<String> {
    let nodes = group.status.iter().flat_map(|status| &status.nodes);
    nodes.filter_map(|node| node.reason.clone()).filter(|why| why.contains("because")).collect()
}
