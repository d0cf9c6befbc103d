//! The main job, end to end, as processes on this machine: declarations in Python, broker, account
//! agent, simulated AWS, instances, transform servers, answers.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outstation_api::transform::value::Kind;
use outstation_api::transform::{CallRequest, Row, row_result::Outcome};
use outstation_cli::dev::ServiceName;
use outstation_cli::values::row_to_json;
use outstation_cli::view::GroupView;
use outstation_integration::{LONG, Load, ONE_AT_A_TIME, World, python, workspace};
use serde_json::Value as Json;

const NODES: &str = "desired_nodes=3";

#[tokio::test(flavor = "multi_thread")]
async fn answers_equal_the_features_computed_offline() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("answers").await?;
    world.apply(3).await?;

    let offline = std::process::Command::new(python())
        .arg("offline.py")
        .current_dir(workspace().join("examples/flights"))
        .output()?;
    assert!(offline.status.success(), "{}", String::from_utf8_lossy(&offline.stderr));
    let expected: Vec<(usize, Json)> = String::from_utf8(offline.stdout)?
        .lines()
        .map(|line| {
            let line: Json = serde_json::from_str(line)?;
            let index = line["index"].as_u64().context("an index")?;
            Ok((usize::try_from(index)?, line["features"].clone()))
        })
        .collect::<Result<_>>()?;
    assert!(expected.len() >= 200, "a sample of {}", expected.len());

    let departures = world.departures()?;
    assert_eq!(departures.len(), 336_776, "every departure of the data set");
    let sample: Vec<Json> = expected.iter().map(|(index, _)| departures[*index].clone()).collect();
    let rows = world.rows(&sample).await?;
    let caller = world.caller().await?;
    let request = CallRequest { target: "delay".to_owned(), rows };
    let response = caller.call(request, Duration::from_secs(10)).await.outcome?;
    assert_eq!(response.results.len(), expected.len());
    for ((index, wanted), result) in expected.iter().zip(response.results) {
        let Some(Outcome::Row(row)) = result.outcome else {
            panic!("departure {index}: {:?}", result.outcome);
        };
        assert_same(*index, wanted, &row_to_json(&row));
    }
    world.system.shutdown().await
}

fn assert_same(index: usize, wanted: &Json, answered: &serde_json::Map<String, Json>) {
    let wanted = wanted.as_object().expect("features");
    assert_eq!(
        wanted.keys().collect::<Vec<_>>(),
        answered.keys().collect::<Vec<_>>(),
        "departure {index}"
    );
    for (name, wanted) in wanted {
        let answered = &answered[name];
        let same = match (wanted.as_f64(), answered.as_f64()) {
            (Some(wanted), Some(answered)) => {
                (wanted - answered).abs() <= 1e-9 * wanted.abs().max(1.0)
            }
            _ => wanted == answered,
        };
        assert!(same, "departure {index}, {name}: offline {wanted}, answered {answered}");
    }
}

/// 3 → 5 → 2 by editing the declaration; then new code and a hand on the AutoScaling group.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_changes_under_load_and_no_call_fails() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("changes").await?;
    world.apply(3).await?;
    let departures = world.departures()?;
    let rows = world.rows(&departures[..500]).await?;
    let caller = world.caller().await?;
    let load = Load::start(&caller, &rows, 8);
    load.pass(200).await?;

    world.edit(NODES, "desired_nodes=5")?;
    world.apply(5).await?;
    load.pass(500).await?;
    world.edit("desired_nodes=5", "desired_nodes=2")?;
    world.apply(2).await?;
    load.pass(500).await?;

    // New code, switched in place: from some call on, the answers are the new ones.
    world.edit(
        "\"regional\": None if carrier is None else",
        "\"regional\": None if carrier is not None else",
    )?;
    world.apply(2).await?;
    load.pass(500).await?;
    let probe = CallRequest { target: "speed".to_owned(), rows: rows[..1].to_vec() };
    let response = caller.call(probe, Duration::from_secs(10)).await.outcome?;
    let row = answered_row(response)?;
    let regional = row.fields.iter().find(|field| field.name == "speed.regional");
    let regional = regional.and_then(|field| field.value.clone()).context("the feature")?;
    assert_eq!(regional.kind, None, "the new code answers null for a known carrier");

    let (calls, failures) = load.stop().await?;
    assert!(
        failures.is_empty(),
        "{} of {calls} calls failed, first: {}",
        failures.len(),
        failures[0]
    );

    // A hand on the desired count is drift: repaired, and told.
    let run = world.by_hand(
        "update_auto_scaling_group(AutoScalingGroupName='outstation-delay_tsg', \
         MaxSize=4, DesiredCapacity=4)",
    )?;
    assert_eq!(run.code, 0, "{run}");
    let group = world
        .system
        .wait_group(&world.group, LONG, |group| {
            group
                .status
                .as_ref()
                .is_some_and(|s| !s.drift.is_empty() && s.observed_nodes == 2 && s.ready_nodes == 2)
        })
        .await?;
    let drift = &group.status.context("a status")?.drift[0];
    assert!(drift.repaired && drift.change.contains("desired capacity 2 -> 4"), "{drift:?}");
    world.system.shutdown().await
}

fn answered_row(response: outstation_api::transform::CallResponse) -> Result<Row> {
    match response.results.into_iter().next().and_then(|result| result.outcome) {
        Some(Outcome::Row(row)) => Ok(row),
        other => anyhow::bail!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dies_comes_back() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("deaths").await?;
    world.apply(3).await?;
    let departures = world.departures()?;
    let rows = world.rows(&departures[..500]).await?;
    let caller = world.caller().await?;
    let load = Load::start(&caller, &rows, 4);
    load.pass(200).await?;

    // An instance, all at once.
    let victim = world.system.instances().await?.into_iter().next().context("an instance")?;
    let launcher = victim.launcher_pid.context("a launcher")?;
    kill(Pid::from_raw(i32::try_from(launcher)?), Signal::SIGKILL)?;
    let id = victim.instance_id.clone();
    world
        .system
        .wait_group(&world.group, LONG, |group| {
            group.status.as_ref().is_some_and(|status| {
                status.ready_nodes == 3 && status.nodes.iter().all(|node| node.instance != id)
            })
        })
        .await
        .with_context(|| world.system.log_tails(20))?;

    // Broker and account agent: nobody who calls notices.
    load.pass(100).await?;
    let before = load.calls();
    for service in
        [outstation_cli::dev::ServiceName::Broker, outstation_cli::dev::ServiceName::AccountAgent]
    {
        world.system.kill(service)?;
        load.pass(200).await?;
    }
    assert!(load.calls() > before);
    world.ready(3).await?;
    let (calls, failures) = load.stop().await?;
    // At most what was in flight on the instance that died.
    assert!(failures.len() <= 4, "{} of {calls} calls failed: {failures:?}", failures.len());
    world.system.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_shown_and_nothing_is_half_done() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("refusals").await?;
    world.apply(3).await?;

    // Beyond the guardrail of the account.
    world.edit(NODES, "desired_nodes=90")?;
    let run = world.outstation(&["apply", ".", "--timeout", "60"])?;
    assert_eq!(run.code, 1, "{run}");
    assert!(
        run.stderr.contains("nodes_per_group_max") || run.stdout.contains("nodes_per_group_max"),
        "{run}"
    );
    let run = world.outstation(&["describe", "delay_tsg"])?;
    assert!(run.stdout.contains("90 nodes are more than nodes_per_group_max 40"), "{run}");
    assert!(run.stdout.contains("guardrails/"), "says who can change it: {run}");
    // Counts and spec are those of the accepted order, the refused one is named apart.
    assert!(run.stdout.contains("desired 3  observed 3"), "{run}");
    assert!(run.stdout.contains("it wanted nodes 3 -> 90"), "{run}");
    let run = world.outstation(&["plan", "."])?;
    assert_eq!(run.code, 2, "{run}");
    assert!(run.stdout.contains("asked again: refused by"), "{run}");
    world.ready(3).await.context("what was there goes on")?;
    assert_eq!(world.system.instances().await?.len(), 3);

    // Back to what is allowed: a new generation, accepted.
    world.edit("desired_nodes=90", "desired_nodes=2")?;
    world.apply(2).await?;

    // prevent_destroy.
    world.edit("owner=\"ops\",", "owner=\"ops\", prevent_destroy=True,")?;
    world.apply(2).await?;
    let declarations = std::fs::read_to_string(world.declarations().join("features.py"))?;
    std::fs::write(world.declarations().join("features.py"), "")?;
    let run = world.outstation(&["apply", ".", "--confirm-destroy", "1"])?;
    assert_ne!(run.code, 0, "{run}");
    assert!(run.stderr.contains("prevent_destroy"), "{run}");
    assert_eq!(world.system.instances().await?.len(), 2);

    // Without it, an empty declaration still needs a person's word.
    std::fs::write(world.declarations().join("features.py"), &declarations)?;
    world.edit(" prevent_destroy=True,", "")?;
    world.apply(2).await?;
    std::fs::write(world.declarations().join("features.py"), "")?;
    let run = world.outstation(&["plan", "."])?;
    assert_eq!(run.code, 2, "{run}");
    assert!(run.stdout.contains("- transform") && run.stdout.contains("delay_tsg"), "{run}");
    for arguments in [&["apply", "."][..], &["apply", ".", "--yes"]] {
        let run = world.outstation(arguments)?;
        assert_ne!(run.code, 0, "{run}");
        assert_eq!(world.system.instances().await?.len(), 2, "nothing was emptied");
    }
    let run = world.outstation(&["apply", ".", "--confirm-destroy", "1", "--timeout", "120"])?;
    assert_eq!(run.code, 0, "{run}\n{}", world.system.log_tails(20));
    assert!(world.system.instances().await?.is_empty());

    // And it can come back: the generation goes on rising.
    std::fs::write(world.declarations().join("features.py"), &declarations)?;
    world.edit(" prevent_destroy=True,", "")?;
    world.apply(2).await?;
    world.system.shutdown().await
}

/// What the account's people say in `guardrails/` counts at once, and a refusal stays one.
#[tokio::test(flavor = "multi_thread")]
async fn the_accounts_own_people_have_the_last_word() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("guardrails").await?;
    world.edit(NODES, "desired_nodes=2")?;
    world.apply(2).await?;
    let path = world.system.layout().guardrails();
    let allowed = std::fs::read_to_string(&path)?;
    let rule = |wanted: &'static str| {
        move |group: &outstation_cli::view::GroupView| {
            group.status.as_ref().is_some_and(|s| s.held.iter().any(|held| held.rule == wanted))
        }
    };

    // A destroy that was refused does not happen by itself when the rule is loosened.
    std::fs::write(&path, allowed.replace("destroy = \"allow\"", "destroy = \"never\""))?;
    let run = world.outstation(&["destroy", "delay_tsg", "--yes", "--confirm-destroy", "1"])?;
    assert_eq!(run.code, 1, "{run}");
    assert!(
        run.stdout.contains("destroy = \"never\"") || run.stderr.contains("destroy = \"never\""),
        "{run}"
    );
    std::fs::write(&path, &allowed)?;
    world.system.kill(ServiceName::AccountAgent)?;
    // Two heartbeats of the new session and more looks than that at the account.
    let group = world
        .system
        .wait_group(&world.group, LONG, |group| {
            group.status.as_ref().is_some_and(|status| status.ready_nodes == 2)
        })
        .await?;
    assert!(group.refused.is_some(), "{group:?}");
    assert_eq!(world.system.instances().await?.len(), 2);

    // A pause holds counts and code alike, and says so; its end lets both go.
    world.edit("desired_nodes=2", "desired_nodes=3")?;
    world.edit("planned = _minutes(", "planned = 0.0 * _minutes(")?;
    std::fs::write(&path, format!("pause = true\n{allowed}"))?;
    let run = world.outstation(&["apply", ".", "--no-wait"])?;
    assert_eq!(run.code, 0, "{run}");
    let group = world.system.wait_group(&world.group, LONG, rule("pause")).await?;
    let status = group.status.context("a status")?;
    let bundles: std::collections::BTreeSet<_> =
        status.nodes.iter().map(|node| node.bundle.clone()).collect();
    assert_eq!((status.nodes.len(), bundles.len()), (2, 1), "{status:?}");
    let new = match &group.intent {
        outstation_protocol::order::Intent::Apply(spec) => spec.bundle.to_string(),
        outstation_protocol::order::Intent::Destroy => panic!("it was applied"),
    };
    assert!(!bundles.contains(&Some(new)), "new code in spite of the pause: {status:?}");

    // Broken: everything is held, with the place of the mistake in one line.
    std::fs::write(&path, allowed.replace("destroy = \"allow\"", "destroy = \"deny\""))?;
    let group = world.system.wait_group(&world.group, LONG, rule("guardrails")).await?;
    let held = &group.status.context("a status")?.held[0];
    assert!(held.message.contains("line ") && !held.message.contains('\n'), "{held:?}");

    std::fs::write(&path, &allowed)?;
    world.ready(3).await?;
    // As ordered: nothing to do, and it says so with success.
    let run = world.outstation(&["apply", "."])?;
    assert_eq!(run.code, 0, "{run}");
    world.system.shutdown().await
}

/// `destroy = "approve"`: the group serves on until its end is approved, as the held reason says how.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_waits_for_approval_by_the_accounts_people() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("approvals").await?;
    world.edit(NODES, "desired_nodes=1")?;
    world.apply(1).await?;
    let departures = world.departures()?;
    let rows = world.rows(&departures[..100]).await?;
    let path = world.system.layout().guardrails();
    let allowed = std::fs::read_to_string(&path)?;
    std::fs::write(&path, allowed.replace("destroy = \"allow\"", "destroy = \"approve\""))?;
    let confirmed = ["destroy", "delay_tsg", "--yes", "--confirm-destroy", "1", "--no-wait"];
    let run = world.outstation(&confirmed)?;
    assert_eq!(run.code, 0, "{run}");

    let waits = |group: &GroupView| {
        let held = group.status.iter().flat_map(|status| &status.held);
        held.into_iter().any(|held| held.rule == "destroy")
    };
    let waiting = world.system.wait_group(&world.group, LONG, waits).await?;
    let described = world.outstation(&["describe", "delay_tsg"])?;
    for words in
        ["it waits for approval", "guardrails/approvals/delay_tsg.json", "\"generation\":2"]
    {
        assert!(described.stdout.contains(words), "{words}: {described}");
    }
    // Nothing has changed for whoever calls, however late they come.
    let caller = world.caller().await?;
    let load = Load::start(&caller, &rows, 1);
    load.pass(100).await?;
    let (_, failures) = load.stop().await?;
    assert!(failures.is_empty(), "{failures:?}");

    let status = waiting.status.context("awaited above")?;
    let hint = &status.held[0].hint;
    let approval = hint.split_once(".json: ").and_then(|(_, rest)| rest.split_once(" and a name"));
    let (approval, _) = approval.context("what has to be written")?;
    let folder = path.with_file_name("approvals");
    std::fs::create_dir(&folder)?;
    let file = folder.join("delay_tsg.json");
    std::fs::write(&file, approval)?;
    let refused = |group: &GroupView| {
        let held = group.status.iter().flat_map(|status| &status.held);
        held.into_iter().any(|held| held.message.contains("the approval is none: who"))
    };
    world.system.wait_group(&world.group, LONG, refused).await.context("nobody's name")?;
    assert_eq!(world.system.instances().await?.len(), 1);

    std::fs::write(&file, approval.replace("\"who\":\"\"", "\"who\":\"ann@example\""))?;
    let gone = |group: &GroupView| group.has_converged(group.generation);
    world.system.wait_group(&world.group, LONG, gone).await.context(world.system.log_tails(20))?;
    assert!(world.system.instances().await?.is_empty());
    assert!(world.system.sim().groups().await?.is_empty());
    world.system.shutdown().await
}

/// `changes_per_hour`: what is beyond waits and says until when, also after a restart of the agent.
#[tokio::test(flavor = "multi_thread")]
async fn changes_that_come_too_fast_wait_and_are_not_lost() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("change-rate").await?;
    let path = world.system.layout().guardrails();
    let free = std::fs::read_to_string(&path)?;
    std::fs::write(&path, format!("changes_per_hour = 1\n{free}"))?;
    world.edit(NODES, "desired_nodes=1")?;
    world.apply(1).await?;
    world.edit("desired_nodes=1", "desired_nodes=2")?;
    let run = world.outstation(&["apply", ".", "--timeout", "60"])?;
    assert_eq!(run.code, 1, "{run}");
    let described = world.outstation(&["describe", "delay_tsg"])?;
    for words in
        ["changes_per_hour of the account's guardrails; the next is due at 20", "by itself"]
    {
        assert!(described.stdout.contains(words), "{words}: {described}");
    }

    world.system.kill(ServiceName::AccountAgent)?;
    let log = || std::fs::read_to_string(world.system.log(ServiceName::AccountAgent));
    let restarts = log()?.matches("ChangeRate").count();
    let deadline = tokio::time::Instant::now() + LONG;
    while log()?.matches("ChangeRate").count() == restarts {
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "it does not ask again");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let group = world.system.admin().await?.group(&world.group).await?;
    assert_eq!(group.accepted.context("the first one")?.generation.0, 1);

    std::fs::write(&path, format!("changes_per_hour = 2\n{free}"))?;
    world.ready(2).await?;
    world.system.shutdown().await
}

#[test]
fn a_null_is_a_value_of_no_kind() {
    // The assertion on `regional` above depends on it.
    assert_eq!(outstation_api::transform::Value::default().kind, None::<Kind>);
}
