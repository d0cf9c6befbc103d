//! The control link: dials the broker, enrolls when it has no certificate, and drives the session
//! machine. Whatever happens here, the account goes on without it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use outstation_protocol::ids::AgentId;
use outstation_protocol::session::{
    AgentConfig, AgentOutput, AgentSession, Answers, Report, Reports, Verdict,
};
use outstation_protocol::v1::{
    self, Evidence, FromIssuer, Hello, Refusal, RefusalRule, SetEntry, ToAgent, ToIssuer,
};
use outstation_protocol::{DataPlane, Envelope};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, KeyPair};
use rustls::client::Resumption;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::judge::judge;
use super::shared::{Shared, lock};
use crate::clock;
use crate::frames::{FrameReader, write_frame};
use crate::trust::{files, tls};

const DIAL_MAX: Duration = Duration::from_secs(10);
const WRITE_MAX: Duration = Duration::from_secs(10);
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A session that lasted so long was a good one: the next dial starts without a history.
const GOOD_SESSION: Duration = Duration::from_secs(60);
/// An order that the account store could not take is asked for again after this.
const STORE_RETRY: Duration = Duration::from_secs(10);
/// AWS forgets a UDP flow after 30 s in one direction.
const KEEP_ALIVE: Duration = Duration::from_secs(22);
const IDLE_MAX: Duration = Duration::from_secs(60);
const WINDOW_BYTES: u32 = 512 * 1024;

pub struct Control {
    shared: Arc<Shared>,
    /// What this agent stands by; outlives sessions.
    reports: Reports,
    /// The broker answered and turned us away: perhaps it does not know our certificate any more.
    turned_away: bool,
}

/// How a session ended.
struct Ended {
    reason: String,
    retry_after: Option<Duration>,
}

impl Control {
    pub fn new(shared: Arc<Shared>) -> Control {
        let reports = refusals_kept(&shared.config.state);
        Control { shared, reports, turned_away: false }
    }

    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut attempts: u32 = 0;
        loop {
            let started = clock::now();
            let ended = tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.connect() => ended,
            };
            self.shared.link_live.send_replace(false);
            if clock::now() - started >= GOOD_SESSION {
                attempts = 0;
            }
            attempts = attempts.saturating_add(1);
            let (reason, retry_after) = match ended {
                Ok(ended) => (ended.reason, ended.retry_after),
                Err(error) => (format!("{error:#}"), None),
            };
            // Full jitter, also after a clean end: a fleet must not come back in step.
            let ceiling = RETRY_MIN.saturating_mul(1 << attempts.min(10)).min(RETRY_MAX);
            let pause = retry_after.unwrap_or_default() + ceiling.mul_f64(rand::random());
            tracing::warn!(
                reason,
                attempts,
                pause_ms = pause.as_millis() as u64,
                "no control link; the account goes on without it"
            );
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn connect(&mut self) -> Result<Ended> {
        let identity = self.identity().await?;
        let connection = dial(&self.shared, Some(&identity), v1::ALPN_CONTROL).await?;
        // Until the broker's welcome says otherwise.
        self.turned_away = true;
        let ended = self.session(&connection, identity.agent).await;
        connection.close(0u8.into(), b"");
        ended
    }

    /// The certificate on disk while it is good; else a new one, for the same key. A broker that is
    /// away or refuses costs nothing as long as the present certificate lives.
    async fn identity(&mut self) -> Result<Identity> {
        let present = Identity::load(&self.shared.config.state)?;
        let renew = std::mem::take(&mut self.turned_away);
        match present {
            Some(identity) if !renew && !identity.is_past_half_life(clock::unix_secs()) => {
                Ok(identity)
            }
            Some(identity) => match enroll(&self.shared).await {
                Ok(renewed) => Ok(renewed),
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        until_unix_secs = identity.not_after_unix_secs,
                        "no new certificate; the present one is used on"
                    );
                    Ok(identity)
                }
            },
            None => enroll(&self.shared).await.context("enroll at the broker"),
        }
    }

    async fn session(&mut self, connection: &quinn::Connection, agent: AgentId) -> Result<Ended> {
        let (mut send, receive) = connection.open_bi().await.context("open the session")?;
        let mut receive = FrameReader::new(receive);
        let mut session = self.begin(agent);
        let mut answers = self.shared.answers.subscribe();
        answers.mark_changed();
        let mut store_retry = None;
        loop {
            while let Some(output) = session.poll_output(clock::now()) {
                match output {
                    AgentOutput::Send(message) => {
                        tokio::time::timeout(WRITE_MAX, write_frame(&mut send, &message))
                            .await
                            .context("the broker does not read")??;
                    }
                    AgentOutput::Judge { entry, envelope } => {
                        let verdict = self.judge_and_write_down(&entry, &envelope);
                        if failed_at_the_store(&verdict) {
                            store_retry = Some(tokio::time::Instant::now() + STORE_RETRY);
                        }
                        session.handle_verdict(entry, verdict);
                        self.reports = session.reports().clone();
                        self.keep_refusals();
                    }
                    AgentOutput::Live => {
                        tracing::info!(broker = %connection.remote_address(), "control link live");
                        self.turned_away = false;
                        self.shared.link_live.send_replace(true);
                        self.shared.look.notify_one();
                    }
                    AgentOutput::Close { reason, retry_after } => {
                        return Ok(Ended { reason, retry_after });
                    }
                }
            }
            let timeout = tokio::time::Instant::from_std(session.next_timeout());
            tokio::select! {
                message = receive.next::<ToAgent>() => match message? {
                    Some(message) => session.handle_message(message, clock::now()),
                    None => bail!("the broker ended the session"),
                },
                _ = answers.changed() => {
                    for (group, answers) in answers.borrow_and_update().iter() {
                        for answer in answers {
                            let (group, answer) = (group.clone(), answer.clone());
                            session.handle_report(Report { group, answer });
                        }
                    }
                }
                () = tokio::time::sleep_until(store_retry.unwrap_or(timeout)),
                    if store_retry.is_some() =>
                {
                    store_retry = None;
                    session.retry_after_store_failure();
                }
                () = tokio::time::sleep_until(timeout) => session.handle_timeout(clock::now()),
            }
            self.reports = session.reports().clone();
        }
    }

    fn begin(&mut self, agent: AgentId) -> AgentSession {
        let accepted = lock(&self.shared.ledger)
            .accepted()
            .iter()
            .map(|(group, accepted)| (group.clone(), (accepted.order.generation, accepted.digest)))
            .collect::<std::collections::BTreeMap<_, _>>();
        for (group, head) in &accepted {
            self.reports.entry(group.clone()).or_default().accepted = Some(*head);
        }
        let hello = Hello {
            versions: vec![v1::VERSION],
            features: Vec::new(),
            agent,
            data_plane: self.shared.identity.data_plane.clone(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
        };
        AgentSession::new(
            hello,
            accepted,
            self.reports.clone(),
            AgentConfig::default(),
            clock::now(),
        )
    }

    /// A refusal is final for its generation, also after a restart.
    fn keep_refusals(&self) {
        let refused: Reports = self
            .reports
            .iter()
            .filter(|(_, answers)| answers.refused.is_some())
            .map(|(group, answers)| {
                let refused = answers.refused.clone();
                (group.clone(), Answers { refused, ..Answers::default() })
            })
            .collect();
        let path = refusals_file(&self.shared.config.state);
        let json = serde_json::to_vec(&refused).expect("maps of plain values always serialize");
        if let Err(error) = files::replace(&path, &json, 0o600) {
            tracing::warn!(%error, path = %path.display(), "the refusals were not written down");
        }
    }

    /// *Accepted* is said only of what is on disk.
    fn judge_and_write_down(&self, entry: &SetEntry, envelope: &Envelope) -> Verdict {
        let guardrails = self.shared.refresh_guardrails();
        let mut ledger = lock(&self.shared.ledger);
        let (group, generation) = (&entry.group, entry.generation);
        let judged = judge(
            entry,
            envelope,
            &self.shared.identity,
            ledger.accepted(),
            &guardrails,
            clock::unix_secs(),
        );
        let refused = match judged {
            Ok(order) => match ledger.accept(order, envelope) {
                Ok(()) => None,
                Err(error) => Some(Refusal {
                    rule: RefusalRule::AccountStore,
                    message: format!("{:#}", anyhow!(error)),
                    hint: "look at state/ of the account store; the agent tries again".to_owned(),
                }),
            },
            Err(refusal) => Some(refusal),
        };
        drop(ledger);
        match refused {
            None => {
                tracing::info!(%group, %generation, digest = %entry.digest, "accepted");
                self.shared.changed.send_modify(|count| *count += 1);
                self.shared.look.notify_one();
                Verdict::Accepted
            }
            Some(refusal) => {
                tracing::warn!(%group, %generation, rule = ?refusal.rule, reason = %refusal.message,
                    "refused");
                Verdict::Refused(refusal)
            }
        }
    }
}

fn failed_at_the_store(verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Refused(refusal) => refusal.rule == RefusalRule::AccountStore,
        Verdict::Accepted => false,
    }
}

/// The agent's own key and certificate for the control link.
struct Identity {
    agent: AgentId,
    key: PrivateKeyDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    not_before_unix_secs: u64,
    not_after_unix_secs: u64,
}

fn refusals_file(state: &Path) -> PathBuf {
    state.join("refused.json")
}

fn refusals_kept(state: &Path) -> Reports {
    std::fs::read(refusals_file(state))
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok())
        .unwrap_or_default()
}

fn key_file(state: &Path) -> PathBuf {
    state.join("control.key")
}

fn chain_file(state: &Path) -> PathBuf {
    state.join("control.pem")
}

impl Identity {
    fn load(state: &Path) -> Result<Option<Identity>> {
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

    fn is_past_half_life(&self, now_unix_secs: u64) -> bool {
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
async fn enroll(shared: &Shared) -> Result<Identity> {
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

async fn dial(
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
