//! Pid 1 of an instance: serves its IMDS, runs the user data as a service that is always restarted, reaps what it
//! inherits. The service's other processes outlive a restart of the service, as under systemd's `KillMode=process`.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::service::Restarts;
use super::{FromLauncher, ToLauncher};
use crate::clock;
use crate::imds::Imds;
use crate::model::InstanceFacts;

/// From SIGTERM to the end of an instance. Nodes drain before, while AutoScaling's hook holds the instance.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Size at which the log is set aside as `<log>.1` and begun anew; so at most twice this is kept per instance.
const LOG_BYTES_MAX: u64 = 8 << 20;
/// The address may still be held by an instance of a simulation that was killed a moment ago.
const BIND_PATIENCE: Duration = Duration::from_secs(3);

pub fn run(probe: bool) -> anyhow::Result<i32> {
    // Everything below signals "all processes": outside a namespace of its own that would be the whole machine.
    ensure!(
        getpid() == Pid::from_raw(1),
        "launcher-init must be the first process of a PID namespace"
    );
    set_pdeathsig(Signal::SIGKILL).context("ask to die with the launcher")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if let Err(errno) = mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>) {
        eprintln!("launcher: /proc shows the whole machine, mounting it anew failed: {errno}");
    }
    if probe {
        return Ok(0);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("build the runtime")?;
    runtime.block_on(supervise())
}

async fn supervise() -> anyhow::Result<i32> {
    let mut orders = read_orders();
    let Some(ToLauncher::Start { facts, user_data, home, log, imds_port }) = orders.recv().await
    else {
        return Ok(0);
    };
    let mut init = Init::prepare(&facts, &user_data, home, log, imds_port)?;
    let imds = Arc::new(Mutex::new(Imds::new(facts.clone(), user_data, rand::random())));
    let listener = bind(&facts, imds_port).await?;
    let app = Router::new().fallback(answer_imds).with_state(imds.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });

    let mut term = signal(SignalKind::terminate())?;
    let mut child_changed = signal(SignalKind::child())?;
    let mut log_check = tokio::time::interval(Duration::from_secs(1));
    say(&FromLauncher::Running)?;
    init.start_service();
    loop {
        let restart = async {
            match init.restart_at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            order = orders.recv() => match order {
                Some(ToLauncher::Facts { facts }) => imds.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).facts = facts,
                Some(ToLauncher::Start { .. }) => init.note("told to start twice"),
                // The simulation is gone.
                None => return Ok(0),
            },
            () = restart => init.start_service(),
            _ = child_changed.recv() => init.reap(),
            _ = log_check.tick() => init.bound_log(),
            _ = term.recv() => {
                init.note("terminated");
                // Everything in this namespace but us.
                let _ = kill(Pid::from_raw(-1), Signal::SIGTERM);
                let ended = async {
                    while init.any_left() {
                        child_changed.recv().await;
                    }
                };
                let _ = tokio::time::timeout(STOP_GRACE, ended).await;
                // The kernel kills what is left.
                return Ok(0);
            }
        }
    }
}

struct Init {
    script: PathBuf,
    home: PathBuf,
    log_path: PathBuf,
    log: File,
    metadata_endpoint: String,
    restarts: Restarts,
    service: Option<Pid>,
    restart_at: Option<Instant>,
}

impl Init {
    fn prepare(
        facts: &InstanceFacts,
        user_data: &str,
        home: PathBuf,
        log_path: PathBuf,
        imds_port: u16,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
        let script = home.join("user-data.sh");
        std::fs::write(&script, user_data)
            .with_context(|| format!("write {}", script.display()))?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .with_context(|| format!("open {}", log_path.display()))?;
        let metadata_endpoint = format!("http://{}:{imds_port}", facts.address);
        let restarts = Restarts::new(Instant::now());
        Ok(Init {
            script,
            home,
            log_path,
            log,
            metadata_endpoint,
            restarts,
            service: None,
            restart_at: None,
        })
    }

    fn start_service(&mut self) {
        let now = Instant::now();
        self.restart_at = None;
        self.restarts.started(now);
        match self.spawn_service() {
            Ok(pid) => self.service = Some(pid),
            Err(error) => self.service_ended(&format!("could not start: {error:#}")),
        }
    }

    fn spawn_service(&self) -> anyhow::Result<Pid> {
        let (stdout, stderr) = (self.log.try_clone()?, self.log.try_clone()?);
        let path =
            std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let mut command = Command::new("sh");
        command.arg(&self.script).current_dir(&self.home).env_clear();
        command.env("PATH", path).env("HOME", &self.home);
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &self.metadata_endpoint);
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        // Not waited for through this handle: `reap` waits for all.
        let child = command.spawn().context("run sh")?;
        Ok(Pid::from_raw(i32::try_from(child.id())?))
    }

    fn service_ended(&mut self, how: &str) {
        self.service = None;
        let now = Instant::now();
        let pause = self.restarts.ended(now);
        self.note(&format!("user data {how}; again in {} ms", pause.as_millis()));
        self.restart_at = Some(now + pause);
    }

    /// Waits for every child that has ended, our own and those that lost their parent.
    fn reap(&mut self) {
        loop {
            let status = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(errno) => return self.note(&format!("wait for children: {errno}")),
            };
            if status.pid() == self.service && self.service.is_some() {
                let how = match status {
                    WaitStatus::Exited(_, code) => format!("ended with code {code}"),
                    WaitStatus::Signaled(_, signal, _) => format!("was ended by {signal}"),
                    other => format!("ended: {other:?}"),
                };
                self.service_ended(&how);
            }
        }
    }

    /// Reaps, and says whether any process is left.
    fn any_left(&mut self) -> bool {
        loop {
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return true,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Into the instance's own log.
    fn note(&mut self, text: &str) {
        // A full disk must not end an instance.
        let _ = writeln!(self.log, "launcher: {text}");
    }

    /// Writers append, so truncating under them is safe; what comes between copy and truncation is lost.
    fn bound_log(&mut self) {
        let size = self.log.metadata().map(|metadata| metadata.len()).unwrap_or(0);
        if size > LOG_BYTES_MAX {
            let _ = std::fs::copy(&self.log_path, older(&self.log_path));
            let _ = self.log.set_len(0);
        }
    }
}

fn older(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Lines of stdin, parsed on a thread of their own (stdin cannot be read without blocking); its end closes the channel.
fn read_orders() -> mpsc::Receiver<ToLauncher> {
    // Orders are handled at once; a few in flight suffice.
    let (send, receive) = mpsc::channel(4);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(order) =
                line.map_err(drop).and_then(|line| serde_json::from_str(&line).map_err(drop))
            else {
                return;
            };
            if send.blocking_send(order).is_err() {
                return;
            }
        }
    });
    receive
}

fn say(message: &FromLauncher) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer(&mut stdout, message)?;
    stdout.write_all(b"\n")?;
    stdout.flush().context("tell the simulation")
}

async fn bind(facts: &InstanceFacts, port: u16) -> anyhow::Result<TcpListener> {
    let until = Instant::now() + BIND_PATIENCE;
    loop {
        match TcpListener::bind((facts.address, port)).await {
            Ok(listener) => return Ok(listener),
            Err(error)
                if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < until =>
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("listen on {}:{port} for IMDS", facts.address));
            }
        }
    }
}

async fn answer_imds(State(imds): State<Arc<Mutex<Imds>>>, request: Request) -> Response {
    let imds = imds.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    imds.handle(request.method(), request.uri().path(), request.headers(), clock::now())
        .map(Into::into)
}
