//! The agent's own key and certificate for the control link: kept on disk, asked for at the broker.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use outstation_protocol::DataPlane;
use outstation_protocol::ids::AgentId;
use outstation_protocol::v1::{self, Evidence, FromIssuer, ToIssuer};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::dial::{DIAL_MAX, dial};
use super::shared::Shared;
use crate::frames::{FrameReader, write_frame};
use crate::trust::files;

/// The agent's own key and certificate for the control link.
pub struct Identity {
    pub agent: AgentId,
    pub key: PrivateKeyDer<'static>,
    pub chain: Vec<CertificateDer<'static>>,
    not_before_unix_secs: u64,
    pub not_after_unix_secs: u64,
}
fn key_file(state: &Path) -> PathBuf {
    state.join("control.key")
}

fn chain_file(state: &Path) -> PathBuf {
    state.join("control.pem")
}

impl Identity {
    pub fn load(state: &Path) -> Result<Option<Identity>> {
        let path = chain_file(state);
        if !path.exists() {
            return Ok(None);
        }
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&path)
            .and_then(Iterator::collect)
            .with_context(|| format!("read the certificate {}", path.display()))?;
        let key = PrivateKeyDer::from_pem_file(key_file(state))
            .with_context(|| format!("read the key {}", key_file(state).display()))?;
        let leaf = chain.first().with_context(|| format!("{} is empty", path.display()))?;
        let (_, certificate) =
            X509Certificate::from_der(leaf).map_err(|_| anyhow!("not an X.509 certificate"))?;
        let agent = agent_id(&certificate)?;
        let validity = certificate.validity();
        let unix_secs = |timestamp: i64| u64::try_from(timestamp).unwrap_or(0);
        let not_before_unix_secs = unix_secs(validity.not_before.timestamp());
        let not_after_unix_secs = unix_secs(validity.not_after.timestamp());
        Ok(Some(Identity { agent, key, chain, not_before_unix_secs, not_after_unix_secs }))
    }

    pub fn is_past_half_life(&self, now_unix_secs: u64) -> bool {
        now_unix_secs >= self.not_before_unix_secs.midpoint(self.not_after_unix_secs)
    }
}

/// The last part of the certificate's `spiffe://…/agent/<id>`.
fn agent_id(certificate: &X509Certificate<'_>) -> Result<AgentId> {
    let names = certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .context("the certificate has no alternative name")?;
    let uri = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let id = uri
        .and_then(|uri| uri.rsplit_once("/agent/"))
        .map(|(_, id)| id)
        .context("the certificate names no agent")?;
    Ok(AgentId::try_from(id)?)
}
/// The key is on disk before anybody hears of it: after a lost reply the same token and key get a
/// certificate again.
pub async fn enroll(shared: &Shared) -> Result<Identity> {
    let state = &shared.config.state;
    let token_file = shared
        .config
        .broker
        .join_token_file
        .as_ref()
        .context("this agent has no certificate and no join_token_file is configured")?;
    let token = std::fs::read_to_string(token_file)
        .with_context(|| format!("read the join token {}", token_file.display()))?;
    let key = match std::fs::read_to_string(key_file(state)) {
        Ok(pem) => KeyPair::from_pem(&pem).context("read the agent's own key")?,
        Err(_) => {
            let key = KeyPair::generate().context("make a key")?;
            files::create_new(&key_file(state), key.serialize_pem().as_bytes(), 0o600)
                .context("write the agent's own key")?;
            key
        }
    };
    let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
    let connection = dial(shared, None, v1::ALPN_CONTROL_ENROLL).await?;
    let data_plane = shared.identity.data_plane.clone();
    let answer =
        tokio::time::timeout(DIAL_MAX, request(&connection, csr, token.trim(), data_plane)).await;
    connection.close(0u8.into(), b"");
    let chain = answer.context("the broker did not answer in time")??;

    let pem: String = chain
        .iter()
        .map(|der| {
            let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
            let lines: Vec<&str> =
                (0..body.len()).step_by(64).map(|at| &body[at..body.len().min(at + 64)]).collect();
            let body = lines.join("\n");
            format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
        })
        .collect();
    files::replace(&chain_file(state), pem.as_bytes(), 0o600).context("write the certificate")?;
    let identity = Identity::load(state)?.context("the certificate was just written")?;
    tracing::info!(agent = %identity.agent, "enrolled at the broker");
    Ok(identity)
}

async fn request(
    connection: &quinn::Connection,
    csr: Vec<u8>,
    token: &str,
    data_plane: DataPlane,
) -> Result<Vec<Vec<u8>>> {
    let (mut send, receive) = connection.open_bi().await?;
    let mut receive = FrameReader::new(receive);
    let release = env!("CARGO_PKG_VERSION").to_owned();
    write_frame(&mut send, &ToIssuer::Begin { release }).await?;
    match receive.next::<FromIssuer>().await?.context("the broker ended the conversation")? {
        FromIssuer::Challenge { nonce: _ } => {}
        FromIssuer::Denied { reason, hint } => bail!("denied: {reason} ({hint})"),
        FromIssuer::Issued { .. } => bail!("the broker answered out of turn"),
    }
    let evidence = Evidence::JoinToken { token: token.to_owned(), data_plane };
    write_frame(&mut send, &ToIssuer::Request { csr, evidence }).await?;
    match receive.next::<FromIssuer>().await?.context("the broker ended the conversation")? {
        FromIssuer::Issued { chain, identity: _ } => Ok(chain),
        FromIssuer::Denied { reason, hint } => bail!("denied: {reason} ({hint})"),
        FromIssuer::Challenge { .. } => bail!("the broker answered out of turn"),
    }
}
