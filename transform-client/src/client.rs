//! The balanced client: one set of endpoints in, calls spread over it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use outstation_api::NOT_STARTED;
use outstation_api::codec::BytesCodec;
use outstation_api::scan;
use outstation_api::transform::{CallRequest, CallResponse, ListTargetsResponse};
use prost::Message;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout_at;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::balance::{
    self, Balance, Change, Ejection, Endpoint, EndpointId, EndpointView, Outcome,
};
use crate::clock;
use crate::connection::{self, Sender};
use crate::throttle::{self, Throttle};
use crate::verdict::{Silence, judge};

/// The largest message that a server takes and gives.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Who waits for longer does not wait; and far from where adding it to the time would overflow.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// The server answers at the deadline, and says which function was too slow; for this long after it
/// that answer is still awaited.
const ANSWER_GRACE: Duration = Duration::from_millis(100);
/// The client's own refusal, which says nothing new about the group.
const UNSENT: &str = "outstation-unsent";
const CALL: &str = "/outstation.transform.v1.Transform/Call";
const LIST_TARGETS: &str = "/outstation.transform.v1.Transform/ListTargets";

#[derive(Debug, Clone, Copy)]
pub struct Config {
    pub balance: balance::Config,
    pub throttle: throttle::Config,
    /// Further tries of a call that was not started. Two: a third server that refuses as well says
    /// that the group is in trouble, not the server.
    pub retries_max: usize,
    /// How long a call waits for a first usable endpoint, or for one with room, if its deadline allows.
    pub wait_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            balance: balance::Config::default(),
            throttle: throttle::Config::default(),
            retries_max: 2,
            wait_max: Duration::from_secs(5),
        }
    }
}

/// Who answered.
#[derive(Debug, Clone)]
pub struct EndpointUsed {
    pub endpoint: Arc<Endpoint>,
    /// 1 for an answer to the first try.
    pub tries: usize,
}

/// Cheap to clone; connections close when the last clone is dropped and no call is in flight.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    config: Config,
    _stop: Arc<DropGuard>,
}

/// What the client's tasks share. The lock is held for a few map operations, never across a wait.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Something may have become usable.
    changed: Notify,
    /// A call has ended, and another may take its place.
    room: Notify,
}

struct State {
    balance: Balance,
    throttle: Throttle,
    connections: BTreeMap<EndpointId, Connection>,
}

struct Connection {
    endpoint: Arc<Endpoint>,
    sender: Option<Sender>,
    /// Why there is no sender.
    down: String,
    /// Room for one: an endpoint is not ejected again before it was asked how it is.
    ejections: mpsc::Sender<Ejection>,
    task: AbortHandle,
}

/// One try on one endpoint. Gives its place back when it is dropped.
struct Picked<'a> {
    shared: &'a Shared,
    id: EndpointId,
    endpoint: Arc<Endpoint>,
    sender: Sender,
    outcome: Outcome,
}

impl Client {
    /// Follows `endpoints`; when its sender is gone, the last set stays. Needs a tokio runtime.
    pub fn new(endpoints: watch::Receiver<Vec<Endpoint>>, config: Config) -> Client {
        let state = State {
            balance: Balance::new(config.balance, rand::random()),
            throttle: Throttle::new(config.throttle, rand::random()),
            connections: BTreeMap::new(),
        };
        let (changed, room) = (Notify::new(), Notify::new());
        let shared = Arc::new(Shared { state: Mutex::new(state), changed, room });
        let stop = CancellationToken::new();
        tokio::spawn(follow(shared.clone(), endpoints, stop.clone()));
        Client { shared, config, _stop: Arc::new(stop.drop_guard()) }
    }

    /// Evaluates one request.
    pub async fn call(
        &self,
        request: &CallRequest,
        timeout: Duration,
    ) -> Result<(CallResponse, EndpointUsed), Status> {
        let deadline = clock::now() + timeout.min(TIMEOUT_MAX);
        let (answer, used) = self.call_bytes(request.encode_to_vec().into(), deadline).await?;
        let decoded = CallResponse::decode(answer);
        Ok((
            decoded.map_err(|error| Status::internal(format!("not a CallResponse: {error}")))?,
            used,
        ))
    }

    /// The same for those who encode and decode themselves: `CallRequest` in, `CallResponse` out.
    ///
    /// A status that came from a server is passed on as it is. `UNAVAILABLE`: no endpoint was usable, or
    /// the connection broke while the call ran (which is not repeated, as it may have been started).
    /// `RESOURCE_EXHAUSTED` may also be the client's own: the group would have refused it, or nobody has room.
    pub async fn call_bytes(
        &self,
        request: Bytes,
        deadline: Instant,
    ) -> Result<(Bytes, EndpointUsed), Status> {
        // What names no target is the server's to answer.
        let named = request.clone();
        let target = scan::target(&named).ok();
        let Some(target) = target.filter(|target| !target.is_empty()) else {
            return self.unary(CALL, request, deadline).await;
        };
        if !self.shared.lock().throttle.admits(target, clock::now()) {
            return Err(unsent(format!(
                "not sent: the group refuses most calls of {target} at present, as more come than it can take"
            )));
        }
        let answer = self.unary(CALL, request, deadline).await;
        if !answer.as_ref().is_err_and(|status| status.metadata().contains_key(UNSENT)) {
            let refused =
                answer.as_ref().is_err_and(|status| status.code() == Code::ResourceExhausted);
            self.shared.lock().throttle.ended(target, refused, clock::now());
        }
        answer
    }

    /// What the group can evaluate, as one of its servers says.
    pub async fn list_targets(&self, timeout: Duration) -> Result<ListTargetsResponse, Status> {
        let (answer, _) =
            self.unary(LIST_TARGETS, Bytes::new(), clock::now() + timeout.min(TIMEOUT_MAX)).await?;
        ListTargetsResponse::decode(answer)
            .map_err(|error| Status::internal(format!("not a ListTargetsResponse: {error}")))
    }

    /// The endpoints and what is known of them, in the order in which they came.
    pub fn endpoints(&self) -> Vec<EndpointView> {
        self.shared.lock().balance.view()
    }

    /// Waits until `count` endpoints take calls. Returns how many do, which is fewer when the time was up.
    pub async fn wait_up(&self, count: usize, within: Duration) -> usize {
        let until = clock::now() + within;
        loop {
            let changed = self.shared.changed.notified();
            let up = self.shared.lock().balance.up_count();
            if up >= count || timeout_at(until.into(), changed).await.is_err() {
                return up;
            }
        }
    }

    async fn unary(
        &self,
        path: &'static str,
        request: Bytes,
        deadline: Instant,
    ) -> Result<(Bytes, EndpointUsed), Status> {
        // Else the connection would break halfway, and its endpoint be blamed for that.
        if request.len() > MESSAGE_BYTES_MAX {
            return Err(not_started(Status::out_of_range(format!(
                "the request of {} bytes is more than {MESSAGE_BYTES_MAX}: send fewer rows",
                request.len()
            ))));
        }
        let mut tried = Vec::new();
        let mut picked = self.first(deadline).await?;
        loop {
            tried.push(picked.id);
            let status = match picked.send(path, request.clone(), deadline).await {
                Ok(answer) => {
                    let used =
                        EndpointUsed { endpoint: picked.endpoint.clone(), tries: tried.len() };
                    return Ok((answer, used));
                }
                Err(status) => status,
            };
            let (verdict, status) = judge(status, &picked.endpoint);
            picked.outcome = verdict.outcome;
            drop(picked);
            if !verdict.not_started
                || tried.len() > self.config.retries_max
                || clock::now() >= deadline
            {
                return Err(status);
            }
            match self.shared.pick_again(&tried) {
                Some(next) => picked = next,
                None => return Err(status),
            }
        }
    }

    /// Waits for an endpoint if there is none yet.
    async fn first(&self, deadline: Instant) -> Result<Picked<'_>, Status> {
        let wait_until = deadline.min(clock::now() + self.config.wait_max);
        let mut waited = false;
        loop {
            let (changed, room) = (self.shared.changed.notified(), self.shared.room.notified());
            if let Some(picked) = self.shared.pick_first() {
                if waited {
                    // Two may have ended before one that waits was woken: there is room for the next one too.
                    self.shared.room.notify_one();
                }
                return Ok(picked);
            }
            waited = true;
            let either = async {
                tokio::select! { () = changed => {}, () = room => {} }
            };
            if timeout_at(wait_until.into(), either).await.is_err() {
                return Err(self.shared.why_none());
            }
        }
    }
}

impl Picked<'_> {
    async fn send(
        &mut self,
        path: &'static str,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, Status> {
        let mut request = Request::new(request);
        request
            .metadata_mut()
            .insert("grpc-timeout", grpc_timeout(deadline.saturating_duration_since(clock::now())));
        let mut grpc = Grpc::with_origin(self.sender.clone(), self.sender.origin.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let path = http::uri::PathAndQuery::from_static(path);
        let response = grpc.unary(request, path, BytesCodec);
        match timeout_at((deadline + ANSWER_GRACE).into(), response).await {
            Ok(Ok(response)) => {
                self.outcome = Outcome::Answered;
                Ok(response.into_inner())
            }
            Ok(Err(status)) => Err(status),
            Err(_) => Err(Silence.into()),
        }
    }
}

impl Drop for Picked<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(ejection) = state.balance.finish(self.id, self.outcome, clock::now())
            && let Some(connection) = state.connections.get(&self.id)
        {
            // Full only if the last one was not taken yet, which serves as well.
            let _ = connection.ejections.try_send(ejection);
        }
        drop(state);
        self.shared.room.notify_one();
    }
}

impl Shared {
    fn pick_first(&self) -> Option<Picked<'_>> {
        let mut state = self.lock();
        let id = state.balance.pick(&[])?;
        state.balance.earn_retry();
        self.picked(&mut state, id)
    }

    fn pick_again(&self, tried: &[EndpointId]) -> Option<Picked<'_>> {
        let mut state = self.lock();
        let id = state.balance.pick_retry(tried)?;
        self.picked(&mut state, id)
    }

    fn picked(&self, state: &mut State, id: EndpointId) -> Option<Picked<'_>> {
        let usable = state
            .connections
            .get(&id)
            .and_then(|connection| Some((connection.sender.clone()?, connection.endpoint.clone())));
        let Some((sender, endpoint)) = usable else {
            state.balance.finish(id, Outcome::Neutral, clock::now());
            return None;
        };
        Some(Picked { shared: self, id, endpoint, sender, outcome: Outcome::Neutral })
    }

    pub(crate) fn set_up(&self, id: EndpointId, sender: Sender) {
        let mut state = self.lock();
        if let Some(connection) = state.connections.get_mut(&id) {
            connection.sender = Some(sender);
            state.balance.handle_up(id, clock::now());
            drop(state);
            self.changed.notify_waiters();
        }
    }

    pub(crate) fn set_down(&self, id: EndpointId, reason: &str) {
        let mut state = self.lock();
        state.balance.handle_down(id);
        if let Some(connection) = state.connections.get_mut(&id) {
            connection.sender = None;
            reason.clone_into(&mut connection.down);
        }
    }

    pub(crate) fn probe_failed(&self, id: EndpointId) -> Option<Ejection> {
        self.lock().balance.handle_probe_failed(id, clock::now())
    }

    pub(crate) fn random(&self) -> f64 {
        self.lock().balance.random()
    }

    fn why_none(&self) -> Status {
        let state = self.lock();
        let count = state.connections.len();
        let up = state.balance.up_count();
        if up > 0 {
            return unsent(format!(
                "not sent: as many calls are in flight to each of the {up} usable endpoints as it takes from one caller"
            ));
        }
        let message = match state.connections.values().next() {
            None => "the group has no endpoints".to_owned(),
            Some(Connection { endpoint, down, .. }) => {
                let Endpoint { instance, address } = &**endpoint;
                format!("none of {count} endpoints is usable; {instance} ({address}): {down}")
            }
        };
        not_started(Status::unavailable(message))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock would be a bug of ours; the state is still one that calls can use.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the set what the channel says, until the client is dropped.
async fn follow(
    shared: Arc<Shared>,
    mut endpoints: watch::Receiver<Vec<Endpoint>>,
    stop: CancellationToken,
) {
    loop {
        let set = endpoints.borrow_and_update().clone();
        apply(&shared, &set);
        let changed = tokio::select! {
            changed = endpoints.changed() => changed.is_ok(),
            () = stop.cancelled() => break,
        };
        if !changed {
            // Nobody will say anything more; what was said last holds.
            stop.cancelled().await;
            break;
        }
    }
    apply(&shared, &[]);
}

fn apply(shared: &Arc<Shared>, set: &[Endpoint]) {
    let mut state = shared.lock();
    for change in state.balance.set_endpoints(set) {
        match change {
            Change::Added(id, endpoint) => {
                let (ejections, ejected) = mpsc::channel(1);
                let task =
                    tokio::spawn(connection::keep(shared.clone(), id, endpoint.clone(), ejected));
                let connection = Connection {
                    endpoint: Arc::new(endpoint),
                    sender: None,
                    down: "not connected yet".to_owned(),
                    ejections,
                    task: task.abort_handle(),
                };
                state.connections.insert(id, connection);
            }
            Change::Removed(id) => {
                if let Some(connection) = state.connections.remove(&id) {
                    connection.task.abort();
                }
            }
        }
    }
}

/// Without asking any server.
fn unsent(message: String) -> Status {
    let mut status = not_started(Status::resource_exhausted(message));
    status.metadata_mut().insert(UNSENT, MetadataValue::from_static("1"));
    status
}

fn not_started(mut status: Status) -> Status {
    status.metadata_mut().insert(NOT_STARTED, MetadataValue::from_static("1"));
    status
}

/// At most eight digits: microseconds up to 99 s, milliseconds up to a day.
fn grpc_timeout(left: Duration) -> MetadataValue<tonic::metadata::Ascii> {
    let micros = left.as_micros();
    let value = match micros {
        0..=99_999_999 => format!("{micros}u"),
        _ => format!("{}m", left.as_millis().min(99_999_999)),
    };
    value.parse().expect("digits and a letter")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_as_grpc_writes_them() {
        for (left, expected) in [
            (Duration::ZERO, "0u"),
            (Duration::from_micros(1500), "1500u"),
            (Duration::from_secs(99), "99000000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(1_000_000), "99999999m"),
        ] {
            assert_eq!(grpc_timeout(left), expected);
        }
    }
}
