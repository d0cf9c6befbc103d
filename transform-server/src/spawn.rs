//! Starts workers: forked from a warm parent where that is safe, else as fresh interpreters. Either way with a
//! clean environment, one socket, and nothing else of ours.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::pipe2;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::backoff::{Backoff, Ended};
use crate::clock;
use crate::marks::MARKS_BYTES;
use crate::parent::{self, Gifts, Imported, Parent, SandboxReport, Started};
use crate::pool::Pool;
use crate::process::Process;

/// Files of a bundle that an import may not survive; each costs another import.
const SKIPPED_MAX: usize = 32;

/// Everything that a worker is started with.
#[derive(Debug, Clone)]
pub struct WorkerSpec {
    pub python: PathBuf,
    pub bundle: PathBuf,
    /// Prepended to the interpreter's module path.
    pub python_path: Option<PathBuf>,
    /// Where functions' secrets are.
    pub secrets: Option<PathBuf>,
    /// An empty folder: its home and working directory.
    pub home: PathBuf,
    /// `-m outstation.worker` unless a test puts a script of its own here.
    pub entry: Entry,
    /// As whom they run; `None`: as the server does.
    pub user: Option<WorkerUser>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerUser {
    pub uid: u32,
    pub gid: u32,
}

/// What the interpreter runs.
#[derive(Debug, Clone)]
pub enum Entry {
    Sdk,
    Script(PathBuf),
}

/// How workers come about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum WorkerMode {
    /// None has been started yet.
    #[default]
    Unknown,
    Forked,
    /// Each imports the bundle by itself.
    Fresh {
        reason: String,
    },
}

/// For those who look at the server from outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Workers {
    pub mode: WorkerMode,
    pub sandbox: SandboxReport,
}

/// A worker, our end of its socket, and what it writes of itself.
pub struct Worker {
    pub process: Process,
    pub socket: UnixStream,
    pub marks: File,
}

/// Starts the workers of one bundle. Processes are started from a thread that lives as long as this does:
/// they ask the kernel to be killed when their parent *thread* ends (`PR_SET_PDEATHSIG`), and the runtime's
/// threads come and go.
pub struct Spawner {
    pool: Arc<Pool>,
    start_max: Duration,
    jobs: Sender<(Job, oneshot::Sender<io::Result<Done>>)>,
    state: Mutex<State>,
    told: watch::Sender<Workers>,
}

#[derive(Default)]
struct State {
    parent: Option<Arc<Parent>>,
    /// Files that ended or hung an import, and how; not tried again.
    skip: BTreeMap<String, String>,
    fresh: bool,
    backoff: Backoff,
    not_before: Option<Instant>,
}

struct Job {
    spec: WorkerSpec,
    skip: BTreeMap<String, String>,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Worker,
    Parent,
}

enum Done {
    Worker(Worker),
    Parent(Started),
}

impl Spawner {
    pub fn start(pool: Arc<Pool>, start_max: Duration) -> io::Result<Spawner> {
        let (jobs, receiver) = channel::<(Job, oneshot::Sender<io::Result<Done>>)>();
        let runtime = Handle::current();
        thread::Builder::new().name("spawner".into()).spawn(move || {
            let _entered = runtime.enter();
            while let Ok((job, reply)) = receiver.recv() {
                let done = match job.what {
                    What::Worker => fresh(&job).map(Done::Worker),
                    What::Parent => warm(&job).map(Done::Parent),
                };
                // One that nobody waits for any more is killed when it is dropped.
                let _ = reply.send(done);
            }
        })?;
        let (state, told) = (Mutex::default(), watch::Sender::default());
        Ok(Spawner { pool, start_max, jobs, state, told })
    }

    /// How workers are started, and how they are confined.
    pub fn workers(&self) -> watch::Receiver<Workers> {
        self.told.subscribe()
    }

    /// May take as long as the import of the bundle. Can be given up at any time.
    pub async fn spawn(&self, spec: &WorkerSpec) -> io::Result<Worker> {
        if matches!(spec.entry, Entry::Script(_)) {
            return self.fresh(spec, BTreeMap::new()).await;
        }
        let (parent, skip) = {
            let mut state = self.state.lock().await;
            (self.warm_parent(&mut state, spec).await?, state.skip.clone())
        };
        match parent {
            Some(parent) => fork(&parent).await,
            None => self.fresh(spec, skip).await,
        }
    }

    /// `None` if workers cannot be forked.
    async fn warm_parent(
        &self,
        state: &mut State,
        spec: &WorkerSpec,
    ) -> io::Result<Option<Arc<Parent>>> {
        if state.fresh {
            return Ok(None);
        }
        if let Some(parent) = state.parent.take() {
            if parent.is_alive() {
                return Ok(Some(state.parent.insert(parent).clone()));
            }
            let lived = clock::now() - parent.since;
            state.pause(Ended::Died { lived });
        }
        if let Some(until) = state.not_before {
            sleep_until(until).await;
        }
        loop {
            let job = Job { spec: spec.clone(), skip: state.skip.clone(), what: What::Parent };
            let started = match self.job(job).await {
                Ok(Done::Parent(started)) => started,
                Ok(Done::Worker(_)) => return Err(io::Error::other("not what was asked for")),
                Err(error) => {
                    state.pause(Ended::NeverReady);
                    return Err(error);
                }
            };
            match parent::import(&self.pool, started, self.start_max).await? {
                Imported::Ready(parent, sandbox) => {
                    self.tell(WorkerMode::Forked, sandbox);
                    return Ok(Some(state.parent.insert(Arc::new(parent)).clone()));
                }
                Imported::Unsafe(reason, sandbox) => {
                    warn!(
                        reason,
                        "workers cannot be forked from the imported bundle: each imports it by itself"
                    );
                    self.tell(WorkerMode::Fresh { reason }, sandbox);
                    state.fresh = true;
                    return Ok(None);
                }
                Imported::Failed { file: Some(file), reason }
                    if !state.skip.contains_key(&file) && state.skip.len() < SKIPPED_MAX =>
                {
                    warn!(
                        file,
                        reason, "the import of this file failed as a whole: it is left out"
                    );
                    state.skip.insert(file, format!("when it was imported, {reason}"));
                }
                Imported::Failed { reason, .. } => {
                    state.pause(Ended::NeverReady);
                    return Err(io::Error::other(reason));
                }
            }
        }
    }

    fn tell(&self, mode: WorkerMode, sandbox: SandboxReport) {
        let told = Workers { mode, sandbox };
        if *self.told.borrow() != told {
            for missing in &told.sandbox.missing {
                warn!(
                    what = missing.what,
                    why = missing.why,
                    "user code is not confined in this respect"
                );
            }
            info!(granted = told.sandbox.granted.join(", "), "user code is confined");
            self.told.send_replace(told);
        }
    }

    async fn fresh(&self, spec: &WorkerSpec, skip: BTreeMap<String, String>) -> io::Result<Worker> {
        match self.job(Job { spec: spec.clone(), skip, what: What::Worker }).await? {
            Done::Worker(worker) => Ok(worker),
            Done::Parent(_) => Err(io::Error::other("not what was asked for")),
        }
    }

    async fn job(&self, job: Job) -> io::Result<Done> {
        let (reply, done) = oneshot::channel();
        let gone = || io::Error::other("the spawner thread has ended");
        self.jobs.send((job, reply)).map_err(|_| gone())?;
        done.await.map_err(|_| gone())?
    }
}

impl State {
    fn pause(&mut self, ended: Ended) {
        self.not_before = Some(Instant::now() + self.backoff.next(ended));
    }
}

async fn fork(parent: &Parent) -> io::Result<Worker> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let marks = new_marks(MFdFlags::MFD_CLOEXEC)?;
    let ((stdout, out), (stderr, err)) = (output()?, output()?);
    let gifts =
        Gifts { socket: theirs.into(), marks: marks.try_clone()?, stdout: out, stderr: err };
    let process = parent.fork(gifts, stdout, stderr).await?;
    Ok(Worker { process, socket: UnixStream::from_std(ours)?, marks })
}

/// On the spawner's thread alone: between its beginning and its end the marks can be inherited.
fn fresh(job: &Job) -> io::Result<Worker> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let marks = new_marks(MFdFlags::empty())?;
    let mut command = command(job, theirs.into());
    if matches!(job.spec.entry, Entry::Sdk) {
        command.arg("--serve");
    }
    command.args(["--marks-fd", &marks.as_raw_fd().to_string()]);
    let process = start(command);
    fcntl(&marks, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(Worker { process: process?, socket: UnixStream::from_std(ours)?, marks })
}

fn warm(job: &Job) -> io::Result<Started> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (control, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    fcntl(&control, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(Started { process: start(command(job, theirs))?, control })
}

/// Of one size for good: whoever shares it cannot make us read past its end.
fn new_marks(flags: MFdFlags) -> io::Result<File> {
    let marks = memfd_create(c"outstation-marks", flags | MFdFlags::MFD_ALLOW_SEALING)?;
    let marks = File::from(marks);
    marks.set_len(MARKS_BYTES as u64)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&marks, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(marks)
}

fn output() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(ours)?, theirs))
}

/// The command holds the child's ends: it must be gone before we read, or we never see their EOF.
fn start(mut command: Command) -> io::Result<Process> {
    let ((stdout, out), (stderr, err)) = (output()?, output()?);
    let child = command.stdout(Stdio::from(out)).stderr(Stdio::from(err)).spawn()?;
    Ok(Process::child(child, stdout, stderr))
}

fn command(job: &Job, socket: OwnedFd) -> Command {
    let Job { spec, skip, .. } = job;
    let mut command = Command::new(&spec.python);
    match &spec.entry {
        Entry::Sdk => {
            command.args(["-m", "outstation._zygote", "--home"]).arg(&spec.home);
            for (file, why) in skip {
                command.arg(format!("--skip={file}={why}"));
            }
        }
        Entry::Script(path) => {
            command.arg(path);
        }
    }
    command
        // The socket is the child's descriptor 0; everything else of ours is close-on-exec.
        .args(["--fd", "0", "--bundle"])
        .arg(&spec.bundle)
        .stdin(Stdio::from(socket))
        .current_dir(&spec.home)
        // Its own group: a Ctrl-C is for the server, and a kill takes the worker's children along.
        .process_group(0)
        .kill_on_drop(true);
    if let Some(user) = spec.user {
        command.uid(user.uid).gid(user.gid);
    }
    environment(&mut command, spec);
    command
}

/// User code sees none of the server's variables: no credential, no token, no path of ours.
fn environment(command: &mut Command, spec: &WorkerSpec) {
    command
        .env_clear()
        .env("PATH", path_with(&spec.python))
        .env("HOME", &spec.home)
        .env("TMPDIR", &spec.home)
        .env("LANG", "C.UTF-8")
        .env("TZ", "UTC")
        .env("PYTHONUTF8", "1")
        .env("PYTHONUNBUFFERED", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONNOUSERSITE", "1")
        .env("PYTHONSAFEPATH", "1")
        .env("PYTHONFAULTHANDLER", "1");
    // A worker is one of several on the machine: native pools as wide as the machine fight each other.
    for pool in [
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "RAYON_NUM_THREADS",
        "POLARS_MAX_THREADS",
    ] {
        command.env(pool, "1");
    }
    if let Some(folder) = &spec.secrets {
        command.env("OUTSTATION_SECRETS_DIR", folder);
    }
    if let Some(path) = &spec.python_path {
        command.env("PYTHONPATH", path);
    }
}

fn path_with(python: &Path) -> String {
    let system = "/usr/local/bin:/usr/bin:/bin";
    match python.parent().and_then(Path::to_str).filter(|dir| !dir.is_empty()) {
        Some(bin) => format!("{bin}:{system}"),
        None => system.to_owned(),
    }
}
