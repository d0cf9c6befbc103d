//! The account store loses what it held, and the account itself still knows. Everything is held,
//! everybody is served, and a person decides.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use outstation_cli::dev::ServiceName;
use outstation_cli::view::{GroupView, Status};
use outstation_integration::{LONG, Load, ONE_AT_A_TIME, World, agent_command};
use serde_json::Value as Json;

const NODES: u32 = 2;

fn is_held_by(rule: &'static str) -> impl Fn(&GroupView) -> bool {
    move |group| group.status.as_ref().is_some_and(|s| s.held.iter().any(|held| held.rule == rule))
}

fn is_ready(group: &GroupView) -> bool {
    group.status.as_ref().is_some_and(|s| s.phase == "READY" && s.held.is_empty())
        && group.has_converged(group.generation)
}

async fn instances(world: &World) -> Result<BTreeSet<String>> {
    Ok(world.system.instances().await?.into_iter().map(|instance| instance.instance_id).collect())
}

async fn wait(world: &World, what: &str, is: impl Fn(&GroupView) -> bool) -> Result<GroupView> {
    let waited = world.system.wait_group(&world.group, LONG, is).await;
    waited.with_context(|| format!("{what}\n{}", world.system.log_tails(20)))
}

/// Changes the account store while no agent looks at it.
fn behind_the_agents_back(
    world: &World,
    change: impl FnOnce() -> std::io::Result<()>,
) -> Result<()> {
    world.system.signal(ServiceName::AccountAgent, Signal::SIGSTOP)?;
    change()?;
    world.system.kill(ServiceName::AccountAgent)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_account_store_holds_everything_until_a_person_adopts() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("adopt").await?;
    world.edit("desired_nodes=3", "desired_nodes=2")?;
    world.apply(NODES).await?;
    let before = instances(&world).await?;
    let departures = world.departures()?;
    let rows = world.rows(&departures[..500]).await?;
    let caller = world.caller().await?;
    let load = Load::start(&caller, &rows, 4);
    load.pass(100).await?;

    let store = world.system.layout().store();
    behind_the_agents_back(&world, || std::fs::remove_dir_all(store.join("state")))?;
    wait(&world, "the contradiction shows in the status", is_held_by("contradiction")).await?;
    load.pass(100).await?;
    let said = "its AutoScaling group is tagged generation 1, the account store holds no order";
    let run = world.outstation(&["describe", "delay_tsg"])?;
    assert!(run.stdout.contains(said) && run.stdout.contains("outstation-agent adopt"), "{run}");
    let run = world.outstation_agent("status", &[])?;
    assert!(run.code == 0 && run.stdout.contains(said), "{run}");

    // An order is refused by it, but not for good; and whoever calls anew finds the group.
    let run = world.outstation(&["apply", ".", "--timeout", "60"])?;
    assert!(run.code == 1 && format!("{run}").contains(said), "{run}");
    let another = world.caller().await?;
    let second_load = Load::start(&another, &rows, 1);
    second_load.pass(20).await?;

    // Nobody is decided for.
    let run = world.outstation_agent("adopt", &[])?;
    assert!(run.code == 1 && run.stderr.contains("hint: add --yes"), "{run}");
    let run = world.outstation_agent("adopt", &["--dry-run"])?;
    assert!(run.code == 2 && run.stdout.contains("nothing up to generation 1"), "{run}");
    let run = world.outstation_agent("adopt", &["--yes", "--from-ledger", "delay_tsg"])?;
    assert!(run.code == 2 && run.stdout.contains("holds no order of it"), "{run}");
    wait(&world, "it is held on", is_held_by("contradiction")).await?;

    let run = world.outstation_agent("adopt", &["--yes"])?;
    assert_eq!(run.code, 0, "{run}");
    let group = wait(&world, "the order of meanwhile takes the group over", is_ready).await?;
    assert_eq!(group.generation.0, 2, "{group:?}");
    let run = world.outstation_agent("adopt", &["--dry-run"])?;
    assert!(run.code == 0 && run.stdout.contains("Nothing to decide"), "{run}");

    let mut failures = load.stop().await?.1;
    failures.extend(second_load.stop().await?.1);
    assert!(failures.is_empty(), "{} calls failed: {failures:?}", failures.len());
    assert_eq!(instances(&world).await?, before, "no instance was touched");

    let config = world.system.layout().config("account-agent");
    world.system.shutdown().await?;
    let run = agent_command(&config, "status", &["--json"])?;
    assert!(run.code == 1 && run.stderr.contains("is not running"), "{run}");
    let document: Json = serde_json::from_str(&run.stdout)?;
    assert_eq!(document["process"], "dead");
    assert_eq!(document["groups"][0]["generation"], 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_backup_does_not_bring_old_code_back_and_a_wrong_tag_is_overwritten() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("old-backup").await?;
    world.edit("desired_nodes=3", "desired_nodes=2")?;
    world.apply(NODES).await?;
    let order = world.system.layout().store().join("state/orders/delay_tsg.json");
    let backup = std::fs::read(&order)?;
    world.edit("planned = _minutes(", "planned = 0.0 * _minutes(")?;
    world.apply(NODES).await?;
    let before = instances(&world).await?;
    let bundles = |group: &GroupView| -> BTreeSet<Option<String>> {
        let nodes = group.status.iter().flat_map(|status| &status.nodes);
        nodes.map(|node| node.bundle.clone()).collect()
    };
    let new = bundles(&wait(&world, "the second generation", is_ready).await?);
    assert_eq!(new.len(), 1, "{new:?}");

    behind_the_agents_back(&world, || std::fs::write(&order, &backup))?;
    // Until a node is connected again, what is told of it is what was last heard.
    let group = wait(&world, "the contradiction shows in the status", |group| {
        let is_heard = |status: &Status| status.nodes.iter().all(|node| node.reason.is_none());
        is_held_by("contradiction")(group)
            && group.status.as_ref().is_some_and(|s| s.ready_nodes == NODES && is_heard(s))
    })
    .await?;
    assert_eq!(bundles(&group), new, "nodes serve what they served: {group:?}");
    let run = world.outstation_agent("adopt", &["--yes"])?;
    assert!(run.code == 0 && run.stdout.contains("holds generation 1"), "{run}");
    wait(&world, "left alone until an order comes", is_held_by("adopted")).await?;
    let run = world.outstation(&["apply", ".", "--timeout", "120"])?;
    assert_eq!(run.code, 0, "{run}");
    let group = wait(&world, "taken over", is_ready).await?;
    assert_eq!((group.generation.0, bundles(&group)), (3, new), "{group:?}");

    // Now the account is wrong, and the ledger right.
    let run = world.by_hand(
        "create_or_update_tags(Tags=[dict(ResourceId='outstation-delay_tsg', \
         ResourceType='auto-scaling-group', Key='outstation:generation', Value='9', \
         PropagateAtLaunch=True)])",
    )?;
    assert_eq!(run.code, 0, "{run}");
    world.system.kill(ServiceName::AccountAgent)?;
    wait(&world, "the tag contradicts the ledger", is_held_by("contradiction")).await?;
    let run = world.outstation_agent("adopt", &["--yes", "--from-ledger", "delay_tsg"])?;
    assert!(run.code == 0 && run.stdout.contains("the tag 9 is overwritten"), "{run}");
    let group = wait(&world, "the tag is rewritten", is_ready).await?;
    assert_eq!(group.generation.0, 3, "{group:?}");
    let run = world.outstation_agent("adopt", &["--dry-run"])?;
    assert!(run.code == 0 && run.stdout.contains("Nothing to decide"), "{run}");
    assert_eq!(instances(&world).await?, before, "no instance was touched");
    world.system.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_did_is_in_its_journal_and_cannot_be_taken_out_again() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("journal").await?;
    world.edit("desired_nodes=3", "desired_nodes=1")?;
    world.apply(1).await?;
    let verify = || world.outstation_agent("journal verify", &[]);
    let show = |arguments: &[&str]| world.outstation_agent("journal show", arguments);
    let run = verify()?;
    assert!(run.code == 0 && run.stdout.contains("anchored"), "{run}");
    let run = show(&["--group", "delay_tsg"])?;
    for said in ["accepted       delay_tsg generation 1", "calls          CreateAutoScalingGroup "]
    {
        assert!(run.code == 0 && run.stdout.contains(said), "{said}: {run}");
    }

    // Each call that changes something has an anchor that was there first, whenever the agent died.
    for nodes in [2, 1] {
        world.edit(&format!("desired_nodes={}", 3 - nodes), &format!("desired_nodes={nodes}"))?;
        let apply = world.outstation(&["apply", ".", "--no-wait", "--yes"]);
        world.system.kill(ServiceName::AccountAgent)?;
        assert_eq!(apply?.code, 0);
        wait(&world, "converged after a kill", is_ready).await?;
    }
    let run = verify()?;
    assert_eq!(run.code, 0, "{run}");
    let shown = show(&["--json"])?.stdout;
    let records = shown.lines().map(serde_json::from_str).collect::<Result<Vec<Json>, _>>()?;
    let store = world.system.layout().store().join("journal");
    let chain = std::fs::read_dir(&store)?.next().context("one chain")??.path();
    let anchored = |seq: u64| chain.join(format!("anchors/{seq:020}.json")).exists();
    let calls: Vec<u64> = records
        .iter()
        .filter(|record| record["event"].get("call").is_some())
        .filter_map(|record| record["seq"].as_u64())
        .collect();
    assert!(calls.len() >= 3 && calls.iter().all(|seq| anchored(*seq)), "{calls:?}");
    assert!(records.iter().any(|record| record["event"]["outcome"]["request_id"].is_string()));

    // Somebody on the agent's host does not want it to have been so.
    world.system.signal(ServiceName::AccountAgent, Signal::SIGSTOP)?;
    let state = world.system.layout().agent_state().join("journal");
    let here = std::fs::read_dir(&state)?.next().context("one chain")??.path();
    let segment = std::fs::read_dir(here)?.next().context("one segment")??.path();
    let text = std::fs::read_to_string(&segment)?;
    std::fs::write(&segment, text.replace("CreateAutoScalingGroup", "CreateAutoScalingGroop"))?;
    world.system.kill(ServiceName::AccountAgent)?;
    let run = verify()?;
    assert!(run.code == 1 && run.stdout.contains("does not follow the one before"), "{run}");
    assert!(run.stderr.contains("hint: the records before the first fault stand"), "{run}");
    world.edit("desired_nodes=1", "desired_nodes=2")?;
    world.apply(2).await?;
    let run = verify()?;
    let chains = run.stdout.lines().filter(|line| line.contains(" records, ")).count();
    assert!(run.code == 1 && chains == 2, "it goes on in another chain: {run}");
    world.system.shutdown().await
}
