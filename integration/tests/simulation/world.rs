//! The whole account on virtual time: agents, broker, AWS, machines, people, and the wires between
//! them. One seed decides everything; the same seed repeats the same run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use outstation_agent::account::desk::is_asked_again;
use outstation_agent::account::floor::Standing;
use outstation_agent::account::registry::SessionId;
use outstation_agent::account::shared::lock;
use outstation_aws_sim::model::credentials::{InstanceRole, Principal};
use outstation_aws_sim::model::group::LaunchTemplate;
use outstation_aws_sim::model::{AccessKeyId, Effect, ModelConfig};
use outstation_aws_sim::wire::Sim;
use outstation_aws_sim::wire::faults::{Fault, Faulty};
use outstation_aws_sim::wire::query::Params;
use outstation_protocol::session::{AgentOutput, Report, Verdict};
use outstation_protocol::v1::{SetEntry, ToAgent, ToBroker};
use outstation_protocol::{AccountId, DataPlane, Envelope, GroupName, InstanceId, Region};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::agent::{Agent, Pid};
use crate::broker::{Broker, copy_database};
use crate::nodes::{Beat, Node};
use crate::oracle::{Basis, Oracle, Rules};
use crate::people::People;
use crate::weather::Weather;
use crate::wire::CallId;

pub const TENANT: &str = "dev";
pub const ACCOUNT: &str = "123456789012";
pub const REGION: &str = "eu-central-1";
pub const AGENT_KEY: &str = "ASIASIMULATEDAGENT00";
pub const AGENT_SECRET: &str = "secret of the simulated agent";
/// 2026-11-24 00:00 UTC.
const START_UNIX_SECS: u64 = 1_795_478_400;
/// Handshakes with nobody there end like this.
const DIAL_MILLIS: u64 = 10_000;
/// Nobody talks without end: at most so many messages, calls and beats, and as many for each second.
const EVENTS_MAX: u64 = 2000;
const EVENTS_A_SECOND_MAX: u64 = 200;
/// Of everybody doing what there is to do at one instant; a handful is usual.
const ROUNDS_MAX: usize = 10_000;
/// The node link notices that a node is gone.
const SILENCE_MILLIS: u64 = 20_000;
/// What could not be judged or taken is asked for again after this.
const ASK_AGAIN_MILLIS: u64 = 10_000;
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
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { reconcile_secs: 30, beat_millis: 5000, tick_millis: 1000 }
    }
}

#[derive(Debug)]
enum Event {
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

struct Due {
    at_millis: u64,
    number: u64,
    event: Event,
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
    dir: TempDir,
    queue: BinaryHeap<Reverse<Due>>,
    numbers: u64,
    start: Instant,
    pub cloud: Faulty,
    pub nodes: BTreeMap<InstanceId, Node>,
    pub broker: Option<Broker>,
    pub agents: BTreeMap<Pid, Agent>,
    /// The connection that each agent has, as both ends count them.
    conns: BTreeMap<Pid, u64>,
    pub link_cut_until_millis: u64,
    aws_out_until_millis: u64,
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
            destroy: true,
            nodes_per_group_max: 6,
            nodes_total_max: 9,
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
            cloud: Faulty::new(Sim::new(cloud(seed))),
            nodes: BTreeMap::new(),
            broker: None,
            agents: BTreeMap::new(),
            conns: BTreeMap::new(),
            link_cut_until_millis: 0,
            aws_out_until_millis: 0,
            oracle: Oracle::default(),
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

    fn database(&self) -> PathBuf {
        self.dir.path().join("broker.db")
    }

    fn backup(&self) -> PathBuf {
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

    fn instant(&self) -> Instant {
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

    fn after(&mut self, millis: u64, event: Event) {
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

    /// Everybody does what there is to do now, until nobody has anything left.
    fn pump(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut moved = false;
            let pids: Vec<Pid> = self.agents.keys().copied().collect();
            for pid in pids {
                moved |= self.pump_agent(pid);
            }
            moved |= self.pump_broker();
            if !moved {
                return;
            }
        }
        panic!("at {} nobody comes to rest", self.now_millis);
    }

    fn pump_agent(&mut self, pid: Pid) -> bool {
        let now = self.now_millis;
        let Some(agent) = self.agents.get_mut(&pid) else { return false };
        let moved = agent.poll(now);
        if let Some((call, request)) = agent.wire.take() {
            let form = Params::parse(&String::from_utf8_lossy(request.body()));
            let shown = lock(&agent.shared.observed).clone();
            let live = *agent.shared.link_live.borrow();
            let basis = agent.is_reconciling().then_some(Basis { live, shown: &shown });
            self.oracle.sent(&form, basis, self.rules);
            let action = form.get("Action").unwrap_or_default().to_owned();
            let out = now < self.aws_out_until_millis;
            let (fault, late) = if self.calm {
                (None, 5)
            } else {
                let fault = if out {
                    Some(Fault::RequestLost)
                } else {
                    self.weather.fault(&mut self.random)
                };
                (fault, self.random.random_range(0..=self.weather.aws_latency_max_millis))
            };
            self.numbers += 1;
            let due = Due {
                at_millis: now + late,
                number: self.numbers,
                event: Event::AwsCall { pid, call, request, fault },
            };
            self.queue.push(Reverse(due));
            if !action.starts_with("Describe") {
                let fault = fault.map_or(String::new(), |fault| format!(" {fault:?}"));
                self.trace_line(format!("{pid:?} sends {action}{fault}"));
            }
            return true;
        }
        moved | self.pump_session(pid)
    }

    fn trace_line(&mut self, line: String) {
        self.note(format_args!("{line}"));
    }

    fn pump_session(&mut self, pid: Pid) -> bool {
        let (now, unix_secs) = (self.now_millis, self.unix_secs());
        let Some(agent) = self.agents.get_mut(&pid) else { return false };
        let Some(session) = &mut agent.session else {
            if now >= agent.dial_at_millis {
                self.dial(pid);
                return true;
            }
            return false;
        };
        if agent.answers.has_changed().unwrap_or(false) {
            for (group, answers) in agent.answers.borrow_and_update().iter() {
                for answer in answers {
                    let (group, answer) = (group.clone(), answer.clone());
                    session.handle_report(Report { group, answer });
                }
            }
        }
        if agent.ledger_changed.has_changed().unwrap_or(false) {
            agent.ledger_changed.mark_unchanged();
            session.handle_ledger(agent.desk.heads());
        }
        if agent.standing.has_changed().unwrap_or(false) {
            agent.standing.mark_unchanged();
            let can_judge = agent.standing.borrow().refusal().is_none();
            if can_judge && agent.ask_again_millis.take().is_some() {
                session.ask_again();
            }
            if !agent.waiting.is_empty() {
                for (entry, envelope) in std::mem::take(&mut agent.waiting) {
                    self.judge(pid, entry, &envelope);
                }
                return true;
            }
        }
        if agent.ask_again_millis.is_some_and(|at| now >= at) {
            agent.ask_again_millis = None;
            session.ask_again();
        }
        if agent.clock.now() >= session.next_timeout() {
            session.handle_timeout(agent.clock.now());
        }
        let mut moved = false;
        loop {
            let Some(agent) = self.agents.get_mut(&pid) else { return true };
            let Some(session) = &mut agent.session else { return true };
            let Some(output) = session.poll_output(agent.clock.now()) else { return moved };
            moved = true;
            match output {
                AgentOutput::Send(message) => self.send_to_broker(pid, message),
                AgentOutput::Judge { entry, envelope } => {
                    if *agent.standing.borrow() == Standing::NotLooked {
                        agent.waiting.push((entry, envelope));
                    } else {
                        self.judge(pid, entry, &envelope);
                    }
                }
                AgentOutput::HandBack(entry) => {
                    let kept = agent.desk.hand_back(&entry);
                    session.handle_kept(kept);
                }
                AgentOutput::Live => {
                    agent.shared.link_live.send_replace(true);
                    agent.shared.look.notify_one();
                    self.note(format_args!("{pid:?} live"));
                }
                AgentOutput::Close { reason, retry_after } => {
                    if let Some(broker) = &mut self.broker {
                        broker.hang_up(pid, unix_secs);
                    }
                    self.hang_up(pid, retry_after, &reason);
                    return true;
                }
            }
        }
    }

    fn judge(&mut self, pid: Pid, entry: SetEntry, envelope: &Envelope) {
        let now = self.now_millis;
        let Some(agent) = self.agents.get_mut(&pid) else { return };
        let verdict = agent.desk.judge(&entry, envelope);
        if is_asked_again(&verdict) {
            agent.ask_again_millis = Some(now + ASK_AGAIN_MILLIS);
        }
        let (group, generation) = (entry.group.clone(), entry.generation);
        if let Verdict::Accepted = verdict {
            let order = lock(&agent.shared.ledger).accepted()[&group].order.clone();
            self.oracle.accepted(&order, entry.digest);
            self.note(format_args!("{pid:?} accepted {group} {generation}"));
        } else {
            self.note(format_args!("{pid:?} {group} {generation}: {verdict:?}"));
        }
        if !self.calm && self.random.random_bool(self.weather.crash_after_verdict) {
            return self.crash_agent(pid);
        }
        let Some(agent) = self.agents.get_mut(&pid) else { return };
        let Some(session) = &mut agent.session else { return };
        session.handle_verdict(entry, verdict);
        agent.desk.keep(session);
    }

    fn dial(&mut self, pid: Pid) {
        let (now, instant) = (self.now_millis, self.instant());
        let reachable = now >= self.link_cut_until_millis;
        let Some(agent) = self.agents.get_mut(&pid) else { return };
        agent.dialled_at_millis = now;
        match &mut self.broker {
            Some(broker) if reachable => {
                self.numbers += 1;
                self.conns.insert(pid, self.numbers);
                agent.waiting.clear();
                agent.ask_again_millis = None;
                agent.session = Some(agent.desk.open_session(agent.id.clone()));
                agent.answers.mark_changed();
                broker.connect(pid, agent.id.clone(), instant);
            }
            Some(_) | None => {
                let pause = agent.redial.pause(
                    Duration::from_millis(DIAL_MILLIS),
                    None,
                    self.random.random(),
                );
                agent.dial_at_millis = now + DIAL_MILLIS + millis(pause);
            }
        }
    }

    fn hang_up(&mut self, pid: Pid, retry_after: Option<Duration>, reason: &str) {
        self.conns.remove(&pid);
        let Some(agent) = self.agents.get_mut(&pid) else { return };
        agent.session = None;
        agent.shared.link_live.send_replace(false);
        let lasted = Duration::from_millis(self.now_millis - agent.dialled_at_millis);
        let pause = agent.redial.pause(lasted, retry_after, self.random.random());
        agent.dial_at_millis = self.now_millis + millis(pause).max(1);
        self.note(format_args!("{pid:?} hangs up: {reason}"));
    }

    fn pump_broker(&mut self) -> bool {
        let (instant, unix_secs) = (self.instant(), self.unix_secs());
        let Some(broker) = &mut self.broker else { return false };
        if broker.is_dead() {
            self.broker_crashes();
            return true;
        }
        let pids: Vec<Pid> = broker.sessions.keys().copied().collect();
        let mut moved = false;
        for pid in pids {
            loop {
                let Some(broker) = &mut self.broker else { return moved };
                if let Some(session) = broker.sessions.get_mut(&pid)
                    && instant >= session.next_timeout()
                {
                    session.handle_timeout(instant);
                }
                let oracle = &self.oracle;
                let durable = |entry: &SetEntry| {
                    let kept = oracle.accepted.get(&entry.group);
                    let durable =
                        kept.is_some_and(|(order, _)| order.generation >= entry.generation);
                    assert!(durable, "{} {} told, not kept", entry.group, entry.generation);
                };
                match broker.poll(pid, unix_secs, durable) {
                    Ok(Some(message)) => {
                        moved = true;
                        self.send_to_agent(pid, message);
                    }
                    Ok(None) => break,
                    Err(_reason) => {
                        moved = true;
                        if let Some(conn) = self.conns.get(&pid).copied() {
                            self.after(20, Event::Closed { pid, conn });
                        }
                        break;
                    }
                }
            }
        }
        moved
    }

    fn send_to_broker(&mut self, pid: Pid, message: ToBroker) {
        let Some(conn) = self.conns.get(&pid).copied() else { return };
        for late in self.fates() {
            self.after(late, Event::ToBroker { pid, conn, message: message.clone() });
        }
    }

    fn send_to_agent(&mut self, pid: Pid, message: ToAgent) {
        let Some(conn) = self.conns.get(&pid).copied() else { return };
        for late in self.fates() {
            self.after(late, Event::ToAgent { pid, conn, message: message.clone() });
        }
    }

    /// When the copies of a message arrive: usually one, sometimes none or two.
    fn fates(&mut self) -> Vec<u64> {
        if self.calm {
            return vec![5];
        }
        if self.now_millis < self.link_cut_until_millis
            || self.random.random_bool(self.weather.lost)
        {
            return Vec::new();
        }
        let copies = 1 + usize::from(self.random.random_bool(self.weather.repeated));
        let max = self.weather.delay_max_millis;
        (0..copies).map(|_| self.random.random_range(0..=max)).collect()
    }

    fn aws_call(
        &mut self,
        pid: Pid,
        call: CallId,
        request: &http::Request<Bytes>,
        fault: Option<Fault>,
    ) {
        let now = self.aws_now();
        let groups = self.cloud.sim.model.groups().count();
        let response = self.cloud.handle(request, now, fault);
        let form = Params::parse(&String::from_utf8_lossy(request.body()));
        let action = form.get("Action").unwrap_or_default();
        if action == "CreateAutoScalingGroup" && self.cloud.sim.model.groups().count() > groups {
            self.oracle.created(&form);
        }
        if let Some(response) = response {
            if !action.starts_with("Describe") {
                self.note(format_args!("AWS: {action} {}", response.status().as_u16()));
            }
            let late = if self.calm {
                5
            } else {
                self.random.random_range(0..=self.weather.aws_latency_max_millis)
            };
            self.after(late, Event::AwsReply { pid, call, response });
        }
        self.tick();
    }

    /// Time passes for AWS.
    pub fn tick(&mut self) {
        let now = self.aws_now();
        for effect in self.cloud.sim.tick(now) {
            match effect {
                Effect::Launch { facts, user_data: _ } => {
                    let node = Node::new(&facts);
                    let instance = node.instance.clone();
                    self.nodes.insert(instance.clone(), node);
                    let up = self.calm || !self.random.random_bool(self.weather.boots_fail);
                    let late = self.random.random_range(500..4000);
                    self.after(late, Event::Machine { instance, up });
                }
                Effect::Update { facts } => {
                    let instance = facts.instance_id.as_str();
                    let node =
                        self.nodes.values_mut().find(|node| node.instance.as_str() == instance);
                    if let Some(node) = node {
                        node.leaving = facts.target_lifecycle_state == "Terminated";
                    }
                }
                Effect::Shutdown { instance } => {
                    let instance = InstanceId::try_from(instance.as_str()).expect("a valid id");
                    self.after(1000, Event::Machine { instance, up: false });
                }
            }
        }
        if self.weather.aws.iter().any(|(fault, odds)| *fault == Fault::Stale && *odds > 0.0) {
            self.cloud.remember(now);
        }
    }

    fn machine(&mut self, instance: &InstanceId, up: bool) {
        let id = outstation_aws_sim::model::InstanceId::try_from(instance.as_str().to_owned())
            .expect("a valid id");
        if up {
            let Some(node) = self.nodes.get_mut(instance) else { return };
            node.up = true;
            self.cloud.sim.model.instance_running(&id);
            self.after(1, Event::Beat { instance: instance.clone() });
        } else {
            let gone = self.nodes.remove(instance).and_then(|node| node.session());
            if let Some((pid, session)) = gone {
                let instance = instance.clone();
                self.after(SILENCE_MILLIS, Event::Lost { instance, pid, session });
            }
            self.cloud.sim.model.instance_dead(&id);
        }
        self.tick();
    }

    fn beat(&mut self, instance: &InstanceId) {
        let now = self.now_millis;
        self.numbers += 1;
        let fresh = self.numbers;
        let Some(node) = self.nodes.get_mut(instance).filter(|node| node.up) else { return };
        let mut pause = self.setup.beat_millis;
        if let Some(agent) = self.agents.values_mut().next() {
            match node.beat(agent.pid, &agent.shared, now, fresh) {
                Beat::Quiet => {}
                Beat::Busy => pause = 1000,
                Beat::Drained => {
                    pause = 5000;
                    if let Some(asg_name) = agent.shared.asg_name(&node.group) {
                        agent.complete_drain(instance.clone(), asg_name);
                    }
                }
            }
        }
        self.after(pause, Event::Beat { instance: instance.clone() });
    }

    fn start_agent(&mut self, disk: &Path) {
        self.numbers += 1;
        let (pid, store) = (Pid(self.numbers), self.store());
        let unix_millis = (START_UNIX_SECS * 1000) + self.now_millis;
        let seed = self.random.random();
        let secs = self.setup.reconcile_secs;
        match Agent::start(pid, &store, disk, self.now_millis, unix_millis, secs, seed) {
            Ok(agent) => {
                self.agents.insert(pid, agent);
                self.note(format_args!("{pid:?} starts"));
            }
            // A service manager tries again.
            Err(error) => {
                self.note(format_args!("an agent does not start: {error}"));
                self.after(5000, Event::StartAgent { disk: disk.to_owned() });
            }
        }
    }

    /// SIGKILL: the other end of the link notices by silence. A service manager starts it again.
    pub fn crash_agent(&mut self, pid: Pid) {
        if let Some(agent) = self.agents.remove(&pid) {
            self.conns.remove(&pid);
            self.note(format_args!("{pid:?} crashes"));
            let late = self.random.random_range(100..20_000);
            self.after(late, Event::StartAgent { disk: agent.disk });
        }
    }

    fn start_broker(&mut self, restored: bool) {
        if restored && self.backup().exists() {
            copy_database(&self.backup(), &self.database());
        }
        self.broker = Some(Broker::start(&self.database(), data_plane(), self.unix_secs()));
        self.note(format_args!("the broker starts, restored: {restored}"));
    }

    fn broker_crashes(&mut self) {
        self.stop_broker();
        let restored = self.weather.broker_restored && self.random.random_bool(0.5);
        let late = self.random.random_range(100..90_000);
        self.bring_the_broker_back(restored, late);
    }

    pub fn stop_broker(&mut self) {
        self.broker = None;
        self.note(format_args!("the broker dies"));
    }

    pub fn back_up_the_broker(&mut self) {
        copy_database(&self.database(), &self.backup());
        self.note(format_args!("the broker's database is backed up"));
    }

    pub fn bring_the_broker_back(&mut self, restored: bool, in_millis: u64) {
        self.after(in_millis, Event::StartBroker { restored });
    }

    /// Something breaks, or comes back.
    fn trouble(&mut self) {
        let weather = self.weather.clone();
        let pick = self.random.random_range(0..9);
        let first = self.agents.keys().next().copied();
        match pick {
            0 if weather.partitions => {
                self.link_cut_until_millis =
                    self.now_millis + self.random.random_range(1000..120_000);
                self.note(format_args!("the link is cut"));
            }
            1 if weather.agent_crashes => {
                if let Some(pid) = first {
                    self.crash_agent(pid);
                }
            }
            2 if weather.agent_replaced && self.agents.len() == 1 => {
                let disk = self.dir.path().join(format!("disk-{}", self.numbers));
                if self.random.random_bool(0.5)
                    && let Some(pid) = first
                {
                    self.agents.remove(&pid);
                    self.conns.remove(&pid);
                    self.note(format_args!("{pid:?} is gone for good"));
                }
                self.start_agent(&disk);
            }
            3 if weather.agent_replaced && self.agents.len() > 1 => {
                if let Some(pid) = first {
                    self.agents.remove(&pid);
                    self.conns.remove(&pid);
                    self.note(format_args!("{pid:?} is gone for good"));
                }
            }
            4 if weather.broker_crashes && self.broker.is_some() => {
                if self.random.random_bool(0.5) || !self.backup().exists() {
                    self.back_up_the_broker();
                }
                // At once, or between two of its next writes.
                if self.random.random_bool(0.5) {
                    self.broker_crashes();
                } else if let Some(broker) = &mut self.broker {
                    broker.dies_after_writes = Some(self.random.random_range(1..6));
                }
            }
            5 if weather.aws_outages => {
                self.aws_out_until_millis =
                    self.now_millis + self.random.random_range(1000..60_000);
                self.note(format_args!("AWS is out"));
            }
            6 if weather.machines_die => self.a_machine_dies(),
            7 if weather.clock_jumps => {
                let days: i64 = self.random.random_range(-86_400..86_400);
                for agent in self.agents.values() {
                    let shifted = (agent.clock.unix_millis() / 1000).saturating_add_signed(days);
                    agent.clock.set_unix_millis(shifted * 1000);
                }
                self.note(format_args!("the agents' clocks jump by {days} s"));
            }
            8 if weather.store_outages => self.toggle_store(),
            _ => {}
        }
    }

    pub fn a_machine_dies(&mut self) {
        let up: Vec<InstanceId> =
            self.nodes.values().filter(|node| node.up).map(|node| node.instance.clone()).collect();
        if !up.is_empty() {
            let victim = up[self.random.random_range(0..up.len())].clone();
            self.note(format_args!("{victim} dies"));
            self.machine(&victim, false);
        }
    }

    fn orders_folder(&self) -> (PathBuf, PathBuf) {
        let state = self.store().join("state");
        (state.join("orders"), state.join("orders-away"))
    }

    /// The account store's `state/` cannot be reached, or can be again.
    fn toggle_store(&mut self) {
        let (there, away) = self.orders_folder();
        if away.exists() {
            // An agent may have made an empty one meanwhile; it wrote nothing there.
            let _ = std::fs::remove_file(&there);
            let _ = std::fs::remove_dir_all(&there);
            std::fs::rename(&away, &there).expect("the store comes back");
            self.note(format_args!("the account store is back"));
        } else if there.exists() {
            std::fs::rename(&there, &away).expect("the store goes");
            // Not a folder: neither read nor written, as a bucket that does not answer.
            std::fs::write(&there, b"").expect("the store goes");
            self.note(format_args!("the account store is away"));
        }
    }

    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
        let text = if rules.valid {
            format!(
                "name_prefix = \"{prefix}\"\nnodes_per_group_max = {group}\nnodes_total_max = {total}\n\
                 unsigned_orders = \"dev\"\ndestroy = \"{destroy}\"\npause = {pause}\n\
                 availability_zones = [\"{REGION}a\", \"{REGION}b\"]\n\
                 [launch_template]\nname = \"outstation-node\"\nversion = 1\n",
                prefix = crate::oracle::PREFIX,
                group = rules.nodes_per_group_max,
                total = rules.nodes_total_max,
                destroy = if rules.destroy { "allow" } else { "never" },
                pause = rules.pause,
            )
        } else {
            "a typing error".to_owned()
        };
        let path = self.store().join("guardrails/guardrails.toml");
        let beside = path.with_extension("new");
        std::fs::write(&beside, text).expect("written");
        std::fs::rename(&beside, &path).expect("written");
        self.note(format_args!("{rules:?}"));
        // `watch_guardrails` looks once a second; what it finds wakes the reconciler.
        for agent in self.agents.values() {
            let _ = agent.shared.refresh_guardrails();
        }
    }

    /// Faults stop: everything that was broken is mended, and one agent is left.
    pub fn calm_down(&mut self) {
        self.calm = true;
        self.link_cut_until_millis = self.now_millis;
        self.aws_out_until_millis = self.now_millis;
        if self.orders_folder().1.exists() {
            self.toggle_store();
        }
        while self.agents.len() > 1 {
            let Some((pid, _)) = self.agents.pop_first() else { break };
            self.conns.remove(&pid);
        }
        for agent in self.agents.values() {
            agent.clock.set_unix_millis(START_UNIX_SECS * 1000 + self.now_millis);
        }
        let rules = Rules {
            valid: true,
            pause: false,
            destroy: true,
            nodes_per_group_max: 6,
            nodes_total_max: 100,
        };
        self.set_rules(rules);
        self.note(format_args!("faults stop"));
    }
}

pub fn data_plane() -> DataPlane {
    DataPlane {
        account: AccountId::try_from(ACCOUNT).expect("valid"),
        region: Region::try_from(REGION).expect("valid"),
    }
}

fn cloud(seed: u64) -> ModelConfig {
    let principal = Principal {
        secret_access_key: AGENT_SECRET.to_owned(),
        session_token: Some("sim".to_owned()),
        arn: format!("arn:aws:sts::{ACCOUNT}:assumed-role/outstation-agent/sim"),
        user_id: "AROASIMULATEDAGENT00:sim".to_owned(),
        expires: None,
    };
    ModelConfig {
        account: ACCOUNT.to_owned(),
        region: REGION.to_owned(),
        zones: vec![format!("{REGION}a"), format!("{REGION}b")],
        subnets: BTreeMap::new(),
        role: InstanceRole {
            account: ACCOUNT.to_owned(),
            name: "outstation-node".to_owned(),
            id: "AROASIMULATEDNODE000".to_owned(),
        },
        net: Ipv4Addr::new(10, 83, 0, 0),
        boot_delay: Duration::ZERO,
        templates: vec![LaunchTemplate {
            id: "lt-0123456789abcdef0".to_owned(),
            name: "outstation-node".to_owned(),
            version: 1,
            image_id: "ami-0123456789abcdef0".to_owned(),
            instance_type: "c7i.large".to_owned(),
            user_data: String::new(),
        }],
        hooks_hold_dead_instances: false,
        principals: vec![(AccessKeyId::from(AGENT_KEY.to_owned()), principal)],
        seed,
    }
}

/// For the groups of a run.
pub fn group(index: usize) -> GroupName {
    GroupName::try_from(format!("g{index}")).expect("a valid name")
}
