//! The gRPC surface. The two data-path methods are taken first and pass bytes through, on the bare HTTP/2
//! stream; health and reflection are routed by tonic.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request};
use outstation_api::scan;
use tokio::time::timeout_at;
use tonic::Status;
use tonic::service::Routes;

use crate::admission::CallerId;
use crate::clock;
use crate::deadline::{self, Limits};
use crate::frame::{CallHead, MESSAGE_BYTES_MAX, PREFIX_BYTES, TRACEPARENT_BYTES_MAX};
use crate::pool::{Arrival, Pool};
use crate::reply::Reply;
use crate::routed;
use crate::status::not_started;

pub const SERVICE: &str = "outstation.transform.v1.Transform";
const CALL: &str = "/outstation.transform.v1.Transform/Call";
const LIST_TARGETS: &str = "/outstation.transform.v1.Transform/ListTargets";

/// The pool answers at the deadline; this much later a request that never even arrived whole is ended.
const BODY_GRACE: Duration = Duration::from_millis(500);

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

    /// Takes one request. What has arrived whole, as nearly all have, is offered at once: requests that came
    /// in one packet are there together when a worker comes for them.
    pub async fn handle(
        &self,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        caller: CallerId,
    ) {
        match request.uri().path() {
            CALL => self.call(request, Reply(respond), caller).await,
            LIST_TARGETS => self.list_targets(Reply(respond)),
            _ => drop(tokio::spawn(routed::serve(self.routes.clone(), request, respond))),
        }
    }

    async fn call(&self, request: Request<RecvStream>, reply: Reply, caller: CallerId) {
        let arrived = clock::now();
        let (parts, body) = request.into_parts();
        let Some(deadline) = deadline::deadline(&parts.headers, self.limits, arrived) else {
            let message = "grpc-timeout is not a gRPC timeout such as 250m";
            return reply.fail(&Status::invalid_argument(message));
        };
        let head = CallHead {
            deadline_nanos: clock::monotonic_nanos(deadline),
            request_micros: clock::unix_micros(),
            traceparent: traceparent(&parts.headers),
        };
        let call = Pending { head, deadline, arrived, reply, caller };
        let mut message = Message::new(body);
        // Once, without waiting.
        match poll_fn(|context| Poll::Ready(message.poll(context))).await {
            Poll::Ready(received) => call.offer(&self.pool, received),
            Poll::Pending => {
                let pool = self.pool.clone();
                tokio::spawn(call.receive(pool, message));
            }
        }
    }

    fn list_targets(&self, reply: Reply) {
        let serving = self.pool.serving().borrow().clone();
        match (serving.targets, serving.open) {
            (Some(targets), _) => reply.send(prefixed(targets.encoded())),
            (None, Err(reason)) => reply.fail(&not_started(Status::unavailable(reason.as_ref()))),
            (None, Ok(())) => reply.fail(&Status::internal("open without targets")),
        }
    }
}

/// A call whose message is still to come.
struct Pending {
    head: CallHead,
    deadline: Instant,
    arrived: Instant,
    reply: Reply,
    caller: CallerId,
}

impl Pending {
    async fn receive(self, pool: Arc<Pool>, mut message: Message) {
        let received = poll_fn(|context| message.poll(context));
        match timeout_at((self.deadline + BODY_GRACE).into(), received).await {
            Ok(received) => self.offer(&pool, received),
            Err(_) => self.reply.fail(&Status::deadline_exceeded(
                "the request did not arrive as a whole before the deadline",
            )),
        }
    }

    fn offer(self, pool: &Pool, received: Result<Bytes, Status>) {
        let Pending { head, deadline, arrived, reply, caller } = self;
        let target = match &received {
            Ok(payload) => scan::target(payload)
                .map_err(|error| Status::invalid_argument(format!("not a CallRequest: {error}")))
                .and_then(|name| match name {
                    "" => Err(Status::invalid_argument("the request names no target")),
                    name => Ok(pool.find(name)),
                }),
            Err(status) => Err(status.clone()),
        };
        match (target, received) {
            (Ok(target), Ok(payload)) => {
                pool.call(Arrival { target, caller, head, payload, deadline, arrived, reply });
            }
            (Err(status), _) | (_, Err(status)) => reply.fail(&status),
        }
    }
}

/// The one message of a unary request.
struct Message {
    body: RecvStream,
    received: BytesMut,
}

impl Message {
    fn new(body: RecvStream) -> Message {
        Message { body, received: BytesMut::new() }
    }

    fn poll(&mut self, context: &mut std::task::Context<'_>) -> Poll<Result<Bytes, Status>> {
        loop {
            let chunk = match self.body.poll_data(context) {
                Poll::Ready(Some(Ok(chunk))) => chunk,
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Err(Status::cancelled(format!(
                        "the request broke off: {error}"
                    ))));
                }
                Poll::Ready(None) => {
                    return Poll::Ready(unprefixed(std::mem::take(&mut self.received).freeze()));
                }
                Poll::Pending => return Poll::Pending,
            };
            // It is ours now: the caller may send as much again.
            let _ = self.body.flow_control().release_capacity(chunk.len());
            if self.received.is_empty() && self.body.is_end_stream() {
                return Poll::Ready(unprefixed(chunk));
            }
            if self.received.is_empty() {
                let expected = message_bytes(&chunk).unwrap_or(0).min(MESSAGE_BYTES_MAX);
                self.received.reserve((PREFIX_BYTES + expected).max(chunk.len()));
            }
            self.received.extend_from_slice(&chunk);
            let promised = message_bytes(&self.received).unwrap_or(0);
            if promised.max(self.received.len()) > MESSAGE_BYTES_MAX + PREFIX_BYTES {
                return Poll::Ready(Err(too_long(promised)));
            }
        }
    }
}

fn message_bytes(prefixed: &[u8]) -> Option<usize> {
    let length = prefixed.get(1..PREFIX_BYTES)?.try_into().ok()?;
    Some(u32::from_be_bytes(length) as usize)
}

fn too_long(bytes: usize) -> Status {
    Status::out_of_range(format!(
        "the message length of {bytes} bytes is more than {MESSAGE_BYTES_MAX}: send fewer rows"
    ))
}

/// What comes after the prefix of a gRPC message.
fn unprefixed(mut bytes: Bytes) -> Result<Bytes, Status> {
    let Some(promised) = message_bytes(&bytes) else {
        return Err(Status::invalid_argument("the request has no message"));
    };
    if promised > MESSAGE_BYTES_MAX {
        return Err(too_long(promised));
    }
    if bytes[0] != 0 {
        return Err(Status::unimplemented("compressed requests are not taken: send identity"));
    }
    let message = bytes.split_off(PREFIX_BYTES);
    if message.len() != promised {
        let has = message.len();
        let says = format!("a message of {promised} bytes, of which {has} came");
        return Err(Status::invalid_argument(says));
    }
    Ok(message)
}

fn prefixed(message: &Bytes) -> Bytes {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0][..], &length.to_be_bytes(), message].concat().into()
}

/// The caller's trace context, for whoever logs or calls further. <https://www.w3.org/TR/trace-context/>
fn traceparent(headers: &HeaderMap) -> Bytes {
    let value = headers.get("traceparent").map_or(&[][..], |value| value.as_bytes());
    let plain = |byte: &u8| byte.is_ascii_hexdigit() || *byte == b'-';
    if value.len() <= TRACEPARENT_BYTES_MAX && value.iter().all(plain) {
        return Bytes::copy_from_slice(value);
    }
    Bytes::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_what_is_none() {
        type Expected = Result<&'static [u8], &'static str>;
        let cases: &[(&[u8], Expected)] = &[
            (b"\0\0\0\0\x02ab", Ok(b"ab")),
            (b"\0\0\0\0\0", Ok(b"")),
            (b"", Err("has no message")),
            (b"\0\0\0\0", Err("has no message")),
            (b"\0\0\0\0\x03ab", Err("of which 2 came")),
            (b"\0\0\0\0\x01ab", Err("of which 2 came")),
            (b"\x01\0\0\0\x02ab", Err("compressed")),
            (b"\0\xff\xff\xff\xffab", Err("message length of 4294967295")),
        ];
        for (bytes, expected) in cases {
            match (unprefixed(Bytes::from_static(bytes)), expected) {
                (Ok(message), Ok(expected)) => assert_eq!(message, *expected),
                (Err(status), Err(expected)) => {
                    assert!(status.message().contains(expected), "{status:?}");
                }
                other => panic!("{bytes:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn trace_contexts() {
        let check = |value: &str, expected: &str| {
            let headers = HeaderMap::from_iter([(
                http::HeaderName::from_static("traceparent"),
                value.parse().unwrap(),
            )]);
            assert_eq!(traceparent(&headers), expected, "{value:?}");
        };
        let usual = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        check(usual, usual);
        check("00-not a trace", "");
        check(&"a".repeat(300), "");
        assert_eq!(traceparent(&HeaderMap::new()), "");
    }
}
