//! Connections to a gRPC server, on bare HTTP/2: what a request costs here is kept small, so that
//! what is measured is the server.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::http1::Pool;

/// What a call of [`Client::call`] says when the connection or the answer was not gRPC.
pub const BROKEN: i32 = -1;
pub const OK: i32 = 0;
/// `RESOURCE_EXHAUSTED`
pub const REFUSED: i32 = 8;

/// Room for answers, so that no window holds the server up.
const WINDOW_BYTES: u32 = 16 << 20;

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = std::convert::Infallible;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        Ok(match raw.parse() {
            Ok(address) => Address::Tcp(address),
            Err(_) => Address::Unix(Path::new(raw).to_owned()),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A request that is sent again and again.
#[derive(Clone, Debug)]
pub enum Prepared {
    Grpc(Grpc),
    /// A whole request of HTTP/1.1, see [`crate::http1::post`].
    Http1(Bytes),
}

#[derive(Clone, Debug)]
pub struct Grpc {
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Prepared {
    /// A call of the transform server's.
    pub fn call(target: &str, rows: usize, deadline: Option<Duration>) -> Result<Self> {
        let body = crate::wire::call(target, rows);
        let path = "/outstation.transform.v1.Transform/Call";
        Ok(Self::Grpc(Grpc::new(path, body, deadline)?))
    }
}

impl Grpc {
    /// `path` is `/package.Service/Method`; `body` is a message with its prefix.
    pub fn new(path: &str, body: Bytes, deadline: Option<Duration>) -> Result<Self> {
        let uri = format!("http://localhost{path}").parse().context("a path of gRPC")?;
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
        if let Some(deadline) = deadline {
            let value = format!("{}m", deadline.as_millis());
            headers.insert("grpc-timeout", HeaderValue::from_str(&value)?);
        }
        Ok(Self { uri, headers, body })
    }

    fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// One connection of gRPC, or as many as it takes of HTTP/1.1.
#[derive(Clone)]
pub enum Client {
    Grpc(SendRequest<Bytes>),
    Http1(Rc<Pool>),
}

impl Client {
    /// For requests of that kind. Its driver runs on the current `LocalSet`.
    pub async fn connect(address: &Address, request: &Prepared) -> Result<Self> {
        match (address, request) {
            (Address::Tcp(address), Prepared::Http1(_)) => {
                Ok(Self::Http1(Rc::new(Pool::new(*address))))
            }
            (Address::Unix(_), Prepared::Http1(_)) => bail!("HTTP/1.1 goes over TCP here"),
            (Address::Tcp(address), Prepared::Grpc(_)) => {
                let stream = TcpStream::connect(address).await.context("connect")?;
                stream.set_nodelay(true)?;
                Self::over(stream).await
            }
            (Address::Unix(path), Prepared::Grpc(_)) => {
                Self::over(UnixStream::connect(path).await.context("connect")?).await
            }
        }
    }

    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Result<Self> {
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .enable_push(false)
            .handshake(stream)
            .await
            .context("shake hands")?;
        tokio::task::spawn_local(async move {
            // The calls on it tell.
            let _ = connection.await;
        });
        Ok(Self::Grpc(send))
    }

    /// Sends it and waits for all of the answer; returns its `grpc-status`.
    pub async fn call(&self, request: &Prepared) -> i32 {
        self.exchange(request, |_| {}).await.unwrap_or(BROKEN)
    }

    /// The status and the answer's message, for a look before the load starts.
    pub async fn call_for_answer(&self, request: &Prepared) -> Result<(i32, Bytes)> {
        let mut answer = BytesMut::new();
        let status = self.exchange(request, |piece| answer.extend_from_slice(&piece)).await?;
        Ok((status, answer.freeze()))
    }

    async fn exchange(&self, request: &Prepared, with: impl FnMut(Bytes)) -> Result<i32> {
        match (self, request) {
            (Client::Grpc(send), Prepared::Grpc(request)) => {
                Ok(exchange_grpc(send, request, with).await?)
            }
            (Client::Http1(pool), Prepared::Http1(request)) => {
                let mut with = with;
                let (status, body) = pool.exchange(request).await?;
                with(body.into());
                Ok(if status == 200 { OK } else { BROKEN })
            }
            (Client::Grpc(_), Prepared::Http1(_)) | (Client::Http1(_), Prepared::Grpc(_)) => {
                bail!("connected for another kind of request")
            }
        }
    }
}

async fn exchange_grpc(
    send: &SendRequest<Bytes>,
    request: &Grpc,
    mut with: impl FnMut(Bytes),
) -> Result<i32, h2::Error> {
    let mut send = send.clone().ready().await?;
    let (response, mut stream) = send.send_request(request.request(), false)?;
    stream.send_data(request.body.clone(), true)?;
    let (head, mut body) = response.await?.into_parts();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        with(piece);
    }
    let trailers = body.trailers().await?;
    Ok(trailers.as_ref().and_then(status).or_else(|| status(&head.headers)).unwrap_or(BROKEN))
}

fn status(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
