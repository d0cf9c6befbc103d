//! Children of `dev` with real processes: they die with it, come back when they die, end when told.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use outstation_cli::dev::services::{Service, ServiceSpec, Spawner, tail};

const OUTSTATION: &str = env!("CARGO_BIN_EXE_outstation");
/// Far above what any of this takes; only a failure waits for it.
const DEADLINE: Duration = Duration::from_secs(20);

fn is_alive(pid: u32) -> bool {
    // A zombie that nobody has waited for yet is dead too.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_supervised_process_dies_with_the_thread_that_started_it() {
    let (tell, told) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let parent = std::thread::spawn(move || {
        let child = Command::new(OUTSTATION)
            .args(["supervise", "--parent", &std::process::id().to_string(), "--", "sleep", "600"])
            .spawn()
            .expect("starts");
        tell.send(child.id()).expect("the test waits");
        // An error means that the test has ended.
        let _ = released.recv();
        child
    });
    let pid = told.recv().expect("a process id");
    let runs_sleep = || {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.trim() == "sleep")
    };
    wait_until("the command to run in the supervised process", runs_sleep);
    assert!(is_alive(pid));
    drop(release);
    let mut child = parent.join().expect("ends");
    wait_until("the kernel to end it", || !is_alive(pid));
    assert!(child.wait().expect("ended").to_string().contains("signal: 9"));
}

#[test]
fn a_process_whose_parent_is_gone_does_not_start() {
    let output = Command::new(OUTSTATION)
        .args(["supervise", "--parent", "1", "--", "sleep", "600"])
        .stdin(Stdio::null())
        .output()
        .expect("starts");
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with("error: process 1 has ended already\nhint: "), "{stderr}");
}

fn spec(dir: &Path, script: &str, restart: bool) -> ServiceSpec {
    ServiceSpec {
        name: "test",
        program: PathBuf::from("/bin/sh"),
        arguments: vec!["-c".into(), script.into()],
        env: [("GREETING".to_owned(), "hello".to_owned())].into(),
        log: dir.join("test.log"),
        restart,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_comes_back_until_it_is_stopped() {
    let dir = tempfile::tempdir().expect("a directory");
    let spawner = Spawner::new(OUTSTATION.into()).expect("a thread");
    let script = "echo $GREETING $AWS_PROFILE; exec sleep 600";
    let service = Service::start(&spawner, spec(dir.path(), script, true)).await.expect("starts");
    let first = service.state().pid.expect("runs");
    let greeted = |times: usize| {
        let lines = tail(service.log(), 100);
        lines.iter().filter(|line| line.trim() == "hello").count() >= times
    };
    wait_until("the first greeting", || greeted(1));
    service.signal(nix::sys::signal::Signal::SIGKILL).expect("alive");
    wait_until("the second greeting", || greeted(2));
    let state = service.state();
    assert_eq!(state.starts, 2);
    let second = state.pid.expect("runs again");
    assert_ne!(first, second);
    assert!(state.last_exit.expect("it ended once").contains("signal: 9"));

    service.stop().await;
    assert!(!is_alive(second));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_must_not_come_back_is_over_when_it_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let spawner = Spawner::new(OUTSTATION.into()).expect("a thread");
    let script = "echo 'error: no such thing'; exit 3";
    let service = Service::start(&spawner, spec(dir.path(), script, false)).await.expect("starts");
    wait_until("its end", || service.is_over());
    assert_eq!(service.state().last_exit.as_deref(), Some("exit status: 3"));
    let log = tail(service.log(), 2);
    assert_eq!(log, ["error: no such thing", "--- test ended: exit status: 3"]);
}
