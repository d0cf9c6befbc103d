//! The agent's end of the control link.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::{
    Answer, AnswerKind, DesiredSet, ENVELOPES_IN_FLIGHT_MAX, HEARTBEAT_MAX, HEARTBEAT_MIN, Report,
    Reports, Unsent, put_unsent, reports_hash, set_hash,
};
use crate::envelope::Envelope;
use crate::ids::{Digest, Generation, GroupName};
use crate::v1::{
    self, Hello, Refusal, RefusalRule, SET_ENTRIES_MAX, SetEntry, ToAgent, ToBroker, Welcome,
};

#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The session ends when the broker says nothing for so long, welcome included.
    pub silence_max: Duration,
    /// A requested envelope that has not come by then is requested again.
    pub fetch_timeout: Duration,
}

impl Default for AgentConfig {
    fn default() -> Self {
        AgentConfig { silence_max: Duration::from_secs(25), fetch_timeout: Duration::from_secs(10) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentOutput {
    Send(ToBroker),
    /// Judge this envelope against the account's own memory and guardrails, write it down if it
    /// is good, then call [`AgentSession::handle_verdict`].
    Judge {
        entry: SetEntry,
        envelope: Envelope,
    },
    /// Read this accepted envelope from the ledger, then call [`AgentSession::handle_kept`].
    HandBack(SetEntry),
    /// The broker has greeted us.
    Live,
    Close {
        reason: String,
        retry_after: Option<Duration>,
    },
}

/// What the account agent made of an envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is in the ledger, durably.
    Accepted,
    Refused(Refusal),
}

/// From the Hello to the end of one connection. What outlives it (ledger and answers) is the
/// caller's, handed in at the start.
pub struct AgentSession {
    config: AgentConfig,
    link: Link,
    hello: Option<Hello>,
    /// Highest generation accepted of each group, from the ledger.
    accepted: BTreeMap<GroupName, (Generation, Digest)>,
    reports: Reports,
    set: Option<DesiredSet>,
    wanted: BTreeSet<SetEntry>,
    in_flight: BTreeMap<SetEntry, Instant>,
    judging: BTreeSet<SetEntry>,
    envelopes: VecDeque<(SetEntry, Envelope)>,
    /// Asked back by the broker; only what we have accepted, so bounded by the ledger.
    asked_back: BTreeSet<SetEntry>,
    /// The one that goes out next: one envelope in memory at a time.
    kept: Option<Envelope>,
    unsent: Unsent,
    send_set_due: bool,
    heartbeat_due: bool,
    live_due: bool,
    last_heard: Instant,
}

enum Link {
    Greeting,
    Live { heartbeat: Duration, next_heartbeat: Instant },
    Closing { reason: String, retry_after: Option<Duration> },
    Closed,
}

impl AgentSession {
    pub fn new(
        hello: Hello,
        accepted: BTreeMap<GroupName, (Generation, Digest)>,
        mut reports: Reports,
        config: AgentConfig,
        now: Instant,
    ) -> AgentSession {
        forget_passing_refusals(&mut reports);
        AgentSession {
            config,
            link: Link::Greeting,
            hello: Some(hello),
            accepted,
            reports,
            set: None,
            wanted: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            judging: BTreeSet::new(),
            envelopes: VecDeque::new(),
            asked_back: BTreeSet::new(),
            kept: None,
            unsent: Unsent::new(),
            send_set_due: false,
            heartbeat_due: false,
            live_due: false,
            last_heard: now,
        }
    }

    pub fn handle_message(&mut self, message: ToAgent, now: Instant) {
        self.last_heard = now;
        match (message, matches!(self.link, Link::Greeting)) {
            (ToAgent::Welcome(welcome), true) => self.handle_welcome(&welcome, now),
            (ToAgent::Goodbye { reason, retry_after_secs }, _) => {
                let retry_after = Duration::from_secs(retry_after_secs.into()).min(HEARTBEAT_MAX);
                self.close(format!("the broker said goodbye: {reason}"), Some(retry_after));
            }
            (_, true) => self.close("the broker spoke before its welcome".into(), None),
            (ToAgent::Welcome(_), false) => {}
            (ToAgent::Heartbeat { set_hash }, false) => self.compare_set_hash(set_hash),
            (ToAgent::DesiredSet { entries }, false) => self.handle_set(entries),
            (ToAgent::Order { envelope }, false) => self.handle_order(envelope),
            (ToAgent::SendReports, false) => self.resend_reports(),
            (ToAgent::HandBack(entry), false) => {
                // Only what stands in the ledger; the broker has seen no other digest from us.
                if self.accepted.get(&entry.group) == Some(&(entry.generation, entry.digest)) {
                    self.asked_back.insert(entry);
                }
            }
        }
    }

    fn handle_welcome(&mut self, welcome: &Welcome, now: Instant) {
        if welcome.version != v1::VERSION {
            let reason = format!("the broker chose version {}, not offered", welcome.version);
            return self.close(reason, None);
        }
        let heartbeat =
            Duration::from_secs(welcome.heartbeat_secs.into()).clamp(HEARTBEAT_MIN, HEARTBEAT_MAX);
        self.link = Link::Live { heartbeat, next_heartbeat: now + heartbeat };
        // The broker answers each heartbeat; one may get lost.
        self.config.silence_max = self.config.silence_max.max(heartbeat * 5 / 2);
        self.live_due = true;
        // Says at once what we stand by; the broker asks for more only if that is news to it.
        self.heartbeat_due = true;
        self.compare_set_hash(welcome.set_hash);
    }

    fn compare_set_hash(&mut self, offered: Digest) {
        self.send_set_due |= self.set.as_ref().map(set_hash) != Some(offered);
    }

    fn handle_set(&mut self, entries: Vec<SetEntry>) {
        if entries.len() > SET_ENTRIES_MAX {
            return self.close(format!("a set of {} entries is too large", entries.len()), None);
        }
        let set: DesiredSet =
            entries.into_iter().map(|e| (e.group, (e.generation, e.digest))).collect();
        self.wanted.clear();
        self.send_set_due = false;
        // What was refused and is offered no more is forgotten: names that a broker makes up must
        // not add up.
        self.reports
            .retain(|group, _| set.contains_key(group) || self.accepted.contains_key(group));
        for (group, (generation, digest)) in &set {
            let entry = SetEntry { group: group.clone(), generation: *generation, digest: *digest };
            self.compare_entry(entry);
        }
        self.in_flight
            .retain(|entry, _| set.get(&entry.group) == Some(&(entry.generation, entry.digest)));
        self.set = Some(set);
    }

    /// Wants what is newer than the ledger, refuses what is older or in conflict with it.
    fn compare_entry(&mut self, entry: SetEntry) {
        let known = self.accepted.get(&entry.group).copied();
        let refusal = match known {
            Some((generation, _)) if entry.generation < generation => Some(Refusal {
                rule: RefusalRule::OlderGeneration,
                message: format!(
                    "generation {} is older than the accepted {generation}",
                    entry.generation
                ),
                hint: "the broker's database is behind; apply again from the declarations".into(),
            }),
            Some((generation, digest))
                if entry.generation == generation && entry.digest != digest =>
            {
                Some(Refusal {
                    rule: RefusalRule::ConflictingGeneration,
                    message: format!("generation {generation} was accepted with other bytes"),
                    hint: "apply again: the next generation replaces both".into(),
                })
            }
            Some((generation, _)) if entry.generation == generation => return,
            Some(_) | None => None,
        };
        match refusal {
            Some(reason) => self.refuse(entry, reason),
            None if self.already_refused(&entry) => {}
            None if self.in_flight.contains_key(&entry) || self.judging.contains(&entry) => {}
            None => {
                self.wanted.insert(entry);
            }
        }
    }

    fn already_refused(&self, entry: &SetEntry) -> bool {
        self.reports.get(&entry.group).and_then(|answers| answers.refused.as_ref()).is_some_and(
            |(generation, digest, _)| (*generation, *digest) == (entry.generation, entry.digest),
        )
    }

    /// An envelope that was not asked for is not judged: nothing acts on the broker's mere word.
    fn handle_order(&mut self, envelope: Envelope) {
        let digest = envelope.digest();
        let Some(entry) = self.in_flight.keys().find(|entry| entry.digest == digest).cloned()
        else {
            return;
        };
        self.in_flight.remove(&entry);
        self.judging.insert(entry.clone());
        self.envelopes.push_back((entry, envelope));
    }

    /// What the ledger holds of an order that was asked back; `None` if it cannot be read.
    pub fn handle_kept(&mut self, envelope: Option<Envelope>) {
        self.kept = envelope;
    }

    pub fn handle_verdict(&mut self, entry: SetEntry, verdict: Verdict) {
        self.judging.remove(&entry);
        match verdict {
            Verdict::Accepted => {
                let SetEntry { group, generation, digest } = entry;
                self.accepted.insert(group.clone(), (generation, digest));
                self.handle_report(Report {
                    group,
                    answer: Answer::Accepted { generation, digest },
                });
            }
            Verdict::Refused(reason) => self.refuse(entry, reason),
        }
    }

    fn refuse(&mut self, entry: SetEntry, reason: Refusal) {
        let SetEntry { group, generation, digest } = entry;
        self.handle_report(Report {
            group,
            answer: Answer::Refused { generation, digest, reason },
        });
    }

    /// News from the reconciler: replaces what is unsent of the same group and kind.
    pub fn handle_report(&mut self, report: Report) {
        if report.clone().record(&mut self.reports) {
            put_unsent(&mut self.unsent, report);
        }
    }

    /// What could not be judged or taken is asked for again. Every other refusal is final for its
    /// generation: what was refused must not happen by itself when a rule is loosened later.
    pub fn ask_again(&mut self) {
        forget_passing_refusals(&mut self.reports);
        self.set = None;
        self.send_set_due = true;
    }

    /// The ledger is another one by now: a second agent of this account has written to it, or its
    /// people have. What the broker offers is compared anew.
    pub fn handle_ledger(&mut self, accepted: BTreeMap<GroupName, (Generation, Digest)>) {
        if accepted == self.accepted {
            return;
        }
        let before = std::mem::replace(&mut self.accepted, accepted.clone());
        for (group, (generation, digest)) in accepted {
            if before.get(&group).is_none_or(|(earlier, _)| *earlier < generation) {
                let answer = Answer::Accepted { generation, digest };
                self.handle_report(Report { group, answer });
            }
        }
        self.wanted.clear();
        self.set = None;
        self.send_set_due = true;
    }

    /// Everything that the agent stands by, in the order in which a fresh broker can take it.
    fn resend_reports(&mut self) {
        for (group, answers) in &self.reports {
            let mut unsent = |answer: Answer| {
                let key = (group.clone(), answer.kind());
                self.unsent.insert(key, Report { group: group.clone(), answer });
            };
            if let Some((generation, digest)) = answers.accepted {
                unsent(Answer::Accepted { generation, digest });
            }
            if let Some((generation, digest, reason)) = answers.refused.clone() {
                unsent(Answer::Refused { generation, digest, reason });
            }
            if let Some((generation, observed)) = answers.converged {
                unsent(Answer::Converged { generation, observed });
            }
            if let Some(status) = answers.status.clone() {
                unsent(Answer::Status(status));
            }
        }
        self.heartbeat_due = true;
    }

    pub fn reports(&self) -> &Reports {
        &self.reports
    }

    pub fn next_timeout(&self) -> Instant {
        let silence = self.last_heard + self.config.silence_max;
        match &self.link {
            Link::Live { next_heartbeat, .. } => {
                let fetch = self.in_flight.values().map(|at| *at + self.config.fetch_timeout).min();
                silence.min(*next_heartbeat).min(fetch.unwrap_or(silence))
            }
            Link::Greeting | Link::Closing { .. } | Link::Closed => silence,
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if now >= self.last_heard + self.config.silence_max {
            let secs = self.config.silence_max.as_secs();
            return self.close(format!("the broker has been silent for {secs} s"), None);
        }
        let late: Vec<SetEntry> = self
            .in_flight
            .iter()
            .filter(|(_, at)| now >= **at + self.config.fetch_timeout)
            .map(|(entry, _)| entry.clone())
            .collect();
        for entry in late {
            self.in_flight.remove(&entry);
            self.wanted.insert(entry);
        }
        if let Link::Live { heartbeat, next_heartbeat } = &mut self.link
            && now >= *next_heartbeat
        {
            *next_heartbeat = now + *heartbeat;
            self.heartbeat_due = true;
        }
    }

    /// The next thing to do, most urgent first; `None` when there is nothing left.
    pub fn poll_output(&mut self, now: Instant) -> Option<AgentOutput> {
        match &self.link {
            Link::Closed => return None,
            Link::Closing { .. } => {
                let Link::Closing { reason, retry_after } =
                    std::mem::replace(&mut self.link, Link::Closed)
                else {
                    return None;
                };
                return Some(AgentOutput::Close { reason, retry_after });
            }
            Link::Greeting => {
                let hello = self.hello.take()?;
                return Some(AgentOutput::Send(ToBroker::Hello(hello)));
            }
            Link::Live { .. } => {}
        }
        if std::mem::take(&mut self.live_due) {
            return Some(AgentOutput::Live);
        }
        if let Some((entry, envelope)) = self.envelopes.pop_front() {
            return Some(AgentOutput::Judge { entry, envelope });
        }
        if std::mem::take(&mut self.send_set_due) {
            return Some(AgentOutput::Send(ToBroker::SendSet));
        }
        if self.in_flight.len() + self.judging.len() < ENVELOPES_IN_FLIGHT_MAX
            && let Some(entry) = self.wanted.pop_first()
        {
            self.in_flight.insert(entry.clone(), now);
            return Some(AgentOutput::Send(ToBroker::Fetch(entry)));
        }
        if let Some((_, report)) = self.pop_unsent() {
            return Some(AgentOutput::Send(report.into_message()));
        }
        if let Some(envelope) = self.kept.take() {
            return Some(AgentOutput::Send(ToBroker::Order { envelope }));
        }
        if let Some(entry) = self.asked_back.pop_first() {
            return Some(AgentOutput::HandBack(entry));
        }
        // Behind the reports: its hash covers them, and must not arrive before them.
        if std::mem::take(&mut self.heartbeat_due) {
            let reports_hash = reports_hash(&self.reports);
            return Some(AgentOutput::Send(ToBroker::Heartbeat { reports_hash }));
        }
        None
    }

    /// Decisions of all groups go before the status of any.
    fn pop_unsent(&mut self) -> Option<((GroupName, AnswerKind), Report)> {
        let key = self.unsent.keys().min_by_key(|(_, kind)| *kind)?.clone();
        self.unsent.remove_entry(&key)
    }

    fn close(&mut self, reason: String, retry_after: Option<Duration>) {
        if !matches!(self.link, Link::Closed | Link::Closing { .. }) {
            self.link = Link::Closing { reason, retry_after };
        }
    }
}

fn forget_passing_refusals(reports: &mut Reports) {
    for answers in reports.values_mut() {
        if answers.refused.as_ref().is_some_and(|(.., reason)| !reason.rule.is_final()) {
            answers.refused = None;
        }
    }
}
