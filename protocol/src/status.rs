//! What is observed, as it travels and as it is shown. Part of wire version 1, so frozen as
//! `v1` is: the golden bytes hold these types too.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Generation, InstanceId};

/// Where a group stands, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum GroupPhase {
    /// Accepted, nothing done yet, or held before anything could be done.
    Pending,
    Creating,
    Updating,
    /// As declared, and every node ready.
    Ready,
    /// As declared, but fewer nodes ready than desired.
    Degraded,
    Deleting,
    Deleted,
    Error,
}

impl fmt::Display for GroupPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GroupPhase::Pending => "PENDING",
            GroupPhase::Creating => "CREATING",
            GroupPhase::Updating => "UPDATING",
            GroupPhase::Ready => "READY",
            GroupPhase::Degraded => "DEGRADED",
            GroupPhase::Deleting => "DELETING",
            GroupPhase::Deleted => "DELETED",
            GroupPhase::Error => "ERROR",
        })
    }
}

/// Something that was asked for and is not done, with the rule that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The generation that is held, if an order is (rather than a repair).
    pub generation: Option<Generation>,
    /// A short name of the rule, such as `nodes_per_group_max`.
    pub rule: String,
    /// What was wanted and why not.
    pub message: String,
    /// Who can change that rule, and where.
    pub hint: String,
}

/// A difference that came from outside, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// For instance `desired capacity 3 -> 5`.
    pub change: String,
    pub repaired: bool,
    pub at_unix_secs: u64,
}

/// A node's way from launch to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodePhase {
    /// Known to AutoScaling; its node agent has not been heard yet.
    Booting,
    Fetching,
    Verifying,
    Warming,
    Ready,
    /// Its server or agent reports trouble.
    Unhealthy,
    Draining,
    Gone,
}

impl fmt::Display for NodePhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NodePhase::Booting => "booting",
            NodePhase::Fetching => "fetching",
            NodePhase::Verifying => "verifying",
            NodePhase::Warming => "warming",
            NodePhase::Ready => "ready",
            NodePhase::Unhealthy => "unhealthy",
            NodePhase::Draining => "draining",
            NodePhase::Gone => "gone",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub instance: InstanceId,
    pub phase: NodePhase,
    /// `address:port` of its server, once it has one.
    pub endpoint: Option<String>,
    pub bundle: Option<Digest>,
    /// Why it is in this phase, when that is not obvious.
    pub reason: Option<String>,
    /// Of the phase; 0 when nobody knows.
    pub since_unix_secs: u64,
}

/// What the account agent tells of a group: desired next to observed, and why they differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    pub phase: GroupPhase,
    pub desired_nodes: u32,
    /// Instances that the AutoScaling group has, whatever their state.
    pub observed_nodes: u32,
    pub ready_nodes: u32,
    /// One line that says why the phase is what it is.
    pub reason: String,
    pub phase_since_unix_secs: u64,
    pub held: Vec<Held>,
    /// Newest first, at most [`DRIFT_ENTRIES_MAX`].
    pub drift: Vec<Drift>,
    /// At most [`NODE_ENTRIES_MAX`]; the counts above are always whole.
    pub nodes: Vec<NodeStatus>,
}

/// Enough to see a pattern; the journal keeps the rest.
pub const DRIFT_ENTRIES_MAX: usize = 8;
/// A status stays well below one frame: an entry is at most about 400 bytes.
pub const NODE_ENTRIES_MAX: usize = 200;
