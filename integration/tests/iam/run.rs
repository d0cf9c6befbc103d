//! A life of a group, as processes, with the generated policy enforced: every call is allowed by a statement, and every statement
//! allows a call.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use outstation_agent::iam::calls::{CALLS, Grant};
use outstation_integration::{LONG, ONE_AT_A_TIME, World};

/// Of groups that scale by a metric, change their image, have a broken node, live long enough to have their hooks looked at, or were made by the
/// customer: the seeded simulation, whose agents are held to the same policies, makes these.
const OF_OTHER_LIVES: &[&str] = &[
    "autoscaling:DescribePolicies",
    "autoscaling:PutScalingPolicy",
    "autoscaling:DeletePolicy",
    "autoscaling:DescribeInstanceRefreshes",
    "autoscaling:StartInstanceRefresh",
    "autoscaling:CancelInstanceRefresh",
    "autoscaling:SetInstanceHealth",
    "autoscaling:DescribeLifecycleHooks",
    "autoscaling:PutLifecycleHook",
    "autoscaling:SetDesiredCapacity",
];

#[tokio::test(flavor = "multi_thread")]
async fn each_call_has_its_statement_and_each_statement_its_call() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("iam").await?;
    let policy = std::fs::read_to_string(world.system.layout().agent_policy())?;
    assert!(policy.contains("\"Sid\": \"NeverItself\""), "the one of the profile manage: {policy}");
    world.apply(3).await?;
    world.edit("desired_nodes=3", "desired_nodes=2")?;
    world.apply(2).await?;
    world.edit("planned = _minutes(", "planned = 0.0 * _minutes(")?;
    world.apply(2).await?;
    // Somebody has changed the template's version to the newest: repaired to the numbered one.
    let run = world.by_hand(
        "update_auto_scaling_group(AutoScalingGroupName='outstation-delay_tsg', \
         LaunchTemplate=dict(LaunchTemplateName='outstation-node', Version='$Latest'))",
    )?;
    assert_eq!(run.code, 0, "{run}");
    world
        .system
        .wait_group(&world.group, LONG, |group| {
            group
                .status
                .as_ref()
                .is_some_and(|status| status.drift.iter().any(|drift| drift.repaired))
        })
        .await?;
    std::fs::write(world.declarations().join("features.py"), "")?;
    let run = world.outstation(&["apply", ".", "--confirm-destroy", "1", "--timeout", "120"])?;
    assert_eq!(run.code, 0, "{run}\n{}", world.system.log_tails(20));
    let gone = async {
        while !world.system.sim().groups().await?.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LONG, gone).await.context("the group is deleted")??;

    let judged = world.system.sim().judged().await?;
    let mut used = BTreeSet::new();
    let mut actions = BTreeSet::new();
    for one in &judged {
        assert!(one.allowed, "the policy is too narrow for {one:?}");
        assert!(one.principal.contains(":assumed-role/outstation-agent/"), "{one:?}");
        let known = CALLS.iter().find(|call| call.action == one.action);
        let known = known.with_context(|| format!("not in the table: {one:?}"))?;
        let [statement] = &one.statements[..] else {
            panic!("one statement allows it, and no other: {one:?}");
        };
        assert!(known.grants.iter().any(|grant| grant.sid() == statement), "{one:?}");
        used.insert(statement.clone());
        actions.insert(one.action.clone());
    }
    let all: BTreeSet<String> = Grant::ALL.iter().map(|grant| grant.sid().to_owned()).collect();
    assert_eq!(used, all, "statements that allowed something; {judged:#?}");
    let never: Vec<&str> = CALLS
        .iter()
        .map(|call| call.action)
        .filter(|action| !actions.contains(*action))
        .filter(|action| !OF_OTHER_LIVES.contains(action))
        .collect();
    assert!(never.is_empty(), "allowed, and not needed in the life of a group: {never:?}");
    world.system.shutdown().await
}
