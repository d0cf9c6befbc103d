use std::net::{IpAddr, Ipv4Addr};

use outstation_protocol::v1::NodeState;

use super::*;
use crate::account::guardrails;
use crate::account::plan::GroupPlan;
use crate::account::registry::SessionId;
use crate::account::testing::{group, instance, observed, temporary_folder};

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const NOW: u64 = 100_000;

/// What a node last said, and when: `r` ready, `u` unhealthy after it was ready, `n` unhealthy and never ready,
/// `l` not connected, `-` never heard.
fn registry(nodes: &str, at: u64) -> Registry {
    let mut registry = Registry::default();
    for (n, word) in (0u32..).zip(nodes.chars()) {
        let (id, session) = (instance(n), SessionId(1));
        let say = |phase, registry: &mut Registry, at| {
            let state = NodeState {
                phase,
                endpoint: None,
                artifacts: None,
                reason: Some("no disk".to_owned()),
            };
            registry.state(&id, session, ADDRESS, state, at).expect("no endpoint");
        };
        if word == '-' {
            continue;
        }
        registry.hello(instance(n), group("a"), session, 1);
        if word != 'n' {
            say(NodePhase::Ready, &mut registry, 1);
        }
        match word {
            'u' | 'n' => say(NodePhase::Unhealthy, &mut registry, at),
            'l' => registry.lost(&instance(n), session, at),
            _ => {}
        }
    }
    registry
}

/// What follows for group `a` whose nodes are as the letters say since `since` seconds.
fn words(nodes: &str, since: u64, history: &[(u32, u64)], rolling: bool) -> String {
    let count = u32::try_from(nodes.len()).expect("a few");
    let newest = history
        .iter()
        .map(|(n, ago)| Replaced { instance: instance(*n), at_unix_secs: NOW - ago })
        .collect();
    let first_seen: Vec<_> = (0..count).map(|n| (instance(n), NOW - since)).collect();
    let observed = Observed::from([(group("a"), observed(count))]);
    let (registry, history) = (registry(nodes, NOW - since), Ok(History { next: 0, newest }));
    let facts = Facts {
        observed: &observed,
        registry: &registry,
        first_seen: &FirstSeen::of(&first_seen),
        history: &history,
        now_unix_secs: NOW,
    };
    let reason = "it is at 10 %".to_owned();
    let rolling = rolling.then_some(crate::account::refresh::Rolling::UnderWay { reason });
    let mut plans = Plan::from([(group("a"), GroupPlan { rolling, ..GroupPlan::default() })]);
    add(&mut plans, &facts, &guardrails::sample());
    let plan = plans.remove(&group("a")).expect("put there");
    let actions = plan.actions.iter().map(|action| match action {
        Action::Replace { instance, why, number: _ } => {
            format!("{} {why}", instance.as_str().trim_start_matches("i-").trim_start_matches('0'))
        }
        other => format!("{other:?}"),
    });
    let held = plan.held.iter().map(|held| format!("held by {}", held.rule));
    actions.chain(held).collect::<Vec<_>>().join("; ")
}

#[test]
fn who_does_not_work_is_replaced_within_the_bounds() {
    let six: Vec<(u32, u64)> = (10..16).map(|n| (n, 3000)).collect();
    let five: Vec<(u32, u64)> = six[..5].to_vec();
    let old: Vec<(u32, u64)> = (10..16).map(|n| (n, 3700)).collect();
    for (name, nodes, since, history, wanted) in [
        ("all well", "rrr", 9000, &[][..], ""),
        ("not for long", "rru", 599, &[], ""),
        ("it says so", "rru", 600, &[], "2 says that it does not work: no disk"),
        ("not connected", "rrl", 600, &[], "2 has not been heard for 600 s"),
        ("never heard", "rr-", 600, &[], "2 runs for 600 s and was never heard"),
        ("two of three: hardly the nodes", "ruu", 600, &[], "held by min_healthy_percent"),
        (
            "two of twenty",
            "rrrrrrrrrrrrrrrrrruu",
            600,
            &[],
            "12 says that it does not work: no disk; 13 says that it does not work: no disk",
        ),
        ("the only one, which worked", "u", 600, &[], " says that it does not work: no disk"),
        ("code that works nowhere", "n", 600, &[], ""),
        ("code that works elsewhere", "rrn", 600, &[], "2 says that it does not work: no disk"),
        ("nobody is heard: hardly the nodes", "l", 600, &[], "held by silence"),
        ("the hour is full", "rru", 600, &six, "held by replacements_per_hour"),
        (
            "one is left",
            "rrrrrrrrrrrrrrrrrruu",
            600,
            &five,
            "12 says that it does not work: no disk; held by replacements_per_hour",
        ),
        ("an hour later", "rru", 600, &old, "2 says that it does not work: no disk"),
        ("asked a moment ago", "rru", 600, &[(2, 100)], ""),
        (
            "asked, and nothing happened",
            "rru",
            600,
            &[(2, 130)],
            "2 says that it does not work: no disk",
        ),
    ] {
        assert_eq!(words(nodes, since, history, false), wanted, "{name}");
    }
    assert_eq!(words("rru", 600, &[], true), "", "a refresh replaces it anyway");
}

#[test]
fn replacements_are_counted_in_the_account_store() {
    let folder = temporary_folder();
    let store = AccountStore::folder(folder.path());
    let at = |n: u32| Replaced { instance: instance(n), at_unix_secs: u64::from(n) };
    for n in 0..4 {
        let next = History::read(&store, 2).expect("read").next;
        note(&store, next, &at(n)).expect("written");
    }
    let history = History::read(&store, 2).expect("read");
    assert_eq!(history.newest, [at(2), at(3)]);
    // Of two agents that read the same, one gets the number.
    note(&store, history.next, &at(4)).expect("written");
    assert!(note(&store, history.next, &at(5)).is_err());
    std::fs::write(folder.path().join("state/replacements/00000004"), b"").expect("damaged");
    assert!(History::read(&store, 2).is_err(), "what cannot be counted is not taken for nothing");
}
