//! One thread that starts every launcher and never ends: a launcher asks the kernel to die with its parent, and to the
//! kernel the parent is the thread, so a pool thread that comes and goes would take instances with it.

use std::process::{Child, Command};
use std::sync::mpsc;

use anyhow::Context;
use tokio::sync::oneshot;

/// Launches asked for and not yet done. A tick asks for one at a time; more would be a fault.
const PENDING_MAX: usize = 16;

type Job = (Command, oneshot::Sender<std::io::Result<Child>>);

#[derive(Debug)]
pub struct Spawner {
    jobs: mpsc::SyncSender<Job>,
}

impl Spawner {
    pub fn start() -> anyhow::Result<Self> {
        let (jobs, todo) = mpsc::sync_channel::<Job>(PENDING_MAX);
        std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                for (mut command, reply) in todo {
                    let _ = reply.send(command.spawn());
                }
            })
            .context("start the thread that starts instances")?;
        Ok(Spawner { jobs })
    }

    pub async fn spawn(&self, command: Command) -> anyhow::Result<Child> {
        let (reply, answer) = oneshot::channel();
        self.jobs.try_send((command, reply)).context("ask for a launcher")?;
        answer.await.context("the spawner ended")?.context("start a launcher")
    }
}
