//! Admission as tables of events and what follows from them, and as random histories.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outstation_transform_server::admission::{
    Action, Admission, Backoff, Config, Ended, Refusal, RequestId, WorkerId,
};
use proptest::prelude::*;

const CONFIG: Config = Config { waiting_max: 3, waiting_bytes_max: 100 };

/// Runs a script of events, one line each, and gives what came of it as text.
///
/// `at 5` sets the clock (ms) · `ready 1` · `call 7 10` (deadline, default 100; a third number is its bytes)
/// · `done 1 7` · `gone 1` · `cancel 7` · `drain` · `close why` · `timeout`
fn run(script: &str) -> String {
    let start = Instant::now();
    let at = |millis: u64| start + Duration::from_millis(millis);
    let mut admission = Admission::new(CONFIG, "starting");
    let (mut now, mut seen) = (0, Vec::new());
    for line in script.split([';', '\n']).map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize, default: u64| {
            words.get(index).map_or(default, |word| word.parse().unwrap())
        };
        let id = |index| number(index, 0);
        match words[0] {
            "at" => now = id(1),
            "ready" => {
                admission.open();
                admission.handle_worker_ready(WorkerId(id(1)), at(now));
            }
            "call" => {
                let (deadline, bytes) = (at(number(2, 100)), number(3, 1) as usize);
                if let Err(refusal) = admission.offer(RequestId(id(1)), bytes, deadline, at(now)) {
                    seen.push(format!("no {}: {refusal}", id(1)));
                }
            }
            "done" => {
                if let Err(error) =
                    admission.handle_worker_done(WorkerId(id(1)), RequestId(id(2)), at(now))
                {
                    seen.push(error.to_string());
                }
            }
            "gone" => {
                if let Some(request) = admission.handle_worker_gone(WorkerId(id(1))) {
                    seen.push(format!("lost {}", request.0));
                }
            }
            "cancel" => drop(admission.cancel(RequestId(id(1)))),
            "drain" => admission.drain(),
            "close" => admission.close(words[1]),
            "timeout" => admission.handle_timeout(at(now)),
            other => panic!("{other}?"),
        }
        while let Some(action) = admission.poll_action() {
            seen.push(match action {
                Action::Start { request, worker } => format!("{} on {}", request.0, worker.0),
                Action::Refuse { request, refusal } => format!("no {}: {refusal}", request.0),
                Action::Kill { worker, request } => format!("kill {} at {}", worker.0, request.0),
            });
        }
    }
    if admission.is_empty() {
        seen.push("empty".into());
    }
    seen.join(", ")
}

#[test]
fn what_follows() {
    let cases = [
        ("an idle worker is used at once", "ready 1; call 7", "7 on 1"),
        ("before any worker", "call 7", "no 7: no worker: starting, empty"),
        ("the last idle one first", "ready 1; ready 2; call 7; call 8", "7 on 2, 8 on 1"),
        (
            "in order of arrival",
            "ready 1; call 7; call 8; call 9; done 1 7; done 1 8",
            "7 on 1, 8 on 1, 9 on 1",
        ),
        ("a ready worker takes what waits", "ready 1; call 7; call 8; ready 2", "7 on 1, 8 on 2"),
        (
            "the queue is bounded",
            "ready 1; call 1; call 2; call 3; call 4; call 5",
            "1 on 1, no 5: 3 calls are waiting already",
        ),
        (
            "and so are its bytes",
            "ready 1; call 1; call 2 100 60; call 3 100 41",
            "1 on 1, no 3: calls of 100 bytes are waiting already",
        ),
        (
            "one large request may wait",
            "ready 1; call 1; call 2 100 5000; done 1 1",
            "1 on 1, 2 on 1",
        ),
        (
            "bytes are given back",
            "ready 1; call 1; call 2 100 60; cancel 2; call 3 100 60; done 1 1",
            "1 on 1, 3 on 1",
        ),
        (
            "late from the start",
            "ready 1; at 100; call 7 100",
            "no 7: the deadline passed before a worker was free, empty",
        ),
        (
            "never started after its deadline",
            "ready 1; call 1; call 2 10; call 3; at 10; done 1 1",
            "1 on 1, no 2: the deadline passed before a worker was free, 3 on 1",
        ),
        (
            "expires while waiting",
            "ready 1; call 1; call 2 10; at 10; timeout",
            "1 on 1, no 2: the deadline passed before a worker was free",
        ),
        (
            "a runaway costs its worker",
            "ready 1; call 1 10; call 2; at 9; timeout; at 10; timeout; ready 2",
            "1 on 1, kill 1 at 1, 2 on 2",
        ),
        (
            "a killed worker's answer is too late",
            "ready 1; call 1 10; at 10; timeout; done 1 1; gone 1",
            "1 on 1, kill 1 at 1, worker 1 answered call 1, which it does not run, empty",
        ),
        (
            "a cancelled caller leaves the queue",
            "ready 1; call 1; call 2; cancel 2; done 1 1",
            "1 on 1, empty",
        ),
        (
            "cancelled while it runs",
            "ready 1; call 1; cancel 1; call 2; done 1 1",
            "1 on 1, 2 on 1",
        ),
        (
            "the started request is lost",
            "ready 1; call 1; call 2; gone 1; ready 2",
            "1 on 1, lost 1, 2 on 2",
        ),
        ("an idle worker goes", "ready 1; gone 1; call 1; ready 2", "1 on 2"),
        (
            "an answer to something else",
            "ready 1; call 1; done 1 9; done 1 1; done 1 1",
            "1 on 1, worker 1 answered call 9, which it does not run, worker 1 answered call 1, which it does not run, empty",
        ),
        (
            "drain finishes what was taken",
            "ready 1; call 1; call 2; drain; call 3; done 1 1; done 1 2",
            "1 on 1, no 3: the server is draining, 2 on 1, empty",
        ),
        (
            "without workers what waits is refused",
            "ready 1; call 1; call 2; gone 1; close broken; call 3; ready 2; call 4",
            "1 on 1, lost 1, no 2: no worker: broken, no 3: no worker: broken, 4 on 2",
        ),
    ];
    for (name, script, expected) in cases {
        assert_eq!(run(script), expected, "{name}: {script}");
    }
}

#[test]
fn pauses_between_workers() {
    let check = |ends: &[Ended], expected: &[u64]| {
        let mut backoff = Backoff::default();
        let pauses: Vec<u64> =
            ends.iter().map(|end| backoff.next(*end).as_millis() as u64).collect();
        assert_eq!(pauses, expected, "{ends:?}");
    };
    let died = |secs| Ended::Died { lived: Duration::from_secs(secs) };
    check(&[Ended::Killed, Ended::Killed], &[0, 0]);
    check(&[Ended::NeverReady; 10], &[100, 200, 400, 800, 1600, 3200, 6400, 12800, 15000, 15000]);
    check(
        &[died(0), died(1), Ended::Killed, died(2), died(10), died(0)],
        &[100, 200, 0, 400, 0, 100],
    );
}

#[derive(Debug, Clone)]
enum Event {
    Ready,
    Call { bytes: usize, timeout: u64 },
    Done { nth: usize },
    Gone { nth: usize },
    Cancel { nth: usize },
    Wait { millis: u64 },
    Close,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => Just(Event::Ready),
        6 => (0usize..120, 0u64..50).prop_map(|(bytes, timeout)| Event::Call { bytes, timeout }),
        4 => (0usize..8).prop_map(|nth| Event::Done { nth }),
        1 => (0usize..8).prop_map(|nth| Event::Gone { nth }),
        2 => (0usize..8).prop_map(|nth| Event::Cancel { nth }),
        2 => (0u64..30).prop_map(|millis| Event::Wait { millis }),
        1 => Just(Event::Close),
    ]
}

proptest! {
    /// Whatever happens: a request gets exactly one end, never starts late, a worker runs one at a time,
    /// nothing waits beside an idle worker, and the bounds hold.
    #[test]
    fn any_history(events in prop::collection::vec(event(), 1..120)) {
        let mut now = Instant::now();
        let mut admission = Admission::new(CONFIG, "starting");
        let mut next = 0u64;
        let mut open = false;
        let mut waiting: BTreeMap<RequestId, Instant> = BTreeMap::new();
        let mut running: BTreeMap<WorkerId, (RequestId, Instant)> = BTreeMap::new();
        let mut idle: Vec<WorkerId> = Vec::new();
        for event in events {
            next += 1;
            match event {
                Event::Ready => {
                    open = true;
                    admission.open();
                    admission.handle_worker_ready(WorkerId(next), now);
                    idle.push(WorkerId(next));
                }
                Event::Call { bytes, timeout } => {
                    let deadline = now + Duration::from_millis(timeout);
                    match admission.offer(RequestId(next), bytes, deadline, now) {
                        Ok(()) => {
                            prop_assert!(open && timeout > 0);
                            waiting.insert(RequestId(next), deadline);
                        }
                        Err(Refusal::NoWorker { .. }) => prop_assert!(!open),
                        Err(Refusal::Expired) => prop_assert_eq!(timeout, 0),
                        Err(Refusal::TooManyWaiting { .. } | Refusal::TooManyBytesWaiting { .. }) => prop_assert!(idle.is_empty()),
                        Err(Refusal::Draining) => prop_assert!(false),
                    }
                }
                Event::Done { nth } => {
                    if let Some((&worker, &(request, _))) = running.iter().nth(nth) {
                        running.remove(&worker);
                        idle.push(worker);
                        prop_assert!(admission.handle_worker_done(worker, request, now).is_ok());
                    }
                }
                Event::Gone { nth } => {
                    if let Some(&worker) = running.keys().chain(&idle).nth(nth) {
                        let lost = running.remove(&worker).map(|(request, _)| request);
                        idle.retain(|idle| *idle != worker);
                        prop_assert_eq!(admission.handle_worker_gone(worker), lost);
                    }
                }
                Event::Cancel { nth } => {
                    if let Some(&request) = waiting.keys().nth(nth) {
                        prop_assert!(admission.cancel(request));
                        waiting.remove(&request);
                    }
                }
                Event::Wait { millis } => {
                    now += Duration::from_millis(millis);
                    admission.handle_timeout(now);
                }
                Event::Close => {
                    if running.is_empty() && idle.is_empty() {
                        open = false;
                        admission.close("broken");
                    }
                }
            }
            while let Some(action) = admission.poll_action() {
                match action {
                    Action::Start { request, worker } => {
                        let deadline = waiting.remove(&request);
                        prop_assert!(deadline.is_some_and(|deadline| deadline > now), "late or unknown");
                        let before = idle.len();
                        idle.retain(|idle| *idle != worker);
                        prop_assert_eq!(idle.len() + 1, before, "the worker was idle");
                        running.insert(worker, (request, deadline.unwrap()));
                    }
                    Action::Refuse { request, refusal } => {
                        let deadline = waiting.remove(&request).unwrap();
                        prop_assert!(refusal != Refusal::Expired || deadline <= now);
                    }
                    Action::Kill { worker, request } => {
                        let (ran, deadline) = running.remove(&worker).unwrap();
                        prop_assert!(ran == request && deadline <= now);
                    }
                }
            }
            prop_assert!(waiting.is_empty() || idle.is_empty());
            prop_assert!(waiting.len() <= CONFIG.waiting_max);
            prop_assert_eq!(admission.is_empty(), waiting.is_empty() && running.is_empty());
            let first = waiting.values().chain(running.values().map(|(_, deadline)| deadline)).min();
            prop_assert_eq!(admission.next_timeout(), first.copied());
        }
    }
}
