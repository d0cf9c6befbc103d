//! TLS of the node link: 1.3 only, one provider, no tickets, no 0-RTT. Two conversations share
//! one listener, told apart by ALPN: enrollment (no client certificate yet) and the session.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outstation_protocol::v1::{ALPN_NODE, ALPN_NODE_ENROLL};
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::ca::{CaError, DataPlaneCa};
use super::enroll::NodeIdentity;
use super::spiffe::{NodeCertificate, SpiffeError};
use crate::clock;
use crate::store::{AccountStore, OBJECT_BYTES_MAX, StoreError};

/// A server certificate lives a day and is replaced at half of it, without a restart.
const SERVER_CERTIFICATE: Duration = Duration::from_secs(86_400);
/// Inside a VPC nothing drops UDP flows sooner than 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(8);
const IDLE_MAX: Duration = Duration::from_secs(25);
/// Frames are ≤ 256 KiB, and one is in flight per direction.
const WINDOW_BYTES: u32 = 512 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the TLS configuration does not hold together")]
    Rustls(#[source] rustls::Error),
    #[error("the client certificate verifier cannot be built")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    #[error("a server certificate cannot be issued")]
    Issue(#[source] CaError),
    #[error("the root certificates in {folder} cannot be read")]
    Roots { folder: String, source: StoreError },
    #[error("{file} is not a PEM certificate")]
    NotPem { file: String },
    #[error("{folder} holds no root certificate yet")]
    NoRoots { folder: String },
}

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Every `*.pem` of `<store>/trust/`: what nodes and callers trust, and nothing else.
pub fn load_roots(store: &AccountStore) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let folder = store.name("trust");
    let failed = |source| TlsError::Roots { folder: folder.clone(), source };
    let mut roots = Vec::new();
    for name in store.names("trust", None).map_err(failed)? {
        if !name.ends_with(".pem") {
            continue;
        }
        let key = format!("trust/{name}");
        let not_pem = || TlsError::NotPem { file: store.name(&key) };
        let found = store.get(&key, OBJECT_BYTES_MAX).map_err(failed)?;
        let pem = found.map(|found| found.bytes).unwrap_or_default();
        roots.push(CertificateDer::from_pem_slice(&pem).map_err(|_| not_pem())?);
    }
    if roots.is_empty() {
        return Err(TlsError::NoRoots { folder });
    }
    Ok(roots)
}

fn root_store(roots: &[CertificateDer<'static>]) -> Result<rustls::RootCertStore, TlsError> {
    let mut store = rustls::RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(TlsError::Rustls)?;
    }
    Ok(store)
}

/// The account agent's server certificate, issued anew at half its life.
struct RenewingServerKey {
    ca: Arc<DataPlaneCa>,
    current: Mutex<(Arc<CertifiedKey>, u64)>,
}

impl RenewingServerKey {
    fn new(ca: Arc<DataPlaneCa>) -> Result<RenewingServerKey, TlsError> {
        let current = Mutex::new(issue(&ca)?);
        Ok(RenewingServerKey { ca, current })
    }
}

/// The key, and when to replace it.
fn issue(ca: &DataPlaneCa) -> Result<(Arc<CertifiedKey>, u64), TlsError> {
    let now = clock::unix_secs();
    let identity = ca.issue_server(SERVER_CERTIFICATE, now).map_err(TlsError::Issue)?;
    let key = CertifiedKey::from_der(identity.chain, identity.key, &provider())
        .map_err(TlsError::Rustls)?;
    Ok((Arc::new(key), now + SERVER_CERTIFICATE.as_secs() / 2))
}

impl std::fmt::Debug for RenewingServerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RenewingServerKey(..)")
    }
}

impl ResolvesServerCert for RenewingServerKey {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if clock::unix_secs() >= current.1 {
            match issue(&self.ca) {
                Ok(renewed) => *current = renewed,
                // The present one is good for another half of its life.
                Err(e) => tracing::warn!(error = %e, "the server certificate was not renewed"),
            }
        }
        Some(current.0.clone())
    }
}

/// The listener of the node link, for [`ALPN_NODE`] and [`ALPN_NODE_ENROLL`].
pub fn node_link_server(ca: Arc<DataPlaneCa>) -> Result<quinn::ServerConfig, TlsError> {
    let roots = root_store(std::slice::from_ref(ca.root()))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(TlsError::Verifier)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Rustls)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(RenewingServerKey::new(ca)?));
    tls.alpn_protocols = vec![ALPN_NODE.to_vec(), ALPN_NODE_ENROLL.to_vec()];
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.max_early_data_size = 0;
    let quic = QuicServerConfig::try_from(tls).expect("TLS 1.3 with QUIC's cipher suite");
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(quic));
    config.migration(false).transport_config(transport());
    Ok(config)
}

/// A node's way to the account agent; without an identity only enrollment is open to it.
pub fn node_link_client(
    roots: &[CertificateDer<'static>],
    identity: Option<&NodeIdentity>,
) -> Result<quinn::ClientConfig, TlsError> {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Rustls)?
        .with_root_certificates(root_store(roots)?);
    let mut tls = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let key = PrivateKeyDer::Pkcs8(identity.key.clone_key());
            let chain = identity.chain.clone();
            builder.with_client_auth_cert(chain, key).map_err(TlsError::Rustls)?
        }
    };
    let alpn = if identity.is_some() { ALPN_NODE } else { ALPN_NODE_ENROLL };
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.resumption = Resumption::disabled();
    tls.enable_early_data = false;
    let quic = QuicClientConfig::try_from(tls).expect("TLS 1.3 with QUIC's cipher suite");
    let mut config = quinn::ClientConfig::new(Arc::new(quic));
    config.transport_config(transport());
    Ok(config)
}

fn transport() -> Arc<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_idle_timeout(Some(IDLE_MAX.try_into().expect("25 s is a QUIC duration")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        // One conversation, one stream.
        .max_concurrent_bidi_streams(1u8.into())
        .max_concurrent_uni_streams(0u8.into())
        .receive_window(WINDOW_BYTES.into())
        .stream_receive_window(WINDOW_BYTES.into())
        .send_window(u64::from(WINDOW_BYTES))
        .datagram_receive_buffer_size(None);
    Arc::new(transport)
}

/// Who is at the other end of an accepted connection.
#[derive(Debug)]
pub enum Peer {
    /// Wants a certificate; nothing is known of it.
    Enrolling { from: SocketAddr },
    /// Holds a certificate of this account's CA.
    Node { certificate: NodeCertificate, from: SocketAddr },
}

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("a session was opened without a client certificate")]
    NoCertificate,
    #[error("the client certificate is not a node's")]
    NotANode(#[source] SpiffeError),
    #[error("the connection speaks neither conversation of the node link")]
    Alpn,
}

pub fn peer(connection: &quinn::Connection) -> Result<Peer, PeerError> {
    let from = connection.remote_address();
    let data = connection.handshake_data().and_then(|d| d.downcast::<HandshakeData>().ok());
    match data.and_then(|d| d.protocol).as_deref() {
        Some(ALPN_NODE_ENROLL) => Ok(Peer::Enrolling { from }),
        Some(ALPN_NODE) => {
            let chain = connection
                .peer_identity()
                .and_then(|i| i.downcast::<Vec<CertificateDer<'static>>>().ok())
                .ok_or(PeerError::NoCertificate)?;
            let leaf = chain.first().ok_or(PeerError::NoCertificate)?;
            let certificate = NodeCertificate::from_der(leaf).map_err(PeerError::NotANode)?;
            Ok(Peer::Node { certificate, from })
        }
        Some(_) | None => Err(PeerError::Alpn),
    }
}
