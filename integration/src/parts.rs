//! The parts of a running system as processes: which they are, how one is struck, and that it has
//! come back.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outstation_cli::dev::ServiceName;

use crate::{LONG, World, processes};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Worker,
    /// Of an instance's workers, which end with it.
    WarmParent,
    TransformServer,
    NodeAgent,
    Instance,
    AccountAgent,
    Broker,
}

impl Part {
    pub const ALL: [Part; 7] = [
        Part::Worker,
        Part::WarmParent,
        Part::TransformServer,
        Part::NodeAgent,
        Part::Instance,
        Part::AccountAgent,
        Part::Broker,
    ];

    /// Whether calls may be in flight there when it is struck.
    pub fn serves(self) -> bool {
        match self {
            Part::Worker | Part::WarmParent | Part::TransformServer | Part::Instance => true,
            Part::NodeAgent | Part::AccountAgent | Part::Broker => false,
        }
    }

    /// What its command line, and no other, has in it; a launcher has none of its own.
    fn words(self) -> Option<&'static str> {
        match self {
            Part::Worker => Some("[worker]"),
            Part::WarmParent => Some("[warm-parent]"),
            Part::TransformServer => Some("outstation-transform-server --listen"),
            Part::NodeAgent => Some("outstation-agent node"),
            Part::AccountAgent => Some("outstation-agent account"),
            Part::Broker => Some("outstation-broker"),
            Part::Instance => None,
        }
    }
}

/// All processes of this part, as they run now.
pub async fn pids(world: &World, part: Part) -> Result<Vec<u32>> {
    match (part, part.words()) {
        (Part::Broker, _) => Ok(world.system.pid(ServiceName::Broker).into_iter().collect()),
        (Part::AccountAgent, _) => {
            Ok(world.system.pid(ServiceName::AccountAgent).into_iter().collect())
        }
        (_, Some(words)) => {
            let found = processes(&world.system.layout().state);
            let of_part = found.iter().filter(|(_, command)| command.contains(words));
            Ok(of_part.map(|(pid, _)| *pid).collect())
        }
        (_, None) => {
            let instances = world.system.instances().await?;
            Ok(instances.iter().filter_map(|instance| instance.launcher_pid).collect())
        }
    }
}

/// One process of this part; an error while there is none.
pub async fn victim(world: &World, part: Part) -> Result<u32> {
    let pids = pids(world, part).await?;
    pids.first().copied().with_context(|| format!("no {part:?} runs"))
}

pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(pid)?), signal).with_context(|| format!("signal {pid}"))
}

/// SIGKILL for one process of this part; which it was.
pub async fn strike(world: &World, part: Part) -> Result<u32> {
    let pid = victim(world, part).await?;
    signal(pid, Signal::SIGKILL)?;
    Ok(pid)
}

/// What died is gone, another is in its place, and the group is as ordered.
pub async fn recovered(world: &World, struck: &[(Part, u32)], nodes: u32) -> Result<()> {
    let deadline = tokio::time::Instant::now() + LONG;
    for (part, dead) in struck {
        loop {
            // `victim` fails while there is none.
            if victim(world, *part).await.is_ok_and(|pid| pid != *dead) && !is_alive(*dead) {
                break;
            }
            if tokio::time::Instant::now() > deadline {
                bail!("{part:?} has not come back\n{}", world.system.log_tails(20));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    // Readiness of before the kill must not count: the account agent has to have heard of it.
    world.ready(nodes).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.ready(nodes).await
}

pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("").starts_with('Z'))
}

/// Waits until as many processes of each program run as before: what replaces a worker takes a moment.
pub async fn assert_census(state: &Path, before: &BTreeMap<String, u32>) {
    let deadline = tokio::time::Instant::now() + LONG;
    while census(state) != *before && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(census(state), *before, "as many processes of each program as before");
}

/// How many processes of each program a system has.
pub fn census(state: &Path) -> BTreeMap<String, u32> {
    let mut census = BTreeMap::new();
    for command in processes(state).into_values() {
        let program = command.split_whitespace().next().unwrap_or_default().to_owned();
        *census.entry(program).or_insert(0) += 1;
    }
    census
}
