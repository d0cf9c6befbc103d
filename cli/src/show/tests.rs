//! Golden texts of the verbs that show.

use super::*;
use crate::signing::Signed;
use crate::view::{Accepted, AcceptedOrder, Answer, Drift, Held, Node, Refused};
use outstation_protocol::envelope::Envelope;
use outstation_protocol::ids::{Digest, EnvironmentName, Generation, GroupName};
use outstation_protocol::model::{EnvironmentRef, GroupKind, Scaling, Target};
use outstation_protocol::signing::SignerName;

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
        envelope: Envelope::unsigned(Vec::new()),
        signed: Some(Signed::By {
            names: [SignerName::try_from("ann".to_owned()).expect("valid")].into(),
        }),
        accepted: Some(Accepted {
            generation: Generation(4),
            digest: Digest::of(b"order"),
            at_unix_secs: 998,
        }),
        accepted_order: None,
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

fn up() -> Link {
    let agent = Linked { agent: "a-1".into(), since_unix_secs: 400, release: "0.1.0".into() };
    Link::Up { agents: vec![agent] }
}

fn down(since_unix_secs: u64) -> Link {
    Link::Down { last: Linked { agent: "a-1".into(), since_unix_secs, release: "0.1.0".into() } }
}

fn spec(group: &mut GroupView) -> &mut GroupSpec {
    match &mut group.intent {
        Intent::Apply(spec) => spec,
        Intent::Destroy => unreachable!("it is applied"),
    }
}

/// Generation 5, which wants 90 nodes, put after the group was well.
fn ninety() -> GroupView {
    let mut group = group();
    let before = AcceptedOrder {
        put_at_unix_secs: 997,
        intent: group.intent.clone(),
        envelope: Envelope::unsigned(Vec::new()),
    };
    group.accepted_order = Some(before);
    (group.generation, group.digest) = (Generation(5), Digest::of(b"ninety"));
    group.put_at_unix_secs = 999;
    spec(&mut group).scaling = Scaling::Provisioned { desired_nodes: 90 };
    group
}

#[test]
fn an_autoscaled_group_shows_its_count_between_its_bounds() {
    let mut group = group();
    spec(&mut group).scaling = Scaling::Autoscaling {
        min_nodes: 2,
        max_nodes: 10,
        target: Target::Cpu { percent: 60.0.try_into().expect("valid") },
    };
    let shown = describe(&group, &up(), 1000);
    assert!(shown.contains("\n  nodes        3 (2..10, CPU 60 %)\n"), "{shown}");
    // Nobody knows yet what AWS has made of it.
    group.status = None;
    let shown = describe(&group, &up(), 1000);
    assert!(shown.contains("\n  nodes        - (2..10, CPU 60 %)\n"), "{shown}");
}

fn refused(generation: u64) -> Refused {
    Refused {
        generation: Generation(generation),
        digest: Digest::of(b"ninety"),
        at_unix_secs: 999,
        rule: "guardrail".into(),
        message: "90 nodes are more than 40".into(),
        hint: "ask the owner of guardrails/guardrails.toml".into(),
    }
}

#[test]
fn describe_a_group_that_is_well() {
    assert_eq!(
        describe(&group(), &up(), 1000),
        "\
delay_tsg  transform  READY   desired 3  observed 3  ready 2   generation 4, accepted 2 s ago, converged 1 s ago
  reason       all nodes are as declared (since 5 min ago)
  order        generation 4 sha256:3eeb7e96e59c…
  signed by    ann
  environment  flights  sha256:ba5285161ba6…
  functions    sha256:1e6ed65d77d6…
  owner        ops
  tags         team=ml
  options      workers=2
  protected    prevent_destroy
  CONDITION  STATE  SINCE       REASON
  accepted   yes    2 s ago     generation 4 sha256:3eeb7e96e59c…
  converged  yes    1 s ago     generation 4 sha256:3eeb7e96e59c…
  link       up     10 min ago  account agent a-1 is connected
  held       no     -           nothing
  drift      no     -           none
  NODE                 PHASE    ENDPOINT          FUNCTIONS            SINCE     REASON
  i-0123456789abcdef0  ready    127.83.0.11:7400  sha256:1e6ed65d77d6  10 s ago
  i-0123456789abcdef1  warming  -                 sha256:1e6ed65d77d6  10 s ago  importing the functions
"
    );
}

#[test]
fn describe_shows_the_accepted_order_and_the_refused_one_apart() {
    let mut group = ninety();
    group.refused = Some(refused(5));
    let status = group.status.as_mut().expect("there");
    status.nodes.clear();
    status.held.push(Held {
        generation: Some(4),
        rule: "pause".into(),
        message: "the account's guardrails say pause = true".into(),
        hint: "see the guardrails".into(),
        since_unix_secs: 880,
    });
    for (repaired, at_unix_secs) in [(true, 990), (false, 1)] {
        status.drift.push(Drift { change: "max size 3 -> 5".into(), repaired, at_unix_secs });
    }
    assert_eq!(
        describe(&group, &up(), 1000),
        "\
delay_tsg  transform  READY   desired 3  observed 3  ready 2   generation 4, accepted 2 s ago, converged 1 s ago
  reason       all nodes are as declared (since 5 min ago)
  order        generation 4 sha256:3eeb7e96e59c…
  signed by    ann
  environment  flights  sha256:ba5285161ba6…
  functions    sha256:1e6ed65d77d6…
  owner        ops
  tags         team=ml
  options      workers=2
  protected    prevent_destroy
  refused      generation 5 sha256:521c74a4d582…, put 1 s ago, refused 1 s ago; it wanted nodes 3 -> 90
  CONDITION  STATE  SINCE       REASON
  accepted   no     1 s ago     generation 5 refused by guardrail: 90 nodes are more than 40
                                hint: ask the owner of guardrails/guardrails.toml
  converged  yes    1 s ago     generation 4 sha256:3eeb7e96e59c…
  link       up     10 min ago  account agent a-1 is connected
  held       yes    2 min ago   generation 4: pause: the account's guardrails say pause = true
                                hint: see the guardrails
  drift      no     10 s ago    last: max size 3 -> 5, repaired
"
    );
}

#[test]
fn describe_never_shows_a_stale_status_as_a_fresh_one() {
    let mut group = group();
    group.status.as_mut().expect("there").nodes.clear();
    let hour = 3600;
    assert_eq!(
        describe(&group, &down(1000), 1000 + 3 * hour),
        "\
delay_tsg  transform  was READY   desired 3  observed 3  ready 2   generation 4, accepted 3 h ago, converged 3 h ago
  STALE        nothing has been heard of this group for 3 h: phase, counts and nodes are as of then
  reason       all nodes are as declared (since 3 h ago)
  order        generation 4 sha256:3eeb7e96e59c…
  signed by    ann
  environment  flights  sha256:ba5285161ba6…
  functions    sha256:1e6ed65d77d6…
  owner        ops
  tags         team=ml
  options      workers=2
  protected    prevent_destroy
  CONDITION  STATE    SINCE    REASON
  accepted   yes      3 h ago  generation 4 sha256:3eeb7e96e59c…
  converged  was yes  3 h ago  generation 4 sha256:3eeb7e96e59c…
  link       down     3 h ago  account agent a-1 is not connected; the account goes on
                               hint: `outstation events` says why it left; look at the agent's log and its way here
  held       was no   -        nothing
  drift      was no   -        none
"
    );
    // The agent's last word is no older than the end of its link.
    assert_eq!(down(500).stale_since_unix_secs(&group), Some(999));
    assert_eq!(down(1200).stale_since_unix_secs(&group), Some(1200));
    assert_eq!(Link::Never.stale_since_unix_secs(&group), Some(999));
    assert_eq!(up().stale_since_unix_secs(&group), None);
    group.status = None;
    assert_eq!(down(500).stale_since_unix_secs(&group), None, "nothing is shown that could be");
}

/// `name state: reason` of each condition.
fn words(group: &GroupView, link: &Link) -> Vec<String> {
    conditions(group, link)
        .iter()
        .map(|it| {
            let was = if it.stale { "was " } else { "" };
            format!("{} {was}{}: {}", it.name, it.state, it.reason)
        })
        .collect()
}

#[test]
fn conditions_say_where_an_order_stands() {
    let newest = || Digest::of(b"ninety").short();
    let mut waiting = ninety();
    let mut destroy = ninety();
    destroy.intent = Intent::Destroy;
    let mut fresh = group();
    (fresh.accepted, fresh.converged, fresh.status) = (None, None, None);
    let mut turned_down = fresh.clone();
    turned_down.refused = Some(refused(4));
    let mut restarted = group();
    restarted.status = None;
    let mut degraded = group();
    let status = degraded.status.as_mut().expect("there");
    (status.phase, status.reason) = ("DEGRADED".into(), "2 of 3 nodes ready".into());
    let mut behind = group();
    behind.accepted = Some(Accepted {
        generation: Generation(7),
        digest: Digest::of(b"seven"),
        at_unix_secs: 998,
    });
    let mut drifting = group();
    drifting.status.as_mut().expect("there").drift.push(Drift {
        change: "max size 3 -> 5".into(),
        repaired: false,
        at_unix_secs: 1,
    });
    let four = Digest::of(b"order").short();
    let seven = Digest::of(b"seven").short();
    #[rustfmt::skip]
    let cases = [
        ("waits", &waiting, up(), 0, format!("accepted waiting: generation 5 {} is not answered yet", newest())),
        ("the one before is done", &waiting, up(), 1, format!("converged yes: generation 4 {four}")),
        ("first one waits", &fresh, up(), 0, format!("accepted waiting: generation 4 {four} is not answered yet")),
        ("and nothing is done", &fresh, up(), 1, "converged no: nothing is accepted yet".into()),
        ("first one refused", &turned_down, up(), 0, "accepted no: generation 4 refused by guardrail: 90 nodes are more than 40".into()),
        ("not looked yet", &restarted, up(), 1, "converged unknown: the account agent has not looked at the account since it started".into()),
        ("not looked yet", &restarted, up(), 3, "held unknown: nothing is known".into()),
        ("converged once, not now", &degraded, up(), 1, "converged no: DEGRADED: 2 of 3 nodes ready".into()),
        ("nobody is heard", &degraded, down(1), 1, "converged was no: DEGRADED: 2 of 3 nodes ready".into()),
        ("an older database", &behind, up(), 0, format!("accepted yes: generation 7 {seven}")),
        ("drift", &drifting, up(), 4, "drift yes: max size 3 -> 5, not repaired".into()),
        ("nobody enrolled", &fresh, Link::Never, 2, "link down: no account agent has enrolled".into()),
    ];
    for (case, group, link, index, wanted) in cases {
        assert_eq!(words(group, &link)[index], wanted, "{case}");
    }

    // And the newest order is named apart where it is not the one in force.
    let five = newest();
    #[rustfmt::skip]
    let cases = [
        (&waiting, Some(("waiting", format!("generation 5 {five}, put 1 s ago, not answered yet; it wants nodes 3 -> 90")))),
        (&destroy, Some(("waiting", format!("generation 5 {five}, put 1 s ago, not answered yet; it wants the group gone")))),
        (&behind, Some(("newest", format!("generation 4 {four}; the account is at generation 7 {seven}, which this broker does not have: its database is older")))),
        (&fresh, None),
        (&degraded, None),
    ];
    for (group, wanted) in cases {
        assert_eq!(set_apart(group, 1000), wanted);
    }
    waiting.refused = Some(refused(3));
    assert!(set_apart(&waiting, 1000).is_some_and(|(label, _)| label == "waiting"));
    let text = describe(&behind, &up(), 1000);
    assert!(text.contains("  order        generation 7") && !text.contains("flights"), "{text}");
}

#[test]
fn a_refusal_is_history_once_a_later_order_was_accepted() {
    let mut group = group();
    for (generation, shown) in [(3, false), (5, true)] {
        group.refused = Some(refused(generation));
        assert_eq!(describe(&group, &up(), 1000).contains("refused"), shown, "{generation}");
    }
}

#[test]
fn a_group_without_any_answer_says_so() {
    let mut group = group();
    (group.accepted, group.converged, group.status) = (None, None, None);
    let text = describe(&group, &up(), 1000);
    assert!(text.starts_with(
        "delay_tsg  transform  PENDING   generation 4, put 3 s ago, not answered yet\n"
    ));
    group.refused = Some(refused(4));
    let text = describe(&group, &up(), 1000);
    assert!(
        text.starts_with("delay_tsg  transform  PENDING   generation 4, put 3 s ago, refused\n")
    );
    group.intent = Intent::Destroy;
    assert!(describe(&group, &up(), 1000).contains("               destroy this group\n"));
}

#[test]
fn groups_are_listed_in_columns_with_who_is_connected() {
    let mut refused_one = ninety();
    refused_one.name = GroupName::try_from("rows_tsg").expect("valid");
    refused_one.refused = Some(refused(5));
    let list = [group(), refused_one];
    assert_eq!(
        groups(&list, &up(), 1000),
        "\
GROUP      KIND       PHASE  DESIRED  OBSERVED  READY  GENERATION  ENVIRONMENT  APPLIED  REASON
delay_tsg  transform  READY        3         3      2           4  flights      3 s ago  all nodes are as declared
rows_tsg   transform  READY        3         3      2           4  flights      3 s ago  generation 5 refused: 90 nodes are more than 40
Account agent a-1 (release 0.1.0) connected for 10 min.
"
    );
    assert_eq!(
        groups(&list[..1], &down(1000), 1000 + 300),
        "\
GROUP      KIND       PHASE      DESIRED  OBSERVED  READY  GENERATION  ENVIRONMENT  APPLIED    REASON
delay_tsg  transform  was READY        3         3      2           4  flights      5 min ago  all nodes are as declared
Account agent a-1 is NOT connected, for 5 min now: phases and counts are as of then.
"
    );
    assert!(groups(&[], &Link::Never, 0).ends_with("No account agent has enrolled.\n"));
}

#[test]
fn the_json_says_what_follows_too() {
    let mut group = ninety();
    group.refused = Some(refused(5));
    let json = serde_json::to_value(json::group(&group, &down(1000))).expect("plain values");
    assert_eq!(json["generation"], 5);
    assert_eq!(json["in_force"]["generation"], 4);
    assert_eq!(json["stale_since_unix_secs"], 1000);
    assert_eq!(json["link"]["state"], "down");
    assert_eq!(json["link"]["last"]["agent"], "a-1");
    assert_eq!(json["conditions"][0]["name"], "accepted");
    assert_eq!(json["conditions"][0]["state"], "no");
    assert_eq!(json["conditions"][1]["stale"], true);
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
