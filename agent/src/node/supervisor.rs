//! Carries out what [`Machine`] decides: tasks that fetch, start, watch and signal, each of which
//! answers with an event.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outstation_protocol::v1::Artifacts;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::artifacts::ArtifactStore;
use super::events::{Action, Attempt, Event, ServerId};
use super::health;
use super::imds::Imds;
use super::link::Outbox;
use super::machine::Machine;
use super::server::{self, LOG_BYTES_MAX, Memory, ServerRecord, ServerSettings};
use super::service;
use crate::clock;

/// How often metadata is asked whether the instance shall end; AutoScaling itself polls slower.
const LIFECYCLE_EVERY: Duration = Duration::from_millis(500);
/// An account store that hangs (a network file system) fails the attempt.
const FETCH_MAX: Duration = Duration::from_secs(120);
const TRIM_EVERY: Duration = Duration::from_secs(10);

pub struct Supervisor {
    machine: Machine,
    dir: PathBuf,
    settings: ServerSettings,
    store: ArtifactStore,
    events: mpsc::Sender<Event>,
    outbox: watch::Sender<Outbox>,
    servers: BTreeMap<ServerId, Supervised>,
    /// The one whose endpoint was reported last: an agent that comes back takes it over first.
    serving_port: Option<u16>,
    saved: Memory,
}

/// Dropping it ends the watching, never the server.
struct Supervised {
    record: ServerRecord,
    _exit: AbortOnDropHandle<()>,
    _health: AbortOnDropHandle<()>,
}

impl Supervisor {
    pub fn new(
        dir: PathBuf,
        settings: ServerSettings,
        store: ArtifactStore,
        events: mpsc::Sender<Event>,
        outbox: watch::Sender<Outbox>,
    ) -> Supervisor {
        Supervisor {
            machine: Machine::new(settings.address, rand::random()),
            dir,
            settings,
            store,
            events,
            outbox,
            servers: BTreeMap::new(),
            serving_port: None,
            saved: Memory::default(),
        }
    }

    /// Runs until `shutdown`. `from_tags` is what to serve as long as nobody has said anything
    /// newer, in this life of the agent or in one before.
    pub async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Event>,
        imds: Arc<Imds>,
        from_tags: Option<Artifacts>,
        shutdown: CancellationToken,
    ) {
        let _lifecycle = spawn(watch_lifecycle(imds, self.events.clone()));
        self.take_over(from_tags);
        let mut trim = tokio::time::interval(TRIM_EVERY);
        let mut alive = service::watchdog_every().map(tokio::time::interval);
        service::up();
        loop {
            let due = self.machine.next_timeout().map(Instant::from_std);
            let timeout = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                // The supervisor holds a sender itself, so that there is always a next one.
                event = inbox.recv() => event.unwrap_or(Event::Timeout),
                () = timeout => Event::Timeout,
                _ = async { alive.as_mut().expect("asked for").tick().await }, if alive.is_some() => {
                    service::not_stuck();
                    continue;
                }
                _ = trim.tick() => {
                    self.trim_logs();
                    continue;
                }
            };
            self.handle(event);
        }
    }

    fn take_over(&mut self, from_tags: Option<Artifacts>) {
        let memory = Memory::load(&self.dir);
        self.settings.kill_unknown(&memory.servers);
        let target = memory.target.or(from_tags);
        for record in memory.servers {
            if !record.is_alive() {
                continue;
            }
            tracing::info!(generation = %record.artifacts.generation, pid = record.pid,
                port = record.port, "took over a running server");
            let (server, port) = (record.server, record.port);
            let artifacts = record.artifacts.clone();
            let gone = record.clone();
            self.supervise(record, async move { gone.ended().await });
            self.handle(Event::Adopted { server, port, artifacts });
        }
        if let Some(target) = target {
            self.handle(Event::Target(target));
        }
    }

    fn handle(&mut self, event: Event) {
        if let Event::Exited { server, reason } = &event
            && let Some(gone) = self.servers.remove(server)
        {
            let (pid, port) = (gone.record.pid, gone.record.port);
            let generation = gone.record.artifacts.generation;
            tracing::info!(%generation, pid, port, reason, "server ended");
            self.prune();
        }
        for action in self.machine.handle(event, clock::now()) {
            self.act(action);
        }
        self.remember();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Fetch { attempt, artifacts } => {
                let store = self.store.clone();
                let bundle = artifacts.bundle;
                tracing::info!(generation = %artifacts.generation, bundle = %bundle.short(), "fetch");
                self.prepare(attempt, Event::Fetched(attempt), move || {
                    store.fetch(&artifacts).map_err(anyhow::Error::from)
                });
            }
            Action::Verify { attempt, artifacts } => {
                let store = self.store.clone();
                let guard = self.settings.guard.clone();
                self.prepare(attempt, Event::Verified(attempt), move || {
                    store.verify(&artifacts)?;
                    guard.map_or(Ok(()), |guard| guard.check())
                });
            }
            Action::Start { server, port, artifacts } => self.start(server, port, &artifacts),
            Action::Drain(server) => {
                if let Some(supervised) = self.servers.get(&server) {
                    let record = &supervised.record;
                    tracing::info!(generation = %record.artifacts.generation, pid = record.pid,
                        "server drains");
                    supervised.record.drain();
                }
            }
            Action::Kill(server) => {
                if let Some(supervised) = self.servers.get(&server) {
                    let record = &supervised.record;
                    tracing::warn!(generation = %record.artifacts.generation, pid = record.pid,
                        "server killed");
                    supervised.record.kill();
                }
            }
            Action::Report(state) => {
                let reason = state.reason.as_deref().unwrap_or_default();
                let endpoint = state.endpoint.as_deref().unwrap_or_default();
                let generation = state.artifacts.as_ref().map(|a| a.generation.0);
                tracing::info!(generation, phase = %state.phase, endpoint, reason, "node is");
                let address = endpoint.parse::<SocketAddr>().ok();
                self.serving_port = address.map(|address| address.port());
                service::is(&state);
                self.outbox.send_modify(|outbox| outbox.state = Some(state));
            }
            Action::Drained => {
                tracing::info!("drained");
                self.outbox.send_modify(|outbox| outbox.drained = true);
            }
        }
    }

    fn prepare(
        &self,
        attempt: Attempt,
        done: Event,
        work: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let work = tokio::task::spawn_blocking(work);
            let failed = |reason| Event::PreparationFailed { attempt, reason };
            let event = match tokio::time::timeout(FETCH_MAX, work).await {
                Ok(Ok(Ok(()))) => done,
                Ok(Ok(Err(e))) => failed(format!("{e:#}")),
                Ok(Err(e)) => failed(e.to_string()),
                Err(_) => failed(format!("not done within {} s", FETCH_MAX.as_secs())),
            };
            let _ = events.send(event).await;
        });
    }

    fn start(&mut self, server: ServerId, port: u16, artifacts: &Artifacts) {
        let prepared = self.store.prepared(artifacts);
        match self.settings.spawn(server, port, artifacts, &prepared) {
            Ok((child, record)) => {
                tracing::info!(generation = %artifacts.generation, pid = record.pid, port,
                    "server started");
                let log = self.settings.log_path(port);
                self.supervise(record, async move {
                    let status = server::exited(child).await;
                    let last = server::last_line(&log);
                    last.map_or(status.clone(), |line| format!("{status}: {line}"))
                });
            }
            Err(e) => {
                let program = self.settings.program.display();
                let reason = format!("{program} cannot be started: {e}");
                self.send_later(Event::Exited { server, reason });
            }
        }
    }

    /// Watches a process and its health; `ended` resolves when the process has.
    fn supervise(
        &mut self,
        record: ServerRecord,
        ended: impl Future<Output = String> + Send + 'static,
    ) {
        let server = record.server;
        let address = SocketAddr::new(self.settings.address, record.port);
        let events = self.events.clone();
        let _health = spawn(health::watch(server, address, self.events.clone()));
        let _exit = spawn(async move {
            let reason = ended.await;
            let _ = events.send(Event::Exited { server, reason }).await;
        });
        self.servers.insert(server, Supervised { record, _exit, _health });
    }

    /// From inside the loop the queue may be full: the loop itself empties it.
    fn send_later(&self, event: Event) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let _ = events.send(event).await;
        });
    }

    /// Writes down what a next life must know, whenever that has changed.
    fn remember(&mut self) {
        let mut servers: Vec<ServerRecord> =
            self.servers.values().map(|supervised| supervised.record.clone()).collect();
        servers.sort_by_key(|record| (Some(record.port) != self.serving_port, record.server));
        let memory = Memory { target: self.machine.target().cloned(), servers };
        if memory == self.saved {
            return;
        }
        match memory.save(&self.dir) {
            Ok(()) => self.saved = memory,
            // Tried again with the next event; until then a restart would start a new server.
            Err(e) => tracing::error!(dir = %self.dir.display(), error = %e, "cannot remember"),
        }
    }

    /// In the loop itself, so that nothing can be unpacked between looking and removing.
    fn prune(&self) {
        let running = self.servers.values().map(|supervised| &supervised.record.artifacts);
        let used: Vec<_> = running.chain(self.machine.kept()).collect();
        self.store.prune(&used);
    }

    fn trim_logs(&self) {
        let logs: Vec<PathBuf> =
            self.servers.values().map(|s| self.settings.log_path(s.record.port)).collect();
        tokio::task::spawn_blocking(move || {
            for log in logs {
                if let Err(e) = server::trim_log(&log, LOG_BYTES_MAX) {
                    tracing::warn!(log = %log.display(), error = %e, "cannot be trimmed");
                }
            }
        });
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task.in_current_span()))
}

/// Tells once when AutoScaling wants the instance gone.
async fn watch_lifecycle(imds: Arc<Imds>, events: mpsc::Sender<Event>) {
    let mut every = tokio::time::interval(LIFECYCLE_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut troubled = false;
    loop {
        every.tick().await;
        match imds.target_lifecycle_state().await {
            Ok(Some(state)) if state == "Terminated" => {
                tracing::info!("AutoScaling wants this instance gone");
                let _ = events.send(Event::Terminating).await;
                return;
            }
            Ok(_) => troubled = false,
            Err(error) => {
                if !troubled {
                    tracing::warn!(%error, "instance metadata does not say where this is going");
                }
                troubled = true;
            }
        }
    }
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
mod tests;
