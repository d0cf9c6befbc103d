//! AWS's published signatures must verify, and nothing that differs from them may.

use std::net::Ipv4Addr;
use std::time::Duration;

use time::macros::datetime;

use super::*;
use crate::model::ModelConfig;
use crate::model::credentials::InstanceRole;

const SUITE: &str = include_str!("../../tests/sigv4/suite.txt");
const KEY: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const SIGNED_AT: OffsetDateTime = datetime!(2015-08-30 12:36:00 UTC);

/// A request as the suite writes it: a request line, headers, an empty line, a body.
fn read(text: &str) -> Request<Bytes> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let request_line = lines.next().unwrap();
    let (method, rest) = request_line.split_once(' ').unwrap();
    let target = rest.strip_suffix(" HTTP/1.1").unwrap();
    // What a client would have to escape to send it at all.
    let target: String = target
        .chars()
        .map(|character| {
            if character == ' ' || !character.is_ascii() {
                encode(&character.to_string())
            } else {
                character.to_string()
            }
        })
        .collect();
    let mut request = Request::builder().method(method).uri(target);
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        request = request.header(name, value.trim());
    }
    request.body(Bytes::from(body.to_owned())).unwrap()
}

fn suite() -> Vec<(&'static str, Request<Bytes>)> {
    SUITE
        .split("\n=== ")
        .skip(1)
        .map(|case| case.split_once('\n').unwrap())
        .map(|(name, text)| (name, read(text.trim_end())))
        .collect()
}

/// An account that knows the suite's key, with the token that the request carries if any.
fn account(token: Option<String>, expires: Option<OffsetDateTime>) -> Model {
    let principal = Principal {
        secret_access_key: SECRET.to_owned(),
        session_token: token,
        arn: "arn:aws:iam::123456789012:user/suite".to_owned(),
        user_id: "AIDAEXAMPLE".to_owned(),
        expires,
    };
    Model::new(ModelConfig {
        account: "123456789012".to_owned(),
        region: "us-east-1".to_owned(),
        zones: Vec::new(),
        subnets: Default::default(),
        role: InstanceRole { account: String::new(), name: String::new(), id: String::new() },
        net: Ipv4Addr::new(127, 83, 0, 0),
        boot_delay: Duration::ZERO,
        patience: Default::default(),
        templates: Vec::new(),
        hooks_hold_dead_instances: false,
        principals: vec![(AccessKeyId::from(KEY.to_owned()), principal)],
        seed: 0,
    })
}

#[test]
fn aws_test_suite_verifies() {
    let cases = suite();
    assert_eq!(cases.len(), 20);
    for (name, request) in cases {
        let model = account(header(&request, "x-amz-security-token"), None);
        let claim = Claim::parse(&request).unwrap();
        let canonical = claim.canonical_request(&request);
        let verified = verify(&request, &model, SIGNED_AT);
        assert!(verified.is_ok(), "{name}: {verified:?}\n{canonical}");
    }
}

#[test]
fn nothing_signed_can_be_changed() {
    for (name, original) in suite() {
        let token = header(&original, "x-amz-security-token");
        let model = account(token, None);
        let claim = Claim::parse(&original).unwrap();
        for header in &claim.signed_headers {
            let mut request = original.clone();
            let value = request.headers()[header]
                .to_str()
                .unwrap()
                .replace("20150830T1236", "20150830T1237")
                + "x";
            request.headers_mut().insert(
                http::HeaderName::try_from(header.as_str()).unwrap(),
                value.parse().unwrap(),
            );
            assert!(verify(&request, &model, SIGNED_AT).is_err(), "{name}: {header} was changed");
        }
        let mut request = original.clone();
        *request.body_mut() = Bytes::from([request.body().as_ref(), b"x"].concat());
        assert!(verify(&request, &model, SIGNED_AT).is_err(), "{name}: body was changed");
        let mut request = original.clone();
        *request.uri_mut() = "/?Another=Query".parse().unwrap();
        assert!(verify(&request, &model, SIGNED_AT).is_err(), "{name}: target was changed");
    }
}

/// Changes the first request of the suite and says what the verifier says.
fn refusal(change: impl FnOnce(&mut Request<Bytes>), now: OffsetDateTime) -> (Code, String) {
    let (_, mut request) = suite().remove(0);
    change(&mut request);
    let error = verify(&request, &account(None, None), now).unwrap_err();
    (error.code, error.message)
}

fn replace(request: &mut Request<Bytes>, from: &str, to: &str) {
    let value = header(request, "authorization").unwrap().replace(from, to);
    request.headers_mut().insert("authorization", value.parse().unwrap());
}

#[test]
fn refusals_carry_the_codes_of_aws() {
    type Change = fn(&mut Request<Bytes>);
    let cases: [(&str, Change, Code); 14] = [
        (
            "no header",
            |request| drop(request.headers_mut().remove("authorization")),
            Code::MissingAuthenticationToken,
        ),
        (
            "other algorithm",
            |request| replace(request, "AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
            Code::IncompleteSignature,
        ),
        (
            "no signature",
            |request| replace(request, "Signature=", "Sig="),
            Code::IncompleteSignature,
        ),
        (
            "no signed headers",
            |request| replace(request, "SignedHeaders=", "Headers="),
            Code::IncompleteSignature,
        ),
        ("short scope", |request| replace(request, "/us-east-1/", "/"), Code::IncompleteSignature),
        (
            "signature not hex",
            |request| replace(request, "Signature=5f", "Signature=zz"),
            Code::IncompleteSignature,
        ),
        (
            "no date",
            |request| drop(request.headers_mut().remove("x-amz-date")),
            Code::IncompleteSignature,
        ),
        (
            "bad date",
            |request| {
                drop(request.headers_mut().insert("x-amz-date", "yesterday".parse().unwrap()))
            },
            Code::IncompleteSignature,
        ),
        ("unknown key", |request| replace(request, KEY, "AKIDUNKNOWN"), Code::InvalidClientTokenId),
        (
            "signature of another",
            |request| replace(request, "Signature=5f", "Signature=60"),
            Code::SignatureDoesNotMatch,
        ),
        (
            "shorter signature",
            |request| replace(request, "Signature=5fa0", "Signature=5f"),
            Code::SignatureDoesNotMatch,
        ),
        (
            "other region",
            |request| replace(request, "us-east-1", "us-east-2"),
            Code::SignatureDoesNotMatch,
        ),
        (
            "host not signed",
            |request| replace(request, "host;x-amz-date", "x-amz-date"),
            Code::SignatureDoesNotMatch,
        ),
        (
            "scope of another day",
            |request| replace(request, "20150830/", "20150831/"),
            Code::SignatureDoesNotMatch,
        ),
    ];
    for (name, change, code) in cases {
        assert_eq!(refusal(change, SIGNED_AT).0, code, "{name}");
    }
}

#[test]
fn an_amz_header_that_is_not_signed_is_refused() {
    let add = |request: &mut Request<Bytes>| {
        drop(request.headers_mut().insert("x-amz-other", "x".parse().unwrap()))
    };
    let (code, message) = refusal(add, SIGNED_AT);
    assert_eq!(
        (code, message.as_str()),
        (
            Code::SignatureDoesNotMatch,
            "'x-amz-other' must be a 'SignedHeader' in the AWS Authorization."
        )
    );
}

#[test]
fn a_token_must_be_the_one_that_goes_with_the_key() {
    let (_, request) =
        suite().into_iter().find(|(name, _)| *name == "get-vanilla-with-session-token").unwrap();
    for token in [None, Some("another".to_owned())] {
        assert_eq!(
            verify(&request, &account(token, None), SIGNED_AT).unwrap_err().code,
            Code::InvalidClientTokenId
        );
    }
    let (_, request) = suite().remove(0);
    assert_eq!(
        verify(&request, &account(Some("t".to_owned()), None), SIGNED_AT).unwrap_err().code,
        Code::InvalidClientTokenId
    );
}

#[test]
fn fifteen_minutes_of_skew_and_no_second_more() {
    let minutes = time::Duration::minutes(15);
    let second = time::Duration::seconds(1);
    for (now, accepted) in [
        (SIGNED_AT + minutes, true),
        (SIGNED_AT - minutes, true),
        (SIGNED_AT + minutes + second, false),
        (SIGNED_AT - minutes - second, false),
    ] {
        let (_, request) = suite().remove(0);
        let verified = verify(&request, &account(None, None), now);
        assert_eq!(
            verified.as_ref().map_err(|error| error.code).err(),
            (!accepted).then_some(Code::SignatureDoesNotMatch),
            "{now}"
        );
    }
}

#[test]
fn an_expired_session_is_told_so_only_with_a_right_signature() {
    let (_, request) = suite().remove(0);
    let model = account(None, Some(SIGNED_AT));
    assert_eq!(verify(&request, &model, SIGNED_AT).unwrap_err().code, Code::ExpiredToken);
}
