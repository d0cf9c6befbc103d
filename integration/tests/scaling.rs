//! How many nodes there are: decided by AWS between two bounds, changed by hand, or all that this
//! agent may decide at all.

use anyhow::{Context as _, Result};
use outstation_cli::dev::ServiceName;
use outstation_cli::dev::layout::SUBNETS;
use outstation_cli::view::{GroupView, Status};
use outstation_integration::{LONG, ONE_AT_A_TIME, World};

const FIXED: &str = "ProvisionedScalingConfig(desired_nodes=3)";
const ASG: &str = "outstation-delay_tsg";

async fn until(
    world: &World,
    what: &str,
    condition: impl Fn(&GroupView, &Status) -> bool,
) -> Result<Status> {
    let seen = world
        .system
        .wait_group(&world.group, LONG, |group| {
            group.status.as_ref().is_some_and(|status| condition(group, status))
        })
        .await
        .with_context(|| format!("{what}\n{}", world.system.log_tails(20)))?;
    seen.status.context("a status")
}

fn ready(status: &Status, nodes: u32) -> bool {
    (status.phase.as_str(), status.desired_nodes, status.ready_nodes) == ("READY", nodes, nodes)
}

#[tokio::test(flavor = "multi_thread")]
async fn load_makes_a_group_grow_and_shrink_within_what_was_ordered() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("scaling").await?;
    world.edit(FIXED, "AutoscalingConfig(min_nodes=1, max_nodes=3, target=CpuTarget(60))")?;
    world.edit(
        "from outstation import (",
        "from outstation import (\n    AutoscalingConfig, CpuTarget,",
    )?;
    let plan = world.outstation(&["plan", "."])?;
    assert!(plan.stdout.contains("1..3 nodes at CPU 60 %"), "{plan}");
    world.apply(1).await?;
    let sim = world.system.sim();

    sim.set_cpu_total(ASG, Some(500.0)).await?;
    until(&world, "it grows to its most", |_, status| ready(status, 3)).await?;
    let described = world.outstation(&["describe", "delay_tsg"])?;
    assert!(described.stdout.contains("nodes        3 (1..3, CPU 60 %)"), "{described}");
    sim.set_cpu_total(ASG, Some(10.0)).await?;
    let status = until(&world, "it shrinks to its least", |_, status| {
        ready(status, 1) && status.observed_nodes == 1
    })
    .await?;
    assert!(status.drift.is_empty(), "what AWS does between the bounds is no drift: {status:?}");

    // The policy, the bounds and the places are ours.
    let run = world.by_hand(&format!(
        "delete_policy(AutoScalingGroupName='{ASG}', PolicyName='outstation-target')"
    ))?;
    assert_eq!(run.code, 0, "{run}");
    let subnets = SUBNETS.map(|(subnet, _)| subnet);
    let run = world.by_hand(&format!(
        "update_auto_scaling_group(AutoScalingGroupName='{ASG}', MaxSize=9, \
         VPCZoneIdentifier='{}')",
        subnets[0]
    ))?;
    assert_eq!(run.code, 0, "{run}");
    let moved = format!("subnets {} -> {}", subnets.join(","), subnets[0]);
    for change in ["max size 3 -> 9", "scaling policy CPU 60 % -> none", moved.as_str()] {
        until(&world, change, |_, status| {
            status.drift.iter().any(|drift| drift.repaired && drift.change.contains(change))
        })
        .await?;
    }
    let described = world.outstation(&["describe", "delay_tsg"])?;
    assert!(described.stdout.contains(&moved), "{described}");
    sim.set_cpu_total(ASG, Some(500.0)).await?;
    until(&world, "the policy works again", |_, status| ready(status, 3)).await?;

    // A fixed number again: the policy goes, and load changes nothing any more.
    world.edit(
        "AutoscalingConfig(min_nodes=1, max_nodes=3, target=CpuTarget(60))",
        "ProvisionedScalingConfig(desired_nodes=2)",
    )?;
    world.apply(2).await?;
    let policies = world.by_hand(
        "get_paginator('describe_policies').paginate().build_full_result()['ScalingPolicies'][0]",
    )?;
    assert!(policies.stderr.contains("IndexError"), "no policy is left: {policies}");
    world.system.shutdown().await
}

/// The customer's group, with room for so many.
fn make_group(world: &World, nodes_max: u32) -> Result<()> {
    let run = world.by_hand(&format!(
        "create_auto_scaling_group(AutoScalingGroupName='{ASG}', MinSize=0, MaxSize={nodes_max}, \
         LaunchTemplate=dict(LaunchTemplateName='outstation-node', Version='1'), \
         AvailabilityZones=['eu-central-1a'], \
         LifecycleHookSpecificationList=[dict(LifecycleHookName='outstation-drain', \
         LifecycleTransition='autoscaling:EC2_INSTANCE_TERMINATING', HeartbeatTimeout=90, \
         DefaultResult='CONTINUE')], \
         Tags=[dict(Key='outstation:tenant', Value='dev', PropagateAtLaunch=True), \
         dict(Key='outstation:group', Value='delay_tsg', PropagateAtLaunch=True)])"
    ))?;
    anyhow::ensure!(run.code == 0, "{run}");
    Ok(())
}

fn held(status: &Status, words: &str) -> bool {
    status.held.iter().any(|held| held.rule == "profile" && held.message.contains(words))
}

#[tokio::test(flavor = "multi_thread")]
async fn in_groups_of_the_customer_only_the_count_is_set() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start_scale_only("scale-only").await?;
    let run = world.outstation(&["apply", ".", "--no-wait"])?;
    assert_eq!(run.code, 0, "{run}");
    until(&world, "no group is made", |_, status| held(status, "there is no AutoScaling group"))
        .await?;
    let described = world.outstation(&["describe", "delay_tsg"])?;
    let hint = "make outstation-delay_tsg with the tags outstation:tenant=dev";
    assert!(described.stdout.contains(hint), "{described}");

    make_group(&world, 2)?;
    until(&world, "as many as the customer allows", |_, status| {
        held(status, "more than MaxSize 2") && status.ready_nodes == 2
    })
    .await?;
    let run = world
        .by_hand(&format!("update_auto_scaling_group(AutoScalingGroupName='{ASG}', MaxSize=5)"))?;
    assert_eq!(run.code, 0, "{run}");
    let status = until(&world, "all that were ordered", |_, status| ready(status, 3)).await?;
    let instances = |status: &Status| {
        let mut ids: Vec<String> = status.nodes.iter().map(|node| node.instance.clone()).collect();
        ids.sort();
        ids
    };
    let before = instances(&status);

    // New code is switched in place: the same instances, and no tag is touched.
    world.edit(
        "\"regional\": None if carrier is None else",
        "\"regional\": None if carrier is not None else",
    )?;
    world.apply(3).await?;
    let status = until(&world, "the new code", |group, status| {
        ready(status, 3) && group.has_converged(group.generation)
    })
    .await?;
    assert_eq!(instances(&status), before);
    let tags = world.by_hand("describe_tags()['Tags'][2]")?;
    assert!(tags.stderr.contains("IndexError"), "there are the customer's two tags: {tags}");

    // A hand on the count is drift, and what would be done about it can be asked for.
    world.system.hold(ServiceName::AccountAgent).await;
    let plan = world.outstation_agent("plan", &[])?;
    assert_eq!(
        (plan.code, plan.stdout.as_str()),
        (0, "delay_tsg: as ordered\nNothing would be done.\n")
    );
    let run = world.by_hand(&format!(
        "set_desired_capacity(AutoScalingGroupName='{ASG}', DesiredCapacity=1)"
    ))?;
    assert_eq!(run.code, 0, "{run}");
    let plan = world.outstation_agent("plan", &["--offline"])?;
    let wanted =
        "  would  set the desired capacity of outstation-delay_tsg to 3\n1 call would be made";
    assert!(plan.code == 2 && plan.stdout.contains(wanted), "{plan}");
    world.system.release(ServiceName::AccountAgent);
    until(&world, "what was ordered", |_, status| ready(status, 3)).await?;

    // Its end is the customer's to make.
    let run = world.outstation(&[
        "destroy",
        "delay_tsg",
        "--yes",
        "--confirm-destroy",
        "1",
        "--no-wait",
    ])?;
    assert_eq!(run.code, 0, "{run}");
    let status = until(&world, "it shrinks", |_, status| {
        held(status, "deletes no AutoScaling group") && status.observed_nodes == 0
    })
    .await?;
    assert!(
        status.held[0].hint.contains("delete the AutoScaling group outstation-delay_tsg yourself")
    );
    let run = world.by_hand(&format!("delete_auto_scaling_group(AutoScalingGroupName='{ASG}')"))?;
    assert_eq!(run.code, 0, "{run}");
    until(&world, "it is gone", |_, status| status.phase == "DELETED").await?;
    world.system.shutdown().await
}
