//! Workers that are forked from one warm parent, and those that cannot be.

mod common;

use std::path::Path;
use std::time::Duration;

use common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outstation_api::transform::row_result::Outcome;
use outstation_api::transform::value::Kind;
use outstation_api::transform::{CallRequest, CallResponse, Field, Row, Value};
use outstation_transform_server::WorkerMode;
use prost::Message;
use tonic::{Code, Status};

const HEAD: &str = "from outstation import *\nfrom outstation.types import *\nimport os, time\n";

fn view(name: &str, body: &str) -> String {
    format!(
        "@realtime_feature_view(sources=[RequestSource(schema=[Field(\"x\", Int64)])], mode=\"python\", \
         features=[Attribute(\"y\", Int64)])\ndef {name}(source):\n    {body}\n"
    )
}

async fn serve(bundle: &Bundle, workers: &str) -> Running {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk").display().to_string();
    start(
        bundle.path(),
        &[
            "--python-path",
            &sdk,
            "--workers",
            workers,
            "--start-secs",
            "20",
            "--metrics",
            "127.0.0.1:0",
        ],
    )
    .await
}

/// What the row's error says.
async fn refused(channel: &Channel, target: &str) -> String {
    let value = Some(Value { kind: Some(Kind::Int64Value(1)) });
    let fields = vec![Field { name: "x".into(), value }];
    let call = CallRequest { target: target.into(), rows: vec![Row { fields }] };
    let answer = call_bytes(channel, call.encode_to_vec().into(), None).await.unwrap();
    match CallResponse::decode(answer).unwrap().results.remove(0).outcome {
        Some(Outcome::Error(error)) => error.message,
        other => panic!("{target}: {other:?}"),
    }
}

async fn ask(channel: &Channel, target: &str, timeout: Option<Duration>) -> Result<i64, Status> {
    let value = Some(Value { kind: Some(Kind::Int64Value(1)) });
    let fields = vec![Field { name: "x".into(), value }];
    let call = CallRequest { target: target.into(), rows: vec![Row { fields }] };
    let answer = call_bytes(channel, call.encode_to_vec().into(), timeout).await?;
    let mut answer = CallResponse::decode(answer).unwrap();
    match answer.results.remove(0).outcome {
        Some(Outcome::Row(row)) => match &row.fields[0].value.as_ref().unwrap().kind {
            Some(Kind::Int64Value(number)) => Ok(*number),
            other => panic!("{other:?}"),
        },
        other => panic!("{target}: {other:?}"),
    }
}

#[tokio::test]
async fn functions_read_their_secrets_and_no_file_beside_them() {
    let (bundle, secrets) = (Bundle::new(), tempfile::tempdir().unwrap());
    let folder = secrets.path().join("granted");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("number"), "42").unwrap();
    std::fs::write(secrets.path().join("beside"), "43").unwrap();
    let beside = secrets.path().join("beside").display().to_string();
    let view = |name: &str, body: &str| {
        view(name, body)
            .replace("mode=", "secrets=[Secret(\"number\")], mode=")
            .replace("(source):", "(source, context):")
    };
    let source = HEAD.to_owned()
        + &view("declared", "return {'y': int(context.secrets['number'])}")
        + &view("undeclared", "return {'y': int(context.secrets['other'])}")
        + &view("stolen", &format!("return {{'y': int(open({beside:?}).read())}}"));
    bundle.write("features.py", &source);
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk").display().to_string();
    let folder = folder.display().to_string();
    let server = start(bundle.path(), &["--python-path", &sdk, "--secrets", &folder]).await;
    let channel = server.until_serving().await;
    assert_eq!(ask(&channel, "declared", None).await.unwrap(), 42);
    assert!(refused(&channel, "undeclared").await.contains("other"));
    let granted = server.workers.borrow().sandbox.granted.clone();
    if granted.iter().any(|what| what == "files") {
        assert!(refused(&channel, "stolen").await.contains("PermissionError"));
    } else {
        eprintln!("NOT TESTED: this kernel has no Landlock, files beside are not confined");
    }
}

#[tokio::test]
async fn a_warm_parent_outlives_its_workers_and_is_replaced_itself() {
    let bundle = Bundle::new();
    let source = HEAD.to_owned()
        + &view("worker", "return {'y': os.getpid()}")
        + &view("parent", "return {'y': os.getppid()}")
        + &view("exits", "os._exit(7)")
        + &view("hangs", "time.sleep(600)");
    bundle.write("features.py", &source);
    let server = serve(&bundle, "2").await;
    let channel = server.until_serving().await;
    assert_eq!(server.workers.borrow().mode, WorkerMode::Forked);
    let told = "outstation_transform_worker_mode{mode=\"forked\"} 1";
    let metrics = server.metrics.expect("asked for");
    until("the metrics", async || scrape(metrics).await.contains(told).then_some(())).await;
    let parent = ask(&channel, "parent", None).await.unwrap();

    let status = ask(&channel, "exits", None).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    assert!(status.message().contains("exited with status 7"), "{status:?}");
    let hung = ask(&channel, "hangs", Some(Duration::from_millis(300))).await.unwrap_err();
    assert_eq!(hung.code(), Code::DeadlineExceeded, "{hung:?}");
    let worker = ask(&channel, "worker", None).await.unwrap();
    assert_eq!(ask(&channel, "parent", None).await.unwrap(), parent, "the same has forked anew");

    // It takes its workers along; others are forked from a new one.
    kill(Pid::from_raw(i32::try_from(parent).unwrap()), Signal::SIGKILL).unwrap();
    until("the worker's end", async || (!alive(&worker.to_string())).then_some(())).await;
    let successor = until("a new parent", async || ask(&channel, "parent", None).await.ok()).await;
    assert_ne!(successor, parent);
}

#[tokio::test]
async fn what_cannot_be_forked_is_served_by_fresh_interpreters() {
    let bundle = Bundle::new();
    let source = HEAD.to_owned()
        + "import threading\nthreading.Thread(target=time.sleep, args=(600,), name='poller').start()\n"
        + &view("threads", "return {'y': threading.active_count()}")
        + &view("parent", "return {'y': os.getppid()}");
    bundle.write("features.py", &source);
    let server = serve(&bundle, "1").await;
    let channel = server.until_serving().await;
    let WorkerMode::Fresh { reason } = server.workers.borrow().mode.clone() else {
        panic!("{:?}", server.workers.borrow());
    };
    assert_eq!(reason, "it leaves 1 threads running: poller");
    assert_eq!(ask(&channel, "threads", None).await.unwrap(), 2, "its thread runs");
    let server = i64::from(std::process::id());
    assert_eq!(ask(&channel, "parent", None).await.unwrap(), server);
}

#[tokio::test]
async fn a_file_whose_import_ends_the_process_takes_only_its_own_targets_along() {
    let bundle = Bundle::new();
    bundle.write("a.py", &(HEAD.to_owned() + &view("good", "return {'y': 1}")));
    bundle.write("b.py", &(HEAD.to_owned() + "os._exit(3)\n" + &view("bad", "return {'y': 1}")));
    bundle.write("c.py", &(HEAD.to_owned() + &view("fine", "return {'y': 2}")));
    let server = serve(&bundle, "1").await;
    let channel = server.channel().await;
    until("the rest", async || ask(&channel, "good", None).await.ok()).await;
    assert_eq!(ask(&channel, "fine", None).await.unwrap(), 2);
    let status = ask(&channel, "bad", None).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    for says in ["b.py could not be loaded: ", "when it was imported, it exited with status 3"] {
        assert!(status.message().contains(says), "{status:?}");
    }
}
