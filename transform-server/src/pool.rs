//! Carries out what admission decides: hands requests to workers, answers to callers, and ends what
//! runs past its deadline. The lock is held for a few map operations, never across a wait.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::admission::{
    Action, Admission, CallerId, Config, Loss, NotRunning, Offer, Refusal, RequestId, TargetId,
    WorkerId,
};
use crate::clock;
use crate::frame::{Answer, CallHead, Times};
use crate::marks;
use crate::metrics::{Metrics, TargetMetrics, observe};
use crate::reply::Reply;
use crate::status;
use crate::targets::{Targets, UNKNOWN};

/// Why a call has no response.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure {
    #[error("{target} was not started: {refusal}")]
    Refused { target: Arc<str>, refusal: Refusal, retry_after: Option<Duration> },
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

/// A call that a worker is given.
#[derive(Debug)]
pub struct Given {
    pub request: RequestId,
    pub head: CallHead,
    pub payload: Bytes,
}

/// How a worker's task is reached.
#[derive(Debug)]
pub struct WorkerHandle {
    /// There is something to take.
    pub wake: Notify,
    pub kill: CancellationToken,
    pub marks: File,
    /// How many calls it has spoken of.
    pub answered: AtomicU64,
}

/// A call as it arrives.
pub struct Arrival {
    pub target: Found,
    pub caller: CallerId,
    pub head: CallHead,
    pub payload: Bytes,
    pub deadline: Instant,
    pub arrived: Instant,
    pub reply: Reply,
}

/// A target that was looked up by its name.
pub struct Found {
    pub name: Arc<str>,
    pub known: Arc<Known>,
}

/// What is kept for each target of the bundle, and once for all other names.
pub struct Known {
    pub id: TargetId,
    pub metrics: TargetMetrics,
}

struct Call {
    target: Found,
    head: CallHead,
    /// Kept to the end: a worker that dies may not have begun it.
    payload: Bytes,
    arrived: Instant,
    reply: Reply,
}

/// What is to be told to callers once the lock is free.
type Answers = Vec<(Call, Result<Bytes, Failure>)>;

struct State {
    admission: Admission<Call>,
    workers: BTreeMap<WorkerId, Arc<WorkerHandle>>,
    next_request: u64,
    next_worker: u64,
    /// What the timer sleeps until.
    armed: Option<Instant>,
    targets: HashMap<Arc<str>, Arc<Known>>,
}

pub struct Pool {
    state: Mutex<State>,
    unknown: Arc<Known>,
    timer: Notify,
    serving: watch::Sender<Serving>,
    drained: CancellationToken,
    pub metrics: Metrics,
}

impl Pool {
    pub fn new(config: Config) -> Arc<Pool> {
        let reason = "no worker has loaded the bundle yet";
        let metrics = Metrics::new();
        let unknown = Known { id: UNKNOWN, metrics: metrics.of(&"(unknown)".into()) };
        let state = State {
            admission: Admission::new(config, reason),
            workers: BTreeMap::new(),
            next_request: 1,
            next_worker: 1,
            armed: None,
            targets: HashMap::new(),
        };
        Arc::new(Pool {
            state: Mutex::new(state),
            unknown: Arc::new(unknown),
            timer: Notify::new(),
            serving: watch::Sender::new(Serving { open: Err(reason.into()), targets: None }),
            drained: CancellationToken::new(),
            metrics,
        })
    }

    /// Runs one request; its caller is answered in time.
    pub fn call(&self, arrival: Arrival) {
        let Arrival { target, caller, head, payload, deadline, arrived, reply } = arrival;
        let mut state = self.lock();
        let now = clock::now();
        if state.admission.must_sweep(now) {
            state.admission.drop_waiting(|call| call.reply.is_gone());
        }
        let request = RequestId(state.next_request);
        state.next_request += 1;
        let (bytes, id) = (payload.len(), target.known.id);
        let call = Call { target, head, payload, arrived, reply };
        let offer = Offer { request, target: id, caller, bytes, deadline, call };
        state.admission.offer(offer, now);
        self.apply(state, Vec::new());
    }

    pub fn serving(&self) -> watch::Receiver<Serving> {
        self.serving.subscribe()
    }

    /// A target by its name. One that the bundle does not have is the worker's to answer: it knows which
    /// files could not be loaded.
    pub fn find(&self, name: &str) -> Found {
        let state = self.lock();
        match state.targets.get_key_value(name) {
            Some((name, known)) => Found { name: name.clone(), known: known.clone() },
            None => {
                let name = name.chars().take(status::NAME_CHARS_MAX).collect::<String>().into();
                Found { name, known: self.unknown.clone() }
            }
        }
    }

    pub fn next_worker(&self) -> WorkerId {
        let mut state = self.lock();
        let worker = WorkerId(state.next_worker);
        state.next_worker += 1;
        worker
    }

    pub fn worker_ready(&self, worker: WorkerId, handle: Arc<WorkerHandle>, targets: Targets) {
        let mut state = self.lock();
        for (name, target) in targets.names() {
            let known = || Known { id: target.id, metrics: self.metrics.of(name) }.into();
            state.targets.entry(name.clone()).or_insert_with(known);
            state.admission.limit(target.id, target.limits);
        }
        state.workers.insert(worker, handle);
        self.metrics.workers.set(state.workers.len() as i64);
        state.admission.open();
        state.admission.handle_worker_ready(worker);
        let draining = state.admission.is_draining();
        self.serving.send_modify(|serving| {
            serving.targets = Some(Arc::new(targets));
            if !draining {
                serving.open = Ok(());
            }
        });
        self.apply(state, Vec::new());
    }

    /// What a worker that was woken is to run now; `None` if it was relieved and has nothing left.
    pub fn take(&self, worker: WorkerId) -> Option<Vec<Given>> {
        let mut state = self.lock();
        if state.admission.is_relieved(worker) {
            return None;
        }
        let given = self.fill(&mut state, worker);
        self.apply(state, Vec::new());
        Some(given)
    }

    /// A worker's answers go to their callers; when that was all it had, it gets what it is to run next.
    pub fn worker_answered(
        &self,
        worker: WorkerId,
        answers: Vec<(RequestId, Answer)>,
    ) -> Result<(Vec<Given>, Told<'_>), NotRunning> {
        let mut state = self.lock();
        let mut told = Vec::new();
        for (request, answer) in answers {
            if let Some(call) = state.admission.handle_done(worker, request, took(&answer))? {
                told.push(outcome(call, answer));
            }
        }
        let free = state.admission.is_free(worker);
        let given = if free { self.fill(&mut state, worker) } else { Vec::new() };
        let told = self.carry_out(state, told);
        Ok((given, Told { pool: self, answers: told }))
    }

    fn fill(&self, state: &mut State, worker: WorkerId) -> Vec<Given> {
        let now = clock::now();
        let requests = state.admission.take(worker, now, |call| call.reply.is_gone());
        let given = requests.into_iter().filter_map(|request| {
            let call = state.admission.call_mut(request)?;
            observe(&call.target.known.metrics.queue, now - call.arrived);
            let (head, payload) = (call.head.clone(), call.payload.clone());
            Some(Given { request, head, payload })
        });
        given.collect()
    }

    /// Whose trace a line of user code belongs to.
    pub fn trace_of(&self, request: RequestId) -> Option<Bytes> {
        let mut state = self.lock();
        let trace = state.admission.call_mut(request)?.head.traceparent.clone();
        (!trace.is_empty()).then_some(trace)
    }

    /// The worker gets nothing more; it is woken when it has nothing left.
    pub fn retire(&self, worker: WorkerId) {
        let mut state = self.lock();
        state.admission.retire(worker);
        self.apply(state, Vec::new());
    }

    /// A worker that had been ready has ended, and what its socket still held has been told of. Whether it
    /// was running a call.
    pub fn worker_gone(&self, worker: WorkerId, reason: &str) -> bool {
        let mut state = self.lock();
        let mut answers = Vec::new();
        let mut running = None;
        if let Some(handle) = state.workers.remove(&worker) {
            running = state.fetch(worker, &handle, &mut answers);
        }
        self.metrics.workers.set(state.workers.len() as i64);
        state.admission.handle_worker_gone(worker, running);
        self.apply_with(state, answers, reason);
        running.is_some()
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
        self.apply(state, Vec::new());
    }

    /// Takes nothing new; `drained` ends when what was taken is answered.
    pub fn drain(&self) {
        let mut state = self.lock();
        state.admission.drain();
        self.serving.send_modify(|serving| serving.open = Err("the server is draining".into()));
        self.apply(state, Vec::new());
    }

    pub async fn drained(&self) {
        self.drained.cancelled().await;
    }

    /// Gives every open call a last answer. Only after `drain`.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.admission.refuse_waiting(&Refusal::Draining);
        let stopped = |call: Call| {
            let target = call.target.name.clone();
            (call, Err(Failure::Stopped { target }))
        };
        let answers = state.admission.abandon().into_iter().map(stopped).collect();
        self.apply(state, answers);
    }

    /// Keeps deadlines; runs as long as the server.
    pub async fn run_timer(&self) {
        loop {
            let next = {
                let mut state = self.lock();
                state.admission.handle_timeout(clock::now());
                let answers = self.carry_out(state, Vec::new());
                self.tell(answers);
                let mut state = self.lock();
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

    fn apply(&self, state: MutexGuard<'_, State>, answers: Answers) {
        let answers = self.carry_out(state, answers);
        self.tell(answers);
    }

    fn apply_with(&self, state: MutexGuard<'_, State>, answers: Answers, died_of: &str) {
        let answers = self.carry_out_with(state, answers, died_of);
        self.tell(answers);
    }

    fn carry_out(&self, state: MutexGuard<'_, State>, answers: Answers) -> Answers {
        self.carry_out_with(state, answers, "it ended")
    }

    /// Everything but the answers, which need no lock.
    fn carry_out_with(
        &self,
        mut guard: MutexGuard<'_, State>,
        mut answers: Answers,
        died_of: &str,
    ) -> Answers {
        let state = &mut *guard;
        while let Some(action) = state.admission.poll_action() {
            match action {
                Action::Wake { worker } => {
                    if let Some(handle) = state.workers.get(&worker) {
                        handle.wake.notify_one();
                    }
                }
                Action::Refuse { call, refusal } => {
                    let target = call.target.name.clone();
                    let retry_after = overloaded(&refusal)
                        .then(|| state.admission.expected_wait(call.target.known.id));
                    answers.push((call, Err(Failure::Refused { target, refusal, retry_after })));
                }
                Action::Lose { call, loss } => {
                    let target = call.target.name.clone();
                    let failure = match loss {
                        Loss::Runaway => Failure::Runaway { target },
                        Loss::Died => Failure::Died { target, reason: died_of.into() },
                    };
                    answers.push((call, Err(failure)));
                }
                Action::Fetch { worker } => {
                    if let Some(handle) = state.workers.get(&worker).cloned() {
                        let running = state.fetch(worker, &handle, &mut answers);
                        state.admission.handle_fetched(worker, running, clock::now());
                    }
                }
                Action::Kill { worker } => {
                    if let Some(handle) = state.workers.remove(&worker) {
                        handle.kill.cancel();
                    }
                }
            }
        }
        self.metrics.waiting.set(state.admission.waiting() as i64);
        // Later deadlines need no earlier timer: with equal timeouts this is almost never taken.
        let next = state.admission.next_timeout();
        if next.is_some_and(|next| state.armed.is_none_or(|armed| next < armed)) {
            state.armed = next;
            self.timer.notify_one();
        }
        if state.admission.is_draining() && state.admission.is_empty() {
            self.drained.cancel();
        }
        answers
    }

    fn tell(&self, answers: Answers) {
        for (call, answer) in answers {
            let metrics = &call.target.known.metrics;
            match answer {
                Ok(message) => {
                    metrics.ok.inc();
                    call.reply.send(message);
                }
                Err(failure) => {
                    let (status, outcome) = status::of(&failure);
                    match failure {
                        Failure::Refused { .. } => self.metrics.refused(metrics, outcome),
                        _ => self.metrics.failed(metrics, outcome),
                    }
                    call.reply.fail(&status);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock would be a bug of ours; going on with the state as it is answers more
        // callers than stopping does.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers that callers get when this is dropped, or `send` is called: after the worker has its next frame.
pub struct Told<'a> {
    pool: &'a Pool,
    answers: Answers,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.pool.tell(std::mem::take(&mut self.answers));
    }
}

impl State {
    /// Takes over what a worker holds back, and gives what it says it runs.
    fn fetch(
        &mut self,
        worker: WorkerId,
        handle: &WorkerHandle,
        answers: &mut Answers,
    ) -> Option<RequestId> {
        let marks = marks::read(&handle.marks);
        for (request, answer) in marks.pending {
            let took = took(&answer);
            if let Some(call) = self.admission.handle_fetched_answer(worker, request, took) {
                answers.push(outcome(call, answer));
            }
        }
        marks.running
    }
}

fn took(answer: &Answer) -> Option<Duration> {
    match answer {
        Answer::Done(times, _) | Answer::Failed(times, ..) => Some(times.worker),
        Answer::Skipped => None,
    }
}

fn outcome(call: Call, answer: Answer) -> (Call, Result<Bytes, Failure>) {
    let target = || call.target.name.clone();
    let timed = |times: Times| {
        let metrics = &call.target.known.metrics;
        observe(&metrics.worker, times.worker);
        observe(&metrics.function, times.function);
    };
    let answer = match answer {
        Answer::Done(times, message) => {
            timed(times);
            Ok(message)
        }
        Answer::Failed(times, code, message) => {
            timed(times);
            let code = match Code::from_i32(i32::from(code)) {
                Code::Ok => Code::Internal,
                code => code,
            };
            Err(Failure::Worker { code, message })
        }
        Answer::Skipped => {
            let refusal = Refusal::Expired;
            Err(Failure::Refused { target: target(), refusal, retry_after: None })
        }
    };
    (call, answer)
}

/// It may be better later.
fn overloaded(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::TooManyWaiting { .. }
            | Refusal::TooManyOfTarget { .. }
            | Refusal::TooManyBytesWaiting { .. }
            | Refusal::WouldExpire { .. }
    )
}
