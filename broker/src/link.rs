//! The QUIC endpoint that agents dial: TLS, limits, and which conversation a connection gets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outstation_protocol::TenantId;
use outstation_protocol::session::BrokerConfig;
use outstation_protocol::v1;
use outstation_sts::StsVerifier;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{Connection, Endpoint, Incoming, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::ca::{Ca, ServerIdentity};
use crate::control::{self, Sessions};
use crate::enroll;
use crate::resets;
use crate::served::Served;
use crate::store::Store;

/// About 33 KiB each: 330 MiB, and four times the agents of the largest fleet planned for.
const CONNECTIONS_MAX: usize = 10_000;
/// A handshake costs about 1 ms of CPU: a full queue is cleared in some 0.1 s.
const HANDSHAKES_MAX: usize = 128;
/// From here on an address must show that it exists before it costs anything.
const HANDSHAKES_UNPROVEN_MAX: usize = 32;
/// Enrollment is rare, most of it one call to STS; a whole fleet of 10,000 passes in minutes with retries.
const ENROLLMENTS_MAX: usize = 32;
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
const ENROLL_MAX: Duration = Duration::from_secs(10);
/// Two of the largest frames: one being read while the next arrives.
const RECEIVE_WINDOW_BYTES: u32 = 512 * 1024;
const SEND_WINDOW_BYTES: u64 = 512 * 1024;
/// The agent sends a keepalive every 20-25 s; two may get lost.
const IDLE_MAX: Duration = Duration::from_secs(60);

pub const CLOSE_DONE: VarInt = VarInt::from_u32(0);
pub const CLOSE_REFUSED: VarInt = VarInt::from_u32(1);
pub const CLOSE_BUSY: VarInt = VarInt::from_u32(2);

/// The listener for agents.
pub struct Link {
    endpoint: Endpoint,
    shared: Arc<Shared>,
}

/// What every conversation needs.
pub struct Shared {
    pub tenant: TenantId,
    pub served: Served,
    pub verifier: StsVerifier,
    pub store: Store,
    pub ca: Ca,
    pub session: BrokerConfig,
    pub sessions: Arc<Sessions>,
    /// Cancelled when the broker stops.
    pub stopping: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {listen} (UDP)")]
    Listen { listen: SocketAddr, source: io::Error },
    #[error("the TLS configuration was refused")]
    Tls(#[source] rustls::Error),
    #[error("the verifier of client certificates was refused")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

impl Link {
    pub fn bind(
        listen: SocketAddr,
        server: &ServerIdentity,
        shared: Arc<Shared>,
    ) -> Result<Link, BindError> {
        let config = server_config(server, shared.ca.root())?;
        let resets = resets::endpoint_config(&shared.ca.secret());
        let endpoint = std::net::UdpSocket::bind(listen)
            .and_then(|socket| {
                Endpoint::new(resets, Some(config), socket, Arc::new(quinn::TokioRuntime))
            })
            .map_err(|source| BindError::Listen { listen, source })?;
        Ok(Link { endpoint, shared })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Serves until the broker stops; then every agent is told and every task has ended.
    pub async fn run(self) {
        let tasks = TaskTracker::new();
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let enrollments = Arc::new(Semaphore::new(ENROLLMENTS_MAX));
        loop {
            let incoming = tokio::select! {
                () = self.shared.stopping.cancelled() => break,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            if self.endpoint.open_connections() >= CONNECTIONS_MAX {
                warn!(remote = %incoming.remote_address(), "refused: {CONNECTIONS_MAX} connections are open");
                incoming.refuse();
                continue;
            }
            let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            let pending = HANDSHAKES_MAX - handshakes.available_permits();
            if pending > HANDSHAKES_UNPROVEN_MAX && incoming.may_retry() {
                // Fails only for an address that has shown already that it exists.
                let _ = incoming.retry();
                continue;
            }
            let (shared, enrollments) = (Arc::clone(&self.shared), Arc::clone(&enrollments));
            tasks.spawn(serve(shared, incoming, permit, enrollments));
        }
        tasks.close();
        tasks.wait().await;
        self.endpoint.close(CLOSE_DONE, b"the broker is shutting down");
        self.endpoint.wait_idle().await;
    }
}

async fn serve(
    shared: Arc<Shared>,
    incoming: Incoming,
    handshake: OwnedSemaphorePermit,
    enrollments: Arc<Semaphore>,
) {
    let remote = incoming.remote_address();
    let connection = match incoming.accept() {
        Ok(connecting) => {
            let handshake = tokio::time::timeout(HANDSHAKE_MAX, connecting);
            match shared.stopping.run_until_cancelled(handshake).await {
                Some(ended) => ended,
                None => return,
            }
        }
        Err(error) => Ok(Err(error)),
    };
    drop(handshake);
    let connection = match connection {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return info!(%remote, %error, "a handshake failed"),
        Err(_) => return info!(%remote, "a handshake took longer than {HANDSHAKE_MAX:?}"),
    };
    match negotiated(&connection).as_deref() {
        Some(v1::ALPN_CONTROL) => control::serve(&shared, connection).await,
        Some(v1::ALPN_CONTROL_ENROLL) => enroll(&shared, connection, &enrollments).await,
        other => {
            connection.close(CLOSE_REFUSED, b"no such conversation");
            debug!(%remote, ?other, "an unknown ALPN");
        }
    }
}

async fn enroll(shared: &Shared, connection: Connection, enrollments: &Semaphore) {
    let remote = connection.remote_address();
    let Ok(_permit) = enrollments.try_acquire() else {
        connection.close(CLOSE_BUSY, b"too many enrollments at once, try again");
        return warn!(%remote, "refused: {ENROLLMENTS_MAX} enrollments are under way");
    };
    let enrollment = tokio::time::timeout(ENROLL_MAX, enroll::serve(shared, &connection));
    match shared.stopping.run_until_cancelled(enrollment).await {
        Some(Ok(Ok(()))) => connection.close(CLOSE_DONE, b""),
        Some(Ok(Err(error))) => {
            connection.close(CLOSE_REFUSED, error.to_string().as_bytes());
            info!(%remote, error = crate::chain(&error), "an enrollment broke off");
        }
        Some(Err(_)) => {
            connection.close(CLOSE_REFUSED, b"the enrollment took too long");
            info!(%remote, "an enrollment took longer than {ENROLL_MAX:?}");
        }
        None => connection.close(CLOSE_BUSY, b"the broker is restarting, try again"),
    }
}

fn negotiated(connection: &Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

/// The certificate that the agent showed, its chain verified; none is needed to enroll.
pub fn peer_certificate(connection: &Connection) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.into_iter().next()
}

fn server_config(
    server: &ServerIdentity,
    root: &CertificateDer<'static>,
) -> Result<quinn::ServerConfig, BindError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).map_err(BindError::Tls)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(server.key.serialize_der()));
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(BindError::Tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server.certificate.clone()], key)
        .map_err(BindError::Tls)?;
    tls.alpn_protocols = vec![v1::ALPN_CONTROL.to_vec(), v1::ALPN_CONTROL_ENROLL.to_vec()];
    // No resumption of any kind: every session shows its certificate anew.
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.max_early_data_size = 0;

    let crypto = QuicServerConfig::try_from(tls)
        .map_err(|error| BindError::Tls(rustls::Error::General(error.to_string())))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport()));
    config.max_incoming(HANDSHAKES_MAX);
    // First packets of connections that nobody has accepted yet; a ClientHello takes 1-2 KiB.
    config.incoming_buffer_size(16 * 1024);
    config.incoming_buffer_size_total(HANDSHAKES_MAX as u64 * 16 * 1024);
    Ok(config)
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .max_idle_timeout(Some(IDLE_MAX.try_into().expect("60 s fit a QUIC variable integer")));
    transport
}
