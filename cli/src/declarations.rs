//! Runs the user's declarations in a child process that has nothing worth stealing, and reads
//! the manifest that it prints.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use crate::clean_env;
use crate::manifest::Manifest;
use crate::message::{Failure, Hint as _};

/// Importing pandas on a cold, slow disk takes some ten seconds; declarations compute nothing.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(60);
/// `dev` and the context both name one.
pub const INTERPRETER_HINT: &str = "name a Python interpreter that has the package `outstation`: \
    `python` in the context, or --python of `outstation dev`";
/// Ten thousand features at 400 bytes each.
const MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Two lines are expected; a traceback may come from a library.
const STDERR_BYTES_MAX: u64 = 64 * 1024;

/// Evaluates the declarations in `dir` with `python`.
pub async fn load(python: &Path, dir: &Path) -> anyhow::Result<Manifest> {
    load_within(python, dir, DECLARE_TIMEOUT).await
}

/// The same with another bound; for tests.
pub async fn load_within(python: &Path, dir: &Path, timeout: Duration) -> anyhow::Result<Manifest> {
    match std::fs::metadata(dir) {
        Ok(found) if found.is_dir() => {}
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("look at {}", dir.display()));
        }
        found => {
            let what = match found {
                Ok(_) => format!("{} is not a folder", dir.display()),
                Err(_) => format!("there is no folder {}", dir.display()),
            };
            return Err(Failure::new(what, "name the folder that holds the declarations").into());
        }
    }
    let home = tempfile::tempdir().context("create an empty home for the declarations")?;
    let mut command = std::process::Command::new(python);
    command
        .args(["-m", "outstation.declare", "--parent"])
        .arg(std::process::id().to_string())
        .arg("--")
        .arg(dir)
        .env_clear()
        .envs(clean_env::for_declarations(home.path()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", python.display()))
        .hint(INTERPRETER_HINT)?;
    let group = child.id();

    let stdout = child.stdout.take().expect("piped above");
    let stderr = child.stderr.take().expect("piped above");
    let run = async {
        let (stdout, stderr) = tokio::try_join!(
            read_bounded(stdout, MANIFEST_BYTES_MAX, "the manifest"),
            read_bounded(stderr, STDERR_BYTES_MAX, "what the declarations print"),
        )?;
        let status = child.wait().await.context("wait for the declarations")?;
        anyhow::Ok((status, stdout, stderr))
    };
    let outcome = tokio::time::timeout(timeout, run).await;
    // Whatever the declarations started goes with them.
    kill_group(group);
    let (status, stdout, stderr) = match outcome {
        Ok(finished) => finished?,
        Err(_) => {
            return Err(Failure::new(
                format!(
                    "the declarations in {} ran for over {} s",
                    dir.display(),
                    timeout.as_secs()
                ),
                "declarations only describe: move work and downloads into feature functions",
            )
            .into());
        }
    };
    if !status.success() {
        return Err(declaration_failure(&String::from_utf8_lossy(&stderr), status).into());
    }
    if stdout.is_empty() {
        return Err(Failure::new(
            format!("the declarations in {} ended Python before they were done", dir.display()),
            "declarations must not exit: look for os._exit() in them and in what they import",
        )
        .into());
    }
    Manifest::from_json(&stdout)
}

fn kill_group(leader: Option<u32>) {
    let Some(pid) = leader.and_then(|pid| i32::try_from(pid).ok()) else {
        return;
    };
    // ESRCH is the normal case: everything has ended already.
    let _ = nix::sys::signal::killpg(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    );
}

async fn read_bounded(
    stream: impl AsyncRead + Unpin,
    bytes_max: u64,
    what: &str,
) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream
        .take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .await
        .with_context(|| format!("read {what}"))?;
    if bytes.len() as u64 > bytes_max {
        return Err(Failure::new(
            format!("{what} has more than {bytes_max} bytes"),
            "declarations should print nothing; split a repo of this size",
        )
        .into());
    }
    Ok(bytes)
}

/// The child's own two lines when it wrote them; else its last line.
fn declaration_failure(stderr: &str, status: ExitStatus) -> Failure {
    let line = |prefix: &str| stderr.lines().rev().find_map(|line| line.strip_prefix(prefix));
    let last = stderr.lines().rev().find(|line| !line.trim().is_empty());
    let silent = format!("the declarations failed and said nothing ({status})");
    let what = line("error: ").or(last).unwrap_or(&silent);
    let hint = line("hint: ").unwrap_or("correct the declarations and run this again");
    if what.contains("No module named 'outstation") || what.contains("No module named outstation") {
        return Failure::new(what.trim(), INTERPRETER_HINT);
    }
    Failure::new(what.trim(), hint.trim())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn the_childs_two_lines_are_passed_on() {
        for (stderr, what, hint) in [
            (
                "noise\nerror: features.py:3: no such environment\nhint: declare it\n",
                "features.py:3: no such environment",
                "declare it",
            ),
            (
                "Traceback\nValueError: bad\n\n",
                "ValueError: bad",
                "correct the declarations and run this again",
            ),
            (
                "/usr/bin/python3: No module named outstation\n",
                "/usr/bin/python3: No module named outstation",
                INTERPRETER_HINT,
            ),
            (
                "",
                "the declarations failed and said nothing (signal: 11 (SIGSEGV))",
                "correct the declarations and run this again",
            ),
        ] {
            let status = ExitStatus::from_raw(11);
            assert_eq!(declaration_failure(stderr, status), Failure::new(what, hint), "{stderr:?}");
        }
    }
}
