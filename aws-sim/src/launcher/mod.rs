//! The process of one instance. `aws-sim launcher` makes a PID and a mount namespace and starts pid 1 of it
//! (`launcher-init`): when either dies, however, the kernel kills everything inside. Nothing of an instance can outlive it.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::Context;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getgid, getuid};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

pub mod init;
pub mod service;

use crate::model::InstanceFacts;

/// What the simulation writes to a launcher's stdin, one JSON object a line. The end of stdin is the end of the instance.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToLauncher {
    /// The first line.
    Start {
        facts: InstanceFacts,
        user_data: String,
        home: std::path::PathBuf,
        log: std::path::PathBuf,
        imds_port: u16,
    },
    Facts {
        facts: InstanceFacts,
    },
}

/// What a launcher writes to its stdout.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromLauncher {
    /// IMDS answers and the service is being started.
    Running,
}

/// `--probe` makes the namespaces, starts pid 1 and ends: can instances exist on this machine?
pub fn run(probe: bool) -> anyhow::Result<i32> {
    // Dies with the thread that spawned it, which lives as long as the simulation.
    set_pdeathsig(Signal::SIGKILL).context("ask to die with the simulation")?;
    isolate()?;
    // The kernel forgets the wish when credentials change, as they do in a new user namespace.
    set_pdeathsig(Signal::SIGKILL).context("ask to die with the simulation")?;
    // No thread may be made after unshare(CLONE_NEWPID): the kernel refuses it. This runtime makes none.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("build the runtime")?;
    runtime.block_on(watch(probe))
}

/// Starts pid 1, passes SIGTERM on to it, ends when it ends.
async fn watch(probe: bool) -> anyhow::Result<i32> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut child_changed = signal(SignalKind::child())?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("aws-sim").arg("launcher-init").args(probe.then_some("--probe"));
    command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    let mut init = command.spawn().context("start the instance's first process")?;
    let pid = Pid::from_raw(i32::try_from(init.id()).context("pid")?);
    loop {
        if let Some(status) = init.try_wait().context("wait for the instance's first process")? {
            return Ok(status.code().unwrap_or(1));
        }
        tokio::select! {
            _ = child_changed.recv() => {}
            _ = term.recv() => forward(pid),
            _ = interrupt.recv() => forward(pid),
        }
    }
}

fn forward(pid: Pid) {
    // It is our child and not yet waited for, so the pid is still its own.
    let _ = kill(pid, Signal::SIGTERM);
}

/// New PID and mount namespaces, by privilege or, without it, inside a new user namespace.
fn isolate() -> anyhow::Result<()> {
    let wanted = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
    match unshare(wanted) {
        Ok(()) => {}
        Err(Errno::EPERM) => {
            let (uid, gid) = (getuid(), getgid());
            unshare(wanted | CloneFlags::CLONE_NEWUSER).map_err(refused)?;
            std::fs::write("/proc/self/setgroups", "deny").context("write setgroups")?;
            std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))
                .context("write uid_map")?;
            std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
                .context("write gid_map")?;
        }
        Err(errno) => return Err(refused(errno)),
    }
    // Mounts made in here stay in here.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("make mounts private")
}

fn refused(errno: Errno) -> anyhow::Error {
    crate::Hinted::new(
        format!("this machine does not let instances have their own PID namespace ({errno})"),
        "run as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, or --security-opt seccomp=unconfined)",
    )
    .into()
}
