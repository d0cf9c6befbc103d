//! The server with real worker processes, most of them ill-behaved.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use common::*;
use outstation_api::transform::ListTargetsResponse;
use outstation_transform_server::{Options, SERVICE, Server};
use prost::Message;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const MS_100: Option<Duration> = Some(Duration::from_millis(100));

#[tokio::test]
async fn passes_bytes_through() {
    let bundle = Bundle::new();
    let server = start_stub(&bundle, &["--workers", "2"]).await;
    let channel = server.until_serving().await;
    assert_eq!(call(&channel, "echo", None).await.unwrap(), request("echo"));
    // 20 MiB of something that is no row of ours: not this server's business.
    let large: Bytes =
        [&request("echo")[..], &[0x1a, 0x80, 0x80, 0x80, 0x0a], &vec![7; 20 << 20]].concat().into();
    assert!(call_bytes(&channel, large.clone(), None).await.unwrap() == large);
    let many = (0..200).map(|_| call(&channel, "echo", None));
    for answer in futures::future::join_all(many).await {
        assert_eq!(answer.unwrap(), request("echo"));
    }
}

#[tokio::test]
async fn what_is_not_a_call() {
    let bundle = Bundle::new();
    let server = start_stub(&bundle, &[]).await;
    let channel = server.until_serving().await;
    let cases: &[(&str, Bytes, Option<&str>, Code, &str)] = &[
        ("nothing", Bytes::new(), None, Code::InvalidArgument, "names no target"),
        (
            "garbage",
            Bytes::from_static(b"\xff\xff"),
            None,
            Code::InvalidArgument,
            "not a CallRequest",
        ),
        ("not UTF-8", Bytes::from_static(b"\x0a\x01\xff"), None, Code::InvalidArgument, "UTF-8"),
        ("odd timeout", request("echo"), Some("soon"), Code::InvalidArgument, "grpc-timeout"),
        (
            "too large",
            Bytes::from(vec![0; (64 << 20) + 1]),
            None,
            Code::OutOfRange,
            "message length",
        ),
        (
            "the worker's own status",
            request("fail"),
            None,
            Code::InvalidArgument,
            "fail: no rows, öh",
        ),
    ];
    for (name, bytes, timeout, code, message) in cases {
        let path = "/outstation.transform.v1.Transform/Call";
        let status =
            unary(&channel, path, bytes.clone(), timeout.map(str::to_owned)).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message().contains(message)),
            (*code, true),
            "{name}: {status:?}"
        );
    }
    let status = unary(&channel, "/outstation.transform.v1.Transform/Other", Bytes::new(), None)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(call(&channel, "echo", None).await.unwrap(), request("echo"));
    assert_eq!(bundle.lines("workers").len(), 1, "no worker was lost");
}

#[tokio::test]
async fn health_is_true_from_the_first_second() {
    let bundle = Bundle::with_mode("gate");
    let mut server = start_stub(&bundle, &[]).await;
    let channel = server.channel().await;
    for service in ["", SERVICE] {
        assert_eq!(health(&channel, service).await, Ok(ServingStatus::NotServing));
    }
    assert_eq!(health(&channel, "echo").await, Err(Code::NotFound));
    let status = call(&channel, "echo", None).await.unwrap_err();
    assert_eq!((status.code(), not_started(&status)), (Code::Unavailable, true), "{status:?}");
    assert!(status.message().contains("no worker has loaded the bundle yet"), "{status:?}");
    let list = "/outstation.transform.v1.Transform/ListTargets";
    assert_eq!(
        unary(&channel, list, Bytes::new(), None).await.unwrap_err().code(),
        Code::Unavailable
    );

    let origin = "http://test".parse().unwrap();
    let watch = HealthCheckRequest { service: "broken".into() };
    let mut watched =
        HealthClient::with_origin(channel.clone(), origin).watch(watch).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    bundle.write("ready", "");
    let channel = server.until_serving().await;
    for (service, expected) in [
        ("", Ok(ServingStatus::Serving)),
        (SERVICE, Ok(ServingStatus::Serving)),
        ("echo", Ok(ServingStatus::Serving)),
        ("broken", Ok(ServingStatus::NotServing)),
        ("other", Err(Code::NotFound)),
    ] {
        assert_eq!(health(&channel, service).await, expected, "{service:?}");
    }
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    let listed = unary(&channel, list, Bytes::new(), None).await.unwrap();
    let listed = ListTargetsResponse::decode(listed).unwrap();
    assert_eq!(listed.targets.last().unwrap().broken, "SyntaxError: line 3");

    server.stop();
    assert_eq!(
        watched.message().await.unwrap().map(|response| response.status()),
        None,
        "a watch ends with the server"
    );
    server.ended().await;
}

#[tokio::test]
async fn a_runaway_is_killed_at_the_deadline_and_replaced() {
    let bundle = Bundle::new();
    let server = start_stub(&bundle, &["--workers", "2"]).await;
    let channel = server.until_serving().await;
    bundle.until_lines("workers", 2).await;
    let begun = Instant::now();
    let hanging = call(&channel, "hang", Some(Duration::from_secs(1)));
    let others = async {
        bundle.until_lines("hanging", 1).await;
        for _ in 0..50 {
            assert_eq!(
                call(&channel, "echo", None).await.unwrap(),
                request("echo"),
                "the others do not notice"
            );
        }
    };
    let (status, ()) = tokio::join!(hanging, others);
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(status.message().contains("hang did not end before the deadline"), "{status:?}");
    assert!(begun.elapsed() >= Duration::from_secs(1) && !not_started(&status));
    let pid = bundle.lines("hanging")[0].clone();
    until("the runaway's end", async || (!alive(&pid)).then_some(())).await;
    assert_eq!(bundle.until_lines("workers", 3).await.len(), 3, "one was replaced");
}

#[tokio::test]
async fn what_waits_too_long_is_never_started() {
    let bundle = Bundle::new();
    let server = start_stub(&bundle, &[]).await;
    let channel = server.until_serving().await;
    let gate = tokio::spawn({
        let channel = channel.clone();
        async move { call(&channel, "gate", None).await }
    });
    bundle.until_lines("started", 1).await;
    let status = call(&channel, "gate", MS_100).await.unwrap_err();
    assert_eq!((status.code(), not_started(&status)), (Code::DeadlineExceeded, true), "{status:?}");
    assert!(status.message().contains("gate was not started"), "{status:?}");
    bundle.write("open", "");
    assert_eq!(gate.await.unwrap().unwrap(), request("gate"));
    assert_eq!(call(&channel, "echo", None).await.unwrap(), request("echo"));
    assert_eq!(bundle.lines("started").len(), 1, "the late one was not started");
}

#[tokio::test]
async fn a_cancelled_caller_is_dropped_and_a_full_queue_refuses() {
    let bundle = Bundle::new();
    let server = start_stub(&bundle, &[]).await;
    let channel = server.until_serving().await;
    let first = tokio::spawn({
        let channel = channel.clone();
        async move { call(&channel, "gate", None).await }
    });
    bundle.until_lines("started", 1).await;
    // One more than may wait: exactly one is refused, and tells which ones were queued. A connection has
    // fewer at a time.
    let mut channels = Vec::new();
    for _ in 0..10 {
        channels.push(server.channel().await);
    }
    let spawn_on =
        |channel: Channel| tokio::spawn(async move { call(&channel, "gate", None).await });
    let mut waiting: Vec<_> =
        (0..1025).map(|number| spawn_on(channels[number % 10].clone())).collect();
    let (refused, index, _) = futures::future::select_all(&mut waiting).await;
    let status = refused.unwrap().unwrap_err();
    assert_eq!(
        (status.code(), not_started(&status)),
        (Code::ResourceExhausted, true),
        "{status:?}"
    );
    assert!(status.message().contains("1024 calls are waiting"), "{status:?}");
    waiting.swap_remove(index);
    // The callers go away: their places are free again.
    for caller in waiting {
        caller.abort();
        assert!(caller.await.is_err());
    }
    until("a place in the queue", async || {
        let status = call(&channel, "echo", MS_100).await.unwrap_err();
        (status.code() == Code::DeadlineExceeded).then_some(())
    })
    .await;
    bundle.write("open", "");
    first.await.unwrap().unwrap();
    assert_eq!(call(&channel, "echo", None).await.unwrap(), request("echo"));
    let started = bundle.lines("started").len();
    assert!(started < 1024, "{started} calls were run for callers that had gone");
}

#[tokio::test]
async fn dying_workers_cost_the_started_request() {
    let bundle = Bundle::new();
    let server = start_stub(&bundle, &[]).await;
    let channel = server.until_serving().await;
    for (target, message) in [
        ("die", "the worker that ran die died: it exited with status 7: last words"),
        ("fork_die", "the worker that ran fork_die died: it exited with status 7"),
        (
            "garbage",
            "the worker that ran garbage died: it broke the protocol: a frame of 4294967295 bytes",
        ),
        ("wrong_id", "the worker that ran wrong_id died: it broke the protocol"),
        ("big", "the worker that ran big died: it broke the protocol"),
    ] {
        let calls = (call(&channel, target, None), call(&channel, "echo", None));
        let (lost, other) = tokio::join!(calls.0, calls.1);
        let status = lost.unwrap_err();
        assert_eq!(
            (status.code(), not_started(&status)),
            (Code::Aborted, false),
            "{target}: {status:?}"
        );
        assert!(status.message().starts_with(message), "{target}: {status:?}");
        assert_eq!(other.unwrap(), request("echo"), "waits for the replacement");
        assert_eq!(health(&channel, "").await, Ok(ServingStatus::Serving));
    }
    for orphan in bundle.lines("orphan") {
        until("the end of what a worker left behind", async || (!alive(&orphan)).then_some(()))
            .await;
    }
}

/// Calls of one target that differ in what the worker does with them.
fn doing(what: &'static str) -> Bytes {
    [&request("echo")[..], &[0x1a, what.len() as u8], what.as_bytes()].concat().into()
}

/// Sends calls that will be in one frame, and lets the worker have it: each with its timeout.
async fn in_one_frame(
    bundle: &Bundle,
    channel: &Channel,
    calls: &[(&'static str, u64)],
) -> Vec<tokio::task::JoinHandle<Result<Bytes, Status>>> {
    // How long a call takes is known from then on: many fit a frame.
    call(channel, "echo", None).await.unwrap();
    let spawn = |bytes: Bytes, millis: u64| {
        let channel = channel.clone();
        tokio::spawn(async move {
            call_bytes(&channel, bytes, Some(Duration::from_millis(millis))).await
        })
    };
    let gate = spawn(request("gate"), 60_000);
    bundle.until_lines("started", 1).await;
    let calls = calls.iter().map(|(what, millis)| spawn(doing(what), *millis)).collect();
    // What a connection brought before this is queued when this is answered.
    let list = "/outstation.transform.v1.Transform/ListTargets";
    unary(channel, list, Bytes::new(), None).await.unwrap();
    bundle.write("open", "");
    gate.await.unwrap().unwrap();
    std::fs::remove_file(bundle.path().join("open")).unwrap();
    calls
}

#[tokio::test]
async fn a_death_costs_the_call_that_ran_and_no_other_of_its_frame() {
    let bundle = Bundle::new();
    let server = start_stub(&bundle, &[]).await;
    let channel = server.until_serving().await;
    let calls =
        [("!hold", 60_000), ("!hold", 60_000), ("!die", 60_000), ("a", 60_000), ("b", 60_000)];
    let mut answers = in_one_frame(&bundle, &channel, &calls).await.into_iter();
    for what in ["!hold", "!hold"] {
        let answer = answers.next().unwrap().await.unwrap();
        assert_eq!(answer.unwrap(), doing(what), "finished, and not lost with the worker");
    }
    let lost = answers.next().unwrap().await.unwrap().unwrap_err();
    assert_eq!((lost.code(), not_started(&lost)), (Code::Aborted, false), "{lost:?}");
    for what in ["a", "b"] {
        let answer = answers.next().unwrap().await.unwrap();
        assert_eq!(answer.unwrap(), doing(what), "not begun, and given to another worker");
    }
    assert_eq!(bundle.lines("workers").len(), 2);
}

#[tokio::test]
async fn a_runaway_holds_back_no_answer_of_its_frame() {
    let bundle = Bundle::new();
    let server = start_stub(&bundle, &[]).await;
    let channel = server.until_serving().await;
    let calls = [("!hold", 60_000), ("!hang", 3000), ("late", 300), ("a", 60_000)];
    let mut answers = in_one_frame(&bundle, &channel, &calls).await.into_iter();
    let (held, hanging) = (answers.next().unwrap(), answers.next().unwrap());
    assert_eq!(held.await.unwrap().unwrap(), doing("!hold"));
    let late = answers.next().unwrap().await.unwrap().unwrap_err();
    assert_eq!((late.code(), not_started(&late)), (Code::DeadlineExceeded, true), "{late:?}");
    assert!(!hanging.is_finished(), "both were answered while it ran on");
    let runaway = hanging.await.unwrap().unwrap_err();
    assert_eq!((runaway.code(), not_started(&runaway)), (Code::DeadlineExceeded, false));
    assert!(runaway.message().contains("its worker has been ended"), "{runaway:?}");
    assert_eq!(answers.next().unwrap().await.unwrap().unwrap(), doing("a"));
    assert_eq!(bundle.lines("workers").len(), 2);
}

#[tokio::test]
async fn a_worn_worker_is_relieved_and_no_call_notices() {
    let bundle = Bundle::new();
    let server = start_stub(&bundle, &["--worker-calls-max", "20"]).await;
    let channel = server.until_serving().await;
    until("another worker", async || {
        assert_eq!(call(&channel, "echo", None).await.unwrap(), request("echo"));
        (bundle.lines("workers").len() >= 3).then_some(())
    })
    .await;
    let first = bundle.lines("workers")[0].clone();
    until("the worn one's end", async || (!alive(&first)).then_some(())).await;
}

#[tokio::test]
async fn prometheus_sees_what_came_of_the_calls() {
    let bundle = Bundle::new();
    let server = start_stub(&bundle, &["--metrics", "127.0.0.1:0"]).await;
    let channel = server.until_serving().await;
    for target in ["echo", "echo", "fail", "die", "nothing-of-that-name"] {
        let _ = call(&channel, target, None).await;
    }
    let text = scrape(server.metrics.unwrap()).await;
    for line in [
        "outstation_transform_calls_total{function=\"echo\",outcome=\"ok\"} 2",
        "outstation_transform_calls_total{function=\"fail\",outcome=\"failed\"} 1",
        "outstation_transform_calls_total{function=\"die\",outcome=\"worker_died\"} 1",
        "outstation_transform_function_seconds_count{function=\"echo\"} 2",
        "outstation_transform_queue_seconds_count{function=\"die\"} 1",
        "outstation_transform_worker_ends_total{why=\"died\"} 1",
        "outstation_transform_waiting 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("nothing-of-that-name"), "a caller makes no series of its own");
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn a_trace_reaches_the_worker() {
    let bundle = Bundle::new();
    let server = start_stub(&bundle, &[]).await;
    let channel = server.until_serving().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut traced = tonic::Request::new(request("env"));
    traced.metadata_mut().insert("traceparent", trace.parse().unwrap());
    let origin = "http://test".parse().unwrap();
    let path = "/outstation.transform.v1.Transform/Call".parse().unwrap();
    let mut grpc = tonic::client::Grpc::with_origin(channel, origin);
    let answer: Bytes =
        grpc.unary(traced, path, outstation_api::codec::BytesCodec).await.unwrap().into_inner();
    let seen: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(seen["trace"], trace);
}

#[tokio::test]
async fn a_bundle_that_never_loads_is_said_and_retried() {
    for (mode, reason) in [
        ("exit", "it exited with status 3: ModuleNotFoundError: No module named 'nothere'"),
        ("garbage", "it broke the protocol"),
        ("never_ready", "the bundle was not loaded within 1s"),
    ] {
        let bundle = Bundle::with_mode(mode);
        let server = start_stub(&bundle, &["--start-secs", "1"]).await;
        let channel = server.channel().await;
        let status = until("the reason", async || {
            assert_eq!(health(&channel, "").await, Ok(ServingStatus::NotServing));
            let status = call(&channel, "echo", None).await.unwrap_err();
            status.message().contains("did not start").then_some(status)
        })
        .await;
        assert_eq!(
            (status.code(), not_started(&status)),
            (Code::Unavailable, true),
            "{mode}: {status:?}"
        );
        assert!(status.message().contains(reason), "{mode}: {status:?}");
        std::fs::remove_file(bundle.path().join("mode")).unwrap();
        let channel = server.until_serving().await;
        assert_eq!(
            call(&channel, "echo", None).await.unwrap(),
            request("echo"),
            "{mode}: repaired"
        );
    }
}

#[tokio::test]
async fn drain_answers_what_was_taken_and_refuses_the_rest() {
    let bundle = Bundle::new();
    let mut server = start_stub(&bundle, &[]).await;
    let channel = server.until_serving().await;
    let spawn = |target: &'static str| {
        let channel = channel.clone();
        tokio::spawn(async move { call(&channel, target, None).await })
    };
    let running = spawn("gate");
    bundle.until_lines("started", 1).await;
    let queued = spawn("echo");
    // A request that the front has before the stop is one that was taken: wait until it is queued.
    until("the queue", async || {
        tokio::task::yield_now().await;
        (call(&channel, "echo", MS_100).await.unwrap_err().code() == Code::DeadlineExceeded)
            .then_some(())
    })
    .await;
    server.stop();
    let refused: Status = until("the drain", async || {
        let status = call(&channel, "echo", MS_100).await.unwrap_err();
        (status.code() == Code::Unavailable).then_some(status)
    })
    .await;
    assert!(
        not_started(&refused) && refused.message().contains("the server is draining"),
        "{refused:?}"
    );
    assert_eq!(health(&channel, "").await, Ok(ServingStatus::NotServing));
    assert_eq!(health(&channel, "echo").await, Ok(ServingStatus::NotServing));
    let newcomer = server.channel().await;
    assert!(
        not_started(&call(&newcomer, "echo", None).await.unwrap_err()),
        "a new connection hears it too"
    );
    let worker = bundle.lines("workers")[0].clone();
    assert!(!running.is_finished() && alive(&worker));
    bundle.write("open", "");
    assert_eq!(running.await.unwrap().unwrap(), request("gate"));
    assert_eq!(queued.await.unwrap().unwrap(), request("echo"));
    server.ended().await;
    assert!(!alive(&worker));
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_drain_is_bounded() {
    let bundle = Bundle::new();
    let mut server = start_stub(&bundle, &["--drain-secs", "1"]).await;
    let channel = server.until_serving().await;
    let hanging = tokio::spawn(async move { call(&channel, "hang", None).await });
    bundle.until_lines("hanging", 1).await;
    server.stop();
    let status = hanging.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    assert!(status.message().contains("the server stopped while it ran hang"), "{status:?}");
    server.ended().await;
    assert!(!alive(&bundle.lines("workers")[0]));
}

#[tokio::test]
async fn floods_of_log_lines_hold_nothing_up() {
    let bundle = Bundle::new();
    let server = start_stub(&bundle, &[]).await;
    let channel = server.until_serving().await;
    assert_eq!(call(&channel, "log", None).await.unwrap(), request("log"));
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    let bundle = Bundle::new();
    let path = bundle.path().join("server.sock");
    // Left behind by a server that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let unix = path.display().to_string();
    let mut server = start_stub(&bundle, &["--unix", &unix]).await;
    server.until_serving().await;
    let channel = connect(tokio::net::UnixStream::connect(&path).await.unwrap()).await;
    assert_eq!(call(&channel, "echo", None).await.unwrap(), request("echo"));
    server.stop();
    server.ended().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn starts_that_cannot_work_say_so() {
    let bundle = Bundle::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let not_executable = bundle.path().join("python");
    std::fs::write(&not_executable, "").unwrap();
    std::fs::set_permissions(&not_executable, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (folder, python) = (bundle.path().display().to_string(), python());
    let cases = [
        (
            "127.0.0.1:0",
            "/no/python",
            &*folder,
            "there is no Python interpreter at /no/python",
            "--python takes",
        ),
        (
            "127.0.0.1:0",
            not_executable.to_str().unwrap(),
            &*folder,
            "there is no Python",
            "--python takes",
        ),
        (
            "127.0.0.1:0",
            "no-such-python",
            &*folder,
            "there is no Python interpreter at no-such-python",
            "--python takes",
        ),
        (
            "127.0.0.1:0",
            &*python,
            "/no/bundle",
            "there is no bundle folder at /no/bundle",
            "--bundle takes",
        ),
        (
            &*taken.local_addr().unwrap().to_string(),
            &*python,
            &*folder,
            "cannot listen on 127.0.0.1:",
            "another process",
        ),
        ("192.0.2.1:80", &*python, &*folder, "cannot listen on 192.0.2.1:80", "--listen takes"),
    ];
    for (listen, python, bundle, message, hint) in cases {
        let options = ["server", "--listen", listen, "--python", python, "--bundle", bundle];
        let error =
            Server::bind(Options::try_parse_from(options).unwrap()).await.err().expect(message);
        assert!(
            error.to_string().starts_with(message) && error.hint().starts_with(hint),
            "{error}: {}",
            error.hint()
        );
    }
}
