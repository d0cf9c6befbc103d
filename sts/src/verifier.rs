//! The verifier: rebuilds the request, asks STS, has the answer judged. Only here can an
//! [`Attested`] be made.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::TokioExecutor;
use outstation_protocol::evidence::answer::ANSWER_BYTES_MAX;
use outstation_protocol::evidence::{
    self, AnswerError, Audience, CallerIdentity, ExpectedCaller, ProofError, RebuiltRequest,
    StsProof,
};
use outstation_protocol::ids::{Digest, Region};
use tokio::sync::{OnceCell, Semaphore};

use crate::endpoint::{EndpointError, StsEndpoint};
use crate::pace::{Limits, Pace, Wait};

/// STS answers within some 100 ms; a caller that waits longer would better ask again.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// A whole group that boots at once passes in a few rounds; STS itself allows hundreds a second.
const CALLS_MAX: usize = 16;

/// A challenge is for one proof on one connection: it can be neither copied nor kept.
pub struct Challenge([u8; 32]);

impl Challenge {
    pub fn issue() -> Challenge {
        Challenge(rand::random())
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// STS has said who signed over this CSR, for this audience, on this connection.
#[derive(Debug, Clone)]
pub struct Attested {
    caller: CallerIdentity,
    audience: Audience,
    csr: Digest,
}

impl Attested {
    pub fn caller(&self) -> &CallerIdentity {
        &self.caller
    }

    pub fn audience(&self) -> &Audience {
        &self.audience
    }

    /// The digest of the only CSR that this attests.
    pub fn csr(&self) -> &Digest {
        &self.csr
    }
}

/// What a proof is held against. Audience and caller are the verifier's own word.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// Where the proof came from.
    pub source: IpAddr,
    pub audience: &'a Audience,
    pub expected: &'a ExpectedCaller,
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Proof(#[from] ProofError),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("too many proofs from this address, or for this account; again in {secs} s")]
    TooOften { secs: u64 },
    #[error("STS did not answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    #[error("the system's root certificates cannot be loaded, without which STS is not believed")]
    Roots(#[source] std::io::Error),
    #[error("STS cannot be reached")]
    Unreachable(#[source] ClientError),
    #[error(
        "STS's answer cannot be received: it breaks off, or has more than {ANSWER_BYTES_MAX} bytes"
    )]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the rebuilt request is not HTTP")]
    Request(#[source] http::Error),
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

/// Neither of these clients follows redirects or reads proxy settings.
type Plain = Client<HttpConnector, Full<Bytes>>;
type Tls = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

pub struct StsVerifier {
    /// Instead of each region's own.
    configured: Option<StsEndpoint>,
    plain: Plain,
    /// Made when it is first needed: whoever is told of another STS needs no root certificates.
    tls: OnceCell<Tls>,
    pace: Mutex<Pace>,
    calls: Semaphore,
}

impl StsVerifier {
    pub fn new(configured: Option<StsEndpoint>, limits: Limits) -> StsVerifier {
        StsVerifier {
            configured,
            plain: Client::builder(TokioExecutor::new()).build_http(),
            tls: OnceCell::new(),
            pace: Mutex::new(Pace::new(limits)),
            calls: Semaphore::new(CALLS_MAX),
        }
    }

    /// The STS that speaks for this region.
    fn endpoint(&self, region: &Region) -> Result<StsEndpoint, EndpointError> {
        self.configured.clone().map_or_else(|| StsEndpoint::of_region(region), Ok)
    }

    /// Consumes the challenge: whatever comes of this proof, there is no second one for it.
    pub async fn verify(
        &self,
        claim: Claim<'_>,
        proof: &StsProof,
        challenge: Challenge,
        csr: &Digest,
        now_unix_secs: u64,
    ) -> Result<Attested, VerifyError> {
        let Claim { source, audience, expected } = claim;
        let endpoint = self.endpoint(&audience.region)?;
        let host = endpoint.host();
        let request =
            evidence::rebuild(proof, host, audience, challenge.bytes(), csr, now_unix_secs)?;
        // Only what STS would be asked about counts.
        self.take_turn(source, audience)?;
        let caller = tokio::time::timeout(CALL_TIMEOUT, self.ask(&endpoint, request, expected))
            .await
            .map_err(|_| VerifyError::Timeout)??;
        Ok(Attested { caller, audience: audience.clone(), csr: *csr })
    }

    fn take_turn(&self, source: IpAddr, audience: &Audience) -> Result<(), VerifyError> {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.take(source, &audience.to_string(), Instant::now())
            .map_err(|Wait(wait)| VerifyError::TooOften { secs: wait.as_secs() + 1 })
    }

    async fn ask(
        &self,
        endpoint: &StsEndpoint,
        rebuilt: RebuiltRequest,
        expected: &ExpectedCaller,
    ) -> Result<CallerIdentity, VerifyError> {
        let _turn = self.calls.acquire().await.expect("the semaphore is never closed");
        let mut request =
            http::Request::builder().method(evidence::METHOD).uri(endpoint.url(rebuilt.path));
        for (name, value) in &rebuilt.headers {
            let mut value =
                http::HeaderValue::try_from(value).map_err(|e| VerifyError::Request(e.into()))?;
            value.set_sensitive(true);
            request = request.header(*name, value);
        }
        let request = request
            .body(Full::new(Bytes::from_static(rebuilt.body.as_bytes())))
            .map_err(VerifyError::Request)?;
        let response = if endpoint.is_tls() {
            self.tls.get_or_try_init(async || tls()).await?.request(request).await
        } else {
            self.plain.request(request).await
        };
        let (head, body) = response.map_err(VerifyError::Unreachable)?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(VerifyError::Body)?.to_bytes();
        let content_type =
            head.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        Ok(evidence::judge_response(head.status.as_u16(), content_type, &body, expected)?)
    }
}

fn tls() -> Result<Tls, VerifyError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(provider)
        .map_err(VerifyError::Roots)?
        .https_only()
        .enable_http1()
        .build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}
