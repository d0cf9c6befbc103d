//! What the processes of a system hold: memory, descriptors, threads; and whether that has grown.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::processes;

/// What kind of process it is, whichever one does that at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The callers, and all of this test.
    Test,
    SimulatedAws,
    /// Of an instance: outside and inside its namespace.
    Launcher,
    Broker,
    AccountAgent,
    NodeAgent,
    TransformServer,
    WarmParent,
    Worker,
}

impl Role {
    fn of_command(command: &str) -> Option<Role> {
        let has = |words: &str| command.contains(words);
        if has("[worker]") {
            Some(Role::Worker)
        } else if has("[warm-parent]") {
            Some(Role::WarmParent)
        } else if has("outstation-transform-server --listen") {
            Some(Role::TransformServer)
        } else if has("outstation-agent node") {
            Some(Role::NodeAgent)
        } else if has("outstation-agent account") {
            Some(Role::AccountAgent)
        } else if has("outstation-broker") {
            Some(Role::Broker)
        } else if has("aws-sim serve") {
            Some(Role::SimulatedAws)
        } else if has("aws-sim") {
            Some(Role::Launcher)
        } else {
            None
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// What it has allocated itself (RssAnon): the mapped program counts for nothing.
    pub private_kib: u64,
    pub descriptors: u64,
    pub threads: u64,
}

impl Usage {
    /// `None` if the process is gone.
    fn of(pid: u32) -> Option<Usage> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some(Usage { private_kib: number("RssAnon:")?, descriptors, threads: number("Threads:")? })
    }

    fn max(self, other: Usage) -> Usage {
        Usage {
            private_kib: self.private_kib.max(other.private_kib),
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
        }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Usage { private_kib, descriptors, threads } = self;
        write!(f, "{private_kib} KiB, {descriptors} descriptors, {threads} threads")
    }
}

/// By process, so that a survivor is compared with itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Measured(BTreeMap<(Role, u32), Usage>);

impl Measured {
    pub fn now(state: &Path) -> Measured {
        let mut found = BTreeMap::new();
        for (pid, command) in processes(state) {
            if let Some(role) = Role::of_command(&command)
                && let Some(usage) = Usage::of(pid)
            {
                found.insert((role, pid), usage);
            }
        }
        let own = std::process::id();
        found.extend(Usage::of(own).map(|usage| ((Role::Test, own), usage)));
        Measured(found)
    }

    /// The most that any process of each role holds.
    pub fn by_role(&self) -> BTreeMap<Role, Usage> {
        let mut most: BTreeMap<Role, Usage> = BTreeMap::new();
        for ((role, _), usage) in &self.0 {
            let entry = most.entry(*role).or_default();
            *entry = entry.max(*usage);
        }
        most
    }

    /// What is above `before` by more than `slack`: each survivor against itself, everybody else
    /// against the most that one of its role held.
    pub fn grown(&self, before: &Measured, slack: Slack) -> Vec<String> {
        let roles = before.by_role();
        let mut grown = Vec::new();
        for ((role, pid), now) in &self.0 {
            let own = before.0.get(&(*role, *pid));
            let Some(was) = own.or_else(|| roles.get(role)) else { continue };
            if !slack.allows(*was, *now) {
                let whose = if own.is_some() { "its own" } else { "its role's" };
                grown.push(format!("{role:?} {pid}: {now}; {whose} before: {was}"));
            }
        }
        grown
    }

    /// How many processes of `before` are still there.
    pub fn survivors(&self, before: &Measured) -> BTreeMap<Role, usize> {
        let mut survivors = BTreeMap::new();
        for (role, _) in before.0.keys().filter(|key| self.0.contains_key(key)) {
            *survivors.entry(*role).or_insert(0) += 1;
        }
        survivors
    }
}

/// How much more is no growth.
#[derive(Debug, Clone, Copy)]
pub struct Slack {
    pub private_kib: u64,
    pub descriptors: u64,
    pub threads: u64,
}

impl Slack {
    fn allows(&self, before: Usage, now: Usage) -> bool {
        now.private_kib <= before.private_kib + self.private_kib
            && now.descriptors <= before.descriptors + self.descriptors
            && now.threads <= before.threads + self.threads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(entries: &[(Role, u32, u64)]) -> Measured {
        let usage = |kib| Usage { private_kib: kib, descriptors: 10, threads: 4 };
        Measured(entries.iter().map(|(role, pid, kib)| ((*role, *pid), usage(*kib))).collect())
    }

    #[test]
    fn a_survivor_is_held_against_itself_and_a_newcomer_against_its_role() {
        let slack = Slack { private_kib: 50, descriptors: 1, threads: 1 };
        let before = measured(&[(Role::Worker, 1, 100), (Role::Worker, 2, 200)]);
        let grown = |now: &[(Role, u32, u64)]| measured(now).grown(&before, slack).len();
        assert_eq!(grown(&[(Role::Worker, 1, 150), (Role::Worker, 2, 250)]), 0);
        assert_eq!(grown(&[(Role::Worker, 1, 151), (Role::Worker, 2, 251)]), 2);
        assert_eq!(grown(&[(Role::Worker, 3, 250)]), 0, "no more than the most before");
        assert_eq!(grown(&[(Role::Worker, 3, 251)]), 1);
        let mut now = before.clone();
        now.0.get_mut(&(Role::Worker, 1)).expect("there").descriptors = 12;
        assert_eq!(now.grown(&before, slack).len(), 1);
    }

    #[test]
    fn this_process_is_measured() {
        let dir = tempfile::tempdir().expect("a folder");
        let roles = Measured::now(dir.path()).by_role();
        let own = roles[&Role::Test];
        assert!(own.private_kib > 0 && own.descriptors >= 3 && own.threads >= 1, "{own}");
    }
}
