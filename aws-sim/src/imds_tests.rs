//! IMDS from the outside: tokens first, then documents and listings.

use std::net::Ipv4Addr;

use time::macros::datetime;

use super::*;
use crate::model::credentials::SessionCredentials;
use crate::model::{AccessKeyId, InstanceId};

const NOW: OffsetDateTime = datetime!(2026-11-22 12:00:00 UTC);

fn imds() -> Imds {
    let tags = [("outstation:group", "delay"), ("outstation:options", "workers=2"), ("Name", "ü")];
    let facts = InstanceFacts {
        instance_id: InstanceId::try_from("i-0123456789abcdef0".to_owned()).unwrap(),
        account: "123456789012".to_owned(),
        region: "eu-central-1".to_owned(),
        zone: "eu-central-1a".to_owned(),
        address: Ipv4Addr::new(127, 83, 0, 1),
        image_id: "ami-0".to_owned(),
        instance_type: "c7i.large".to_owned(),
        launched: NOW,
        role: "outstation-node".to_owned(),
        credentials: SessionCredentials {
            access_key_id: AccessKeyId::from("ASIAEXAMPLE".to_owned()),
            secret_access_key: "s3cret".to_owned(),
            session_token: "token".to_owned(),
            issued: NOW,
            expires: NOW + time::Duration::hours(6),
        },
        tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        target_lifecycle_state: "InService".to_owned(),
    };
    Imds::new(facts, "#!/bin/sh\necho hi\n".to_owned(), [7; 32])
}

fn ask(
    imds: &Imds,
    method: Method,
    path: &str,
    headers: &[(&'static str, &str)],
    now: OffsetDateTime,
) -> (u16, String) {
    let headers = headers
        .iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
        .collect();
    let response = imds.handle(&method, path, &headers, now);
    (response.status().as_u16(), String::from_utf8(response.body().to_vec()).unwrap())
}

fn token(imds: &Imds, ttl: &str) -> String {
    let (status, token) = ask(imds, Method::PUT, "/latest/api/token", &[(TTL, ttl)], NOW);
    assert_eq!(status, 200);
    token
}

fn get(imds: &Imds, path: &str) -> (u16, String) {
    let token = token(imds, "60");
    ask(imds, Method::GET, path, &[(TOKEN, &token)], NOW)
}

#[test]
fn documents_and_listings() {
    let imds = imds();
    for (path, body) in [
        ("/latest/meta-data/instance-id", "i-0123456789abcdef0"),
        ("/latest/meta-data/local-ipv4", "127.83.0.1"),
        ("/latest/meta-data/placement/region", "eu-central-1"),
        ("/latest/meta-data/placement/availability-zone", "eu-central-1a"),
        ("/latest/meta-data/placement/availability-zone/", "eu-central-1a"),
        ("/latest/meta-data/placement/", "availability-zone\nregion"),
        ("/latest/meta-data/ami-id", "ami-0"),
        ("/latest/meta-data/instance-type", "c7i.large"),
        ("/latest/meta-data/iam/security-credentials/", "outstation-node"),
        ("/latest/meta-data/tags/instance", "Name\noutstation:group\noutstation:options"),
        ("/latest/meta-data/tags/instance/", "Name\noutstation:group\noutstation:options"),
        ("/latest/meta-data/tags/instance/outstation:group", "delay"),
        ("/latest/meta-data/tags/instance/outstation%3Agroup", "delay"),
        ("/latest/meta-data/tags/instance/Name", "ü"),
        ("/latest/meta-data/autoscaling/target-lifecycle-state", "InService"),
        ("/latest/user-data", "#!/bin/sh\necho hi\n"),
        ("/latest/", "dynamic/\nmeta-data/\nuser-data"),
        (
            "/latest/meta-data/",
            "ami-id\nautoscaling/\niam/\ninstance-id\ninstance-type\nlocal-ipv4\nplacement/\ntags/",
        ),
    ] {
        assert_eq!(get(&imds, path), (200, body.to_owned()), "{path}");
    }
    for path in [
        "/latest/meta-data/tags/instance/absent",
        "/latest/meta-data/inst",
        "/2009-04-04/meta-data/ami-id",
        "/",
        "/latest/meta-data/public-ipv4",
    ] {
        assert_eq!(get(&imds, path).0, 404, "{path}");
    }
}

#[test]
fn credentials_and_identity_are_json() {
    let imds = imds();
    let json = |path: &str| serde_json::from_str::<serde_json::Value>(&get(&imds, path).1).unwrap();
    let credentials = json("/latest/meta-data/iam/security-credentials/outstation-node");
    assert_eq!(credentials["AccessKeyId"], "ASIAEXAMPLE");
    assert_eq!(credentials["Token"], "token");
    assert_eq!(credentials["Expiration"], "2026-11-22T18:00:00Z");
    let identity = json("/latest/dynamic/instance-identity/document");
    assert_eq!(identity["accountId"], "123456789012");
    assert_eq!(identity["privateIp"], "127.83.0.1");
}

#[test]
fn no_token_no_answer() {
    let imds = imds();
    let path = "/latest/meta-data/instance-id";
    let good = token(&imds, "60");
    let mut forged = imds.clone();
    forged.token_key = [8; 32];
    let other = token(&forged, "60");
    for (name, headers, now, status) in [
        ("none", vec![], NOW, 401),
        ("good", vec![(TOKEN, good.as_str())], NOW, 200),
        ("at its end", vec![(TOKEN, good.as_str())], NOW + time::Duration::seconds(60), 401),
        ("of another instance", vec![(TOKEN, other.as_str())], NOW, 401),
        ("garbage", vec![(TOKEN, "AAAA")], NOW, 401),
        ("not base64", vec![(TOKEN, "!")], NOW, 401),
    ] {
        assert_eq!(ask(&imds, Method::GET, path, &headers, now).0, status, "{name}");
    }
}

#[test]
fn tokens_are_given_as_imds_gives_them() {
    let imds = imds();
    for (name, method, headers, status) in [
        ("GET", Method::GET, vec![(TTL, "60")], 405),
        ("no ttl", Method::PUT, vec![], 400),
        ("zero", Method::PUT, vec![(TTL, "0")], 400),
        ("too long", Method::PUT, vec![(TTL, "21601")], 400),
        ("not a number", Method::PUT, vec![(TTL, "x")], 400),
        ("longest", Method::PUT, vec![(TTL, "21600")], 200),
        ("proxied", Method::PUT, vec![(TTL, "60"), ("x-forwarded-for", "10.0.0.1")], 403),
    ] {
        assert_eq!(ask(&imds, method, "/latest/api/token", &headers, NOW).0, status, "{name}");
    }
}
