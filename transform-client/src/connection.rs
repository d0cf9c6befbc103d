//! Keeps one HTTP/2 connection to one endpoint: connects in the background, asks its health before it
//! gets calls, and comes back with jitter when it is lost or was ejected.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::Code;
use tonic::body::Body;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tracing::{debug, info};

use crate::backoff::Backoff;
use crate::balance::{Ejection, Endpoint, EndpointId};
use crate::client::Shared;
use crate::clock;

/// A server in the same network answers in milliseconds, or is not there.
const CONNECT_MAX: Duration = Duration::from_secs(3);
const PROBE_MAX: Duration = Duration::from_secs(2);
/// A peer that has vanished without a word is noticed after these two.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// A connection that was up this long starts over with short pauses.
const WELL: Duration = Duration::from_secs(10);

/// The health service name that stands for the data path.
const SERVICE: &str = "outstation.transform.v1.Transform";

/// A connection that calls can be sent on. Cloning shares it.
#[derive(Clone)]
pub struct Sender {
    requests: SendRequest<Body>,
    /// `http://address:port`
    pub origin: http::Uri,
}

/// A request that got no response.
#[derive(Debug, thiserror::Error)]
#[error("the request got no response")]
pub struct SendError {
    /// It never left: the server cannot have seen it.
    pub not_sent: bool,
    pub source: hyper::Error,
}

impl tower::Service<http::Request<Body>> for Sender {
    type Response = http::Response<Incoming>;
    type Error = SendError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, SendError>> + Send>>;

    /// Always: a connection that is closed says so with a request that was not sent.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let response = self.requests.try_send_request(request);
        Box::pin(async move {
            response.await.map_err(|mut error| SendError {
                not_sent: error.take_message().is_some(),
                source: error.into_error(),
            })
        })
    }
}

/// Runs until the endpoint is removed from the set. Calls in flight keep the connection's driver alive
/// beyond that, until they have ended.
pub async fn keep(
    shared: Arc<Shared>,
    id: EndpointId,
    endpoint: Endpoint,
    mut ejections: mpsc::Receiver<Ejection>,
) {
    let mut pause = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    loop {
        match connect(&endpoint).await {
            Ok((sender, closed)) => {
                let up_since = clock::now();
                debug!(endpoint.instance, endpoint.address, "connected");
                use_connection(&shared, id, &sender, closed, &mut ejections).await;
                shared.set_down(id, "the connection was lost");
                debug!(endpoint.instance, endpoint.address, "connection lost");
                if clock::now() - up_since >= WELL {
                    pause.reset();
                }
            }
            Err(error) => {
                debug!(endpoint.instance, endpoint.address, %error, "cannot connect");
                shared.set_down(id, &format!("cannot connect to {}: {error}", endpoint.address));
            }
        }
        sleep(pause.next(shared.random())).await;
    }
}

async fn connect(
    endpoint: &Endpoint,
) -> Result<(Sender, oneshot::Receiver<Infallible>), Box<dyn std::error::Error + Send + Sync>> {
    let origin = http::Uri::try_from(format!("http://{}", endpoint.address))?;
    let stream = timeout(CONNECT_MAX, TcpStream::connect(&endpoint.address))
        .await
        .map_err(|_| "timed out")??;
    stream.set_nodelay(true)?;
    let handshake = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream));
    let (requests, driver) = timeout(CONNECT_MAX, handshake).await.map_err(|_| "timed out")??;
    // Dropped at the end of the connection, which is what the receiver waits for.
    let (alive, closed) = oneshot::channel();
    tokio::spawn(async move {
        if let Err(error) = driver.await {
            debug!(%error, "connection ended");
        }
        drop(alive);
    });
    Ok((Sender { requests, origin }, closed))
}

/// Returns when the connection is closed.
async fn use_connection(
    shared: &Shared,
    id: EndpointId,
    sender: &Sender,
    mut closed: oneshot::Receiver<Infallible>,
    ejections: &mut mpsc::Receiver<Ejection>,
) {
    let mut pause = Backoff::new(Duration::from_millis(40), Duration::from_secs(1));
    let mut was_ejected = false;
    loop {
        let probed = tokio::select! {
            probed = probe(sender) => probed,
            _ = &mut closed => return,
        };
        let wait_until = match probed {
            Ok(()) => {
                shared.set_up(id, sender.clone());
                pause.reset();
                tokio::select! {
                    Some(Ejection { until }) = ejections.recv() => {
                        info!(id = id.0, "endpoint ejected");
                        was_ejected = true;
                        Instant::from_std(until)
                    }
                    _ = &mut closed => return,
                }
            }
            Err(reason) if was_ejected => match shared.probe_failed(id) {
                Some(Ejection { until }) => Instant::from_std(until),
                // Removed from the set meanwhile.
                None => {
                    debug!(id = id.0, reason, "no longer in the set");
                    return;
                }
            },
            Err(reason) => {
                shared.set_down(id, &reason);
                Instant::now() + pause.next(shared.random())
            }
        };
        tokio::select! {
            () = sleep_until(wait_until) => {}
            _ = &mut closed => return,
        }
    }
}

/// Asks the server whether it takes calls. One without a health service is believed to.
async fn probe(sender: &Sender) -> Result<(), String> {
    let request = HealthCheckRequest { service: SERVICE.into() };
    let mut health = HealthClient::with_origin(sender.clone(), sender.origin.clone());
    match timeout(PROBE_MAX, health.check(request)).await {
        Err(_) => Err("its health check is not answered".into()),
        Ok(Ok(response)) => match response.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            ServingStatus::NotServing | ServingStatus::Unknown | ServingStatus::ServiceUnknown => {
                Err("it says that it is not serving".into())
            }
        },
        Ok(Err(status)) if status.code() == Code::Unimplemented => Ok(()),
        Ok(Err(status)) => Err(format!("its health check failed: {}", status.message())),
    }
}
