//! What a node does next: events in, actions out, `now` an argument. One server serves; a second
//! may be warming beside it on the other port, to take over; old ones leave after a grace. Once
//! AutoScaling wants the instance gone nothing is started any more.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use outstation_protocol::status::NodePhase;
use outstation_protocol::v1::{Artifacts, NodeState};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub use super::events::{Action, Attempt, Broken, Event, ServerId};
use super::stages::{End, Leaving, Next, Serving};

/// Two, so that a new server can warm up beside the old one.
pub const PORTS: [u16; 2] = [7400, 7401];
/// Importing a large machine-learning stack from a cold disk takes a minute.
pub const WARMING_MAX: Duration = Duration::from_secs(120);
/// A server found alive was healthy before, or never will be.
pub const ADOPTED_MAX: Duration = Duration::from_secs(10);
/// How long callers get to apply an endpoint set without this server.
pub const GRACE: Duration = Duration::from_secs(1);
/// How long a drain waits for the account agent's word that callers have been told.
pub const WITHDRAWAL_MAX: Duration = Duration::from_secs(5);
/// The server gives calls in flight 30 s of its own (`--drain-secs`).
pub const LEAVING_MAX: Duration = Duration::from_secs(40);
/// A single lost check is noise.
pub const AILING_MAX: u32 = 3;
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// With nothing serving, haste matters; with an old server serving on, quiet does.
const BACKOFF_MAX_DOWN: Duration = Duration::from_secs(10);
const BACKOFF_MAX_SERVING: Duration = Duration::from_secs(60);
/// A server that lived so long has not failed to start.
const PROVEN_AFTER: Duration = Duration::from_secs(60);
/// A reason is a line, not a log.
const REASON_CHARS_MAX: usize = 300;

pub struct Machine {
    address: IpAddr,
    rng: StdRng,
    target: Option<Artifacts>,
    /// What was healthy last: the way back when the target does not come up.
    proven: Option<Artifacts>,
    serving: Option<Serving>,
    next: Next,
    leaving: BTreeMap<ServerId, (u16, Leaving)>,
    end: End,
    attempts: u64,
    servers: u64,
    /// In a row; sets the backoff.
    failures: u32,
    target_failed: bool,
    proven_failed: bool,
    /// Why the target is not served.
    trouble: Option<String>,
    reported: Option<NodeState>,
}

/// Whether one server can serve both: a mere new generation restarts nothing.
pub fn same_content(a: &Artifacts, b: &Artifacts) -> bool {
    a.bundle == b.bundle && a.environment == b.environment && a.options == b.options
}

/// What the new server cannot evaluate, and did not have or could evaluate before: it would answer
/// callers with an error who get none now.
fn worse(old: &Broken, new: &Broken) -> Option<String> {
    let (name, why) = new.iter().find(|(name, _)| !old.contains_key(*name))?;
    Some(format!("{name:?} cannot be evaluated: {why}"))
}

impl Machine {
    /// `address` is where the servers listen; `seed` spreads the restarts of a fleet.
    pub fn new(address: IpAddr, seed: u64) -> Machine {
        Machine {
            address,
            rng: StdRng::seed_from_u64(seed),
            target: None,
            proven: None,
            serving: None,
            next: Next::Idle,
            leaving: BTreeMap::new(),
            end: End::Staying,
            attempts: 0,
            servers: 0,
            failures: 0,
            target_failed: false,
            proven_failed: false,
            trouble: None,
            reported: None,
        }
    }

    pub fn target(&self) -> Option<&Artifacts> {
        self.target.as_ref()
    }

    /// What may be started without being fetched first: the target, and the way back.
    pub fn kept(&self) -> impl Iterator<Item = &Artifacts> {
        self.target.iter().chain(&self.proven)
    }

    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.take(event, now, &mut actions);
        self.pass_time(now, &mut actions);
        self.decide(now, &mut actions);
        let state = self.state();
        if self.reported.as_ref() != Some(&state) {
            self.reported = Some(state.clone());
            actions.push(Action::Report(state));
        }
        actions
    }

    /// When [`Event::Timeout`] is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        let leaving = self.leaving.values().filter_map(|(_, leaving)| leaving.until());
        leaving.chain(self.next.until()).chain(self.end.until()).min()
    }

    fn take(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Adopted { server, port, artifacts } => {
                self.servers = self.servers.max(server.0);
                if matches!(self.next, Next::Idle) && self.target.is_none() {
                    self.target = Some(artifacts.clone());
                    let until = now + ADOPTED_MAX;
                    self.next = Next::Warming { server, port, artifacts, until, adopted: true };
                } else {
                    self.leaving.insert(server, (port, Leaving::Grace { until: now }));
                }
            }
            Event::Target(artifacts) => self.retarget(artifacts, now, actions),
            Event::Fetched(fetched) => {
                if let Next::Fetching { attempt, artifacts } = &self.next
                    && *attempt == fetched
                {
                    let (attempt, artifacts) = (*attempt, artifacts.clone());
                    actions.push(Action::Verify { attempt, artifacts: artifacts.clone() });
                    self.next = Next::Verifying { attempt, artifacts };
                }
            }
            Event::Verified(verified) => {
                if let Next::Verifying { attempt, artifacts } = &self.next
                    && *attempt == verified
                {
                    self.next = Next::WaitingForPort { artifacts: artifacts.clone() };
                }
            }
            Event::PreparationFailed { attempt: failed, reason } => match &self.next {
                Next::Fetching { attempt, artifacts } | Next::Verifying { attempt, artifacts }
                    if *attempt == failed =>
                {
                    let artifacts = artifacts.clone();
                    self.fail(&artifacts, reason, now);
                }
                Next::Idle
                | Next::Waiting { .. }
                | Next::Fetching { .. }
                | Next::Verifying { .. }
                | Next::WaitingForPort { .. }
                | Next::Warming { .. } => {}
            },
            Event::Healthy { server, broken } => self.healthy(server, broken, now, actions),
            Event::Ailing { server, reason } => self.ailing(server, reason, now, actions),
            Event::Exited { server, reason } => self.exited(server, reason, now),
            Event::Terminating => {
                if matches!(self.end, End::Staying) {
                    self.abandon_next(now, actions);
                    self.end = End::AwaitingWithdrawal { until: now + WITHDRAWAL_MAX };
                }
            }
            Event::Withdrawn => {
                if matches!(self.end, End::AwaitingWithdrawal { .. }) {
                    self.end = End::Grace { until: now + GRACE };
                }
            }
            Event::Timeout => {}
        }
    }

    fn retarget(&mut self, artifacts: Artifacts, now: Instant, actions: &mut Vec<Action>) {
        let changed = !self.target.as_ref().is_some_and(|t| same_content(t, &artifacts));
        if changed {
            self.failures = 0;
            self.target_failed = false;
            self.trouble = None;
            match &self.next {
                // It most likely serves at this moment, and can until the new one does.
                Next::Warming { adopted: true, .. } => {}
                Next::Idle => {}
                Next::Waiting { .. }
                | Next::Fetching { .. }
                | Next::Verifying { .. }
                | Next::WaitingForPort { .. }
                | Next::Warming { .. } => self.abandon_next(now, actions),
            }
        }
        // The generation alone may have changed: then the same server serves the newer one.
        let next = self.next.artifacts_mut();
        let serving = self.serving.as_mut().map(|serving| &mut serving.artifacts);
        for known in [next, serving, self.proven.as_mut()].into_iter().flatten() {
            if same_content(known, &artifacts) {
                known.generation = artifacts.generation;
            }
        }
        self.target = Some(artifacts);
    }

    fn healthy(
        &mut self,
        healthy: ServerId,
        broken: Broken,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if let Some(serving) = self.serving.as_mut().filter(|s| s.server == healthy) {
            serving.ailing = 0;
            return;
        }
        let Next::Warming { server, port, artifacts, .. } = &self.next else { return };
        if *server != healthy {
            return;
        }
        let (server, port, artifacts) = (*server, *port, artifacts.clone());
        if let Some(worse) = self.serving.as_ref().and_then(|old| worse(&old.broken, &broken)) {
            self.abandon_next(now, actions);
            self.fail(&artifacts, worse, now);
            return;
        }
        self.next = Next::Idle;
        if let Some(old) = self.serving.take() {
            let leaving = Leaving::Grace { until: now + GRACE };
            self.leaving.insert(old.server, (old.port, leaving));
        }
        self.proven_failed = false;
        if self.is_target(&artifacts) {
            self.target_failed = false;
            self.trouble = None;
        } else if self.target_failed {
            // The way back serves; the target is tried again, with patience.
            self.next = Next::Waiting { until: now + self.backoff(BACKOFF_MAX_SERVING) };
        }
        self.proven = Some(artifacts.clone());
        self.serving = Some(Serving { server, port, artifacts, broken, since: now, ailing: 0 });
    }

    fn ailing(
        &mut self,
        ailing: ServerId,
        reason: String,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(serving) = self.serving.as_mut().filter(|s| s.server == ailing) else { return };
        serving.ailing += 1;
        if serving.ailing < AILING_MAX || !matches!(self.end, End::Staying) {
            return;
        }
        actions.push(Action::Kill(ailing));
        self.leaving.insert(ailing, (serving.port, Leaving::Killed));
        self.lost_serving(format!("the server was unhealthy: {reason}"), now);
    }

    fn exited(&mut self, exited: ServerId, reason: String, now: Instant) {
        if self.leaving.remove(&exited).is_some() {
            return;
        }
        if self.serving.as_ref().is_some_and(|s| s.server == exited) {
            self.lost_serving(format!("the server ended: {reason}"), now);
            return;
        }
        if let Next::Warming { server, artifacts, .. } = &self.next
            && *server == exited
        {
            let artifacts = artifacts.clone();
            self.fail(&artifacts, format!("the server did not start: {reason}"), now);
        }
    }

    fn lost_serving(&mut self, trouble: String, now: Instant) {
        let Some(lost) = self.serving.take() else { return };
        if now.duration_since(lost.since) >= PROVEN_AFTER {
            self.failures = 0;
        }
        self.failures += 1;
        self.trouble = Some(trouble);
        if matches!(self.next, Next::Idle | Next::Waiting { .. }) {
            self.next = Next::Waiting { until: now + self.backoff(BACKOFF_MAX_DOWN) };
        }
    }

    fn fail(&mut self, artifacts: &Artifacts, trouble: String, now: Instant) {
        if self.is_target(artifacts) {
            self.target_failed = true;
            // Both have had their turn: back to the proven one next.
            self.proven_failed = false;
        } else {
            self.proven_failed = true;
        }
        self.failures += 1;
        self.trouble = Some(trouble);
        let max = if self.serving.is_some() { BACKOFF_MAX_SERVING } else { BACKOFF_MAX_DOWN };
        self.next = Next::Waiting { until: now + self.backoff(max) };
    }

    /// One that was taken over may have calls in flight: it is drained. One that never served has
    /// none.
    fn abandon_next(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let next = std::mem::replace(&mut self.next, Next::Idle);
        if let Next::Warming { server, port, adopted, .. } = next {
            let leaving = if adopted {
                actions.push(Action::Drain(server));
                Leaving::Draining { until: now + LEAVING_MAX }
            } else {
                actions.push(Action::Kill(server));
                Leaving::Killed
            };
            self.leaving.insert(server, (port, leaving));
        }
    }

    fn pass_time(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for (server, (_, leaving)) in &mut self.leaving {
            match leaving {
                Leaving::Grace { until } if *until <= now => {
                    actions.push(Action::Drain(*server));
                    *leaving = Leaving::Draining { until: now + LEAVING_MAX };
                }
                Leaving::Draining { until } if *until <= now => {
                    actions.push(Action::Kill(*server));
                    *leaving = Leaving::Killed;
                }
                Leaving::Grace { .. } | Leaving::Draining { .. } | Leaving::Killed => {}
            }
        }
        match &self.next {
            Next::Waiting { until } if *until <= now => self.next = Next::Idle,
            Next::Warming { artifacts, until, .. } if *until <= now => {
                let artifacts = artifacts.clone();
                self.abandon_next(now, actions);
                self.fail(&artifacts, "the server did not become healthy in time".into(), now);
            }
            Next::Idle
            | Next::Waiting { .. }
            | Next::Fetching { .. }
            | Next::Verifying { .. }
            | Next::WaitingForPort { .. }
            | Next::Warming { .. } => {}
        }
        // Without a server there is nothing to withdraw and nobody to wait for.
        let nothing_serves = self.serving.is_none();
        match &self.end {
            End::AwaitingWithdrawal { until } if *until <= now && !nothing_serves => {
                self.end = End::Grace { until: now + GRACE };
            }
            End::AwaitingWithdrawal { .. } if nothing_serves => self.end = End::Stopping,
            End::Grace { until } if *until <= now || nothing_serves => {
                if let Some(last) = self.serving.take() {
                    actions.push(Action::Drain(last.server));
                    let leaving = Leaving::Draining { until: now + LEAVING_MAX };
                    self.leaving.insert(last.server, (last.port, leaving));
                }
                self.end = End::Stopping;
            }
            End::Staying
            | End::AwaitingWithdrawal { .. }
            | End::Grace { .. }
            | End::Stopping
            | End::Gone => {}
        }
        if matches!(self.end, End::Stopping) && self.leaving.is_empty() {
            self.end = End::Gone;
            actions.push(Action::Drained);
        }
    }

    fn decide(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !matches!(self.end, End::Staying) {
            return;
        }
        if matches!(self.next, Next::Idle)
            && let Some(artifacts) = self.wanted()
        {
            self.attempts += 1;
            let attempt = Attempt(self.attempts);
            actions.push(Action::Fetch { attempt, artifacts: artifacts.clone() });
            self.next = Next::Fetching { attempt, artifacts };
        }
        if let Next::WaitingForPort { artifacts } = &self.next
            && let Some(port) = self.free_port()
        {
            let artifacts = artifacts.clone();
            self.servers += 1;
            let server = ServerId(self.servers);
            actions.push(Action::Start { server, port, artifacts: artifacts.clone() });
            let until = now + WARMING_MAX;
            self.next = Next::Warming { server, port, artifacts, until, adopted: false };
        }
    }

    /// What has to be started, if anything has.
    fn wanted(&self) -> Option<Artifacts> {
        let target = self.target.as_ref()?;
        match (&self.serving, &self.proven) {
            (Some(serving), _) if same_content(&serving.artifacts, target) => None,
            (Some(_), _) => Some(target.clone()),
            (None, Some(proven)) if self.target_failed && !self.proven_failed => {
                Some(proven.clone())
            }
            (None, _) => Some(target.clone()),
        }
    }

    fn free_port(&self) -> Option<u16> {
        let serving = self.serving.as_ref().map(|s| s.port);
        PORTS
            .into_iter()
            .find(|port| serving != Some(*port) && self.leaving.values().all(|(p, _)| p != port))
    }

    fn is_target(&self, artifacts: &Artifacts) -> bool {
        self.target.as_ref().is_some_and(|target| same_content(target, artifacts))
    }

    /// Full jitter: anything from nothing up to the bound, which doubles with each failure.
    fn backoff(&mut self, max: Duration) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        let bound = BACKOFF_FIRST.saturating_mul(1 << doublings).min(max);
        bound.mul_f64(self.rng.random::<f64>())
    }

    fn state(&self) -> NodeState {
        let phase = match (&self.end, &self.serving, &self.next) {
            (End::Gone, _, _) => NodePhase::Gone,
            (End::AwaitingWithdrawal { .. } | End::Grace { .. } | End::Stopping, _, _) => {
                NodePhase::Draining
            }
            (End::Staying, Some(_), _) => NodePhase::Ready,
            (End::Staying, None, Next::Idle) => NodePhase::Booting,
            (End::Staying, None, Next::Waiting { .. }) => NodePhase::Unhealthy,
            (End::Staying, None, Next::Fetching { .. }) => NodePhase::Fetching,
            (End::Staying, None, Next::Verifying { .. }) => NodePhase::Verifying,
            (End::Staying, None, Next::WaitingForPort { .. } | Next::Warming { .. }) => {
                NodePhase::Warming
            }
        };
        let serving = self.serving.as_ref();
        NodeState {
            phase,
            endpoint: serving.map(|s| std::net::SocketAddr::new(self.address, s.port).to_string()),
            artifacts: serving.map(|s| s.artifacts.clone()),
            reason: self.reason().map(|reason| reason.chars().take(REASON_CHARS_MAX).collect()),
        }
    }

    fn reason(&self) -> Option<String> {
        let End::Staying = self.end else { return None };
        let target = self.target.as_ref()?;
        let switching = self.serving.as_ref().filter(|s| !same_content(&s.artifacts, target));
        match (switching, &self.trouble) {
            (Some(old), Some(trouble)) => Some(format!(
                "generation {} stays, because {} does not come up: {trouble}",
                old.artifacts.generation, target.generation
            )),
            (Some(old), None) => Some(format!(
                "switching from generation {} to {}",
                old.artifacts.generation, target.generation
            )),
            (None, trouble) => trouble.clone(),
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
