//! The admin API over real TLS.

use std::collections::BTreeMap;

use outstation_api::admin as api;
use outstation_protocol::model::{EnvironmentRef, GroupKind, GroupSpec, Scaling, USER_TAGS_MAX};
use outstation_protocol::order::{Intent, Order};
use outstation_protocol::{Digest, Envelope, EnvironmentName, TenantId};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{ACCOUNT, Running, api_data_plane, data_plane, order, soon};

fn put(order: Order) -> api::PutOrderRequest {
    api::PutOrderRequest { envelope: order.into_envelope().to_json().into() }
}

fn get(name: &str) -> api::GetGroupRequest {
    api::GetGroupRequest { data_plane: api_data_plane(), name: name.into() }
}

fn watch(name: &str) -> api::WatchGroupsRequest {
    api::WatchGroupsRequest { data_plane: api_data_plane(), name: name.into() }
}

#[tokio::test]
async fn nothing_is_told_without_the_token() {
    let broker = Running::start().await;
    let good = std::fs::read_to_string(broker.dir.path().join("admin.token")).expect("a token");
    for (token, wanted) in [
        ("", Code::Unauthenticated),
        ("wrong", Code::Unauthenticated),
        (&good.trim()[1..], Code::Unauthenticated),
        (good.trim(), Code::Ok),
    ] {
        let mut client = broker.client_with(token).await;
        let code =
            |result: Result<(), Status>| result.map_or_else(|status| status.code(), |()| Code::Ok);
        let agents = client.list_agents(api::ListAgentsRequest {}).await.map(drop);
        assert_eq!(code(agents), wanted, "ListAgents with {token:?}");
        let watched = client.watch_groups(watch("")).await.map(drop);
        assert_eq!(code(watched), wanted, "WatchGroups with {token:?}");
    }

    // Health is for whoever watches the process, and says nothing else.
    let mut health = HealthClient::new(broker.channel().await);
    for service in ["", "outstation.admin.v1.Admin"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await;
        let status = answer.expect("health answers").into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service:?}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn an_order_is_put_once_and_its_conflicts_name_both_generations() {
    let broker = Running::start().await;
    let mut client = broker.client().await;
    let first = order("delay", 1, None);
    let envelope = first.clone().into_envelope();

    let missing = client.get_group(get("delay")).await.expect_err("nothing was put");
    assert_eq!(missing.code(), Code::NotFound);
    let answer = client.put_order(put(first.clone())).await.expect("the first").into_inner();
    assert_eq!((answer.generation, &answer.digest), (1, &envelope.digest().to_string()));
    let again = client.put_order(put(first.clone())).await.expect("a lost reply costs nothing");
    assert_eq!(again.into_inner(), answer);

    let group = client.get_group(get("delay")).await.expect("it is there").into_inner();
    assert_eq!((group.name.as_str(), group.generation), ("delay", 1));
    assert_eq!(Envelope::from_json(&group.envelope).expect("whole"), envelope);
    assert!(group.put_at_unix_secs > 0 && group.accepted.is_none() && group.status.is_none());

    let mut of_other_tenant = order("delay", 2, Some(&envelope));
    of_other_tenant.tenant = TenantId::try_from("other").expect("a tenant");
    let mut elsewhere = order("delay", 2, Some(&envelope));
    elsewhere.data_plane = data_plane("999999999999");
    let mut rival = first.clone();
    rival.accept_before_unix_secs += 1;
    let garbage = api::PutOrderRequest { envelope: b"{}".to_vec().into() };
    let no_order = Envelope::unsigned(b"{}".to_vec()).to_json();
    for (request, code, wanted) in [
        (
            put(rival),
            Code::Aborted,
            "came first as generation 1 of group delay; the newest is generation 1",
        ),
        (
            put(order("delay", 3, Some(&envelope))),
            Code::Aborted,
            "generation 3 of group delay does not follow the newest, which is generation 1",
        ),
        (put(order("other", 2, Some(&envelope))), Code::Aborted, "generation 2 of group other"),
        (put(of_other_tenant), Code::FailedPrecondition, "tenant other"),
        (
            put(elsewhere),
            Code::FailedPrecondition,
            "does not serve data plane 999999999999/eu-central-1",
        ),
        (garbage, Code::InvalidArgument, "not valid JSON of the DSSE shape"),
        (api::PutOrderRequest { envelope: no_order.into() }, Code::InvalidArgument, "not an order"),
    ] {
        let status = client.put_order(request).await.expect_err(wanted);
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(wanted), "{:?} should say {wanted:?}", status.message());
    }
    let list = client.list_groups(api::ListGroupsRequest { data_plane: api_data_plane() }).await;
    assert_eq!(list.expect("a list").into_inner().groups, [group]);

    let bad_plane = api::DataPlane { account: "12".into(), region: "eu-central-1".into() };
    for (data_plane, code) in [
        (None, Code::InvalidArgument),
        (Some(bad_plane), Code::InvalidArgument),
        (
            Some(api::DataPlane { account: "999999999999".into(), region: "eu-central-1".into() }),
            Code::FailedPrecondition,
        ),
    ] {
        let request = api::ListGroupsRequest { data_plane };
        assert_eq!(client.list_groups(request).await.expect_err("refused").code(), code);
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_watch_shows_what_is_then_what_becomes() {
    let broker = Running::start().await;
    let mut client = broker.client().await;
    let first = order("delay", 1, None);
    client.put_order(put(first.clone())).await.expect("put");

    let mut all = client.watch_groups(watch("")).await.expect("a watch").into_inner();
    let mut one = client.watch_groups(watch("other")).await.expect("a watch").into_inner();
    let now = soon("the present state", all.message()).await.expect("good").expect("a group");
    assert_eq!((now.name.as_str(), now.generation), ("delay", 1));

    client.put_order(put(order("other", 1, None))).await.expect("put");
    let next = soon("the change", all.message()).await.expect("good").expect("a group");
    assert_eq!((next.name.as_str(), next.generation), ("other", 1));
    let next = soon("the change", one.message()).await.expect("good").expect("a group");
    assert_eq!((next.name.as_str(), next.generation), ("other", 1));

    // A broker that goes away says so: this is not the end of the list.
    broker.stop().await;
    let end = soon("the end", all.message()).await.expect_err("a reason");
    assert_eq!(end.code(), Code::Unavailable, "{end}");
}

#[tokio::test]
async fn a_slow_watcher_gets_the_newest_and_holds_up_nobody() {
    // More than the store's changes keep for a listener, and each of about 14 KiB, so that the
    // transport's windows hold but a few.
    const GENERATIONS: u64 = 300;
    let broker = Running::start().await;
    let mut client = broker.client().await;
    let mut slow = client.watch_groups(watch("")).await.expect("a watch").into_inner();
    let mut parent: Option<Envelope> = None;
    for generation in 1..=GENERATIONS {
        let mut order = order("delay", generation, parent.as_ref());
        order.intent = Intent::Apply(large_spec());
        parent = Some(order.clone().into_envelope());
        client.put_order(put(order)).await.expect("put");
    }
    let (mut seen, mut received) = (0, 0);
    while seen < GENERATIONS {
        let group = soon("the newest", slow.message()).await.expect("good").expect("a group");
        assert!(group.generation >= seen, "{} after {seen}", group.generation);
        seen = group.generation;
        received += 1;
    }
    assert!(received < GENERATIONS, "states are sent, not every event: {received}");
    broker.stop().await;
}

fn large_spec() -> GroupSpec {
    let tag = |n: usize| (format!("tag-{n}"), "v".repeat(256));
    GroupSpec {
        kind: GroupKind::Transform,
        scaling: Scaling::Provisioned { desired_nodes: 3 },
        environment: EnvironmentRef {
            name: EnvironmentName::try_from("flights").expect("a name"),
            digest: Digest::of(b"environment"),
        },
        bundle: Digest::of(b"bundle"),
        owner: None,
        description: None,
        tags: (0..USER_TAGS_MAX).map(tag).collect(),
        prevent_destroy: false,
        options: BTreeMap::new(),
    }
}

#[tokio::test]
async fn a_join_token_is_for_a_served_data_plane_and_a_bounded_time() {
    let broker = Running::start().await;
    let mut client = broker.client().await;
    for (account, valid_secs, wanted) in [
        (ACCOUNT, 0, Code::InvalidArgument),
        (ACCOUNT, 7 * 86_400 + 1, Code::InvalidArgument),
        ("999999999999", 60, Code::FailedPrecondition),
    ] {
        let data_plane =
            Some(api::DataPlane { account: account.into(), region: "eu-central-1".into() });
        let request = api::CreateJoinTokenRequest { data_plane, valid_secs };
        let status = client.create_join_token(request).await.expect_err("refused");
        assert_eq!(status.code(), wanted, "{status}");
    }
    broker.stop().await;
}
