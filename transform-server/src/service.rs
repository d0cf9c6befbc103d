//! The gRPC surface. The two data-path methods are taken first and pass bytes through; health and
//! reflection are routed by tonic.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use outstation_api::NOT_STARTED;
use outstation_api::codec::BytesCodec;
use tokio::time::timeout_at;
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::server::{Grpc, UnaryService};
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::ServiceExt;

use crate::admission::Refusal;
use crate::clock;
use crate::deadline::{self, Limits};
use crate::frame::MESSAGE_BYTES_MAX;
use crate::pool::{Failure, Pool};
use crate::scan;

pub const SERVICE: &str = "outstation.transform.v1.Transform";
const CALL: &str = "/outstation.transform.v1.Transform/Call";
const LIST_TARGETS: &str = "/outstation.transform.v1.Transform/ListTargets";

/// The pool answers at the deadline; this much later a request that never even arrived whole is ended.
const BODY_GRACE: Duration = Duration::from_millis(500);

/// How much of an unknown name is repeated in a message: messages travel in headers.
const NAME_CHARS_MAX: usize = 80;

/// What every connection is served by.
#[derive(Clone)]
pub struct Front {
    pool: Arc<Pool>,
    limits: Limits,
    routes: Routes,
}

impl Front {
    pub fn new(pool: Arc<Pool>, limits: Limits, routes: Routes) -> Self {
        Front { pool, limits, routes }
    }
}

impl hyper::service::Service<Request<Incoming>> for Front {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        match request.uri().path() {
            CALL => {
                let arrived = clock::now();
                Box::pin(call(self.pool.clone(), self.limits, request, arrived))
            }
            LIST_TARGETS => {
                let service = ListTargets { pool: self.pool.clone() };
                Box::pin(async move { Ok(grpc().unary(service, request).await) })
            }
            _ => {
                let routed = self.routes.clone().oneshot(request);
                Box::pin(async move { Ok(routed.await.unwrap_or_else(|never| match never {})) })
            }
        }
    }
}

fn grpc() -> Grpc<BytesCodec> {
    Grpc::new(BytesCodec)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

async fn call(
    pool: Arc<Pool>,
    limits: Limits,
    request: Request<Incoming>,
    arrived: Instant,
) -> Result<Response<Body>, Infallible> {
    let Some(deadline) = deadline::deadline(request.headers(), limits, arrived) else {
        return Ok(
            Status::invalid_argument("grpc-timeout is not a gRPC timeout such as 250m").into_http()
        );
    };
    let mut grpc = grpc();
    let answer = grpc.unary(Call { pool, deadline }, request);
    Ok(match timeout_at((deadline + BODY_GRACE).into(), answer).await {
        Ok(response) => response,
        Err(_) => {
            Status::deadline_exceeded("the request did not arrive as a whole before the deadline")
                .into_http()
        }
    })
}

struct Call {
    pool: Arc<Pool>,
    deadline: Instant,
}

impl UnaryService<Bytes> for Call {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let (pool, deadline) = (self.pool.clone(), self.deadline);
        Box::pin(async move {
            let payload = request.into_inner();
            let target = find_target(&pool, &payload)?;
            let answer = pool.call(target, payload, deadline).await.map_err(status)?;
            if answer.len() > MESSAGE_BYTES_MAX {
                let bytes = answer.len();
                return Err(Status::out_of_range(format!(
                    "the answer of {bytes} bytes is more than {MESSAGE_BYTES_MAX}"
                )));
            }
            Ok(tonic::Response::new(answer))
        })
    }
}

/// The target's name, for messages. One that is not in the bundle is the worker's to answer: it knows
/// which files could not be loaded.
fn find_target(pool: &Pool, payload: &[u8]) -> Result<Arc<str>, Status> {
    let name = scan::target(payload)
        .map_err(|error| Status::invalid_argument(format!("not a CallRequest: {error}")))?;
    if name.is_empty() {
        return Err(Status::invalid_argument("the request names no target"));
    }
    let known = pool.known_target(name);
    Ok(known.unwrap_or_else(|| name.chars().take(NAME_CHARS_MAX).collect::<String>().into()))
}

/// What a caller is told.
fn status(failure: Failure) -> Status {
    let message = failure.to_string();
    match failure {
        Failure::Refused { refusal, .. } => {
            let code = match refusal {
                Refusal::TooManyWaiting { .. } | Refusal::TooManyBytesWaiting { .. } => {
                    Code::ResourceExhausted
                }
                Refusal::Expired => Code::DeadlineExceeded,
                Refusal::Draining | Refusal::NoWorker { .. } => Code::Unavailable,
            };
            not_started(Status::new(code, message))
        }
        Failure::Runaway { .. } => Status::deadline_exceeded(message),
        Failure::Died { .. } | Failure::Stopped { .. } => Status::aborted(message),
        Failure::Worker { code, message } => Status::new(code, message),
    }
}

fn not_started(mut status: Status) -> Status {
    status.metadata_mut().insert(NOT_STARTED, MetadataValue::from_static("1"));
    status
}

struct ListTargets {
    pool: Arc<Pool>,
}

impl UnaryService<Bytes> for ListTargets {
    type Response = Bytes;
    type Future = std::future::Ready<Result<tonic::Response<Bytes>, Status>>;

    fn call(&mut self, _: tonic::Request<Bytes>) -> Self::Future {
        let serving = self.pool.serving().borrow().clone();
        std::future::ready(match (serving.targets, serving.open) {
            (Some(targets), _) => Ok(tonic::Response::new(targets.encoded().clone())),
            (None, Err(reason)) => Err(not_started(Status::unavailable(reason.as_ref()))),
            (None, Ok(())) => Err(Status::internal("open without targets")),
        })
    }
}
