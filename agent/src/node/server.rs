//! The transform server's process: started so that it outlives this agent, found again after a
//! restart of it, and watched. A record of each is on disk before anything else happens to it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use outstation_protocol::v1::Artifacts;
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

use super::artifacts::Prepared;
use super::events::ServerId;
use super::metadata::MetadataGuard;
use crate::trust::files;

/// An adopted process is nobody's child here, so its end is seen by looking.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Users print; what is older than this is not worth a full disk.
pub const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Given to calls in flight by the server itself; the machine waits a little longer.
const DRAIN_SECS: u64 = 30;

/// A process, told apart from a later one with the same id by when it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    pub server: ServerId,
    pub pid: i32,
    /// In clock ticks since boot, as in `/proc/<pid>/stat`.
    pub start_ticks: u64,
    pub port: u16,
    pub artifacts: Artifacts,
}

/// `server.json`: what an agent that comes back must know.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What the account agent wanted last; the instance's tags may be older.
    pub target: Option<Artifacts>,
    /// The one that serves comes first.
    pub servers: Vec<ServerRecord>,
}

impl Memory {
    /// What is left of an earlier life. A file that cannot be read is as good as none.
    pub fn load(dir: &Path) -> Memory {
        let path = dir.join("server.json");
        let loaded = fs::read(&path).map(|bytes| serde_json::from_slice(&bytes));
        match loaded {
            Ok(Ok(memory)) => memory,
            Ok(Err(e)) => {
                tracing::warn!(path = %path.display(), error = %e, "an unreadable file is ignored");
                Memory::default()
            }
            Err(e) => {
                if e.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), error = %e, "cannot read it");
                }
                Memory::default()
            }
        }
    }

    pub fn save(&self, dir: &Path) -> io::Result<()> {
        let json = serde_json::to_vec_pretty(self)?;
        files::replace(&dir.join("server.json"), &json, 0o600)
    }
}

/// What every server of this node is started with.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    pub program: PathBuf,
    /// None: functions run as this agent's own user.
    pub guard: Option<MetadataGuard>,
    pub address: IpAddr,
    pub group: String,
    pub instance: String,
    /// For `server-<port>.log`.
    pub dir: PathBuf,
}

impl ServerSettings {
    fn arguments(&self, port: u16, artifacts: &Artifacts, prepared: &Prepared) -> Vec<String> {
        let listen = SocketAddr::new(self.address, port).to_string();
        let mut arguments = vec!["--listen".to_owned(), listen];
        for (flag, value) in [
            ("--python", prepared.python.display().to_string()),
            ("--bundle", prepared.bundle.display().to_string()),
            ("--group", self.group.clone()),
            ("--instance", self.instance.clone()),
            ("--drain-secs", DRAIN_SECS.to_string()),
        ] {
            arguments.extend([flag.to_owned(), value]);
        }
        if let Some(guard) = &self.guard {
            arguments.extend(["--worker-user".to_owned(), guard.user().to_owned()]);
        }
        // Options that this version does not know are another version's business.
        if let Some((_, workers)) = artifacts.options.iter().find(|(name, _)| name == "workers") {
            arguments.extend(["--workers".to_owned(), workers.clone()]);
        }
        arguments
    }

    pub fn log_path(&self, port: u16) -> PathBuf {
        self.dir.join(format!("server-{port}.log"))
    }

    /// Starts a server in a process group of its own and with an environment that has nothing of
    /// this agent's: no metadata endpoint, no credential.
    pub fn spawn(
        &self,
        server: ServerId,
        port: u16,
        artifacts: &Artifacts,
        prepared: &Prepared,
    ) -> io::Result<(Child, ServerRecord)> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_path(port))?;
        let mut command = Command::new(&self.program);
        command
            .args(self.arguments(port, artifacts, prepared))
            .env_clear()
            .envs(["PATH", "RUST_LOG"].iter().filter_map(|n| Some((n, std::env::var_os(n)?))))
            .env("HOME", &self.dir)
            // What a killed server leaves behind goes with the instance's folder.
            .env("TMPDIR", &self.dir)
            .env("LANG", "C.UTF-8")
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let child = command.spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.ok_or_else(|| io::Error::other("it has no process id"))?;
        let start_ticks = start_ticks(pid).ok_or_else(|| io::Error::other("it ended at once"))?;
        let record = ServerRecord { server, pid, start_ticks, port, artifacts: artifacts.clone() };
        Ok((child, record))
    }

    /// Kills servers of this node that no record knows: an agent that died between starting one
    /// and writing that down left it on its port.
    pub fn kill_unknown(&self, known: &[ServerRecord]) {
        let Ok(processes) = fs::read_dir("/proc") else { return };
        let ours = self.address.to_string();
        for process in processes.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if known.iter().any(|record| record.pid == pid) {
                continue;
            }
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
            let is_server = words.first().is_some_and(|w| Path::new(&**w) == self.program)
                && words.get(1).is_some_and(|w| w == "--listen")
                && words.get(2).is_some_and(|w| w.rsplit_once(':').is_some_and(|(a, _)| a == ours));
            if is_server {
                tracing::warn!(pid, "killed a server that no record knows");
                let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

impl ServerRecord {
    pub fn is_alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }

    /// Asks the server to let its calls end. Its workers are its own business.
    pub fn drain(&self) {
        self.signal(|pid| kill(pid, Signal::SIGTERM));
    }

    /// Kills the server and all that it has started.
    pub fn kill(&self) {
        self.signal(|pid| killpg(pid, Signal::SIGKILL));
    }

    fn signal(&self, send: impl FnOnce(Pid) -> nix::Result<()>) {
        if self.is_alive()
            && let Err(e) = send(Pid::from_raw(self.pid))
            && e != nix::errno::Errno::ESRCH
        {
            tracing::warn!(pid = self.pid, error = %e, "the server cannot be signalled");
        }
    }

    /// Waits for the end of a process that another life of this agent has started.
    pub async fn ended(&self) -> String {
        while self.is_alive() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        "its process is gone".to_owned()
    }
}

/// Waits for the end of our own child.
pub async fn exited(mut child: Child) -> String {
    child.wait().await.map_or_else(|e| e.to_string(), |status: ExitStatus| status.to_string())
}

/// When the process started; `None` when there is none, or only its zombie.
fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, also parentheses.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    // State is the third field, the start time the 22nd.
    fields.nth(18)?.parse().ok()
}

/// Keeps the log of a running server bounded: what is there moves aside once.
pub fn trim_log(path: &Path, bytes_max: u64) -> io::Result<()> {
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if length > bytes_max {
        fs::copy(path, path.with_extension("log.1"))?;
        // The server appends, so that it goes on at the start.
        File::options().write(true).open(path)?.set_len(0)?;
    }
    Ok(())
}

/// The last line that the server has written: mostly says why it ended.
pub fn last_line(path: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&fs::read(path).ok()?).into_owned();
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.trim().chars().take(200).collect())
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
