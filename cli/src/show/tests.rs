//! Golden texts of the verbs that show.

use super::*;
use crate::view::{Answer, Drift, Held, Node};
use outstation_protocol::ids::{Digest, EnvironmentName, Generation, GroupName};
use outstation_protocol::model::{EnvironmentRef, GroupKind, Scaling};

fn group() -> GroupView {
    let node = |instance: &str, phase: &str, reason: Option<&str>| Node {
        instance: instance.into(),
        phase: phase.into(),
        endpoint: (phase == "ready").then(|| "127.83.0.11:7400".into()),
        bundle: Some(Digest::of(b"bundle").to_string()),
        reason: reason.map(Into::into),
        since_unix_secs: 990,
    };
    GroupView {
        name: GroupName::try_from("delay_tsg").expect("valid"),
        generation: Generation(4),
        digest: Digest::of(b"order"),
        put_at_unix_secs: 997,
        intent: Intent::Apply(GroupSpec {
            kind: GroupKind::Transform,
            scaling: Scaling::Provisioned { desired_nodes: 3 },
            environment: EnvironmentRef {
                name: EnvironmentName::try_from("flights").expect("valid"),
                digest: Digest::of(b"environment"),
            },
            bundle: Digest::of(b"bundle"),
            owner: Some("ops".into()),
            description: None,
            tags: [("team".to_owned(), "ml".to_owned())].into(),
            prevent_destroy: true,
            options: [("workers".to_owned(), "2".to_owned())].into(),
        }),
        accepted: Some(Answer { generation: Generation(4), at_unix_secs: 998 }),
        refused: None,
        converged: Some(Answer { generation: Generation(4), at_unix_secs: 999 }),
        status: Some(Status {
            phase: "READY".into(),
            desired_nodes: 3,
            observed_nodes: 3,
            ready_nodes: 2,
            reason: "all nodes are as declared".into(),
            phase_since_unix_secs: 700,
            reported_at_unix_secs: 999,
            held: vec![],
            drift: vec![],
            nodes: vec![
                node("i-0123456789abcdef0", "ready", None),
                node("i-0123456789abcdef1", "warming", Some("importing the functions")),
            ],
        }),
    }
}

#[test]
fn describe_a_group_that_is_well() {
    assert_eq!(
        describe(&group(), 1000),
        "\
delay_tsg  transform  READY   desired 3  observed 3  ready 2   generation 4, accepted 2 s ago, converged 1 s ago
  reason       all nodes are as declared (since 5 min ago)
  environment  flights  sha256:ba5285161ba6…
  functions    sha256:1e6ed65d77d6…
  owner        ops
  tags         team=ml
  options      workers=2
  protected    prevent_destroy
  held         nothing
  drift        none
  NODE                 PHASE    ENDPOINT          FUNCTIONS            SINCE     REASON
  i-0123456789abcdef0  ready    127.83.0.11:7400  sha256:1e6ed65d77d6  10 s ago
  i-0123456789abcdef1  warming  -                 sha256:1e6ed65d77d6  10 s ago  importing the functions
"
    );
}

#[test]
fn describe_shows_what_was_refused_and_held_and_why() {
    let mut group = group();
    group.generation = Generation(5);
    let refusal = |message: &str| Refused {
        generation: Generation(5),
        at_unix_secs: 999,
        rule: "nodes_per_group_max".into(),
        message: message.into(),
        hint: "ask the owner of guardrails/guardrails.toml".into(),
    };
    group.refused = Some(refusal("90 nodes are more than 40"));
    let status = group.status.as_mut().expect("there");
    status.nodes.clear();
    status.held.push(Held {
        generation: Some(5),
        rule: "nodes_per_group_max".into(),
        message: "SetDesired 90".into(),
        hint: "see the guardrails".into(),
    });
    for (at_unix_secs, repaired) in [(50_520, true), (1, false)] {
        let change = "desired count 3 -> 5".into();
        status.drift.push(Drift { change, repaired, at_unix_secs: 86_400 + at_unix_secs });
    }
    let text = describe(&group, 2 * 86_400 - 1);
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].contains(
            "generation 5, accepted 47 h ago (generation 4), converged 47 h ago (generation 4)"
        ),
        "{text}"
    );
    for wanted in [
        "  refused      generation 5, 47 h ago: nodes_per_group_max: 90 nodes are more than 40",
        "               hint: ask the owner of guardrails/guardrails.toml",
        "  held         generation 5: nodes_per_group_max: SetDesired 90",
        "  drift        desired count 3 -> 5, repaired 14:02 UTC",
        "  drift        desired count 3 -> 5, not repaired 00:00 UTC",
    ] {
        assert!(lines.contains(&wanted), "{wanted}\n{text}");
    }
}

#[test]
fn a_refusal_is_history_once_a_later_order_was_accepted() {
    let mut group = group();
    let refused = |generation| Refused {
        generation: Generation(generation),
        at_unix_secs: 999,
        rule: "guardrail".into(),
        message: "90 nodes".into(),
        hint: "ask".into(),
    };
    for (generation, shown) in [(3, false), (5, true)] {
        group.refused = Some(refused(generation));
        assert_eq!(describe(&group, 1000).contains("refused"), shown, "{generation}");
    }
}

#[test]
fn a_group_without_any_answer_says_so() {
    let mut group = group();
    (group.accepted, group.converged, group.status) = (None, None, None);
    let text = describe(&group, 1000);
    assert!(text.starts_with(
        "delay_tsg  transform  PENDING   generation 4, put 3 s ago, not answered yet\n"
    ));
    group.intent = Intent::Destroy;
    assert!(describe(&group, 1000).contains("  order        destroy this group\n"));
}

#[test]
fn groups_are_listed_in_columns() {
    assert_eq!(
        groups(&[group()], 1000),
        "\
GROUP      KIND       PHASE  DESIRED  OBSERVED  READY  GENERATION  ENVIRONMENT  APPLIED  REASON
delay_tsg  transform  READY        3         3      2           4  flights      3 s ago  all nodes are as declared
"
    );
}

#[test]
fn times_are_told_in_the_largest_unit() {
    for (then, text) in [
        (1_000_000, "0 s ago"),
        (999_881, "119 s ago"),
        (999_880, "2 min ago"),
        (992_801, "119 min ago"),
        (992_800, "2 h ago"),
        (827_200, "2 d ago"),
        (1_000_005, "0 s ago"),
    ] {
        assert_eq!(ago(then, 1_000_000), text);
    }
}
