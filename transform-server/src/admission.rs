//! Admission: which requests go to which worker, what waits, and what is refused. Without sockets or
//! clocks: events in, actions out, `now` an argument.
//!
//! A worker that is idle is called at once; when it comes it takes what waits by then, as one **frame**: a
//! few requests, as many as are worth [`FRAME_TIME`] of work. Nothing ever waits for a frame to fill.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::queue::{Flow, Queue};

/// One call, for as long as the server knows it. Rises in order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One worker process; a replacement has another id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u64);

/// One function or service of the bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub u32);

/// Who shares a target with others: one peer address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallerId(pub u64);

/// How much work one frame holds. Far below what a caller can feel, and far above what the way to a
/// worker and back costs (some 20 µs).
const FRAME_TIME: Duration = Duration::from_micros(150);
const FRAME_CALLS_MAX: usize = 32;
/// Fits the buffers of a socket: a frame is sent at once.
const FRAME_BYTES_MAX: usize = 64 << 10;
/// Answers that a worker holds back (it may, for 50 µs) are fetched after this, as the call behind them
/// may be a long one.
const FETCH_AFTER: Duration = Duration::from_millis(2);
/// What waits is looked through for callers that have gone so often at most, though the queue is full: that is a thousand
/// looks.
const SWEEP_EVERY: Duration = Duration::from_millis(50);
/// A request that so many workers took with them, none of which said that it had begun it, is given up.
const TRIES_MAX: u8 = 3;

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

/// What one target may have of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Its share of the workers' time, next to the other targets' that have work waiting.
    pub weight: u32,
    pub running_max: usize,
    pub waiting_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { weight: 4, running_max: usize::MAX, waiting_max: usize::MAX }
    }
}

/// Why a request was never started: it is safe to send it elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{waiting_max} calls are waiting already")]
    TooManyWaiting { waiting_max: usize },
    #[error("{waiting_max} calls of it are waiting already, as many as it may have")]
    TooManyOfTarget { waiting_max: usize },
    #[error("calls of {waiting_bytes_max} bytes are waiting already")]
    TooManyBytesWaiting { waiting_bytes_max: usize },
    #[error("what waits before it needs about {} ms, more than half of its time", .wait.as_millis())]
    WouldExpire { wait: Duration },
    #[error("the deadline passed before a worker was free")]
    Expired,
    #[error("the caller went away")]
    CallerGone,
    #[error("the server is draining")]
    Draining,
    #[error("no worker: {reason}")]
    NoWorker { reason: Arc<str> },
}

/// Why a started request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Its deadline passed while the worker ran it.
    Runaway,
    /// The worker ended while it ran it.
    Died,
}

/// What the driver must do, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<C> {
    /// The worker is to come and take what waits.
    Wake {
        worker: WorkerId,
    },
    Refuse {
        call: C,
        refusal: Refusal,
    },
    Lose {
        call: C,
        loss: Loss,
    },
    /// Answers may be waiting at the worker, or a deadline has passed there: read what it says it is
    /// doing, then `handle_fetched`.
    Fetch {
        worker: WorkerId,
    },
    /// It runs what it must not: end it. It is forgotten already.
    Kill {
        worker: WorkerId,
    },
}

/// A request that arrived.
#[derive(Debug)]
pub struct Offer<C> {
    pub request: RequestId,
    pub target: TargetId,
    pub caller: CallerId,
    pub bytes: usize,
    pub deadline: Instant,
    /// The driver's, given back at the end.
    pub call: C,
}

#[derive(Debug)]
struct Entry<C> {
    flow: Flow,
    bytes: usize,
    since: Instant,
    deadline: Instant,
    /// What it was expected to take when it began to wait, in nanoseconds.
    cost: u64,
    tries: u8,
    place: Place,
    call: C,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Waiting,
    With(WorkerId),
}

#[derive(Debug)]
enum Availability {
    Open,
    Closed { reason: Arc<str> },
}

/// A worker and what it was given. A request that was answered otherwise meanwhile stays in the frame
/// until the worker has spoken of it.
#[derive(Debug)]
struct Frame {
    requests: VecDeque<RequestId>,
    /// Called, and not here yet.
    called: bool,
    /// When to look whether it holds answers back.
    fetch_at: Option<Instant>,
    retiring: bool,
}

#[derive(Debug, Default)]
struct Target {
    limits: Limits,
    running: usize,
    /// Nanoseconds that a call takes per KiB, where every call counts half a KiB more than it has; 0
    /// before the first.
    pace: u64,
}

impl Target {
    fn cost(&self, bytes: usize) -> u64 {
        match self.pace {
            0 => FRAME_TIME.as_nanos() as u64,
            pace => (pace.saturating_mul(weighed(bytes)) >> 10).max(1),
        }
    }

    /// A moving average over the last ten calls or so.
    fn learn(&mut self, bytes: usize, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX) >> 4;
        let seen = ((took << 14) / weighed(bytes)).max(1);
        self.pace = match self.pace {
            0 => seen,
            pace => (pace - pace / 8).saturating_add(seen / 8).max(1),
        };
    }
}

fn weighed(bytes: usize) -> u64 {
    bytes as u64 + 512
}

/// A worker reported the end of something that it does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("worker {} answered call {}, which it does not run", .worker.0, .request.0)]
pub struct NotRunning {
    pub worker: WorkerId,
    pub request: RequestId,
}

#[derive(Debug)]
pub struct Admission<C> {
    config: Config,
    availability: Availability,
    draining: bool,
    /// The last one to become idle is used first: its caches are warm.
    idle: Vec<WorkerId>,
    workers: BTreeMap<WorkerId, Frame>,
    entries: HashMap<RequestId, Entry<C>>,
    queue: Queue,
    waiting_bytes: usize,
    /// What the waiting requests are expected to take, in nanoseconds.
    waiting_cost: u64,
    targets: HashMap<TargetId, Target>,
    deadlines: BTreeSet<(Instant, RequestId)>,
    swept: Option<Instant>,
    actions: VecDeque<Action<C>>,
}

impl<C> Admission<C> {
    /// Refuses everything until it is opened.
    pub fn new(config: Config, reason: &str) -> Self {
        Admission {
            config,
            availability: Availability::Closed { reason: reason.into() },
            draining: false,
            idle: Vec::new(),
            workers: BTreeMap::new(),
            entries: HashMap::new(),
            queue: Queue::default(),
            waiting_bytes: 0,
            waiting_cost: 0,
            targets: HashMap::new(),
            deadlines: BTreeSet::new(),
            swept: None,
            actions: VecDeque::new(),
        }
    }

    pub fn limit(&mut self, target: TargetId, limits: Limits) {
        self.targets.entry(target).or_default().limits = limits;
    }

    /// A request arrived. Exactly one of these follows: `take` gives it to a worker, `Refuse`, or `Lose`.
    pub fn offer(&mut self, offer: Offer<C>, now: Instant) {
        match self.judge(&offer, now) {
            Err(refusal) => self.actions.push_back(Action::Refuse { call: offer.call, refusal }),
            Ok(()) => {
                let Offer { request, target, caller, bytes, deadline, call } = offer;
                let flow = Flow { target, caller };
                let cost = self.targets.entry(target).or_default().cost(bytes);
                let place = Place::Waiting;
                let since = now;
                let entry = Entry { flow, bytes, since, deadline, cost, tries: 0, place, call };
                self.waiting_bytes += bytes;
                self.waiting_cost += cost;
                self.entries.insert(request, entry);
                self.deadlines.insert((deadline, request));
                self.queue.push(flow, request);
                self.call_idle();
            }
        }
    }

    fn judge(&mut self, offer: &Offer<C>, now: Instant) -> Result<(), Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        if let Availability::Closed { reason } = &self.availability {
            return Err(Refusal::NoWorker { reason: reason.clone() });
        }
        if offer.deadline <= now {
            return Err(Refusal::Expired);
        }
        let target = self.targets.entry(offer.target).or_default();
        let waiting_max = target.limits.waiting_max;
        if self.queue.len_of(offer.target) >= waiting_max {
            return Err(Refusal::TooManyOfTarget { waiting_max });
        }
        if self.queue.is_empty() {
            // One request is let in whatever its size: it has been received already.
            return Ok(());
        }
        if self.waiting_bytes + offer.bytes > self.config.waiting_bytes_max {
            let waiting_bytes_max = self.config.waiting_bytes_max;
            return Err(Refusal::TooManyBytesWaiting { waiting_bytes_max });
        }
        // Twice: it is an average, and who is served at the edge of its deadline is late as often as not. Were that let in,
        // under overload all would wait until then, and workers be ended for it.
        let wait = self.expected_wait(offer.target);
        if now + 2 * wait > offer.deadline {
            return Err(Refusal::WouldExpire { wait });
        }
        if self.queue.len() >= self.config.waiting_max {
            return self.make_room(offer.target);
        }
        Ok(())
    }

    /// How long a request of this target would wait: what waits of it, at its share of the workers, and no
    /// more than all that waits.
    pub fn expected_wait(&self, target: TargetId) -> Duration {
        let Some(known) = self.targets.get(&target) else { return Duration::ZERO };
        let workers = self.workers.len().max(1) as u64;
        let of_it = known.cost(0).saturating_mul(self.queue.len_of(target) as u64);
        let shared = of_it.saturating_mul(self.queue.active_targets().max(1) as u64);
        Duration::from_nanos(shared.min(self.waiting_cost) / workers)
    }

    /// The queue is full: whoever has the most in it gives up its newest, so that a flood pays for
    /// itself.
    fn make_room(&mut self, target: TargetId) -> Result<(), Refusal> {
        let refusal = Refusal::TooManyWaiting { waiting_max: self.config.waiting_max };
        match self.queue.newest_of_longest() {
            Some((flow, request, _)) if flow.target != target => {
                self.refuse(request, refusal);
                Ok(())
            }
            _ => Err(refusal),
        }
    }

    /// The callers of what waits, for whoever knows which of them have gone: those are dropped.
    pub fn drop_waiting(&mut self, mut gone: impl FnMut(&mut C) -> bool) {
        let dropped: Vec<RequestId> = self
            .entries
            .iter_mut()
            .filter(|(_, entry)| entry.place == Place::Waiting)
            .filter_map(|(request, entry)| gone(&mut entry.call).then_some(*request))
            .collect();
        for request in dropped {
            self.refuse(request, Refusal::CallerGone);
        }
    }

    /// The queue is full, and nobody has looked lately whether all callers are still there: `drop_waiting`.
    pub fn must_sweep(&mut self, now: Instant) -> bool {
        let is_due = self.swept.is_none_or(|swept| now >= swept + SWEEP_EVERY);
        let must = is_due && self.queue.len() >= self.config.waiting_max;
        if must {
            self.swept = Some(now);
        }
        must
    }

    /// A worker has loaded the bundle.
    pub fn handle_worker_ready(&mut self, worker: WorkerId) {
        let frame =
            Frame { requests: VecDeque::new(), called: false, fetch_at: None, retiring: false };
        self.workers.insert(worker, frame);
        self.idle.push(worker);
        self.call_idle();
    }

    /// The worker is here and has nothing: what it is to run, in this order. Nothing means that it is idle.
    pub fn take(
        &mut self,
        worker: WorkerId,
        now: Instant,
        mut gone: impl FnMut(&mut C) -> bool,
    ) -> Vec<RequestId> {
        let Some(frame) = self.workers.get_mut(&worker) else { return Vec::new() };
        frame.called = false;
        if frame.retiring || !frame.requests.is_empty() {
            return Vec::new();
        }
        // Those that were called beside it come for their part.
        let others = self.workers.values().filter(|frame| frame.called).count();
        let calls_max = self.queue.len().div_ceil(others + 1).min(FRAME_CALLS_MAX);
        let (mut taken, mut cost, mut bytes) = (Vec::new(), 0, 0);
        while taken.len() < calls_max {
            let targets = &self.targets;
            let may_start = |target: TargetId| {
                targets.get(&target).is_none_or(|target| target.running < target.limits.running_max)
            };
            let Some((flow, request)) = self.queue.next(may_start) else { break };
            let entry = self.entries.get_mut(&request).expect("what waits is known");
            if entry.deadline <= now {
                self.refuse(request, Refusal::Expired);
                continue;
            }
            if gone(&mut entry.call) {
                self.refuse(request, Refusal::CallerGone);
                continue;
            }
            let its_bytes = entry.bytes;
            let target = self.targets.entry(flow.target).or_default();
            // By what is known now, which may be more than when it came.
            let its_cost = target.cost(its_bytes);
            let left = entry.deadline - now;
            if left < Duration::from_nanos(its_cost) && left < now - entry.since {
                // It has waited too long to end in time. One that came with so little is begun: it may be a quick one.
                self.refuse(request, Refusal::Expired);
                continue;
            }
            let full = cost + its_cost > FRAME_TIME.as_nanos() as u64
                || bytes + its_bytes > FRAME_BYTES_MAX;
            if full && !taken.is_empty() {
                break;
            }
            (cost, bytes) = (cost + its_cost, bytes + its_bytes);
            target.running += 1;
            entry.place = Place::With(worker);
            self.waiting_bytes -= its_bytes;
            self.waiting_cost -= entry.cost;
            self.queue.start(flow, its_cost, target.limits.weight);
            taken.push(request);
        }
        let frame = self.workers.get_mut(&worker).expect("it was there above");
        frame.fetch_at = (taken.len() > 1).then(|| now + FETCH_AFTER);
        frame.requests.extend(&taken);
        if taken.is_empty() && !self.idle.contains(&worker) {
            self.idle.push(worker);
        }
        taken
    }

    /// A worker spoke of a request in its frame: `took` is none if it did not start it. Gives the call
    /// back if nobody has answered it yet.
    pub fn handle_done(
        &mut self,
        worker: WorkerId,
        request: RequestId,
        took: Option<Duration>,
    ) -> Result<Option<C>, NotRunning> {
        let not_running = NotRunning { worker, request };
        let frame = self.workers.get_mut(&worker).ok_or(not_running)?;
        let at = frame.requests.iter().position(|given| *given == request).ok_or(not_running)?;
        frame.requests.remove(at);
        if frame.requests.len() < 2 {
            frame.fetch_at = None;
        }
        self.wake_relieved(worker);
        Ok(self.answered(worker, request, took))
    }

    /// The same for an answer that was fetched from the worker: it will speak of it again.
    pub fn handle_fetched_answer(
        &mut self,
        worker: WorkerId,
        request: RequestId,
        took: Option<Duration>,
    ) -> Option<C> {
        let frame = self.workers.get(&worker)?;
        if !frame.requests.contains(&request) {
            return None;
        }
        self.answered(worker, request, took)
    }

    fn answered(
        &mut self,
        worker: WorkerId,
        request: RequestId,
        took: Option<Duration>,
    ) -> Option<C> {
        if self.entries.get(&request)?.place != Place::With(worker) {
            return None;
        }
        let entry = self.forget(request)?;
        if let (Some(target), Some(took)) = (self.targets.get_mut(&entry.flow.target), took) {
            target.learn(entry.bytes, took);
        }
        Some(entry.call)
    }

    /// The worker's frame is done: it is to `take` again.
    pub fn is_free(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|frame| frame.requests.is_empty() && !frame.retiring)
    }

    /// It gets nothing more; it is woken when it has nothing left.
    pub fn retire(&mut self, worker: WorkerId) {
        self.idle.retain(|idle| *idle != worker);
        if let Some(frame) = self.workers.get_mut(&worker) {
            frame.retiring = true;
            self.wake_relieved(worker);
        }
    }

    pub fn is_relieved(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_none_or(|frame| frame.retiring && frame.requests.is_empty())
    }

    fn wake_relieved(&mut self, worker: WorkerId) {
        if self.is_relieved(worker) {
            self.actions.push_back(Action::Wake { worker });
        }
    }

    /// A worker is no more; `running` is what it said it was running. That is lost; what it had not
    /// begun waits again.
    pub fn handle_worker_gone(&mut self, worker: WorkerId, running: Option<RequestId>) {
        self.remove_worker(worker, running, Loss::Died);
    }

    fn remove_worker(&mut self, worker: WorkerId, running: Option<RequestId>, loss: Loss) {
        self.idle.retain(|idle| *idle != worker);
        let Some(frame) = self.workers.remove(&worker) else { return };
        for request in frame.requests.into_iter().rev() {
            let Some(entry) = self.entries.get_mut(&request) else { continue };
            entry.tries += 1;
            if running == Some(request) || entry.tries >= TRIES_MAX {
                let entry = self.forget(request).expect("it was there a line above");
                self.actions.push_back(Action::Lose { call: entry.call, loss });
                continue;
            }
            entry.place = Place::Waiting;
            self.waiting_bytes += entry.bytes;
            self.waiting_cost += entry.cost;
            let flow = entry.flow;
            self.targets.entry(flow.target).or_default().running -= 1;
            self.queue.push_front(flow, request);
        }
        self.call_idle();
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

    /// Ends the wait of everything that has not been given to a worker.
    pub fn refuse_waiting(&mut self, refusal: &Refusal) {
        while let Some((_, request)) = self.queue.next(|_| true) {
            self.refuse(request, refusal.clone());
        }
    }

    /// What is with workers, given up.
    pub fn abandon(&mut self) -> Vec<C> {
        let requests: Vec<RequestId> = self.entries.keys().copied().collect();
        requests.into_iter().filter_map(|request| Some(self.forget(request)?.call)).collect()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        let mut fetch = BTreeSet::new();
        while let Some((deadline, request)) = self.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_first();
            match self.entries.get(&request).map(|entry| entry.place) {
                Some(Place::With(worker)) => drop(fetch.insert(worker)),
                Some(Place::Waiting) => self.refuse(request, Refusal::Expired),
                None => {}
            }
        }
        for (worker, frame) in &mut self.workers {
            if frame.fetch_at.is_some_and(|at| at <= now) {
                frame.fetch_at = None;
                fetch.insert(*worker);
            }
        }
        self.actions.extend(fetch.into_iter().map(|worker| Action::Fetch { worker }));
    }

    /// The answers that the worker held back have been told of; it runs `running`. Whatever else of
    /// its frame is late has not been started, and will not be: the worker looks at the deadline first.
    pub fn handle_fetched(&mut self, worker: WorkerId, running: Option<RequestId>, now: Instant) {
        let Some(frame) = self.workers.get(&worker) else { return };
        let late: Vec<RequestId> = frame
            .requests
            .iter()
            .copied()
            .filter(|request| self.entries.get(request).is_some_and(|entry| entry.deadline <= now))
            .collect();
        let runaway = running.filter(|running| late.contains(running));
        for request in late {
            if Some(request) != runaway {
                self.refuse(request, Refusal::Expired);
            }
        }
        if runaway.is_some() {
            self.actions.push_back(Action::Kill { worker });
            self.remove_worker(worker, runaway, Loss::Runaway);
        }
    }

    /// When `handle_timeout` has something to do.
    pub fn next_timeout(&self) -> Option<Instant> {
        let fetch = self.workers.values().filter_map(|frame| frame.fetch_at).min();
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        fetch.into_iter().chain(deadline).min()
    }

    pub fn poll_action(&mut self) -> Option<Action<C>> {
        self.actions.pop_front()
    }

    pub fn call_mut(&mut self, request: RequestId) -> Option<&mut C> {
        Some(&mut self.entries.get_mut(&request)?.call)
    }

    /// Nothing waits and nothing runs.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn is_draining(&self) -> bool {
        self.draining
    }

    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    fn call_idle(&mut self) {
        // As many as there are requests that nobody comes for yet.
        let called = self.workers.values().filter(|frame| frame.called).count();
        for _ in called..self.queue.len() {
            let Some(worker) = self.idle.pop() else { return };
            if let Some(frame) = self.workers.get_mut(&worker) {
                frame.called = true;
                self.actions.push_back(Action::Wake { worker });
            }
        }
    }

    fn refuse(&mut self, request: RequestId, refusal: Refusal) {
        if let Some(entry) = self.forget(request) {
            self.actions.push_back(Action::Refuse { call: entry.call, refusal });
        }
    }

    /// Takes a request out of everything but its worker's frame.
    fn forget(&mut self, request: RequestId) -> Option<Entry<C>> {
        let entry = self.entries.remove(&request)?;
        self.deadlines.remove(&(entry.deadline, request));
        match entry.place {
            Place::Waiting => {
                self.queue.remove(entry.flow, request);
                self.waiting_bytes -= entry.bytes;
                self.waiting_cost -= entry.cost;
            }
            Place::With(_) => self.targets.entry(entry.flow.target).or_default().running -= 1,
        }
        Some(entry)
    }
}
