//! Enrollment over real QUIC sockets.

use std::time::Duration;

use outstation_broker::identity::AgentIdentity;
use outstation_protocol::evidence::StsProof;
use outstation_protocol::frame;
use outstation_protocol::v1::{self, Evidence, FromIssuer, ToIssuer};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::harness::{ACCOUNT, Enrolled, Running, Stream, data_plane, dial, enroll};

fn reason(answer: FromIssuer) -> String {
    match answer {
        FromIssuer::Denied { reason, hint } => {
            assert!(!hint.is_empty(), "a denial says what to do: {reason}");
            reason
        }
        FromIssuer::Issued { identity, .. } => format!("issued {identity}"),
        FromIssuer::Challenge { .. } => "a second challenge".into(),
    }
}

#[tokio::test]
async fn a_token_enrolls_one_key_and_survives_a_lost_reply() {
    let broker = Running::start().await;
    let token = broker.join_token(600).await;
    let (ours, other) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
    let plane = || data_plane(ACCOUNT);

    let wrong = format!("{}{}", &token[..token.len() - 4], "0000");
    for (token, key, data_plane, wanted) in [
        ("nonsense", &ours, plane(), "not one of this broker's"),
        (wrong.as_str(), &ours, plane(), "not one of this broker's"),
        (token.as_str(), &ours, data_plane("999999999999"), "does not serve data plane"),
    ] {
        let reason = reason(enroll(&broker, token, key, data_plane).await);
        assert!(reason.contains(wanted), "{reason:?} should say {wanted:?}");
    }

    // None of those used the token up.
    let FromIssuer::Issued { identity, .. } = enroll(&broker, &token, &ours, plane()).await else {
        panic!("a good token and a key must enroll");
    };
    let FromIssuer::Issued { identity: again, chain } =
        enroll(&broker, &token, &ours, plane()).await
    else {
        panic!("the same key again must get a certificate again");
    };
    assert_eq!(identity, again, "it is the same agent");
    let denied = reason(enroll(&broker, &token, &other, plane()).await);
    assert!(denied.contains("used with another key"), "{denied}");

    // A restarted broker knows all that; the certificate is good for a session there.
    let broker = Running::start_in(broker.stop().await).await;
    let denied = reason(enroll(&broker, &token, &other, plane()).await);
    assert!(denied.contains("used with another key"), "{denied}");
    Enrolled::new(ours, chain, again).connect(&broker).await;
    broker.stop().await;
}

#[tokio::test]
async fn an_expired_token_enrolls_nobody() {
    let broker = Running::start().await;
    let token = broker.join_token(1).await;
    let key = KeyPair::generate().expect("a key");
    // Longer than the token is good for, however the seconds are cut.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let denied = reason(enroll(&broker, &token, &key, data_plane(ACCOUNT)).await);
    assert!(denied.contains("expired"), "{denied}");
    // Making a token sweeps out those that expired unused.
    broker.join_token(600).await;
    let denied = reason(enroll(&broker, &token, &key, data_plane(ACCOUNT)).await);
    assert!(denied.contains("not one of this broker's"), "{denied}");
    broker.stop().await;
}

#[tokio::test]
async fn the_broker_says_who_an_agent_is_whatever_its_request_says() {
    let broker = Running::start().await;
    let token = broker.join_token(600).await;
    let key = KeyPair::generate().expect("a key");
    let mut greedy = CertificateParams::default();
    greedy.distinguished_name.push(DnType::CommonName, "broker.outstation");
    greedy.subject_alt_names = vec![
        SanType::DnsName("broker.outstation".try_into().expect("ASCII")),
        SanType::URI(
            "spiffe://dev.outstation/account/999999999999/agent/a-9".try_into().expect("ASCII"),
        ),
    ];
    let csr = greedy.serialize_request(&key).expect("a request").der().to_vec();

    let connection = dial(&broker, v1::ALPN_CONTROL_ENROLL, None).await.expect("dial");
    let mut stream = Stream::open(connection).await;
    stream.send(&ToIssuer::Begin { release: "test".into() }).await;
    stream.next::<FromIssuer>().await.expect("a challenge");
    let evidence = Evidence::JoinToken { token, data_plane: data_plane(ACCOUNT) };
    stream.send(&ToIssuer::Request { csr, evidence }).await;
    let Some(FromIssuer::Issued { chain, identity }) = stream.next().await else {
        panic!("the key alone counts");
    };

    let found = AgentIdentity::of_certificate(&chain[0]).expect("one identity");
    assert_eq!(found.identity.to_string(), identity);
    assert!(identity.starts_with("spiffe://dev.outstation/account/123456789012/agent/a-"));
    let (_, certificate) = X509Certificate::from_der(&chain[0]).expect("a certificate");
    let names = certificate.subject_alternative_name().expect("readable").expect("there");
    assert_eq!(names.value.general_names.len(), 1, "nothing else was taken over");
    assert!(!certificate.is_ca());
    let usage = certificate.extended_key_usage().expect("readable").expect("there");
    assert!(usage.value.client_auth && !usage.value.server_auth && !usage.value.any);
    let days = certificate.validity().not_after.timestamp()
        - certificate.validity().not_before.timestamp();
    assert!(days <= 7 * 86_400 + 600, "seven days, and some minutes of backdating");
    broker.stop().await;
}

#[tokio::test]
async fn nonsense_ends_its_own_conversation_and_nothing_else() {
    let broker = Running::start().await;
    let key = KeyPair::generate().expect("a key");
    let begin = frame::encode(&ToIssuer::Begin { release: "test".into() }).expect("small");
    let sts = ToIssuer::Request {
        csr: CertificateParams::default()
            .serialize_request(&key)
            .expect("a request")
            .der()
            .to_vec(),
        evidence: Evidence::Sts(StsProof {
            region: String::new(),
            access_key_id: String::new(),
            session_token: String::new(),
            amz_date: String::new(),
            signature: String::new(),
        }),
    };
    let sts = frame::encode(&sts).expect("small");
    let not_a_csr = ToIssuer::Request {
        csr: b"nonsense".to_vec(),
        evidence: Evidence::JoinToken { token: "x".into(), data_plane: data_plane(ACCOUNT) },
    };
    let not_a_csr = frame::encode(&not_a_csr).expect("small");

    let cases: [(&str, Vec<&[u8]>, &str); 7] = [
        ("garbage", vec![&[0xff; 64]], "closed"),
        ("an oversized header", vec![&[0x21, 0xff, 0xff, 0xff, 0xff]], "closed"),
        ("a header of another link", vec![&[0x01, 1, 0, 0, 0, 0]], "closed"),
        ("a body that is no message", vec![&[0x21, 1, 0, 0, 0, 0xff]], "closed"),
        ("begin twice", vec![&begin, &begin], "closed"),
        ("a request that is none", vec![&begin, &not_a_csr], "damaged"),
        ("STS evidence", vec![&begin, &sts], "a node's evidence"),
    ];
    for (case, frames, wanted) in cases {
        let connection = dial(&broker, v1::ALPN_CONTROL_ENROLL, None).await.expect("dial");
        let (mut send, receive) = connection.open_bi().await.expect("open");
        for frame in frames {
            // The broker may have closed already.
            let _ = send.write_all(frame).await;
        }
        let mut reader = outstation_broker::frames::FrameReader::new(receive);
        let mut last = "closed".to_owned();
        while let Ok(Some(message)) = crate::harness::soon(case, reader.next::<FromIssuer>()).await
        {
            if let FromIssuer::Denied { reason, .. } = message {
                last = reason;
            }
        }
        assert!(last.contains(wanted), "{case}: {last:?} should be {wanted:?}");
    }

    let token = broker.join_token(600).await;
    let answer = enroll(&broker, &token, &key, data_plane(ACCOUNT)).await;
    assert!(matches!(answer, FromIssuer::Issued { .. }), "the broker goes on: {answer:?}");
    broker.stop().await;
}
