//! The client's side of STS evidence: signs GetCallerIdentity over audience, challenge and CSR
//! digest, and hands out only the parts that the verifier cannot know.

use std::time::{Duration, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use outstation_protocol::Digest;
use outstation_protocol::evidence::{self, Audience, SIGNED_HEADERS, StsProof};

#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    #[error("the credentials have no session token; only temporary ones can prove a role")]
    NoSessionToken,
    #[error("the request cannot be signed: {what}")]
    Sign { what: String },
}

/// Signs the one request that [`evidence::rebuild`] will rebuild for `host`.
pub fn prove(
    credentials: &Credentials,
    host: &str,
    audience: &Audience,
    challenge: &[u8; 32],
    csr: &Digest,
    now_unix_secs: u64,
) -> Result<StsProof, ProofError> {
    let session_token = credentials.session_token().ok_or(ProofError::NoSessionToken)?;
    let refused = |what: &dyn std::fmt::Display| ProofError::Sign { what: what.to_string() };

    let headers = evidence::bound_headers(host, audience, challenge, csr);
    let url = format!("https://{host}{}", evidence::PATH);
    let request = SignableRequest::new(
        evidence::METHOD,
        url,
        headers.iter().map(|(name, value)| (*name, value.as_str())),
        SignableBody::Bytes(evidence::BODY.as_bytes()),
    )
    .map_err(|e| refused(&e))?;
    let identity = credentials.clone().into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(audience.region.as_str())
        .name("sts")
        .time(UNIX_EPOCH + Duration::from_secs(now_unix_secs))
        .settings(SigningSettings::default())
        .build()
        .map_err(|e| refused(&e))?
        .into();
    let (instructions, signature) =
        sign(request, &parameters).map_err(|e| refused(&e))?.into_parts();

    let header = |wanted: &str| {
        instructions.headers().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, v)| v)
    };
    let covers_all = header("authorization")
        .is_some_and(|value| value.contains(&format!("SignedHeaders={SIGNED_HEADERS},")));
    if !covers_all {
        return Err(refused(&"the signature would not cover what it must"));
    }
    Ok(StsProof {
        region: audience.region.to_string(),
        access_key_id: credentials.access_key_id().to_owned(),
        session_token: session_token.to_owned(),
        amz_date: header("x-amz-date").unwrap_or_default().to_owned(),
        signature,
    })
}

#[cfg(test)]
mod tests {
    use outstation_protocol::evidence::Purpose;

    use super::*;

    const NOW: u64 = 1_795_348_800;

    fn audience() -> Audience {
        Audience {
            purpose: Purpose::NodeLink,
            tenant: "dev".try_into().expect("valid"),
            account: "123456789012".try_into().expect("valid"),
            region: "eu-central-1".try_into().expect("valid"),
        }
    }

    fn credentials(token: Option<&str>) -> Credentials {
        Credentials::new("ASIAABCDEFGHIJ234567", "secret", token.map(str::to_owned), None, "test")
    }

    fn proof_over(challenge: [u8; 32], csr: &[u8], audience: &Audience, host: &str) -> StsProof {
        let credentials = credentials(Some("token+/="));
        prove(&credentials, host, audience, &challenge, &Digest::of(csr), NOW).expect("signs")
    }

    #[test]
    fn what_is_signed_is_what_the_verifier_rebuilds() {
        let (challenge, csr) = ([7; 32], Digest::of(b"csr"));
        let proof = proof_over(challenge, b"csr", &audience(), "sts.example");
        let rebuilt = evidence::rebuild(&proof, "sts.example", &audience(), &challenge, &csr, NOW)
            .expect("an honest proof passes");
        // Signs the rebuilt headers once more, as STS will.
        let identity = credentials(Some("token+/=")).into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region("eu-central-1")
            .name("sts")
            .time(UNIX_EPOCH + Duration::from_secs(NOW))
            .settings(SigningSettings::default())
            .build()
            .expect("complete")
            .into();
        let own = ["authorization", "x-amz-date", "x-amz-security-token"];
        let request = SignableRequest::new(
            "POST",
            "https://sts.example/",
            rebuilt
                .headers
                .iter()
                .filter(|(name, _)| !own.contains(name))
                .map(|(name, value)| (*name, value.as_str())),
            SignableBody::Bytes(rebuilt.body.as_bytes()),
        )
        .expect("a request");
        let (signed, _) = sign(request, &parameters).expect("signs").into_parts();
        let authorization = signed
            .headers()
            .find(|(name, _)| *name == "authorization")
            .map(|(_, value)| value.to_owned());
        assert_eq!(authorization.as_ref(), rebuilt.headers.get("authorization"));
    }

    #[test]
    fn the_signature_changes_with_everything_that_it_binds() {
        let honest = proof_over([7; 32], b"csr", &audience(), "sts.example").signature;
        let mut other = audience();
        other.purpose = Purpose::ControlLink;
        for (name, signature) in [
            ("challenge", proof_over([8; 32], b"csr", &audience(), "sts.example").signature),
            ("csr", proof_over([7; 32], b"other", &audience(), "sts.example").signature),
            ("audience", proof_over([7; 32], b"csr", &other, "sts.example").signature),
            ("host", proof_over([7; 32], b"csr", &audience(), "other.example").signature),
        ] {
            assert_ne!(signature, honest, "{name}");
        }
    }

    #[test]
    fn long_lived_keys_prove_nothing() {
        let csr = Digest::of(b"csr");
        let refused = prove(&credentials(None), "h", &audience(), &[0; 32], &csr, NOW);
        assert!(matches!(refused, Err(ProofError::NoSessionToken)));
    }
}
