//! Version 1 of the wire: frozen. Fields are never added, removed or reordered; enums only grow
//! at their end. Golden bytes in `tests/golden.rs` hold every message to that.

use serde::{Deserialize, Serialize};

use crate::envelope::Envelope;
use crate::frame::Framed;
use crate::ids::{AgentId, Digest, Generation, GroupName, InstanceId};
use crate::model::DataPlane;
use crate::status::{GroupStatus, NodePhase};

pub const VERSION: u16 = 1;

/// ALPN of the four conversations; the number is the major version.
pub const ALPN_CONTROL: &[u8] = b"outstation-control/1";
pub const ALPN_CONTROL_ENROLL: &[u8] = b"outstation-control-enroll/1";
pub const ALPN_NODE: &[u8] = b"outstation-node/1";
pub const ALPN_NODE_ENROLL: &[u8] = b"outstation-node-enroll/1";

/// An agent's ability to give a broker the accepted orders that its database has lost.
pub const FEATURE_HAND_BACK: &str = "hand-back";

/// AWS allows 500 AutoScaling groups in a region, tombstones come on top.
pub const SET_ENTRIES_MAX: usize = 2000;

/// One line of the desired set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SetEntry {
    pub group: GroupName,
    pub generation: Generation,
    pub digest: Digest,
}

/// Account agent → broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToBroker {
    Hello(Hello),
    /// Still here; the hash is over every answer that the agent stands by.
    Heartbeat {
        reports_hash: Digest,
    },
    /// The desired set that I know is not the one you named: send it.
    SendSet,
    /// Send me this envelope.
    Fetch(SetEntry),
    /// Written durably; will be acted on.
    Accepted {
        group: GroupName,
        generation: Generation,
        digest: Digest,
    },
    /// Will not be acted on, and why.
    Refused {
        group: GroupName,
        generation: Generation,
        digest: Digest,
        reason: Refusal,
    },
    /// The account is as this generation wants it; the hash is over the observed state.
    Converged {
        group: GroupName,
        generation: Generation,
        observed: Digest,
    },
    Status {
        group: GroupName,
        status: GroupStatus,
    },
    /// An accepted order that the broker asked back.
    Order {
        envelope: Envelope,
    },
}

/// Broker → account agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    Welcome(Welcome),
    /// The hash is over the desired set as [`crate::session::set_hash`] defines it.
    Heartbeat {
        set_hash: Digest,
    },
    DesiredSet {
        entries: Vec<SetEntry>,
    },
    Order {
        envelope: Envelope,
    },
    /// Your answers as I know them are not the ones you named: send them all.
    SendReports,
    /// Close now, and come back no sooner than this.
    Goodbye {
        reason: String,
        retry_after_secs: u32,
    },
    /// You have accepted this and my database does not have it: hand it back. Sent only to agents
    /// with [`FEATURE_HAND_BACK`].
    HandBack(SetEntry),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Wire versions that the sender speaks.
    pub versions: Vec<u16>,
    /// Optional abilities, by name; unknown ones are ignored.
    pub features: Vec<String>,
    pub agent: AgentId,
    pub data_plane: DataPlane,
    /// The sender's release, for people.
    pub release: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub version: u16,
    pub features: Vec<String>,
    /// How often the agent says that it is still here. The agent caps it.
    pub heartbeat_secs: u32,
    pub set_hash: Digest,
}

/// Why an order was not accepted. Each names the rule and, in `hint`, who can change it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub rule: RefusalRule,
    pub message: String,
    pub hint: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalRule {
    /// A newer generation was accepted before.
    OlderGeneration,
    /// The same generation with other bytes was accepted before.
    ConflictingGeneration,
    /// The parent named is not what was accepted before.
    UnknownParent,
    /// Not an order, or of a form that this agent does not know.
    Malformed,
    /// For another tenant, account or region.
    WrongDataPlane,
    /// `accept_before` has passed.
    Expired,
    /// Too few valid signatures of configured signers.
    Signature,
    /// A guardrail of the account forbids it.
    Guardrail,
    /// The group has `prevent_destroy`.
    PreventDestroy,
    /// The account store could not take it; the agent tries again.
    AccountStore,
    /// The account and its ledger contradict each other; the agent tries again.
    Contradiction,
    /// As many changes were accepted within the hour as the account's guardrails allow; it waits.
    ChangeRate,
}

impl RefusalRule {
    /// True if a refusal by this rule ends its generation. The others say that the order could not
    /// be judged, so the agent asks for it again.
    pub fn is_final(self) -> bool {
        match self {
            RefusalRule::OlderGeneration
            | RefusalRule::ConflictingGeneration
            | RefusalRule::UnknownParent
            | RefusalRule::Malformed
            | RefusalRule::WrongDataPlane
            | RefusalRule::Expired
            | RefusalRule::Signature
            | RefusalRule::Guardrail
            | RefusalRule::PreventDestroy => true,
            RefusalRule::AccountStore | RefusalRule::Contradiction | RefusalRule::ChangeRate => {
                false
            }
        }
    }
}

/// Node agent → account agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAccountAgent {
    Hello(NodeHello),
    /// The whole state of the node; sent on every change and as the heartbeat.
    State(NodeState),
    /// Nothing is in flight any more: the instance may end.
    Drained,
}

/// Account agent → node agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToNode {
    Welcome {
        version: u16,
        heartbeat_secs: u32,
        artifacts: Artifacts,
    },
    /// What the node shall serve from now on.
    Artifacts(Artifacts),
    /// Callers have been told not to use this node any more: it may drain.
    Withdrawn,
    Goodbye {
        reason: String,
        retry_after_secs: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHello {
    pub versions: Vec<u16>,
    pub features: Vec<String>,
    pub instance: InstanceId,
    pub group: GroupName,
    pub release: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    pub phase: NodePhase,
    /// `address:port` of the server that callers may use; only in the phases Ready and Draining.
    pub endpoint: Option<String>,
    /// What the server at `endpoint` serves.
    pub artifacts: Option<Artifacts>,
    pub reason: Option<String>,
}

/// Environment and bundle of a generation, by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifacts {
    pub generation: Generation,
    pub environment: Digest,
    pub bundle: Digest,
    /// Settings of the kind's server, such as `workers`, in order of their names.
    pub options: Vec<(String, String)>,
}

/// The party that wants a certificate → the one that issues it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToIssuer {
    /// Asks for a challenge, which the evidence must cover.
    Begin { release: String },
    /// A PKCS#10 request in DER, and what shows who is asking.
    Request { csr: Vec<u8>, evidence: Evidence },
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Evidence {
    /// A single-use token from the broker's admin, for places without AWS.
    JoinToken { token: String, data_plane: DataPlane },
    /// A GetCallerIdentity request, signed over audience, challenge and CSR digest.
    Sts(crate::evidence::StsProof),
    /// The same from an account agent to its broker, which serves many data planes. The data plane
    /// is a claim: it chooses what the proof is held against.
    AccountSts { data_plane: DataPlane, proof: crate::evidence::StsProof },
}

impl std::fmt::Debug for Evidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Evidence::JoinToken { data_plane, .. } => write!(f, "JoinToken(.., {data_plane})"),
            Evidence::Sts(_) => f.write_str("Sts(..)"),
            Evidence::AccountSts { data_plane, .. } => write!(f, "AccountSts(.., {data_plane})"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromIssuer {
    Challenge {
        nonce: [u8; 32],
    },
    /// Leaf first, DER. The root is not among them: the receiver has it already.
    Issued {
        chain: Vec<Vec<u8>>,
        identity: String,
    },
    Denied {
        reason: String,
        hint: String,
    },
}

impl Framed for ToBroker {
    const KIND: u8 = 0x01;
}
impl Framed for ToAgent {
    const KIND: u8 = 0x02;
}
impl Framed for ToAccountAgent {
    const KIND: u8 = 0x11;
}
impl Framed for ToNode {
    const KIND: u8 = 0x12;
}
impl Framed for ToIssuer {
    const KIND: u8 = 0x21;
}
impl Framed for FromIssuer {
    const KIND: u8 = 0x22;
}
