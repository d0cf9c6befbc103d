//! One slot of the pool: starts a worker, talks to it, and replaces it when it ends, for ever.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tracing::{debug, info, warn};

use crate::admission::{Backoff, Ended, NotRunning, WorkerId};
use crate::clock;
use crate::frame::{self, FrameError, FromWorker};
use crate::logs::{self, Tail};
use crate::pool::{Failure, Order, Pool, WorkerHandle};
use crate::spawn::{Process, Spawner, WorkerSpec};
use crate::targets::Targets;

/// A worker whose socket is closed exits by itself; this long it may take.
const EXIT_MAX: Duration = Duration::from_secs(1);
/// How long a dead worker's last output is waited for: something it started may hold the pipe.
const TAIL_MAX: Duration = Duration::from_millis(300);

pub struct Supervisor {
    pub pool: Arc<Pool>,
    pub spec: WorkerSpec,
    pub spawner: Spawner,
    /// How long a worker may need to load the bundle.
    pub start_max: Duration,
    pub stop: CancellationToken,
}

/// Why the talk with a worker ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("it closed its socket")]
    Closed,
    #[error("its socket failed: {0}")]
    Socket(#[from] std::io::Error),
    #[error("it broke the protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("it broke the protocol: {0}")]
    NotRunning(#[from] NotRunning),
    #[error("it broke the protocol: its list of targets cannot be decoded: {0}")]
    Targets(#[from] prost::DecodeError),
    #[error("it broke the protocol: {0}")]
    Order(&'static str),
}

enum Event {
    Broken(Broken),
    Exited,
    Killed,
    Stopped,
}

impl Supervisor {
    pub async fn run_slot(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        while !self.stop.is_cancelled() {
            let ended = self.run_worker().await;
            let pause = backoff.next(ended);
            if !pause.is_zero() && !self.stop.is_cancelled() {
                debug!(?pause, "waiting before the next worker is started");
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    async fn run_worker(&self) -> Ended {
        let worker = self.pool.next_worker();
        let started = clock::now();
        let (mut process, socket) = match self.spawner.spawn(&self.spec).await {
            Ok(spawned) => spawned,
            Err(error) => {
                self.report_failed(
                    worker,
                    &format!("{} cannot be started: {error}", self.spec.python.display()),
                );
                return Ended::NeverReady;
            }
        };
        let outputs = self.forward_outputs(worker, &mut process);
        let (read, write) = socket.into_split();
        let mut reader = Reader { socket: read, buffer: BytesMut::with_capacity(8 * 1024) };

        let targets = tokio::select! {
            targets = timeout(self.start_max, self.ready(worker, &mut reader)) => targets,
            () = self.stop.cancelled() => {
                process.kill();
                let _ = process.child.wait().await;
                return Ended::NeverReady;
            }
        };
        let targets = match targets {
            Ok(Ok(targets)) => targets,
            Ok(Err(broken)) => {
                let reason = self.bury(&mut process, outputs, &broken).await;
                self.report_failed(worker, &reason);
                return Ended::NeverReady;
            }
            Err(_) => {
                process.kill();
                let _ = self.bury(&mut process, outputs, &Broken::Closed).await;
                self.report_failed(
                    worker,
                    &format!("the bundle was not loaded within {:?}", self.start_max),
                );
                return Ended::NeverReady;
            }
        };

        info!(worker = worker.0, targets = targets.count(), took = ?(clock::now() - started), "worker ready");
        for broken in targets.broken() {
            warn!(
                worker = worker.0,
                target = broken,
                "this target is broken and answers with its error"
            );
        }
        let ready = clock::now();
        let (orders, received) = mpsc::channel(1);
        let kill = CancellationToken::new();
        self.pool.worker_ready(worker, WorkerHandle { orders, kill: kill.clone() }, targets);
        match self.serve(worker, &mut process, reader, write, received, &kill).await {
            Event::Stopped => {
                if timeout(EXIT_MAX, process.child.wait()).await.is_err() {
                    warn!(
                        worker = worker.0,
                        "the worker did not exit when its socket closed; killed"
                    );
                }
                process.kill();
                let _ = process.child.wait().await;
                self.pool.worker_gone(worker, "the server stopped");
                Ended::Killed
            }
            Event::Killed => {
                process.kill();
                let _ = process.child.wait().await;
                self.pool.worker_gone(worker, "it ran past a deadline");
                warn!(worker = worker.0, "worker ended at a deadline");
                Ended::Killed
            }
            Event::Broken(broken) => self.died(worker, &mut process, outputs, &broken, ready).await,
            Event::Exited => self.died(worker, &mut process, outputs, &Broken::Closed, ready).await,
        }
    }

    async fn died(
        &self,
        worker: WorkerId,
        process: &mut Process,
        outputs: Outputs,
        broken: &Broken,
        ready: std::time::Instant,
    ) -> Ended {
        let reason = self.bury(process, outputs, broken).await;
        self.pool.worker_gone(worker, &reason);
        warn!(worker = worker.0, reason, "worker died");
        Ended::Died { lived: clock::now() - ready }
    }

    fn report_failed(&self, worker: WorkerId, reason: &str) {
        if !self.stop.is_cancelled() {
            warn!(worker = worker.0, reason, "worker did not start");
            self.pool.start_failed(&format!("the last worker did not start: {reason}"));
        }
    }

    /// Reads until the bundle is loaded.
    async fn ready(&self, worker: WorkerId, reader: &mut Reader) -> Result<Targets, Broken> {
        loop {
            match reader.next().await? {
                FromWorker::Ready(targets) => return Ok(Targets::decode(targets)?),
                FromWorker::Log(request, line) => logs::forward(worker, request, line),
                FromWorker::Done(..) | FromWorker::Failed(..) => {
                    return Err(Broken::Order("an answer before READY"));
                }
            }
        }
    }

    async fn serve(
        &self,
        worker: WorkerId,
        process: &mut Process,
        mut reader: Reader,
        write: OwnedWriteHalf,
        orders: mpsc::Receiver<Order>,
        kill: &CancellationToken,
    ) -> Event {
        // Reading and writing go on side by side: a worker that logs while it is sent 64 MiB must
        // not wait for us to finish.
        let writing = write_orders(write, orders);
        let reading = self.read_answers(worker, &mut reader);
        let event = tokio::select! {
            biased;
            () = kill.cancelled() => Event::Killed,
            broken = reading => Event::Broken(broken),
            Err(error) = writing => Event::Broken(Broken::Socket(error)),
            _ = process.child.wait() => Event::Exited,
            () = self.stop.cancelled() => Event::Stopped,
        };
        if matches!(event, Event::Exited) {
            // What it said last is still in the socket, which a child of its may hold open.
            let _ = timeout(TAIL_MAX, self.read_answers(worker, &mut reader)).await;
        }
        if kill.is_cancelled() { Event::Killed } else { event }
    }

    async fn read_answers(&self, worker: WorkerId, reader: &mut Reader) -> Broken {
        loop {
            let done = match reader.next().await {
                Ok(FromWorker::Done(request, payload)) => {
                    self.pool.worker_done(worker, request, Ok(payload))
                }
                Ok(FromWorker::Failed(request, code, message)) => {
                    let code = match Code::from_i32(i32::from(code)) {
                        Code::Ok => Code::Internal,
                        code => code,
                    };
                    self.pool.worker_done(worker, request, Err(Failure::Worker { code, message }))
                }
                Ok(FromWorker::Log(request, line)) => {
                    logs::forward(worker, request, line);
                    Ok(())
                }
                Ok(FromWorker::Ready(_)) => return Broken::Order("READY a second time"),
                Err(broken) => return broken,
            };
            if let Err(not_running) = done {
                return not_running.into();
            }
        }
    }

    fn forward_outputs(&self, worker: WorkerId, process: &mut Process) -> Outputs {
        if let Some(stdout) = process.child.stdout.take() {
            tokio::spawn(logs::forward_raw(worker, "stdout", stdout));
        }
        let stderr = process.child.stderr.take();
        stderr.map(|stderr| tokio::spawn(logs::forward_raw(worker, "stderr", stderr)))
    }

    /// Waits for the end of a worker that is lost, makes sure of it, and says what is known of it.
    async fn bury(&self, process: &mut Process, outputs: Outputs, broken: &Broken) -> String {
        if !matches!(broken, Broken::Closed) {
            process.kill();
        }
        let exit = match timeout(EXIT_MAX, process.child.wait()).await {
            Ok(exit) => exit.ok(),
            Err(_) => {
                process.kill();
                let _ = process.child.wait().await;
                None
            }
        };
        process.kill();
        let last_words = match outputs {
            Some(outputs) => timeout(TAIL_MAX, outputs)
                .await
                .ok()
                .and_then(Result::ok)
                .and_then(|tail| tail.summary()),
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
}

type Outputs = Option<JoinHandle<Tail>>;

fn describe(exit: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (exit.code(), exit.signal()) {
        (Some(code), _) => format!("it exited with status {code}"),
        (None, Some(signal)) => format!("it was killed by signal {signal}"),
        (None, None) => exit.to_string(),
    }
}

async fn write_orders(
    mut socket: OwnedWriteHalf,
    mut orders: mpsc::Receiver<Order>,
) -> std::io::Result<()> {
    while let Some(Order { request, payload }) = orders.recv().await {
        socket.write_all(&frame::call_header(request, payload.len())).await?;
        socket.write_all(&payload).await?;
    }
    // The pool has let go of this worker: it is about to be killed.
    std::future::pending().await
}

struct Reader {
    socket: OwnedReadHalf,
    buffer: BytesMut,
}

impl Reader {
    async fn next(&mut self) -> Result<FromWorker, Broken> {
        loop {
            if let Some(frame) = frame::decode(&mut self.buffer)? {
                return Ok(frame);
            }
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Err(Broken::Closed);
            }
        }
    }
}
