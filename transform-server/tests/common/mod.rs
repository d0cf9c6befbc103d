//! A server in this process or in its own, and a plain client for it.

#![allow(dead_code, reason = "each test file uses a part of this")]

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use outstation_api::codec::BytesCodec;
use outstation_transform_server::{Options, Server, Workers};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Nothing here takes nearly this long, on any machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The interpreter itself: what is on the PATH may be a script that finds one.
pub fn python() -> String {
    static FOUND: LazyLock<String> = LazyLock::new(|| {
        let python = std::env::var("OUTSTATION_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
        let found = Command::new(python)
            .args(["-c", "import sys; print(sys.executable)"])
            .output()
            .unwrap();
        String::from_utf8(found.stdout).unwrap().trim().to_owned()
    });
    FOUND.clone()
}

pub async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A bundle folder for the stub worker, whose files steer it.
pub struct Bundle(pub tempfile::TempDir);

impl Bundle {
    pub fn new() -> Bundle {
        Bundle(tempfile::tempdir().unwrap())
    }

    pub fn with_mode(mode: &str) -> Bundle {
        let bundle = Bundle::new();
        bundle.write("mode", mode);
        bundle
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    /// The lines of a file that the worker writes; none if there is no such file.
    pub fn lines(&self, name: &str) -> Vec<String> {
        fs::read_to_string(self.path().join(name))
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    pub async fn until_lines(&self, name: &str, count: usize) -> Vec<String> {
        until(name, async || Some(self.lines(name)).filter(|lines| lines.len() >= count)).await
    }
}

pub fn stub() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stub_worker.py")
}

/// A server inside the test's process.
pub struct Running {
    pub address: SocketAddr,
    pub metrics: Option<SocketAddr>,
    pub workers: watch::Receiver<Workers>,
    stop: Option<oneshot::Sender<()>>,
    ended: Option<JoinHandle<()>>,
}

pub async fn start(bundle: &Path, extra: &[&str]) -> Running {
    let (python, bundle) = (python(), bundle.display().to_string());
    let mut arguments =
        vec!["server", "--listen", "127.0.0.1:0", "--python", &python, "--bundle", &bundle];
    arguments.extend(extra);
    let server = Server::bind(Options::try_parse_from(arguments).unwrap()).await.unwrap();
    let (address, metrics) = (server.local_addr().unwrap(), server.metrics_addr());
    let workers = server.workers();
    let (stop, stopped) = oneshot::channel();
    let ended = tokio::spawn(server.run(async {
        let _ = stopped.await;
    }));
    Running { address, metrics, workers, stop: Some(stop), ended: Some(ended) }
}

pub async fn start_stub(bundle: &Bundle, extra: &[&str]) -> Running {
    let stub = stub().display().to_string();
    let arguments = [&["--worker-script", &stub][..], extra].concat();
    start(bundle.path(), &arguments).await
}

impl Running {
    pub async fn channel(&self) -> Channel {
        connect_tcp(self.address).await
    }

    /// Begins the drain.
    pub fn stop(&mut self) {
        let _ = self.stop.take().expect("stopped once").send(());
    }

    pub async fn ended(&mut self) {
        let ended = self.ended.take().expect("waited for once");
        tokio::time::timeout(PATIENCE, ended).await.expect("the server ends").unwrap();
    }

    pub async fn until_serving(&self) -> Channel {
        let channel = self.channel().await;
        until("health", async || {
            (health(&channel, "").await == Ok(ServingStatus::Serving)).then_some(())
        })
        .await;
        channel
    }
}

/// A bare HTTP/2 connection: tonic's own channel would keep deadlines itself.
#[derive(Clone)]
pub struct Channel(SendRequest<Body>);

impl tower::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

pub async fn connect<S>(stream: S) -> Channel
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    Channel(sender)
}

pub async fn connect_tcp(address: SocketAddr) -> Channel {
    let stream = until("a connection", async || TcpStream::connect(address).await.ok()).await;
    connect(stream).await
}

pub async fn health(channel: &Channel, service: &str) -> Result<ServingStatus, tonic::Code> {
    let request = HealthCheckRequest { service: service.into() };
    let checked = HealthClient::with_origin(channel.clone(), "http://test".parse().unwrap())
        .check(request)
        .await;
    checked.map(|response| response.into_inner().status()).map_err(|status| status.code())
}

/// What Prometheus would read.
pub async fn scrape(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    answer
}

/// A request that names the target, and carries one row of nothing.
pub fn request(target: &str) -> Bytes {
    let length = u8::try_from(target.len()).unwrap();
    [&[0x0a, length][..], target.as_bytes(), b"\x12\x00"].concat().into()
}

pub async fn call(
    channel: &Channel,
    target: &str,
    timeout: Option<Duration>,
) -> Result<Bytes, Status> {
    call_bytes(channel, request(target), timeout).await
}

pub async fn call_bytes(
    channel: &Channel,
    bytes: Bytes,
    timeout: Option<Duration>,
) -> Result<Bytes, Status> {
    unary(
        channel,
        "/outstation.transform.v1.Transform/Call",
        bytes,
        timeout.map(|t| format!("{}m", t.as_millis())),
    )
    .await
}

/// Gives up only when the server does: the timeout is a header and nothing more.
pub async fn unary(
    channel: &Channel,
    path: &str,
    bytes: Bytes,
    timeout: Option<String>,
) -> Result<Bytes, Status> {
    let mut request = Request::new(bytes);
    if let Some(timeout) = timeout {
        request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
    }
    let mut grpc =
        tonic::client::Grpc::with_origin(channel.clone(), "http://test".parse().unwrap())
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
    Ok(grpc.unary(request, path.parse().unwrap(), BytesCodec).await?.into_inner())
}

pub fn not_started(status: &Status) -> bool {
    status.metadata().get(outstation_api::NOT_STARTED).is_some_and(|value| value == "1")
}

/// The real program.
pub struct Program(pub Child, tempfile::TempDir);

pub fn program(arguments: &[&str]) -> Program {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outstation-transform-server"));
    // A killed server leaves its workers' folder behind: not in the machine's own.
    let temporary = tempfile::tempdir().unwrap();
    command.env("TMPDIR", temporary.path()).args(arguments);
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    Program(child, temporary)
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a process exists and is not a zombie.
pub fn alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
