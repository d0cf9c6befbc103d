//! Admission: which request starts on which worker, what waits, and what is refused. A
//! join-idle-queue without sockets or clocks: events in, actions out, `now` an argument.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One call, for as long as the server knows it. Rises in order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One worker process; a replacement has another id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u64);

#[derive(Debug, Clone, Copy)]
pub struct Config {
    pub waiting_max: usize,
    pub waiting_bytes_max: usize,
}

impl Default for Config {
    /// 1,024 calls: a worker that needs 1 ms for one works off that queue in a second, far inside the
    /// default deadline; a longer queue would only turn quick refusals into late ones. 256 MiB: four
    /// of the largest requests, so that a few big batches cannot exhaust a small instance's memory.
    fn default() -> Self {
        Config { waiting_max: 1024, waiting_bytes_max: 256 << 20 }
    }
}

/// Why a request was never started: it is safe to send it elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{waiting_max} calls are waiting already")]
    TooManyWaiting { waiting_max: usize },
    #[error("calls of {waiting_bytes_max} bytes are waiting already")]
    TooManyBytesWaiting { waiting_bytes_max: usize },
    #[error("the deadline passed before a worker was free")]
    Expired,
    #[error("the server is draining")]
    Draining,
    #[error("no worker: {reason}")]
    NoWorker { reason: Arc<str> },
}

/// What the driver must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Start {
        request: RequestId,
        worker: WorkerId,
    },
    Refuse {
        request: RequestId,
        refusal: Refusal,
    },
    /// The deadline passed while the worker ran the request: end the worker, answer the caller. The
    /// worker is forgotten already.
    Kill {
        worker: WorkerId,
        request: RequestId,
    },
}

#[derive(Debug)]
struct Waiting {
    bytes: usize,
    deadline: Instant,
}

#[derive(Debug)]
struct Running {
    request: RequestId,
    deadline: Instant,
}

#[derive(Debug)]
enum Availability {
    Open,
    Closed { reason: Arc<str> },
}

/// A worker reported the end of something that it was not running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("worker {} answered call {}, which it does not run", .worker.0, .request.0)]
pub struct NotRunning {
    pub worker: WorkerId,
    pub request: RequestId,
}

#[derive(Debug)]
pub struct Admission {
    config: Config,
    availability: Availability,
    draining: bool,
    /// The last one to become idle is used first: its caches are warm.
    idle: Vec<WorkerId>,
    /// By arrival, as the ids rise.
    waiting: BTreeMap<RequestId, Waiting>,
    waiting_bytes: usize,
    running: BTreeMap<WorkerId, Running>,
    /// Every waiting and running request; with its worker once it runs.
    deadlines: BTreeMap<(Instant, RequestId), Option<WorkerId>>,
    actions: VecDeque<Action>,
}

impl Admission {
    /// Refuses everything until it is opened.
    pub fn new(config: Config, reason: &str) -> Self {
        Admission {
            config,
            availability: Availability::Closed { reason: reason.into() },
            draining: false,
            idle: Vec::new(),
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            running: BTreeMap::new(),
            deadlines: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// A request arrived. Accepted, it is started at once if a worker is idle, and waits if none is;
    /// exactly one of start, refuse or `cancel` follows.
    pub fn offer(
        &mut self,
        request: RequestId,
        bytes: usize,
        deadline: Instant,
        now: Instant,
    ) -> Result<(), Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        if let Availability::Closed { reason } = &self.availability {
            return Err(Refusal::NoWorker { reason: reason.clone() });
        }
        if deadline <= now {
            return Err(Refusal::Expired);
        }
        if let Some(worker) = self.idle.pop() {
            self.start(request, worker, deadline);
            return Ok(());
        }
        if self.waiting.len() >= self.config.waiting_max {
            return Err(Refusal::TooManyWaiting { waiting_max: self.config.waiting_max });
        }
        // One request is let in whatever its size: it has been received already.
        if !self.waiting.is_empty() && self.waiting_bytes + bytes > self.config.waiting_bytes_max {
            return Err(Refusal::TooManyBytesWaiting {
                waiting_bytes_max: self.config.waiting_bytes_max,
            });
        }
        self.waiting.insert(request, Waiting { bytes, deadline });
        self.waiting_bytes += bytes;
        self.deadlines.insert((deadline, request), None);
        Ok(())
    }

    /// The caller went away. A request that waits is dropped; one that runs is left to its worker,
    /// and to its deadline. Returns whether it was dropped.
    pub fn cancel(&mut self, request: RequestId) -> bool {
        self.take_waiting(request)
    }

    /// A worker has loaded the bundle.
    pub fn handle_worker_ready(&mut self, worker: WorkerId, now: Instant) {
        self.idle.push(worker);
        self.dispatch(now);
    }

    /// A worker answered; it is idle again.
    pub fn handle_worker_done(
        &mut self,
        worker: WorkerId,
        request: RequestId,
        now: Instant,
    ) -> Result<(), NotRunning> {
        if self.running.get(&worker).is_none_or(|running| running.request != request) {
            return Err(NotRunning { worker, request });
        }
        self.stop_running(worker);
        self.idle.push(worker);
        self.dispatch(now);
        Ok(())
    }

    /// A worker is no more. Returns the request that it had started, which is lost.
    pub fn handle_worker_gone(&mut self, worker: WorkerId) -> Option<RequestId> {
        self.idle.retain(|idle| *idle != worker);
        self.stop_running(worker)
    }

    /// Requests are taken from now on (unless draining): workers run or will soon.
    pub fn open(&mut self) {
        self.availability = Availability::Open;
    }

    /// No worker runs and none is expected soon: what waits is refused, and so is what comes.
    pub fn close(&mut self, reason: &str) {
        let reason: Arc<str> = reason.into();
        self.refuse_waiting(&Refusal::NoWorker { reason: reason.clone() });
        self.availability = Availability::Closed { reason };
    }

    /// Nothing new is taken; what waits and runs is finished. There is no way back.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Ends the wait of everything that has not started.
    pub fn refuse_waiting(&mut self, refusal: &Refusal) {
        while let Some((request, waiting)) = self.waiting.pop_first() {
            self.deadlines.remove(&(waiting.deadline, request));
            self.actions.push_back(Action::Refuse { request, refusal: refusal.clone() });
        }
        self.waiting_bytes = 0;
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(entry) = self.deadlines.first_entry() {
            let (deadline, request) = *entry.key();
            if deadline > now {
                break;
            }
            match *entry.get() {
                Some(worker) => {
                    self.stop_running(worker);
                    self.actions.push_back(Action::Kill { worker, request });
                }
                None => {
                    self.take_waiting(request);
                    self.actions.push_back(Action::Refuse { request, refusal: Refusal::Expired });
                }
            }
        }
    }

    /// When `handle_timeout` has something to do.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.deadlines.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Nothing waits and nothing runs.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub fn is_draining(&self) -> bool {
        self.draining
    }

    fn dispatch(&mut self, now: Instant) {
        while !self.idle.is_empty() {
            let Some((request, waiting)) = self.waiting.pop_first() else {
                return;
            };
            self.waiting_bytes -= waiting.bytes;
            self.deadlines.remove(&(waiting.deadline, request));
            if waiting.deadline <= now {
                self.actions.push_back(Action::Refuse { request, refusal: Refusal::Expired });
                continue;
            }
            let worker = self.idle.pop().expect("checked non-empty above");
            self.start(request, worker, waiting.deadline);
        }
    }

    fn start(&mut self, request: RequestId, worker: WorkerId, deadline: Instant) {
        self.running.insert(worker, Running { request, deadline });
        self.deadlines.insert((deadline, request), Some(worker));
        self.actions.push_back(Action::Start { request, worker });
    }

    fn take_waiting(&mut self, request: RequestId) -> bool {
        let Some(waiting) = self.waiting.remove(&request) else {
            return false;
        };
        self.waiting_bytes -= waiting.bytes;
        self.deadlines.remove(&(waiting.deadline, request));
        true
    }

    fn stop_running(&mut self, worker: WorkerId) -> Option<RequestId> {
        let running = self.running.remove(&worker)?;
        self.deadlines.remove(&(running.deadline, running.request));
        Some(running.request)
    }
}

/// How long a slot pauses before it starts its next worker.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

/// How a worker ended, as far as its replacement is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It never loaded the bundle.
    NeverReady,
    /// It had loaded the bundle and lived so long.
    Died { lived: Duration },
    /// We ended it, at a caller's deadline.
    Killed,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    /// Often enough that a repaired environment is noticed soon, seldom enough that importing
    /// pandas over and over does not load the instance.
    const MAX: Duration = Duration::from_secs(15);
    /// A worker that lived this long was well: its death starts a new count.
    const WELL: Duration = Duration::from_secs(10);

    pub fn next(&mut self, ended: Ended) -> Duration {
        match ended {
            Ended::Killed => return Duration::ZERO,
            Ended::Died { lived } if lived >= Self::WELL => {
                self.failures = 0;
                return Duration::ZERO;
            }
            Ended::Died { .. } | Ended::NeverReady => {}
        }
        self.failures = self.failures.saturating_add(1);
        Self::FIRST.saturating_mul(1 << (self.failures - 1).min(16)).min(Self::MAX)
    }
}
