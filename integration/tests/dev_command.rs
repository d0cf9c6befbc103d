//! `outstation dev` as a person runs it: what it leaves behind when it ends, however it ends.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outstation_integration::{
    LONG, ONE_AT_A_TIME, assert_released, binaries, listeners_of, processes, python, workspace,
};

struct Dev {
    child: Child,
    state: PathBuf,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Dev {
    fn start(name: &str) -> Result<Dev> {
        let state = workspace().join("target").join("whole-system").join(name);
        let mut child = Command::new(binaries().join("outstation"))
            .args(["dev", "--calls", "300", "--state"])
            .arg(&state)
            .arg("--python")
            .arg(python())
            .current_dir(workspace())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start outstation dev")?;
        let stderr = BufReader::new(child.stderr.take().context("its standard error")?);
        Ok(Dev { child, state, stderr })
    }

    /// Reads on until it says that it stays up.
    fn wait_until_up(&mut self) -> Result<()> {
        let mut said = String::new();
        loop {
            if self.stderr.read_line(&mut said)? == 0 {
                bail!("dev ended early:\n{said}");
            }
            if said.contains("stays up until Ctrl-C") {
                return Ok(());
            }
        }
    }

    fn end(mut self, signal: Signal) -> Result<ExitStatus> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?;
        Ok(self.child.wait()?)
    }
}

fn assert_nothing_left(state: &Path, listeners: &[String]) {
    let deadline = Instant::now() + LONG;
    loop {
        let left = processes(state);
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "still there: {left:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_released(listeners);
}

fn ends_clean(name: &str, signal: Signal) -> Result<ExitStatus> {
    let mut dev = Dev::start(name)?;
    dev.wait_until_up()?;
    let state = dev.state.clone();
    let running = processes(&state);
    // dev, aws-sim, broker, account agent; per instance launcher, init, node agent, server, worker.
    assert!(running.len() >= 4 + 3 * 3, "{running:#?}");
    let listeners = listeners_of(&running);
    let status = dev.end(signal)?;
    assert_nothing_left(&state, &listeners);
    Ok(status)
}

#[test]
fn it_leaves_nothing_behind_after_ctrl_c() -> Result<()> {
    let _turn = ONE_AT_A_TIME.blocking_lock();
    let status = ends_clean("ctrl-c", Signal::SIGINT)?;
    assert_eq!(status.code(), Some(0), "{status}");
    Ok(())
}

#[test]
fn it_leaves_nothing_behind_when_it_is_killed() -> Result<()> {
    let _turn = ONE_AT_A_TIME.blocking_lock();
    let status = ends_clean("killed", Signal::SIGKILL)?;
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}");
    Ok(())
}

/// A terminal that is closed ends it as Ctrl-C does.
#[test]
fn it_leaves_nothing_behind_when_its_terminal_is_closed() -> Result<()> {
    let _turn = ONE_AT_A_TIME.blocking_lock();
    let status = ends_clean("hangup", Signal::SIGHUP)?;
    assert_eq!(status.code(), Some(0), "{status}");
    Ok(())
}

/// Killed as soon as the first of its processes runs, when half of them are not there yet.
#[test]
fn it_leaves_nothing_behind_when_it_is_killed_while_it_starts() -> Result<()> {
    let _turn = ONE_AT_A_TIME.blocking_lock();
    for program in ["aws-sim serve", "outstation-agent account"] {
        let dev = Dev::start("early")?;
        let state = dev.state.clone();
        let deadline = Instant::now() + LONG;
        while !processes(&state).values().any(|command| command.contains(program)) {
            assert!(Instant::now() < deadline, "no {program} was started");
            std::thread::sleep(Duration::from_millis(1));
        }
        let listeners = listeners_of(&processes(&state));
        let status = dev.end(Signal::SIGKILL)?;
        assert_nothing_left(&state, &listeners);
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{program}: {status}");
    }
    Ok(())
}

/// The simulated AWS dies under it: there is nothing to go on with, and it says so.
#[test]
fn it_ends_when_the_simulated_aws_dies() -> Result<()> {
    let _turn = ONE_AT_A_TIME.blocking_lock();
    let mut dev = Dev::start("no-aws")?;
    dev.wait_until_up()?;
    let state = dev.state.clone();
    let running = processes(&state);
    let listeners = listeners_of(&running);
    let aws = running.iter().find(|(_, command)| command.contains("aws-sim serve"));
    let (pid, _) = aws.context("the simulated AWS")?;
    kill(Pid::from_raw(i32::try_from(*pid)?), Signal::SIGKILL)?;
    let mut said = String::new();
    std::io::Read::read_to_string(&mut dev.stderr, &mut said)?;
    let status = dev.child.wait()?;
    assert_nothing_left(&state, &listeners);
    assert!(said.contains("error: the simulated AWS has died\nhint: "), "{said}");
    assert_eq!(status.code(), Some(1), "{status}");
    Ok(())
}

#[test]
fn a_second_one_in_the_same_place_is_told_so() -> Result<()> {
    let _turn = ONE_AT_A_TIME.blocking_lock();
    let mut first = Dev::start("second")?;
    first.wait_until_up()?;
    let second = Dev::start("second")?;
    let output = second.child.wait_with_output()?;
    let mut said = String::new();
    std::io::Read::read_to_string(&mut second.stderr.into_inner(), &mut said)?;
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: another `outstation dev`"), "{said}");
    assert!(said.contains("hint: ") && said.contains("--state"), "{said}");
    let state = first.state.clone();
    first.end(Signal::SIGTERM)?;
    assert_nothing_left(&state, &[]);
    Ok(())
}
