//! The client against servers on real sockets: who gets calls, and what is repeated.

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::*;
use outstation_api::NOT_STARTED;
use outstation_api::transform::CallRequest;
use outstation_transform_client::{Client, Config, Endpoint, Phase, balance};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use tonic_health::ServingStatus;

const REFUSES: Mode = Mode::Fail { code: Code::Unavailable, not_started: true };

/// Ejections of a length that a test can wait for.
fn short_ejections() -> Config {
    let balance = balance::Config {
        eject_first: Duration::from_millis(50),
        eject_max: Duration::from_millis(200),
        ..balance::Config::default()
    };
    Config { balance, ..Config::default() }
}

fn spawn_call(client: &Client) -> JoinHandle<Result<(String, usize), Status>> {
    let client = client.clone();
    tokio::spawn(async move { call(&client).await })
}

#[tokio::test]
async fn calls_spread_over_all() {
    let (a, b, c) = (Server::start("a").await, Server::start("b").await, Server::start("c").await);
    let (client, _set) = client_of(&[&a, &b, &c], Config::default()).await;
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..20 {
        let calls: Vec<_> = (0..15).map(|_| spawn_call(&client)).collect();
        for call in calls {
            *answers.entry(call.await.unwrap().unwrap().0).or_default() += 1;
        }
    }
    // By chance alone a share of 300/3 is 50 or fewer once in 10^11 runs.
    assert!(answers.len() == 3 && answers.values().all(|count| *count > 50), "{answers:?}");
    assert!(client.endpoints().iter().all(|view| view.in_flight == 0));
    client.list_targets(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn what_no_server_takes_is_refused_here_and_blames_nobody() {
    let a = Server::start("a").await;
    let (client, _set) = client_of(&[&a], Config::default()).await;
    let request = CallRequest { target: "x".repeat((64 << 20) + 1), rows: Vec::new() };
    // Longer than time lasts, too.
    let status = client.call(&request, Duration::MAX).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert!(status.message().contains("send fewer rows"), "{status:?}");
    assert_eq!(client.wait_up(1, PATIENCE).await, 1);
    let untouched = |view: &outstation_transform_client::EndpointView| {
        matches!(view.phase, Phase::Up { .. }) && view.in_flight == 0
    };
    assert!(client.endpoints().iter().all(untouched), "{:?}", client.endpoints());
    assert!(call(&client).await.is_ok());
}

#[tokio::test]
async fn calls_wait_for_room_and_not_for_ever() {
    let a = Server::start("a").await;
    let balance = balance::Config { in_flight_max: 2, ..balance::Config::default() };
    let (client, _set) = client_of(&[&a], Config { balance, ..Config::default() }).await;
    a.set(Mode::Hold);
    let running: Vec<_> = (0..2).map(|_| spawn_call(&client)).collect();
    a.until_started(2).await;
    let request = CallRequest { target: "f".into(), rows: Vec::new() };
    let status = client.call(&request, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("as many calls"), "{status:?}");
    assert!(status.metadata().contains_key(NOT_STARTED));
    let waiting: Vec<_> = (0..5).map(|_| spawn_call(&client)).collect();
    tokio::task::yield_now().await;
    a.set(Mode::Answer);
    for call in running.into_iter().chain(waiting) {
        assert_eq!(call.await.unwrap().unwrap().0, "a");
    }
    assert_eq!(a.started(), 7, "the one that was given up was never sent");
}

#[tokio::test]
async fn what_the_group_would_refuse_is_not_sent() {
    let a = Server::start("a").await;
    let (client, _set) = client_of(&[&a], Config::default()).await;
    let call = async |target: &str| {
        let request = CallRequest { target: target.into(), rows: Vec::new() };
        client.call(&request, PATIENCE).await
    };
    a.set(Mode::Fail { code: Code::ResourceExhausted, not_started: true });
    let mut told = Vec::new();
    for _ in 0..400 {
        told.push(call("flooded").await.unwrap_err());
    }
    assert!(told.iter().all(|status| status.code() == Code::ResourceExhausted));
    assert!(told.iter().all(|status| status.metadata().contains_key(NOT_STARTED)));
    // Of 400 some 50 are sent: by chance alone 200 are never.
    assert!((10..200).contains(&a.started()), "{} were sent", a.started());
    assert!(told.iter().any(|status| status.message().contains("refuses most calls of flooded")));
    a.set(Mode::Answer);
    call("another").await.unwrap();
    until("it to be called again", async || call("flooded").await.ok()).await;
}

#[tokio::test]
async fn the_busy_one_is_passed_over() {
    let (a, b, c) = (Server::start("a").await, Server::start("b").await, Server::start("c").await);
    a.set(Mode::Hold);
    let (client, set) = client_of(&[&a], Config::default()).await;
    let held = spawn_call(&client);
    a.until_started(1).await;
    set.send_replace(vec![a.endpoint.clone(), b.endpoint.clone(), c.endpoint.clone()]);
    assert_eq!(client.wait_up(3, PATIENCE).await, 3);
    for _ in 0..100 {
        assert_ne!(call(&client).await.unwrap().0, "a");
    }
    a.set(Mode::Answer);
    assert_eq!(held.await.unwrap().unwrap(), ("a".into(), 1));
}

#[tokio::test]
async fn a_removed_endpoint_ends_its_calls_and_gets_no_more() {
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    a.set(Mode::Hold);
    let (client, set) = client_of(&[&a], Config::default()).await;
    let held = spawn_call(&client);
    a.until_started(1).await;
    set.send_replace(vec![b.endpoint.clone()]);
    until("the removal", async || {
        let instances: Vec<String> =
            client.endpoints().into_iter().map(|view| view.endpoint.instance).collect();
        (instances == ["b"]).then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(call(&client).await.unwrap(), ("b".into(), 1));
    }
    assert!(!held.is_finished());
    a.set(Mode::Answer);
    assert_eq!(held.await.unwrap().unwrap(), ("a".into(), 1));
    assert_eq!(a.started(), 1);
    drop(set);
    assert_eq!(call(&client).await.unwrap().0, "b", "the last set stays when nobody tells more");
}

#[tokio::test]
async fn a_call_waits_for_the_first_endpoint() {
    let a = Server::start("a").await;
    let (set, client) = client_of_endpoints([], Config::default());
    let waiting = spawn_call(&client);
    set.send_replace(vec![a.endpoint.clone()]);
    assert_eq!(waiting.await.unwrap().unwrap(), ("a".into(), 1));
}

#[tokio::test]
async fn but_not_for_ever_and_says_why() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let dead = Endpoint { instance: "i-dead".into(), address: closed.to_string() };
    let config = Config { wait_max: Duration::from_millis(100), ..Config::default() };
    for (endpoints, reason) in [
        (vec![], "the group has no endpoints"),
        (vec![dead], "none of 1 endpoints is usable; i-dead (127.0.0.1:"),
    ] {
        let (_set, client) = client_of_endpoints(endpoints, config);
        let status = call(&client).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().starts_with(reason), "{status:?}");
        assert!(status.metadata().get(NOT_STARTED).is_some(), "{status:?}");
    }
}

/// Calls `a` first, as `b` is busy with one; then `b` would answer.
async fn first_a_then_b(
    a: &Endpoint,
    b: &Server,
    deadline: Duration,
) -> Result<(String, usize), Status> {
    b.set(Mode::Hold);
    let (client, set) = client_of(&[b], Config::default()).await;
    let held = spawn_call(&client);
    let before = b.started();
    b.until_started(before.max(1)).await;
    until("b to hold it", async || {
        (client.endpoints()[0].in_flight == 1 && b.started() > 0).then_some(())
    })
    .await;
    set.send_replace(vec![a.clone(), b.endpoint.clone()]);
    assert_eq!(client.wait_up(2, PATIENCE).await, 2);
    // Later calls are answered; the held one too, but `a` has been chosen by then.
    let picked = {
        let client = client.clone();
        tokio::spawn(async move { client.call(&CallRequest::default(), deadline).await })
    };
    until("the choice", async || {
        let views = client.endpoints();
        let a = views.iter().find(|view| view.endpoint == *a)?;
        (a.in_flight > 0 || picked.is_finished() || b.started() > 1).then_some(())
    })
    .await;
    b.set(Mode::Answer);
    held.await.unwrap().unwrap();
    let (_, used) = picked.await.unwrap()?;
    Ok((used.endpoint.instance.clone(), used.tries))
}

#[tokio::test]
async fn only_what_was_not_started_is_repeated() {
    let fail = |code, not_started| Mode::Fail { code, not_started };
    let cases = [
        (fail(Code::Unavailable, true), Ok(2)),
        (fail(Code::ResourceExhausted, true), Ok(2)),
        (fail(Code::Unavailable, false), Err(Code::Unavailable)),
        (fail(Code::ResourceExhausted, false), Err(Code::ResourceExhausted)),
        (fail(Code::Aborted, false), Err(Code::Aborted)),
        (fail(Code::NotFound, false), Err(Code::NotFound)),
        (fail(Code::DeadlineExceeded, false), Err(Code::DeadlineExceeded)),
        (Mode::Answer, Ok(1)),
    ];
    for (mode, expected) in cases {
        let (a, b) = (Server::start("a").await, Server::start("b").await);
        a.set(mode);
        let answer = first_a_then_b(&a.endpoint, &b, PATIENCE).await;
        assert_eq!(a.started(), 1, "{mode:?}");
        match expected {
            Ok(tries) => assert_eq!(answer.unwrap().1, tries, "{mode:?}"),
            Err(code) => {
                let status = answer.unwrap_err();
                assert_eq!((status.code(), status.message()), (code, "as told"), "{mode:?}");
                assert_eq!(b.started(), 1, "{mode:?}: only the one it held");
            }
        }
    }
}

#[tokio::test]
async fn a_call_on_a_lost_connection_is_not_repeated() {
    let (mut a, b) = (Server::start("a").await, Server::start("b").await);
    a.set(Mode::Hold);
    let (client, _set) = client_of(&[&a], Config::default()).await;
    let held = spawn_call(&client);
    a.until_started(1).await;
    a.die();
    let status = held.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let message = "the connection to a (127.0.0.1:";
    assert!(status.message().starts_with(message), "{status:?}");
    assert!(status.message().contains("was lost while the call was running"), "{status:?}");
    assert!(status.metadata().get(NOT_STARTED).is_none());
    drop(b);
}

#[derive(Clone, Copy, PartialEq)]
enum Bare {
    RefuseStreams,
    Silent,
}

/// A server that knows HTTP/2 and no gRPC: it has no health service. Tells the `grpc-timeout` of calls.
async fn bare_server(mode: Bare) -> (Endpoint, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut unanswered = Vec::new();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    if request.uri().path().contains("Health") {
                        let unimplemented = http::Response::builder()
                            .header("content-type", "application/grpc")
                            .header("grpc-status", "12");
                        respond.send_response(unimplemented.body(()).unwrap(), true).unwrap();
                        continue;
                    }
                    let timeout = &request.headers()["grpc-timeout"];
                    tell.send(timeout.to_str().unwrap().to_owned()).unwrap();
                    match mode {
                        Bare::RefuseStreams => respond.send_reset(h2::Reason::REFUSED_STREAM),
                        Bare::Silent => unanswered.push((request, respond)),
                    }
                }
            });
        }
    });
    (Endpoint { instance: "a".into(), address }, told)
}

#[tokio::test]
async fn a_refused_stream_is_repeated() {
    let b = Server::start("b").await;
    let (a, _told) = bare_server(Bare::RefuseStreams).await;
    assert_eq!(first_a_then_b(&a, &b, PATIENCE).await.unwrap(), ("b".into(), 2));
}

#[tokio::test]
async fn a_silent_server_costs_the_deadline_and_no_more() {
    let b = Server::start("b").await;
    let (a, mut told) = bare_server(Bare::Silent).await;
    let deadline = Duration::from_millis(200);
    let begun = Instant::now();
    let status = first_a_then_b(&a, &b, deadline).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(status.message().contains("the server did not answer"), "{status:?}");
    assert!(begun.elapsed() >= deadline);
    let told = told.recv().await.unwrap();
    let micros: u64 = told.strip_suffix('u').unwrap().parse().unwrap();
    assert!(micros <= 200_000, "{told}");
    assert_eq!(b.started(), 1, "only the one it held");
}

#[tokio::test]
async fn retries_never_storm() {
    let (a, b, c) = (Server::start("a").await, Server::start("b").await, Server::start("c").await);
    let (client, _set) = client_of(&[&a, &b, &c], Config::default()).await;
    for server in [&a, &b, &c] {
        server.set(Mode::Fail { code: Code::ResourceExhausted, not_started: true });
    }
    for _ in 0..200 {
        assert_eq!(call(&client).await.unwrap_err().code(), Code::ResourceExhausted);
    }
    let tries = a.started() + b.started() + c.started();
    assert!((200..=200 + 20 + 40).contains(&tries), "{tries} tries of 200 calls");
}

#[tokio::test]
async fn a_failing_endpoint_is_ejected_and_comes_back_when_it_is_well() {
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    let (client, _set) = client_of(&[&a, &b], short_ejections()).await;
    a.set(REFUSES);
    a.set_health(ServingStatus::NotServing).await;
    until("the ejection", async || {
        assert_eq!(call(&client).await.unwrap().0, "b", "no call fails");
        (client.endpoints()[0].phase == Phase::Ejected).then_some(())
    })
    .await;
    assert_eq!(a.started(), 3, "three strikes");
    // Asked again several times (50, 100, 200 ms) and never given a call meanwhile.
    let again = Instant::now() + Duration::from_millis(500);
    while Instant::now() < again {
        assert_eq!(call(&client).await.unwrap(), ("b".into(), 1));
    }
    assert_eq!(a.started(), 3);
    a.set(Mode::Answer);
    a.set_health(ServingStatus::Serving).await;
    until("its return", async || (call(&client).await.unwrap().0 == "a").then_some(())).await;
}

#[tokio::test]
async fn the_last_one_is_kept() {
    let a = Server::start("a").await;
    let (client, _set) = client_of(&[&a], short_ejections()).await;
    a.set(REFUSES);
    for _ in 0..10 {
        assert_eq!(call(&client).await.unwrap_err().message(), "as told");
    }
    a.set(Mode::Answer);
    assert_eq!(call(&client).await.unwrap(), ("a".into(), 1), "at once");
}

#[tokio::test]
async fn no_calls_before_it_serves() {
    let any = "127.0.0.1:0".parse().unwrap();
    let a = Server::start_at("a", any, ServingStatus::NotServing).await;
    let b = Server::start("b").await;
    let both = [a.endpoint.clone(), b.endpoint.clone()];
    let (_set, client) = client_of_endpoints(both, Config::default());
    assert_eq!(client.wait_up(1, PATIENCE).await, 1);
    for _ in 0..50 {
        assert_eq!(call(&client).await.unwrap(), ("b".into(), 1));
    }
    assert_eq!(a.started(), 0);
    a.set_health(ServingStatus::Serving).await;
    assert_eq!(client.wait_up(2, PATIENCE).await, 2);
    until("calls to it", async || (call(&client).await.unwrap().0 == "a").then_some(())).await;
}

#[tokio::test]
async fn a_server_that_died_is_used_again_when_it_is_back() {
    let (mut a, b) = (Server::start("a").await, Server::start("b").await);
    let (client, _set) = client_of(&[&a, &b], Config::default()).await;
    a.die();
    until("the loss", async || {
        let phases: Vec<Phase> = client.endpoints().iter().map(|view| view.phase).collect();
        (phases[0] == Phase::Down).then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(call(&client).await.unwrap(), ("b".into(), 1));
    }
    let address = a.endpoint.address.parse().unwrap();
    let a = Server::start_at("a", address, ServingStatus::Serving).await;
    assert_eq!(client.wait_up(2, PATIENCE).await, 2);
    until("calls to it", async || (call(&client).await.unwrap().0 == "a").then_some(())).await;
    drop(a);
}

#[tokio::test]
async fn a_cancelled_call_gives_its_place_back() {
    let a = Server::start("a").await;
    a.set(Mode::Hold);
    let (client, _set) = client_of(&[&a], Config::default()).await;
    let held = spawn_call(&client);
    a.until_started(1).await;
    assert_eq!(client.endpoints()[0].in_flight, 1);
    held.abort();
    assert!(held.await.is_err());
    assert_eq!(client.endpoints()[0].in_flight, 0);
}
