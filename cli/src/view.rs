//! A group as the broker knows it: desired next to answered next to observed, parsed once.

use anyhow::Context as _;
use serde::Serialize;

use outstation_api::admin;
use outstation_protocol::envelope::Envelope;
use outstation_protocol::ids::{Digest, Generation, GroupName};
use outstation_protocol::order::{Intent, Order};

use crate::plan::Newest;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupView {
    pub name: GroupName,
    pub generation: Generation,
    pub digest: Digest,
    pub put_at_unix_secs: u64,
    /// The newest order's.
    pub intent: Intent,
    pub accepted: Option<Answer>,
    pub refused: Option<Refused>,
    pub converged: Option<Answer>,
    pub status: Option<Status>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    pub generation: Generation,
    pub at_unix_secs: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Refused {
    pub generation: Generation,
    pub at_unix_secs: u64,
    pub rule: String,
    pub message: String,
    pub hint: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    pub phase: String,
    pub desired_nodes: u32,
    pub observed_nodes: u32,
    pub ready_nodes: u32,
    pub reason: String,
    pub phase_since_unix_secs: u64,
    pub reported_at_unix_secs: u64,
    pub held: Vec<Held>,
    pub drift: Vec<Drift>,
    pub nodes: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Held {
    pub generation: Option<u64>,
    pub rule: String,
    pub message: String,
    pub hint: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drift {
    pub change: String,
    pub repaired: bool,
    pub at_unix_secs: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Node {
    pub instance: String,
    pub phase: String,
    pub endpoint: Option<String>,
    pub bundle: Option<String>,
    pub reason: Option<String>,
    pub since_unix_secs: u64,
}

impl GroupView {
    pub fn newest(&self) -> Newest {
        let refused = self
            .refused
            .as_ref()
            .filter(|refused| refused.generation == self.generation)
            .map(|refused| format!("{}: {}", refused.rule, refused.message));
        Newest {
            generation: self.generation,
            digest: self.digest,
            intent: self.intent.clone(),
            refused,
        }
    }

    /// Whether the account has done what `generation` or a later one says.
    pub fn has_converged(&self, generation: Generation) -> bool {
        self.converged.as_ref().is_some_and(|converged| converged.generation >= generation)
    }

    pub fn refusal_of(&self, generation: Generation) -> Option<&Refused> {
        self.refused.as_ref().filter(|refused| refused.generation == generation)
    }

    pub fn is_tombstone(&self) -> bool {
        match self.intent {
            Intent::Apply(_) => false,
            Intent::Destroy => true,
        }
    }

    /// In one word; before the agent has reported, what is known without it.
    pub fn phase(&self) -> &str {
        match &self.status {
            Some(status) => &status.phase,
            None => "PENDING",
        }
    }
}

impl TryFrom<admin::Group> for GroupView {
    type Error = anyhow::Error;

    fn try_from(group: admin::Group) -> anyhow::Result<GroupView> {
        let envelope = Envelope::from_json(&group.envelope)
            .with_context(|| format!("read the newest order of {:?}", group.name))?;
        let order = Order::from_envelope(&envelope)
            .with_context(|| format!("read the newest order of {:?}", group.name))?;
        let answer =
            |generation, at_unix_secs| Answer { generation: Generation(generation), at_unix_secs };
        Ok(GroupView {
            // From the order itself, not from what the broker says about it.
            name: order.group,
            generation: order.generation,
            digest: envelope.digest(),
            put_at_unix_secs: group.put_at_unix_secs,
            intent: order.intent,
            accepted: group.accepted.map(|a| answer(a.generation, a.at_unix_secs)),
            converged: group.converged.map(|c| answer(c.generation, c.at_unix_secs)),
            refused: group.refused.map(|refused| Refused {
                generation: Generation(refused.generation),
                at_unix_secs: refused.at_unix_secs,
                rule: refused.rule,
                message: refused.message,
                hint: refused.hint,
            }),
            status: group.status.map(Status::from),
        })
    }
}

impl From<admin::GroupStatus> for Status {
    fn from(status: admin::GroupStatus) -> Status {
        Status {
            phase: status.phase,
            desired_nodes: status.desired_nodes,
            observed_nodes: status.observed_nodes,
            ready_nodes: status.ready_nodes,
            reason: status.reason,
            phase_since_unix_secs: status.phase_since_unix_secs,
            reported_at_unix_secs: status.reported_at_unix_secs,
            held: status
                .held
                .into_iter()
                .map(|held| Held {
                    generation: held.generation,
                    rule: held.rule,
                    message: held.message,
                    hint: held.hint,
                })
                .collect(),
            drift: status
                .drift
                .into_iter()
                .map(|drift| Drift {
                    change: drift.change,
                    repaired: drift.repaired,
                    at_unix_secs: drift.at_unix_secs,
                })
                .collect(),
            nodes: status
                .nodes
                .into_iter()
                .map(|node| Node {
                    instance: node.instance,
                    phase: node.phase,
                    endpoint: node.endpoint,
                    bundle: node.bundle,
                    reason: node.reason,
                    since_unix_secs: node.since_unix_secs,
                })
                .collect(),
        }
    }
}
