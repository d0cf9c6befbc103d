//! Both ends of the control link as state machines: messages, answers and time in, outputs out.
//!
//! Level-triggered in both directions. The broker names its desired set by a hash and the agent
//! names its answers by one; whoever finds a difference asks for the whole. So nothing depends on
//! any single message having arrived, and only the newest unsent value of anything is kept.

mod agent;
mod broker;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use agent::{AgentConfig, AgentOutput, AgentSession, Verdict};
pub use broker::{BrokerConfig, BrokerOutput, BrokerSession};

use crate::ids::{Digest, Generation, GroupName};
use crate::status::GroupStatus;
use crate::v1::{Refusal, ToBroker};

/// The newest order of every group, tombstones included. A group that is missing here is not
/// deleted by that: only a tombstone deletes.
pub type DesiredSet = BTreeMap<GroupName, (Generation, Digest)>;

pub fn set_hash(set: &DesiredSet) -> Digest {
    hash(set)
}

/// The newest answers about one group: what the agent stands by, and what the broker recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    pub accepted: Option<(Generation, Digest)>,
    pub refused: Option<(Generation, Digest, Refusal)>,
    /// Generation, and digest of the observed state.
    pub converged: Option<(Generation, Digest)>,
    pub status: Option<GroupStatus>,
}

pub type Reports = BTreeMap<GroupName, Answers>;

pub fn reports_hash(reports: &Reports) -> Digest {
    hash(reports)
}

fn hash<T: Serialize>(value: &T) -> Digest {
    Digest::of(&postcard::to_stdvec(value).expect("maps of plain values always serialize"))
}

/// One answer about one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub group: GroupName,
    pub answer: Answer,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Accepted { generation: Generation, digest: Digest },
    Refused { generation: Generation, digest: Digest, reason: Refusal },
    Converged { generation: Generation, observed: Digest },
    Status(GroupStatus),
}

/// Answers leave in this order: what was decided before how it looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum AnswerKind {
    Accepted,
    Refused,
    Converged,
    Status,
}

impl Answer {
    fn kind(&self) -> AnswerKind {
        match self {
            Answer::Accepted { .. } => AnswerKind::Accepted,
            Answer::Refused { .. } => AnswerKind::Refused,
            Answer::Converged { .. } => AnswerKind::Converged,
            Answer::Status(_) => AnswerKind::Status,
        }
    }
}

impl Report {
    /// Puts this answer in place of the older one of its kind. True if that changed anything.
    pub fn record(self, reports: &mut Reports) -> bool {
        let answers = reports.entry(self.group).or_default();
        match self.answer {
            Answer::Accepted { generation, digest } => {
                // An accepted order ends the refusal of an older or equal one.
                if answers.refused.as_ref().is_some_and(|(refused, ..)| *refused <= generation) {
                    answers.refused = None;
                }
                replace(&mut answers.accepted, (generation, digest))
            }
            Answer::Refused { generation, digest, reason } => {
                replace(&mut answers.refused, (generation, digest, reason))
            }
            Answer::Converged { generation, observed } => {
                replace(&mut answers.converged, (generation, observed))
            }
            Answer::Status(status) => replace(&mut answers.status, status),
        }
    }

    /// Whether it is the newest of its kind there.
    fn stands_in(&self, reports: &Reports) -> bool {
        let Some(answers) = reports.get(&self.group) else { return false };
        match &self.answer {
            Answer::Accepted { generation, digest } => {
                answers.accepted == Some((*generation, *digest))
            }
            Answer::Refused { generation, digest, reason } => {
                answers.refused.as_ref().is_some_and(|refused| {
                    (&refused.0, &refused.1, &refused.2) == (generation, digest, reason)
                })
            }
            Answer::Converged { generation, observed } => {
                answers.converged == Some((*generation, *observed))
            }
            Answer::Status(status) => answers.status.as_ref() == Some(status),
        }
    }

    fn into_message(self) -> ToBroker {
        let group = self.group;
        match self.answer {
            Answer::Accepted { generation, digest } => {
                ToBroker::Accepted { group, generation, digest }
            }
            Answer::Refused { generation, digest, reason } => {
                ToBroker::Refused { group, generation, digest, reason }
            }
            Answer::Converged { generation, observed } => {
                ToBroker::Converged { group, generation, observed }
            }
            Answer::Status(status) => ToBroker::Status { group, status },
        }
    }
}

/// Answers on their way, the newest of each group and kind.
type Unsent = BTreeMap<(GroupName, AnswerKind), Report>;

/// Answers leave by kind and not by age, so an acceptance takes along the refusal that it ended.
fn put_unsent(unsent: &mut Unsent, report: Report) {
    if let Answer::Accepted { generation, .. } = &report.answer {
        let key = (report.group.clone(), AnswerKind::Refused);
        let ended = unsent.get(&key).is_some_and(|older| match &older.answer {
            Answer::Refused { generation: refused, .. } => refused <= generation,
            Answer::Accepted { .. } | Answer::Converged { .. } | Answer::Status(_) => false,
        });
        if ended {
            unsent.remove(&key);
        }
    }
    unsent.insert((report.group.clone(), report.answer.kind()), report);
}

fn replace<T: PartialEq>(slot: &mut Option<T>, value: T) -> bool {
    if slot.as_ref() == Some(&value) {
        return false;
    }
    *slot = Some(value);
    true
}

/// Envelopes on their way at one time: 8 × 192 KiB is what a session may hold in memory.
const ENVELOPES_IN_FLIGHT_MAX: usize = 8;

/// Whatever the broker says, the agent speaks at least every ten minutes and at most every second.
pub const HEARTBEAT_MAX: Duration = Duration::from_secs(600);
pub const HEARTBEAT_MIN: Duration = Duration::from_secs(1);
