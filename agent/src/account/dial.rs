//! Dials the broker: QUIC, TLS 1.3, the broker's root pinned.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::certificate::Identity;
use super::shared::Shared;
use crate::trust::tls;

pub const DIAL_MAX: Duration = Duration::from_secs(10);
/// AWS forgets a UDP flow after 30 s in one direction.
const KEEP_ALIVE: Duration = Duration::from_secs(22);
const IDLE_MAX: Duration = Duration::from_secs(60);
const WINDOW_BYTES: u32 = 512 * 1024;

pub async fn dial(
    shared: &Shared,
    identity: Option<&Identity>,
    alpn: &[u8],
) -> Result<quinn::Connection> {
    let broker = &shared.config.broker;
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(&broker.root)
        .with_context(|| format!("read the broker's root {}", broker.root.display()))?
    {
        roots.add(root?)?;
    }
    ensure!(!roots.is_empty(), "{} holds no certificate", broker.root.display());
    let builder = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut tls = match identity {
        Some(identity) => {
            builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?
        }
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.resumption = Resumption::disabled();
    let mut transport = quinn::TransportConfig::default();
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IDLE_MAX.try_into()?))
        .max_concurrent_bidi_streams(0u8.into())
        .max_concurrent_uni_streams(0u8.into())
        .receive_window(WINDOW_BYTES.into())
        .stream_receive_window(WINDOW_BYTES.into());
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport));

    let address: SocketAddr = tokio::net::lookup_host(&broker.address)
        .await
        .with_context(|| format!("resolve {}", broker.address))?
        .next()
        .with_context(|| format!("{} has no address", broker.address))?;
    let unspecified = match address {
        SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0u16; 8], 0)),
    };
    let endpoint = quinn::Endpoint::client(unspecified).context("open a UDP socket")?;
    let connecting = endpoint.connect_with(config, address, &broker.server_name)?;
    tokio::time::timeout(DIAL_MAX, connecting)
        .await
        .with_context(|| format!("the broker at {address} does not answer (UDP)"))?
        .with_context(|| format!("connect to the broker at {address} (UDP)"))
}
