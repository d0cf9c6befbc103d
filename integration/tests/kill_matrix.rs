//! Each part of the system is killed while calls run, then pairs of them. Each comes back by
//! itself; at most the calls in flight on what died are lost, each with a clear status.

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use outstation_cli::dev::ServiceName;
use outstation_integration::parts::{Part, assert_census, census, recovered, strike};
use outstation_integration::{LONG, Load, ONE_AT_A_TIME, World, number};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

const NODES: u32 = 3;
/// Calls in flight at any time.
const LANES: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_killed_comes_back_and_only_calls_in_flight_there_are_lost() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("kill-matrix").await?;
    world.apply(NODES).await?;
    let departures = world.departures()?;
    let rows = world.rows(&departures[..500]).await?;
    let caller = world.caller().await?;
    let watch = world.watch();

    let singles = Part::ALL.map(|part| vec![part]);
    let pairs = [
        vec![Part::Broker, Part::AccountAgent],
        vec![Part::AccountAgent, Part::NodeAgent],
        vec![Part::NodeAgent, Part::TransformServer],
        vec![Part::Instance, Part::Broker],
        vec![Part::Instance, Part::AccountAgent],
        vec![Part::Worker, Part::NodeAgent],
    ];
    for parts in singles.into_iter().chain(pairs) {
        let load = Load::start(&caller, &rows, LANES);
        load.pass(100).await?;
        let mut struck = Vec::new();
        for part in &parts {
            struck.push((*part, strike(&world, *part).await?));
        }
        recovered(&world, &struck, NODES).await.with_context(|| format!("after {parts:?}"))?;
        load.pass(100).await?;
        let (calls, failures) = load.stop().await?;
        let lost_max = LANES * parts.iter().filter(|part| part.serves()).count();
        assert!(
            failures.len() <= lost_max,
            "{parts:?}: {} of {calls} lost: {failures:#?}",
            failures.len()
        );
        for failure in &failures {
            let clear = failure.starts_with("Unavailable: ") || failure.starts_with("Aborted: ");
            assert!(clear, "{parts:?}: {failure}");
        }
        println!("{parts:?}: {} of {calls} calls lost {failures:?}", failures.len());
    }
    watch.end().await?;
    world.system.shutdown().await
}

/// One random part after the other. The suite strikes 20 times; `OUTSTATION_KILLS=200` is the
/// documented longer run, and `OUTSTATION_SEED` repeats one.
#[tokio::test(flavor = "multi_thread")]
async fn random_kills_in_a_row_leave_nothing_behind() -> Result<()> {
    let kills = number("OUTSTATION_KILLS").unwrap_or(20);
    let seed = number("OUTSTATION_SEED").unwrap_or(0x5eed);
    println!("OUTSTATION_SEED={seed} OUTSTATION_KILLS={kills} cargo nextest run random_kills");
    let mut random = StdRng::seed_from_u64(seed);

    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("random-kills").await?;
    world.apply(NODES).await?;
    let departures = world.departures()?;
    let rows = world.rows(&departures[..500]).await?;
    let caller = world.caller().await?;
    let load = Load::start(&caller, &rows, LANES);
    let state = world.system.layout().state.clone();
    let before = census(&state);
    let watch = world.watch();
    for kill in 1..=kills {
        let part = Part::ALL[random.random_range(0..Part::ALL.len())];
        load.pass(random.random_range(1..50)).await?;
        let struck = [(part, strike(&world, part).await?)];
        recovered(&world, &struck, NODES)
            .await
            .with_context(|| format!("kill {kill}: {part:?}"))?;
    }
    let (calls, failures) = load.stop().await?;
    let lost_max = LANES * usize::try_from(kills)?;
    assert!(failures.len() <= lost_max, "{} of {calls} lost: {failures:?}", failures.len());
    for failure in &failures {
        let clear = failure.starts_with("Unavailable: ") || failure.starts_with("Aborted: ");
        assert!(clear, "{failure}");
    }
    println!("{kills} kills: {} of {calls} calls lost", failures.len());
    assert_census(&state, &before).await;
    watch.end().await?;
    world.system.shutdown().await
}

/// The simulated AWS stops for a while: an outage, not a loss. Nobody who calls notices; the status
/// says what is wrong and then that it is over.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_aws_is_told_and_costs_no_call() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("outage").await?;
    world.apply(NODES).await?;
    let departures = world.departures()?;
    let rows = world.rows(&departures[..500]).await?;
    let caller = world.caller().await?;
    let load = Load::start(&caller, &rows, LANES);
    load.pass(100).await?;

    world.system.signal(ServiceName::AwsSim, Signal::SIGSTOP)?;
    let told = world
        .system
        .wait_group(&world.group, LONG, |group| {
            group.status.as_ref().is_some_and(|status| status.held.iter().any(|h| h.rule == "aws"))
        })
        .await;
    world.system.signal(ServiceName::AwsSim, Signal::SIGCONT)?;
    told.context("the outage shows in the status")?;
    world
        .system
        .wait_group(&world.group, LONG, |group| {
            group.status.as_ref().is_some_and(|s| s.held.is_empty() && s.phase == "READY")
        })
        .await
        .context("and so does its end")?;
    let (calls, failures) = load.stop().await?;
    assert!(failures.is_empty(), "{} of {calls} lost: {failures:?}", failures.len());
    world.system.shutdown().await
}
