//! Everybody does what there is to do now: the loops of the product around its cores, over the
//! simulation's wires.

use std::cmp::Reverse;
use std::sync::atomic::Ordering;
use std::time::Duration;

use outstation_agent::account::desk::is_asked_again;
use outstation_agent::account::floor::Standing;
use outstation_agent::account::shared::lock;
use outstation_aws_sim::wire::faults::Fault;
use outstation_aws_sim::wire::query::Params;
use outstation_protocol::Envelope;
use outstation_protocol::session::{AgentOutput, Report, Verdict};
use outstation_protocol::v1::{RefusalRule, SetEntry, ToAgent, ToBroker};
use rand::Rng as _;

use crate::agent::Pid;
use crate::oracle::Basis;
use crate::tally;
use crate::world::{Due, Event, World, millis};

/// Handshakes with nobody there end like this.
const DIAL_MILLIS: u64 = 10_000;
/// Of everybody doing what there is to do at one instant; a handful is usual.
const ROUNDS_MAX: usize = 10_000;
/// What could not be judged or taken is asked for again after this.
const ASK_AGAIN_MILLIS: u64 = 10_000;

impl World {
    /// Everybody does what there is to do now, until nobody has anything left.
    pub fn pump(&mut self) {
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

    pub fn pump_agent(&mut self, pid: Pid) -> bool {
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
            // By the agents' clocks an hour is over whenever those jump.
            if action == "SetInstanceHealth" && !self.weather.clock_jumps {
                let instance = form.get("InstanceId").unwrap_or_default();
                self.oracle.replaced(instance, now, self.rules);
            }
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

    pub fn trace_line(&mut self, line: String) {
        self.note(format_args!("{line}"));
    }

    pub fn pump_session(&mut self, pid: Pid) -> bool {
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

    pub fn judge(&mut self, pid: Pid, entry: SetEntry, envelope: &Envelope) {
        let now = self.now_millis;
        let Some(agent) = self.agents.get_mut(&pid) else { return };
        let verdict = agent.desk.judge(&entry, envelope);
        if is_asked_again(&verdict) {
            agent.ask_again_millis = Some(now + ASK_AGAIN_MILLIS);
        }
        let (group, generation) = (entry.group.clone(), entry.generation);
        if let Verdict::Accepted = verdict {
            let order = agent.shared.view().accepted[&group].order.clone();
            self.oracle.changes(&order, now, self.rules);
            self.oracle.accepted(&order, entry.digest);
            self.note(format_args!("{pid:?} accepted {group} {generation}"));
        } else {
            if let Verdict::Refused(refusal) = &verdict
                && refusal.rule == RefusalRule::ChangeRate
            {
                tally::WAITED.fetch_add(1, Ordering::Relaxed);
            }
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

    pub fn dial(&mut self, pid: Pid) {
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

    pub fn hang_up(&mut self, pid: Pid, retry_after: Option<Duration>, reason: &str) {
        self.conns.remove(&pid);
        let Some(agent) = self.agents.get_mut(&pid) else { return };
        agent.session = None;
        agent.shared.link_live.send_replace(false);
        let lasted = Duration::from_millis(self.now_millis - agent.dialled_at_millis);
        let pause = agent.redial.pause(lasted, retry_after, self.random.random());
        agent.dial_at_millis = self.now_millis + millis(pause).max(1);
        self.note(format_args!("{pid:?} hangs up: {reason}"));
    }

    pub fn pump_broker(&mut self) -> bool {
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

    pub fn send_to_broker(&mut self, pid: Pid, message: ToBroker) {
        let Some(conn) = self.conns.get(&pid).copied() else { return };
        for late in self.fates() {
            self.after(late, Event::ToBroker { pid, conn, message: message.clone() });
        }
    }

    pub fn send_to_agent(&mut self, pid: Pid, message: ToAgent) {
        let Some(conn) = self.conns.get(&pid).copied() else { return };
        for late in self.fates() {
            self.after(late, Event::ToAgent { pid, conn, message: message.clone() });
        }
    }

    /// When the copies of a message arrive: usually one, sometimes none or two.
    pub fn fates(&mut self) -> Vec<u64> {
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
}
