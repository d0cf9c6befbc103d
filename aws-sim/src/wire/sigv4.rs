//! AWS Signature Version 4 in an `Authorization` header, verified as AWS verifies it.
//! Source: "AWS Signature Version 4 for API requests" in the IAM user guide; AWS's test suite is in the tests.

use bytes::Bytes;
use hmac::{Hmac, Mac};
use http::Request;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

use super::query::{decode, encode, pairs};
use crate::model::credentials::Principal;
use crate::model::{AccessKeyId, AwsError, Code, Model};

/// Clock skew that AWS allows.
const SKEW_MINUTES: i64 = 15;

/// An `Authorization` header, parsed; nothing in it is believed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub key: AccessKeyId,
    /// `YYYYMMDD` of the credential scope.
    pub date: String,
    pub region: String,
    pub service: String,
    /// Lower case, in the order given.
    pub signed_headers: Vec<String>,
    pub signature: Vec<u8>,
    pub signed_at: OffsetDateTime,
    /// `x-amz-date` as it was sent: part of the string to sign.
    pub timestamp: String,
}

/// A caller whose signature was right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub arn: String,
    pub user_id: String,
    pub region: String,
    pub service: String,
}

/// Who signed this request, or AWS's refusal.
pub fn verify(
    request: &Request<Bytes>,
    model: &Model,
    now: OffsetDateTime,
) -> Result<Caller, AwsError> {
    let claim = Claim::parse(request)?;
    let principal = model.principal(&claim.key).ok_or_else(unknown_token)?;
    let token = header(request, "x-amz-security-token");
    if principal.session_token != token {
        return Err(unknown_token());
    }
    claim.check_scope(model)?;
    claim.check_time(now)?;
    claim.check_signature(request, principal)?;
    if principal.expires.is_some_and(|expires| expires <= now) {
        return Err(AwsError::new(
            Code::ExpiredToken,
            "The security token included in the request is expired",
        ));
    }
    Ok(Caller {
        arn: principal.arn.clone(),
        user_id: principal.user_id.clone(),
        region: claim.region,
        service: claim.service,
    })
}

impl Claim {
    pub fn parse(request: &Request<Bytes>) -> Result<Self, AwsError> {
        let Some(raw) = header(request, "authorization") else {
            return Err(AwsError::new(
                Code::MissingAuthenticationToken,
                "Request is missing Authentication Token",
            ));
        };
        let Some(fields) = raw.strip_prefix("AWS4-HMAC-SHA256") else {
            return Err(incomplete("Unsupported algorithm: AWS4-HMAC-SHA256 is required."));
        };
        let field = |name: &str| {
            let found = fields
                .split(',')
                .map(str::trim)
                .find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            found.ok_or_else(|| {
                incomplete(&format!("Authorization header requires '{name}' parameter."))
            })
        };
        let credential = field("Credential")?;
        let scope: Vec<&str> = credential.split('/').collect();
        let [key, date, region, service, "aws4_request"] = scope.as_slice() else {
            return Err(incomplete(
                "Credential must have exactly 5 slash-delimited elements, the last being 'aws4_request'.",
            ));
        };
        let signed_headers: Vec<String> =
            field("SignedHeaders")?.split(';').map(str::to_ascii_lowercase).collect();
        let signature = hex::decode(field("Signature")?)
            .map_err(|_| incomplete("Signature is not hexadecimal."))?;
        let Some(timestamp) = header(request, "x-amz-date") else {
            return Err(incomplete(
                "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.",
            ));
        };
        let format = format_description!("[year][month][day]T[hour][minute][second]Z");
        let signed_at = time::PrimitiveDateTime::parse(&timestamp, format)
            .map_err(|_| incomplete("Date must be in ISO-8601 'basic format'."))?
            .assume_utc();
        let claim = Claim {
            key: AccessKeyId::from((*key).to_owned()),
            date: (*date).to_owned(),
            region: (*region).to_owned(),
            service: (*service).to_owned(),
            signed_headers,
            signature,
            signed_at,
            timestamp,
        };
        claim.check_coverage(request)?;
        Ok(claim)
    }

    /// The host and every `x-amz-*` header must be signed, as AWS requires; every header named as signed must be there.
    fn check_coverage(&self, request: &Request<Bytes>) -> Result<(), AwsError> {
        let signed = |name: &str| self.signed_headers.iter().any(|header| header == name);
        let unsigned = request
            .headers()
            .keys()
            .map(|name| name.as_str())
            .find(|name| name.starts_with("x-amz-") && !signed(name));
        if let Some(name) = unsigned.or((!signed("host")).then_some("host")) {
            return Err(AwsError::new(
                Code::SignatureDoesNotMatch,
                format!("'{name}' must be a 'SignedHeader' in the AWS Authorization."),
            ));
        }
        match self
            .signed_headers
            .iter()
            .find(|name| name.as_str() != "host" && !request.headers().contains_key(name.as_str()))
        {
            None => Ok(()),
            Some(name) => Err(mismatch(&format!("Signed header '{name}' is not in the request."))),
        }
    }

    fn check_scope(&self, model: &Model) -> Result<(), AwsError> {
        if self.region != model.config().region {
            return Err(mismatch(&format!(
                "Credential should be scoped to a valid region, not '{}'.",
                self.region
            )));
        }
        if !self.timestamp.starts_with(&self.date) || self.date.len() != 8 {
            return Err(mismatch(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP.",
            ));
        }
        Ok(())
    }

    fn check_time(&self, now: OffsetDateTime) -> Result<(), AwsError> {
        let skew = time::Duration::minutes(SKEW_MINUTES);
        if self.signed_at < now - skew {
            return Err(mismatch(&format!(
                "Signature expired: {} is more than {SKEW_MINUTES} min. old.",
                self.timestamp
            )));
        }
        if self.signed_at > now + skew {
            return Err(mismatch(&format!(
                "Signature not yet current: {} is more than {SKEW_MINUTES} min. ahead.",
                self.timestamp
            )));
        }
        Ok(())
    }

    fn check_signature(
        &self,
        request: &Request<Bytes>,
        principal: &Principal,
    ) -> Result<(), AwsError> {
        let mac = self.mac(request, &principal.secret_access_key);
        mac.verify_slice(&self.signature).map_err(|_| {
            mismatch(
                "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key \
                 and signing method. Consult the service documentation for details.",
            )
        })
    }

    /// The signature that this claim needs to be true. For tests that sign; comparing goes through [`verify`].
    pub fn signature_for(&self, request: &Request<Bytes>, secret: &str) -> Vec<u8> {
        self.mac(request, secret).finalize().into_bytes().to_vec()
    }

    /// The signature that this request should carry, not yet finalized so that it is compared in constant time.
    fn mac(&self, request: &Request<Bytes>, secret: &str) -> Hmac<Sha256> {
        let canonical = self.canonical_request(request);
        let scope = format!("{}/{}/{}/aws4_request", self.date, self.region, self.service);
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{}\n{scope}\n{}",
            self.timestamp,
            hex::encode(Sha256::digest(canonical))
        );
        let mut key = format!("AWS4{secret}").into_bytes();
        for part in [self.date.as_str(), &self.region, &self.service, "aws4_request"] {
            key = keyed(&key, part).finalize().into_bytes().to_vec();
        }
        keyed(&key, &to_sign)
    }

    fn canonical_request(&self, request: &Request<Bytes>) -> String {
        let mut names = self.signed_headers.clone();
        names.sort();
        let headers: String = names
            .iter()
            .map(|name| format!("{name}:{}\n", canonical_header(request, name)))
            .collect();
        format!(
            "{}\n{}\n{}\n{headers}\n{}\n{}",
            request.method(),
            canonical_path(request.uri().path()),
            canonical_query(request.uri().query().unwrap_or_default()),
            names.join(";"),
            hex::encode(Sha256::digest(request.body()))
        )
    }
}

fn keyed(key: &[u8], text: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac
}

/// Values of one name joined by commas, runs of spaces as one.
fn canonical_header(request: &Request<Bytes>, name: &str) -> String {
    let values: Vec<String> = request
        .headers()
        .get_all(name)
        .iter()
        .map(|value| {
            String::from_utf8_lossy(value.as_bytes())
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    if values.is_empty() && name == "host" {
        // An in-process client has no Host header yet; it is the authority of the URI.
        return request.uri().authority().map(ToString::to_string).unwrap_or_default();
    }
    values.join(",")
}

/// Dot segments and doubled slashes resolved, each segment encoded again (every service but S3 encodes twice).
fn canonical_path(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    let trailing = !segments.is_empty() && (path.ends_with('/') || path.ends_with("/."));
    let encoded: Vec<String> = segments.into_iter().map(encode).collect();
    format!("/{}{}", encoded.join("/"), if trailing { "/" } else { "" })
}

fn canonical_query(query: &str) -> String {
    // A plus in a query string is a plus to SigV4.
    let plain = |raw: &str| encode(&decode(&raw.replace('+', "%2B")));
    let mut pairs: Vec<(String, String)> =
        pairs(query).map(|(name, value)| (plain(name), plain(value))).collect();
    pairs.sort();
    let pairs: Vec<String> =
        pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

fn header(request: &Request<Bytes>, name: &str) -> Option<String> {
    request
        .headers()
        .get(name)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
}

fn unknown_token() -> AwsError {
    AwsError::new(
        Code::InvalidClientTokenId,
        "The security token included in the request is invalid.",
    )
}

fn incomplete(message: &str) -> AwsError {
    AwsError::new(Code::IncompleteSignature, message)
}

fn mismatch(message: &str) -> AwsError {
    AwsError::new(Code::SignatureDoesNotMatch, message)
}

#[cfg(test)]
#[path = "sigv4_tests.rs"]
mod tests;
