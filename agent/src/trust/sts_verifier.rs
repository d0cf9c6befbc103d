//! The verifier's side of STS evidence: rebuilds the request, asks STS, judges the answer. Only
//! here can an [`Attested`] be made.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::TokioExecutor;
use outstation_protocol::evidence::answer::{ANSWER_BYTES_MAX, partition_of};
use outstation_protocol::evidence::{
    self, AnswerError, Audience, CallerIdentity, ExpectedCaller, ProofError, RebuiltRequest,
    StsProof,
};
use outstation_protocol::ids::{Digest, Region};
use tokio::sync::Semaphore;

/// STS answers within some 100 ms; a caller that waits longer would better ask again.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// A whole group that boots at once passes in a few rounds; STS itself allows hundreds a second.
const CALLS_MAX: usize = 16;

/// Where STS is known to answer. A proof's region selects nothing outside this list.
const REGIONS: [&str; 34] = [
    "af-south-1",
    "ap-east-1",
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-northeast-3",
    "ap-south-1",
    "ap-south-2",
    "ap-southeast-1",
    "ap-southeast-2",
    "ap-southeast-3",
    "ap-southeast-4",
    "ap-southeast-5",
    "ap-southeast-7",
    "ca-central-1",
    "ca-west-1",
    "cn-north-1",
    "cn-northwest-1",
    "eu-central-1",
    "eu-central-2",
    "eu-north-1",
    "eu-south-1",
    "eu-south-2",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "il-central-1",
    "me-central-1",
    "me-south-1",
    "sa-east-1",
    "us-east-1",
    "us-east-2",
    "us-gov-west-1",
    "us-west-1",
    "us-west-2",
];

/// The STS that is asked; both ends derive the signed `host` from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StsEndpoint {
    scheme: &'static str,
    host: String,
}

#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("{0} is not a region whose STS is known")]
    UnknownRegion(Region),
    #[error("{0:?} is not an STS endpoint of the form http://host:port")]
    NotAnUrl(String),
    #[error("the system's root certificates cannot be loaded")]
    Roots(#[source] std::io::Error),
}

impl StsEndpoint {
    pub fn of_region(region: &Region) -> Result<StsEndpoint, EndpointError> {
        if !REGIONS.contains(&region.as_str()) {
            return Err(EndpointError::UnknownRegion(region.clone()));
        }
        let suffix = if partition_of(region) == "aws-cn" { ".cn" } else { "" };
        Ok(StsEndpoint { scheme: "https", host: format!("sts.{region}.amazonaws.com{suffix}") })
    }

    /// The simulated AWS's, where the configuration names it; plain HTTP, hence never AWS's own.
    pub fn configured(url: &str) -> Result<StsEndpoint, EndpointError> {
        let bad = || EndpointError::NotAnUrl(url.to_owned());
        let uri: http::Uri = url.parse().map_err(|_| bad())?;
        let authority = uri.authority().ok_or_else(bad)?.as_str();
        let plain = uri.scheme_str() == Some("http")
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
            && !authority.contains('@');
        if !plain {
            return Err(bad());
        }
        Ok(StsEndpoint { scheme: "http", host: authority.to_owned() })
    }

    /// The configured one if there is one, the region's otherwise.
    pub fn choose(region: &Region, url: Option<&str>) -> Result<StsEndpoint, EndpointError> {
        url.map_or_else(|| StsEndpoint::of_region(region), StsEndpoint::configured)
    }

    /// What the `host` header says.
    pub fn host(&self) -> &str {
        &self.host
    }
}

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

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Proof(#[from] ProofError),
    #[error("STS did not answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    #[error("STS cannot be reached")]
    Unreachable(#[source] ClientError),
    #[error("STS's answer cannot be received")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the rebuilt request is not HTTP")]
    Request(#[source] http::Error),
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

enum Http {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

pub struct StsVerifier {
    endpoint: StsEndpoint,
    http: Http,
    audience: Audience,
    expected: ExpectedCaller,
    calls: Semaphore,
}

impl StsVerifier {
    pub fn new(
        endpoint: StsEndpoint,
        audience: Audience,
        expected: ExpectedCaller,
    ) -> Result<StsVerifier, EndpointError> {
        // Neither of these clients follows redirects or reads proxy settings.
        let http = if endpoint.scheme == "https" {
            let connector = hyper_rustls::HttpsConnectorBuilder::new()
                .with_provider_and_native_roots(super::tls::provider())
                .map_err(EndpointError::Roots)?
                .https_only()
                .enable_http1()
                .build();
            Http::Tls(Client::builder(TokioExecutor::new()).build(connector))
        } else {
            Http::Plain(Client::builder(TokioExecutor::new()).build_http())
        };
        let calls = Semaphore::new(CALLS_MAX);
        Ok(StsVerifier { endpoint, http, audience, expected, calls })
    }

    pub fn audience(&self) -> &Audience {
        &self.audience
    }

    /// Consumes the challenge: whatever comes of this proof, there is no second one for it.
    pub async fn verify(
        &self,
        proof: &StsProof,
        challenge: Challenge,
        csr: &Digest,
        now_unix_secs: u64,
    ) -> Result<Attested, VerifyError> {
        let request = evidence::rebuild(
            proof,
            self.endpoint.host(),
            &self.audience,
            challenge.bytes(),
            csr,
            now_unix_secs,
        )?;
        let caller = tokio::time::timeout(CALL_TIMEOUT, self.ask(request))
            .await
            .map_err(|_| VerifyError::Timeout)??;
        Ok(Attested { caller, audience: self.audience.clone(), csr: *csr })
    }

    async fn ask(&self, rebuilt: RebuiltRequest) -> Result<CallerIdentity, VerifyError> {
        let _turn = self.calls.acquire().await.expect("the semaphore is never closed");
        let mut request = http::Request::builder()
            .method(evidence::METHOD)
            .uri(format!("{}://{}{}", self.endpoint.scheme, rebuilt.host, rebuilt.path));
        for (name, value) in &rebuilt.headers {
            let mut value =
                http::HeaderValue::try_from(value).map_err(|e| VerifyError::Request(e.into()))?;
            value.set_sensitive(true);
            request = request.header(*name, value);
        }
        let request = request
            .body(Full::new(Bytes::from_static(rebuilt.body.as_bytes())))
            .map_err(VerifyError::Request)?;
        let response = match &self.http {
            Http::Plain(client) => client.request(request).await,
            Http::Tls(client) => client.request(request).await,
        };
        let (head, body) = response.map_err(VerifyError::Unreachable)?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(VerifyError::Body)?.to_bytes();
        let content_type =
            head.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        Ok(evidence::judge_response(head.status.as_u16(), content_type, &body, &self.expected)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_come_from_the_list_or_the_configuration() {
        let region = |raw: &str| Region::try_from(raw).expect("valid");
        for (raw, host) in [
            ("eu-central-1", Some("sts.eu-central-1.amazonaws.com")),
            ("cn-north-1", Some("sts.cn-north-1.amazonaws.com.cn")),
            ("evil-example-1", None),
        ] {
            let endpoint = StsEndpoint::of_region(&region(raw)).ok();
            assert_eq!(endpoint.as_ref().map(StsEndpoint::host), host, "{raw}");
        }
        for (url, host) in [
            ("http://127.0.0.1:20100", Some("127.0.0.1:20100")),
            ("http://127.0.0.1:20100/", Some("127.0.0.1:20100")),
            ("https://evil.example", None),
            ("http://user@evil.example", None),
            ("http://evil.example/path", None),
            ("http://evil.example/?query", None),
            ("127.0.0.1:20100", None),
        ] {
            let endpoint = StsEndpoint::configured(url).ok();
            assert_eq!(endpoint.as_ref().map(StsEndpoint::host), host, "{url}");
        }
    }
}
