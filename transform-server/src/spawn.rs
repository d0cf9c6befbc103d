//! Starts worker processes: a clean environment, one socket, nothing else of ours.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::marks::MARKS_BYTES;

/// Everything that a worker is started with.
#[derive(Debug, Clone)]
pub struct WorkerSpec {
    pub python: PathBuf,
    pub bundle: PathBuf,
    /// Prepended to the interpreter's module path.
    pub python_path: Option<PathBuf>,
    /// An empty folder: its home and working directory.
    pub home: PathBuf,
    /// `-m outstation.worker` unless a test puts a script of its own here.
    pub entry: Entry,
}

/// What the interpreter runs.
#[derive(Debug, Clone)]
pub enum Entry {
    Sdk,
    Script(PathBuf),
}

pub struct Process {
    pub child: Child,
    group: Option<Pid>,
}

impl Process {
    /// Ends the worker and whatever it started; after the worker's own end, what that left behind.
    pub fn kill(&self) {
        if let Some(group) = self.group {
            // Fails when nobody is left, which is what we want.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Starts processes from a thread that lives as long as the server does: a worker asks the kernel to be
/// killed when its parent *thread* ends (`PR_SET_PDEATHSIG`), and the runtime's threads come and go.
pub struct Spawner {
    jobs: Sender<(WorkerSpec, oneshot::Sender<Spawned>)>,
}

/// A worker, our end of its socket, and what it writes of itself.
pub struct Worker {
    pub process: Process,
    pub socket: UnixStream,
    pub marks: File,
}

type Spawned = io::Result<Worker>;

impl Spawner {
    pub fn start() -> io::Result<Spawner> {
        let (jobs, receiver) = channel::<(WorkerSpec, oneshot::Sender<Spawned>)>();
        let runtime = Handle::current();
        thread::Builder::new().name("spawner".into()).spawn(move || {
            let _entered = runtime.enter();
            while let Ok((spec, reply)) = receiver.recv() {
                if let Err(Ok(worker)) = reply.send(spawn(&spec)) {
                    worker.process.kill();
                }
            }
        })?;
        Ok(Spawner { jobs })
    }

    pub async fn spawn(&self, spec: &WorkerSpec) -> Spawned {
        let (reply, process) = oneshot::channel();
        let gone = |_| io::Error::other("the spawner thread has ended");
        self.jobs.send((spec.clone(), reply)).map_err(|_| gone(()))?;
        process.await.map_err(|_| gone(()))?
    }
}

fn spawn(spec: &WorkerSpec) -> Spawned {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    // The command holds the child's end: it must be gone before we read, or we never see its EOF.
    let marks = File::from(memfd_create(c"outstation-marks", MFdFlags::empty())?);
    marks.set_len(MARKS_BYTES as u64)?;
    let child = command(spec, theirs, &marks).spawn()?;
    fcntl(&marks, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    Ok(Worker { process: Process { child, group }, socket: UnixStream::from_std(ours)?, marks })
}

fn command(spec: &WorkerSpec, socket: StdUnixStream, marks: &File) -> Command {
    let mut command = Command::new(&spec.python);
    match &spec.entry {
        Entry::Sdk => command.args(["-m", "outstation.worker"]),
        Entry::Script(path) => command.arg(path),
    };
    command
        // The socket is the worker's descriptor 0; everything else of ours is close-on-exec.
        .args(["--fd", "0", "--marks-fd", &marks.as_raw_fd().to_string(), "--bundle"])
        .arg(&spec.bundle)
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .current_dir(&spec.home)
        // Its own group: a Ctrl-C is for the server, and a kill takes the worker's children along.
        .process_group(0)
        .kill_on_drop(true);
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
