//! The STS GetCallerIdentity proof: what the client sends, what the verifier rebuilds from it,
//! and how the answer is judged ([`answer`]). Pure: the HTTP call is the verifier's own.
//!
//! A proof shows that its sender holds credentials of a role, without showing the credentials:
//! the sender signs a GetCallerIdentity request and hands over the few parts that the verifier
//! cannot know. Everything else is the verifier's: host, method, path, body and the set of signed
//! headers, so that a signature made for another purpose, verifier, connection or key fits
//! nowhere (CVE-2020-16250, CVE-2022-2385).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, Digest, Region, TenantId};

pub mod answer;

pub use answer::{AnswerError, CallerIdentity, ExpectedCaller, judge_response};

/// All that a client sends of its signed request; the verifier rebuilds everything else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StsProof {
    pub region: String,
    pub access_key_id: String,
    pub session_token: String,
    pub amz_date: String,
    pub signature: String,
}

/// Token and signature are never logged.
impl fmt::Debug for StsProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StsProof({:?}, ..)", self.region)
    }
}

/// What a proof is for. A proof for one link is worth nothing on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// An account agent enrolls at the broker.
    ControlLink,
    /// A node agent enrolls at its account agent.
    NodeLink,
}

/// Whom a proof is made for; comes from install parameters on both sides, never from the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audience {
    pub purpose: Purpose,
    pub tenant: TenantId,
    pub account: AccountId,
    pub region: Region,
}

/// The header's value. Ids hold no `;` and no `=`, so that no two audiences read the same.
impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let purpose = match self.purpose {
            Purpose::ControlLink => "control-link",
            Purpose::NodeLink => "node-link",
        };
        write!(
            f,
            "{purpose};tenant={};account={};region={}",
            self.tenant, self.account, self.region
        )
    }
}

pub const METHOD: &str = "POST";
pub const PATH: &str = "/";
pub const BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";
pub const CONTENT_TYPE: &str = "application/x-www-form-urlencoded; charset=utf-8";
/// In the order in which SigV4 wants them: sorted.
pub const SIGNED_HEADERS: &str = "content-type;host;x-amz-date;x-amz-security-token;\
                                  x-outstation-audience;x-outstation-challenge;x-outstation-csr-sha256";

/// AWS itself allows 15 minutes; a shorter window costs an honest clock nothing.
pub const DATE_WINDOW_SECS: u64 = 300;
/// AWS documents no maximum; tokens of several hundred to some 2,000 characters are seen.
pub const SESSION_TOKEN_BYTES_MAX: usize = 4096;

/// The request that goes to STS. Not a byte of its shape is the client's choice.
#[derive(Clone, PartialEq, Eq)]
pub struct RebuiltRequest {
    pub host: String,
    pub path: &'static str,
    /// Lower-case names; `host` and `authorization` are among them.
    pub headers: BTreeMap<&'static str, String>,
    pub body: &'static str,
}

impl fmt::Debug for RebuiltRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RebuiltRequest({}, ..)", self.host)
    }
}

/// Why a proof was not even sent to STS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error("the proof's region is not {expected}")]
    Region { expected: Region },
    #[error("the proof's access key id is not one of temporary credentials (ASIA…)")]
    AccessKeyId,
    #[error("the proof's session token has {bytes} bytes, or characters that no token has")]
    SessionToken { bytes: usize },
    #[error("the proof's date is not of the form YYYYMMDDTHHMMSSZ")]
    Date,
    #[error(
        "the proof was signed {off_secs} s {direction} the verifier's clock; \
         {DATE_WINDOW_SECS} s are allowed"
    )]
    DateWindow { off_secs: u64, direction: &'static str },
    #[error("the proof's signature is not 64 lower-case hexadecimal digits")]
    Signature,
    #[error("the verifier's host is not a host name")]
    Host,
}

/// The headers that both sides sign over, but for the token's and the date's.
pub fn bound_headers(
    host: &str,
    audience: &Audience,
    challenge: &[u8; 32],
    csr: &Digest,
) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("content-type", CONTENT_TYPE.to_owned()),
        ("host", host.to_owned()),
        ("x-outstation-audience", audience.to_string()),
        ("x-outstation-challenge", hex::encode(challenge)),
        ("x-outstation-csr-sha256", csr.hex()),
    ])
}

/// Rebuilds the request that an honest client has signed. `host` is the verifier's own endpoint,
/// `challenge` the one that it issued on this connection, `csr` the digest of the request that
/// it received.
pub fn rebuild(
    proof: &StsProof,
    host: &str,
    audience: &Audience,
    challenge: &[u8; 32],
    csr: &Digest,
    now_unix_secs: u64,
) -> Result<RebuiltRequest, ProofError> {
    check(proof, audience, now_unix_secs)?;
    let host_ok = (1..=255).contains(&host.len())
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
    if !host_ok {
        return Err(ProofError::Host);
    }
    let mut headers = bound_headers(host, audience, challenge, csr);
    headers.insert("x-amz-date", proof.amz_date.clone());
    headers.insert("x-amz-security-token", proof.session_token.clone());
    headers.insert("authorization", authorization(proof, audience));
    Ok(RebuiltRequest { host: host.to_owned(), path: PATH, headers, body: BODY })
}

/// Every field is checked before any of them becomes part of a header.
fn check(proof: &StsProof, audience: &Audience, now_unix_secs: u64) -> Result<(), ProofError> {
    if proof.region != audience.region.as_str() {
        return Err(ProofError::Region { expected: audience.region.clone() });
    }
    if !is_temporary_key_id(&proof.access_key_id) {
        return Err(ProofError::AccessKeyId);
    }
    let bytes = proof.session_token.len();
    let charset = |b: u8| b.is_ascii_alphanumeric() || b"+/=_-".contains(&b);
    if !(1..=SESSION_TOKEN_BYTES_MAX).contains(&bytes) || !proof.session_token.bytes().all(charset)
    {
        return Err(ProofError::SessionToken { bytes });
    }
    let signed = parse_amz_date(&proof.amz_date).ok_or(ProofError::Date)?;
    let off_secs = signed.abs_diff(now_unix_secs);
    if off_secs > DATE_WINDOW_SECS {
        let direction = if signed < now_unix_secs { "behind" } else { "ahead of" };
        return Err(ProofError::DateWindow { off_secs, direction });
    }
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if proof.signature.len() != 64 || !proof.signature.bytes().all(hex) {
        return Err(ProofError::Signature);
    }
    Ok(())
}

/// `ASIA` and 16 more. Keys of users (`AKIA`) and of the root have no session and no role.
fn is_temporary_key_id(raw: &str) -> bool {
    raw.len() == 20
        && raw.starts_with("ASIA")
        && raw.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
}

fn authorization(proof: &StsProof, audience: &Audience) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential={}/{}/{}/sts/aws4_request, SignedHeaders={SIGNED_HEADERS}, \
         Signature={}",
        proof.access_key_id,
        &proof.amz_date[..8],
        audience.region,
        proof.signature,
    )
}

/// `YYYYMMDDTHHMMSSZ` as seconds since 1970. `None` for anything else, leap seconds included.
pub fn parse_amz_date(raw: &str) -> Option<u64> {
    let bytes = raw.as_bytes();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let number = |from: usize, to: usize| -> Option<u64> {
        bytes[from..to]
            .iter()
            .try_fold(0u64, |sum, b| b.is_ascii_digit().then(|| sum * 10 + u64::from(b - b'0')))
    };
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let (hour, minute, second) = (number(9, 11)?, number(11, 13)?, number(13, 15)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let days_in_month = *month_days.get(usize::try_from(month.checked_sub(1)?).ok()?)?;
    if year < 1970 || !(1..=days_in_month).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let years_before = year - 1;
    // Leap days from year 1 to 1969 are 477.
    let leap_days = years_before / 4 - years_before / 100 + years_before / 400 - 477;
    let month_start: u64 = month_days[..usize::try_from(month - 1).ok()?].iter().sum();
    let days = (year - 1970) * 365 + leap_days + month_start + day - 1;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-22T12:00:00Z
    const NOW: u64 = 1_795_348_800;
    const HOST: &str = "sts.eu-central-1.amazonaws.com";

    fn audience() -> Audience {
        Audience {
            purpose: Purpose::NodeLink,
            tenant: TenantId::try_from("dev").expect("valid"),
            account: AccountId::try_from("123456789012").expect("valid"),
            region: Region::try_from("eu-central-1").expect("valid"),
        }
    }

    fn proof() -> StsProof {
        StsProof {
            region: "eu-central-1".into(),
            access_key_id: "ASIAABCDEFGHIJ234567".into(),
            session_token: "FwoGZXIvYXdzE+/=_-".into(),
            amz_date: "20261122T120000Z".into(),
            signature: "0123456789abcdef".repeat(4),
        }
    }

    fn attempt(proof: &StsProof) -> Result<RebuiltRequest, ProofError> {
        rebuild(proof, HOST, &audience(), &[7; 32], &Digest::of(b"csr"), NOW)
    }

    #[test]
    fn the_rebuilt_request_is_this_and_nothing_else() {
        let request = attempt(&proof()).expect("an honest proof");
        assert_eq!((request.host.as_str(), request.path), (HOST, "/"));
        assert_eq!(request.body, "Action=GetCallerIdentity&Version=2011-06-15");
        let lines: Vec<String> =
            request.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        assert_eq!(
            lines,
            [
                "authorization: AWS4-HMAC-SHA256 \
                 Credential=ASIAABCDEFGHIJ234567/20261122/eu-central-1/sts/aws4_request, \
                 SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;\
                 x-outstation-audience;x-outstation-challenge;x-outstation-csr-sha256, \
                 Signature=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
                    .to_owned(),
                "content-type: application/x-www-form-urlencoded; charset=utf-8".to_owned(),
                format!("host: {HOST}"),
                "x-amz-date: 20261122T120000Z".to_owned(),
                "x-amz-security-token: FwoGZXIvYXdzE+/=_-".to_owned(),
                "x-outstation-audience: \
                 node-link;tenant=dev;account=123456789012;region=eu-central-1"
                    .to_owned(),
                format!("x-outstation-challenge: {}", "07".repeat(32)),
                format!("x-outstation-csr-sha256: {}", Digest::of(b"csr").hex()),
            ]
        );
    }

    /// Changes one thing of an honest proof.
    type Forge = fn(&mut StsProof);

    #[test]
    fn every_field_of_a_proof_is_checked_before_it_is_used() {
        let bad_token = |bytes| ProofError::SessionToken { bytes };
        let region = || ProofError::Region { expected: audience().region };
        let cases: Vec<(&str, Forge, ProofError)> = vec![
            ("other region", |p| p.region = "us-east-1".into(), region()),
            ("region as host", |p| p.region = "eu-central-1.evil.example/".into(), region()),
            ("empty region", |p| p.region.clear(), region()),
            (
                "user's key",
                |p| p.access_key_id = "AKIAABCDEFGHIJ234567".into(),
                ProofError::AccessKeyId,
            ),
            ("short key", |p| p.access_key_id = "ASIAABC".into(), ProofError::AccessKeyId),
            ("long key", |p| p.access_key_id.push('A'), ProofError::AccessKeyId),
            (
                "lower-case key",
                |p| p.access_key_id = "ASIAabcdefghij234567".into(),
                ProofError::AccessKeyId,
            ),
            (
                "scope in key",
                |p| p.access_key_id = "ASIA/20260101/us-eas".into(),
                ProofError::AccessKeyId,
            ),
            ("empty token", |p| p.session_token.clear(), bad_token(0)),
            ("long token", |p| p.session_token = "a".repeat(4097), bad_token(4097)),
            ("newline in token", |p| p.session_token = "a\r\nx: y".into(), bad_token(7)),
            ("space in token", |p| p.session_token = "a b".into(), bad_token(3)),
            ("ünicode token", |p| p.session_token = "ü".into(), bad_token(2)),
            ("no date", |p| p.amz_date.clear(), ProofError::Date),
            ("other date", |p| p.amz_date = "2026-11-22 12:00".into(), ProofError::Date),
            ("13th month", |p| p.amz_date = "20261322T120000Z".into(), ProofError::Date),
            ("30 February", |p| p.amz_date = "20260230T120000Z".into(), ProofError::Date),
            ("hour 24", |p| p.amz_date = "20261122T240000Z".into(), ProofError::Date),
            ("no zone", |p| p.amz_date = "20261122T1200000".into(), ProofError::Date),
            (
                "too old",
                |p| p.amz_date = "20261122T115459Z".into(),
                ProofError::DateWindow { off_secs: 301, direction: "behind" },
            ),
            (
                "too new",
                |p| p.amz_date = "20261122T120501Z".into(),
                ProofError::DateWindow { off_secs: 301, direction: "ahead of" },
            ),
            ("short signature", |p| p.signature.truncate(63), ProofError::Signature),
            ("upper-case signature", |p| p.signature = "A".repeat(64), ProofError::Signature),
            (
                "headers in signature",
                |p| p.signature = format!("{}, X=", "a".repeat(60)),
                ProofError::Signature,
            ),
        ];
        for (name, forge, wanted) in cases {
            let mut forged = proof();
            forge(&mut forged);
            assert_eq!(attempt(&forged).expect_err(name), wanted, "{name}");
        }
    }

    #[test]
    fn dates_at_the_edge_of_the_window_pass() {
        for date in ["20261122T115500Z", "20261122T120500Z"] {
            let mut edge = proof();
            edge.amz_date = date.into();
            assert!(attempt(&edge).is_ok(), "{date}");
        }
    }

    #[test]
    fn a_date_becomes_the_second_that_it_names() {
        for (raw, wanted) in [
            ("19700101T000000Z", Some(0)),
            ("20000229T235959Z", Some(951_868_799)),
            ("20240301T000000Z", Some(1_709_251_200)),
            ("20261122T120000Z", Some(NOW)),
            ("21000229T000000Z", None),
            ("19691231T235959Z", None),
            ("20261122t120000z", None),
            ("+0261122T120000Z", None),
        ] {
            assert_eq!(parse_amz_date(raw), wanted, "{raw}");
        }
    }

    #[test]
    fn purpose_tenant_account_and_region_are_all_in_the_audience() {
        let node = audience();
        let mut others = vec![audience(), audience(), audience(), audience()];
        others[0].purpose = Purpose::ControlLink;
        others[1].tenant = TenantId::try_from("prod").expect("valid");
        others[2].account = AccountId::try_from("999999999999").expect("valid");
        others[3].region = Region::try_from("us-east-1").expect("valid");
        for other in others {
            assert_ne!(other.to_string(), node.to_string());
        }
    }

    #[test]
    fn a_host_is_a_host() {
        for (host, ok) in [
            (HOST, true),
            ("127.0.0.1:20100", true),
            ("[::1]:20100", true),
            ("", false),
            ("evil.example/path", false),
            ("a\r\nb", false),
            ("user@evil", false),
        ] {
            let rebuilt = rebuild(&proof(), host, &audience(), &[7; 32], &Digest::of(b"csr"), NOW);
            assert_eq!(rebuilt.is_ok(), ok, "{host}");
        }
    }

    #[test]
    fn a_proof_prints_nothing_secret() {
        let printed = format!("{:?} {:?}", proof(), attempt(&proof()));
        for secret in ["FwoGZXIvYXdzE", "0123456789abcdef", "ASIA"] {
            assert!(!printed.contains(secret), "{printed}");
        }
    }
}
