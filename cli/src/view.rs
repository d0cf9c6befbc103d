//! A group as the broker knows it: desired next to answered next to observed, parsed once.

use std::fmt;

use anyhow::{Context as _, bail};
use serde::Serialize;

use outstation_api::admin;
use outstation_protocol::envelope::Envelope;
use outstation_protocol::ids::{Digest, Generation, GroupName};
use outstation_protocol::order::{Intent, Order};

use crate::plan::Newest;
use crate::signing::{Signed, Trust};

/// Which order of a group: every line about one names both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OrderId {
    pub generation: Generation,
    pub digest: Digest,
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {} {}", self.generation, self.digest.short())
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupView {
    pub name: GroupName,
    pub generation: Generation,
    pub digest: Digest,
    pub put_at_unix_secs: u64,
    /// The newest order's.
    pub intent: Intent,
    /// The newest order, as the broker gave it.
    #[serde(skip)]
    pub envelope: Envelope,
    /// Who has signed the order that is shown, once somebody has looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed: Option<Signed>,
    pub accepted: Option<Accepted>,
    /// What was accepted, if that is not the newest order and the broker has it.
    pub accepted_order: Option<AcceptedOrder>,
    pub refused: Option<Refused>,
    pub converged: Option<Answer>,
    pub status: Option<Status>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Accepted {
    pub generation: Generation,
    pub digest: Digest,
    pub at_unix_secs: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AcceptedOrder {
    pub put_at_unix_secs: u64,
    pub intent: Intent,
    #[serde(skip)]
    pub envelope: Envelope,
}

/// The order that the account acts on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InForce<'a> {
    pub order: OrderId,
    /// What it says and when it was put; none if this broker does not have it.
    pub known: Option<(&'a Intent, u64)>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    pub generation: Generation,
    pub at_unix_secs: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Refused {
    pub generation: Generation,
    pub digest: Digest,
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
    /// 0 when the broker does not know.
    pub since_unix_secs: u64,
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
    pub fn newest(&self, trust: &Trust) -> Newest {
        let refused = self
            .refusal_of(self.generation)
            .map(|refused| format!("{}: {}", refused.rule, refused.message));
        let present = match self.accepted_order.as_ref().map(|order| &order.intent) {
            Some(Intent::Apply(spec)) => Some(spec.clone()),
            Some(Intent::Destroy) | None => None,
        };
        Newest {
            generation: self.generation,
            digest: self.digest,
            intent: self.intent.clone(),
            refused,
            present,
            signed: trust.judge(&self.envelope),
        }
    }

    /// Looks at the signatures of the order that is shown; unknown if this broker lacks it.
    pub fn look_at_signatures(&mut self, trust: &Trust) {
        let shown = self.shown().order;
        let accepted = self.accepted_order.as_ref().map(|order| &order.envelope);
        let envelope = if shown == self.newest_order() { Some(&self.envelope) } else { accepted };
        self.signed = envelope.map(|envelope| trust.judge(envelope));
    }

    pub fn newest_order(&self) -> OrderId {
        OrderId { generation: self.generation, digest: self.digest }
    }

    /// What the account acts on; nothing as long as it has accepted nothing.
    pub fn in_force(&self) -> Option<InForce<'_>> {
        let Accepted { generation, digest, .. } = *self.accepted.as_ref()?;
        let order = OrderId { generation, digest };
        let known = if order == self.newest_order() {
            Some((&self.intent, self.put_at_unix_secs))
        } else {
            self.accepted_order.as_ref().map(|order| (&order.intent, order.put_at_unix_secs))
        };
        Some(InForce { order, known })
    }

    /// The order whose spec is shown: the one in force, and before there is any the newest.
    pub fn shown(&self) -> InForce<'_> {
        self.in_force().unwrap_or(InForce {
            order: self.newest_order(),
            known: Some((&self.intent, self.put_at_unix_secs)),
        })
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
        match (&self.status, &self.accepted) {
            (Some(status), _) => &status.phase,
            // The agent has started again and has not looked at the account yet.
            (None, Some(_)) => "UNKNOWN",
            (None, None) => "PENDING",
        }
    }
}

impl TryFrom<admin::Group> for GroupView {
    type Error = anyhow::Error;

    fn try_from(group: admin::Group) -> anyhow::Result<GroupView> {
        let (envelope, order) = read_order(&group.envelope)
            .with_context(|| format!("read the newest order of {:?}", group.name))?;
        let accepted = group.accepted.map(|accepted| {
            anyhow::Ok(Accepted {
                generation: Generation(accepted.generation),
                digest: Digest::try_from(accepted.digest.as_str())?,
                at_unix_secs: accepted.at_unix_secs,
            })
        });
        let accepted = accepted.transpose().context("read what was accepted")?;
        let accepted_order = match (&accepted, group.accepted_order) {
            (Some(accepted), Some(raw)) => {
                let (envelope, order) = read_order(&raw.envelope)
                    .with_context(|| format!("read the accepted order of {:?}", group.name))?;
                if envelope.digest() != accepted.digest {
                    bail!("the broker shows another order of {:?} than was accepted", group.name);
                }
                let intent = order.intent;
                let put_at_unix_secs = raw.put_at_unix_secs;
                Some(AcceptedOrder { put_at_unix_secs, intent, envelope })
            }
            (None, _) | (_, None) => None,
        };
        let refused = group.refused.map(|refused| {
            anyhow::Ok(Refused {
                generation: Generation(refused.generation),
                digest: Digest::try_from(refused.digest.as_str())?,
                at_unix_secs: refused.at_unix_secs,
                rule: refused.rule,
                message: refused.message,
                hint: refused.hint,
            })
        });
        Ok(GroupView {
            // From the order itself, not from what the broker says about it.
            name: order.group,
            generation: order.generation,
            digest: envelope.digest(),
            put_at_unix_secs: group.put_at_unix_secs,
            intent: order.intent,
            envelope,
            signed: None,
            accepted,
            accepted_order,
            converged: group.converged.map(|converged| Answer {
                generation: Generation(converged.generation),
                at_unix_secs: converged.at_unix_secs,
            }),
            refused: refused.transpose().context("read what was refused")?,
            status: group.status.map(Status::from),
        })
    }
}

fn read_order(envelope: &[u8]) -> anyhow::Result<(Envelope, Order)> {
    let envelope = Envelope::from_json(envelope)?;
    let order = Order::from_envelope(&envelope)?;
    Ok((envelope, order))
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
                    since_unix_secs: held.since_unix_secs,
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
