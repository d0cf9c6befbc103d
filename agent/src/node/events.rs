//! What the node's machine is told and what it answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use outstation_protocol::v1::{Artifacts, NodeState};
use serde::{Deserialize, Serialize};

/// One server process, counted through the life of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServerId(pub u64);

/// One try to fetch and verify; what comes of an abandoned one is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt(pub u64);

/// What a server cannot evaluate, and why: it answers whoever calls that with an error.
pub type Broken = Arc<BTreeMap<String, String>>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A server of an earlier life of this agent is still alive.
    Adopted {
        server: ServerId,
        port: u16,
        artifacts: Artifacts,
    },
    /// What this node shall serve from now on.
    Target(Artifacts),
    Fetched(Attempt),
    Verified(Attempt),
    PreparationFailed {
        attempt: Attempt,
        reason: String,
    },
    /// Its health check says SERVING.
    Healthy {
        server: ServerId,
        broken: Broken,
    },
    /// Its health check says something else, or nothing.
    Ailing {
        server: ServerId,
        reason: String,
    },
    /// The process is gone, or was never there.
    Exited {
        server: ServerId,
        reason: String,
    },
    /// AutoScaling wants the instance gone.
    Terminating,
    /// The account agent has told callers.
    Withdrawn,
    /// [`Machine::next_timeout`] has come.
    Timeout,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Fetch {
        attempt: Attempt,
        artifacts: Artifacts,
    },
    Verify {
        attempt: Attempt,
        artifacts: Artifacts,
    },
    Start {
        server: ServerId,
        port: u16,
        artifacts: Artifacts,
    },
    /// Let calls in flight end (SIGTERM).
    Drain(ServerId),
    Kill(ServerId),
    /// What the account agent shall know.
    Report(NodeState),
    /// Nothing is in flight any more: the instance may end.
    Drained,
}
