//! The node's life as scripts: after each event, the actions that must follow, as text.

use outstation_protocol::{Digest, Generation};

use super::*;

fn artifacts(generation: u64, bundle: &str) -> Artifacts {
    Artifacts {
        generation: Generation(generation),
        environment: Digest::of(b"environment"),
        bundle: Digest::of(bundle.as_bytes()),
        options: vec![],
    }
}

fn healthy(server: u64) -> Event {
    Event::Healthy { server: ServerId(server), broken: Broken::default() }
}

fn healthy_but(server: u64, broken: &[&str]) -> Event {
    let broken = broken.iter().map(|name| ((*name).to_owned(), "no module named x".to_owned()));
    Event::Healthy { server: ServerId(server), broken: Broken::new(broken.collect()) }
}

fn show(action: &Action) -> String {
    match action {
        Action::Fetch { artifacts, .. } => format!("fetch {}", artifacts.generation),
        Action::Verify { artifacts, .. } => format!("verify {}", artifacts.generation),
        Action::Start { server, port, artifacts } => {
            format!("start s{} :{port} {}", server.0, artifacts.generation)
        }
        Action::Drain(server) => format!("drain s{}", server.0),
        Action::Kill(server) => format!("kill s{}", server.0),
        Action::Drained => "drained".to_owned(),
        Action::Report(state) => {
            let mut text = state.phase.to_string();
            if let (Some(endpoint), Some(artifacts)) = (&state.endpoint, &state.artifacts) {
                text += &format!(" {endpoint} {}", artifacts.generation);
            }
            if let Some(reason) = &state.reason {
                text += &format!(" ({reason})");
            }
            text
        }
    }
}

struct Script {
    machine: Machine,
    now: Instant,
}

impl Script {
    fn new() -> Script {
        let address = "10.0.0.7".parse().expect("an address");
        Script { machine: Machine::new(address, 7), now: Instant::now() }
    }

    #[track_caller]
    fn on(&mut self, event: Event, wanted: &str) {
        let actions = self.machine.handle(event.clone(), self.now);
        let shown: Vec<String> = actions.iter().map(show).collect();
        assert_eq!(shown.join("; "), wanted, "{event:?}");
    }

    /// Lets the time of the next timeout come.
    #[track_caller]
    fn wait(&mut self, at_most: Duration, wanted: &str) {
        let due = self.machine.next_timeout().expect("something is due");
        assert!(due <= self.now + at_most, "due in {:?}", due - self.now);
        self.now = self.now.max(due);
        self.on(Event::Timeout, wanted);
    }

    fn attempt(&self) -> Attempt {
        Attempt(self.machine.attempts)
    }

    /// A node that serves generation 1 on the first port.
    fn ready() -> Script {
        let mut script = Script::new();
        script.on(Event::Target(artifacts(1, "a")), "fetch 1; fetching");
        script.on(Event::Fetched(Attempt(1)), "verify 1; verifying");
        script.on(Event::Verified(Attempt(1)), "start s1 :7400 1; warming");
        script.on(healthy(1), "ready 10.0.0.7:7400 1");
        script
    }

    /// Lets the next attempt get as far as its server's start.
    fn prepare(&mut self) {
        for event in [Event::Fetched(self.attempt()), Event::Verified(self.attempt())] {
            self.machine.handle(event, self.now);
        }
    }
}

fn ailing(server: u64) -> Event {
    Event::Ailing { server: ServerId(server), reason: "NOT_SERVING".into() }
}

fn exited(server: u64) -> Event {
    Event::Exited { server: ServerId(server), reason: "exit status: 1".into() }
}

#[test]
fn what_cannot_evaluate_what_the_old_one_can_does_not_take_over() {
    let mut script = Script::ready();
    script.on(
        Event::Target(artifacts(2, "b")),
        "fetch 2; ready 10.0.0.7:7400 1 (switching from generation 1 to 2)",
    );
    script.on(Event::Fetched(Attempt(2)), "verify 2");
    script.on(Event::Verified(Attempt(2)), "start s2 :7401 2");
    script.on(
        healthy_but(2, &["speed"]),
        "kill s2; ready 10.0.0.7:7400 1 (generation 1 stays, because 2 does not come up: \
         \"speed\" cannot be evaluated: no module named x)",
    );
    script.on(Event::Exited { server: ServerId(2), reason: "killed".into() }, "");
    // Mended in part: nothing is worse than it was.
    script.on(
        Event::Target(artifacts(3, "c")),
        "fetch 3; ready 10.0.0.7:7400 1 (switching from generation 1 to 3)",
    );
    script.on(Event::Fetched(Attempt(3)), "verify 3");
    script.on(Event::Verified(Attempt(3)), "start s3 :7401 3");
    script.on(healthy(3), "ready 10.0.0.7:7401 3");
}

#[test]
fn what_was_broken_before_may_stay_broken_and_a_first_server_may_have_it() {
    let mut script = Script::new();
    script.on(Event::Target(artifacts(1, "a")), "fetch 1; fetching");
    script.on(Event::Fetched(Attempt(1)), "verify 1; verifying");
    script.on(Event::Verified(Attempt(1)), "start s1 :7400 1; warming");
    script.on(healthy_but(1, &["speed", "delay"]), "ready 10.0.0.7:7400 1");
    script.on(
        Event::Target(artifacts(2, "b")),
        "fetch 2; ready 10.0.0.7:7400 1 (switching from generation 1 to 2)",
    );
    script.on(Event::Fetched(Attempt(2)), "verify 2");
    script.on(Event::Verified(Attempt(2)), "start s2 :7401 2");
    script.on(healthy_but(2, &["speed"]), "ready 10.0.0.7:7401 2");
}

#[test]
fn from_launch_to_ready() {
    let mut script = Script::ready();
    assert_eq!(script.machine.next_timeout(), None, "a healthy node waits for nothing");
    script.on(healthy(1), "");
    script.on(Event::Target(artifacts(1, "a")), "");
}

#[test]
fn a_new_generation_of_the_same_content_restarts_nothing() {
    let mut script = Script::ready();
    script.on(Event::Target(artifacts(2, "a")), "ready 10.0.0.7:7400 2");
}

#[test]
fn another_bundle_is_switched_to_beside_the_old_one() {
    let mut script = Script::ready();
    let switching = "ready 10.0.0.7:7400 1 (switching from generation 1 to 2)";
    script.on(Event::Target(artifacts(2, "b")), &format!("fetch 2; {switching}"));
    script.on(Event::Fetched(script.attempt()), "verify 2");
    script.on(Event::Verified(script.attempt()), "start s2 :7401 2");
    script.on(ailing(2), "");
    script.on(healthy(2), "ready 10.0.0.7:7401 2");
    script.wait(GRACE, "drain s1");
    script.on(exited(1), "");
    // And back to the first port.
    script.machine.handle(Event::Target(artifacts(3, "c")), script.now);
    script.on(Event::Fetched(script.attempt()), "verify 3");
    script.on(Event::Verified(script.attempt()), "start s3 :7400 3");
}

#[test]
fn a_third_server_waits_for_a_port() {
    let mut script = Script::ready();
    script.machine.handle(Event::Target(artifacts(2, "b")), script.now);
    script.prepare();
    script.machine.handle(healthy(2), script.now);
    script.machine.handle(Event::Target(artifacts(3, "c")), script.now);
    script.on(Event::Fetched(script.attempt()), "verify 3");
    script.on(Event::Verified(script.attempt()), "");
    script.wait(GRACE, "drain s1");
    script.on(exited(1), "start s3 :7400 3");
}

#[test]
fn an_old_server_that_does_not_end_is_killed() {
    let mut script = Script::ready();
    script.machine.handle(Event::Target(artifacts(2, "b")), script.now);
    script.prepare();
    script.machine.handle(healthy(2), script.now);
    script.wait(GRACE, "drain s1");
    script.wait(LEAVING_MAX, "kill s1");
    assert_eq!(script.machine.next_timeout(), None);
}

#[test]
fn the_old_server_stays_when_the_new_one_does_not_come_up() {
    let stays = "ready 10.0.0.7:7400 1 (generation 1 stays, because 2 does not come up:";
    type Failure = fn(&mut Script) -> Event;
    let fetch: Failure = |script| {
        let reason = "no bundle".into();
        Event::PreparationFailed { attempt: script.attempt(), reason }
    };
    let verify: Failure = |script| {
        script.machine.handle(Event::Fetched(script.attempt()), script.now);
        let reason = "other contents".into();
        Event::PreparationFailed { attempt: script.attempt(), reason }
    };
    let start: Failure = |script| {
        script.prepare();
        exited(2)
    };
    let warm: Failure = |script| {
        script.prepare();
        script.now += WARMING_MAX;
        Event::Timeout
    };
    for (failure, wanted) in [
        (fetch, format!("{stays} no bundle)")),
        (verify, format!("{stays} other contents)")),
        (start, format!("{stays} the server did not start: exit status: 1)")),
        (warm, format!("kill s2; {stays} the server did not become healthy in time)")),
    ] {
        let mut script = Script::ready();
        script.machine.handle(Event::Target(artifacts(2, "b")), script.now);
        let event = failure(&mut script);
        script.on(event, &wanted);
        // It is tried again, and a corrected order at once.
        script.wait(BACKOFF_MAX_SERVING, "fetch 2");
        script.on(
            Event::Target(artifacts(3, "c")),
            "fetch 3; ready 10.0.0.7:7400 1 (switching from generation 1 to 3)",
        );
        // Back to what serves: nothing is to do.
        script.on(Event::Target(artifacts(4, "a")), "ready 10.0.0.7:7400 4");
    }
}

#[test]
fn a_server_that_dies_is_started_again_with_backoff() {
    let mut script = Script::ready();
    let reason = "(the server ended: exit status: 1)";
    script.on(exited(1), &format!("unhealthy {reason}"));
    script.wait(BACKOFF_FIRST, &format!("fetch 1; fetching {reason}"));
    script.on(Event::Fetched(script.attempt()), &format!("verify 1; verifying {reason}"));
    let started = format!("start s2 :7400 1; warming {reason}");
    script.on(Event::Verified(script.attempt()), &started);
    script.on(healthy(2), "ready 10.0.0.7:7400 1");
}

#[test]
fn backoff_grows_to_its_bound_and_starts_anew_after_a_minute_up() {
    let mut script = Script::ready();
    let mut longest = Duration::ZERO;
    for round in 0..40 {
        script.machine.handle(exited(1 + round), script.now);
        let until = script.machine.next_timeout().expect("it waits");
        let bound = BACKOFF_FIRST * 2u32.saturating_pow(u32::try_from(round).expect("small"));
        assert!(until - script.now <= bound.min(BACKOFF_MAX_DOWN), "round {round}");
        longest = longest.max(until - script.now);
        script.now = until;
        script.machine.handle(Event::Timeout, script.now);
        script.prepare();
        script.machine.handle(healthy(2 + round), script.now);
    }
    assert!(longest > Duration::from_secs(2), "{longest:?}");
    script.now += PROVEN_AFTER;
    script.machine.handle(exited(41), script.now);
    let until = script.machine.next_timeout().expect("it waits");
    assert!(until - script.now <= BACKOFF_FIRST);
}

#[test]
fn three_bad_checks_in_a_row_cost_a_server_its_life() {
    let mut script = Script::ready();
    script.on(ailing(1), "");
    script.on(ailing(1), "");
    script.on(healthy(1), "");
    script.on(ailing(1), "");
    script.on(ailing(1), "");
    let reason = "(the server was unhealthy: NOT_SERVING)";
    script.on(ailing(1), &format!("kill s1; unhealthy {reason}"));
    script.wait(BACKOFF_FIRST, &format!("fetch 1; fetching {reason}"));
    script.machine.handle(Event::Fetched(script.attempt()), script.now);
    // The killed one may hold its port still.
    let started = format!("start s2 :7401 1; warming {reason}");
    script.on(Event::Verified(script.attempt()), &started);
}

#[test]
fn when_the_proven_server_dies_while_the_target_fails_it_comes_back() {
    let mut script = Script::ready();
    script.machine.handle(Event::Target(artifacts(2, "b")), script.now);
    script.prepare();
    script.machine.handle(exited(2), script.now);
    script.machine.handle(exited(1), script.now);
    let reason = "the server ended: exit status: 1";
    script.wait(BACKOFF_MAX_DOWN, &format!("fetch 1; fetching ({reason})"));
    script.prepare();
    script.on(
        healthy(3),
        &format!(
            "ready 10.0.0.7:7400 1 (generation 1 stays, because 2 does not come up: {reason})"
        ),
    );
    script.wait(BACKOFF_MAX_SERVING, "fetch 2");
}

#[test]
fn a_drain_waits_for_callers_then_for_calls() {
    let mut script = Script::ready();
    script.on(Event::Withdrawn, "");
    script.on(Event::Terminating, "draining 10.0.0.7:7400 1");
    script.on(Event::Terminating, "");
    script.on(Event::Withdrawn, "");
    script.wait(GRACE, "drain s1; draining");
    script.on(Event::Target(artifacts(2, "b")), "");
    script.on(exited(1), "drained; gone");
    assert_eq!(script.machine.next_timeout(), None);
    script.on(Event::Target(artifacts(3, "c")), "");
}

#[test]
fn a_drain_needs_no_account_agent() {
    let mut script = Script::ready();
    script.on(Event::Terminating, "draining 10.0.0.7:7400 1");
    script.wait(WITHDRAWAL_MAX, "");
    script.wait(GRACE, "drain s1; draining");
    script.wait(LEAVING_MAX, "kill s1");
    script.on(exited(1), "drained; gone");
}

#[test]
fn a_drain_ends_also_what_is_not_ready() {
    let mut booting = Script::new();
    booting.on(Event::Target(artifacts(1, "a")), "fetch 1; fetching");
    booting.on(Event::Terminating, "drained; gone");
    booting.on(Event::Fetched(Attempt(1)), "");

    let mut warming = Script::new();
    warming.machine.handle(Event::Target(artifacts(1, "a")), warming.now);
    warming.prepare();
    warming.on(Event::Terminating, "kill s1; draining");
    warming.on(exited(1), "drained; gone");

    let mut switching = Script::ready();
    switching.machine.handle(Event::Target(artifacts(2, "b")), switching.now);
    switching.prepare();
    switching.on(Event::Terminating, "kill s2; draining 10.0.0.7:7400 1");
    switching.on(exited(2), "");
    // It dies by itself: nothing is in flight there any more.
    switching.on(exited(1), "drained; gone");
}

#[test]
fn a_server_of_an_earlier_life_is_taken_over() {
    let adopted = |server, port| Event::Adopted {
        server: ServerId(server),
        port,
        artifacts: artifacts(1, "a"),
    };
    let mut script = Script::new();
    script.on(adopted(4, 7401), "warming");
    script.on(healthy(4), "ready 10.0.0.7:7401 1");
    script.on(
        Event::Target(artifacts(2, "b")),
        "fetch 2; ready 10.0.0.7:7401 1 (switching from generation 1 to 2)",
    );
    script.on(Event::Fetched(script.attempt()), "verify 2");
    script.on(Event::Verified(script.attempt()), "start s5 :7400 2");

    // Two were alive: the second one leaves.
    let mut two = Script::new();
    two.on(adopted(4, 7401), "warming");
    two.on(adopted(3, 7400), "drain s3");
    // A new target lets the adopted one come up first.
    two.on(Event::Target(artifacts(2, "b")), "");
    two.on(healthy(4), "fetch 2; ready 10.0.0.7:7401 1 (switching from generation 1 to 2)");

    // One that is not healthy any more is replaced.
    let mut dead = Script::new();
    dead.on(adopted(1, 7400), "warming");
    let reason = "the server did not become healthy in time";
    dead.wait(ADOPTED_MAX, &format!("drain s1; unhealthy ({reason})"));
    dead.wait(BACKOFF_FIRST, &format!("fetch 1; fetching ({reason})"));
}

#[test]
fn what_an_abandoned_attempt_says_counts_nothing() {
    let mut script = Script::new();
    script.on(Event::Target(artifacts(1, "a")), "fetch 1; fetching");
    script.on(Event::Target(artifacts(2, "b")), "fetch 2");
    script.on(Event::Fetched(Attempt(1)), "");
    let reason = "late".to_owned();
    script.on(Event::PreparationFailed { attempt: Attempt(1), reason }, "");
    script.on(Event::Fetched(Attempt(2)), "verify 2; verifying");
    script.on(Event::Verified(Attempt(1)), "");
    script.on(Event::Verified(Attempt(2)), "start s1 :7400 2; warming");
    script.on(healthy(9), "");
    script.on(exited(9), "");
}

/// The node agent was restarted in the middle of a drain, or the instance ends right after it: what
/// it took over may have calls in flight.
#[test]
fn a_server_that_was_taken_over_is_drained_and_not_killed() {
    let mut script = Script::new();
    let adopted = Event::Adopted { server: ServerId(1), port: 7400, artifacts: artifacts(1, "a") };
    script.on(adopted, "warming");
    script.on(Event::Terminating, "drain s1; draining");
    script.wait(LEAVING_MAX, "kill s1");
    script.on(exited(1), "drained; gone");
}
