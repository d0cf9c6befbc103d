//! Enrollment over the node link, both sides: `Begin` → `Challenge` → `Request` → `Issued`. A
//! node's certificate rests on two things: what STS says of the caller, and what the account
//! agent itself knows of the instance. Neither alone is enough. A lost reply costs nothing: the
//! node asks again, with a new key.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_credential_types::Credentials;
use outstation_protocol::evidence::{Audience, ExpectedCaller};
use outstation_protocol::ids::{GroupName, IdError, InstanceId};
use outstation_protocol::v1::{Evidence, FromIssuer, ToIssuer};
use outstation_sts::{Challenge, Claim, StsEndpoint, StsVerifier, VerifyError};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::ca::{Csr, CsrError, DataPlaneCa, IssueError};
use super::spiffe::{NodeCertificate, NodeId, SpiffeError};
use super::sts_client::{self, ProofError};
use crate::clock;
use crate::frames::{FrameIoError, FrameReader, write_frame};

/// Covers one call to STS (5 s) and one look at AutoScaling on the issuer's side.
const EXCHANGE_MAX: Duration = Duration::from_secs(15);
/// How long the issuer waits for the client to have read the last word.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// A node's key and certificate. Made in place, kept in memory only: a node that restarts
/// enrolls again.
pub struct NodeIdentity {
    pub key: PrivatePkcs8KeyDer<'static>,
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    pub id: NodeId,
    pub not_after_unix_secs: u64,
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeIdentity({}, until {})", self.id, self.not_after_unix_secs)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error("the account agent denied enrollment: {reason}")]
    Denied { reason: String, hint: String },
    #[error("enrollment was not answered within {} s", EXCHANGE_MAX.as_secs())]
    Timeout,
    #[error("the connection was lost")]
    Connection(#[source] quinn::ConnectionError),
    #[error(transparent)]
    Frame(#[from] FrameIoError),
    #[error("the account agent ended the conversation early")]
    Ended,
    #[error("the account agent answered out of turn")]
    OutOfTurn,
    #[error("the key or its certificate request cannot be made")]
    Key(#[source] rcgen::Error),
    #[error(transparent)]
    Proof(#[from] ProofError),
    #[error("the certificate issued cannot be used")]
    Certificate(#[source] SpiffeError),
    #[error("the certificate issued is for {issued}, not for this instance")]
    OtherIdentity { issued: NodeId },
}

/// Who asks, and for what.
pub struct Applicant<'a> {
    pub credentials: &'a Credentials,
    pub audience: &'a Audience,
    pub sts: &'a StsEndpoint,
    pub instance: &'a InstanceId,
    pub release: &'a str,
}

/// The node's side, over a connection of [`super::tls::node_link_client`] without identity.
pub async fn enroll(
    connection: &quinn::Connection,
    applicant: &Applicant<'_>,
) -> Result<NodeIdentity, EnrollError> {
    let exchanged = tokio::time::timeout(EXCHANGE_MAX, exchange(connection, applicant)).await;
    connection.close(0u8.into(), b"");
    exchanged.map_err(|_| EnrollError::Timeout)?
}

async fn exchange(
    connection: &quinn::Connection,
    applicant: &Applicant<'_>,
) -> Result<NodeIdentity, EnrollError> {
    let (mut send, receive) = connection.open_bi().await.map_err(EnrollError::Connection)?;
    let mut receive = FrameReader::new(receive);
    let begin = ToIssuer::Begin { release: applicant.release.to_owned() };
    write_frame(&mut send, &begin).await?;
    let challenge = match receive.next::<FromIssuer>().await?.ok_or(EnrollError::Ended)? {
        FromIssuer::Challenge { nonce } => nonce,
        FromIssuer::Denied { reason, hint } => return Err(EnrollError::Denied { reason, hint }),
        FromIssuer::Issued { .. } => return Err(EnrollError::OutOfTurn),
    };

    let key = KeyPair::generate().map_err(EnrollError::Key)?;
    let csr = CertificateParams::default().serialize_request(&key).map_err(EnrollError::Key)?;
    let csr = csr.der().to_vec();
    let proof = sts_client::prove(
        applicant.credentials,
        applicant.sts.host(),
        applicant.audience,
        &challenge,
        &outstation_protocol::Digest::of(&csr),
        clock::unix_secs(),
    )?;
    write_frame(&mut send, &ToIssuer::Request { csr, evidence: Evidence::Sts(proof) }).await?;

    let chain = match receive.next::<FromIssuer>().await?.ok_or(EnrollError::Ended)? {
        FromIssuer::Issued { chain, identity: _ } => chain,
        FromIssuer::Denied { reason, hint } => return Err(EnrollError::Denied { reason, hint }),
        FromIssuer::Challenge { .. } => return Err(EnrollError::OutOfTurn),
    };
    let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
    let leaf = chain.first().ok_or(EnrollError::OutOfTurn)?;
    let NodeCertificate { id, not_after_unix_secs } =
        NodeCertificate::from_der(leaf).map_err(EnrollError::Certificate)?;
    let ours = id.instance == *applicant.instance
        && id.tenant == applicant.audience.tenant
        && id.account == applicant.audience.account;
    if !ours {
        return Err(EnrollError::OtherIdentity { issued: id });
    }
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    Ok(NodeIdentity { key, chain, id, not_after_unix_secs })
}

/// Why the account agent issued nothing.
#[derive(Debug, thiserror::Error)]
pub enum Denial {
    #[error("the conversation broke off")]
    Frame(#[from] FrameIoError),
    #[error("the connection was lost")]
    Connection(#[source] quinn::ConnectionError),
    #[error("the node did not finish within {} s", EXCHANGE_MAX.as_secs())]
    Timeout,
    #[error("the node ended the conversation early")]
    Ended,
    #[error("the node spoke out of turn")]
    OutOfTurn,
    #[error("a node shows STS evidence, not a join token")]
    JoinToken,
    #[error("a node shows its own STS evidence, not an account agent's")]
    AccountAgent,
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error(transparent)]
    Evidence(#[from] VerifyError),
    #[error("the caller's session is not named after an instance")]
    NotAnInstance(#[source] IdError),
    #[error("instance {instance} at {address} is in no server group of this account agent")]
    UnknownInstance { instance: InstanceId, address: IpAddr },
    #[error(transparent)]
    Issue(#[from] IssueError),
}

impl Denial {
    /// What the person who reads the node's log can do.
    fn hint(&self) -> &'static str {
        match self {
            Denial::Evidence(VerifyError::TooOften { .. }) => "the node tries again by itself",
            Denial::Evidence(VerifyError::Timeout | VerifyError::Unreachable(_)) => {
                "the account agent must reach the region's STS endpoint; the node tries again"
            }
            Denial::Evidence(VerifyError::Proof(_)) => {
                "check the node's clock, its account and region, and its instance role"
            }
            Denial::Evidence(_) => {
                "check that the instance profile's role is the one registered for nodes"
            }
            Denial::UnknownInstance { .. } => {
                "an instance is known as soon as its AutoScaling group lists it; the node tries again"
            }
            Denial::NotAnInstance(_) => "nodes enroll with the credentials of their instance role",
            Denial::Frame(_)
            | Denial::Connection(_)
            | Denial::Timeout
            | Denial::Ended
            | Denial::OutOfTurn
            | Denial::JoinToken
            | Denial::AccountAgent
            | Denial::Csr(_)
            | Denial::Issue(_) => "the node tries again; if it goes on, compare both releases",
        }
    }
}

/// The account agent's side.
pub struct Enroller {
    ca: Arc<DataPlaneCa>,
    verifier: StsVerifier,
    audience: Audience,
    expected: ExpectedCaller,
}

impl Enroller {
    pub fn new(
        ca: Arc<DataPlaneCa>,
        verifier: StsVerifier,
        audience: Audience,
        expected: ExpectedCaller,
    ) -> Enroller {
        Enroller { ca, verifier, audience, expected }
    }

    /// Answers one connection of [`outstation_protocol::v1::ALPN_NODE_ENROLL`]. `own_view` is
    /// what the account agent itself knows: the group that this instance is in, if it is in one
    /// and has this address. It is asked only after STS has spoken for the instance.
    pub async fn answer<V, F>(
        &self,
        connection: &quinn::Connection,
        own_view: V,
    ) -> Result<NodeId, Denial>
    where
        V: FnOnce(InstanceId, IpAddr) -> F,
        F: Future<Output = Option<GroupName>>,
    {
        let answered =
            tokio::time::timeout(EXCHANGE_MAX, self.converse(connection, own_view)).await;
        let outcome = answered.unwrap_or(Err(Denial::Timeout));
        // The client closes when it has read the answer.
        let _ = tokio::time::timeout(LINGER_MAX, connection.closed()).await;
        connection.close(0u8.into(), b"");
        outcome
    }

    async fn converse<V, F>(
        &self,
        connection: &quinn::Connection,
        own_view: V,
    ) -> Result<NodeId, Denial>
    where
        V: FnOnce(InstanceId, IpAddr) -> F,
        F: Future<Output = Option<GroupName>>,
    {
        let (mut send, receive) = connection.accept_bi().await.map_err(Denial::Connection)?;
        let mut receive = FrameReader::new(receive);
        match receive.next::<ToIssuer>().await?.ok_or(Denial::Ended)? {
            ToIssuer::Begin { release: _ } => {}
            ToIssuer::Request { .. } => return Err(Denial::OutOfTurn),
        }
        let challenge = Challenge::issue();
        write_frame(&mut send, &FromIssuer::Challenge { nonce: *challenge.bytes() }).await?;
        let (csr, evidence) = match receive.next::<ToIssuer>().await?.ok_or(Denial::Ended)? {
            ToIssuer::Request { csr, evidence } => (csr, evidence),
            ToIssuer::Begin { .. } => return Err(Denial::OutOfTurn),
        };

        let address = connection.remote_address().ip().to_canonical();
        let judged = self.judge(&csr, evidence, challenge, address, own_view).await;
        let reply = match &judged {
            Ok((id, leaf)) => {
                FromIssuer::Issued { chain: vec![leaf.to_vec()], identity: id.to_string() }
            }
            Err(denial) => {
                FromIssuer::Denied { reason: denial.to_string(), hint: denial.hint().to_owned() }
            }
        };
        write_frame(&mut send, &reply).await?;
        let _ = send.finish();
        judged.map(|(id, _)| id)
    }

    async fn judge<V, F>(
        &self,
        csr: &[u8],
        evidence: Evidence,
        challenge: Challenge,
        address: IpAddr,
        own_view: V,
    ) -> Result<(NodeId, CertificateDer<'static>), Denial>
    where
        V: FnOnce(InstanceId, IpAddr) -> F,
        F: Future<Output = Option<GroupName>>,
    {
        let proof = match evidence {
            Evidence::Sts(proof) => proof,
            Evidence::JoinToken { .. } => return Err(Denial::JoinToken),
            Evidence::AccountSts { .. } => return Err(Denial::AccountAgent),
        };
        let csr = Csr::from_der(csr)?;
        let now = clock::unix_secs();
        let claim = Claim { source: address, audience: &self.audience, expected: &self.expected };
        let attested = self.verifier.verify(claim, &proof, challenge, csr.digest(), now).await?;
        let session = attested.caller().session.as_str();
        let instance = InstanceId::try_from(session).map_err(Denial::NotAnInstance)?;
        let group = own_view(instance.clone(), address)
            .await
            .ok_or_else(|| Denial::UnknownInstance { instance: instance.clone(), address })?;
        Ok(self.ca.issue_node(&attested, &instance, &group, &csr, clock::unix_secs())?)
    }
}

#[cfg(test)]
#[path = "enroll_tests.rs"]
mod tests;
