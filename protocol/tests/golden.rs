//! Golden bytes: what version 1 of the wire looks like, for ever. Each line of `golden/v1.txt` is
//! a whole frame, header included, in hexadecimal digits. A line that changes breaks peers that
//! are out there; a new variant adds lines. `OUTSTATION_BLESS=1` writes the file anew.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

use outstation_protocol::envelope::{Envelope, Signature};
use outstation_protocol::evidence::StsProof;
use outstation_protocol::frame::{self, Framed, HEADER_BYTES};
use outstation_protocol::session::{Answer, DesiredSet, Report, Reports, reports_hash, set_hash};
use outstation_protocol::status::{Drift, GroupPhase, GroupStatus, Held, NodePhase, NodeStatus};
use outstation_protocol::v1::{
    Artifacts, Evidence, FromIssuer, Hello, NodeHello, NodeState, Refusal, RefusalRule, SetEntry,
    ToAccountAgent, ToAgent, ToBroker, ToIssuer, ToNode, Welcome,
};
use outstation_protocol::{
    AccountId, AgentId, DataPlane, Digest, Generation, GroupName, InstanceId, Region,
};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1.txt");

const PHASES: [GroupPhase; 8] = [
    GroupPhase::Pending,
    GroupPhase::Creating,
    GroupPhase::Updating,
    GroupPhase::Ready,
    GroupPhase::Degraded,
    GroupPhase::Deleting,
    GroupPhase::Deleted,
    GroupPhase::Error,
];

const NODE_PHASES: [NodePhase; 8] = [
    NodePhase::Booting,
    NodePhase::Fetching,
    NodePhase::Verifying,
    NodePhase::Warming,
    NodePhase::Ready,
    NodePhase::Unhealthy,
    NodePhase::Draining,
    NodePhase::Gone,
];

const RULES: [RefusalRule; 12] = [
    RefusalRule::OlderGeneration,
    RefusalRule::ConflictingGeneration,
    RefusalRule::UnknownParent,
    RefusalRule::Malformed,
    RefusalRule::WrongDataPlane,
    RefusalRule::Expired,
    RefusalRule::Signature,
    RefusalRule::Guardrail,
    RefusalRule::PreventDestroy,
    RefusalRule::AccountStore,
    RefusalRule::Contradiction,
    RefusalRule::ChangeRate,
];

/// The lists above are by hand; this makes the compiler ask for a new variant, and the test for
/// its place in the list.
#[test]
fn every_variant_has_its_place() {
    for (index, phase) in PHASES.iter().enumerate() {
        let place = match phase {
            GroupPhase::Pending => 0,
            GroupPhase::Creating => 1,
            GroupPhase::Updating => 2,
            GroupPhase::Ready => 3,
            GroupPhase::Degraded => 4,
            GroupPhase::Deleting => 5,
            GroupPhase::Deleted => 6,
            GroupPhase::Error => 7,
        };
        assert_eq!(index, place);
    }
    for (index, phase) in NODE_PHASES.iter().enumerate() {
        let place = match phase {
            NodePhase::Booting => 0,
            NodePhase::Fetching => 1,
            NodePhase::Verifying => 2,
            NodePhase::Warming => 3,
            NodePhase::Ready => 4,
            NodePhase::Unhealthy => 5,
            NodePhase::Draining => 6,
            NodePhase::Gone => 7,
        };
        assert_eq!(index, place);
    }
    for (index, rule) in RULES.iter().enumerate() {
        let place = match rule {
            RefusalRule::OlderGeneration => 0,
            RefusalRule::ConflictingGeneration => 1,
            RefusalRule::UnknownParent => 2,
            RefusalRule::Malformed => 3,
            RefusalRule::WrongDataPlane => 4,
            RefusalRule::Expired => 5,
            RefusalRule::Signature => 6,
            RefusalRule::Guardrail => 7,
            RefusalRule::PreventDestroy => 8,
            RefusalRule::AccountStore => 9,
            RefusalRule::Contradiction => 10,
            RefusalRule::ChangeRate => 11,
        };
        assert_eq!(index, place);
    }
}

#[test]
fn the_wire_is_as_it_was() {
    let golden = Golden::open();
    to_broker(&golden);
    to_agent(&golden);
    to_account_agent(&golden);
    to_node(&golden);
    enrollment(&golden);
    hashes(&golden);
    golden.close();
}

fn to_broker(golden: &Golden) {
    let (group, generation, digest) = (group(), Generation(300), digest(1));
    let hello = Hello {
        versions: vec![1, 2],
        features: vec!["journal".into()],
        agent: AgentId::try_from("a-1").expect("an agent id"),
        data_plane: data_plane(),
        release: "0.1.0".into(),
    };
    golden.check("to_broker.hello", &ToBroker::Hello(hello));
    golden.check("to_broker.heartbeat", &ToBroker::Heartbeat { reports_hash: digest });
    golden.check("to_broker.send_set", &ToBroker::SendSet);
    golden.check("to_broker.fetch", &ToBroker::Fetch(entry()));
    let accepted = ToBroker::Accepted { group: group.clone(), generation, digest };
    golden.check("to_broker.accepted", &accepted);
    for rule in RULES {
        let reason = Refusal { rule, message: "m".into(), hint: "h".into() };
        let refused = ToBroker::Refused { group: group.clone(), generation, digest, reason };
        golden.check(&format!("to_broker.refused.{rule:?}"), &refused);
    }
    let converged = ToBroker::Converged { group: group.clone(), generation, observed: digest };
    golden.check("to_broker.converged", &converged);
    for phase in PHASES {
        let status = ToBroker::Status { group: group.clone(), status: empty_status(phase) };
        golden.check(&format!("to_broker.status.{phase:?}"), &status);
    }
    for phase in NODE_PHASES {
        let status = ToBroker::Status { group: group.clone(), status: full_status(phase) };
        golden.check(&format!("to_broker.status.node.{phase:?}"), &status);
    }
    let envelope = Envelope::unsigned(b"{}".to_vec());
    golden.check("to_broker.order", &ToBroker::Order { envelope });
}

fn to_agent(golden: &Golden) {
    let welcome = Welcome {
        version: 1,
        features: vec!["journal".into()],
        heartbeat_secs: 15,
        set_hash: digest(2),
    };
    golden.check("to_agent.welcome", &ToAgent::Welcome(welcome));
    golden.check("to_agent.heartbeat", &ToAgent::Heartbeat { set_hash: digest(2) });
    golden.check("to_agent.desired_set", &ToAgent::DesiredSet { entries: vec![entry(), entry()] });
    golden.check("to_agent.desired_set.empty", &ToAgent::DesiredSet { entries: vec![] });
    let unsigned = Envelope::unsigned(b"{}".to_vec());
    let mut signed = unsigned.clone();
    signed.signatures.push(Signature { keyid: "ops".into(), sig: vec![7; 64] });
    golden.check("to_agent.order.unsigned", &ToAgent::Order { envelope: unsigned });
    golden.check("to_agent.order.signed", &ToAgent::Order { envelope: signed });
    golden.check("to_agent.send_reports", &ToAgent::SendReports);
    golden.check("to_agent.hand_back", &ToAgent::HandBack(entry()));
    let goodbye = ToAgent::Goodbye { reason: "r".into(), retry_after_secs: 600 };
    golden.check("to_agent.goodbye", &goodbye);
}

fn to_account_agent(golden: &Golden) {
    let hello = NodeHello {
        versions: vec![1],
        features: vec![],
        instance: instance(),
        group: group(),
        release: "0.1.0".into(),
    };
    golden.check("to_account_agent.hello", &ToAccountAgent::Hello(hello));
    for phase in NODE_PHASES {
        let state = NodeState { phase, endpoint: None, artifacts: None, reason: None };
        let name = format!("to_account_agent.state.{phase:?}");
        golden.check(&name, &ToAccountAgent::State(state));
    }
    let state = NodeState {
        phase: NodePhase::Ready,
        endpoint: Some("127.83.0.11:7400".into()),
        artifacts: Some(artifacts()),
        reason: Some("r".into()),
    };
    golden.check("to_account_agent.state.whole", &ToAccountAgent::State(state));
    golden.check("to_account_agent.drained", &ToAccountAgent::Drained);
}

fn to_node(golden: &Golden) {
    let welcome = ToNode::Welcome { version: 1, heartbeat_secs: 5, artifacts: artifacts() };
    golden.check("to_node.welcome", &welcome);
    golden.check("to_node.artifacts", &ToNode::Artifacts(artifacts()));
    golden.check("to_node.withdrawn", &ToNode::Withdrawn);
    let goodbye = ToNode::Goodbye { reason: "r".into(), retry_after_secs: 0 };
    golden.check("to_node.goodbye", &goodbye);
}

fn enrollment(golden: &Golden) {
    golden.check("to_issuer.begin", &ToIssuer::Begin { release: "0.1.0".into() });
    let token = Evidence::JoinToken { token: "t".into(), data_plane: data_plane() };
    let sts = Evidence::Sts(StsProof {
        region: "eu-central-1".into(),
        access_key_id: "ASIAEXAMPLE".into(),
        session_token: "s".into(),
        amz_date: "20261101T000000Z".into(),
        signature: "0".repeat(64),
    });
    let Evidence::Sts(proof) = sts.clone() else { unreachable!("made above") };
    let account_sts = Evidence::AccountSts { data_plane: data_plane(), proof };
    for (name, evidence) in [("join_token", token), ("sts", sts), ("account_sts", account_sts)] {
        let request = ToIssuer::Request { csr: vec![0x30, 0x00], evidence };
        golden.check(&format!("to_issuer.request.{name}"), &request);
    }
    golden.check("from_issuer.challenge", &FromIssuer::Challenge { nonce: [9; 32] });
    let issued =
        FromIssuer::Issued { chain: vec![vec![0x30, 0x00]], identity: "spiffe://i".into() };
    golden.check("from_issuer.issued", &issued);
    let denied = FromIssuer::Denied { reason: "r".into(), hint: "h".into() };
    golden.check("from_issuer.denied", &denied);
}

/// Both ends compute these over their own state, so they are part of the wire as well.
fn hashes(golden: &Golden) {
    let entry = entry();
    let set = DesiredSet::from([(entry.group, (entry.generation, entry.digest))]);
    golden.check_bytes("set_hash", set_hash(&set).as_bytes());
    golden.check_bytes("set_hash.empty", set_hash(&DesiredSet::new()).as_bytes());
    let reason = Refusal { rule: RefusalRule::Guardrail, message: "m".into(), hint: "h".into() };
    let mut reports = Reports::new();
    for answer in [
        Answer::Accepted { generation: Generation(1), digest: digest(1) },
        Answer::Converged { generation: Generation(1), observed: digest(2) },
        Answer::Refused { generation: Generation(2), digest: digest(3), reason },
        Answer::Status(full_status(NodePhase::Ready)),
    ] {
        Report { group: group(), answer }.record(&mut reports);
    }
    golden.check_bytes("reports_hash", reports_hash(&reports).as_bytes());
}

/// What the file says next to what the code says.
struct Golden {
    bless: bool,
    wanted: BTreeMap<String, String>,
    found: std::cell::RefCell<Vec<(String, String)>>,
}

impl Golden {
    fn open() -> Golden {
        let bless = std::env::var_os("OUTSTATION_BLESS").is_some_and(|value| value == "1");
        let text = std::fs::read_to_string(FILE).unwrap_or_default();
        let wanted = text.lines().map(|line| {
            let (name, hex) = line.split_once(" = ").expect("a line is `name = hex`");
            (name.to_owned(), hex.to_owned())
        });
        Golden { bless, wanted: wanted.collect(), found: Default::default() }
    }

    /// Both ways: the value makes these bytes, and these bytes make the value.
    fn check<M: Framed + PartialEq + Debug>(&self, name: &str, message: &M) {
        let frame = frame::encode(message).expect("a small message");
        self.check_bytes(name, &frame);
        let bytes = match self.wanted.get(name) {
            Some(golden) if !self.bless => hex::decode(golden).expect("hexadecimal digits"),
            Some(_) | None => frame,
        };
        let header = *bytes.first_chunk::<HEADER_BYTES>().expect("a frame has a header");
        let length = frame::body_length::<M>(header).expect("a good header");
        assert_eq!(length, bytes.len() - HEADER_BYTES, "{name}");
        let decoded: M = frame::decode_body(&bytes[HEADER_BYTES..]).expect("a good body");
        assert_eq!(decoded, *message, "{name}");
    }

    fn check_bytes(&self, name: &str, bytes: &[u8]) {
        let found = hex::encode(bytes);
        if !self.bless {
            let wanted = self.wanted.get(name).unwrap_or_else(|| {
                panic!("{name} is not in {FILE}: if it is new, write it with OUTSTATION_BLESS=1")
            });
            assert_eq!(found, *wanted, "the wire of {name} has changed");
        }
        self.found.borrow_mut().push((name.to_owned(), found));
    }

    fn close(self) {
        let found = self.found.into_inner();
        let names: BTreeMap<&String, &String> =
            found.iter().map(|(name, hex)| (name, hex)).collect();
        assert_eq!(names.len(), found.len(), "every name is there once");
        if self.bless {
            let lines: String =
                found.iter().map(|(name, hex)| format!("{name} = {hex}\n")).collect();
            std::fs::create_dir_all(Path::new(FILE).parent().expect("a directory"))
                .expect("make it");
            std::fs::write(FILE, lines).expect("write the golden file");
            return;
        }
        for name in self.wanted.keys() {
            assert!(names.contains_key(name), "{name} is in the file and not in the code any more");
        }
    }
}

fn group() -> GroupName {
    GroupName::try_from("delay_tsg").expect("a group name")
}

fn instance() -> InstanceId {
    InstanceId::try_from("i-0123456789abcdef0").expect("an instance id")
}

fn data_plane() -> DataPlane {
    DataPlane {
        account: AccountId::try_from("123456789012").expect("an account"),
        region: Region::try_from("eu-central-1").expect("a region"),
    }
}

fn digest(byte: u8) -> Digest {
    Digest::from_bytes([byte; 32])
}

fn entry() -> SetEntry {
    SetEntry { group: group(), generation: Generation(300), digest: digest(1) }
}

fn artifacts() -> Artifacts {
    Artifacts {
        generation: Generation(4),
        environment: digest(3),
        bundle: digest(4),
        options: vec![("workers".into(), "2".into())],
    }
}

fn empty_status(phase: GroupPhase) -> GroupStatus {
    GroupStatus {
        phase,
        desired_nodes: 0,
        observed_nodes: 0,
        ready_nodes: 0,
        reason: String::new(),
        phase_since_unix_secs: 0,
        held: vec![],
        drift: vec![],
        nodes: vec![],
    }
}

fn full_status(node_phase: NodePhase) -> GroupStatus {
    let held = |generation| Held {
        generation,
        rule: "nodes_per_group_max".into(),
        message: "m".into(),
        hint: "h".into(),
    };
    let node = |endpoint: Option<&str>, bundle, reason: Option<&str>| NodeStatus {
        instance: instance(),
        phase: node_phase,
        endpoint: endpoint.map(str::to_owned),
        bundle,
        reason: reason.map(str::to_owned),
        since_unix_secs: 1_800_000_000,
    };
    GroupStatus {
        phase: GroupPhase::Degraded,
        desired_nodes: 300,
        observed_nodes: 2,
        ready_nodes: 1,
        reason: "r".into(),
        phase_since_unix_secs: 1_800_000_000,
        held: vec![held(None), held(Some(Generation(5)))],
        drift: vec![Drift { change: "c".into(), repaired: true, at_unix_secs: 1_800_000_000 }],
        nodes: vec![
            node(None, None, None),
            node(Some("127.83.0.11:7400"), Some(digest(4)), Some("r")),
        ],
    }
}
