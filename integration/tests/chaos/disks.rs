//! Disks without room, while the system runs: the broker's, the account store's, the agent's own.

use anyhow::Result;
use outstation_cli::dev::ServiceName;
use outstation_integration::faults::{Fault, Place};
use outstation_integration::parts::{Part, is_alive, strike};
use outstation_integration::{LONG, ONE_AT_A_TIME};

use crate::{Day, LANES, NODES, lost_at_most, until};

const AGENT: ServiceName = ServiceName::AccountAgent;
const LIVE: &str = "control link live";
const NOT_STORED: &str = "answers cannot be stored";
const CONNECTED: &str = " connected agent=";

#[tokio::test(flavor = "multi_thread")]
async fn full_disks_are_told_once_and_heal_by_themselves() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let day = Day::begin("full-disks", 4).await?;
    let world = &day.world;
    let load = day.load();

    // The broker's: statuses flow and cannot be stored. The session goes on.
    let live = day.said(AGENT, LIVE);
    world.small_disk(Place::BrokerState).await?;
    day.says(AGENT, LIVE, live).await?;
    world.ready(NODES).await?;
    let (live, connected) = (day.said(AGENT, LIVE), day.said(ServiceName::Broker, CONNECTED));
    let full = Fault::Fill(Place::BrokerState).begin(world).await?;
    let dead = strike(world, Part::Instance).await?;
    day.says(ServiceName::Broker, NOT_STORED, 0).await?;
    until("the dead instance's successor", || async {
        let instances = world.system.instances().await?;
        let serving = instances.iter().filter(|i| i.lifecycle_state == "InService").count();
        Ok(!is_alive(dead) && serving == NODES as usize)
    })
    .await?;
    day.caller.wait_for_endpoints(NODES as usize, LONG).await?;
    world.edit("desired_nodes=3", "desired_nodes=2")?;
    let run = world.outstation(&["apply", "."])?;
    assert_eq!(run.code, 1, "{run}");
    let says = ["error: ", "the broker's disk is full: nothing was stored", "hint: make room"];
    assert!(says.iter().all(|words| run.stderr.contains(words)), "{run}");
    let run = world.outstation(&["get"])?;
    assert_eq!(run.code, 0, "what is known can be read: {run}");
    full.end(world, NODES).await?;
    day.says(ServiceName::Broker, "answers are stored again", 0).await?;
    world.apply(2).await?;
    assert_eq!(day.said(ServiceName::Broker, NOT_STORED), 1, "once, not at every try");
    assert_eq!(day.said(AGENT, LIVE), live, "the same session all the while");
    assert_eq!(day.said(ServiceName::Broker, CONNECTED), connected);

    // The account store's: what cannot be written down is not accepted, also after a restart of the
    // agent; it happens by itself when there is room.
    let full = Fault::Fill(Place::Ledger).begin(world).await?;
    world.edit("desired_nodes=2", "desired_nodes=3")?;
    let run = world.outstation(&["apply", ".", "--timeout", "60"])?;
    assert_eq!(run.code, 1, "{run}");
    let told = format!("{}{}", run.stdout, run.stderr);
    let says = ["refused by account_store", "No space left on device", "hint: look at state/"];
    assert!(says.iter().all(|words| told.contains(words)), "{run}");
    let live = day.said(AGENT, LIVE);
    strike(world, Part::AccountAgent).await?;
    day.says(AGENT, LIVE, live).await?;
    let instances = world.system.instances().await?;
    assert_eq!(instances.len(), 2, "nothing was done: {instances:?}");
    full.end(world, 2).await?;
    world.ready(NODES).await?;

    // The agent's own: it goes on, with what it would need after a restart only.
    let full = Fault::Fill(Place::AgentState).begin(world).await?;
    let agent = world.system.pid(AGENT);
    strike(world, Part::Instance).await?;
    day.says(AGENT, "the nodes were not written down", 0).await?;
    world.ready(NODES).await?;
    world.edit("desired_nodes=3", "desired_nodes=2")?;
    world.apply(2).await?;
    full.end(world, 2).await?;
    world.edit("desired_nodes=2", "desired_nodes=3")?;
    world.apply(NODES).await?;
    assert_eq!(world.system.pid(AGENT), agent, "it never stopped");
    lost_at_most(load, 2 * LANES).await?;
    day.end().await
}
