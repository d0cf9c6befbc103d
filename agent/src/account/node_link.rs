//! The node link's listener: enrolls nodes, takes their states, tells them what to serve, and lets
//! drained instances end.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use outstation_protocol::evidence::{Audience, ExpectedCaller, Purpose};
use outstation_protocol::status::NodePhase;
use outstation_protocol::v1::{self, NodeHello, ToAccountAgent, ToNode};
use outstation_protocol::{GroupName, InstanceId};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::aws::Aws;
use super::registry::SessionId;
use super::shared::{Shared, lock};
use super::whereabouts::Whereabouts;
use crate::frames::{FrameReader, write_frame};
use crate::trust::DataPlaneCa;
use crate::trust::enroll::Enroller;
use crate::trust::resets;
use crate::trust::spiffe::NodeCertificate;
use crate::trust::tls::{self, Peer};
use outstation_sts::{Limits, StsEndpoint, StsVerifier};

/// Handshakes and enrollments under way at one time; more wait in the listener's own queue.
const OPENING_MAX: usize = 256;
/// Of all nodes, those that are opening included: a node has one, and a second while it renews its
/// certificate. Beyond, a dial is refused, and the node comes back with its backoff.
const CONNECTIONS_MAX: usize = 20_000;
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
const HELLO_MAX: Duration = Duration::from_secs(10);
/// How often a node says that it is still there.
const HEARTBEAT_SECS: u32 = 5;
/// Three heartbeats may get lost.
const SILENCE_MAX: Duration = Duration::from_secs(20);
const WRITE_MAX: Duration = Duration::from_secs(5);
/// A node waits 10 s for its welcome. When AWS does not answer by then, the ledger counts.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(5);
/// A drained instance is reported to AWS until it answers; its hook times out after 90 s anyway.
const COMPLETE_ATTEMPTS_MAX: u32 = 20;

pub struct NodeLink {
    shared: Arc<Shared>,
    aws: Aws,
    whereabouts: Whereabouts,
    endpoint: quinn::Endpoint,
    enroller: Enroller,
    opening: Semaphore,
    sessions: AtomicU64,
    tasks: TaskTracker,
}

impl NodeLink {
    pub fn bind(shared: Arc<Shared>, aws: Aws, ca: Arc<DataPlaneCa>) -> Result<Arc<NodeLink>> {
        let config = &shared.config;
        let audience = Audience {
            purpose: Purpose::NodeLink,
            tenant: config.tenant.clone(),
            account: config.account.clone(),
            region: config.region.clone(),
        };
        let expected = ExpectedCaller {
            account: config.account.clone(),
            region: config.region.clone(),
            role: Some(config.nodes.role.clone()),
            role_id: config.nodes.role_id.clone(),
        };
        let sts = StsEndpoint::choose(&config.region, config.aws.endpoint.as_deref())?;
        let verifier = StsVerifier::new(Some(sts), Limits::NODE_LINK);
        let tls_config = tls::node_link_server(ca.clone())?;
        let endpoint = std::net::UdpSocket::bind(config.nodes.listen)
            .and_then(|socket| {
                let server = Some(tls_config);
                let runtime = Arc::new(quinn::TokioRuntime);
                quinn::Endpoint::new(resets::endpoint_config(&ca.secret()), server, socket, runtime)
            })
            .with_context(|| format!("listen for nodes on {} (UDP)", config.nodes.listen))?;
        tracing::info!(listen = %config.nodes.listen, "node link");
        Ok(Arc::new(NodeLink {
            shared,
            whereabouts: Whereabouts::new(aws.clone()),
            aws,
            endpoint,
            enroller: Enroller::new(ca, verifier, audience, expected),
            opening: Semaphore::new(OPENING_MAX),
            sessions: AtomicU64::new(1),
            tasks: TaskTracker::new(),
        }))
    }

    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            let incoming = tokio::select! {
                () = shutdown.cancelled() => break,
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => incoming,
                    None => break,
                },
            };
            if self.tasks.len() >= CONNECTIONS_MAX {
                incoming.refuse();
                continue;
            }
            let link = self.clone();
            let shutdown = shutdown.clone();
            let serving = async move {
                if let Err(error) = link.serve(incoming, &shutdown).await {
                    tracing::debug!(error = format!("{error:#}"), "a node's connection ended");
                }
            };
            self.tasks.spawn(serving.in_current_span());
        }
        self.tasks.close();
        self.endpoint.close(0u8.into(), b"the account agent stops");
        // Nodes need no goodbye: they keep serving and come back.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.tasks.wait()).await;
    }

    async fn serve(&self, incoming: quinn::Incoming, shutdown: &CancellationToken) -> Result<()> {
        let opening = self.opening.acquire().await.context("the listener is closed")?;
        let connection = tokio::time::timeout(HANDSHAKE_MAX, incoming.accept()?)
            .await
            .context("the handshake took too long")??;
        let peer = tls::peer(&connection).inspect_err(|error| {
            connection.close(1u8.into(), error.to_string().as_bytes());
        })?;
        match peer {
            Peer::Enrolling { from } => {
                let view = |instance, address| self.own_view(instance, address);
                match self.enroller.answer(&connection, view).await {
                    Ok(id) => {
                        tracing::info!(instance = %id.instance, group = %id.group, "enrolled")
                    }
                    Err(denial) => {
                        let error = anyhow!(denial);
                        tracing::warn!(%from, error = format!("{error:#}"), "enrollment denied");
                    }
                }
                Ok(())
            }
            Peer::Node { certificate, from } => {
                drop(opening);
                let address = from.ip().to_canonical();
                self.session(&connection, &certificate, address, shutdown).await
            }
        }
    }

    /// The group that this account itself sees the instance in. AWS is asked; when it does not
    /// answer, the last look counts.
    async fn own_view(&self, instance: InstanceId, _address: IpAddr) -> Option<GroupName> {
        let groups = self.shared.groups();
        match self.whereabouts.group_of(&instance).await {
            Ok(asg_name) => {
                let asg_name = asg_name?;
                groups
                    .into_iter()
                    .find(|group| self.shared.asg_name(group).as_ref() == Some(&asg_name))
            }
            Err(error) => {
                tracing::warn!(%instance, %error, "AWS does not say where an instance belongs");
                let observed = lock(&self.shared.observed);
                let found = observed.iter().find(|(_, o)| o.instances.contains_key(&instance));
                found.map(|(group, _)| group.clone())
            }
        }
    }

    async fn session(
        &self,
        connection: &quinn::Connection,
        certificate: &NodeCertificate,
        address: IpAddr,
        shutdown: &CancellationToken,
    ) -> Result<()> {
        let (mut send, receive) = tokio::time::timeout(HELLO_MAX, connection.accept_bi())
            .await
            .context("no stream was opened")??;
        let mut receive = FrameReader::new(receive);
        let hello = tokio::time::timeout(HELLO_MAX, receive.next::<ToAccountAgent>())
            .await
            .context("no hello came")??;
        let Some(ToAccountAgent::Hello(hello)) = hello else {
            return Err(anyhow!("the node spoke before its hello"));
        };
        let (instance, group) = (certificate.id.instance.clone(), certificate.id.group.clone());
        // The ledger may be an old one: that shows at the first look, and a node shall not be told
        // to serve old code in between.
        self.shared.looked(FIRST_LOOK_MAX).await;
        let artifacts = match self.admit(&hello, &instance, &group) {
            Ok(artifacts) => artifacts,
            Err(reason) => {
                tracing::warn!(%instance, %group, reason, "a node was turned away");
                let goodbye = ToNode::Goodbye { reason, retry_after_secs: 5 };
                write(&mut send, &goodbye).await?;
                let _ = send.finish();
                let _ = tokio::time::timeout(WRITE_MAX, connection.closed()).await;
                return Ok(());
            }
        };

        let node_generation = artifacts.generation;
        let session = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed));
        let mut changed = self.shared.changed.subscribe();
        self.shared.update_registry(|registry| {
            registry.hello(instance.clone(), group.clone(), session, self.shared.clock.unix_secs());
        });
        let welcome = ToNode::Welcome {
            version: v1::VERSION,
            heartbeat_secs: HEARTBEAT_SECS,
            artifacts: artifacts.clone(),
        };
        let welcomed = write(&mut send, &welcome).await;
        tracing::info!(%instance, %group, generation = %node_generation, release = hello.release,
            "node connected");

        let mut node = NodeSession {
            link: self,
            instance: instance.clone(),
            group: group.clone(),
            session,
            address,
            told: artifacts,
            withdrawn: false,
            completing: false,
        };
        let lifetime =
            certificate.not_after_unix_secs.saturating_sub(self.shared.clock.unix_secs());
        let expiry = tokio::time::sleep(Duration::from_secs(lifetime));
        tokio::pin!(expiry);
        let ended = loop {
            if welcomed.is_err() {
                break welcomed;
            }
            tokio::select! {
                () = shutdown.cancelled() => break Ok(()),
                () = &mut expiry => break Err(anyhow!("the node's certificate has expired")),
                message = receive.next::<ToAccountAgent>() => match message {
                    Ok(Some(message)) => {
                        if let Err(error) = node.handle(message, &mut send).await {
                            break Err(error);
                        }
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error.into()),
                },
                _ = changed.changed() => {
                    if let Err(error) = node.tell_artifacts(&mut send).await {
                        break Err(error);
                    }
                }
                () = tokio::time::sleep(SILENCE_MAX) => break Err(anyhow!("the node is silent")),
            }
        };
        self.shared.update_registry(|registry| {
            registry.lost(&instance, session, self.shared.clock.unix_secs());
        });
        tracing::info!(%instance, %group, "node disconnected");
        connection.close(0u8.into(), b"");
        ended
    }

    fn admit(
        &self,
        hello: &NodeHello,
        instance: &InstanceId,
        group: &GroupName,
    ) -> Result<v1::Artifacts, String> {
        if !hello.versions.contains(&v1::VERSION) {
            return Err(format!("this account agent speaks version {} only", v1::VERSION));
        }
        if (&hello.instance, &hello.group) != (instance, group) {
            return Err("the hello names another node than the certificate".to_owned());
        }
        self.shared
            .artifacts_at_hello(instance, group)
            .or_else(|| self.last_artifacts(instance))
            .ok_or_else(|| format!("group {group} is not ordered here any more"))
    }

    /// A node of a group that is being destroyed goes on with what it has until it has drained.
    fn last_artifacts(&self, instance: &InstanceId) -> Option<v1::Artifacts> {
        self.shared.registry().get(instance).and_then(|node| node.artifacts.clone())
    }
}

struct NodeSession<'a> {
    link: &'a NodeLink,
    instance: InstanceId,
    group: GroupName,
    session: SessionId,
    address: IpAddr,
    told: v1::Artifacts,
    withdrawn: bool,
    /// AWS is being told; the node repeats itself until its instance ends.
    completing: bool,
}

impl NodeSession<'_> {
    async fn handle(
        &mut self,
        message: ToAccountAgent,
        send: &mut quinn::SendStream,
    ) -> Result<()> {
        let now = self.link.shared.clock.unix_secs();
        match message {
            ToAccountAgent::Hello(_) => Err(anyhow!("a second hello")),
            ToAccountAgent::State(state) => {
                let leaving = matches!(state.phase, NodePhase::Draining | NodePhase::Gone);
                self.link.shared.update_registry(|registry| {
                    registry.state(&self.instance, self.session, self.address, state, now)
                })?;
                // The registry has changed, so the callers' streams have been woken already.
                if leaving && !self.withdrawn {
                    self.withdrawn = true;
                    tracing::info!(instance = %self.instance, group = %self.group, "withdrawn");
                    write(send, &ToNode::Withdrawn).await?;
                }
                Ok(())
            }
            ToAccountAgent::Drained => {
                self.link.shared.update_registry(|registry| registry.drained(&self.instance, now));
                if !std::mem::replace(&mut self.completing, true) {
                    self.complete_drain();
                }
                Ok(())
            }
        }
    }

    async fn tell_artifacts(&mut self, send: &mut quinn::SendStream) -> Result<()> {
        let artifacts = self.link.shared.artifacts_for(&self.instance, &self.group);
        if let Some(artifacts) = artifacts
            && artifacts != self.told
        {
            tracing::info!(instance = %self.instance, group = %self.group,
                generation = %artifacts.generation, bundle = artifacts.bundle.short(),
                "told what to serve");
            write(send, &ToNode::Artifacts(artifacts.clone())).await?;
            self.told = artifacts;
        }
        Ok(())
    }

    /// In the background: the node's session ends while AWS is still being told.
    fn complete_drain(&self) {
        let Some(asg_name) = self.link.shared.asg_name(&self.group) else {
            tracing::error!(instance = %self.instance, group = %self.group,
                "drained, but held for lack of guardrails");
            return;
        };
        let (aws, instance, group) =
            (self.link.aws.clone(), self.instance.clone(), self.group.clone());
        let shared = self.link.shared.clone();
        let completing = async move {
            for attempt in 1..=COMPLETE_ATTEMPTS_MAX {
                match aws.complete_drain(&asg_name, &instance).await {
                    Ok(()) => {
                        tracing::info!(%instance, %group, asg_name, "drained");
                        shared.look.notify_one();
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(%instance, %group, %error, attempt, "drain not completed")
                    }
                }
                let pause = Duration::from_millis(500 * u64::from(attempt.min(8)));
                tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
            }
        };
        self.link.tasks.spawn(completing.in_current_span());
    }
}

async fn write(send: &mut quinn::SendStream, message: &ToNode) -> Result<()> {
    tokio::time::timeout(WRITE_MAX, write_frame(send, message))
        .await
        .context("the node does not read")??;
    Ok(())
}
