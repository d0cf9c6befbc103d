//! Admission as tables of events and what follows from them, and as random histories.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use outstation_transform_server::admission::{
    Action, Admission, CallerId, Config, Limits, Loss, Offer, Refusal, RequestId, TargetId,
    WorkerId,
};
use proptest::prelude::*;

const CONFIG: Config = Config { waiting_max: 6, waiting_bytes_max: 100 };

/// Runs a script of events, one after the other, and gives what came of it as text.
///
/// `at 5` sets the clock (ms) · `ready 1` · `call 7 k=v…` (`t` target, `c` caller, `d` deadline in ms, by
/// default 1000, `b` bytes) · `take 1` · `done 1 7 30` (took 30 µs; without: not started) ·
/// `gone 1 7` (ran 7; without: nothing) · `fetched 1 7` (answered, and runs 7) · `limit t running waiting` ·
/// `retire 1` · `callers-left 7` · `drain` · `close why` · `timeout`
struct Script {
    admission: Admission<u64>,
    start: Instant,
    now: u64,
    seen: Vec<String>,
}

fn run(script: &str) -> String {
    let admission = Admission::new(CONFIG, "starting");
    let mut run = Script { admission, start: Instant::now(), now: 0, seen: Vec::new() };
    for line in script.split(';').map(str::trim).filter(|line| !line.is_empty()) {
        run.step(line);
        run.actions();
    }
    if run.admission.is_empty() {
        run.seen.push("empty".into());
    }
    run.seen.join(", ")
}

impl Script {
    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    fn step(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let maybe = |index: usize| words.get(index).map(|word| word.parse::<u64>().unwrap());
        let (worker, second) = (WorkerId(maybe_id(&words)), || maybe(2).map(RequestId));
        let now = self.at(self.now);
        match words[0] {
            "at" => self.now = maybe(1).unwrap(),
            "ready" => {
                self.admission.open();
                self.admission.handle_worker_ready(worker);
            }
            "call" => {
                let option = |key: &str, default: u64| {
                    let found = words.iter().find_map(|word| word.strip_prefix(key));
                    found.map_or(default, |value| value.parse().unwrap())
                };
                let (request, deadline) = (maybe(1).unwrap(), self.at(option("d=", 1000)));
                let (target, caller) =
                    (TargetId(option("t=", 1) as u32), CallerId(option("c=", 1)));
                let bytes = option("b=", 1) as usize;
                let request_id = RequestId(request);
                let offer =
                    Offer { request: request_id, target, caller, bytes, deadline, call: request };
                self.admission.offer(offer, now);
            }
            "take" => {
                let taken = self.admission.take(worker, now, |_| false);
                let taken: Vec<String> =
                    taken.iter().map(|request| request.0.to_string()).collect();
                self.seen.push(format!("[{}]", taken.join(" ")));
            }
            "done" => {
                let took = maybe(3).map(Duration::from_micros);
                match self.admission.handle_done(worker, second().unwrap(), took) {
                    Ok(Some(call)) => self.seen.push(format!("answer {call}")),
                    Ok(None) => {}
                    Err(error) => self.seen.push(error.to_string()),
                }
            }
            "fetched" => {
                if let Some(call) =
                    self.admission.handle_fetched_answer(worker, second().unwrap(), None)
                {
                    self.seen.push(format!("answer {call}"));
                }
                self.admission.handle_fetched(worker, maybe(3).map(RequestId), now);
            }
            "gone" => self.admission.handle_worker_gone(worker, second()),
            "limit" => {
                let most = |index| maybe(index).unwrap() as usize;
                let limits = Limits { running_max: most(2), waiting_max: most(3), weight: 1 };
                self.admission.limit(TargetId(maybe(1).unwrap() as u32), limits);
            }
            "retire" => self.admission.retire(worker),
            "callers-left" => {
                let left = maybe(1).unwrap();
                self.admission.drop_waiting(|call| *call == left);
            }
            "drain" => self.admission.drain(),
            "close" => self.admission.close(words[1]),
            "timeout" => self.admission.handle_timeout(now),
            other => panic!("{other}?"),
        }
    }

    fn actions(&mut self) {
        while let Some(action) = self.admission.poll_action() {
            self.seen.push(match action {
                Action::Wake { worker } => format!("wake {}", worker.0),
                Action::Refuse { call, refusal } => format!("no {call}: {refusal}"),
                Action::Lose { call, loss: Loss::Died } => format!("lost {call}"),
                Action::Lose { call, loss: Loss::Runaway } => format!("runaway {call}"),
                Action::Fetch { worker } => format!("fetch {}", worker.0),
                Action::Kill { worker } => format!("kill {}", worker.0),
            });
        }
    }
}

fn maybe_id(words: &[&str]) -> u64 {
    words.get(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// A worker, and a target whose calls are known to take 10 µs.
const KNOWN: &str = "ready 1; call 1; take 1; done 1 1 10; take 1; ";
const KNOWN_SEEN: &str = "wake 1, [1], answer 1, [], ";

fn check(cases: &[(&str, &str, &str)]) {
    for (name, script, expected) in cases {
        let (script, expected) = match script.strip_prefix("known; ") {
            Some(rest) => (format!("{KNOWN}{rest}"), format!("{KNOWN_SEEN}{expected}")),
            None => ((*script).to_owned(), (*expected).to_owned()),
        };
        assert_eq!(run(&script), expected, "{name}: {script}");
    }
}

#[test]
fn who_starts_where() {
    check(&[
        ("an idle worker is called at once", "ready 1; call 7; take 1", "wake 1, [7]"),
        ("before any worker", "call 7", "no 7: no worker: starting, empty"),
        (
            "the last idle one first, each for one",
            "ready 1; ready 2; call 7; call 8; take 2; take 1",
            "wake 2, wake 1, [7], [8]",
        ),
        (
            "unknown calls one by one",
            "ready 1; call 7; call 8; take 1; done 1 7 10; take 1",
            "wake 1, [7], answer 7, [8]",
        ),
        (
            "what came meanwhile shares a frame",
            "known; call 7; call 8; call 9; take 1",
            "wake 1, [7 8 9]",
        ),
        (
            "slow calls go alone",
            "ready 1; call 1; take 1; done 1 1 1000; take 1; call 7; call 8; take 1",
            "wake 1, [1], answer 1, [], wake 1, [7]",
        ),
        (
            "two that were called share what waits",
            "known; ready 2; call 7; call 8; call 9; call 10; take 2; take 1",
            "wake 2, wake 1, [7 8], [9 10]",
        ),
        (
            "a ready worker takes what waits",
            "ready 1; call 7; take 1; call 8; ready 2; take 2",
            "wake 1, [7], wake 2, [8]",
        ),
        ("an idle worker goes", "ready 1; gone 1; call 1; ready 2; take 2", "wake 2, [1]"),
        (
            "targets take turns by their time",
            "known; ready 2; call 2 t=2; take 2; done 2 2 10; take 2; gone 2; \
             call 3; call 4; call 5; call 6 t=2; take 1",
            "wake 2, [2], answer 2, [], wake 1, [3 6 4 5]",
        ),
        (
            "and so do a target's callers",
            "known; call 3; call 4; call 5; call 6 c=2; take 1",
            "wake 1, [6 3 4 5]",
        ),
        (
            "a target has its bound of running calls",
            "known; limit 1 2 9; call 3; call 4; call 5; take 1; done 1 3 10; done 1 4 10; take 1",
            "wake 1, [3 4], answer 3, answer 4, [5]",
        ),
    ]);
}

#[test]
fn what_is_refused() {
    check(&[
        (
            "the queue is bounded, and a flood pays for itself",
            "ready 1; call 1; take 1; call 2; call 3; call 4; call 5; call 6; call 7; call 8; call 9 t=2",
            "wake 1, [1], no 8: 6 calls are waiting already, no 7: 6 calls are waiting already",
        ),
        (
            "a target has its bound of waiting calls",
            "ready 1; limit 1 9 1; call 1; take 1; call 2; call 3; call 4 t=2",
            "wake 1, [1], no 3: 1 calls of it are waiting already, as many as it may have",
        ),
        (
            "and so are its bytes",
            "ready 1; call 1; take 1; call 2 b=60; call 3 b=41",
            "wake 1, [1], no 3: calls of 100 bytes are waiting already",
        ),
        (
            "one large request may wait",
            "ready 1; call 1; take 1; call 2 b=5000; done 1 1 10; take 1",
            "wake 1, [1], answer 1, [2]",
        ),
        (
            "a place is free when its caller has left",
            "ready 1; call 1; take 1; call 2 b=60; callers-left 2; call 3 b=60",
            "wake 1, [1], no 2: the caller went away",
        ),
        (
            "what would expire in the queue is told so at once",
            "ready 1; call 1; take 1; done 1 1 100000; take 1; call 2; take 1; call 3; call 4 d=250; call 5 d=350",
            "wake 1, [1], answer 1, [], wake 1, [2], no 5: what waits before it needs about 199 ms, more than half of its time",
        ),
        (
            "not begun when it has waited too long to end in time; begun when it came with so little",
            "ready 1; call 1; take 1; done 1 1 100000; call 2; take 1; call 3 d=260; at 200; done 1 2 100000; take 1; \
             call 4 d=250; take 1",
            "wake 1, [1], answer 1, [2], answer 2, [], no 3: the deadline passed before a worker was free, wake 1, [4]",
        ),
        (
            "late from the start",
            "ready 1; at 100; call 7 d=100",
            "no 7: the deadline passed before a worker was free, empty",
        ),
        (
            "never started after its deadline",
            "ready 1; call 1; take 1; call 2 d=10; call 3; at 10; done 1 1 10; take 1",
            "wake 1, [1], answer 1, [3], no 2: the deadline passed before a worker was free",
        ),
        (
            "expires while waiting",
            "ready 1; call 1; take 1; call 2 d=10; at 10; timeout",
            "wake 1, [1], no 2: the deadline passed before a worker was free",
        ),
        (
            "drain finishes what was taken",
            "ready 1; call 1; take 1; call 2; drain; call 3; done 1 1 10; take 1; done 1 2 10",
            "wake 1, [1], no 3: the server is draining, answer 1, [2], answer 2, empty",
        ),
        (
            "without workers what waits is refused",
            "ready 1; call 1; take 1; call 2; gone 1 1; close broken; call 3; ready 2; call 4; take 2",
            "wake 1, [1], lost 1, no 2: no worker: broken, no 3: no worker: broken, wake 2, [4]",
        ),
    ]);
}

#[test]
fn when_a_worker_ends() {
    check(&[
        (
            "the started request is lost, and no other of its frame",
            "known; call 2; call 3; call 4; take 1; done 1 2 10; gone 1 3; ready 2; take 2",
            "wake 1, [2 3 4], answer 2, lost 3, wake 2, [4]",
        ),
        (
            "what had not begun waits where it was, before what came later",
            "known; call 2; call 3; take 1; call 4; gone 1; ready 2; take 2",
            "wake 1, [2 3], wake 2, [2 3 4]",
        ),
        (
            "three workers that ended with it are enough",
            "ready 1; call 7; take 1; gone 1; ready 2; take 2; gone 2; ready 3; take 3; gone 3",
            "wake 1, [7], wake 2, [7], wake 3, [7], lost 7, empty",
        ),
        (
            "a runaway costs its worker and itself",
            "known; call 2 d=10; call 3; take 1; at 10; timeout; fetched 1 0 2; ready 2; take 2",
            "wake 1, [2 3], fetch 1, kill 1, runaway 2, wake 2, [3]",
        ),
        (
            "late, but the one before it is to blame",
            "known; call 2; call 3 d=10; take 1; at 10; timeout; fetched 1 0 2; done 1 2 10; done 1 3; take 1",
            "wake 1, [2 3], fetch 1, no 3: the deadline passed before a worker was free, answer 2, [], empty",
        ),
        (
            "answers that are held back are fetched",
            "known; call 2; call 3; take 1; at 2; timeout; fetched 1 2 3; at 50; timeout; done 1 2 10; done 1 3 10",
            "wake 1, [2 3], fetch 1, answer 2, answer 3, empty",
        ),
        (
            "a killed worker's answer is too late",
            "known; call 2 d=10; take 1; at 10; timeout; fetched 1 0 2; done 1 2 10; gone 1",
            "wake 1, [2], fetch 1, kill 1, runaway 2, worker 1 answered call 2, which it does not run, empty",
        ),
        (
            "an answer to something else",
            "known; call 2; take 1; done 1 9 10; done 1 2 10; done 1 2 10",
            "wake 1, [2], worker 1 answered call 9, which it does not run, answer 2, worker 1 answered call 2, which it does not run, empty",
        ),
        (
            "a retiring worker finishes, is woken, and gets nothing",
            "known; call 2; take 1; retire 1; call 3; done 1 2 10; take 1; gone 1; ready 2; take 2",
            "wake 1, [2], answer 2, wake 1, [], wake 2, [3]",
        ),
    ]);
}

#[derive(Debug, Clone)]
enum Event {
    Ready,
    Call { bytes: usize, timeout: u64, target: u32 },
    Take { nth: usize },
    Done { nth: usize, micros: Option<u64> },
    Gone { nth: usize, ran: bool },
    Wait { millis: u64 },
    Retire { nth: usize },
    Close,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => Just(Event::Ready),
        8 => (0usize..60, 0u64..50, 1u32..4).prop_map(|(bytes, timeout, target)| Event::Call { bytes, timeout, target }),
        6 => (0usize..8).prop_map(|nth| Event::Take { nth }),
        8 => (0usize..8, prop::option::of(1u64..300)).prop_map(|(nth, micros)| Event::Done { nth, micros }),
        1 => (0usize..8, any::<bool>()).prop_map(|(nth, ran)| Event::Gone { nth, ran }),
        2 => (0u64..30).prop_map(|millis| Event::Wait { millis }),
        1 => (0usize..8).prop_map(|nth| Event::Retire { nth }),
        1 => Just(Event::Close),
    ]
}

#[test]
fn a_full_queue_is_looked_through_now_and_then() {
    let start = Instant::now();
    let at = |millis: u64| start + Duration::from_millis(millis);
    let mut admission = Admission::new(CONFIG, "starting");
    admission.open();
    admission.handle_worker_ready(WorkerId(1));
    let offer = |number: u64| Offer {
        request: RequestId(number),
        target: TargetId(1),
        caller: CallerId(1),
        bytes: 1,
        deadline: at(60_000),
        call: number,
    };
    for number in 0..CONFIG.waiting_max as u64 {
        assert!(!admission.must_sweep(at(0)), "it has room");
        admission.offer(offer(number), at(0));
    }
    let swept: Vec<u64> = (0..200).filter(|millis| admission.must_sweep(at(*millis))).collect();
    assert_eq!(swept, [0, 50, 100, 150]);
}

proptest! {
    /// Whatever happens: a request gets exactly one end, is never given late, a worker has one frame at
    /// a time, nothing waits beside a worker that nobody called, and the bounds hold.
    #[test]
    fn any_history(events in prop::collection::vec(event(), 1..200)) {
        let mut now = Instant::now();
        let mut admission = Admission::new(CONFIG, "starting");
        let mut next = 0u64;
        let mut open: BTreeMap<u64, Instant> = BTreeMap::new();
        let mut frames: BTreeMap<WorkerId, Vec<RequestId>> = BTreeMap::new();
        let (mut woken, mut retired) = (BTreeSet::new(), BTreeSet::new());
        for event in events {
            next += 1;
            let (arrival, before) = (matches!(event, Event::Call { .. }), admission.waiting());
            let nth_worker = |nth: usize| frames.keys().nth(nth).copied();
            match event {
                Event::Ready => {
                    admission.open();
                    admission.handle_worker_ready(WorkerId(next));
                    frames.insert(WorkerId(next), Vec::new());
                }
                Event::Call { bytes, timeout, target } => {
                    let deadline = now + Duration::from_millis(timeout);
                    open.insert(next, deadline);
                    let (request, caller) = (RequestId(next), CallerId(next % 2));
                    admission.offer(Offer { request, target: TargetId(target), caller, bytes, deadline, call: next }, now);
                }
                Event::Take { nth } => if let Some(worker) = nth_worker(nth) {
                    // Only who was woken, or has just finished, comes.
                    if woken.remove(&worker) || admission.is_free(worker) {
                        let taken = admission.take(worker, now, |_| false);
                        prop_assert!(taken.is_empty() || frames[&worker].is_empty());
                        prop_assert!(taken.is_empty() || !retired.contains(&worker));
                        for request in &taken {
                            prop_assert!(open[&request.0] > now, "late");
                        }
                        frames.get_mut(&worker).unwrap().extend(taken);
                    }
                },
                Event::Done { nth, micros } => if let Some(worker) = nth_worker(nth) {
                    let frame = frames.get_mut(&worker).unwrap();
                    if !frame.is_empty() {
                        let request = frame.remove(0);
                        let call = admission.handle_done(worker, request, micros.map(Duration::from_micros)).unwrap();
                        // Nothing if it was refused as late meanwhile.
                        prop_assert_eq!(call, open.remove(&request.0).map(|_| request.0));
                    }
                },
                Event::Gone { nth, ran } => if let Some(worker) = nth_worker(nth) {
                    let frame = frames.remove(&worker).unwrap();
                    woken.remove(&worker);
                    admission.handle_worker_gone(worker, frame.first().filter(|_| ran).copied());
                },
                Event::Wait { millis } => {
                    now += Duration::from_millis(millis);
                    admission.handle_timeout(now);
                }
                Event::Retire { nth } => if let Some(worker) = nth_worker(nth) {
                    retired.insert(worker);
                    admission.retire(worker);
                },
                Event::Close => if frames.is_empty() {
                    admission.close("broken");
                },
            }
            while let Some(action) = admission.poll_action() {
                match action {
                    Action::Wake { worker } => drop(woken.insert(worker)),
                    Action::Refuse { call, refusal } => {
                        let deadline = open.remove(&call);
                        prop_assert!(deadline.is_some(), "ended twice");
                        prop_assert!(refusal != Refusal::Expired || deadline.unwrap() <= now);
                    }
                    Action::Lose { call, loss } => {
                        let deadline = open.remove(&call);
                        prop_assert!(deadline.is_some(), "ended twice");
                        prop_assert!(loss == Loss::Died || deadline.unwrap() <= now);
                    }
                    Action::Fetch { worker } => {
                        let running = frames.get(&worker).and_then(|frame| frame.first()).copied();
                        admission.handle_fetched(worker, running, now);
                    }
                    Action::Kill { worker } => {
                        prop_assert!(frames.remove(&worker).is_some());
                        woken.remove(&worker);
                    }
                }
            }
            let with_workers: usize = frames.values().flatten().filter(|request| open.contains_key(&request.0)).count();
            prop_assert_eq!(admission.waiting() + with_workers, open.len(), "each open request is somewhere");
            // What comes back from a worker that ended may be more; nothing new is let in then.
            let bound = if arrival { CONFIG.waiting_max.max(before) } else { usize::MAX };
            prop_assert!(admission.waiting() <= bound);
            prop_assert_eq!(admission.is_empty(), open.is_empty());
            let idle = frames.iter().filter(|(worker, frame)| {
                frame.is_empty() && !woken.contains(worker) && !retired.contains(worker) && !admission.is_free(**worker)
            });
            prop_assert!(admission.waiting() == 0 || idle.count() == 0);
            prop_assert_eq!(admission.next_timeout().is_some(), !open.is_empty());
        }
    }
}
