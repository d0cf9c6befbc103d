//! What must hold at any moment, whatever fails: looked at again and again while a test does its
//! worst. The rules are DESIGN's: generations only rise, nothing goes without a tombstone, no count
//! is above the guardrails. Pure; [`Watch`] does the looking.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use outstation_cli::dev::{DevGuardrails, Sim, SimGroup};
use outstation_protocol::order::Order;
use outstation_protocol::{Digest, Envelope, Generation, GroupName};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What the account store and AWS say at one moment.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    pub ledger: BTreeMap<GroupName, Head>,
    pub groups: BTreeMap<String, SimGroup>,
}

/// The newest order of a group in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub generation: Generation,
    pub digest: Digest,
    pub tombstone: bool,
}

/// What was seen so far, against which the next sample is held.
#[derive(Debug)]
pub struct Invariants {
    guardrails: DevGuardrails,
    last: Sample,
    samples: u64,
}

impl Invariants {
    pub fn new(guardrails: DevGuardrails) -> Invariants {
        Invariants { guardrails, last: Sample::default(), samples: 0 }
    }

    /// Everything that is wrong with this sample.
    pub fn look(&mut self, sample: Sample) -> Vec<String> {
        let mut broken = Vec::new();
        for (group, before) in &self.last.ledger {
            match sample.ledger.get(group) {
                None => broken.push(format!("{group} is gone from the ledger")),
                Some(now) if now.generation < before.generation => broken.push(format!(
                    "{group} fell from generation {} to {}",
                    before.generation, now.generation
                )),
                Some(now) if now.generation == before.generation && now.digest != before.digest => {
                    broken
                        .push(format!("{group} has other bytes at generation {}", now.generation));
                }
                Some(_) => {}
            }
        }
        for name in self.last.groups.keys().filter(|name| !sample.groups.contains_key(*name)) {
            let explained = sample.ledger.iter().any(|(group, head)| {
                let before = self.last.ledger.get(group).map_or(0, |head| head.generation.0);
                // Of two orders since, the first may have been a tombstone.
                asg_name(group) == *name && (head.tombstone || head.generation.0 >= before + 2)
            });
            if !explained {
                broken.push(format!("{name} was deleted without a tombstone"));
            }
        }
        let DevGuardrails { nodes_per_group_max, nodes_total_max, .. } = self.guardrails;
        for group in sample.groups.values() {
            if group.desired > nodes_per_group_max {
                let desired = group.desired;
                broken
                    .push(format!("{}: {desired} nodes, above {nodes_per_group_max}", group.name));
            }
        }
        let total: u32 = sample.groups.values().map(|group| group.desired).sum();
        if total > nodes_total_max {
            broken.push(format!("{total} nodes in all, above {nodes_total_max}"));
        }
        self.last = sample;
        self.samples += 1;
        broken
    }
}

fn asg_name(group: &GroupName) -> String {
    format!("outstation-{group}")
}

/// The heads in the account store. A file that cannot be read is an error: readers see old or new.
pub fn ledger(store: &Path) -> Result<BTreeMap<GroupName, Head>> {
    let mut heads = BTreeMap::new();
    let folder = store.join("state/orders");
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(heads),
        Err(error) => return Err(error).context("list the ledger"),
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some(group) = name.to_str().and_then(|name| name.strip_suffix(".json")) else {
            continue;
        };
        let json = std::fs::read(folder.join(&name)).context("read the ledger")?;
        let envelope = Envelope::from_json(&json).with_context(|| format!("{name:?}"))?;
        let order = Order::from_envelope(&envelope).with_context(|| format!("{name:?}"))?;
        let head = Head {
            generation: order.generation,
            digest: envelope.digest(),
            tombstone: order.is_tombstone(),
        };
        heads.insert(GroupName::try_from(group)?, head);
    }
    Ok(heads)
}

/// Between two looks: short against anything that the system does.
const EVERY: Duration = Duration::from_millis(100);
/// More of the same says nothing new.
const BROKEN_MAX: usize = 20;

/// Looks until it is ended.
pub struct Watch {
    looking: JoinHandle<(u64, Vec<String>)>,
    stop: CancellationToken,
    _guard: DropGuard,
}

impl Watch {
    /// While the simulated AWS is stopped nothing is looked at.
    pub fn start(store: PathBuf, guardrails: DevGuardrails, sim: Sim) -> Watch {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let looking = tokio::spawn(async move {
            let mut invariants = Invariants::new(guardrails);
            let mut broken = Vec::new();
            while !stopped.is_cancelled() {
                if let Ok(groups) = sim.groups().await {
                    // AWS first: what it has lost by now, the ledger must explain.
                    let groups =
                        groups.into_iter().map(|group| (group.name.clone(), group)).collect();
                    match ledger(&store) {
                        Ok(ledger) => broken.extend(invariants.look(Sample { ledger, groups })),
                        Err(error) => broken.push(format!("{error:#}")),
                    }
                    broken.truncate(BROKEN_MAX);
                }
                let _ = tokio::time::timeout(EVERY, stopped.cancelled()).await;
            }
            (invariants.samples, broken)
        });
        Watch { looking, stop: stop.clone(), _guard: stop.drop_guard() }
    }

    /// Ends the looking; an error if anything was ever broken.
    pub async fn end(self) -> Result<()> {
        self.stop.cancel();
        let (samples, broken) = self.looking.await.context("the watch")?;
        if !broken.is_empty() {
            bail!("broken in {samples} looks: {broken:#?}");
        }
        anyhow::ensure!(samples > 0, "the watch never saw anything");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(heads: &[(&str, u64, &[u8], bool)], groups: &[(&str, u32)]) -> Sample {
        Sample {
            ledger: heads
                .iter()
                .map(|(group, generation, bytes, tombstone)| {
                    let head = Head {
                        generation: Generation(*generation),
                        digest: Digest::of(bytes),
                        tombstone: *tombstone,
                    };
                    (GroupName::try_from(*group).expect("valid"), head)
                })
                .collect(),
            groups: groups
                .iter()
                .map(|(group, desired)| {
                    let name = format!("outstation-{group}");
                    (name.clone(), SimGroup { name, desired: *desired, instances: *desired })
                })
                .collect(),
        }
    }

    fn check(before: &Sample, after: Sample, wanted: &[&str]) {
        let guardrails =
            DevGuardrails { nodes_per_group_max: 5, nodes_total_max: 8, ..Default::default() };
        let mut invariants = Invariants::new(guardrails);
        assert_eq!(invariants.look(before.clone()), Vec::<String>::new());
        assert_eq!(invariants.look(after), wanted);
    }

    #[test]
    fn each_rule_is_seen_to_be_broken() {
        let before = sample(&[("a", 2, b"2", false)], &[("a", 3)]);
        check(&before, before.clone(), &[]);
        check(&before, sample(&[("a", 3, b"3", false)], &[("a", 5)]), &[]);
        check(&before, sample(&[("a", 3, b"3", true)], &[]), &[]);
        check(
            &before,
            sample(&[("a", 2, b"2", false)], &[]),
            &["outstation-a was deleted without a tombstone"],
        );
        check(
            &before,
            sample(&[("a", 1, b"1", false)], &[("a", 3)]),
            &["a fell from generation 2 to 1"],
        );
        check(
            &before,
            sample(&[("a", 2, b"other", false)], &[("a", 3)]),
            &["a has other bytes at generation 2"],
        );
        check(&before, sample(&[], &[("a", 3)]), &["a is gone from the ledger"]);
        check(
            &before,
            sample(&[("a", 2, b"2", false)], &[("a", 6), ("b", 3)]),
            &["outstation-a: 6 nodes, above 5", "9 nodes in all, above 8"],
        );
    }
}
