//! Parts that stand still and go on later, as on a machine that swaps: SIGSTOP and SIGCONT.

use anyhow::Result;
use outstation_integration::ONE_AT_A_TIME;
use outstation_integration::faults::{Fault, Ongoing};
use outstation_integration::parts::{Part, is_alive, pids};

use crate::{Day, LANES, NODES, lost_at_most, until};

/// Failures in a row that make the client leave an endpoint alone.
const EJECT_AFTER: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_stands_still_for_a_while_costs_no_call_and_goes_on() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let day = Day::begin("stops", 1).await?;
    let world = &day.world;

    for part in [Part::Broker, Part::AccountAgent, Part::NodeAgent] {
        let before = pids(world, part).await?;
        let load = day.load();
        load.pass(50).await?;
        let stopped = Fault::Stop(part).begin(world).await?;
        load.pass(1000).await?;
        stopped.end(world, NODES).await?;
        world.ready(NODES).await?;
        load.pass(50).await?;
        lost_at_most(load, 0).await?;
        assert_eq!(pids(world, part).await?, before, "{part:?} is the same process");
    }

    // A command meets a broker that takes its connection and says nothing.
    let stopped = Fault::Stop(Part::Broker).begin(world).await?;
    let run = world.outstation(&["get"])?;
    stopped.end(world, NODES).await?;
    assert_eq!(run.code, 1, "{run}");
    assert!(run.stderr.contains("error: ") && run.stderr.contains("hint: "), "{run}");

    // A server that takes calls and answers none: the others serve on. Whoever called it is answered
    // at the deadline, it is left alone after three of those, and its node agent replaces it.
    let load = day.load();
    load.pass(50).await?;
    let stopped = Fault::Stop(Part::TransformServer).begin(world).await?;
    let Ongoing::Stopped(pid) = stopped else { anyhow::bail!("{stopped:?}") };
    load.pass(200).await?;
    until("the stopped server to be replaced", || async {
        let servers = pids(world, Part::TransformServer).await?;
        Ok(!is_alive(pid) && servers.len() == NODES as usize)
    })
    .await?;
    world.ready(NODES).await?;
    load.pass(200).await?;
    lost_at_most(load, LANES + EJECT_AFTER).await?;
    day.end().await
}
