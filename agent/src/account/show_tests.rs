use super::*;
use crate::account::testing::{group, identity};
use outstation_protocol::Digest;
use outstation_protocol::ids::{AgentId, Generation, InstanceId};
use outstation_protocol::status::{Drift, GroupPhase, Held, NodePhase};

const NOW: u64 = 1_795_348_800;

fn snapshot() -> Snapshot {
    let held = Held {
        generation: None,
        rule: "contradiction".to_owned(),
        message: "group b: its AutoScaling group is tagged generation 5, the account store \
                  holds no order of it"
            .to_owned(),
        hint: "run outstation-agent adopt".to_owned(),
    };
    let node = NodeStatus {
        instance: InstanceId::try_from("i-00000001").expect("valid"),
        phase: NodePhase::Ready,
        endpoint: Some("127.83.0.2:7400".to_owned()),
        bundle: Some(Digest::of(b"bundle")),
        reason: None,
        since_unix_secs: NOW - 200,
    };
    let status = GroupStatus {
        phase: GroupPhase::Updating,
        desired_nodes: 1,
        observed_nodes: 1,
        ready_nodes: 1,
        reason: format!("held: {}", held.message),
        phase_since_unix_secs: NOW - 12,
        held: vec![held.clone()],
        drift: vec![Drift {
            change: "desired capacity 1 -> 2".to_owned(),
            repaired: true,
            at_unix_secs: NOW - 7300,
        }],
        nodes: vec![node],
    };
    Snapshot {
        release: "0.1.0".to_owned(),
        pid: 4711,
        started_unix_secs: NOW - 300_000,
        written_unix_secs: NOW - 1,
        tenant: identity().tenant,
        data_plane: identity().data_plane,
        agent: Some(AgentId::try_from("a-1").expect("valid")),
        certificate_until_unix_secs: Some(NOW + 500_000),
        link: Link::Waiting {
            reason: "the broker at 127.0.0.1:7000 does not answer (UDP)".to_owned(),
            since_unix_secs: NOW - 130,
            attempts: 7,
            next_attempt_unix_secs: NOW + 9,
        },
        account: Account::Checked { at_unix_secs: NOW - 299_999 },
        guardrails: GuardrailsState {
            error: None,
            pause: false,
            orders: "orders signed by 1 of: ann".to_owned(),
            since_unix_secs: NOW - 299_999,
        },
        looked_at_unix_secs: Some(NOW - 2),
        look_error: None,
        journal: Some(JournalLine {
            chain: Some("000001-ab".to_owned()),
            records: 7,
            trouble: None,
        }),
        store_trouble: vec![],
        contradictions: vec![held.message],
        groups: vec![
            GroupLine {
                group: group("a"),
                generation: Some(Generation(3)),
                digest: Some(Digest::of(b"order")),
                destroy: false,
                status: Some(status),
            },
            GroupLine {
                group: group("new"),
                generation: Some(Generation(1)),
                digest: Some(Digest::of(b"first")),
                destroy: false,
                status: None,
            },
        ],
    }
}

#[test]
fn it_reads_like_this() {
    let wanted = "\
account agent  a-1  123456789012/eu-central-1 of tenant dev
  process      pid 4711, release 0.1.0, started 3 d ago
  link         not connected for 2 min, attempts 7, the next in 9 s: the broker at 127.0.0.1:7000 does not answer (UDP)
  certificate  valid for 5 d
  account      checked 3 d ago
  guardrails   valid for 3 d; orders signed by 1 of: ann
  AWS          looked at 2 s ago
  journal      7 records in 000001-ab
  CONTRADICTS  group b: its AutoScaling group is tagged generation 5, the account store holds no order of it
               hint: everything in this account is held until a person has decided: run outstation-agent adopt --config … on the account agent's host

GROUP  GENERATION  DIGEST                PHASE     SINCE     DESIRED  OBSERVED  READY  REASON
a      3           sha256:3eeb7e96e59c…  UPDATING  12 s ago  1        1         1      held: group b: its AutoScaling group is tagged generation 5, the account store holds no order of it
new    1           sha256:a7937b64b8ca…  -         -         -        -         -

a: held by contradiction: group b: its AutoScaling group is tagged generation 5, the account store holds no order of it
  hint: run outstation-agent adopt
a: drift 2 h ago, repaired: desired capacity 1 -> 2

NODE        GROUP  PHASE  SINCE      ENDPOINT         REASON
i-00000001  a      ready  3 min ago  127.83.0.2:7400
";
    assert_eq!(text(Process::Running, &snapshot(), NOW), wanted);
}

#[test]
fn what_is_wrong_stands_in_its_line() {
    let trouble = |message: &str| Trouble { message: message.to_owned(), at_unix_secs: NOW - 40 };
    let mut ill = snapshot();
    ill.agent = None;
    ill.certificate_until_unix_secs = Some(NOW - 10);
    ill.link = Link::Connected { broker: "127.0.0.1:7000".to_owned(), since_unix_secs: NOW - 5 };
    ill.account = Account::Failed(trouble("no route to host"));
    ill.guardrails.error = Some("line 3: no such rule".to_owned());
    ill.looked_at_unix_secs = None;
    ill.look_error = Some(trouble("DescribeAutoScalingGroups: timed out"));
    ill.store_trouble = vec!["a.json of the ledger is damaged".to_owned()];
    ill.journal.as_mut().expect("it has one").trouble =
        Some("NOTHING IS CHANGED: no space".to_owned());
    let text_of = |process| text(process, &ill, NOW + 60);
    for line in [
        "account agent  not enrolled",
        "HANGS: pid 4711, started 3 d ago, last sign of life 61 s ago",
        "what follows is from then",
        "connected to 127.0.0.1:7000 for 65 s",
        "EXPIRED 70 s ago",
        "STS does not say whose it is, 100 s ago: no route to host",
        "NONE for 3 d, everything is held: line 3: no such rule",
        "never looked at; failing for 100 s: DescribeAutoScalingGroups: timed out",
        "journal      NOTHING IS CHANGED: no space",
        "store        a.json of the ledger is damaged",
    ] {
        let text = text_of(Process::Hanging);
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let dead = text_of(Process::Dead);
    assert!(dead.contains("DEAD: it was pid 4711, last sign of life 61 s ago"), "{dead}");
    ill.guardrails.error = None;
    ill.guardrails.pause = true;
    ill.guardrails.since_unix_secs = NOW;
    assert!(text(Process::Running, &ill, NOW).contains("PAUSE for 0 s, everything is held"));
}

#[test]
fn the_json_is_the_file_and_what_became_of_its_writer() {
    let document: serde_json::Value =
        serde_json::from_str(&json(Process::Dead, &snapshot(), NOW)).expect("JSON");
    assert_eq!(document["process"], "dead");
    assert_eq!(document["age_secs"], 1);
    assert_eq!(document["link"]["state"], "waiting");
    assert_eq!(document["groups"][0]["generation"], 3);
    let back: Snapshot = serde_json::from_value(document).expect("more fields do not disturb");
    assert_eq!(back, snapshot());
}

#[tokio::test]
async fn the_lock_says_whether_the_writer_lives() {
    let state = tempfile::tempdir().expect("a folder");
    let never = look(state.path(), NOW).expect_err("nothing was ever written");
    assert!(never.to_string().starts_with("no account agent has ever written"), "{never}");

    let running = Running::claim(state.path()).await.expect("nobody else");
    let json = serde_json::to_vec(&snapshot()).expect("serializes");
    std::fs::write(state.path().join("status.json"), json).expect("writable");
    for (now, wanted) in [
        (NOW, Process::Running),
        (NOW - 1 + FRESH_SECS_MAX, Process::Running),
        (NOW + FRESH_SECS_MAX, Process::Hanging),
    ] {
        assert_eq!(look(state.path(), now).expect("written").0, wanted);
    }
    let second = Running::claim(state.path()).await.expect_err("there is one already");
    assert!(second.to_string().starts_with("another account agent runs"), "{second}");
    drop(running);
    assert_eq!(look(state.path(), NOW).expect("written").0, Process::Dead);

    std::fs::write(state.path().join("status.json"), b"{}").expect("writable");
    let damaged = look(state.path(), NOW).expect_err("not a snapshot");
    assert!(damaged.to_string().contains("is not a status file"), "{damaged}");
}
