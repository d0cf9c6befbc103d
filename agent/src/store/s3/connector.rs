//! What `object_store` is given: the HTTP and TLS stack of this workspace, and the credentials of the SDK's provider chain.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as Plain;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::aws::AwsCredential;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use object_store::{ClientOptions, CredentialProvider};
use tokio::sync::Mutex;

use super::failure::{self, Failure};
use crate::clock;

/// A page of a listing has some 500 KiB; pieces of artifacts are read by the part.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// S3's own have some 300 bytes.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// S3 closes idle connections after some 20 s.
const IDLE_MAX: Duration = Duration::from_secs(15);

/// As the environment has it: profile, role of the instance, keys.
pub async fn sdk(
    region: Option<String>,
    credentials: Option<SharedCredentialsProvider>,
) -> SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest());
    if let Some(credentials) = credentials {
        loader = loader.credentials_provider(credentials);
    }
    if let Some(region) = region {
        loader = loader.region(aws_config::Region::new(region));
    }
    loader.load().await
}

#[derive(Clone)]
pub struct Http(Client<HttpsConnector<Plain>, HttpRequestBody>);

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http(..)")
    }
}

impl Http {
    /// Plain HTTP is for an endpoint that the environment names; AWS's own are HTTPS.
    pub fn new() -> std::io::Result<Http> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut plain = Plain::new();
        plain.set_connect_timeout(Some(CONNECT_MAX));
        plain.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(provider)?
            .https_or_http()
            .enable_http1()
            .wrap_connector(plain);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            // Whether a request was carried out is for the caller to ask.
            .retry_canceled_requests(false)
            .build(connector);
        Ok(Http(client))
    }
}

impl HttpConnector for Http {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Http {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let failed = |failure| HttpError::new(HttpErrorKind::Unknown, failure);
        let broken =
            |error: &(dyn Error + 'static)| failed(Failure::Unreachable(failure::whole(error)));
        let answer = self.0.request(request).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(answer.map(|body| {
                let bounded = Limited::new(body, ANSWER_BYTES_MAX);
                let told = |error: Box<dyn Error + Send + Sync>| {
                    HttpError::new(
                        HttpErrorKind::Unknown,
                        Failure::Unreachable(failure::whole(&*error)),
                    )
                };
                HttpResponseBody::new(bounded.map_err(told))
            }));
        }
        // What S3 says with it is lost further up.
        let body = Limited::new(answer.into_body(), REFUSAL_BYTES_MAX).collect().await;
        let body = body.map_err(|error| broken(&*error))?.to_bytes();
        Err(failed(Failure::of_answer(status.as_u16(), &String::from_utf8_lossy(&body))))
    }
}

/// Asked for with each request, and of the provider only when they are to be renewed.
#[derive(Debug)]
pub struct Credentials {
    provider: Option<SharedCredentialsProvider>,
    /// With when they are renewed, and when they end.
    known: Mutex<Option<Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    credential: Arc<AwsCredential>,
    renew_at_unix_secs: u64,
    ends_at_unix_secs: u64,
}

/// Before their end. Those of an instance are renewed some hours earlier than they end.
const RENEW_BEFORE_SECS: u64 = 300;
/// Those that do not say when they end, as in a file that somebody may change.
const ENDLESS_SECS: u64 = 900;

impl Credentials {
    pub fn of(sdk: &SdkConfig) -> Credentials {
        Credentials { provider: sdk.credentials_provider(), known: Mutex::default() }
    }

    async fn renewed(&self, now_unix_secs: u64) -> Result<Known, Failure> {
        let none = || Failure::Denied("no AWS credentials are configured".to_owned());
        let provider = self.provider.as_ref().ok_or_else(none)?;
        let found = provider.provide_credentials().await.map_err(|error| {
            Failure::Denied(format!("no AWS credentials: {}", failure::whole(&error)))
        })?;
        let ends = found.expiry().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let ends_at_unix_secs =
            ends.map_or(now_unix_secs + ENDLESS_SECS + RENEW_BEFORE_SECS, |ends| ends.as_secs());
        Ok(Known {
            credential: Arc::new(AwsCredential {
                key_id: found.access_key_id().to_owned(),
                secret_key: found.secret_access_key().to_owned(),
                token: found.session_token().map(str::to_owned),
            }),
            renew_at_unix_secs: ends_at_unix_secs.saturating_sub(RENEW_BEFORE_SECS),
            ends_at_unix_secs,
        })
    }
}

#[async_trait]
impl CredentialProvider for Credentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let now = clock::unix_secs();
        let mut known = self.known.lock().await;
        if let Some(known) = known.as_ref().filter(|known| now < known.renew_at_unix_secs) {
            return Ok(known.credential.clone());
        }
        match (self.renewed(now).await, known.as_ref()) {
            (Ok(renewed), _) => {
                let credential = renewed.credential.clone();
                *known = Some(renewed);
                Ok(credential)
            }
            (Err(_), Some(known)) if now < known.ends_at_unix_secs => Ok(known.credential.clone()),
            (Err(why), _) => {
                Err(object_store::Error::Generic { store: "S3", source: Box::new(why) })
            }
        }
    }
}
