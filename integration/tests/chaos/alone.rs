//! Static stability: with the broker or the account agent gone, the account goes on by itself.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use outstation_cli::dev::ServiceName;
use outstation_integration::faults::Fault;
use outstation_integration::parts::{Part, is_alive, pids, strike};
use outstation_integration::{LONG, ONE_AT_A_TIME};

use crate::{Day, LANES, NODES, lost_at_most, until};

const AGENT: ServiceName = ServiceName::AccountAgent;
/// A departure, as the README calls with it.
const ROW: &str = r#"{"distance": 1400, "air_time": 227, "carrier": "UA",
    "scheduled_departure": "2013-01-01T10:15:00Z", "scheduled_arrival": "2013-01-01T14:19:00Z"}"#;

impl Day {
    /// Instances that serve as far as AWS knows.
    async fn in_service(&self) -> Result<BTreeSet<String>> {
        let instances = self.world.system.instances().await?;
        let serving = instances.into_iter().filter(|i| i.lifecycle_state == "InService");
        Ok(serving.map(|instance| instance.instance_id).collect())
    }

    /// Waits until callers use exactly the instances in service, `nodes` of them.
    async fn serving(&self, nodes: usize) -> Result<BTreeSet<String>> {
        until(&format!("{nodes} nodes that serve"), || async {
            let used = self.caller.wait_for_endpoints(nodes, LONG).await?;
            let used: BTreeSet<String> = used.into_iter().collect();
            Ok(used.len() == nodes && used == self.in_service().await?)
        })
        .await?;
        self.in_service().await
    }

    async fn desired(&self) -> Result<u32> {
        let groups = self.world.system.sim().groups().await?;
        Ok(groups.first().context("the group")?.desired)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_broker_everything_in_the_account_goes_on() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let day = Day::begin("no-broker", 2).await?;
    let world = &day.world;
    let load = day.load();
    load.pass(50).await?;
    let by_hand = |sizes: &str| -> Result<()> {
        let group = "AutoScalingGroupName='outstation-delay_tsg'";
        let run = world.by_hand(&format!("update_auto_scaling_group({group}, {sizes})"))?;
        anyhow::ensure!(run.code == 0, "{run}");
        Ok(())
    };

    world.system.hold(ServiceName::Broker).await;
    // An instance dies and is replaced; the new one enrolls, serves, and callers hear of it.
    let first = day.serving(NODES as usize).await?;
    strike(world, Part::Instance).await?;
    until("a new instance", || async {
        Ok(day.in_service().await?.difference(&first).count() == 1)
    })
    .await?;
    let second = day.serving(NODES as usize).await?;
    assert_eq!(second.intersection(&first).count(), NODES as usize - 1);

    // The account agent knows by now that it is alone, also after a restart.
    day.says(AGENT, "no control link", 0).await?;
    let connected = day.said(AGENT, "node connected");
    let agent = strike(world, Part::AccountAgent).await?;
    until("the account agent to come back", || async {
        Ok(!is_alive(agent) && world.system.pid(AGENT).is_some())
    })
    .await?;
    day.says(AGENT, "node connected", connected + NODES as usize - 1).await?;

    // More than ordered is not taken away while nobody can ask; it serves.
    by_hand("MaxSize=5, DesiredCapacity=5")?;
    day.serving(5).await?;
    // Less than ordered is repaired, after the drain of what the hand took away.
    let drained = day.said(AGENT, "drained");
    by_hand("MinSize=1, DesiredCapacity=2")?;
    day.says(AGENT, "drained", drained + 2).await?;
    let repaired = day.serving(NODES as usize).await?;
    assert_eq!(day.desired().await?, NODES);
    // And more again, for the end of the outage. The new nodes have made the agent look.
    by_hand("MaxSize=5, DesiredCapacity=5")?;
    assert!(day.serving(5).await?.is_superset(&repaired));
    assert_eq!(day.desired().await?, 5, "capacity is not lowered without the broker");

    // Afterwards it is told, and only then what was too much goes.
    world.system.release(ServiceName::Broker);
    let group = world
        .system
        .wait_group(&world.group, LONG, |group| {
            group.status.as_ref().is_some_and(|status| {
                let counts = [status.desired_nodes, status.observed_nodes, status.ready_nodes];
                counts == [NODES; 3] && !status.drift.is_empty()
            })
        })
        .await
        .with_context(|| world.system.log_tails(20))?;
    let drift = group.status.context("a status")?.drift;
    let told = drift.iter().find(|d| d.change.contains("desired capacity 3 -> 5"));
    assert!(told.is_some_and(|drift| drift.repaired), "{drift:?}");
    day.serving(NODES as usize).await?;
    lost_at_most(load, LANES).await?;
    day.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_account_agent_nodes_and_callers_go_on_as_they_were() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let day = Day::begin("no-account-agent", 3).await?;
    let world = &day.world;
    let running = || async {
        let mut running = Vec::new();
        for part in [Part::Broker, Part::NodeAgent, Part::TransformServer, Part::Worker] {
            running.push((part, pids(world, part).await?));
        }
        anyhow::Ok(running)
    };
    let before = running().await?;
    let load = day.load();
    load.pass(50).await?;
    let connected = day.said(AGENT, "node connected");

    world.system.hold(AGENT).await;
    // Every node has noticed, and goes on.
    let noticed = || async {
        let logs = std::fs::read_dir(world.system.layout().state.join("aws-sim/instances"))?;
        let mut noticed = 0;
        for entry in logs {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let log = std::fs::read_to_string(&path)?;
                noticed += usize::from(log.contains("without the account agent; the node goes on"));
            }
        }
        Ok(noticed == NODES as usize)
    };
    until("every node to notice that the account agent is away", noticed).await?;
    load.pass(200).await?;
    assert_eq!(running().await?, before, "nothing restarts because of it");
    // What dies meanwhile on a node, the node repairs.
    let worker = strike(world, Part::Worker).await?;
    let workers = before.iter().find(|(part, _)| *part == Part::Worker).map_or(0, |(_, p)| p.len());
    until("a new worker", || async {
        let now = pids(world, Part::Worker).await?;
        Ok(!now.contains(&worker) && now.len() == workers)
    })
    .await?;
    // Somebody new cannot learn where the servers are, and is told so: the proxy in between takes the
    // connection and has nobody to pass it on to.
    let run = world.outstation(&["call", "delay", "--declarations", ".", "--row", ROW])?;
    assert_eq!(run.code, 1, "{run}");
    assert!(run.stderr.contains("error: endpoints of delay_tsg: UNAVAILABLE: "), "{run}");
    assert!(run.stderr.contains("[callers] in the context"), "{run}");

    let before = running().await?;
    world.system.release(AGENT);
    day.says(AGENT, "node connected", connected + NODES as usize - 1).await?;
    world.ready(NODES).await?;
    load.pass(200).await?;
    assert_eq!(running().await?, before, "nobody is disturbed by its return");
    // It works as before: what dies is replaced.
    let ongoing = Fault::Kill(Part::NodeAgent).begin(world).await?;
    ongoing.end(world, NODES).await?;
    lost_at_most(load, 1).await?;
    day.end().await
}
