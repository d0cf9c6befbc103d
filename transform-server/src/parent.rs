//! The warm parent: a process that has imported the bundle and forks workers from it. It runs user code, so
//! nothing that it says is trusted further than it reaches. `sdk/outstation/_zygote.py` is the other end.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use serde::Deserialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::admission::{RequestId, WorkerId};
use crate::clock;
use crate::frame::LogLine;
use crate::logs::{self, Tail};
use crate::pool::Pool;
use crate::process::{Process, watched};

/// Log lines have 4 KiB, escaped at worst six times that.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// A fork takes milliseconds; a parent that is silent for so long hangs.
const FORK_MAX: Duration = Duration::from_secs(10);
/// Forks asked for and not yet sent: one of each slot, and one that relieves it.
const FORKS_MAX: usize = 1024;
/// How long the parent's last words are waited for.
const TAIL_MAX: Duration = Duration::from_millis(300);
/// The parent has no number among the workers.
const PARENT: WorkerId = WorkerId(0);

/// How user code is confined on this machine, and what the system did not grant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SandboxReport {
    pub granted: Vec<String>,
    pub missing: Vec<Missing>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Missing {
    pub what: String,
    pub why: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Message {
    Sandbox(SandboxReport),
    Importing(String),
    Log(LogLine),
    Ready {
        #[serde(rename = "importSecs")]
        import_secs: f64,
    },
    Unsafe(String),
    #[serde(untagged)]
    Forked {
        forked: u64,
        pid: u32,
    },
    #[serde(untagged)]
    Failed {
        failed: u64,
        error: String,
    },
    #[serde(untagged)]
    Exited {
        exited: u32,
        status: i32,
    },
}

/// What became of an import.
pub enum Imported {
    Ready(Parent, SandboxReport),
    /// Workers must not be forked from it.
    Unsafe(String, SandboxReport),
    /// It exited, hung or was killed; with the file that it was at, if it had come to one.
    Failed {
        file: Option<String>,
        reason: String,
    },
}

/// What the spawner has started.
pub struct Started {
    pub process: Process,
    pub control: OwnedFd,
}

/// What a worker gets from its parent.
pub struct Gifts {
    pub socket: OwnedFd,
    pub marks: File,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

type Forked = io::Result<(u32, watch::Receiver<Option<ExitStatus>>)>;

struct Fork {
    gifts: Gifts,
    reply: oneshot::Sender<Forked>,
}

/// Lives until it is dropped, and its workers with it.
pub struct Parent {
    forks: mpsc::Sender<Fork>,
    pub pid: u32,
    pub since: Instant,
    task: JoinHandle<()>,
}

impl Drop for Parent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Parent {
    pub fn is_alive(&self) -> bool {
        !self.task.is_finished()
    }

    pub async fn fork(
        &self,
        gifts: Gifts,
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
    ) -> io::Result<Process> {
        let gone = || io::Error::other("the parent of the workers has ended");
        let (reply, forked) = oneshot::channel();
        self.forks.send(Fork { gifts, reply }).await.map_err(|_| gone())?;
        match timeout(FORK_MAX, forked).await {
            Ok(forked) => {
                let (pid, status) = forked.map_err(|_| gone())??;
                Process::forked(pid, self.pid, status, stdout, stderr)
            }
            Err(_) => {
                self.task.abort();
                Err(io::Error::other(format!("the parent forked no worker within {FORK_MAX:?}")))
            }
        }
    }
}

/// Sees the parent through its import.
pub async fn import(pool: &Arc<Pool>, started: Started, within: Duration) -> io::Result<Imported> {
    let Started { mut process, control } = started;
    let control = watched(control, Interest::READABLE | Interest::WRITABLE)?;
    if let Some(stdout) = process.stdout.take() {
        tokio::spawn(logs::forward_raw(pool.clone(), PARENT, "stdout", stdout));
    }
    let stderr = process.stderr.take();
    let tail = stderr.map(|it| tokio::spawn(logs::forward_raw(pool.clone(), PARENT, "stderr", it)));
    let (mut file, mut report) = (None, SandboxReport::default());
    let ended = timeout(within, async {
        loop {
            match hear(&control).await? {
                Some(Message::Sandbox(told)) => report = told,
                Some(Message::Importing(name)) => file = Some(name),
                Some(Message::Log(line)) => logs::forward(pool, PARENT, RequestId(0), line),
                Some(Message::Ready { import_secs }) => return Ok(Some(Ok(import_secs))),
                Some(Message::Unsafe(why)) => return Ok(Some(Err(why))),
                Some(Message::Forked { .. } | Message::Failed { .. } | Message::Exited { .. }) => {
                    return Err(io::Error::other("it answers what was not asked"));
                }
                None => return Ok(None),
            }
        }
    })
    .await;
    let reason = match ended {
        Ok(Ok(Some(Ok(import_secs)))) => {
            let pid = process.id().unwrap_or_default();
            info!(pid, import_secs, "the bundle is imported; workers are forked from here");
            let (forks, asked) = mpsc::channel(FORKS_MAX);
            let task = tokio::spawn(run(pool.clone(), process, control, asked));
            return Ok(Imported::Ready(Parent { forks, pid, since: clock::now(), task }, report));
        }
        Ok(Ok(Some(Err(why)))) => {
            process.kill();
            let _ = process.wait().await;
            return Ok(Imported::Unsafe(why, report));
        }
        Ok(Ok(None)) => {
            let exit = timeout(within, process.wait()).await;
            let reason = exit.ok().and_then(Result::ok).map_or("it ended".into(), describe);
            with_last_words(reason, tail).await
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it did not end within {within:?}"),
    };
    process.kill();
    let _ = process.wait().await;
    Ok(Imported::Failed { file, reason })
}

async fn with_last_words(reason: String, tail: Option<JoinHandle<Tail>>) -> String {
    let Some(tail) = tail else { return reason };
    let tail = timeout(TAIL_MAX, tail).await.ok().and_then(Result::ok);
    match tail.and_then(|tail| tail.summary()) {
        Some(last_words) => format!("{reason}: {last_words}"),
        None => reason,
    }
}

pub fn describe(exit: ExitStatus) -> String {
    match (exit.code(), exit.signal()) {
        (Some(code), _) => format!("it exited with status {code}"),
        (None, Some(signal)) => format!("it was killed by signal {signal}"),
        (None, None) => exit.to_string(),
    }
}

/// Until the parent ends, or is let go of.
async fn run(
    pool: Arc<Pool>,
    mut process: Process,
    control: AsyncFd<OwnedFd>,
    mut asked: mpsc::Receiver<Fork>,
) {
    let mut number = 0;
    let mut pending = HashMap::new();
    let mut exits: HashMap<u32, watch::Sender<Option<ExitStatus>>> = HashMap::new();
    let why = loop {
        tokio::select! {
            fork = asked.recv() => {
                // Let go of: it sees the end of the socket.
                let Some(Fork { gifts, reply }) = fork else { return };
                number += 1;
                match ask(&control, number, &gifts).await {
                    Ok(()) => { pending.insert(number, reply); }
                    Err(error) => { let _ = reply.send(Err(error)); }
                }
            }
            message = hear(&control) => match message {
                Ok(Some(Message::Forked { forked, pid })) => {
                    let (sender, status) = watch::channel(None);
                    exits.insert(pid, sender);
                    // Who asked may be gone; then nobody holds the worker's socket, and it ends.
                    if let Some(reply) = pending.remove(&forked) {
                        let _ = reply.send(Ok((pid, status)));
                    }
                }
                Ok(Some(Message::Failed { failed, error })) => {
                    if let Some(reply) = pending.remove(&failed) {
                        let _ = reply.send(Err(io::Error::other(error)));
                    }
                }
                Ok(Some(Message::Exited { exited, status })) => {
                    if let Some(sender) = exits.remove(&exited) {
                        sender.send_replace(Some(ExitStatus::from_raw(status)));
                    }
                }
                Ok(Some(Message::Log(line))) => logs::forward(&pool, PARENT, RequestId(0), line),
                Ok(Some(Message::Sandbox(_) | Message::Importing(_) | Message::Ready { .. } | Message::Unsafe(_))) => {}
                Ok(None) => break "it closed its socket".to_owned(),
                Err(error) => break error.to_string(),
            }
        }
    };
    process.kill();
    let exit = process.wait().await.map_or_else(|_| String::new(), describe);
    warn!(why, exit, "the parent of the workers has ended, and they with it");
}

async fn ask(control: &AsyncFd<OwnedFd>, number: u64, gifts: &Gifts) -> io::Result<()> {
    let message = format!("{{\"fork\": {number}}}");
    let fds: [RawFd; 4] = [
        gifts.socket.as_raw_fd(),
        gifts.marks.as_raw_fd(),
        gifts.stdout.as_raw_fd(),
        gifts.stderr.as_raw_fd(),
    ];
    control
        .async_io(Interest::WRITABLE, |control| {
            let rights = [ControlMessage::ScmRights(&fds)];
            let parts = [IoSlice::new(message.as_bytes())];
            let flags = MsgFlags::MSG_NOSIGNAL;
            sendmsg::<()>(control.as_raw_fd(), &parts, &rights, flags, None)?;
            Ok(())
        })
        .await
}

/// The next message; `None` at the end. Descriptors that came along are closed by the kernel.
async fn hear(control: &AsyncFd<OwnedFd>) -> io::Result<Option<Message>> {
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    let count = control
        .async_io(Interest::READABLE, |control| {
            Ok(recv(control.as_raw_fd(), &mut buffer, MsgFlags::empty())?)
        })
        .await;
    match count {
        Ok(0) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Ok(count) => serde_json::from_slice(&buffer[..count])
            .map(Some)
            .map_err(|error| io::Error::other(format!("it breaks the protocol: {error}"))),
        Err(error) => Err(error),
    }
}
