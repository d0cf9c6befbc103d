//! Control sessions: one agent's connection from its certificate to its end. What to say is
//! decided by `BrokerSession`; here are its socket, its store and its clock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outstation_protocol::order::Order;
use outstation_protocol::session::{Answer, BrokerOutput, BrokerSession, Report};
use outstation_protocol::v1::{SetEntry, ToAgent, ToBroker};
use outstation_protocol::{AgentId, DataPlane, Envelope};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, field, info, warn};

use crate::clock;
use crate::frames::{FrameReader, FrameWriter, LinkError};
use crate::identity::{AgentIdentity, Shown};
use crate::link::{CLOSE_DONE, CLOSE_REFUSED, HANDSHAKE_MAX, Shared, peer_certificate};
use crate::store::news::rule_name;
use crate::store::{Change, Changed, StoreError};

/// For saying goodbye. The broker's own end is bounded by 5 s, a newer session waits for it.
const LEAVE_MAX: Duration = Duration::from_secs(1);
/// How often a store that failed (a full disk) is tried again; the answers wait in the session.
const STORE_RETRY: Duration = Duration::from_secs(2);
/// Somebody who does not belong here need not come back at once.
const REFUSED_RETRY_AFTER_SECS: u32 = 60;

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the connection broke")]
    Connection(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error("the agent opened no stream for {} s", HANDSHAKE_MAX.as_secs())]
    NoStream,
    #[error("the broker is restarting")]
    Stopping,
}

/// Serves a connection on the control ALPN to its end.
pub async fn serve(shared: &Shared, connection: Connection) {
    let remote = connection.remote_address();
    let Some(certificate) = peer_certificate(&connection) else {
        info!(%remote, "refused: no client certificate");
        return connection.close(CLOSE_REFUSED, b"this conversation needs a client certificate");
    };
    let shown = match AgentIdentity::of_certificate(&certificate) {
        Ok(found) => found,
        Err(error) => {
            warn!(%remote, %error, "refused: a certificate of ours without an agent's identity");
            return connection.close(CLOSE_REFUSED, b"the certificate names no account agent");
        }
    };
    let agent = shown.identity.agent.clone();
    let ended = match admitted(shared, &shown).await {
        Ok(Ok(data_plane)) => session(shared, &connection, &shown, data_plane).await,
        Ok(Err(refusal)) => {
            warn!(%remote, %agent, refusal, "refused");
            refuse(shared, &connection, refusal.clone()).await.map(|()| refusal)
        }
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(reason) => connection.close(CLOSE_DONE, reason.as_bytes()),
        Err(error) => {
            let chain = crate::chain(&error);
            match error {
                SessionError::Store(_) => error!(%agent, error = chain, "a session ended"),
                SessionError::Connection(_)
                | SessionError::Link(_)
                | SessionError::NoStream
                | SessionError::Stopping => {
                    info!(%agent, error = chain, "a session ended");
                }
            }
            connection.close(CLOSE_REFUSED, b"the session broke");
        }
    }
}

/// The data plane of an agent that enrolled here, or why it is not let in.
async fn admitted(shared: &Shared, shown: &Shown) -> Result<Result<DataPlane, String>, StoreError> {
    let AgentIdentity { tenant, account, agent } = &shown.identity;
    if *tenant != shared.tenant {
        return Ok(Err(format!("the certificate is of tenant {tenant}")));
    }
    let Some(known) = shared.store.agent(agent.clone()).await? else {
        return Ok(Err(format!("agent {agent} is not enrolled here: enroll it again")));
    };
    let served = shared.served.contains(&known.data_plane).await?;
    if known.data_plane.account != *account || !served {
        return Ok(Err(format!("data plane {} is not served here any more", known.data_plane)));
    }
    if known.revoked_at_unix_secs.is_some() {
        return Ok(Err(format!("agent {agent} was revoked")));
    }
    let now = clock::unix_secs();
    if !shared.store.shown(agent.clone(), shown.serial.clone(), now).await? {
        return Ok(Err(format!(
            "a newer certificate of agent {agent} is in use: two hosts have its key"
        )));
    }
    Ok(Ok(known.data_plane))
}

async fn refuse(
    shared: &Shared,
    connection: &Connection,
    reason: String,
) -> Result<(), SessionError> {
    let (send, _receive) = accept_stream(shared, connection).await?;
    let mut writer = FrameWriter::new(send);
    let goodbye = ToAgent::Goodbye { reason, retry_after_secs: REFUSED_RETRY_AFTER_SECS };
    writer.send(&goodbye).await?;
    finish(writer.into_inner(), LEAVE_MAX).await;
    Ok(())
}

async fn accept_stream(
    shared: &Shared,
    connection: &Connection,
) -> Result<(SendStream, RecvStream), SessionError> {
    let accepted = timeout(HANDSHAKE_MAX, connection.accept_bi());
    shared
        .stopping
        .run_until_cancelled(accepted)
        .await
        .ok_or(SessionError::Stopping)?
        .map_err(|_| SessionError::NoStream)?
        .map_err(SessionError::Connection)
}

/// Waits until the peer has everything, or for so long.
async fn finish(mut send: SendStream, patience: Duration) {
    if send.finish().is_ok() {
        let _ = timeout(patience, send.stopped()).await;
    }
}

async fn session(
    shared: &Shared,
    connection: &Connection,
    shown: &Shown,
    data_plane: DataPlane,
) -> Result<String, SessionError> {
    let agent = &shown.identity.agent;
    let (send, receive) = accept_stream(shared, connection).await?;
    // The older session of this agent has written its last answer when this returns.
    let seat = shared.sessions.take_seat(agent).await;

    let changes = shared.store.changes();
    let set = shared.store.desired_set(data_plane.clone()).await?;
    let recorded = shared.store.reports(data_plane.clone()).await?;
    let now = Instant::now();
    let machine = BrokerSession::new(
        agent.clone(),
        data_plane.clone(),
        set,
        recorded,
        shared.session.clone(),
        now,
    );
    let mut driver = Driver {
        shared,
        shown,
        agent,
        data_plane,
        machine,
        reader: FrameReader::new(receive),
        writer: FrameWriter::new(send),
        changes,
        superseded: seat.superseded.clone(),
        expires: now + clock::until(shown.expires_at_unix_secs, clock::unix_secs()),
        leaving: None,
        shut_out: false,
        live: false,
        connected_due: None,
        store_retry: None,
    };
    let ended = driver.run().await;
    if driver.live {
        let reason = match &ended {
            Ok(reason) => reason.clone(),
            Err(error) => crate::chain(error),
        };
        info!(%agent, data_plane = %driver.data_plane, reason, "disconnected");
        let (plane, now) = (driver.data_plane.clone(), clock::unix_secs());
        if let Err(error) = shared.store.disconnected(plane, agent.clone(), reason, now).await {
            warn!(%agent, error = crate::chain(&error), "its end was not stored");
        }
    }
    if ended.is_ok() {
        let patience = driver.patience();
        finish(driver.writer.into_inner(), patience).await;
    }
    ended
}

/// The loop around the machine.
struct Driver<'a> {
    shared: &'a Shared,
    shown: &'a Shown,
    agent: &'a AgentId,
    data_plane: DataPlane,
    machine: BrokerSession,
    reader: FrameReader<RecvStream>,
    writer: FrameWriter<SendStream>,
    changes: broadcast::Receiver<Change>,
    superseded: CancellationToken,
    expires: Instant,
    /// Set once the session is told to end: how long the goodbye may take, and why it ends.
    leaving: Option<(Instant, String)>,
    /// It may not have this session any more: it is gone within [`LEAVE_MAX`], whatever it does.
    shut_out: bool,
    /// The agent has said hello and was found right.
    live: bool,
    /// The release of an agent whose connection is not stored yet.
    connected_due: Option<String>,
    /// The store failed: when it is tried again.
    store_retry: Option<Instant>,
}

impl Driver<'_> {
    /// Runs until the session ends, with the reason; an error if it broke.
    async fn run(&mut self) -> Result<String, SessionError> {
        let stopping = self.shared.stopping.clone();
        let superseded = self.superseded.clone();
        loop {
            // Only when the frame before is out is the next one chosen: it is then the newest.
            while self.writer.is_idle() {
                let Some(output) = self.machine.poll_output() else {
                    break;
                };
                if let Some(reason) = self.act(output).await? {
                    return Ok(reason);
                }
            }
            let staying = self.leaving.is_none();
            let timeout = match &self.leaving {
                None => self.machine.next_timeout(),
                Some((until, _)) => *until,
            };
            tokio::select! {
                () = stopping.cancelled(), if staying => self.leave("the broker is restarting"),
                () = superseded.cancelled(), if staying => {
                    self.leave("a newer session of the same agent took over");
                }
                () = sleep_until(self.expires.into()), if staying => {
                    self.leave("the certificate has expired: enroll again");
                }
                () = sleep_until(timeout.into()) => match &self.leaving {
                    None => {
                        let now = Instant::now();
                        self.machine.handle_timeout(now);
                        self.leaving = Some((now + LEAVE_MAX, "the agent has been silent".into()));
                    }
                    Some((_, reason)) => return Ok(reason.clone()),
                },
                () = sleep_until(self.store_retry.unwrap_or(timeout).into()),
                    if self.store_retry.is_some() => self.retry_store().await?,
                flushed = self.writer.flush(), if !self.writer.is_idle() => flushed?,
                message = self.reader.next::<ToBroker>() => match message? {
                    Some(message) => self.machine.handle_message(message, Instant::now()),
                    None => return Ok("the agent ended the session".into()),
                },
                change = self.changes.recv() => {
                    let news = self.news(change);
                    if news.access
                        && self.leaving.is_none()
                        && let Err(refusal) = admitted(self.shared, self.shown).await?
                    {
                        self.shut_out = true;
                        self.leave(&refusal);
                    }
                    let plane = &self.data_plane;
                    if news.set {
                        let set = self.shared.store.desired_set(plane.clone()).await?;
                        self.machine.handle_set(set);
                    }
                    if news.stored {
                        let stored = self.shared.store.reports(plane.clone()).await?;
                        self.machine.handle_stored(stored);
                    }
                }
            }
        }
    }

    /// For the goodbye to be written, and again for it to be read.
    fn patience(&self) -> Duration {
        if self.shut_out { LEAVE_MAX / 2 } else { LEAVE_MAX }
    }

    fn leave(&mut self, reason: &str) {
        self.leaving = Some((Instant::now() + self.patience(), reason.to_owned()));
        self.machine.handle_goodbye(reason.to_owned());
    }

    /// Does what the machine wants; the reason if that is to end the session.
    async fn act(&mut self, output: BrokerOutput) -> Result<Option<String>, SessionError> {
        match output {
            BrokerOutput::Send(message) => self.writer.start(&message)?,
            BrokerOutput::Load(entry) => {
                let stored = self.shared.store.envelope(self.data_plane.clone(), entry.clone());
                self.machine.handle_loaded(&entry, stored.await?);
            }
            BrokerOutput::Record(report) => self.record(report).await?,
            BrokerOutput::TakeOver { entry, envelope } => self.take_over(entry, envelope).await?,
            BrokerOutput::Settle(reports) => {
                let (plane, agent) = (self.data_plane.clone(), self.agent.clone());
                let now = clock::unix_secs();
                let settled = self.shared.store.settle(plane, agent, reports, now).await;
                if self.stored(settled)?.is_none() {
                    self.machine.handle_not_settled();
                }
            }
            BrokerOutput::Live { release } => {
                let release = crate::shown(&release);
                info!(agent = %self.agent, data_plane = %self.data_plane, release, "connected");
                self.live = true;
                self.connected_due = Some(release);
                self.store_connected().await?;
            }
            BrokerOutput::Close { reason } => return Ok(Some(reason)),
        }
        Ok(None)
    }

    /// The change is announced, so the set follows as it does after a put.
    async fn take_over(&mut self, entry: SetEntry, envelope: Envelope) -> Result<(), SessionError> {
        let (agent, group, generation) = (self.agent, &entry.group, entry.generation);
        let ours = match Order::from_envelope(&envelope) {
            Ok(order) => (order.tenant == self.shared.tenant
                && order.data_plane == self.data_plane
                && (&order.group, order.generation) == (group, generation))
                .then_some(order),
            Err(_) => None,
        };
        let Some(order) = ours else {
            warn!(%agent, %group, %generation, "handed back: not an order of this data plane");
            return Ok(());
        };
        let taken = self.shared.store.take_over(order, envelope, clock::unix_secs()).await;
        let Some(taken) = self.stored(taken)? else {
            self.machine.handle_not_taken_over(entry);
            return Ok(());
        };
        if taken {
            warn!(%agent, %group, %generation, digest = %entry.digest.short(),
                "the database was behind: an order was taken over from the account's ledger");
        }
        Ok(())
    }

    async fn store_connected(&mut self) -> Result<(), SessionError> {
        if let Some(release) = self.connected_due.clone() {
            let agent = self.agent.clone();
            let stored = self.shared.store.connected(agent, release, clock::unix_secs()).await;
            if self.stored(stored)?.is_some() {
                self.connected_due = None;
            }
        }
        Ok(())
    }

    async fn retry_store(&mut self) -> Result<(), SessionError> {
        // Still failing until something was stored: that is said once.
        self.store_retry = Some(Instant::now() + STORE_RETRY);
        self.store_connected().await?;
        self.machine.retry_after_store_failure();
        Ok(())
    }

    /// What the store made of a write; `None` if it failed in a way that may pass, as a full disk
    /// does. The session goes on: an agent that is sent away comes back with the same answers.
    fn stored<T>(&mut self, written: Result<T, StoreError>) -> Result<Option<T>, SessionError> {
        let agent = self.agent;
        match written {
            Ok(done) => {
                if self.store_retry.take().is_some() {
                    info!(%agent, "answers are stored again");
                }
                Ok(Some(done))
            }
            Err(error) if error.may_pass() => {
                let retry = Instant::now() + STORE_RETRY;
                if self.store_retry.replace(retry).is_none() {
                    let hint = error.hint();
                    error!(%agent, error = crate::chain(&error), hint, "answers cannot be stored; they are kept and tried again");
                }
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn record(&mut self, report: Report) -> Result<(), SessionError> {
        let (agent, group, answer) = (self.agent, report.group.clone(), report.answer.clone());
        let (plane, now, kept) = (self.data_plane.clone(), clock::unix_secs(), report.clone());
        let recorded = self.shared.store.record(plane, agent.clone(), report, now).await;
        let Some(before) = self.stored(recorded)? else {
            self.machine.handle_not_recorded(kept);
            return Ok(());
        };
        let accepted = before.accepted;
        // Only an order that was accepted converges, so its digest is known.
        let digest_of = |generation| {
            let digest = accepted.filter(|(accepted, _)| *accepted == generation);
            digest.map(|(_, digest)| field::display(digest.short()))
        };
        match answer {
            Answer::Accepted { generation, digest } => {
                info!(%agent, %group, %generation, digest = %digest.short(), "accepted");
            }
            Answer::Refused { generation, digest, reason } => {
                info!(%agent, %group, %generation, digest = %digest.short(), rule = rule_name(reason.rule), reason = crate::shown(&reason.message), "refused");
            }
            Answer::Converged { generation, .. } => {
                info!(%agent, %group, %generation, digest = digest_of(generation), "converged");
            }
            Answer::Status(status) => {
                let before = before.status.map(|before| before.phase);
                if before != Some(status.phase) {
                    let generation = accepted.map(|(generation, _)| generation.0);
                    let digest = accepted.map(|(_, digest)| field::display(digest.short()));
                    info!(%agent, %group, generation, digest, phase = %status.phase, reason = crate::shown(&status.reason), "phase");
                }
            }
        }
        Ok(())
    }

    /// What changed for this session. Takes all that is waiting at once.
    fn news(&mut self, first: Result<Change, RecvError>) -> News {
        let mut news = News::default();
        let data_plane = &self.data_plane;
        match first {
            Ok(change) => news.take(data_plane, change),
            Err(RecvError::Lagged(_)) => news = News::ALL,
            Err(RecvError::Closed) => {}
        }
        loop {
            match self.changes.try_recv() {
                Ok(change) => news.take(data_plane, change),
                Err(TryRecvError::Lagged(_)) => news = News::ALL,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return news,
            }
        }
    }
}

/// What may be another now.
#[derive(Default)]
struct News {
    set: bool,
    /// What the store holds of the agent's answers.
    stored: bool,
    /// Whether this agent may have a session.
    access: bool,
}

impl News {
    const ALL: News = News { set: true, stored: true, access: true };

    fn take(&mut self, data_plane: &DataPlane, change: Change) {
        if change.data_plane != *data_plane {
            return;
        }
        match change.what {
            Changed::Order(_) => self.set = true,
            Changed::AgentLeft => self.stored = true,
            Changed::Access => self.access = true,
            Changed::Answer(_) => {}
        }
    }
}

/// One seat per agent: whoever comes later gets it, after the one before has left it.
#[derive(Default)]
pub struct Sessions {
    seats: Mutex<Seats>,
}

#[derive(Default)]
struct Seats {
    given: u64,
    /// As many as agents are connected; bounded with the connections.
    taken: BTreeMap<AgentId, Held>,
}

struct Held {
    number: u64,
    superseded: CancellationToken,
    left: CancellationToken,
}

/// The right to be the session of an agent, until another takes it.
struct Seat {
    sessions: Arc<Sessions>,
    agent: AgentId,
    number: u64,
    superseded: CancellationToken,
    left: CancellationToken,
}

impl Sessions {
    async fn take_seat(self: &Arc<Self>, agent: &AgentId) -> Seat {
        let (superseded, left) = (CancellationToken::new(), CancellationToken::new());
        let (number, before) = {
            let mut seats = self.seats();
            seats.given += 1;
            let number = seats.given;
            let held = Held { number, superseded: superseded.clone(), left: left.clone() };
            (number, seats.taken.insert(agent.clone(), held))
        };
        let seat =
            Seat { sessions: Arc::clone(self), agent: agent.clone(), number, superseded, left };
        if let Some(before) = before {
            before.superseded.cancel();
            before.left.cancelled().await;
        }
        seat
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Also when the session's task is dropped: the next one must not wait for ever.
impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.sessions.seats();
        if seats.taken.get(&self.agent).is_some_and(|held| held.number == self.number) {
            seats.taken.remove(&self.agent);
        }
        self.left.cancel();
    }
}
