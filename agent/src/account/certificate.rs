//! The agent's own key and certificate for the control link: kept on disk, asked for at the broker.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use aws_config::BehaviorVersion;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials as _;
use outstation_protocol::Digest;
use outstation_protocol::evidence::{Audience, Purpose};
use outstation_protocol::ids::AgentId;
use outstation_protocol::v1::{self, Evidence, FromIssuer, ToIssuer};
use outstation_sts::StsEndpoint;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::dial::dial;
use super::shared::Shared;
use crate::frames::{FrameReader, write_frame};
use crate::trust::{files, sts_client};

/// The broker may take 10 s, of which STS has five.
const EXCHANGE_MAX: Duration = Duration::from_secs(12);
/// Instance metadata answers in milliseconds; the SDK tries several places.
const CREDENTIALS_MAX: Duration = Duration::from_secs(15);
const ENDED: &str = "the broker ended the conversation";

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

    pub fn is_valid(&self, now_unix_secs: u64) -> bool {
        (self.not_before_unix_secs..self.not_after_unix_secs).contains(&now_unix_secs)
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
/// The key is on disk before anybody hears of it: after a lost reply, a crash before the certificate
/// was written, or a certificate that has expired meanwhile, the same key gets one again.
/// An agent that renews shows the certificate that it has, so that a copy of an older one is noticed.
pub async fn enroll(shared: &Shared, present: Option<&Identity>) -> Result<Identity> {
    let state = &shared.config.state;
    let showing = Showing::of(shared).await?;
    let key = match std::fs::read_to_string(key_file(state)) {
        Ok(pem) => KeyPair::from_pem(&pem).context("read the agent's own key")?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = KeyPair::generate().context("make a key")?;
            files::create_new(&key_file(state), key.serialize_pem().as_bytes(), 0o600)
                .context("write the agent's own key")?;
            key
        }
        Err(error) => return Err(error).context("read the agent's own key"),
    };
    let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
    let connection = dial(shared, present, v1::ALPN_CONTROL_ENROLL).await?;
    let answer =
        tokio::time::timeout(EXCHANGE_MAX, request(shared, &connection, csr, showing)).await;
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

/// What shows the broker who is asking, as far as it is known before the challenge.
enum Showing {
    /// In places without AWS.
    JoinToken(String),
    Role(Credentials),
}

impl Showing {
    async fn of(shared: &Shared) -> Result<Showing> {
        let config = &shared.config;
        if let Some(file) = &config.broker.join_token_file {
            let token = std::fs::read_to_string(file)
                .with_context(|| format!("read the join token {}", file.display()))?;
            return Ok(Showing::JoinToken(token.trim().to_owned()));
        }
        // Anew each time: those of an instance's role live for hours.
        let region = aws_config::Region::new(config.region.to_string());
        let aws = aws_config::defaults(BehaviorVersion::latest()).region(region).load().await;
        let provider = aws.credentials_provider().context("find the role's credentials")?;
        let found = tokio::time::timeout(CREDENTIALS_MAX, provider.provide_credentials()).await;
        let credentials = found
            .context("the role's credentials did not come in time")?
            .context("get the role's credentials")?;
        Ok(Showing::Role(credentials))
    }

    fn evidence(self, shared: &Shared, challenge: &[u8; 32], csr: &[u8]) -> Result<Evidence> {
        let config = &shared.config;
        let data_plane = config.data_plane();
        let credentials = match self {
            Showing::JoinToken(token) => return Ok(Evidence::JoinToken { token, data_plane }),
            Showing::Role(credentials) => credentials,
        };
        let audience = Audience {
            purpose: Purpose::ControlLink,
            tenant: config.tenant.clone(),
            account: config.account.clone(),
            region: config.region.clone(),
        };
        let sts = StsEndpoint::choose(&config.region, config.aws.endpoint.as_deref())?;
        let now = shared.clock.unix_secs();
        let csr = Digest::of(csr);
        let proof = sts_client::prove(&credentials, sts.host(), &audience, challenge, &csr, now)?;
        Ok(Evidence::AccountSts { data_plane, proof })
    }
}

async fn request(
    shared: &Shared,
    connection: &quinn::Connection,
    csr: Vec<u8>,
    showing: Showing,
) -> Result<Vec<Vec<u8>>> {
    let (mut send, receive) = connection.open_bi().await?;
    let mut receive = FrameReader::new(receive);
    let release = env!("CARGO_PKG_VERSION").to_owned();
    write_frame(&mut send, &ToIssuer::Begin { release }).await?;
    let challenge = match receive.next::<FromIssuer>().await?.context(ENDED)? {
        FromIssuer::Challenge { nonce } => nonce,
        FromIssuer::Denied { reason, hint } => bail!("denied: {reason} ({hint})"),
        FromIssuer::Issued { .. } => bail!("the broker answered out of turn"),
    };
    let evidence = showing.evidence(shared, &challenge, &csr)?;
    write_frame(&mut send, &ToIssuer::Request { csr, evidence }).await?;
    match receive.next::<FromIssuer>().await?.context(ENDED)? {
        FromIssuer::Issued { chain, identity: _ } => Ok(chain),
        FromIssuer::Denied { reason, hint } => bail!("denied: {reason} ({hint})"),
        FromIssuer::Challenge { .. } => bail!("the broker answered out of turn"),
    }
}
