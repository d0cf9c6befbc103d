//! What lies below the AWS SDK in place of a network: calls go out here, and come back when and as
//! the world decides.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// The calls of one process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Wire(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    made: u64,
    out: VecDeque<(CallId, http::Request<Bytes>)>,
    back: BTreeMap<CallId, http::Response<Bytes>>,
}

impl Wire {
    /// The next call that was sent and not taken yet.
    pub fn take(&self) -> Option<(CallId, http::Request<Bytes>)> {
        self.state().out.pop_front()
    }

    pub fn answer(&self, call: CallId, response: http::Response<Bytes>) {
        self.state().back.insert(call, response);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpClient for Wire {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let request = match as_received(request) {
            Ok(request) => request,
            Err(error) => {
                return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into())));
            }
        };
        let mut state = self.state();
        state.made += 1;
        let call = CallId(state.made);
        state.out.push_back((call, request));
        drop(state);
        HttpConnectorFuture::new(Answer { wire: self.clone(), call })
    }
}

struct Answer {
    wire: Wire,
    call: CallId,
}

impl Future for Answer {
    type Output = Result<HttpResponse, ConnectorError>;
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(response) = self.wire.state().back.remove(&self.call) else {
            return Poll::Pending;
        };
        let response = response.map(SdkBody::from);
        Poll::Ready(
            HttpResponse::try_from(response).map_err(|e| ConnectorError::other(e.into(), None)),
        )
    }
}

/// As a server would see it: a path, a host, and the body in one piece.
fn as_received(request: HttpRequest) -> Result<http::Request<Bytes>, String> {
    let request = request.try_into_http1x().map_err(|error| error.to_string())?;
    let (mut parts, body) = request.into_parts();
    let body = body.bytes().ok_or("a streaming body")?.to_vec();
    if let Some(authority) = parts.uri.authority() {
        let host = authority.as_str().parse().map_err(|_| "an odd host")?;
        parts.headers.entry(http::header::HOST).or_insert(host);
    }
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    parts.uri = path.parse().map_err(|_| "an odd path")?;
    Ok(http::Request::from_parts(parts, Bytes::from(body)))
}
