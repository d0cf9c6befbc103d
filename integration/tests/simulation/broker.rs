//! The broker as a process of the simulation: the real session machine and the real store, in a real
//! SQLite file. A crash drops it; the file stays, or an older copy of it comes back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use futures::FutureExt as _;
use outstation_broker::store::Store;
use outstation_broker::store::orders::{GroupRecord, PutVerdict};
use outstation_protocol::order::Order;
use outstation_protocol::session::{BrokerConfig, BrokerOutput, BrokerSession, Report};
use outstation_protocol::v1::{SetEntry, ToAgent};
use outstation_protocol::{AgentId, DataPlane, Envelope, GroupName};

use crate::agent::Pid;

pub struct Broker {
    store: Store,
    data_plane: DataPlane,
    /// One for each agent that is connected.
    pub sessions: BTreeMap<Pid, BrokerSession>,
    agents: BTreeMap<Pid, AgentId>,
    /// It is killed right after so many further writes.
    pub dies_after_writes: Option<u32>,
}

/// The store runs inline, so every call is done at once.
fn done<T, E: std::fmt::Display>(call: impl Future<Output = Result<T, E>>) -> T {
    let result = call.now_or_never().expect("the store runs inline");
    result.unwrap_or_else(|error| panic!("the store failed: {error}"))
}

impl Broker {
    pub fn start(file: &Path, data_plane: DataPlane, now_unix_secs: u64) -> Broker {
        let store = Store::open_inline(file, now_unix_secs).expect("the broker's database");
        Broker {
            store,
            data_plane,
            sessions: BTreeMap::new(),
            agents: BTreeMap::new(),
            dies_after_writes: None,
        }
    }

    pub fn connect(&mut self, pid: Pid, agent: AgentId, now: Instant) {
        let set = done(self.store.desired_set(self.data_plane.clone()));
        let recorded = done(self.store.reports(self.data_plane.clone()));
        let config = BrokerConfig::default();
        let plane = self.data_plane.clone();
        self.agents.insert(pid, agent.clone());
        let session = BrokerSession::new(agent, plane, set, recorded, config, now);
        self.sessions.insert(pid, session);
    }

    /// What this session says next; `Err` when it has ended.
    pub fn poll(
        &mut self,
        pid: Pid,
        unix_secs: u64,
        mut accepted: impl FnMut(&SetEntry),
    ) -> Result<Option<ToAgent>, String> {
        loop {
            if self.is_dead() {
                return Ok(None);
            }
            let Some(session) = self.sessions.get_mut(&pid) else { return Ok(None) };
            let Some(output) = session.poll_output() else { return Ok(None) };
            match output {
                BrokerOutput::Send(message) => return Ok(Some(message)),
                BrokerOutput::Load(entry) => {
                    let envelope =
                        done(self.store.envelope(self.data_plane.clone(), entry.clone()));
                    session.handle_loaded(&entry, envelope);
                }
                BrokerOutput::Record(report) => {
                    if let Some(entry) = acceptance(&report) {
                        accepted(&entry);
                    }
                    let agent = self.agents[&pid].clone();
                    done(self.store.record(self.data_plane.clone(), agent, report, unix_secs));
                    self.has_written();
                }
                BrokerOutput::TakeOver { entry, envelope } => {
                    let order = Order::from_envelope(&envelope).expect("made by an agent of ours");
                    assert_eq!((&order.group, order.generation), (&entry.group, entry.generation));
                    if done(self.store.take_over(order, envelope, unix_secs)) {
                        self.announce();
                    }
                    self.has_written();
                }
                BrokerOutput::Settle(reports) => {
                    let agent = self.agents[&pid].clone();
                    done(self.store.settle(self.data_plane.clone(), agent, reports, unix_secs));
                    self.has_written();
                }
                BrokerOutput::Live { .. } => {}
                BrokerOutput::Close { reason } => {
                    self.hang_up(pid, unix_secs);
                    return Err(reason);
                }
            }
        }
    }

    fn has_written(&mut self) {
        if let Some(left) = &mut self.dies_after_writes {
            *left = left.saturating_sub(1);
        }
    }

    pub fn is_dead(&self) -> bool {
        self.dies_after_writes == Some(0)
    }

    /// As the end of a session's driver does it.
    pub fn hang_up(&mut self, pid: Pid, unix_secs: u64) {
        if self.sessions.remove(&pid).is_none() {
            return;
        }
        let (plane, agent) = (self.data_plane.clone(), self.agents[&pid].clone());
        done(self.store.disconnected(plane, agent, "it ended".to_owned(), unix_secs));
        let stored = done(self.store.reports(self.data_plane.clone()));
        for session in self.sessions.values_mut() {
            session.handle_stored(stored.clone());
        }
    }

    pub fn put(&mut self, order: Order, unix_secs: u64) -> PutVerdict {
        let envelope: Envelope = order.clone().into_envelope();
        let verdict = done(self.store.put_order(order, envelope, unix_secs));
        self.announce();
        verdict
    }

    pub fn group(&self, group: &GroupName) -> Option<GroupRecord> {
        done(self.store.group(self.data_plane.clone(), group.clone()))
    }

    fn announce(&mut self) {
        let set = done(self.store.desired_set(self.data_plane.clone()));
        for session in self.sessions.values_mut() {
            session.handle_set(set.clone());
        }
    }
}

fn acceptance(report: &Report) -> Option<SetEntry> {
    use outstation_protocol::session::Answer;
    match &report.answer {
        Answer::Accepted { generation, digest } => {
            Some(SetEntry { group: report.group.clone(), generation: *generation, digest: *digest })
        }
        Answer::Refused { .. } | Answer::Converged { .. } | Answer::Status(_) => None,
    }
}

/// The database with what has not been written back into it yet.
pub fn copy_database(from: &Path, to: &Path) {
    for suffix in ["", "-wal"] {
        let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        let _ = std::fs::remove_file(with(to));
        if with(from).exists() {
            std::fs::copy(with(from), with(to)).expect("copy the database");
        }
    }
    let _ = std::fs::remove_file(PathBuf::from(format!("{}-shm", to.display())));
}
