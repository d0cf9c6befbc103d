//! The instance metadata service, version 2 only, as a pure function: facts and a request in, a response out.
//! Source: EC2 user guide, "Use the Instance Metadata Service to access instance metadata".

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hmac::{Hmac, Mac};
use http::{HeaderMap, Method, Response};
use serde_json::json;
use sha2::Sha256;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::model::InstanceFacts;
use crate::wire::query::decode;

/// The port of every simulated IMDS, on its instance's own address.
pub const PORT: u16 = 1338;

const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "x-aws-ec2-metadata-token";
/// Six hours, the longest that IMDS accepts.
const TTL_SECS_MAX: i64 = 21600;

/// One instance's metadata. Tokens are stateless (expiry and a MAC), so however many are asked for, nothing grows.
#[derive(Debug, Clone)]
pub struct Imds {
    pub facts: InstanceFacts,
    pub user_data: String,
    token_key: [u8; 32],
}

impl Imds {
    pub fn new(facts: InstanceFacts, user_data: String, token_key: [u8; 32]) -> Self {
        Imds { facts, user_data, token_key }
    }

    pub fn handle(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        now: OffsetDateTime,
    ) -> Response<Bytes> {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if path == "/latest/api/token" {
            return match (
                method,
                header("x-forwarded-for"),
                header(TTL).and_then(|raw| raw.parse().ok()),
            ) {
                (&Method::PUT, None, Some(ttl)) if (1..=TTL_SECS_MAX).contains(&ttl) => {
                    self.issue(ttl, now)
                }
                // Asked through a proxy: refused, as the real one does.
                (&Method::PUT, Some(_), _) => answer(403, "Forbidden"),
                (&Method::PUT, None, _) => answer(400, "Bad Request"),
                _ => answer(405, "Method Not Allowed"),
            };
        }
        if !header(TOKEN).is_some_and(|token| self.accepts(token, now)) {
            return answer(401, "Unauthorized");
        }
        if method != Method::GET && method != Method::HEAD {
            return answer(405, "Method Not Allowed");
        }
        match self.read(&decode(path)) {
            Some(body) => answer(200, body),
            None => answer(404, "Not Found"),
        }
    }

    fn issue(&self, ttl: i64, now: OffsetDateTime) -> Response<Bytes> {
        let expires = (now.unix_timestamp() + ttl).to_be_bytes();
        let mac = self.mac(&expires).finalize().into_bytes();
        let token = URL_SAFE_NO_PAD.encode([expires.as_slice(), mac.as_slice()].concat());
        let mut response = answer(200, token);
        response.headers_mut().insert(TTL, ttl.into());
        response
    }

    fn accepts(&self, token: &str, now: OffsetDateTime) -> bool {
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(token) else {
            return false;
        };
        let Some((expires, mac)) = bytes.split_first_chunk::<8>() else {
            return false;
        };
        self.mac(expires).verify_slice(mac).is_ok()
            && i64::from_be_bytes(*expires) > now.unix_timestamp()
    }

    fn mac(&self, expires: &[u8; 8]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.token_key).expect("HMAC takes keys of any length");
        mac.update(expires);
        mac
    }

    /// A document (a slash behind it does no harm; botocore asks for the zone so), or the listing of what is below a path.
    fn read(&self, path: &str) -> Option<String> {
        let path = path.strip_prefix("/latest/")?;
        let documents = self.documents();
        if let Some(body) = documents.get(path.trim_end_matches('/')) {
            return Some(body.clone());
        }
        let directory = match path.trim_end_matches('/') {
            "" => String::new(),
            path => format!("{path}/"),
        };
        let mut names: Vec<String> = documents
            .range(directory.clone()..)
            .map_while(|(document, _)| document.strip_prefix(directory.as_str()))
            .map(|rest| {
                rest.split_once('/').map_or(rest.to_owned(), |(first, _)| format!("{first}/"))
            })
            .collect();
        names.dedup();
        (!names.is_empty()).then(|| names.join("\n"))
    }

    /// Everything there is below `/latest/`.
    fn documents(&self) -> BTreeMap<String, String> {
        let facts = &self.facts;
        let mut documents: BTreeMap<String, String> = [
            ("meta-data/ami-id", facts.image_id.clone()),
            ("meta-data/autoscaling/target-lifecycle-state", facts.target_lifecycle_state.clone()),
            ("meta-data/instance-id", facts.instance_id.to_string()),
            ("meta-data/instance-type", facts.instance_type.clone()),
            ("meta-data/local-ipv4", facts.address.to_string()),
            ("meta-data/placement/availability-zone", facts.zone.clone()),
            ("meta-data/placement/region", facts.region.clone()),
            ("dynamic/instance-identity/document", self.identity()),
            ("user-data", self.user_data.clone()),
        ]
        .into_iter()
        .map(|(path, body)| (path.to_owned(), body))
        .collect();
        documents.insert(
            format!("meta-data/iam/security-credentials/{}", facts.role),
            self.credentials(),
        );
        for (key, value) in &facts.tags {
            documents.insert(format!("meta-data/tags/instance/{key}"), value.clone());
        }
        documents
    }

    fn credentials(&self) -> String {
        let credentials = &self.facts.credentials;
        pretty(&json!({
            "Code": "Success",
            "LastUpdated": rfc3339(credentials.issued),
            "Type": "AWS-HMAC",
            "AccessKeyId": credentials.access_key_id,
            "SecretAccessKey": credentials.secret_access_key,
            "Token": credentials.session_token,
            "Expiration": rfc3339(credentials.expires),
        }))
    }

    fn identity(&self) -> String {
        let facts = &self.facts;
        pretty(&json!({
            "accountId": facts.account,
            "architecture": "x86_64",
            "availabilityZone": facts.zone,
            "imageId": facts.image_id,
            "instanceId": facts.instance_id,
            "instanceType": facts.instance_type,
            "pendingTime": rfc3339(facts.launched),
            "privateIp": facts.address,
            "region": facts.region,
            "version": "2017-09-30",
        }))
    }
}

fn pretty(value: &serde_json::Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn rfc3339(at: OffsetDateTime) -> String {
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default()
}

fn answer(status: u16, body: impl Into<Bytes>) -> Response<Bytes> {
    Response::builder()
        .status(status)
        .header("content-type", "text/plain")
        .header("server", "EC2ws")
        .body(body.into())
        .expect("status and headers are valid: they are ours")
}

#[cfg(test)]
#[path = "imds_tests.rs"]
mod tests;
