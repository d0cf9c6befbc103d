//! Which endpoint gets a call: power of two choices by calls in flight, among those that are up and not
//! ejected and have room; and whether a call may be tried again. Pure: `now` is an argument, randomness is seeded.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// A transform server, as the account agent names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    pub instance: String,
    /// `address:port`.
    pub address: String,
}

/// One membership of an endpoint in the set: the same endpoint, removed and added, has another id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u64);

#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// So many failed calls in a row eject an endpoint.
    pub eject_after: u32,
    /// The first ejection; each further one doubles, up to `eject_max`.
    pub eject_first: Duration,
    pub eject_max: Duration,
    /// An endpoint that has been up so long starts over at `eject_first`.
    pub forgive_after: Duration,
    /// Further tries as a share of calls, so that retries never multiply an overload.
    pub retry_share: f64,
    /// Tries that may be saved up: what a short outage of one of few endpoints needs.
    pub retry_reserve: f64,
    /// Calls in flight on one endpoint: as many as a server takes of one connection. A further one would wait inside the
    /// connection, behind others, where another endpoint cannot take it.
    pub in_flight_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            eject_after: 3,
            eject_first: Duration::from_secs(1),
            eject_max: Duration::from_secs(30),
            forgive_after: Duration::from_secs(60),
            retry_share: 0.2,
            retry_reserve: 20.0,
            in_flight_max: 128,
        }
    }
}

/// What a call said about its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, with whatever status.
    Answered,
    /// Nothing can be concluded: too busy, or the caller left.
    Neutral,
    /// It is unavailable, was lost, or kept silent.
    Failed,
}

/// An endpoint that must be probed before it gets calls again, not before `until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    pub until: Instant,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    Added(EndpointId, Endpoint),
    Removed(EndpointId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not connected, or connected and not serving yet.
    Down,
    Up {
        since: Instant,
    },
    Ejected,
}

#[derive(Debug)]
struct State {
    endpoint: Endpoint,
    phase: Phase,
    in_flight: u32,
    /// Failed calls in a row.
    failures: u32,
    /// Ejections in a row.
    ejections: u32,
}

/// What can be told about an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointView {
    pub endpoint: Endpoint,
    pub phase: Phase,
    pub in_flight: u32,
}

#[derive(Debug)]
pub struct Balance {
    config: Config,
    rng: SmallRng,
    next_id: u64,
    states: BTreeMap<EndpointId, State>,
    /// The ones in phase `Up`, for choosing by index.
    up: Vec<EndpointId>,
    retries: f64,
}

impl Balance {
    pub fn new(config: Config, seed: u64) -> Self {
        Balance {
            config,
            rng: SmallRng::seed_from_u64(seed),
            next_id: 1,
            states: BTreeMap::new(),
            up: Vec::new(),
            retries: config.retry_reserve,
        }
    }

    /// Makes the set what it is told. A removed endpoint gets no call from here on.
    pub fn set_endpoints(&mut self, set: &[Endpoint]) -> Vec<Change> {
        let gone: Vec<EndpointId> = self
            .states
            .iter()
            .filter(|(_, state)| !set.contains(&state.endpoint))
            .map(|(id, _)| *id)
            .collect();
        let mut changes = Vec::new();
        for id in gone {
            self.states.remove(&id);
            self.up.retain(|up| *up != id);
            changes.push(Change::Removed(id));
        }
        for endpoint in set {
            if self.states.values().all(|state| state.endpoint != *endpoint) {
                let id = EndpointId(self.next_id);
                self.next_id += 1;
                let state = State {
                    endpoint: endpoint.clone(),
                    phase: Phase::Down,
                    in_flight: 0,
                    failures: 0,
                    ejections: 0,
                };
                self.states.insert(id, state);
                changes.push(Change::Added(id, endpoint.clone()));
            }
        }
        changes
    }

    /// Connected, and its health says serving.
    pub fn handle_up(&mut self, id: EndpointId, now: Instant) {
        if let Some(state) = self.states.get_mut(&id) {
            state.failures = 0;
            if !matches!(state.phase, Phase::Up { .. }) {
                state.phase = Phase::Up { since: now };
                self.up.push(id);
            }
        }
    }

    /// The connection is lost.
    pub fn handle_down(&mut self, id: EndpointId) {
        self.set_phase(id, Phase::Down);
    }

    /// An ejected endpoint was asked and is not well yet.
    pub fn handle_probe_failed(&mut self, id: EndpointId, now: Instant) -> Option<Ejection> {
        let state = self.states.get_mut(&id).filter(|state| state.phase == Phase::Ejected)?;
        state.ejections = state.ejections.saturating_add(1);
        Some(Ejection { until: now + length(&self.config, state.ejections) })
    }

    /// The endpoint for the next call or try, counted as in flight until `finish`. Of two at random the
    /// one with fewer calls in flight. When nothing is up, an ejected one is better than none; when all that are up have
    /// as many calls as they may, there is none.
    pub fn pick(&mut self, tried: &[EndpointId]) -> Option<EndpointId> {
        let (states, max) = (&self.states, self.config.in_flight_max);
        let has_room = |id: &EndpointId| states.get(id).is_some_and(|it| it.in_flight < max);
        let first = match tried {
            [] => better_of_two(&mut self.rng, states, &self.up).filter(has_room),
            _ => None,
        };
        let picked = match first {
            Some(picked) => picked,
            None => {
                let allowed = |id: &EndpointId| !tried.contains(id);
                let mut candidates: Vec<EndpointId> =
                    self.up.iter().copied().filter(allowed).collect();
                if candidates.is_empty() {
                    let ejected = states.iter().filter(|(_, it)| it.phase == Phase::Ejected);
                    candidates = ejected.map(|(id, _)| *id).filter(allowed).collect();
                }
                candidates.retain(has_room);
                better_of_two(&mut self.rng, states, &candidates)?
            }
        };
        self.states.get_mut(&picked)?.in_flight += 1;
        Some(picked)
    }

    /// The end of what `pick` began. Returns an ejection if this was one failure too many.
    pub fn finish(&mut self, id: EndpointId, outcome: Outcome, now: Instant) -> Option<Ejection> {
        let others_up = self.up.iter().any(|up| *up != id);
        let state = self.states.get_mut(&id)?;
        state.in_flight = state.in_flight.saturating_sub(1);
        match outcome {
            Outcome::Neutral => return None,
            Outcome::Answered => {
                state.failures = 0;
                if matches!(state.phase, Phase::Up { since } if now.duration_since(since) >= self.config.forgive_after)
                {
                    state.ejections = 0;
                }
                return None;
            }
            Outcome::Failed => state.failures = state.failures.saturating_add(1),
        }
        // The last one that is up is never ejected: a bad endpoint is better than none.
        let up = matches!(state.phase, Phase::Up { .. });
        if !up || state.failures < self.config.eject_after || !others_up {
            return None;
        }
        state.ejections = state.ejections.saturating_add(1);
        let until = now + length(&self.config, state.ejections);
        self.set_phase(id, Phase::Ejected);
        Some(Ejection { until })
    }

    /// Every call earns a share of a retry.
    pub fn earn_retry(&mut self) {
        self.retries = (self.retries + self.config.retry_share).min(self.config.retry_reserve);
    }

    /// The endpoint for a further try, if the budget has one left and there is one that was not tried.
    pub fn pick_retry(&mut self, tried: &[EndpointId]) -> Option<EndpointId> {
        if self.retries < 1.0 {
            return None;
        }
        let picked = self.pick(tried)?;
        self.retries -= 1.0;
        Some(picked)
    }

    /// A number in 0..1 for jitter.
    pub fn random(&mut self) -> f64 {
        self.rng.random()
    }

    pub fn up_count(&self) -> usize {
        self.up.len()
    }

    pub fn view(&self) -> Vec<EndpointView> {
        let view = |state: &State| EndpointView {
            endpoint: state.endpoint.clone(),
            phase: state.phase,
            in_flight: state.in_flight,
        };
        self.states.values().map(view).collect()
    }

    fn set_phase(&mut self, id: EndpointId, phase: Phase) {
        if let Some(state) = self.states.get_mut(&id) {
            state.phase = phase;
            self.up.retain(|up| *up != id);
        }
    }
}

/// Of two different ones at random, the one with fewer calls in flight.
fn better_of_two(
    rng: &mut SmallRng,
    states: &BTreeMap<EndpointId, State>,
    candidates: &[EndpointId],
) -> Option<EndpointId> {
    let index = match candidates.len() {
        0 => return None,
        1 => return Some(candidates[0]),
        count => rng.random_range(0..count),
    };
    let step = rng.random_range(1..candidates.len());
    let (first, second) = (candidates[index], candidates[(index + step) % candidates.len()]);
    let in_flight = |id| states.get(id).map_or(u32::MAX, |state| state.in_flight);
    Some(if in_flight(&second) < in_flight(&first) { second } else { first })
}

fn length(config: &Config, ejections: u32) -> Duration {
    let doublings = ejections.saturating_sub(1).min(20);
    config.eject_first.saturating_mul(1 << doublings).min(config.eject_max)
}
