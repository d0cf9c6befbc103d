//! The choice of endpoints, without sockets or clocks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outstation_transform_client::balance::{
    Balance, Change, Config, Ejection, Endpoint, EndpointId, EndpointView, Outcome, Phase,
};
use proptest::prelude::*;

fn endpoint(name: &str) -> Endpoint {
    Endpoint { instance: name.into(), address: format!("{name}:1") }
}

fn set(names: &str) -> Vec<Endpoint> {
    names.split_whitespace().map(endpoint).collect()
}

fn up(names: &str, now: Instant) -> Balance {
    let mut balance = Balance::new(Config::default(), 0x5eed);
    for change in balance.set_endpoints(&set(names)) {
        if let Change::Added(id, _) = change {
            balance.handle_up(id, now);
        }
    }
    balance
}

fn fail(balance: &mut Balance, id: EndpointId, times: u32, now: Instant) -> Option<Ejection> {
    (0..times).filter_map(|_| balance.finish(id, Outcome::Failed, now)).last()
}

const A: EndpointId = EndpointId(1);
const B: EndpointId = EndpointId(2);
const C: EndpointId = EndpointId(3);

#[test]
fn membership() {
    let mut balance = Balance::new(Config::default(), 1);
    let mut check = |names: &str, expected: &[&str]| {
        let changes = balance.set_endpoints(&set(names));
        let shown: Vec<String> = changes
            .iter()
            .map(|change| match change {
                Change::Added(id, endpoint) => format!("+{}={}", id.0, endpoint.instance),
                Change::Removed(id) => format!("-{}", id.0),
            })
            .collect();
        assert_eq!(shown, expected, "{names:?}");
    };
    check("a b", &["+1=a", "+2=b"]);
    check("b a", &[]);
    check("b c", &["-1", "+3=c"]);
    check("c c", &["-2"]);
    check("", &["-3"]);
    check("c", &["+4=c"]);
}

#[test]
fn a_moved_instance_is_another_endpoint() {
    let mut balance = Balance::new(Config::default(), 1);
    balance.set_endpoints(&set("a"));
    let moved = Endpoint { instance: "a".into(), address: "elsewhere:1".into() };
    let changes = balance.set_endpoints(std::slice::from_ref(&moved));
    assert_eq!(changes, [Change::Removed(A), Change::Added(B, moved)]);
}

#[test]
fn calls_spread_by_calls_in_flight() {
    let now = Instant::now();
    let mut balance = up("a b c", now);
    let mut picks: BTreeMap<EndpointId, u32> = BTreeMap::new();
    for _ in 0..300 {
        *picks.entry(balance.pick(&[]).unwrap()).or_default() += 1;
    }
    // Nothing ends, so the counts stay level whatever the seed: two choices differ by a few at most.
    assert!(picks.values().all(|count| (90..=110).contains(count)), "{picks:?}");

    // The slow one keeps its calls; with two choices it gets the next only when it has fewer.
    for _ in 0..100 {
        balance.finish(A, Outcome::Answered, now);
        balance.finish(B, Outcome::Answered, now);
    }
    for _ in 0..60 {
        let picked = balance.pick(&[]).unwrap();
        assert_ne!(picked, C);
    }
}

#[test]
fn a_full_endpoint_gets_nothing_until_one_of_its_calls_has_ended() {
    let now = Instant::now();
    let mut balance = Balance::new(Config { in_flight_max: 2, ..Config::default() }, 1);
    balance.set_endpoints(&set("a b c"));
    balance.handle_up(A, now);
    balance.handle_up(B, now);
    let mut picked: Vec<EndpointId> = (0..4).filter_map(|_| balance.pick(&[])).collect();
    picked.sort();
    assert_eq!(picked, [A, A, B, B]);
    assert_eq!((balance.pick(&[]), balance.pick(&[A])), (None, None));
    balance.finish(B, Outcome::Answered, now);
    assert_eq!(balance.pick(&[B]), None);
    assert_eq!((balance.pick(&[A]), balance.pick(&[])), (Some(B), None));
    // One that was ejected is for when nothing is up, not for when it is busy.
    balance.handle_up(C, now);
    let ejected = (0..3).filter_map(|_| balance.finish(C, Outcome::Failed, now)).count();
    assert_eq!(ejected, 1);
    assert_eq!(balance.pick(&[]), None);
    balance.handle_down(A);
    balance.handle_down(B);
    assert_eq!(balance.pick(&[]), Some(C));
}

#[test]
fn only_what_is_up_and_not_tried() {
    let now = Instant::now();
    let mut balance = up("a b c", now);
    assert_eq!(balance.pick(&[A, B]), Some(C));
    assert_eq!(balance.pick(&[A, B, C]), None);
    balance.handle_down(C);
    assert_eq!(balance.pick(&[A, B]), None);
    assert_eq!(balance.pick(&[A]), Some(B));
    balance.set_endpoints(&set("a c"));
    assert_eq!(balance.pick(&[]), Some(A));
    balance.handle_up(C, now);
    assert_eq!(balance.pick(&[A]), Some(C));
    balance.handle_up(B, now);
    assert_eq!(balance.pick(&[A, C]), None, "what was removed does not come back by itself");
}

#[test]
fn ejection_grows_is_bounded_and_forgiven() {
    let start = Instant::now();
    let at = |secs: u64| start + Duration::from_secs(secs);
    let mut balance = up("a b", start);
    assert_eq!(fail(&mut balance, A, 2, start), None);
    balance.finish(A, Outcome::Answered, start);
    assert_eq!(fail(&mut balance, A, 2, start), None, "an answer starts a new count");
    balance.finish(A, Outcome::Neutral, start);
    assert_eq!(
        fail(&mut balance, A, 1, start),
        Some(Ejection { until: at(1) }),
        "but what says nothing does not"
    );
    assert_eq!(balance.view()[0].phase, Phase::Ejected);
    assert_eq!(balance.pick(&[]), Some(B));
    let lengths: Vec<u64> = (0..7)
        .map(|_| (balance.handle_probe_failed(A, start).unwrap().until - start).as_secs())
        .collect();
    assert_eq!(lengths, [2, 4, 8, 16, 30, 30, 30]);
    balance.handle_up(A, at(100));
    assert_eq!(
        fail(&mut balance, A, 3, at(101)),
        Some(Ejection { until: at(131) }),
        "not forgotten yet"
    );
    balance.handle_up(A, at(200));
    balance.finish(A, Outcome::Answered, at(260));
    assert_eq!(
        fail(&mut balance, A, 3, at(260)),
        Some(Ejection { until: at(261) }),
        "forgiven after a minute"
    );
    assert_eq!(balance.handle_probe_failed(B, start), None, "only what is ejected");
}

#[test]
fn the_last_one_is_never_ejected() {
    let now = Instant::now();
    let mut balance = up("a b", now);
    assert!(fail(&mut balance, A, 3, now).is_some());
    assert_eq!(fail(&mut balance, B, 100, now), None);
    assert_eq!(balance.pick(&[]), Some(B));
    balance.handle_down(B);
    assert_eq!(balance.pick(&[]), Some(A), "an ejected one is better than none");
    balance.handle_down(A);
    assert_eq!(balance.pick(&[]), None);
}

#[test]
fn retries_have_a_budget() {
    let now = Instant::now();
    let mut balance = up("a b", now);
    let burst = std::iter::from_fn(|| balance.pick_retry(&[A])).count();
    assert_eq!(burst, 20, "the reserve");
    for _ in 0..100 {
        balance.earn_retry();
    }
    assert_eq!(
        std::iter::from_fn(|| balance.pick_retry(&[])).take(50).count(),
        19,
        "a fifth, by rounding one less"
    );
    for _ in 0..10_000 {
        balance.earn_retry();
    }
    assert_eq!(balance.pick_retry(&[A, B]), None);
    let burst = std::iter::from_fn(|| balance.pick_retry(&[A])).count();
    assert_eq!(burst, 20, "never more than the reserve, and a try that finds nobody costs nothing");
}

#[derive(Debug, Clone)]
enum Event {
    Set(Vec<u8>),
    Up(u8),
    Down(u8),
    ProbeFailed(u8),
    Pick(Vec<u8>),
    Finish(u8, u8),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let ids = || prop::collection::vec(0u8..8, 0..6);
    prop_oneof![
        2 => ids().prop_map(Event::Set),
        4 => (0u8..8).prop_map(Event::Up),
        2 => (0u8..8).prop_map(Event::Down),
        2 => (0u8..8).prop_map(Event::ProbeFailed),
        8 => ids().prop_map(Event::Pick),
        8 => (0u8..20, 0u8..3).prop_map(|(nth, outcome)| Event::Finish(nth, outcome)),
        1 => (0u64..100).prop_map(Event::Wait),
    ]
}

proptest! {
    /// Whatever happens: a pick is in the set, usable, has room, and is not one that was tried; nothing is picked only if
    /// nothing can be; calls in flight are counted; one that is up is left whenever there was one.
    #[test]
    fn any_history(seed in any::<u64>(), events in prop::collection::vec(event(), 1..150)) {
        let mut now = Instant::now();
        let max = 3;
        let mut balance = Balance::new(Config { in_flight_max: max, ..Config::default() }, seed);
        let mut members: BTreeMap<EndpointId, Endpoint> = BTreeMap::new();
        let mut in_flight: Vec<EndpointId> = Vec::new();
        let nth = |members: &BTreeMap<EndpointId, Endpoint>, nth: u8| members.keys().nth(usize::from(nth)).copied();
        for event in events {
            match event {
                Event::Set(names) => {
                    let set: Vec<Endpoint> = names.iter().map(|name| endpoint(&name.to_string())).collect();
                    for change in balance.set_endpoints(&set) {
                        match change {
                            Change::Added(id, endpoint) => prop_assert!(members.insert(id, endpoint).is_none()),
                            Change::Removed(id) => {
                                prop_assert!(members.remove(&id).is_some());
                            }
                        }
                    }
                    let mut expected = set.clone();
                    expected.sort();
                    expected.dedup();
                    let mut have: Vec<Endpoint> = members.values().cloned().collect();
                    have.sort();
                    prop_assert_eq!(have, expected);
                }
                Event::Up(n) => if let Some(id) = nth(&members, n) { balance.handle_up(id, now) },
                Event::Down(n) => if let Some(id) = nth(&members, n) { balance.handle_down(id) },
                Event::ProbeFailed(n) => {
                    let ejection = nth(&members, n).and_then(|id| balance.handle_probe_failed(id, now));
                    prop_assert!(ejection.is_none_or(|e| e.until - now <= Duration::from_secs(30)));
                }
                Event::Pick(tried) => {
                    let tried: Vec<EndpointId> = tried.into_iter().filter_map(|n| nth(&members, n)).collect();
                    let views: BTreeMap<EndpointId, EndpointView> = members.keys().copied().zip(balance.view()).filter(|(id, _)| !tried.contains(id)).collect();
                    let is_up = |view: &EndpointView| matches!(view.phase, Phase::Up { .. });
                    let any_up = views.values().any(is_up);
                    let usable = |view: &EndpointView| if any_up { is_up(view) } else { view.phase == Phase::Ejected };
                    let mut with_room = views.iter().filter(|(_, view)| usable(view) && view.in_flight < max);
                    match balance.pick(&tried) {
                        Some(id) => {
                            prop_assert!(with_room.any(|(candidate, _)| *candidate == id));
                            in_flight.push(id);
                        }
                        None => prop_assert!(with_room.next().is_none()),
                    }
                }
                Event::Finish(n, outcome) => if !in_flight.is_empty() {
                    let id = in_flight.swap_remove(usize::from(n) % in_flight.len());
                    let outcome = [Outcome::Answered, Outcome::Neutral, Outcome::Failed][usize::from(outcome)];
                    let ups = |balance: &Balance| balance.view().iter().filter(|view| matches!(view.phase, Phase::Up { .. })).count();
                    let before = ups(&balance);
                    let ejected = balance.finish(id, outcome, now).is_some();
                    prop_assert_eq!(ups(&balance), before - usize::from(ejected));
                    prop_assert!(before == 0 || ups(&balance) > 0);
                },
                Event::Wait(secs) => now += Duration::from_secs(secs),
            }
            for (view, id) in balance.view().iter().zip(members.keys()) {
                prop_assert_eq!(view.in_flight as usize, in_flight.iter().filter(|flying| *flying == id).count());
            }
        }
    }
}
