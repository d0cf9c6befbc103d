//! The broker's end of the control link.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::{
    Answer, DesiredSet, ENVELOPES_IN_FLIGHT_MAX, Report, Reports, Unsent, put_unsent, reports_hash,
    set_hash,
};
use crate::envelope::Envelope;
use crate::ids::AgentId;
use crate::model::DataPlane;
use crate::v1::{self, Hello, SET_ENTRIES_MAX, SetEntry, ToAgent, ToBroker, Welcome};

/// All answers end in a heartbeat, which must not ask for all answers again at once: between ends
/// that cannot agree that would be a storm. Half of the usual heartbeat.
const REPORTS_AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// How often the agent is asked to speak.
    pub heartbeat: Duration,
    /// The session ends when the agent says nothing for so long, hello included.
    pub silence_max: Duration,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        // Three heartbeats may get lost; the agent's keepalive (20-25 s) holds NATs open besides.
        BrokerConfig { heartbeat: Duration::from_secs(10), silence_max: Duration::from_secs(60) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerOutput {
    Send(ToAgent),
    /// Read this envelope from the store, then call [`BrokerSession::handle_loaded`].
    Load(SetEntry),
    /// Write this answer down, or call [`BrokerSession::handle_not_recorded`].
    Record(Report),
    /// The agent has accepted this and the store does not have it: take it over and call
    /// [`BrokerSession::handle_set`] if that changed the set, or
    /// [`BrokerSession::handle_not_taken_over`].
    TakeOver {
        entry: SetEntry,
        envelope: Envelope,
    },
    /// The agent's answers are exactly these: forget what the store holds besides, or call
    /// [`BrokerSession::handle_not_settled`].
    Settle(Reports),
    /// The agent has said hello and belongs here.
    Live {
        release: String,
    },
    Close {
        reason: String,
    },
}

/// One connection of one agent, from its Hello to its end.
pub struct BrokerSession {
    config: BrokerConfig,
    agent: AgentId,
    data_plane: DataPlane,
    set: DesiredSet,
    /// What the agent stands by, as far as this session has heard; its hash is compared.
    recorded: Reports,
    /// What the store holds: only what differs is written.
    stored: Reports,
    link: Link,
    welcome_due: bool,
    release: Option<String>,
    set_due: bool,
    heartbeat_due: bool,
    send_reports_due: bool,
    reports_asked: Option<Instant>,
    settle_due: bool,
    /// The store could not settle: it is asked again when the hashes agree again.
    unsettled: bool,
    /// The store failed and nothing is written until it is tried again.
    store_failing: bool,
    /// Asked for and not yet loaded; only entries of the present set, so bounded by it.
    wanted: BTreeSet<SetEntry>,
    loading: BTreeSet<SetEntry>,
    envelopes: VecDeque<Envelope>,
    hands_back: bool,
    /// Accepted by the agent and newer than the set, not asked back yet; bounded as `recorded` is.
    lacking: BTreeSet<SetEntry>,
    /// Asked back, and not come yet.
    asked_back: BTreeSet<SetEntry>,
    taken_over: VecDeque<(SetEntry, Envelope)>,
    /// Not written down yet; the newest of each group and kind.
    records: Unsent,
    last_heard: Instant,
}

enum Link {
    Greeting,
    Live,
    Closing { goodbye: Option<String>, reason: String },
    Closed,
}

impl BrokerSession {
    /// `recorded` is what the store knows of the agent's earlier answers.
    pub fn new(
        agent: AgentId,
        data_plane: DataPlane,
        set: DesiredSet,
        recorded: Reports,
        config: BrokerConfig,
        now: Instant,
    ) -> BrokerSession {
        let mut session = BrokerSession {
            config,
            agent,
            data_plane,
            set,
            stored: recorded.clone(),
            recorded,
            link: Link::Greeting,
            welcome_due: false,
            release: None,
            set_due: false,
            heartbeat_due: false,
            send_reports_due: false,
            reports_asked: None,
            settle_due: false,
            unsettled: false,
            store_failing: false,
            wanted: BTreeSet::new(),
            loading: BTreeSet::new(),
            envelopes: VecDeque::new(),
            hands_back: false,
            lacking: BTreeSet::new(),
            asked_back: BTreeSet::new(),
            taken_over: VecDeque::new(),
            records: Unsent::new(),
            last_heard: now,
        };
        let accepted: Vec<SetEntry> = session
            .recorded
            .iter()
            .filter_map(|(group, answers)| {
                let (generation, digest) = answers.accepted?;
                Some(SetEntry { group: group.clone(), generation, digest })
            })
            .collect();
        for entry in accepted {
            session.compare_accepted(entry);
        }
        session
    }

    pub fn handle_message(&mut self, message: ToBroker, now: Instant) {
        self.last_heard = now;
        match (message, matches!(self.link, Link::Greeting)) {
            (ToBroker::Hello(hello), true) => self.handle_hello(&hello),
            (_, true) => self.close(None, "the agent spoke before its hello".into()),
            (ToBroker::Hello(_), false) => {}
            (ToBroker::Heartbeat { reports_hash: offered }, false) => {
                let agreed = offered == reports_hash(&self.recorded);
                if !agreed && self.reports_asked.is_none_or(|at| now >= at + REPORTS_AGAIN) {
                    self.reports_asked = Some(now);
                    self.send_reports_due = true;
                }
                self.settle_due |= agreed && (self.unsettled || self.stored != self.recorded);
                // What has not come since the last heartbeat is asked for again.
                self.lacking.append(&mut self.asked_back);
                self.heartbeat_due = true;
            }
            (ToBroker::SendSet, false) => self.set_due = true,
            (ToBroker::Fetch(entry), false) => self.handle_fetch(entry),
            (ToBroker::Accepted { group, generation, digest }, false) => {
                self.record(Report {
                    group: group.clone(),
                    answer: Answer::Accepted { generation, digest },
                });
                self.compare_accepted(SetEntry { group, generation, digest });
            }
            (ToBroker::Refused { group, generation, digest, reason }, false) => {
                self.record(Report {
                    group,
                    answer: Answer::Refused { generation, digest, reason },
                });
            }
            (ToBroker::Converged { group, generation, observed }, false) => {
                self.record(Report { group, answer: Answer::Converged { generation, observed } });
            }
            (ToBroker::Status { group, status }, false) => {
                self.record(Report { group, answer: Answer::Status(status) });
            }
            (ToBroker::Order { envelope }, false) => self.handle_handed_back(envelope),
        }
    }

    fn handle_hello(&mut self, hello: &Hello) {
        let goodbye = if !hello.versions.contains(&v1::VERSION) {
            Some(format!(
                "this broker speaks version {}, the agent {:?}: upgrade the older one",
                v1::VERSION,
                hello.versions
            ))
        } else if hello.agent != self.agent || hello.data_plane != self.data_plane {
            Some(format!(
                "the agent says that it is {} of {}, its certificate says {} of {}",
                hello.agent, hello.data_plane, self.agent, self.data_plane
            ))
        } else {
            None
        };
        match goodbye {
            Some(reason) => self.close(Some(reason.clone()), reason),
            None => {
                self.link = Link::Live;
                self.welcome_due = true;
                self.release = Some(hello.release.clone());
                self.hands_back = hello.features.iter().any(|f| f == v1::FEATURE_HAND_BACK);
            }
        }
    }

    /// An entry that is not of the present set gets the present set instead.
    fn handle_fetch(&mut self, entry: SetEntry) {
        if self.set.get(&entry.group) == Some(&(entry.generation, entry.digest)) {
            if !self.loading.contains(&entry) {
                self.wanted.insert(entry);
            }
        } else {
            self.set_due = true;
        }
    }

    /// An older database than the account's ledger: what the agent has accepted is asked back, so
    /// that the next order can follow it.
    fn compare_accepted(&mut self, entry: SetEntry) {
        let newest = self.set.get(&entry.group).map(|(generation, _)| *generation);
        if newest < Some(entry.generation) && !self.asked_back.contains(&entry) {
            self.lacking.insert(entry);
        }
    }

    /// One that the set has not reached meanwhile.
    fn pop_lacking(&mut self) -> Option<SetEntry> {
        while let Some(entry) = self.lacking.pop_first() {
            let newest = self.set.get(&entry.group).map(|(generation, _)| *generation);
            if newest < Some(entry.generation) {
                return Some(entry);
            }
        }
        None
    }

    fn handle_handed_back(&mut self, envelope: Envelope) {
        let digest = envelope.digest();
        if let Some(entry) = self.asked_back.iter().find(|e| e.digest == digest).cloned() {
            self.asked_back.remove(&entry);
            self.taken_over.push_back((entry, envelope));
        }
    }

    fn record(&mut self, report: Report) {
        // An agent may know groups that an older database has lost; but not any number of them.
        let known = self.recorded.contains_key(&report.group);
        if !known && self.recorded.len() >= SET_ENTRIES_MAX {
            return;
        }
        report.clone().record(&mut self.recorded);
        if report.clone().record(&mut self.stored) {
            put_unsent(&mut self.records, report);
        }
    }

    /// The desired set has changed. Only the newest is ever sent.
    pub fn handle_set(&mut self, set: DesiredSet) {
        if set != self.set {
            self.wanted.retain(|e| set.get(&e.group) == Some(&(e.generation, e.digest)));
            self.set = set;
            self.set_due = true;
        }
    }

    /// The store may hold other answers than this session wrote: those of another agent of the same
    /// data plane, which has left. What differs is settled at the next heartbeat that agrees.
    pub fn handle_stored(&mut self, stored: Reports) {
        self.stored = stored;
    }

    pub fn handle_loaded(&mut self, entry: &SetEntry, envelope: Option<Envelope>) {
        self.loading.remove(entry);
        match envelope {
            Some(envelope) => self.envelopes.push_back(envelope),
            // Replaced meanwhile: the new set names what to ask for.
            None => self.set_due = true,
        }
    }

    /// The store could not take `report`: it is kept, unless another answer has taken its place, and
    /// nothing more is written before [`BrokerSession::retry_after_store_failure`].
    pub fn handle_not_recorded(&mut self, report: Report) {
        // Not `put_unsent`: this is no news, and a refusal that came after an acceptance stays.
        if report.stands_in(&self.stored) {
            self.records.entry((report.group.clone(), report.answer.kind())).or_insert(report);
        }
        self.store_failing = true;
    }

    /// The store could not take an order over: it is asked back again after the next heartbeat.
    pub fn handle_not_taken_over(&mut self, entry: SetEntry) {
        self.asked_back.insert(entry);
        self.store_failing = true;
    }

    /// The store could not settle; likewise.
    pub fn handle_not_settled(&mut self) {
        self.unsettled = true;
        self.store_failing = true;
    }

    /// Time to see whether the store works again.
    pub fn retry_after_store_failure(&mut self) {
        self.store_failing = false;
    }

    /// Ends the session with a word to the agent.
    pub fn handle_goodbye(&mut self, reason: String) {
        self.close(Some(reason.clone()), reason);
    }

    pub fn next_timeout(&self) -> Instant {
        self.last_heard + self.config.silence_max
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if now >= self.next_timeout() {
            let secs = self.config.silence_max.as_secs();
            self.close(None, format!("the agent has been silent for {secs} s"));
        }
    }

    /// The next thing to do, most urgent first; `None` when there is nothing left.
    pub fn poll_output(&mut self) -> Option<BrokerOutput> {
        if !self.store_failing {
            if let Some((_, report)) = self.records.pop_first() {
                return Some(BrokerOutput::Record(report));
            }
            if let Some((entry, envelope)) = self.taken_over.pop_front() {
                return Some(BrokerOutput::TakeOver { entry, envelope });
            }
            if std::mem::take(&mut self.settle_due) {
                self.unsettled = false;
                self.stored.clone_from(&self.recorded);
                return Some(BrokerOutput::Settle(self.recorded.clone()));
            }
        }
        match &mut self.link {
            Link::Closed | Link::Greeting => return None,
            Link::Closing { goodbye, reason } => {
                if let Some(reason) = goodbye.take() {
                    let goodbye = ToAgent::Goodbye { reason, retry_after_secs: 0 };
                    return Some(BrokerOutput::Send(goodbye));
                }
                let reason = std::mem::take(reason);
                self.link = Link::Closed;
                return Some(BrokerOutput::Close { reason });
            }
            Link::Live => {}
        }
        if std::mem::take(&mut self.welcome_due) {
            return Some(BrokerOutput::Send(ToAgent::Welcome(Welcome {
                version: v1::VERSION,
                features: Vec::new(),
                heartbeat_secs: self.config.heartbeat.as_secs().try_into().unwrap_or(u32::MAX),
                set_hash: set_hash(&self.set),
            })));
        }
        if let Some(release) = self.release.take() {
            return Some(BrokerOutput::Live { release });
        }
        if std::mem::take(&mut self.set_due) {
            let entries = self
                .set
                .iter()
                .map(|(group, (generation, digest))| SetEntry {
                    group: group.clone(),
                    generation: *generation,
                    digest: *digest,
                })
                .collect();
            return Some(BrokerOutput::Send(ToAgent::DesiredSet { entries }));
        }
        if std::mem::take(&mut self.heartbeat_due) {
            let set_hash = set_hash(&self.set);
            return Some(BrokerOutput::Send(ToAgent::Heartbeat { set_hash }));
        }
        if std::mem::take(&mut self.send_reports_due) {
            // What comes now is the whole: an answer that the agent no longer gives shall not keep
            // the hashes apart for ever.
            self.recorded.clear();
            // A settling that still waits for the store would keep nothing of it.
            self.settle_due = false;
            return Some(BrokerOutput::Send(ToAgent::SendReports));
        }
        if let Some(envelope) = self.envelopes.pop_front() {
            return Some(BrokerOutput::Send(ToAgent::Order { envelope }));
        }
        if self.hands_back
            && self.asked_back.len() + self.taken_over.len() < ENVELOPES_IN_FLIGHT_MAX
            && let Some(entry) = self.pop_lacking()
        {
            self.asked_back.insert(entry.clone());
            return Some(BrokerOutput::Send(ToAgent::HandBack(entry)));
        }
        if self.loading.len() < ENVELOPES_IN_FLIGHT_MAX
            && let Some(entry) = self.wanted.pop_first()
        {
            self.loading.insert(entry.clone());
            return Some(BrokerOutput::Load(entry));
        }
        None
    }

    fn close(&mut self, goodbye: Option<String>, reason: String) {
        if !matches!(self.link, Link::Closed | Link::Closing { .. }) {
            self.link = Link::Closing { goodbye, reason };
        }
    }
}
