//! The session with the account agent: enrolls, says how the node is, hears what to serve. While
//! the account agent is away everything goes on as it is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use outstation_protocol::evidence::Audience;
use outstation_protocol::ids::InstanceId;
use outstation_protocol::v1::{NodeHello, NodeState, ToAccountAgent, ToNode, VERSION};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::events::Event;
use super::imds::{Imds, ImdsError};
use crate::clock;
use crate::frames::{FrameIoError, FrameReader, write_frame};
use crate::store::AccountStore;
use crate::trust::ca::SERVER_NAME;
use crate::trust::enroll::{Applicant, EnrollError, NodeIdentity, enroll};
use crate::trust::tls::{TlsError, load_roots, node_link_client};
use outstation_sts::StsEndpoint;

/// Whatever the account agent says: it shall not silence a node for longer.
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Handshake and welcome; inside a VPC they take milliseconds.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const WRITE_MAX: Duration = Duration::from_secs(5);
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A session that lived so long shows that the way is good.
const PROVEN_AFTER: Duration = Duration::from_secs(60);
/// A certificate this close to its end is not worth a handshake.
const EXPIRY_MARGIN_SECS: u64 = 60;

/// What the account agent shall know; the newest replaces what was not sent yet.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Outbox {
    pub state: Option<NodeState>,
    pub drained: bool,
}

#[derive(Debug, Clone)]
pub struct LinkSettings {
    /// `host:port`
    pub account_agent: String,
    /// The instance's own address, which the account agent knows it by.
    pub bind: IpAddr,
    pub store: AccountStore,
    pub audience: Audience,
    pub sts: StsEndpoint,
    pub instance: InstanceId,
}

pub struct Link {
    settings: LinkSettings,
    imds: Arc<Imds>,
    endpoint: quinn::Endpoint,
    outbox: watch::Receiver<Outbox>,
    events: mpsc::Sender<Event>,
    identity: Option<Held>,
}

struct Held {
    identity: NodeIdentity,
    renew_at: Instant,
}

#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(
        "the account agent's address {0:?} does not resolve to one that can be reached from here"
    )]
    Resolve(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the account agent cannot be dialled")]
    Dial(#[source] quinn::ConnectError),
    #[error("the account agent did not answer within {} s", ANSWER_MAX.as_secs())]
    Silent,
    #[error("no connection")]
    Connection(#[source] quinn::ConnectionError),
    #[error("no credentials from instance metadata")]
    Credentials(#[source] ImdsError),
    #[error("enrollment failed")]
    Enroll(#[source] EnrollError),
    #[error("the session broke")]
    Frame(#[from] FrameIoError),
    #[error("the session was refused")]
    Refused(#[source] FrameIoError),
    #[error("the account agent ended the session")]
    Ended,
    #[error("the account agent spoke out of turn")]
    OutOfTurn,
    #[error("the account agent does not read")]
    Stuck,
}

/// How a session ended without anything being wrong.
enum End {
    Renewed(Held),
    Goodbye {
        reason: String,
        retry_after: Duration,
    },
    /// The node itself stops.
    Stopped,
}

impl Link {
    pub fn new(
        settings: LinkSettings,
        imds: Arc<Imds>,
        outbox: watch::Receiver<Outbox>,
        events: mpsc::Sender<Event>,
    ) -> std::io::Result<Link> {
        let endpoint = quinn::Endpoint::client(SocketAddr::new(settings.bind, 0))?;
        Ok(Link { settings, imds, endpoint, outbox, events, identity: None })
    }

    pub fn endpoint(&self) -> quinn::Endpoint {
        self.endpoint.clone()
    }

    /// Keeps a session up until the node stops.
    pub async fn run(mut self) {
        let mut failures = 0u32;
        let mut last_trouble = String::new();
        loop {
            let started = clock::now();
            let outcome = self.connect_and_talk().await;
            if clock::now().duration_since(started) >= PROVEN_AFTER {
                failures = 0;
                last_trouble.clear();
            }
            let mut wait = full_jitter(failures);
            let trouble = match outcome {
                Ok(End::Stopped) => return,
                Ok(End::Renewed(held)) => {
                    tracing::info!(id = %held.identity.id, "certificate renewed");
                    self.identity = Some(held);
                    continue;
                }
                Ok(End::Goodbye { reason, retry_after }) => {
                    wait = wait.max(retry_after.mul_f64(0.5 + rand::random::<f64>() / 2.0));
                    format!("sent away: {reason}")
                }
                Err(error) => format!("{:#}", anyhow::Error::from(error)),
            };
            failures = failures.saturating_add(1);
            if trouble == last_trouble {
                tracing::debug!(trouble, ?wait, "still without the account agent");
            } else {
                tracing::warn!(trouble, "without the account agent; the node goes on as it is");
                last_trouble = trouble;
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn connect_and_talk(&mut self) -> Result<End, LinkError> {
        let expires = self.identity.as_ref().map(|held| held.identity.not_after_unix_secs);
        if expires.is_none_or(|at| at <= clock::unix_secs() + EXPIRY_MARGIN_SECS) {
            let held = self.enroll().await?;
            tracing::info!(id = %held.identity.id, "enrolled");
            self.identity = Some(held);
        }
        let held = self.identity.take().expect("enrolled above");
        let mut welcomed = false;
        let outcome = self.session(&held, &mut welcomed).await;
        let refused = match &outcome {
            // Not welcome with this certificate: the next try gets another one.
            Err(LinkError::Refused(_) | LinkError::Ended) | Ok(End::Goodbye { .. }) => !welcomed,
            Err(_) | Ok(End::Renewed(_) | End::Stopped) => false,
        };
        if !refused {
            self.identity = Some(held);
        }
        outcome
    }

    async fn connect(
        &self,
        identity: Option<&NodeIdentity>,
    ) -> Result<quinn::Connection, LinkError> {
        let name = &self.settings.account_agent;
        let resolved = tokio::net::lookup_host(name).await.ok().and_then(|mut addresses| {
            addresses.find(|address| address.is_ipv4() == self.settings.bind.is_ipv4())
        });
        let address = resolved.ok_or_else(|| LinkError::Resolve(name.clone()))?;
        // Read anew each time: the account agent may have made or rotated its CA meanwhile.
        let roots = load_roots(&self.settings.store)?;
        let config = node_link_client(&roots, identity)?;
        let connecting =
            self.endpoint.connect_with(config, address, SERVER_NAME).map_err(LinkError::Dial)?;
        tokio::time::timeout(ANSWER_MAX, connecting)
            .await
            .map_err(|_| LinkError::Silent)?
            .map_err(LinkError::Connection)
    }

    async fn enroll(&self) -> Result<Held, LinkError> {
        let credentials = self.imds.credentials().await.map_err(LinkError::Credentials)?;
        let connection = self.connect(None).await?;
        let applicant = Applicant {
            credentials: &credentials,
            audience: &self.settings.audience,
            sts: &self.settings.sts,
            instance: &self.settings.instance,
            release: env!("CARGO_PKG_VERSION"),
        };
        let identity = enroll(&connection, &applicant).await.map_err(LinkError::Enroll)?;
        let lives_secs = identity.not_after_unix_secs.saturating_sub(clock::unix_secs());
        // Half of its life, ±10 %: a group that booted at once does not renew at once.
        let share = 0.4 + 0.2 * rand::random::<f64>();
        let renew_at = Instant::now() + Duration::from_secs(lives_secs).mul_f64(share);
        Ok(Held { identity, renew_at })
    }

    /// A new certificate when it is time, however long that takes.
    async fn renewed(&self, at: Instant) -> Held {
        tokio::time::sleep_until(at).await;
        let mut failures = 0;
        loop {
            match self.enroll().await {
                Ok(held) => return held,
                Err(error) => {
                    failures += 1;
                    let error = anyhow::Error::from(error);
                    tracing::warn!(error = format!("{error:#}"), "renewal failed; tried again");
                    tokio::time::sleep(full_jitter(failures)).await;
                }
            }
        }
    }

    async fn session(&self, held: &Held, welcomed: &mut bool) -> Result<End, LinkError> {
        let connection = self.connect(Some(&held.identity)).await?;
        let (mut send, receive) = connection.open_bi().await.map_err(LinkError::Connection)?;
        let mut receive = FrameReader::new(receive);
        let hello = NodeHello {
            versions: vec![VERSION],
            features: Vec::new(),
            instance: self.settings.instance.clone(),
            group: held.identity.id.group.clone(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
        };
        write(&mut send, &ToAccountAgent::Hello(hello)).await?;
        let first = tokio::time::timeout(ANSWER_MAX, receive.next::<ToNode>())
            .await
            .map_err(|_| LinkError::Silent)?
            .map_err(LinkError::Refused)?;
        let heartbeat_secs = match first.ok_or(LinkError::Ended)? {
            ToNode::Welcome { version: _, heartbeat_secs, artifacts } => {
                self.tell(Event::Target(artifacts)).await;
                heartbeat_secs.max(1)
            }
            ToNode::Goodbye { reason, retry_after_secs } => {
                return Ok(goodbye(reason, retry_after_secs));
            }
            ToNode::Artifacts(_) | ToNode::Withdrawn => return Err(LinkError::OutOfTurn),
        };
        *welcomed = true;
        tracing::info!(account_agent = self.settings.account_agent, "connected");

        let heartbeat = Duration::from_secs(heartbeat_secs.into()).min(HEARTBEAT_MAX);
        let mut outbox = self.outbox.clone();
        let mut renewal = std::pin::pin!(self.renewed(held.renew_at));
        let mut beat = tokio::time::interval(heartbeat);
        loop {
            tokio::select! {
                message = receive.next::<ToNode>() => {
                    match message?.ok_or(LinkError::Ended)? {
                        ToNode::Artifacts(artifacts) => self.tell(Event::Target(artifacts)).await,
                        ToNode::Withdrawn => self.tell(Event::Withdrawn).await,
                        ToNode::Goodbye { reason, retry_after_secs } => {
                            return Ok(goodbye(reason, retry_after_secs));
                        }
                        ToNode::Welcome { .. } => return Err(LinkError::OutOfTurn),
                    }
                }
                changed = outbox.changed() => {
                    if changed.is_err() {
                        return Ok(End::Stopped);
                    }
                    speak(&mut send, &mut outbox).await?;
                }
                // Its first tick is at once.
                _ = beat.tick() => speak(&mut send, &mut outbox).await?,
                held = &mut renewal => {
                    connection.close(0u8.into(), b"renewed");
                    return Ok(End::Renewed(held));
                }
            }
        }
    }

    async fn tell(&self, event: Event) {
        // Nobody listens when the node stops; then this session ends with it.
        let _ = self.events.send(event).await;
    }
}

/// The whole state each time: a lost one costs nothing. `Drained` is repeated until the instance
/// ends.
async fn speak(
    send: &mut quinn::SendStream,
    outbox: &mut watch::Receiver<Outbox>,
) -> Result<(), LinkError> {
    let Outbox { state, drained } = outbox.borrow_and_update().clone();
    if let Some(state) = state {
        write(send, &ToAccountAgent::State(state)).await?;
    }
    if drained {
        write(send, &ToAccountAgent::Drained).await?;
    }
    Ok(())
}

async fn write(send: &mut quinn::SendStream, message: &ToAccountAgent) -> Result<(), LinkError> {
    tokio::time::timeout(WRITE_MAX, write_frame(send, message))
        .await
        .map_err(|_| LinkError::Stuck)?
        .map_err(LinkError::Frame)
}

fn goodbye(reason: String, retry_after_secs: u32) -> End {
    let retry_after = Duration::from_secs(retry_after_secs.into()).min(RETRY_AFTER_MAX);
    End::Goodbye { reason, retry_after }
}

fn full_jitter(failures: u32) -> Duration {
    let bound = BACKOFF_FIRST.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
    bound.mul_f64(rand::random::<f64>())
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
