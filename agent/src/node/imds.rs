//! Instance metadata, version 2: a session token first, then plain GETs. What the instance is,
//! what AutoScaling is about to do with it, and its role's credentials.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant, UNIX_EPOCH};

use aws_credential_types::Credentials;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::TokioExecutor;
use outstation_protocol::ids::{IdError, InstanceId};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::clock;

/// The service is on the same machine; more than this is a failure.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Credentials, the largest answer, have some 2 KiB.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The longest that the service grants; renewed an hour before.
const TOKEN_SECS: u64 = 21_600;
const TOKEN_RENEW: Duration = Duration::from_secs(TOKEN_SECS - 3600);
/// AWS allows 50 tags.
const TAGS_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum ImdsError {
    #[error("instance metadata did not answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    #[error("instance metadata cannot be reached")]
    Unreachable(#[source] ClientError),
    #[error("the address of instance metadata is not one")]
    Address(#[source] http::Error),
    #[error("instance metadata answered {status} to {path}")]
    Status { status: StatusCode, path: String },
    #[error("instance metadata's answer to {path} cannot be read")]
    Body { path: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("instance metadata has no {path}")]
    Missing { path: String },
    #[error("the instance id is not one")]
    InstanceId(#[source] IdError),
    #[error("instance metadata's {what} is not what it should be: {found:?}")]
    Malformed { what: &'static str, found: String },
    #[error("the role's credentials are not the JSON that they should be")]
    Credentials(#[source] serde_json::Error),
}

pub struct Imds {
    endpoint: String,
    http: Client<HttpConnector, Empty<Bytes>>,
    token: Mutex<Option<(String, Instant)>>,
}

#[derive(Deserialize)]
struct RoleCredentials {
    #[serde(rename = "Code")]
    code: String,
    #[serde(rename = "AccessKeyId", default)]
    access_key_id: String,
    #[serde(rename = "SecretAccessKey", default)]
    secret_access_key: String,
    #[serde(rename = "Token", default)]
    token: String,
    #[serde(rename = "Expiration", default)]
    expiration: String,
}

impl Imds {
    /// `endpoint` is `http://169.254.169.254`, or what `AWS_EC2_METADATA_SERVICE_ENDPOINT` says.
    pub fn new(endpoint: &str) -> Imds {
        Imds {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            http: Client::builder(TokioExecutor::new()).build_http(),
            token: Mutex::new(None),
        }
    }

    pub async fn instance_id(&self) -> Result<InstanceId, ImdsError> {
        let raw = self.required("instance-id").await?;
        InstanceId::try_from(raw).map_err(ImdsError::InstanceId)
    }

    pub async fn local_ipv4(&self) -> Result<Ipv4Addr, ImdsError> {
        let raw = self.required("local-ipv4").await?;
        raw.parse().map_err(|_| ImdsError::Malformed { what: "local-ipv4", found: raw })
    }

    /// The instance's tags; empty when the launch template does not show them to the instance.
    pub async fn tags(&self) -> Result<BTreeMap<String, String>, ImdsError> {
        let Some(keys) = self.get("tags/instance").await? else { return Ok(BTreeMap::new()) };
        let mut tags = BTreeMap::new();
        for key in keys.lines().filter(|key| !key.is_empty()).take(TAGS_MAX) {
            // A tag may be taken away between the two answers.
            if let Some(value) = self.get(&format!("tags/instance/{key}")).await? {
                tags.insert(key.to_owned(), value);
            }
        }
        Ok(tags)
    }

    /// Where AutoScaling wants this instance to go; `Terminated` is the word to drain on. `None`
    /// outside an AutoScaling group.
    pub async fn target_lifecycle_state(&self) -> Result<Option<String>, ImdsError> {
        self.get("autoscaling/target-lifecycle-state").await
    }

    pub async fn credentials(&self) -> Result<Credentials, ImdsError> {
        const FOLDER: &str = "iam/security-credentials";
        let roles = self.required(FOLDER).await?;
        let role = roles.lines().next().unwrap_or_default();
        let json = self.required(&format!("{FOLDER}/{role}")).await?;
        let found: RoleCredentials = serde_json::from_str(&json).map_err(ImdsError::Credentials)?;
        if found.code != "Success" {
            return Err(ImdsError::Malformed { what: "credentials", found: found.code });
        }
        let expiration = iso_unix_secs(&found.expiration);
        Ok(Credentials::new(
            found.access_key_id,
            found.secret_access_key,
            Some(found.token),
            expiration.map(|secs| UNIX_EPOCH + Duration::from_secs(secs)),
            "instance-metadata",
        ))
    }

    async fn required(&self, path: &str) -> Result<String, ImdsError> {
        self.get(path).await?.ok_or_else(|| ImdsError::Missing { path: path.to_owned() })
    }

    /// The text below `/latest/meta-data/`; `None` where there is nothing (404).
    async fn get(&self, path: &str) -> Result<Option<String>, ImdsError> {
        let full = format!("/latest/meta-data/{path}");
        for first in [true, false] {
            let token = self.token().await?;
            let header = ("x-aws-ec2-metadata-token", token);
            let (status, text) = self.ask(Method::GET, &full, header).await?;
            match status {
                StatusCode::OK => return Ok(Some(text)),
                StatusCode::NOT_FOUND => return Ok(None),
                // The service has forgotten the token.
                StatusCode::UNAUTHORIZED if first => *self.token.lock().await = None,
                status => return Err(ImdsError::Status { status, path: full }),
            }
        }
        unreachable!("the second round returns")
    }

    async fn token(&self) -> Result<String, ImdsError> {
        let mut cached = self.token.lock().await;
        if let Some((token, since)) = &*cached
            && clock::now().duration_since(*since) < TOKEN_RENEW
        {
            return Ok(token.clone());
        }
        let path = "/latest/api/token";
        let header = ("x-aws-ec2-metadata-token-ttl-seconds", TOKEN_SECS.to_string());
        let (status, token) = self.ask(Method::PUT, path, header).await?;
        if status != StatusCode::OK {
            return Err(ImdsError::Status { status, path: path.to_owned() });
        }
        *cached = Some((token.clone(), clock::now()));
        Ok(token)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        (name, value): (&str, String),
    ) -> Result<(StatusCode, String), ImdsError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.endpoint))
            .header(name, value)
            .body(Empty::new())
            .map_err(ImdsError::Address)?;
        let unreadable = |source| ImdsError::Body { path: path.to_owned(), source };
        let exchange = async {
            let response = self.http.request(request).await.map_err(ImdsError::Unreachable)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let bytes = body.map_err(unreadable)?.to_bytes();
            let text = String::from_utf8(bytes.into()).map_err(|e| unreadable(e.into()))?;
            Ok((status, text))
        };
        tokio::time::timeout(REQUEST_TIMEOUT, exchange).await.unwrap_or(Err(ImdsError::Timeout))
    }
}

/// `2026-11-22T12:00:00Z` as seconds since 1970.
fn iso_unix_secs(raw: &str) -> Option<u64> {
    outstation_protocol::evidence::parse_amz_date(&raw.replace(['-', ':'], ""))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::trust::testing::StubHttp;

    /// Answers as the real service does. Forgets its first token halfway.
    async fn stub() -> StubHttp {
        let (mut tokens, mut forgotten) = (0, false);
        StubHttp::start(move |request| {
            let request = request.to_lowercase();
            let path = request.split(' ').nth(1).unwrap_or_default();
            let known = request.contains(&format!("x-aws-ec2-metadata-token: t{tokens}\r\n"));
            let body = match path.strip_prefix("/latest/").unwrap_or_default() {
                "api/token" if request.starts_with("put ") => {
                    tokens += 1;
                    return ("200 OK", format!("t{tokens}"));
                }
                _ if !known => return ("401 Unauthorized", String::new()),
                "meta-data/instance-id" if !forgotten => {
                    forgotten = true;
                    return ("401 Unauthorized", String::new());
                }
                "meta-data/instance-id" => "i-0123456789abcdef0",
                "meta-data/local-ipv4" => "127.83.0.11",
                "meta-data/tags/instance" => "outstation:group\noutstation:tenant",
                "meta-data/tags/instance/outstation:group" => "delay",
                "meta-data/tags/instance/outstation:tenant" => "dev",
                "meta-data/iam/security-credentials" => "node-role",
                "meta-data/iam/security-credentials/node-role" => {
                    r#"{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"ASIAX",
                    "SecretAccessKey":"s","Token":"t","Expiration":"2026-11-22T12:00:00Z"}"#
                }
                _ => return ("404 Not Found", "<html></html>".to_owned()),
            };
            ("200 OK", body.to_owned())
        })
        .await
    }

    #[tokio::test]
    async fn everything_that_a_node_asks() {
        let stub = stub().await;
        let tokens = || stub.asked().iter().filter(|request| request.starts_with("PUT")).count();
        let imds = Imds::new(&format!("{}/", stub.url));
        assert_eq!(imds.local_ipv4().await.expect("there").to_string(), "127.83.0.11");
        let tags = imds.tags().await.expect("there");
        assert_eq!(tags.get("outstation:group").map(String::as_str), Some("delay"));
        assert_eq!(tags.len(), 2);
        assert_eq!(imds.target_lifecycle_state().await.expect("answered"), None);
        let credentials = imds.credentials().await.expect("there");
        assert_eq!(credentials.session_token(), Some("t"));
        let expiry = credentials.expiry().expect("it has one");
        assert_eq!(expiry, UNIX_EPOCH + Duration::from_secs(1_795_348_800));
        assert_eq!(tokens(), 1, "one token serves all");
        // The stub forgets the token here: a new one is fetched, and the answer comes.
        assert_eq!(imds.instance_id().await.expect("there").as_str(), "i-0123456789abcdef0");
        assert_eq!(tokens(), 2);
    }

    #[tokio::test]
    async fn nobody_there_is_an_error_that_says_so() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        drop(listener);
        let error = Imds::new(&format!("http://{address}")).instance_id().await;
        assert!(matches!(error, Err(ImdsError::Unreachable(_))), "{error:?}");
    }
}
