//! Plays the service manager for our own long-running processes: starts them, logs them, starts
//! them again when they die, and ends them in order.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::clean_env;
use crate::clock;

/// As a service manager's RestartSec, and where it stops growing.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A process that ran this long was well: its next death starts the backoff anew.
const WELL_AFTER: Duration = Duration::from_secs(10);
/// Between two looks whether a process that was killed is gone.
const HELD_POLL: Duration = Duration::from_millis(5);
/// Ours end within a second of SIGTERM; a stuck one is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);

/// Starts that wait for the one thread that makes them: each service asks for one at a time.
const SPAWNS_MAX: usize = 16;
/// A log that has grown to this is set aside as `<log>.1` and begun anew: at most twice this is kept.
const LOG_BYTES_MAX: u64 = 32 << 20;
const LOG_LOOK: Duration = Duration::from_secs(10);

/// One process to keep alive.
#[derive(Debug, Clone)]
pub struct ServiceSpec {
    pub name: &'static str,
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub env: BTreeMap<String, String>,
    pub log: PathBuf,
    /// Start it again when it dies.
    pub restart: bool,
}

/// Starts children from one thread that lives as long as the system: the kernel ties "kill it
/// when its parent dies" to the thread, not the process.
#[derive(Clone)]
pub struct Spawner {
    requests: std::sync::mpsc::SyncSender<(Command, oneshot::Sender<std::io::Result<Child>>)>,
    /// `outstation` itself, for `supervise`.
    outstation: PathBuf,
}

impl Spawner {
    pub fn new(outstation: PathBuf) -> anyhow::Result<Spawner> {
        type Request = (Command, oneshot::Sender<std::io::Result<Child>>);
        let (requests, queue) = std::sync::mpsc::sync_channel::<Request>(SPAWNS_MAX);
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                let _inside = runtime.enter();
                while let Ok((mut command, reply)) = queue.recv() {
                    // The asker may have given up; then the child goes with the dropped handle.
                    let _ = reply.send(command.spawn());
                }
            })
            .context("start the thread that starts processes")?;
        Ok(Spawner { requests, outstation })
    }

    async fn spawn(&self, spec: &ServiceSpec) -> anyhow::Result<Child> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&spec.log)
            .with_context(|| format!("open {}", spec.log.display()))?;
        let mut command = std::process::Command::new(&self.outstation);
        command
            .args(["supervise", "--parent"])
            .arg(std::process::id().to_string())
            .arg("--")
            .arg(&spec.program)
            .args(&spec.arguments)
            .env_clear()
            .envs(clean_env::for_services())
            .envs(&spec.env)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log);
        // Away from the terminal's Ctrl-C: dev ends its children itself, in order.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        let (reply, answer) = oneshot::channel();
        self.requests.send((command, reply)).ok().context("the spawner thread has ended")?;
        answer
            .await
            .context("the spawner thread has ended")?
            .with_context(|| format!("start {}", spec.program.display()))
    }
}

#[derive(Debug, Clone, Default)]
pub struct ServiceState {
    pub pid: Option<u32>,
    pub starts: u32,
    /// How its process ended last.
    pub last_exit: Option<String>,
}

/// What its keeper is to see to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Running,
    /// Dead, and not started again before it is released.
    Held,
    /// Ended for good.
    Stopped,
}

pub struct Service {
    spec: ServiceSpec,
    state: Arc<Mutex<ServiceState>>,
    wanted: watch::Sender<Wanted>,
    task: JoinHandle<()>,
}

fn locked(state: &Mutex<ServiceState>) -> MutexGuard<'_, ServiceState> {
    // Nobody panics while holding it; if so, the numbers in it are still whole.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Service {
    /// The first start happens here, so that a missing program is an error and not a loop.
    pub async fn start(spawner: &Spawner, spec: ServiceSpec) -> anyhow::Result<Service> {
        let child = spawner.spawn(&spec).await?;
        let state =
            Arc::new(Mutex::new(ServiceState { pid: child.id(), starts: 1, last_exit: None }));
        let (wanted, told) = watch::channel(Wanted::Running);
        let task = tokio::spawn(keep(spawner.clone(), spec.clone(), child, state.clone(), told));
        Ok(Service { spec, state, wanted, task })
    }

    pub fn name(&self) -> &'static str {
        self.spec.name
    }

    pub fn state(&self) -> ServiceState {
        locked(&self.state).clone()
    }

    pub fn log(&self) -> &Path {
        &self.spec.log
    }

    /// Ended for good: only a service that is not restarted ever is.
    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.state().pid.with_context(|| format!("{} is not running", self.spec.name))?;
        send(pid, signal).with_context(|| format!("signal {}", self.spec.name))
    }

    /// SIGKILL, and no restart until [`Service::release`]; returns when the process is gone.
    pub async fn hold(&self) {
        self.wanted.send_replace(Wanted::Held);
        while self.state().pid.is_some() && !self.is_over() {
            tokio::time::sleep(HELD_POLL).await;
        }
    }

    /// Ends a hold: the service is started again at once.
    pub fn release(&self) {
        self.wanted.send_replace(Wanted::Running);
    }

    /// SIGTERM, then SIGKILL; returns when the process is gone and stays gone.
    pub async fn stop(self) {
        self.wanted.send_replace(Wanted::Stopped);
        let _ = self.task.await;
    }
}

fn send(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).context("a process id")?;
    kill(Pid::from_raw(pid), signal)?;
    Ok(())
}

async fn keep(
    spawner: Spawner,
    spec: ServiceSpec,
    mut child: Child,
    state: Arc<Mutex<ServiceState>>,
    mut wanted: watch::Receiver<Wanted>,
) {
    let mut backoff = BACKOFF_FIRST;
    loop {
        let started = clock::now();
        let exit = loop {
            tokio::select! {
                exit = child.wait() => break exit_text(&exit),
                other = no_longer(Wanted::Running, &mut wanted) => match other {
                    Wanted::Running | Wanted::Held => {
                        // An error says that it has ended by itself.
                        let _ = child.kill().await;
                        break "held".to_owned();
                    }
                    Wanted::Stopped => {
                        end(&mut child).await;
                        locked(&state).pid = None;
                        return;
                    }
                },
                () = tokio::time::sleep(LOG_LOOK) => set_aside(&spec.log),
            }
        };
        {
            let mut state = locked(&state);
            state.pid = None;
            state.last_exit = Some(exit.clone());
        }
        if started.elapsed() >= WELL_AFTER {
            backoff = BACKOFF_FIRST;
        }
        let next = if spec.restart { format!("; again in {backoff:?}") } else { String::new() };
        note(&spec.log, &format!("--- {} ended: {exit}{next}", spec.name));
        if !spec.restart {
            return;
        }
        let mut pause = backoff;
        child = loop {
            let other = tokio::select! {
                biased;
                other = no_longer(Wanted::Running, &mut wanted) => Some(other),
                () = tokio::time::sleep(pause) => None,
            };
            match other {
                Some(Wanted::Stopped) => return,
                Some(Wanted::Held | Wanted::Running) => {
                    no_longer(Wanted::Held, &mut wanted).await;
                    pause = Duration::ZERO;
                    continue;
                }
                None => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
            pause = backoff;
            match spawner.spawn(&spec).await {
                Ok(child) => break child,
                Err(error) => note(&spec.log, &format!("--- {error:#}")),
            }
        };
        let mut state = locked(&state);
        state.pid = child.id();
        state.starts += 1;
    }
}

/// What is wanted instead of `now`. A dropped handle stops its service too: then there is nobody
/// left to tell.
async fn no_longer(now: Wanted, wanted: &mut watch::Receiver<Wanted>) -> Wanted {
    wanted.wait_for(|wanted| *wanted != now).await.map_or(Wanted::Stopped, |wanted| *wanted)
}

async fn end(child: &mut Child) {
    if let Some(pid) = child.id() {
        // ESRCH: it has ended by itself.
        let _ = send(pid, Signal::SIGTERM);
    }
    if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn exit_text(exit: &std::io::Result<ExitStatus>) -> String {
    match exit {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

/// A line of our own in the process's log; a log that cannot be written stops nothing.
fn note(log: &Path, line: &str) {
    if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(log) {
        let _ = writeln!(file, "{line}");
    }
}

/// The process goes on writing at the end of the same file, so its content is what moves.
fn set_aside(log: &Path) {
    if std::fs::metadata(log).is_ok_and(|log| log.len() >= LOG_BYTES_MAX) {
        let mut name = log.as_os_str().to_owned();
        name.push(".1");
        let truncate = |_| OpenOptions::new().write(true).open(log).and_then(|log| log.set_len(0));
        if let Err(error) = std::fs::copy(log, name).and_then(truncate) {
            note(log, &format!("--- this log is too long and cannot be set aside: {error}"));
        }
    }
}

/// The last lines of a log, for an error report.
pub fn tail(log: &Path, lines: usize) -> Vec<String> {
    let Ok(bytes) = std::fs::read(log) else {
        return Vec::new();
    };
    // Enough for any twenty lines; logs of a long run are large.
    let from = bytes.len().saturating_sub(64 * 1024);
    let text = String::from_utf8_lossy(&bytes[from..]);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_set_aside_and_its_writer_goes_on() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = dir.path().join("broker.log");
        let mut writer = OpenOptions::new().create(true).append(true).open(&log).expect("opens");
        writeln!(writer, "first").expect("written");
        set_aside(&log);
        assert_eq!(std::fs::read_to_string(&log).expect("there"), "first\n", "it is short");
        writer.set_len(LOG_BYTES_MAX).expect("grown");
        set_aside(&log);
        writeln!(writer, "second").expect("written");
        assert_eq!(std::fs::read_to_string(&log).expect("there"), "second\n");
        let aside = std::fs::metadata(dir.path().join("broker.log.1")).expect("set aside");
        assert_eq!(aside.len(), LOG_BYTES_MAX);
    }
}
