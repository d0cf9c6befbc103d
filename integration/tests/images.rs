//! A new image goes through a group of real node processes while calls run, and a node that nobody hears is replaced.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use outstation_integration::parts::{Part, signal, strike, victim};
use outstation_integration::{LONG, Load, ONE_AT_A_TIME, World};

const NODES: u32 = 3;

/// The account's people edit their guardrails: put in its place whole, as an editor does it.
fn edit_guardrails(world: &World, from: &str, to: &str) -> Result<()> {
    let path = world.system.layout().store().join("guardrails/guardrails.toml");
    let text = std::fs::read_to_string(&path)?;
    ensure!(text.contains(from), "no {from:?} in {text}");
    let beside = path.with_extension("new");
    std::fs::write(&beside, text.replacen(from, to, 1))?;
    Ok(std::fs::rename(&beside, &path)?)
}

async fn instances(world: &World) -> Result<BTreeSet<String>> {
    let instances = world.system.instances().await?;
    Ok(instances.into_iter().map(|instance| instance.instance_id).collect())
}

/// What AWS has in the end, as somebody with a console sees it.
fn assert_refreshes(world: &World, wanted: &str) -> Result<()> {
    let run = world.by_hand(&format!(
        "exceptions\n\
         client = boto3.client('autoscaling', 'eu-central-1', endpoint_url='{}')\n\
         answer = client.describe_instance_refreshes(AutoScalingGroupName='outstation-delay_tsg')\n\
         found = [(each['Status'], each['DesiredConfiguration']['LaunchTemplate']['Version'])\n\
         for each in answer['InstanceRefreshes']]\n\
         assert found == {wanted}, found",
        world.system.aws_endpoint()
    ))?;
    ensure!(run.code == 0, "{run}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_rolls_to_a_new_image_under_load_and_no_call_fails() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("images").await?;
    world.apply(NODES).await?;
    let departures = world.departures()?;
    let rows = world.rows(&departures[..500]).await?;
    let caller = world.caller().await?;
    let before = instances(&world).await?;
    let load = Load::start(&caller, &rows, 4);
    load.pass(100).await?;

    edit_guardrails(&world, "version = 1", "version = 2")?;
    let told = world
        .system
        .wait_group(&world.group, LONG, |group| {
            let status = group.status.as_ref();
            status.is_some_and(|status| {
                status.phase == "UPDATING"
                    && status.reason.contains("outstation-node version 2 is at")
            })
        })
        .await
        .with_context(|| world.system.log_tails(20))?;
    println!("{}", told.status.context("a status")?.reason);
    // An agent that dies meanwhile goes on with the same refresh.
    strike(&world, Part::AccountAgent).await?;
    load.pass(100).await?;

    world
        .system
        .wait_group(&world.group, LONG * 2, |group| {
            let status = group.status.as_ref();
            status.is_some_and(|status| {
                status.phase == "READY"
                    && status.observed_nodes == NODES
                    && status.nodes.iter().all(|node| !before.contains(&node.instance))
            })
        })
        .await
        .with_context(|| world.system.log_tails(20))?;
    load.pass(100).await?;
    let (calls, failures) = load.stop().await?;
    assert!(failures.is_empty(), "{} of {calls} calls failed: {:?}", failures.len(), failures[0]);
    println!("{calls} calls, none failed");
    assert!(instances(&world).await?.is_disjoint(&before));
    assert_refreshes(&world, "[('Successful', '2')]")?;
    world.system.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_nobody_hears_is_replaced_and_no_call_fails() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("broken-node").await?;
    edit_guardrails(&world, "[launch_template]", "node_patience_secs = 5\n[launch_template]")?;
    world.apply(NODES).await?;
    let departures = world.departures()?;
    let rows = world.rows(&departures[..500]).await?;
    let caller = world.caller().await?;
    let before = instances(&world).await?;
    let load = Load::start(&caller, &rows, 4);
    load.pass(100).await?;

    // Its server goes on; its agent hangs, and cannot even drain.
    signal(victim(&world, Part::NodeAgent).await?, Signal::SIGSTOP)?;
    world
        .system
        .wait_group(&world.group, LONG * 2, |group| {
            let status = group.status.as_ref();
            status.is_some_and(|status| {
                let old = status.nodes.iter().filter(|node| before.contains(&node.instance));
                status.phase == "READY" && status.observed_nodes == NODES && old.count() == 2
            })
        })
        .await
        .with_context(|| world.system.log_tails(20))?;
    let (calls, failures) = load.stop().await?;
    assert!(failures.is_empty(), "{} of {calls} calls failed: {:?}", failures.len(), failures[0]);
    println!("{calls} calls, none failed");
    let counted = world.system.layout().store().join("state/replacements");
    assert_eq!(std::fs::read_dir(counted)?.count(), 1, "counted for the whole account");
    world.system.shutdown().await
}
