//! GetCallerIdentity proofs of which every part can be another one, made with a signer of their own, and the conversation in
//! which they are shown.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use outstation_aws_sim::wire::sigv4::Claim;
use outstation_broker::frames::{FrameReader, FrameWriter};
use outstation_protocol::evidence::{self, Audience, Purpose, StsProof};
use outstation_protocol::v1::{self, Evidence, FromIssuer, Hello, ToAgent, ToBroker, ToIssuer};
use outstation_protocol::{AgentId, DataPlane, Digest};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::sts::{self, REGION};

/// What is signed.
#[derive(Debug, Clone)]
pub struct Signing {
    pub audience: String,
    pub challenge: String,
    pub csr: String,
    pub host: String,
    pub method: &'static str,
    pub target: String,
    pub body: String,
    pub content_type: String,
    /// Beside those that every proof has.
    pub more: Vec<(&'static str, String)>,
    /// Of the usual ones; left out of the signature.
    pub unsigned: &'static str,
    pub scope_region: &'static str,
    pub scope_service: &'static str,
    /// Of the scope; the day of `at` unless given.
    pub scope_date: Option<&'static str>,
    pub at: OffsetDateTime,
}

impl Signing {
    pub fn honest(account: &str, host: &str, challenge: &[u8; 32], csr: &[u8]) -> Result<Signing> {
        let audience = audience(account)?;
        Ok(Signing {
            audience: audience.to_string(),
            challenge: hex::encode(challenge),
            csr: Digest::of(csr).hex(),
            host: host.to_owned(),
            method: evidence::METHOD,
            target: evidence::PATH.to_owned(),
            body: evidence::BODY.to_owned(),
            content_type: evidence::CONTENT_TYPE.to_owned(),
            more: Vec::new(),
            unsigned: "",
            scope_region: REGION,
            scope_service: "sts",
            scope_date: None,
            at: OffsetDateTime::now_utc(),
        })
    }

    pub fn prove(&self, session: &sts::Session) -> Result<StsProof> {
        let timestamp =
            self.at.format(format_description!("[year][month][day]T[hour][minute][second]Z"))?;
        let mut headers: Vec<(&str, &str)> = vec![
            ("content-type", &self.content_type),
            ("host", &self.host),
            ("x-amz-date", &timestamp),
            ("x-amz-security-token", &session.token),
            ("x-outstation-audience", &self.audience),
            ("x-outstation-challenge", &self.challenge),
            ("x-outstation-csr-sha256", &self.csr),
        ];
        headers.extend(self.more.iter().map(|(name, value)| (*name, value.as_str())));
        let mut request = http::Request::builder().method(self.method).uri(&self.target);
        for (name, value) in &headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Bytes::from(self.body.clone()))?;
        let mut signed_headers: Vec<String> = headers
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .filter(|name| *name != self.unsigned)
            .collect();
        signed_headers.sort();
        signed_headers.dedup();
        let claim = Claim {
            key: session.key.clone().into(),
            date: self.scope_date.unwrap_or(&timestamp[..8]).to_owned(),
            region: self.scope_region.to_owned(),
            service: self.scope_service.to_owned(),
            signed_headers,
            signature: Vec::new(),
            signed_at: self.at,
            timestamp: timestamp.clone(),
        };
        Ok(StsProof {
            region: REGION.to_owned(),
            access_key_id: session.key.clone(),
            session_token: session.token.clone(),
            amz_date: timestamp,
            signature: hex::encode(claim.signature_for(&request, &session.secret)),
        })
    }
}

pub fn audience(account: &str) -> Result<Audience> {
    Ok(Audience {
        purpose: Purpose::ControlLink,
        tenant: "dev".try_into()?,
        account: account.try_into()?,
        region: REGION.try_into()?,
    })
}

pub fn data_plane(account: &str) -> Result<DataPlane> {
    Ok(DataPlane { account: account.try_into()?, region: REGION.try_into()? })
}

/// What is sent.
#[derive(Debug, Clone)]
pub struct Sent {
    pub csr: Vec<u8>,
    pub evidence: Evidence,
}

impl Sent {
    pub fn proof(&mut self) -> &mut StsProof {
        match &mut self.evidence {
            Evidence::AccountSts { proof, .. } => proof,
            other => panic!("{other:?} is no proof"),
        }
    }
}

pub fn csr(key: &KeyPair) -> Result<Vec<u8>> {
    Ok(CertificateParams::default().serialize_request(key)?.der().to_vec())
}

/// A key and a certificate for it.
pub struct Held {
    pub key: KeyPair,
    pub chain: Vec<CertificateDer<'static>>,
    pub identity: String,
}

impl Held {
    pub fn id(&self) -> Result<AgentId> {
        Ok(AgentId::try_from(self.identity.rsplit('/').next().unwrap_or_default())?)
    }

    /// A session with this certificate.
    pub async fn session(&self, link: SocketAddr, root: &Path) -> Result<Session> {
        let here = Ipv4Addr::LOCALHOST;
        let connection = dial(here, link, root, v1::ALPN_CONTROL, Some(self)).await?;
        let (send, receive) = connection.open_bi().await?;
        let (mut reader, mut writer) = (FrameReader::new(receive), FrameWriter::new(send));
        let hello = ToBroker::Hello(Hello {
            versions: vec![v1::VERSION],
            features: Vec::new(),
            agent: self.id()?,
            data_plane: data_plane(sts::ACCOUNT)?,
            release: "test".into(),
        });
        writer.send(&hello).await?;
        let first = tokio::time::timeout(Duration::from_secs(30), reader.next::<ToAgent>());
        let first = first.await??.context("an answer")?;
        Ok(Session { first, connection, _reader: reader, _writer: writer })
    }
}

/// Open for as long as it is held; reads nothing after the first that it was told.
pub struct Session {
    pub first: ToAgent,
    pub connection: quinn::Connection,
    _reader: FrameReader<quinn::RecvStream>,
    _writer: FrameWriter<quinn::SendStream>,
}

async fn dial(
    source: Ipv4Addr,
    link: SocketAddr,
    root: &Path,
    alpn: &[u8],
    held: Option<&Held>,
) -> Result<quinn::Connection> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(root)?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut tls = match held {
        Some(held) => {
            let key = PrivatePkcs8KeyDer::from(held.key.serialize_der()).into();
            tls.with_client_auth_cert(held.chain.clone(), key)?
        }
        None => tls.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let endpoint = quinn::Endpoint::client(SocketAddr::from((source, 0)))?;
    let connecting = endpoint.connect_with(config, link, "broker.outstation")?;
    Ok(tokio::time::timeout(Duration::from_secs(30), connecting).await??)
}

/// A conversation with the broker that has come to its challenge. Each comes from an address of its own.
pub struct Conversation {
    pub challenge: [u8; 32],
    connection: quinn::Connection,
    reader: FrameReader<quinn::RecvStream>,
    writer: FrameWriter<quinn::SendStream>,
}

static SOURCES: AtomicU16 = AtomicU16::new(1);

impl Conversation {
    pub async fn begin(link: SocketAddr, root: &Path) -> Result<Conversation> {
        let [high, low] = SOURCES.fetch_add(1, Ordering::SeqCst).to_be_bytes();
        Conversation::begin_from(Ipv4Addr::new(127, 1, high, low), link, root).await
    }

    /// An agent that renews.
    pub async fn renew(link: SocketAddr, root: &Path, present: &Held) -> Result<Conversation> {
        let source = Ipv4Addr::new(127, 1, 255, 1);
        let connection = dial(source, link, root, v1::ALPN_CONTROL_ENROLL, Some(present)).await?;
        Conversation::over(connection).await
    }

    pub async fn begin_from(
        source: Ipv4Addr,
        link: SocketAddr,
        root: &Path,
    ) -> Result<Conversation> {
        let connection = dial(source, link, root, v1::ALPN_CONTROL_ENROLL, None).await?;
        Conversation::over(connection).await
    }

    async fn over(connection: quinn::Connection) -> Result<Conversation> {
        let (send, receive) = connection.open_bi().await?;
        let (mut reader, mut writer) = (FrameReader::new(receive), FrameWriter::new(send));
        writer.send(&ToIssuer::Begin { release: "test".into() }).await?;
        match reader.next().await?.context("a challenge")? {
            FromIssuer::Challenge { nonce } => {
                Ok(Conversation { challenge: nonce, connection, reader, writer })
            }
            other => bail!("{other:?} instead of a challenge"),
        }
    }

    pub async fn show(&mut self, sent: Sent) -> Result<()> {
        let Sent { csr, evidence } = sent;
        Ok(self.writer.send(&ToIssuer::Request { csr, evidence }).await?)
    }

    pub async fn answer(&mut self) -> Result<FromIssuer> {
        let answer = tokio::time::timeout(Duration::from_secs(30), self.reader.next()).await?;
        answer?.context("the broker ended the conversation")
    }

    pub fn close(self) {
        self.connection.close(0u8.into(), b"");
    }
}
