//! The parts of the machine's state: each stage owns what belongs to it.

use std::time::Instant;

use outstation_protocol::v1::Artifacts;

use super::events::{Attempt, Broken, ServerId};

pub(super) struct Serving {
    pub server: ServerId,
    pub port: u16,
    pub artifacts: Artifacts,
    pub broken: Broken,
    pub since: Instant,
    pub ailing: u32,
}

pub(super) enum Next {
    Idle,
    Waiting {
        until: Instant,
    },
    Fetching {
        attempt: Attempt,
        artifacts: Artifacts,
    },
    Verifying {
        attempt: Attempt,
        artifacts: Artifacts,
    },
    /// Ready to start, but old servers hold both ports.
    WaitingForPort {
        artifacts: Artifacts,
    },
    Warming {
        server: ServerId,
        port: u16,
        artifacts: Artifacts,
        until: Instant,
        adopted: bool,
    },
}

pub(super) enum Leaving {
    Grace { until: Instant },
    Draining { until: Instant },
    Killed,
}

pub(super) enum End {
    Staying,
    AwaitingWithdrawal {
        until: Instant,
    },
    Grace {
        until: Instant,
    },
    /// Its servers are on their way out.
    Stopping,
    Gone,
}

impl Next {
    /// When the stage ends by itself.
    pub fn until(&self) -> Option<Instant> {
        match self {
            Next::Waiting { until } | Next::Warming { until, .. } => Some(*until),
            Next::Idle
            | Next::Fetching { .. }
            | Next::Verifying { .. }
            | Next::WaitingForPort { .. } => None,
        }
    }

    /// What is being prepared.
    pub fn artifacts_mut(&mut self) -> Option<&mut Artifacts> {
        match self {
            Next::Fetching { artifacts, .. }
            | Next::Verifying { artifacts, .. }
            | Next::WaitingForPort { artifacts }
            | Next::Warming { artifacts, .. } => Some(artifacts),
            Next::Idle | Next::Waiting { .. } => None,
        }
    }
}

impl Leaving {
    pub fn until(&self) -> Option<Instant> {
        match self {
            Leaving::Grace { until } | Leaving::Draining { until } => Some(*until),
            Leaving::Killed => None,
        }
    }
}

impl End {
    pub fn until(&self) -> Option<Instant> {
        match self {
            End::AwaitingWithdrawal { until } | End::Grace { until } => Some(*until),
            End::Staying | End::Stopping | End::Gone => None,
        }
    }
}
