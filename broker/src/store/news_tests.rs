//! Answers after answers, and the events that they make.

use outstation_protocol::v1::Refusal;

use super::*;

fn digest(generation: u64) -> Digest {
    Digest::of(&generation.to_be_bytes())
}

fn accepted(generation: u64) -> Answers {
    Answers { accepted: Some((Generation(generation), digest(generation))), ..Answers::default() }
}

fn refused(answers: Answers, generation: u64, rule: RefusalRule, message: &str) -> Answers {
    let reason = Refusal { rule, message: message.into(), hint: "ask".into() };
    Answers { refused: Some((Generation(generation), digest(generation), reason)), ..answers }
}

fn converged(answers: Answers, generation: u64, observed: &str) -> Answers {
    let observed = Digest::of(observed.as_bytes());
    Answers { converged: Some((Generation(generation), observed)), ..answers }
}

fn status(phase: GroupPhase, reason: &str) -> GroupStatus {
    GroupStatus {
        phase,
        desired_nodes: 3,
        observed_nodes: 3,
        ready_nodes: 3,
        reason: reason.into(),
        phase_since_unix_secs: 0,
        held: vec![],
        drift: vec![],
        nodes: vec![],
    }
}

fn with(answers: Answers, status: GroupStatus) -> Answers {
    Answers { status: Some(status), ..answers }
}

fn ready(held: &[(&str, &str)], drift: &[(&str, bool, u64)]) -> GroupStatus {
    let mut status = status(GroupPhase::Ready, "3 of 3");
    status.held = held
        .iter()
        .map(|(rule, message)| Held {
            generation: Some(Generation(1)),
            rule: (*rule).into(),
            message: (*message).into(),
            hint: "ask".into(),
        })
        .collect();
    status.drift = drift
        .iter()
        .map(|(change, repaired, at)| Drift {
            change: (*change).into(),
            repaired: *repaired,
            at_unix_secs: *at,
        })
        .collect();
    status
}

/// `kind generation digest? rule message`, as short as a table needs it.
fn words(news: &News) -> String {
    let mut words = news.kind.as_str().to_owned();
    if let Some(generation) = news.generation {
        words.push_str(&format!(" {generation}"));
        if let Some(found) = news.digest {
            assert_eq!(found, digest(generation.0), "{news:?}");
            words.push('#');
        }
    }
    match news.kind {
        EventKind::Accepted | EventKind::Converged | EventKind::Forgotten => {}
        _ if news.rule.is_empty() => words.push_str(&format!(" {}", news.message)),
        _ => words.push_str(&format!(" {}: {}", news.rule, news.message)),
    }
    words
}

#[test]
fn only_real_changes_are_events() {
    use GroupPhase::{Creating, Degraded, Ready};
    use RefusalRule::{AccountStore, Guardrail};
    let done = || converged(accepted(1), 1, "a");
    // Each case goes on from the answers before it.
    let story: &[(&str, Answers, &[&str])] = &[
        ("nothing yet", Answers::default(), &[]),
        ("accepted", accepted(1), &["accepted 1#"]),
        ("the same again", accepted(1), &[]),
        ("creating", with(accepted(1), status(Creating, "0 of 3")), &["phase 1# CREATING: 0 of 3"]),
        ("a node more", with(accepted(1), status(Creating, "1 of 3")), &[]),
        (
            "ready",
            with(done(), status(Ready, "3 of 3")),
            &["converged 1#", "phase 1# CREATING -> READY: 3 of 3"],
        ),
        ("other instances", with(converged(accepted(1), 1, "b"), status(Ready, "3 of 3")), &[]),
        ("the agent restarts", accepted(1), &[]),
        ("and says it all again", with(done(), status(Ready, "3 of 3")), &[]),
        (
            "a node is lost",
            with(done(), status(Degraded, "2 of 3")),
            &["phase 1# READY -> DEGRADED: 2 of 3"],
        ),
        (
            "and replaced",
            with(done(), status(Ready, "3 of 3")),
            &["phase 1# DEGRADED -> READY: 3 of 3"],
        ),
        (
            "the next is refused",
            with(refused(done(), 2, Guardrail, "90 nodes"), ready(&[], &[])),
            &["refused 2# guardrail: 90 nodes"],
        ),
        ("in other words", with(refused(done(), 2, Guardrail, "90 > 40"), ready(&[], &[])), &[]),
        ("the refusal is away for a while", with(done(), ready(&[], &[])), &[]),
        ("and back", with(refused(done(), 2, Guardrail, "90 > 40"), ready(&[], &[])), &[]),
        (
            "for another reason",
            with(refused(done(), 2, AccountStore, "disk full"), ready(&[], &[])),
            &["refused 2# account_store: disk full"],
        ),
        (
            "held",
            with(done(), ready(&[("pause", "pause = true"), ("aws", "attempt 1")], &[])),
            &["held 1# pause: pause = true", "held 1# aws: attempt 1"],
        ),
        (
            "still held, in other words",
            with(done(), ready(&[("aws", "attempt 2"), ("pause", "pause = true")], &[])),
            &[],
        ),
        ("the agent restarts while held", done(), &[]),
        (
            "one is held no longer",
            with(done(), ready(&[("aws", "attempt 3")], &[])),
            &["released 1# pause: no longer held by pause"],
        ),
        (
            "drift, which ends the hold",
            with(done(), ready(&[], &[("size 3 -> 5", false, 10)])),
            &["released 1# aws: no longer held by aws", "drift_seen 1# size 3 -> 5"],
        ),
        ("after a restart it has another time", with(done(), ready(&[], &[])), &[]),
        ("but is no news", with(done(), ready(&[], &[("size 3 -> 5", false, 20)])), &[]),
        (
            "repaired, then repaired again",
            with(
                done(),
                ready(
                    &[],
                    &[
                        ("size 3 -> 5", true, 40),
                        ("size 3 -> 5", true, 30),
                        ("size 3 -> 5", false, 20),
                    ],
                ),
            ),
            &["drift_repaired 1# size 3 -> 5", "drift_repaired 1# size 3 -> 5"],
        ),
        ("the ledger is lost", Answers::default(), &["forgotten 1#"]),
        ("still lost", Answers::default(), &[]),
        (
            "and found",
            with(done(), ready(&[], &[("size 3 -> 5", true, 40)])),
            &["accepted 1#", "converged 1#"],
        ),
        ("the next generation", accepted(3), &["accepted 3#"]),
        ("an agent that went back", accepted(2), &["accepted 2#"]),
        ("converged before it said accepted", converged(accepted(2), 3, "c"), &["converged 3"]),
    ];
    let mut told = Told::default();
    for (case, answers, wanted) in story {
        let news: Vec<String> = told.update(answers, 100).iter().map(words).collect();
        assert_eq!(news, *wanted, "{case}");
        assert!(told.update(answers, 200).is_empty(), "{case}: told twice");
        // As it comes back from the database.
        let json = serde_json::to_string(&told).expect("plain values");
        assert_eq!(serde_json::from_str::<Told>(&json).expect("own JSON"), told, "{case}");
    }
}

#[test]
fn what_is_older_than_the_log_is_no_news() {
    let answers = with(
        refused(converged(accepted(1), 1, "a"), 2, RefusalRule::Guardrail, "90 nodes"),
        ready(&[("pause", "pause")], &[("size", true, 1)]),
    );
    let mut told = Told::of(&answers, 50);
    assert!(told.update(&answers, 100).is_empty());
    let held = &answers.status.as_ref().expect("there").held[0];
    assert_eq!(told.held_since_unix_secs(held), Some(50));
    let other = Held { rule: "aws".into(), ..held.clone() };
    assert_eq!(told.held_since_unix_secs(&other), None);
}

#[test]
fn one_status_makes_a_bounded_number_of_events() {
    let mut crowded = status(GroupPhase::Ready, "3 of 3");
    crowded.held = (0..1000)
        .map(|n| Held {
            generation: None,
            rule: format!("rule-{n}"),
            message: String::new(),
            hint: String::new(),
        })
        .collect();
    crowded.drift = (0..1000)
        .map(|n| Drift { change: format!("{n}"), repaired: true, at_unix_secs: n })
        .collect();
    let answers = Answers { status: Some(crowded), ..Answers::default() };
    let mut told = Told::default();
    let events = 1 + HELD_TOLD_MAX + DRIFT_ENTRIES_MAX;
    assert_eq!(told.update(&answers, 1).len(), events);
    assert!(told.update(&answers, 2).is_empty());
}

#[test]
fn rules_are_named_as_in_json() {
    for rule in [
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
    ] {
        assert_eq!(serde_json::json!(rule), rule_name(rule));
    }
}
