//! Transform servers of a few lines, each on threads of its own so that it can die like a process.

#![allow(dead_code, reason = "each test file uses a part of this")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outstation_api::NOT_STARTED;
use outstation_api::transform::transform_server::{Transform, TransformServer};
use outstation_api::transform::{
    CallRequest, CallResponse, ListTargetsRequest, ListTargetsResponse,
};
use outstation_transform_client::{Client, Config, Endpoint};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// Nothing here takes nearly this long, on any machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What a server does with a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    Answer,
    /// Answers when the mode changes.
    Hold,
    Fail {
        code: Code,
        not_started: bool,
    },
}

#[derive(Clone)]
pub struct Steered {
    pub mode: Arc<watch::Sender<Mode>>,
    /// Calls that reached it.
    pub started: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Transform for Steered {
    async fn call(&self, _: Request<CallRequest>) -> Result<Response<CallResponse>, Status> {
        self.started.fetch_add(1, Ordering::SeqCst);
        let mode = *self.mode.borrow();
        match mode {
            Mode::Answer => Ok(Response::new(CallResponse::default())),
            Mode::Hold => {
                let _ = self.mode.subscribe().wait_for(|mode| *mode != Mode::Hold).await;
                Ok(Response::new(CallResponse::default()))
            }
            Mode::Fail { code, not_started } => {
                let mut status = Status::new(code, "as told");
                if not_started {
                    status.metadata_mut().insert(NOT_STARTED, "1".parse().unwrap());
                }
                Err(status)
            }
        }
    }

    async fn list_targets(
        &self,
        _: Request<ListTargetsRequest>,
    ) -> Result<Response<ListTargetsResponse>, Status> {
        Ok(Response::new(ListTargetsResponse::default()))
    }
}

pub struct Server {
    pub endpoint: Endpoint,
    pub steered: Steered,
    health: HealthReporter,
    machine: Machine,
}

impl Server {
    pub async fn start(instance: &str) -> Server {
        Server::start_at(instance, "127.0.0.1:0".parse().unwrap(), ServingStatus::Serving).await
    }

    pub async fn start_at(instance: &str, address: SocketAddr, status: ServingStatus) -> Server {
        let steered =
            Steered { mode: Arc::new(watch::Sender::new(Mode::Answer)), started: Arc::default() };
        let (health, health_service) = tonic_health::server::health_reporter();
        set_health(&health, status).await;
        let machine = Machine::start();
        let service = TransformServer::new(steered.clone());
        let serving = machine.runtime().spawn(async move {
            let listener = TcpListener::bind(address).await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(
                tonic::transport::Server::builder()
                    .add_service(health_service)
                    .add_service(service)
                    .serve_with_incoming(TcpListenerStream::new(listener)),
            );
            address
        });
        let address = serving.await.unwrap();
        let endpoint = Endpoint { instance: instance.into(), address: address.to_string() };
        Server { endpoint, steered, health, machine }
    }

    pub fn set(&self, mode: Mode) {
        self.steered.mode.send_replace(mode);
    }

    pub fn started(&self) -> usize {
        self.steered.started.load(Ordering::SeqCst)
    }

    pub async fn until_started(&self, count: usize) {
        until("calls to reach it", async || (self.started() >= count).then_some(())).await;
    }

    pub async fn set_health(&self, status: ServingStatus) {
        set_health(&self.health, status).await;
    }

    pub fn die(&mut self) {
        self.machine.die();
    }
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    health.set_service_status("outstation.transform.v1.Transform", status).await;
}

/// Threads that a server runs on, and that can be taken away from it.
pub struct Machine(Option<Runtime>);

impl Machine {
    pub fn start() -> Machine {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        Machine(Some(builder.worker_threads(1).enable_all().build().unwrap()))
    }

    pub fn runtime(&self) -> &Runtime {
        self.0.as_ref().expect("it has not died")
    }

    /// Like SIGKILL: every connection is cut.
    pub fn die(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.die();
    }
}

/// A client of the servers, all of them up; and the set, to change it.
pub async fn client_of(
    servers: &[&Server],
    config: Config,
) -> (Client, watch::Sender<Vec<Endpoint>>) {
    let (set, client) = client_of_endpoints(servers.iter().map(|s| s.endpoint.clone()), config);
    assert_eq!(client.wait_up(servers.len(), PATIENCE).await, servers.len());
    (client, set)
}

pub fn client_of_endpoints(
    endpoints: impl IntoIterator<Item = Endpoint>,
    config: Config,
) -> (watch::Sender<Vec<Endpoint>>, Client) {
    let (set, watched) = watch::channel(endpoints.into_iter().collect());
    (set, Client::new(watched, config))
}

/// Makes one call and says who answered, after how many tries.
pub async fn call(client: &Client) -> Result<(String, usize), Status> {
    let (_, used) = client.call(&CallRequest::default(), PATIENCE).await?;
    Ok((used.endpoint.instance.clone(), used.tries))
}
