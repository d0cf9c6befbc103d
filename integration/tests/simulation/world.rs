//! The whole account on virtual time: agents, broker, AWS, machines, people, and the wires between
//! them. One seed decides everything; the same seed repeats the same run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use outstation_agent::account::guardrails::DestroyPolicy;
use outstation_agent::account::registry::SessionId;
use outstation_aws_sim::wire::Sim;
use outstation_aws_sim::wire::faults::{Fault, Faulty};
use outstation_protocol::v1::{ToAgent, ToBroker};
use outstation_protocol::{AccountId, DataPlane, GroupName, InstanceId, Region};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::agent::{Agent, Pid};
use crate::broker::Broker;
use crate::nodes::Node;
use crate::oracle::{Oracle, Rules};
use crate::people::People;
use crate::weather::Weather;
use crate::wire::CallId;

pub const TENANT: &str = "dev";
pub const ACCOUNT: &str = "123456789012";
pub const REGION: &str = "eu-central-1";
pub const AGENT_KEY: &str = "ASIASIMULATEDAGENT00";
pub const AGENT_SECRET: &str = "secret of the simulated agent";
/// 2026-11-24 00:00 UTC.
pub const START_UNIX_SECS: u64 = 1_795_478_400;
/// Nobody talks without end: at most so many messages, calls and beats, and as many for each second.
const EVENTS_MAX: u64 = 2000;
const EVENTS_A_SECOND_MAX: u64 = 200;
/// Enough to see what led to a failure.
const TRACE_LINES_MAX: usize = 400;

pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How a run is set up beside its faults.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub reconcile_secs: u64,
    /// Between two heartbeats of a node that has nothing to say.
    pub beat_millis: u64,
    /// Between two looks of AWS at its own groups.
    pub tick_millis: u64,
    /// The AutoScaling groups are the customer's.
    pub scale_only: bool,
    /// Of the agent; `None`: what it does unless told.
    pub requests_per_second: Option<u32>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            reconcile_secs: 30,
            beat_millis: 5000,
            tick_millis: 1000,
            scale_only: false,
            requests_per_second: None,
        }
    }
}

#[derive(Debug)]
pub enum Event {
    ToBroker {
        pid: Pid,
        conn: u64,
        message: ToBroker,
    },
    ToAgent {
        pid: Pid,
        conn: u64,
        message: ToAgent,
    },
    /// The other end has closed the connection.
    Closed {
        pid: Pid,
        conn: u64,
    },
    AwsCall {
        pid: Pid,
        call: CallId,
        request: http::Request<Bytes>,
        fault: Option<Fault>,
    },
    AwsReply {
        pid: Pid,
        call: CallId,
        response: http::Response<Bytes>,
    },
    Machine {
        instance: InstanceId,
        up: bool,
    },
    Beat {
        instance: InstanceId,
    },
    /// The account agent notices that a node is silent.
    Lost {
        instance: InstanceId,
        pid: Pid,
        session: SessionId,
    },
    Tick,
    StartAgent {
        disk: PathBuf,
    },
    StartBroker {
        restored: bool,
    },
    People,
    Trouble,
}

pub struct Due {
    pub at_millis: u64,
    pub number: u64,
    pub event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        (self.at_millis, self.number) == (other.at_millis, other.number)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        (self.at_millis, self.number).cmp(&(other.at_millis, other.number))
    }
}

pub struct World {
    pub now_millis: u64,
    pub random: StdRng,
    pub weather: Weather,
    pub setup: Setup,
    /// Faults have stopped.
    pub calm: bool,
    pub dir: TempDir,
    pub queue: BinaryHeap<Reverse<Due>>,
    pub numbers: u64,
    start: Instant,
    pub cloud: Faulty,
    pub nodes: BTreeMap<InstanceId, Node>,
    pub broker: Option<Broker>,
    pub agents: BTreeMap<Pid, Agent>,
    /// The connection that each agent has, as both ends count them.
    pub conns: BTreeMap<Pid, u64>,
    pub link_cut_until_millis: u64,
    pub aws_out_until_millis: u64,
    /// What reached AWS, when, and of which AutoScaling group.
    pub calls: Vec<(u64, String, String)>,
    pub oracle: Oracle,
    pub people: People,
    pub rules: Rules,
    trace: VecDeque<String>,
    pub trace_hash: Sha256,
}

impl World {
    pub fn new(seed: u64, weather: Weather, setup: Setup) -> World {
        // The SDK draws its retries' jitter from there.
        fastrand::seed(seed);
        let random = StdRng::seed_from_u64(seed);
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
        let dir = dir.expect("a temporary folder");
        let rules = Rules {
            valid: true,
            pause: false,
            destroy: DestroyPolicy::Allow,
            nodes_per_group_max: 6,
            nodes_total_max: 9,
            version: 1,
            min_healthy_percent: 90,
            replacements_per_hour: 2,
            changes_per_hour: None,
        };
        let mut world = World {
            now_millis: 0,
            random,
            weather,
            setup,
            calm: false,
            dir,
            queue: BinaryHeap::new(),
            numbers: 0,
            start: Instant::now(),
            cloud: Faulty::new(crate::policy::held(
                Sim::new(crate::cloud::config(seed)),
                setup.scale_only,
            )),
            nodes: BTreeMap::new(),
            broker: None,
            agents: BTreeMap::new(),
            conns: BTreeMap::new(),
            link_cut_until_millis: 0,
            aws_out_until_millis: 0,
            calls: Vec::new(),
            oracle: Oracle::of(setup.scale_only),
            people: People::new(),
            rules,
            trace: VecDeque::new(),
            trace_hash: Sha256::new(),
        };
        std::fs::create_dir_all(world.store().join("guardrails")).expect("a folder");
        world.set_rules(rules);
        world.broker = Some(Broker::start(&world.database(), data_plane(), world.unix_secs()));
        world.start_agent(&world.dir.path().join("disk-1"));
        world.after(world.setup.tick_millis, Event::Tick);
        world
    }

    pub fn begin_trouble(&mut self) {
        self.after(1, Event::People);
        self.after(1000, Event::Trouble);
    }

    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub fn database(&self) -> PathBuf {
        self.dir.path().join("broker.db")
    }

    pub fn backup(&self) -> PathBuf {
        self.dir.path().join("backup.db")
    }

    /// The true time of day; agents may have another.
    pub fn unix_secs(&self) -> u64 {
        START_UNIX_SECS + self.now_millis / 1000
    }

    pub fn aws_now(&self) -> OffsetDateTime {
        let millis = i128::from(START_UNIX_SECS * 1000 + self.now_millis);
        OffsetDateTime::from_unix_timestamp_nanos(millis * 1_000_000)
            .expect("a year of this century")
    }

    pub fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now_millis)
    }

    pub fn note(&mut self, line: std::fmt::Arguments<'_>) {
        let mut text = String::new();
        write!(text, "{:>9} {line}", self.now_millis).expect("writing to a string");
        self.trace_hash.update(text.as_bytes());
        if self.trace.len() == TRACE_LINES_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back(text);
    }

    pub fn trace(&self) -> String {
        self.trace.iter().map(|line| format!("{line}\n")).collect()
    }

    pub fn after(&mut self, millis: u64, event: Event) {
        self.numbers += 1;
        let (at_millis, number) = (self.now_millis + millis, self.numbers);
        self.queue.push(Reverse(Due { at_millis, number, event }));
    }

    /// Lets so much time pass.
    pub fn pass(&mut self, millis: u64) {
        let until = self.now_millis + millis;
        self.pump();
        let mut events = 0u64;
        loop {
            let queued = self.queue.peek().map_or(u64::MAX, |Reverse(due)| due.at_millis);
            let agents = self.agents.values().map(|agent| agent.next_millis(self.now_millis));
            let sessions = self.broker.iter().flat_map(|broker| broker.sessions.values());
            let sessions = sessions.map(|session| {
                let wait = session.next_timeout().saturating_duration_since(self.instant());
                self.now_millis + crate::world::millis(wait).max(1)
            });
            let next = agents.chain(sessions).min().unwrap_or(u64::MAX).min(queued);
            if next > until {
                self.advance_to(until);
                return;
            }
            self.advance_to(next);
            while self.queue.peek().is_some_and(|Reverse(due)| due.at_millis <= self.now_millis) {
                let Some(Reverse(due)) = self.queue.pop() else { break };
                events += 1;
                let ration = EVENTS_MAX + millis / 1000 * EVENTS_A_SECOND_MAX;
                assert!(
                    events < ration,
                    "a storm: {events} events in {millis} ms, as {:?}",
                    due.event
                );
                self.handle(due.event);
                self.pump();
            }
            self.pump();
        }
    }

    fn advance_to(&mut self, to_millis: u64) {
        let by = Duration::from_millis(to_millis.saturating_sub(self.now_millis));
        self.now_millis = self.now_millis.max(to_millis);
        for agent in self.agents.values_mut() {
            agent.clock.advance(by);
            agent.timers.set_now(self.now_millis);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::ToBroker { pid, conn, message } => {
                let now = self.instant();
                if self.conns.get(&pid) == Some(&conn)
                    && let Some(broker) = &mut self.broker
                    && let Some(session) = broker.sessions.get_mut(&pid)
                {
                    session.handle_message(message, now);
                }
            }
            Event::ToAgent { pid, conn, message } => {
                if self.conns.get(&pid) == Some(&conn)
                    && let Some(agent) = self.agents.get_mut(&pid)
                    && let Some(session) = &mut agent.session
                {
                    session.handle_message(message, agent.clock.now());
                    agent.desk.keep(session);
                }
            }
            Event::Closed { pid, conn } => {
                let unix_secs = self.unix_secs();
                if self.conns.get(&pid) == Some(&conn) {
                    if let Some(broker) = &mut self.broker {
                        broker.hang_up(pid, unix_secs);
                    }
                    self.hang_up(pid, None, "closed by the broker");
                }
            }
            Event::AwsCall { pid, call, request, fault } => {
                self.aws_call(pid, call, &request, fault);
            }
            Event::AwsReply { pid, call, response } => {
                if let Some(agent) = self.agents.get(&pid) {
                    agent.wire.answer(call, response);
                }
            }
            Event::Machine { instance, up } => self.machine(&instance, up),
            Event::Beat { instance } => self.beat(&instance),
            Event::Lost { instance, pid, session } => {
                if let Some(agent) = self.agents.get(&pid) {
                    let unix = agent.shared.clock.unix_secs();
                    agent
                        .shared
                        .update_registry(|registry| registry.lost(&instance, session, unix));
                }
            }
            Event::Tick => {
                self.tick();
                self.after(self.setup.tick_millis, Event::Tick);
            }
            Event::StartAgent { .. } if self.calm && !self.agents.is_empty() => {}
            Event::StartAgent { disk } => self.start_agent(&disk),
            Event::StartBroker { restored } => self.start_broker(restored),
            Event::People if !self.calm => {
                self.people_act();
                let pause = self.random.random_range(1000..30_000);
                self.after(pause, Event::People);
            }
            Event::Trouble if !self.calm => {
                self.trouble();
                let pause = self.random.random_range(500..20_000);
                self.after(pause, Event::Trouble);
            }
            Event::People | Event::Trouble => {}
        }
    }
}

pub fn data_plane() -> DataPlane {
    DataPlane {
        account: AccountId::try_from(ACCOUNT).expect("valid"),
        region: Region::try_from(REGION).expect("valid"),
    }
}
/// For the groups of a run.
pub fn group(index: usize) -> GroupName {
    GroupName::try_from(format!("g{index}")).expect("a valid name")
}
