//! What this machine tells: CPU times of a process and all that it started; and what it is told:
//! which core a process runs on.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Lets the calling thread, and whatever it starts from now on, run on these cores only.
pub fn pin(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core).context("no such core")?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).context("pin to a core")
}

/// Runs `start` with the calling thread on these cores, so that a process started in it stays there.
pub fn pinned<T>(cores: &[usize], start: impl FnOnce() -> T) -> Result<T> {
    let before = sched_getaffinity(Pid::from_raw(0)).context("ask for the cores")?;
    pin(cores)?;
    let started = start();
    sched_setaffinity(Pid::from_raw(0), &before).context("unpin")?;
    Ok(started)
}

struct Stat {
    parent: u32,
    /// Its own time, and that of children it has waited for, in ticks.
    ticks: u64,
}

/// CPU time of a process, of all that it started, and of those of them that have ended and were
/// waited for.
pub fn cpu_of(pid: u32) -> Duration {
    let all = processes();
    let ticks: u64 = tree_of(pid, &all).iter().map(|pid| all[pid].ticks).sum();
    from_ticks(ticks)
}

pub fn own_cpu() -> Duration {
    let stat = read(std::process::id());
    from_ticks(stat.map_or(0, |stat| stat.ticks))
}

/// The process and everything below it that is alive.
pub fn descendants(pid: u32) -> Vec<u32> {
    tree_of(pid, &processes())
}

/// Those below the process that have started nothing themselves: of a server, its workers.
pub fn leaves(pid: u32) -> Vec<u32> {
    let all = processes();
    let mut found = tree_of(pid, &all);
    found.retain(|own| *own != pid && all.values().all(|stat| stat.parent != *own));
    found
}

/// Open descriptors of a process.
pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Memory of a process in KiB: what only it has, and its share of all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    pub private_kib: u64,
    pub share_kib: u64,
}

pub fn memory(pid: u32) -> Memory {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let mut memory = Memory::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(Ok(kib))) = (words.next(), words.next().map(str::parse::<u64>))
        else {
            continue;
        };
        match name {
            "Private_Clean:" | "Private_Dirty:" => memory.private_kib += kib,
            "Pss:" => memory.share_kib = kib,
            _ => {}
        }
    }
    memory
}

fn tree_of(root: u32, all: &BTreeMap<u32, Stat>) -> Vec<u32> {
    let mut found: Vec<u32> = all.contains_key(&root).then_some(root).into_iter().collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        found.extend(all.iter().filter(|(_, stat)| stat.parent == parent).map(|(pid, _)| *pid));
    }
    found
}

fn processes() -> BTreeMap<u32, Stat> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, read(pid)?))).collect()
}

fn read(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; fields count from behind it.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = (11..15).map(number).sum::<Option<u64>>()?;
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks })
}

fn from_ticks(ticks: u64) -> Duration {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}
