//! Any fault after any other, drawn from a seed or named.

use anyhow::{Context as _, Result};
use outstation_integration::faults::Fault;
use outstation_integration::parts::census;
use outstation_integration::{ONE_AT_A_TIME, number};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::{Day, LANES, NODES, lost_at_most};

/// The suite draws six; `OUTSTATION_FAULTS=200` is the longer run, `OUTSTATION_SEED` repeats one, and
/// `OUTSTATION_FAULT="stop worker"` names the only one to draw.
#[tokio::test(flavor = "multi_thread")]
async fn any_fault_at_any_moment_passes() -> Result<()> {
    let faults = number("OUTSTATION_FAULTS").unwrap_or(6);
    let seed = number("OUTSTATION_SEED").unwrap_or(0x5eed);
    let named: Option<Fault> =
        std::env::var("OUTSTATION_FAULT").ok().map(|name| name.parse()).transpose()?;
    println!("OUTSTATION_SEED={seed} OUTSTATION_FAULTS={faults} cargo nextest run any_fault");
    let mut random = StdRng::seed_from_u64(seed);

    let _turn = ONE_AT_A_TIME.lock().await;
    let day = Day::begin("any-fault", seed).await?;
    let world = &day.world;
    let state = world.system.layout().state.clone();
    let before = census(&state);
    let load = day.load();
    let mut lost_max = 0;
    for number in 1..=faults {
        let drawn = Fault::drawn(&mut random);
        let fault = named.unwrap_or(drawn);
        let during = random.random_range(10..300);
        load.pass(random.random_range(1..50)).await?;
        println!("{number}: {fault}, for {during} calls");
        let one = async {
            let ongoing = fault.begin(world).await?;
            load.pass(during).await?;
            ongoing.end(world, NODES).await?;
            world.ready(NODES).await
        };
        one.await.with_context(|| format!("fault {number}: {fault}"))?;
        lost_max += if fault.hits_calls() { LANES } else { 0 };
    }
    world.ready(NODES).await?;
    lost_at_most(load, lost_max).await?;
    crate::until("as many processes of each program as before", || async {
        Ok(census(&state) == before)
    })
    .await?;
    day.end().await
}
