//! Everything that a test can do to a running system, by name: `kill broker`, `stop node-agent`,
//! `cut control`, `bad nodes`, `fill ledger`. Each begins, lasts as long as the test wants, and ends.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use outstation_cli::dev::ServiceName;
use rand::Rng;

use crate::World;
use crate::fate::{Condition, Disturbance};
use crate::parts::{self, Part};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL. It is over at once; what follows is the system's own doing.
    Kill(Part),
    /// SIGSTOP, and SIGCONT at the end: a machine that swaps, a debugger, a live migration.
    Stop(Part),
    /// A black hole.
    Cut(Line),
    /// Loses, repeats, reorders and delays ([`Disturbance::TENTH`]).
    Disturb(Line),
    /// No room left on a disk.
    Fill(Place),
}

/// A link of [`crate::links::Links`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    Control,
    Nodes,
    Admin,
    Callers,
    Aws,
}

/// A folder that is written while the system runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    BrokerState,
    /// `state/` of the account store.
    Ledger,
    AgentState,
}

impl Place {
    pub fn folder(self, world: &World) -> PathBuf {
        let layout = world.system.layout();
        match self {
            Place::BrokerState => layout.state.join("broker"),
            Place::Ledger => layout.store().join("state"),
            Place::AgentState => layout.state.join("agent"),
        }
    }

    pub fn written_by(self) -> ServiceName {
        match self {
            Place::BrokerState => ServiceName::Broker,
            Place::Ledger | Place::AgentState => ServiceName::AccountAgent,
        }
    }
}

/// Each with its name. An instance's launcher is not stopped: its processes would run on.
const NAMES: [(&str, Fault); 24] = [
    ("kill worker", Fault::Kill(Part::Worker)),
    ("kill transform-server", Fault::Kill(Part::TransformServer)),
    ("kill node-agent", Fault::Kill(Part::NodeAgent)),
    ("kill instance", Fault::Kill(Part::Instance)),
    ("kill account-agent", Fault::Kill(Part::AccountAgent)),
    ("kill broker", Fault::Kill(Part::Broker)),
    ("stop worker", Fault::Stop(Part::Worker)),
    ("stop transform-server", Fault::Stop(Part::TransformServer)),
    ("stop node-agent", Fault::Stop(Part::NodeAgent)),
    ("stop account-agent", Fault::Stop(Part::AccountAgent)),
    ("stop broker", Fault::Stop(Part::Broker)),
    ("cut control", Fault::Cut(Line::Control)),
    ("cut nodes", Fault::Cut(Line::Nodes)),
    ("cut admin", Fault::Cut(Line::Admin)),
    ("cut callers", Fault::Cut(Line::Callers)),
    ("cut aws", Fault::Cut(Line::Aws)),
    ("bad control", Fault::Disturb(Line::Control)),
    ("bad nodes", Fault::Disturb(Line::Nodes)),
    ("bad admin", Fault::Disturb(Line::Admin)),
    ("bad callers", Fault::Disturb(Line::Callers)),
    ("bad aws", Fault::Disturb(Line::Aws)),
    ("fill broker-state", Fault::Fill(Place::BrokerState)),
    ("fill ledger", Fault::Fill(Place::Ledger)),
    ("fill agent-state", Fault::Fill(Place::AgentState)),
];

impl Fault {
    pub fn all() -> impl Iterator<Item = Fault> {
        NAMES.iter().map(|(_, fault)| *fault)
    }

    pub fn drawn(random: &mut impl Rng) -> Fault {
        NAMES[random.random_range(0..NAMES.len())].1
    }

    /// Whether calls may be in flight where it strikes.
    pub fn hits_calls(self) -> bool {
        match self {
            Fault::Kill(part) | Fault::Stop(part) => part.serves(),
            Fault::Cut(_) | Fault::Disturb(_) | Fault::Fill(_) => false,
        }
    }

    pub async fn begin(self, world: &World) -> Result<Ongoing> {
        match self {
            Fault::Kill(part) => {
                let pid = parts::strike(world, part).await?;
                Ok(Ongoing::Killed(part, pid))
            }
            Fault::Stop(part) => {
                let pid = parts::victim(world, part).await?;
                parts::signal(pid, Signal::SIGSTOP)?;
                Ok(Ongoing::Stopped(pid))
            }
            Fault::Cut(line) => {
                line.set(world, Condition::Cut);
                Ok(Ongoing::Link(line))
            }
            Fault::Disturb(line) => {
                line.set(world, Condition::Bad(Disturbance::TENTH));
                Ok(Ongoing::Link(line))
            }
            Fault::Fill(place) => {
                world.small_disk(place).await?;
                world.disks.lock().await[&place].fill()?;
                Ok(Ongoing::Full(place))
            }
        }
    }
}

impl Line {
    pub fn set(self, world: &World, condition: Condition) {
        let links = world.links();
        match self {
            Line::Control => links.control.set(condition),
            Line::Nodes => links.nodes.set(condition),
            Line::Admin => links.admin.set(condition),
            Line::Callers => links.callers.set(condition),
            Line::Aws => links.aws.set(condition),
        }
    }
}

/// A fault that has begun.
#[derive(Debug)]
#[must_use]
pub enum Ongoing {
    Killed(Part, u32),
    Stopped(u32),
    Link(Line),
    Full(Place),
}

impl Ongoing {
    /// Takes the fault away and waits until what died is there again; that all is as ordered is
    /// another question.
    pub async fn end(self, world: &World, nodes: u32) -> Result<()> {
        match self {
            Ongoing::Killed(part, pid) => parts::recovered(world, &[(part, pid)], nodes).await,
            // It may have been replaced meanwhile: then there is nothing to wake.
            Ongoing::Stopped(pid) if !parts::is_alive(pid) => Ok(()),
            Ongoing::Stopped(pid) => parts::signal(pid, Signal::SIGCONT),
            Ongoing::Link(line) => {
                line.set(world, Condition::Clear);
                Ok(())
            }
            Ongoing::Full(place) => world.disks.lock().await[&place].free(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, fault)| fault == self) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{self:?}"),
        }
    }
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Fault> {
        let found = NAMES.iter().find(|(known, _)| *known == name).map(|(_, fault)| *fault);
        found.with_context(|| {
            let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            format!("no fault is named {name:?}; there are: {}", names.join(", "))
        })
    }
}

impl World {
    /// Puts a small disk under `place`, unless it has one. Whoever writes there is away meanwhile.
    pub async fn small_disk(&self, place: Place) -> Result<()> {
        let mut disks = self.disks.lock().await;
        if disks.contains_key(&place) {
            return Ok(());
        }
        let service = place.written_by();
        self.system.hold(service).await;
        let mounted = crate::disk::SmallDisk::mount_over(&place.folder(self));
        self.system.release(service);
        disks.insert(place, mounted?);
        drop(disks);
        let deadline = tokio::time::Instant::now() + crate::LONG;
        while self.system.pid(service).is_none() {
            if tokio::time::Instant::now() > deadline {
                bail!("{service:?} did not start on its small disk");
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_known_by_its_name() {
        for fault in Fault::all() {
            assert_eq!(fault.to_string().parse::<Fault>().expect("its own name"), fault);
        }
        let unknown = "kill moon".parse::<Fault>().expect_err("no such part").to_string();
        assert!(unknown.contains("kill broker"), "{unknown}");
    }
}
