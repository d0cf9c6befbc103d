//! The program itself: signals, exit codes, and that it leaves nothing behind.

mod common;

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A port that nobody has at the moment.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn serving(bundle: &Bundle) -> (Program, Channel) {
    let (address, python, stub) = (free_port(), python(), stub().display().to_string());
    let folder = bundle.path().display().to_string();
    let listen = address.to_string();
    let arguments = [
        "--listen",
        &listen,
        "--python",
        &python,
        "--bundle",
        &folder,
        "--worker-script",
        &stub,
        "--workers",
        "2",
    ];
    let program = program(&arguments);
    let channel = connect_tcp(address).await;
    bundle.until_lines("workers", 2).await;
    (program, channel)
}

#[tokio::test]
async fn sigterm_drains_and_exits_with_0() {
    let bundle = Bundle::new();
    let (mut program, channel) = serving(&bundle).await;
    let gate = tokio::spawn({
        let channel = channel.clone();
        async move { call(&channel, "gate", None).await }
    });
    bundle.until_lines("started", 1).await;
    let pid = Pid::from_raw(i32::try_from(program.0.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    until("the drain", async || call(&channel, "echo", None).await.err()).await;
    assert!(program.0.try_wait().unwrap().is_none(), "it waits for the call in flight");
    bundle.write("open", "");
    assert_eq!(gate.await.unwrap().unwrap(), request("gate"));
    let status = until("the exit", async || program.0.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(0));
    let mut log = String::new();
    program.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    for line in ["listening", "serving", "draining", "stopped"] {
        assert!(log.contains(line), "{line} in {log}");
    }
    assert!(!log.contains('\u{1b}'), "no colours in a pipe: {log}");
    for worker in bundle.lines("workers") {
        assert!(!alive(&worker));
    }
}

#[tokio::test]
async fn no_worker_outlives_a_killed_server() {
    let bundle = Bundle::new();
    let (mut program, _channel) = serving(&bundle).await;
    program.0.kill().unwrap();
    program.0.wait().unwrap();
    for worker in bundle.lines("workers") {
        until("the worker's end", async || (!alive(&worker)).then_some(())).await;
    }
}

#[tokio::test]
async fn user_code_inherits_nothing() {
    let bundle = Bundle::new();
    let (_program, channel) = serving(&bundle).await;
    let state: serde_json::Value =
        serde_json::from_slice(&call(&channel, "env", None).await.unwrap()).unwrap();
    let variables: Vec<&str> =
        state["env"].as_object().unwrap().keys().map(String::as_str).collect();
    // `CARGO…`, `HOME` of the tester and so on would be here if anything leaked.
    let expected = [
        "HOME",
        "LANG",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "PATH",
        "POLARS_MAX_THREADS",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONFAULTHANDLER",
        "PYTHONNOUSERSITE",
        "PYTHONSAFEPATH",
        "PYTHONUNBUFFERED",
        "PYTHONUTF8",
        "RAYON_NUM_THREADS",
        "TMPDIR",
        "TZ",
    ];
    let mut variables: Vec<&str> =
        variables.into_iter().filter(|name| *name != "LC_CTYPE").collect();
    variables.sort_unstable();
    assert_eq!(variables, expected);
    assert_eq!(state["env"]["HOME"], state["cwd"]);
    // Its socket (twice: as 0 and where the stub dups it), its marks (twice, for the same reason), its two
    // pipes.
    // What this test itself inherited and passes on must have been closed.
    let open: Vec<&str> =
        state["fds"].as_array().unwrap().iter().map(|fd| fd.as_str().unwrap()).collect();
    assert_eq!(open.iter().filter(|fd| fd.starts_with("socket:")).count(), 2, "{open:?}");
    assert_eq!(open.iter().filter(|fd| fd.contains("outstation-marks")).count(), 2, "{open:?}");
    assert_eq!(open.len(), 6, "{open:?}");
}

#[tokio::test]
async fn a_log_that_nobody_reads_costs_nothing() {
    let bundle = Bundle::new();
    let (mut program, channel) = serving(&bundle).await;
    // Nobody reads: far more than a pipe holds.
    for _ in 0..3 {
        assert_eq!(call(&channel, "log", None).await.unwrap(), request("log"));
    }
    // And nobody can: what is written fails.
    drop(program.0.stderr.take());
    assert_eq!(call(&channel, "die", None).await.unwrap_err().code(), tonic::Code::Aborted);
    assert_eq!(call(&channel, "log", None).await.unwrap(), request("log"));
    bundle.until_lines("workers", 3).await;
}

#[tokio::test]
async fn a_start_that_cannot_work_is_two_lines() {
    let mut program =
        program(&["--listen", "127.0.0.1:0", "--python", "/no/python", "--bundle", "/"]);
    let status = tokio::time::timeout(Duration::from_secs(60), async {
        until("the exit", async || program.0.try_wait().unwrap()).await
    });
    assert_eq!(status.await.unwrap().code(), Some(1));
    let mut log = String::new();
    program.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], "error: there is no Python interpreter at /no/python");
    assert!(lines[1].starts_with("hint: "), "{log}");
    assert_eq!(lines.len(), 2);
}
