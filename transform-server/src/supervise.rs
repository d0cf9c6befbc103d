//! One slot of the pool: starts a worker, has it talked to, and replaces it when it ends, for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::admission::WorkerId;
use crate::backoff::{Backoff, Ended};
use crate::clock;
use crate::logs::{self, Tail};
use crate::parent::describe;
use crate::pool::{Pool, WorkerHandle};
use crate::process::Process;
use crate::spawn::{Spawner, WorkerSpec};
use crate::talk::{Broken, Talk};

/// A worker whose socket is closed exits by itself; this long it may take.
const EXIT_MAX: Duration = Duration::from_secs(1);
/// How long a dead worker's last output is waited for: something it started may hold the pipe.
const TAIL_MAX: Duration = Duration::from_millis(300);
/// How often a worker's memory and count of calls are looked at.
const LOOK: Duration = Duration::from_secs(1);

pub struct Supervisor {
    pub pool: Arc<Pool>,
    pub spec: WorkerSpec,
    pub spawner: Spawner,
    /// How long a worker may need to load the bundle.
    pub start_max: Duration,
    pub wear: Wear,
    pub stop: CancellationToken,
}

/// When a worker is relieved by a new one.
#[derive(Debug, Clone, Copy)]
pub struct Wear {
    /// 0: however many.
    pub calls_max: u64,
    /// Resident. At half as much again it is ended at once, with the call that it runs.
    pub memory_bytes_max: u64,
}

/// A worker that has loaded the bundle.
struct Live {
    worker: WorkerId,
    process: Process,
    outputs: Outputs,
    talk: Talk,
    handle: Arc<WorkerHandle>,
    ready: Instant,
}

type Outputs = Option<JoinHandle<Tail>>;

enum Event {
    Broken(Broken),
    Exited,
    Killed,
    Overgrown { bytes: u64 },
    Relieved(Box<Live>),
    Stopped,
}

impl Supervisor {
    pub async fn run_slot(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        let mut next = None;
        while !self.stop.is_cancelled() {
            let started = match next.take() {
                Some(live) => Some(live),
                None => self.start().await,
            };
            let ended = match started {
                Some(live) => self.run(live, &mut next).await,
                None => Ended::NeverReady,
            };
            let pause = if next.is_some() { Duration::ZERO } else { backoff.next(ended) };
            if !pause.is_zero() && !self.stop.is_cancelled() {
                debug!(?pause, "waiting before the next worker is started");
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stop.cancelled() => {}
            }
        }
        if let Some(live) = next {
            live.process.kill();
        }
    }

    /// A worker that has loaded the bundle; `None` if it did not, which has been told.
    async fn start(&self) -> Option<Box<Live>> {
        let worker = self.pool.next_worker();
        let started = clock::now();
        self.pool.metrics.worker_starts.inc();
        let spawned = tokio::select! {
            spawned = self.spawner.spawn(&self.spec) => spawned,
            () = self.stop.cancelled() => return None,
        };
        let (mut process, socket, marks) = match spawned {
            Ok(spawned) => (spawned.process, spawned.socket, spawned.marks),
            Err(error) => {
                let python = self.spec.python.display();
                self.report_failed(worker, &format!("{python} cannot be started: {error}"));
                return None;
            }
        };
        let outputs = forward_outputs(&self.pool, worker, &mut process);
        let mut talk = Talk::new(worker, socket);
        let targets = tokio::select! {
            targets = timeout(self.start_max, talk.ready(&self.pool)) => targets,
            () = self.stop.cancelled() => {
                process.kill();
                let _ = process.wait().await;
                return None;
            }
        };
        let targets = match targets {
            Ok(Ok(targets)) => targets,
            Ok(Err(broken)) => {
                let reason = bury(&mut process, outputs, &broken).await;
                self.report_failed(worker, &reason);
                return None;
            }
            Err(_) => {
                process.kill();
                bury(&mut process, outputs, &Broken::Closed).await;
                let max = self.start_max;
                self.report_failed(worker, &format!("the bundle was not loaded within {max:?}"));
                return None;
            }
        };
        let took = clock::now() - started;
        info!(worker = worker.0, targets = targets.count(), ?took, "worker ready");
        for target in targets.broken() {
            let worker = worker.0;
            warn!(worker, target, "this target is broken and answers with its error");
        }
        let (wake, kill) = (Notify::new(), CancellationToken::new());
        let handle = Arc::new(WorkerHandle { wake, kill, marks, answered: AtomicU64::new(0) });
        self.pool.worker_ready(worker, handle.clone(), targets);
        let ready = clock::now();
        Some(Box::new(Live { worker, process, outputs, talk, handle, ready }))
    }

    fn report_failed(&self, worker: WorkerId, reason: &str) {
        if !self.stop.is_cancelled() {
            warn!(worker = worker.0, reason, "worker did not start");
            self.pool.metrics.worker_ended("never_ready");
            self.pool.start_failed(&format!("the last worker did not start: {reason}"));
        }
    }

    /// Until its end. `next` is who relieves it.
    async fn run(&self, mut live: Box<Live>, next: &mut Option<Box<Live>>) -> Ended {
        let mut event = self.until_event(&mut live, true).await;
        if let Event::Relieved(successor) = event {
            *next = Some(successor);
            self.pool.retire(live.worker);
            event = self.until_event(&mut live, false).await;
        }
        let worker = live.worker.0;
        let (broken, why) = match event {
            Event::Stopped => {
                return self.dismiss(live, "the server stopped", "stopped").await;
            }
            Event::Broken(Broken::Relieved) | Event::Relieved(_) => {
                info!(worker, "worker relieved");
                return self.dismiss(live, "it was relieved", "relieved").await;
            }
            Event::Killed => {
                live.process.kill();
                let _ = live.process.wait().await;
                self.pool.worker_gone(live.worker, "it ran past a deadline");
                self.pool.metrics.worker_ended("deadline");
                warn!(worker, "worker ended at a deadline");
                return Ended::Killed;
            }
            Event::Overgrown { bytes } => {
                live.process.kill();
                let max = self.wear.memory_bytes_max >> 20;
                let reason =
                    format!("it had {} MiB of memory, of {max} MiB that it may have", bytes >> 20);
                (Some(reason), "memory")
            }
            Event::Broken(broken) => (Some(self.lost(&mut live, &broken).await), "died"),
            Event::Exited => (Some(self.lost(&mut live, &Broken::Closed).await), "died"),
        };
        let reason = broken.unwrap_or_default();
        let ran = self.pool.worker_gone(live.worker, &reason);
        self.pool.metrics.worker_ended(why);
        warn!(worker, reason, "worker died");
        match ran {
            true => Ended::DiedOfCall,
            false => Ended::Died { lived: clock::now() - live.ready },
        }
    }

    async fn until_event(&self, live: &mut Live, relieve: bool) -> Event {
        let Live { process, talk, handle, .. } = live;
        let pid = process.id();
        let event = tokio::select! {
            biased;
            () = handle.kill.cancelled() => Event::Killed,
            broken = talk.serve(&self.pool, handle) => Event::Broken(broken),
            _ = process.wait() => Event::Exited,
            event = self.wear_out(pid, handle, relieve) => event,
            () = self.stop.cancelled() => Event::Stopped,
        };
        if handle.kill.is_cancelled() { Event::Killed } else { event }
    }

    /// Ends when the worker has done or grown enough, with a warm one that takes its place; or when it has
    /// grown so much that it cannot wait for one.
    async fn wear_out(&self, pid: Option<u32>, handle: &WorkerHandle, relieve: bool) -> Event {
        let overgrown = |bytes: u64| bytes > self.wear.memory_bytes_max / 2 * 3;
        let worn = async {
            loop {
                sleep(LOOK).await;
                let bytes = pid.and_then(resident_bytes).unwrap_or(0);
                let calls = handle.answered.load(Ordering::Relaxed);
                let spent = self.wear.calls_max != 0 && calls >= self.wear.calls_max;
                if overgrown(bytes) || (relieve && (spent || bytes > self.wear.memory_bytes_max)) {
                    return bytes;
                }
            }
        };
        let bytes = worn.await;
        if overgrown(bytes) {
            return Event::Overgrown { bytes };
        }
        let mut pauses = Backoff::default();
        loop {
            match self.start().await {
                Some(live) => return Event::Relieved(live),
                None => sleep(pauses.next(Ended::NeverReady)).await,
            }
        }
    }

    /// It has nothing to do, and is let go.
    async fn dismiss(&self, mut live: Box<Live>, reason: &str, why: &'static str) -> Ended {
        drop(live.talk);
        if timeout(EXIT_MAX, live.process.wait()).await.is_err() {
            let worker = live.worker.0;
            warn!(worker, "the worker did not exit when its socket closed; killed");
        }
        live.process.kill();
        let _ = live.process.wait().await;
        self.pool.worker_gone(live.worker, reason);
        self.pool.metrics.worker_ended(why);
        Ended::Killed
    }

    /// Takes what it still said, makes sure of its end, and says what is known of it.
    async fn lost(&self, live: &mut Live, broken: &Broken) -> String {
        self.pool.retire(live.worker);
        if matches!(broken, Broken::Closed) {
            let rest = live.talk.hear_out(&self.pool, &live.handle);
            let _ = timeout(TAIL_MAX, rest).await;
        }
        bury(&mut live.process, live.outputs.take(), broken).await
    }
}

fn forward_outputs(pool: &Arc<Pool>, worker: WorkerId, process: &mut Process) -> Outputs {
    if let Some(stdout) = process.stdout.take() {
        tokio::spawn(logs::forward_raw(pool.clone(), worker, "stdout", stdout));
    }
    let stderr = process.stderr.take();
    stderr.map(|stderr| tokio::spawn(logs::forward_raw(pool.clone(), worker, "stderr", stderr)))
}

/// Waits for the end of a worker that is lost, makes sure of it, and says what is known of it.
async fn bury(process: &mut Process, outputs: Outputs, broken: &Broken) -> String {
    if !matches!(broken, Broken::Closed) {
        process.kill();
    }
    let exit = match timeout(EXIT_MAX, process.wait()).await {
        Ok(exit) => exit.ok(),
        Err(_) => {
            process.kill();
            let _ = process.wait().await;
            None
        }
    };
    process.kill();
    let last_words = match outputs {
        Some(outputs) => {
            let tail = timeout(TAIL_MAX, outputs).await.ok().and_then(Result::ok);
            tail.and_then(|tail| tail.summary())
        }
        None => None,
    };
    let mut reason = match (broken, exit) {
        (Broken::Closed, Some(exit)) => describe(exit),
        (broken, _) => broken.to_string(),
    };
    if let Some(last_words) = last_words {
        reason = format!("{reason}: {last_words}");
    }
    reason
}

/// What a process has in memory, what it shares with its parent included.
fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}
