//! The way back to one caller: the sending half of its HTTP/2 stream.

use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::server::SendResponse;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tonic::Status;

static GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
static OK: LazyLock<HeaderMap> = LazyLock::new(|| {
    HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))])
});

pub struct Reply(pub SendResponse<Bytes>);

impl Reply {
    /// The caller has cancelled the call, or its connection has ended.
    pub fn is_gone(&mut self) -> bool {
        !matches!(self.0.poll_reset(&mut Context::from_waker(Waker::noop())), Poll::Pending)
    }

    /// `message` has its gRPC prefix. A caller that has gone hears nothing.
    pub fn send(mut self, message: Bytes) {
        let mut response = Response::new(());
        response.headers_mut().insert(CONTENT_TYPE, GRPC.clone());
        if let Ok(mut stream) = self.0.send_response(response, false)
            && stream.send_data(message, false).is_ok()
        {
            let _ = stream.send_trailers(OK.clone());
        }
    }

    /// A status and nothing else.
    pub fn fail(mut self, status: &Status) {
        let mut response = Response::new(());
        response.headers_mut().insert(CONTENT_TYPE, GRPC.clone());
        // What cannot be a header is left out by encoding it.
        let _ = status.add_header(response.headers_mut());
        let _ = self.0.send_response(response, true);
    }
}
