//! The proof that somebody may have a certificate; the CA issues nothing without it.

use outstation_protocol::{AgentId, DataPlane, Digest};

/// Someone of whom a judge of this store knows who it is, and which key it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    agent: AgentId,
    data_plane: DataPlane,
    key: Digest,
}

impl Admitted {
    pub(super) fn new(agent: AgentId, data_plane: DataPlane, key: Digest) -> Admitted {
        Admitted { agent, data_plane, key }
    }

    pub fn agent(&self) -> &AgentId {
        &self.agent
    }

    pub fn data_plane(&self) -> &DataPlane {
        &self.data_plane
    }

    /// SHA-256 of the SubjectPublicKeyInfo that was shown to be theirs.
    pub fn key(&self) -> &Digest {
        &self.key
    }
}
