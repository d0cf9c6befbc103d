//! Bytes on the wire: golden answers (review them when they change: `UPDATE_GOLDEN=1 cargo test`), pages, filters, callers.

mod common;

use bytes::Bytes;
use common::{AGENT, Account, DRAIN, Signer, basic, element, elements, signed};
use http::Request;

fn golden(name: &str, body: &[u8]) {
    let path = format!("{}/tests/golden/{name}.xml", env!("CARGO_MANIFEST_DIR"));
    let body = String::from_utf8(body.to_vec()).unwrap();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &body).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(body, expected, "{path}");
}

#[test]
fn answers_are_golden() {
    let mut account = Account::new();
    account.group(1, &format!("{DRAIN} Tags.member.1.Key=outstation:group Tags.member.1.Value=a&b Tags.member.1.PropagateAtLaunch=true"));
    account.pass(1);
    for (name, service, action, form) in [
        ("identity", "sts", "GetCallerIdentity", String::new()),
        ("groups", "autoscaling", "DescribeAutoScalingGroups", String::new()),
        ("instances", "autoscaling", "DescribeAutoScalingInstances", String::new()),
        ("tags", "autoscaling", "DescribeTags", String::new()),
        ("hooks", "autoscaling", "DescribeLifecycleHooks", "AutoScalingGroupName=g".to_owned()),
        (
            "activities",
            "autoscaling",
            "DescribeScalingActivities",
            "AutoScalingGroupName=g".to_owned(),
        ),
        ("create", "autoscaling", "CreateAutoScalingGroup", basic("h")),
        ("error", "autoscaling", "CreateAutoScalingGroup", basic("g")),
        (
            "terminate",
            "autoscaling",
            "TerminateInstanceInAutoScalingGroup",
            format!("InstanceId={} ShouldDecrementDesiredCapacity=false", account.id(0)),
        ),
        (
            "complete",
            "autoscaling",
            "CompleteLifecycleAction",
            format!(
                "AutoScalingGroupName=g LifecycleHookName=drain InstanceId={} LifecycleActionResult=CONTINUE",
                account.id(0)
            ),
        ),
    ] {
        let response = account.send(AGENT, service, action, &form);
        assert_eq!(response.headers()["content-type"], "text/xml");
        golden(name, response.body());
    }
}

#[test]
fn pages_are_complete_and_without_repeats() {
    let mut account = Account::new();
    // '!' and '#' sort before what separates a name from a tag's key.
    let names: Vec<String> = (0..7)
        .map(|index| format!("g{index}"))
        .chain(["g!".to_owned(), "g#1".to_owned(), "g".to_owned()])
        .collect();
    for name in &names {
        account
            .call(
                "CreateAutoScalingGroup",
                &format!("{} Tags.member.1.Key=k1 Tags.member.2.Key=k2", basic(name)),
            )
            .unwrap();
    }
    for (action, name, expected) in [
        ("DescribeAutoScalingGroups", "AutoScalingGroupName", 10_usize),
        ("DescribeTags", "ResourceId", 20),
    ] {
        let mut seen = Vec::new();
        let mut token = String::new();
        let mut pages = 0;
        loop {
            let next = if token.is_empty() { String::new() } else { format!("NextToken={token}") };
            let body = account.call(action, &format!("MaxRecords=3 {next}")).unwrap();
            let tops =
                if action == "DescribeTags" { elements(&body, name) } else { top_names(&body) };
            assert!(tops.len() <= 3);
            seen.extend(tops);
            pages += 1;
            token = element(&body, "NextToken");
            if token.is_empty() {
                break;
            }
        }
        assert_eq!((seen.len(), pages), (expected, expected.div_ceil(3)), "{action}: {seen:?}");
    }
}

/// Names of groups, not those inside their tags.
fn top_names(body: &str) -> Vec<String> {
    elements(body, "AutoScalingGroupName")
}

#[test]
fn filters_are_anded_and_their_values_ored() {
    let mut account = Account::new();
    for (name, tags) in [
        ("a", "Tags.member.1.Key=team Tags.member.1.Value=x"),
        ("b", "Tags.member.1.Key=team Tags.member.1.Value=y"),
        ("c", "Tags.member.1.Key=other Tags.member.1.Value=x"),
    ] {
        account.call("CreateAutoScalingGroup", &format!("{} {tags}", basic(name))).unwrap();
    }
    let filter = |index: usize, name: &str, values: &[&str]| {
        let values: String = values
            .iter()
            .enumerate()
            .map(|(at, value)| format!("Filters.member.{index}.Values.member.{}={value} ", at + 1))
            .collect();
        format!("Filters.member.{index}.Name={name} {values}")
    };
    for (form, expected) in [
        (filter(1, "tag:team", &["x"]), "a"),
        (filter(1, "tag:team", &["x", "y"]), "a b"),
        (filter(1, "tag-key", &["other"]), "c"),
        (filter(1, "tag-value", &["x"]), "a c"),
        (format!("{}{}", filter(1, "tag-value", &["x"]), filter(2, "tag-key", &["team"])), "a"),
        ("AutoScalingGroupNames.member.1=c AutoScalingGroupNames.member.2=none".to_owned(), "c"),
        (format!("AutoScalingGroupNames.member.1=b {}", filter(1, "tag-value", &["x"])), ""),
    ] {
        let body = account.call("DescribeAutoScalingGroups", &form).unwrap();
        assert_eq!(top_names(&body).join(" "), expected, "{form}");
    }
}

#[test]
fn an_instance_signs_with_what_its_imds_gave_it_also_after_it_is_gone() {
    let mut account = Account::new();
    account.group(1, "");
    let instance = account.instances()[0].clone();
    let credentials = instance.credentials.clone();
    let signer = Signer {
        key: credentials.access_key_id.as_str(),
        secret: &credentials.secret_access_key,
        token: Some(&credentials.session_token),
    };
    let who = |account: &mut Account| {
        let response = account.send(signer, "sts", "GetCallerIdentity", "");
        (response.status().as_u16(), String::from_utf8(response.body().to_vec()).unwrap())
    };
    let (status, body) = who(&mut account);
    assert_eq!(status, 200);
    assert_eq!(
        element(&body, "Arn"),
        format!("arn:aws:sts::123456789012:assumed-role/outstation-node/{}", instance.id)
    );
    assert_eq!(element(&body, "UserId"), format!("AROAEXAMPLENODE:{}", instance.id));
    // Renewed an hour before the end; the old ones stay good until then.
    account.pass(5 * 3600);
    assert_ne!(account.instances()[0].credentials, credentials);
    account.call("UpdateAutoScalingGroup", "AutoScalingGroupName=g DesiredCapacity=0").unwrap();
    assert_eq!((account.states().as_str(), who(&mut account).0), ("", 200));
    account.pass(3600);
    let (status, body) = who(&mut account);
    assert_eq!((status, element(&body, "Code").as_str()), (403, "ExpiredToken"));
    account.pass(3601);
    assert_eq!(element(&who(&mut account).1, "Code"), "InvalidClientTokenId");
}

#[test]
fn headers_beyond_awss_own_are_covered_by_the_signature() {
    let mut account = Account::new();
    let form = "Action=GetCallerIdentity&Version=2011-06-15";
    let good = signed(AGENT, "sts", form, &[("x-outstation-challenge", "abc")], account.now);
    assert_eq!(account.sim.handle(&good, account.now).status(), 200);
    let refused = |account: &mut Account, request: &Request<Bytes>| {
        let response = account.sim.handle(request, account.now);
        (response.status().as_u16(), element(&String::from_utf8_lossy(response.body()), "Code"))
    };
    let mut changed = good.clone();
    changed.headers_mut().insert("x-outstation-challenge", "abd".parse().unwrap());
    assert_eq!(refused(&mut account, &changed), (403, "SignatureDoesNotMatch".to_owned()));
    let mut removed = good.clone();
    removed.headers_mut().remove("x-outstation-challenge");
    assert_eq!(refused(&mut account, &removed), (403, "SignatureDoesNotMatch".to_owned()));
    // Signed for one service, sent as a call of the other.
    let other = signed(AGENT, "autoscaling", form, &[], account.now);
    assert_eq!(refused(&mut account, &other), (403, "SignatureDoesNotMatch".to_owned()));
    let unsigned = Request::post("/").body(Bytes::from(form)).unwrap();
    assert_eq!(refused(&mut account, &unsigned), (403, "MissingAuthenticationToken".to_owned()));
    let unknown = signed(AGENT, "sts", "Action=AssumeRole&Version=2011-06-15", &[], account.now);
    assert_eq!(refused(&mut account, &unknown), (400, "InvalidAction".to_owned()));
    let nothing = signed(AGENT, "sts", "", &[], account.now);
    assert_eq!(refused(&mut account, &nothing), (400, "InvalidAction".to_owned()));
}
