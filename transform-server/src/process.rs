//! A worker's process: our own child, or forked by the warm parent, in which case it is a grandchild that
//! only a pidfd names for sure.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::process::Child;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long after a worker's end its parent may take to tell how it ended.
const STATUS_MAX: Duration = Duration::from_millis(500);

pub struct Process {
    /// Each is taken once.
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
    inner: Inner,
}

enum Inner {
    Child { child: Child, group: Option<Pid> },
    Forked { pid: u32, pidfd: AsyncFd<OwnedFd>, status: watch::Receiver<Option<ExitStatus>> },
}

impl Process {
    /// `child` leads a process group of its own.
    pub fn child(child: Child, stdout: pipe::Receiver, stderr: pipe::Receiver) -> Process {
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Process { stdout: Some(stdout), stderr: Some(stderr), inner: Inner::Child { child, group } }
    }

    /// The number comes from a process that runs user code: it must be a child of `parent`, or it may be
    /// anybody's.
    pub fn forked(
        pid: u32,
        parent: u32,
        status: watch::Receiver<Option<ExitStatus>>,
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
    ) -> io::Result<Process> {
        let stranger = || io::Error::other("the parent names a process that is not its child");
        let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let pidfd = pidfd_open(raw.ok_or_else(stranger)?, PidfdFlags::empty())?;
        // Asked after the pidfd was opened: if it is still a child of the parent now, it was then.
        if parent_of(pid) != Some(parent) {
            return Err(stranger());
        }
        let pidfd = watched(pidfd, Interest::READABLE)?;
        Ok(Process {
            stdout: Some(stdout),
            stderr: Some(stderr),
            inner: Inner::Forked { pid, pidfd, status },
        })
    }

    pub fn id(&self) -> Option<u32> {
        match &self.inner {
            Inner::Child { child, .. } => child.id(),
            Inner::Forked { pid, .. } => Some(*pid),
        }
    }

    /// Ends the worker and whatever it started; after the worker's own end, what that left behind.
    pub fn kill(&self) {
        // Each fails when nobody is left, which is what we want.
        match &self.inner {
            Inner::Child { group, .. } => {
                if let Some(group) = group {
                    let _ = killpg(*group, Signal::SIGKILL);
                }
            }
            // The parent ends what the worker started, before it lets go of its number.
            Inner::Forked { pidfd, .. } => {
                let _ = pidfd_send_signal(pidfd.get_ref(), rustix::process::Signal::KILL);
            }
        }
    }

    /// May be asked again, and given up at any time.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        match &mut self.inner {
            Inner::Child { child, .. } => child.wait().await,
            Inner::Forked { pidfd, status, .. } => {
                let _ = pidfd.readable().await?;
                let told = timeout(STATUS_MAX, status.wait_for(Option::is_some)).await;
                // With its parent, it is killed.
                let killed = ExitStatus::from_raw(Signal::SIGKILL as i32);
                Ok(told.ok().and_then(Result::ok).and_then(|told| *told).unwrap_or(killed))
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        match &self.inner {
            Inner::Child { .. } => {} // killed on drop
            Inner::Forked { .. } => self.kill(),
        }
    }
}

/// Waits for an owned descriptor, which stays the same as long as it is waited for.
#[expect(deprecated, reason = "it asks for more of other types than an `OwnedFd` needs to promise")]
pub fn watched(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, interest)
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses, and may have more of them.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
