//! Processes: found again, told apart, ended. `sh` and `sleep` stand in for the server.

use std::os::unix::fs::PermissionsExt;

use outstation_protocol::{Digest, Generation};

use super::*;
use crate::trust::testing::within;

fn artifacts(options: &[(&str, &str)]) -> Artifacts {
    Artifacts {
        generation: Generation(1),
        environment: Digest::of(b"environment"),
        bundle: Digest::of(b"bundle"),
        options: options.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
    }
}

fn prepared() -> Prepared {
    Prepared { python: "/env/bin/python".into(), bundle: "/bundles/b".into() }
}

/// Settings whose program is a script with this body.
fn settings(dir: &Path, script: &str) -> ServerSettings {
    let program = dir.join("server.sh");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("writes");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("sets");
    ServerSettings {
        guard: None,
        program,
        address: "127.0.0.1".parse().expect("an address"),
        group: "delay".into(),
        instance: "i-0123456789abcdef0".into(),
        dir: dir.to_owned(),
    }
}

#[tokio::test]
async fn a_server_gets_its_arguments_and_nothing_of_our_environment() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = settings(folder.path(), "echo \"$@\"; env | sort | cut -d= -f1; exit 3");
    let spawned = settings.spawn(ServerId(1), 7400, &artifacts(&[("workers", "2")]), &prepared());
    let (child, record) = spawned.expect("starts");
    assert_eq!(within("ends", exited(child)).await, "exit status: 3");
    assert!(!record.is_alive());
    let log = fs::read_to_string(settings.log_path(7400)).expect("there");
    let mut lines = log.lines();
    assert_eq!(
        lines.next(),
        Some(
            "--listen 127.0.0.1:7400 --python /env/bin/python --bundle /bundles/b --group delay \
             --instance i-0123456789abcdef0 --drain-secs 30 --workers 2"
        )
    );
    for name in lines {
        assert!(
            ["HOME", "LANG", "PATH", "PWD", "RUST_LOG", "TMPDIR", "_"].contains(&name),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_process_is_found_again_drained_and_its_end_seen() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings =
        settings(folder.path(), "trap 'exit 0' TERM; while [ -e \"$0\" ]; do sleep 0.05; done");
    let (child, record) =
        settings.spawn(ServerId(7), 7401, &artifacts(&[]), &prepared()).expect("starts");
    let memory = Memory { target: Some(artifacts(&[])), servers: vec![record] };
    memory.save(folder.path()).expect("saves");

    // Another life of the agent, in which the process is not its child.
    let found = Memory::load(folder.path());
    assert_eq!(found, memory);
    let record = found.servers.into_iter().next().expect("one");
    assert!(record.is_alive());
    let mut other = record.clone();
    other.start_ticks += 1;
    assert!(!other.is_alive(), "a later process with the same id is another one");
    other.kill();
    assert!(record.is_alive());

    record.drain();
    let reaped = tokio::spawn(exited(child));
    assert_eq!(within("the end is seen", record.ended()).await, "its process is gone");
    assert_eq!(within("reaped", reaped).await.expect("no panic"), "exit status: 0");
}

#[tokio::test]
async fn a_kill_reaches_what_the_server_has_started() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = settings(folder.path(), "sleep 600 & echo $!; wait");
    let (child, record) =
        settings.spawn(ServerId(1), 7400, &artifacts(&[]), &prepared()).expect("starts");
    let log = settings.log_path(7400);
    let worker = within("the worker's id", async {
        loop {
            let text = fs::read_to_string(&log).unwrap_or_default();
            if let Some(pid) = text.strip_suffix('\n').and_then(|pid| pid.parse::<i32>().ok()) {
                break pid;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    record.kill();
    assert_eq!(within("ends", exited(child)).await, "signal: 9 (SIGKILL)");
    within("the worker ends too", async {
        while start_ticks(worker).is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut settings = settings(folder.path(), "");
    settings.program = folder.path().join("missing");
    let error = settings.spawn(ServerId(1), 7400, &artifacts(&[]), &prepared());
    assert_eq!(error.err().map(|e| e.kind()), Some(io::ErrorKind::NotFound));
}

#[test]
fn memory_that_cannot_be_read_is_as_good_as_none() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(Memory::load(folder.path()), Memory::default());
    fs::write(folder.path().join("server.json"), "{").expect("writes");
    assert_eq!(Memory::load(folder.path()), Memory::default());
}

#[test]
fn a_log_stays_bounded_and_its_last_line_is_at_hand() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("server-7400.log");
    trim_log(&path, 8).expect("nothing to do");
    fs::write(&path, "first\nerror: no\n\n").expect("writes");
    assert_eq!(last_line(&path).as_deref(), Some("error: no"));
    trim_log(&path, 8).expect("trims");
    assert_eq!(fs::metadata(&path).expect("there").len(), 0);
    assert!(folder.path().join("server-7400.log.1").exists());
}
