//! Carries out what admission decides: hands requests to workers, answers to callers, and ends what
//! runs past its deadline. The lock is held for a few map operations, never across a wait.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::admission::{Action, Admission, Config, NotRunning, Refusal, RequestId, WorkerId};
use crate::clock;
use crate::targets::Targets;

/// Why a call has no response.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure {
    #[error("{target} was not started: {refusal}")]
    Refused { target: Arc<str>, refusal: Refusal },
    #[error("{target} did not end before the deadline; its worker has been ended")]
    Runaway { target: Arc<str> },
    #[error("the worker that ran {target} died: {reason}")]
    Died { target: Arc<str>, reason: Arc<str> },
    /// The worker's own answer, which names what it must.
    #[error("{message}")]
    Worker { code: Code, message: String },
    #[error("the server stopped while it ran {target}")]
    Stopped { target: Arc<str> },
}

/// What the world may know about the workers.
#[derive(Debug, Clone)]
pub struct Serving {
    /// Calls are taken, or why not.
    pub open: Result<(), Arc<str>>,
    /// Known once a worker has loaded the bundle.
    pub targets: Option<Arc<Targets>>,
}

/// What a worker is given to run.
#[derive(Debug)]
pub struct Order {
    pub request: RequestId,
    pub payload: Bytes,
}

/// How a worker's task is reached.
#[derive(Debug)]
pub struct WorkerHandle {
    /// Room for one: a worker runs one call at a time, so this is never full.
    pub orders: mpsc::Sender<Order>,
    pub kill: CancellationToken,
}

struct Call {
    target: Arc<str>,
    /// Moves on to the worker at the start.
    payload: Bytes,
    reply: oneshot::Sender<Result<Bytes, Failure>>,
}

struct State {
    admission: Admission,
    calls: HashMap<RequestId, Call>,
    workers: BTreeMap<WorkerId, WorkerHandle>,
    next_request: u64,
    next_worker: u64,
    /// What the timer sleeps until.
    armed: Option<Instant>,
}

pub struct Pool {
    state: Mutex<State>,
    timer: Notify,
    serving: watch::Sender<Serving>,
    drained: CancellationToken,
}

impl Pool {
    pub fn new(config: Config) -> Arc<Pool> {
        let reason = "no worker has loaded the bundle yet";
        let state = State {
            admission: Admission::new(config, reason),
            calls: HashMap::new(),
            workers: BTreeMap::new(),
            next_request: 1,
            next_worker: 1,
            armed: None,
        };
        Arc::new(Pool {
            state: Mutex::new(state),
            timer: Notify::new(),
            serving: watch::Sender::new(Serving { open: Err(reason.into()), targets: None }),
            drained: CancellationToken::new(),
        })
    }

    /// Runs one request. A caller that stops waiting takes its request out of the queue.
    pub async fn call(
        &self,
        target: Arc<str>,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, Failure> {
        let (reply, answer) = oneshot::channel();
        let request = {
            let mut state = self.lock();
            let request = RequestId(state.next_request);
            state.next_request += 1;
            if let Err(refusal) =
                state.admission.offer(request, payload.len(), deadline, clock::now())
            {
                return Err(Failure::Refused { target, refusal });
            }
            state.calls.insert(request, Call { target: target.clone(), payload, reply });
            self.apply(&mut state);
            request
        };
        let mut waiting = CancelOnDrop { pool: self, request: Some(request) };
        let answer = answer.await;
        waiting.request = None;
        answer.unwrap_or(Err(Failure::Stopped { target }))
    }

    pub fn serving(&self) -> watch::Receiver<Serving> {
        self.serving.subscribe()
    }

    /// The name of a target that the bundle has, shared.
    pub fn known_target(&self, name: &str) -> Option<Arc<str>> {
        self.serving.borrow().targets.as_ref()?.find(name).cloned()
    }

    pub fn next_worker(&self) -> WorkerId {
        let mut state = self.lock();
        let worker = WorkerId(state.next_worker);
        state.next_worker += 1;
        worker
    }

    pub fn worker_ready(&self, worker: WorkerId, handle: WorkerHandle, targets: Targets) {
        let mut state = self.lock();
        state.workers.insert(worker, handle);
        state.admission.open();
        state.admission.handle_worker_ready(worker, clock::now());
        let draining = state.admission.is_draining();
        self.serving.send_modify(|serving| {
            serving.targets = Some(Arc::new(targets));
            if !draining {
                serving.open = Ok(());
            }
        });
        self.apply(&mut state);
    }

    /// Answers the caller and gives the worker its next request.
    pub fn worker_done(
        &self,
        worker: WorkerId,
        request: RequestId,
        answer: Result<Bytes, Failure>,
    ) -> Result<(), NotRunning> {
        let mut state = self.lock();
        state.admission.handle_worker_done(worker, request, clock::now())?;
        state.answer(request, |_| answer);
        self.apply(&mut state);
        Ok(())
    }

    /// A worker that had been ready has ended.
    pub fn worker_gone(&self, worker: WorkerId, reason: &str) {
        let mut state = self.lock();
        state.workers.remove(&worker);
        if let Some(request) = state.admission.handle_worker_gone(worker) {
            state.answer(request, |target| Err(Failure::Died { target, reason: reason.into() }));
        }
        self.apply(&mut state);
    }

    /// A worker could not be started. With none left, calls are refused until one can.
    pub fn start_failed(&self, reason: &str) {
        let mut state = self.lock();
        if !state.workers.is_empty() {
            return;
        }
        state.admission.close(reason);
        if !state.admission.is_draining() {
            self.serving.send_modify(|serving| serving.open = Err(reason.into()));
        }
        self.apply(&mut state);
    }

    /// Takes nothing new; `drained` ends when what was taken is answered.
    pub fn drain(&self) {
        let mut state = self.lock();
        state.admission.drain();
        self.serving.send_modify(|serving| serving.open = Err("the server is draining".into()));
        self.apply(&mut state);
    }

    pub async fn drained(&self) {
        self.drained.cancelled().await;
    }

    /// Gives every open call a last answer. Only after `drain`.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.admission.refuse_waiting(&Refusal::Draining);
        self.apply(&mut state);
        let running: Vec<RequestId> = state.calls.keys().copied().collect();
        for request in running {
            state.answer(request, |target| Err(Failure::Stopped { target }));
        }
    }

    /// Keeps deadlines; runs as long as the server.
    pub async fn run_timer(&self) {
        loop {
            let next = {
                let mut state = self.lock();
                state.admission.handle_timeout(clock::now());
                self.apply(&mut state);
                state.armed = state.admission.next_timeout();
                state.armed
            };
            let rearmed = self.timer.notified();
            match next {
                Some(next) => tokio::select! {
                    () = tokio::time::sleep_until(next.into()) => {}
                    () = rearmed => {}
                },
                None => rearmed.await,
            }
        }
    }

    fn apply(&self, state: &mut State) {
        while let Some(action) = state.admission.poll_action() {
            match action {
                Action::Start { request, worker } => state.start(request, worker),
                Action::Refuse { request, refusal } => {
                    state.answer(request, |target| Err(Failure::Refused { target, refusal }));
                }
                Action::Kill { worker, request } => {
                    if let Some(handle) = state.workers.remove(&worker) {
                        handle.kill.cancel();
                    }
                    state.answer(request, |target| Err(Failure::Runaway { target }));
                }
            }
        }
        // Later deadlines need no earlier timer: with equal timeouts this is almost never taken.
        if state
            .admission
            .next_timeout()
            .is_some_and(|next| state.armed.is_none_or(|armed| next < armed))
        {
            state.armed = state.admission.next_timeout();
            self.timer.notify_one();
        }
        if state.admission.is_draining() && state.admission.is_empty() {
            self.drained.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock would be a bug of ours; going on with the state as it is answers more
        // callers than stopping does.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn start(&mut self, request: RequestId, worker: WorkerId) {
        let Some(call) = self.calls.get_mut(&request) else {
            return;
        };
        let order = Order { request, payload: std::mem::take(&mut call.payload) };
        if let Some(handle) = self.workers.get(&worker) {
            // Closed only when the worker has just ended, before its task has said so. The call has
            // not left this process: it is safe to repeat.
            if handle.orders.try_send(order).is_err() {
                let refusal = Refusal::NoWorker { reason: "the worker has just ended".into() };
                self.answer(request, |target| Err(Failure::Refused { target, refusal }));
            }
        }
    }

    fn answer(
        &mut self,
        request: RequestId,
        with: impl FnOnce(Arc<str>) -> Result<Bytes, Failure>,
    ) {
        if let Some(call) = self.calls.remove(&request) {
            // Nobody listens when the caller went away.
            let _ = call.reply.send(with(call.target));
        }
    }
}

struct CancelOnDrop<'a> {
    pool: &'a Pool,
    request: Option<RequestId>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        let Some(request) = self.request else { return };
        let mut state = self.pool.lock();
        if state.admission.cancel(request) {
            state.calls.remove(&request);
            self.pool.apply(&mut state);
        }
    }
}
