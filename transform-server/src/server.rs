//! The server as a whole: listeners, connections, workers, and how all of it ends.

use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Uid, User};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tracing::{debug, info, warn};

use crate::admission::{self, CallerId};
use crate::clock;
use crate::connection;
use crate::deadline::Limits;
use crate::health::HealthService;
use crate::options::Options;
use crate::pool::Pool;
use crate::reflection;
use crate::scrape;
use crate::service::Front;
use crate::spawn::{Entry, Spawner, WorkerSpec, WorkerUser, Workers};
use crate::supervise::{Supervisor, Wear};

/// A caller needs one or a few; a fleet of callers with a few thousand members still fits. One costs
/// some 50 KiB here.
const CONNECTIONS_MAX: usize = 4096;
/// After the last answer, how long connections may take to close before they are cut.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}")]
    Listen { address: String, source: io::Error },
    #[error("there is no Python interpreter at {python}")]
    Python { python: PathBuf },
    #[error("there is no bundle folder at {bundle}")]
    Bundle { bundle: PathBuf },
    #[error("there is no folder for secrets at {folder}")]
    Secrets { folder: PathBuf },
    #[error("cannot make a folder for the workers")]
    Home { source: io::Error },
    #[error("there is no user {name}")]
    NoUser { name: String },
    #[error("only root can run workers as {name}")]
    NotRoot { name: String },
    #[error("cannot start a thread")]
    Thread { source: io::Error },
    #[error("the reflection service cannot be built")]
    Reflection { source: tonic_reflection::server::Error },
}

impl StartError {
    /// What a person can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            StartError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                "another process listens there: choose another --listen address, or end that process"
            }
            StartError::Listen { .. } => {
                "--listen takes an address of this machine and a port, such as 127.0.0.1:7400"
            }
            StartError::Python { .. } => {
                "--python takes the path of the environment's interpreter, such as …/bin/python"
            }
            StartError::Bundle { .. } => {
                "--bundle takes the folder that the bundle was unpacked to"
            }
            StartError::Secrets { .. } => "--secrets takes a folder with one file for each secret",
            StartError::Home { .. } => "the temporary folder must be writable (TMPDIR)",
            StartError::NoUser { .. } => "--worker-user takes a name or number of /etc/passwd",
            StartError::NotRoot { .. } => {
                "start the server as root, or leave --worker-user out: workers then run as you"
            }
            StartError::Thread { .. } => {
                "the machine's limit of processes may be reached (ulimit -u)"
            }
            StartError::Reflection { .. } => "this is a defect of the program",
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Bound to its addresses; nothing runs yet.
pub struct Server {
    options: Options,
    listeners: Vec<Listener>,
    metrics: Option<TcpListener>,
    pool: Arc<Pool>,
    supervisor: Arc<Supervisor>,
    front: Front,
    /// Ends health watches.
    end_watches: CancellationToken,
    _home: tempfile::TempDir,
}

impl Server {
    /// Must be called inside a tokio runtime.
    pub async fn bind(options: Options) -> Result<Server, StartError> {
        if !is_executable(&options.python) {
            return Err(StartError::Python { python: options.python });
        }
        if !options.bundle.is_dir() {
            return Err(StartError::Bundle { bundle: options.bundle });
        }
        if let Some(folder) = options.secrets.as_ref().filter(|folder| !folder.is_dir()) {
            return Err(StartError::Secrets { folder: folder.clone() });
        }
        let mut listeners = Vec::new();
        if let Some(address) = options.listen {
            let source = TcpListener::bind(address).await;
            let tcp = source
                .map_err(|source| StartError::Listen { address: address.to_string(), source })?;
            listeners.push(Listener::Tcp(tcp));
        }
        if let Some(path) = &options.unix {
            let bound = bind_unix(path).await;
            let address = path.display().to_string();
            listeners.push(bound.map_err(|source| StartError::Listen { address, source })?);
        }

        let metrics =
            match options.metrics {
                Some(address) => Some(TcpListener::bind(address).await.map_err(|source| {
                    StartError::Listen { address: address.to_string(), source }
                })?),
                None => None,
            };

        let home = tempfile::Builder::new().prefix("outstation-workers-").tempdir();
        let home = home.map_err(|source| StartError::Home { source })?;
        let user = options.worker_user.as_deref().map(worker_user).transpose()?;
        if let Some(user) = user {
            std::os::unix::fs::chown(home.path(), Some(user.uid), Some(user.gid))
                .map_err(|source| StartError::Home { source })?;
        }
        let pool = Pool::new(admission::Config::default());
        let start_max = Duration::from_secs(options.start_secs);
        let supervisor = Supervisor {
            pool: pool.clone(),
            spec: WorkerSpec {
                python: interpreter(&options.python),
                bundle: absolute(&options.bundle),
                python_path: options.python_path.as_deref().map(absolute),
                secrets: options.secrets.as_deref().map(absolute),
                home: home.path().to_owned(),
                entry: options
                    .worker_script
                    .clone()
                    .map_or(Entry::Sdk, |script| Entry::Script(absolute(&script))),
                user,
            },
            spawner: Spawner::start(pool.clone(), start_max)
                .map_err(|source| StartError::Thread { source })?,
            start_max,
            wear: Wear {
                calls_max: options.worker_calls_max,
                memory_bytes_max: options
                    .worker_memory_max_mib
                    .map_or_else(|| memory_share(options.workers), |mib| mib << 20),
            },
            stop: CancellationToken::new(),
        };
        let end_watches = CancellationToken::new();
        let health = HealthServer::new(HealthService::new(pool.serving(), end_watches.clone()));
        let reflection =
            reflection::service().map_err(|source| StartError::Reflection { source })?;
        let limits = Limits {
            default: Duration::from_secs(10),
            max: Duration::from_secs(options.deadline_max_secs),
        };
        let front = Front::new(pool.clone(), limits, Routes::new(health).add_service(reflection));
        Ok(Server {
            options,
            listeners,
            metrics,
            pool,
            supervisor: Arc::new(supervisor),
            front,
            end_watches,
            _home: home,
        })
    }

    /// Where it listens; the port is the real one when 0 was asked for.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.listeners.iter().find_map(|listener| match listener {
            Listener::Tcp(tcp) => tcp.local_addr().ok(),
            Listener::Unix(..) => None,
        })
    }

    /// Where Prometheus is answered.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// How workers are started, and how user code is confined.
    pub fn workers(&self) -> watch::Receiver<Workers> {
        self.supervisor.spawner.workers()
    }

    /// Serves until `shutdown`, then drains: refuses what is new, answers what was taken, closes
    /// connections, ends the workers. Bounded by `drain_secs` and a second.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let close = CancellationToken::new();
        let connections = TaskTracker::new();
        let background = TaskTracker::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        for listener in self.listeners {
            let accept = accept(
                listener,
                self.front.clone(),
                places.clone(),
                connections.clone(),
                close.clone(),
            );
            background.spawn(accept);
        }
        let metrics = self
            .metrics
            .map(|listener| background.spawn(scrape::serve(listener, self.pool.clone())));
        let (mut workers, pool) = (self.supervisor.spawner.workers(), self.pool.clone());
        let observe = background.spawn(async move {
            while workers.changed().await.is_ok() {
                pool.metrics.workers_are(&workers.borrow_and_update());
            }
        });
        let timer = self.pool.clone();
        let timer = background.spawn(async move { timer.run_timer().await });
        for _ in 0..self.options.workers {
            background.spawn(self.supervisor.clone().run_slot());
        }
        let announce = background.spawn(announce(self.pool.clone()));

        shutdown.await;

        let drain_until =
            Instant::from_std(clock::now()) + Duration::from_secs(self.options.drain_secs);
        info!(secs_max = self.options.drain_secs, "draining");
        self.pool.drain();
        if timeout_at(drain_until, self.pool.drained()).await.is_err() {
            warn!("calls were still running at the end of the drain; they are answered ABORTED");
            self.pool.abandon();
        }
        self.end_watches.cancel();
        close.cancel();
        connections.close();
        if timeout(CLOSE_MAX, connections.wait()).await.is_err() {
            debug!("some connections did not close in time");
        }
        self.supervisor.stop.cancel();
        timer.abort();
        metrics.inspect(|metrics| metrics.abort());
        announce.abort();
        observe.abort();
        background.close();
        background.wait().await;
        info!("stopped");
    }
}

/// One line whenever calls begin or cease to be taken.
async fn announce(pool: Arc<Pool>) {
    let mut serving = pool.serving();
    let mut last = None;
    while serving.changed().await.is_ok() {
        let now = serving.borrow_and_update().clone();
        if last.as_ref() != Some(&now.open) {
            match &now.open {
                Ok(()) => info!(
                    targets = now.targets.as_ref().map_or(0, |targets| targets.count()),
                    "serving"
                ),
                Err(reason) => warn!(%reason, "not serving"),
            }
            last = Some(now.open);
        }
    }
}

async fn accept(
    listener: Listener,
    front: Front,
    places: Arc<Semaphore>,
    connections: TaskTracker,
    close: CancellationToken,
) {
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place.expect("the semaphore is never closed"),
            () = close.cancelled() => break,
        };
        let accepted = tokio::select! {
            accepted = async {
                match &listener {
                    Listener::Tcp(tcp) => tcp.accept().await.map(|(stream, peer)| Accepted::Tcp(stream, peer)),
                    Listener::Unix(unix, _) => unix.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
                }
            } => accepted,
            () = close.cancelled() => break,
        };
        match accepted {
            Ok(Accepted::Tcp(stream, peer)) => {
                // Answers are small: waiting to fill a segment would only delay them.
                let _ = stream.set_nodelay(true);
                let caller = caller(peer.ip());
                connections.spawn(serve(stream, front.clone(), caller, close.clone(), place));
            }
            Ok(Accepted::Unix(stream)) => {
                connections.spawn(serve(stream, front.clone(), LOCAL, close.clone(), place));
            }
            Err(error) => {
                // Out of descriptors, or the caller left while queued. The former needs a moment.
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    if let Listener::Unix(_, path) = &listener {
        let _ = std::fs::remove_file(path);
    }
}

/// Whoever comes over the Unix socket.
const LOCAL: CallerId = CallerId(0);

/// Callers share by address: one that opens more connections gets no more for it.
fn caller(address: IpAddr) -> CallerId {
    let mut hasher = DefaultHasher::new();
    address.hash(&mut hasher);
    CallerId(hasher.finish())
}

enum Accepted {
    Tcp(tokio::net::TcpStream, SocketAddr),
    Unix(UnixStream),
}

async fn serve<S>(
    stream: S,
    front: Front,
    caller: CallerId,
    close: CancellationToken,
    _place: OwnedSemaphorePermit,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    connection::serve(stream, front, caller, close).await;
}

async fn bind_unix(path: &Path) -> io::Result<Listener> {
    match UnixListener::bind(path) {
        // Left behind by a server that was killed: nobody answers there.
        Err(error)
            if error.kind() == io::ErrorKind::AddrInUse
                && UnixStream::connect(path).await.is_err() =>
        {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
    .map(|listener| Listener::Unix(listener, path.to_owned()))
}

fn is_executable(python: &Path) -> bool {
    use nix::unistd::{AccessFlags, access};
    let executable = |path: &Path| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    if python.components().count() > 1 {
        return executable(python);
    }
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| executable(&dir.join(python))))
}

fn worker_user(name: &str) -> Result<WorkerUser, StartError> {
    let found = match name.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(name),
    };
    let user = found.ok().flatten().ok_or_else(|| StartError::NoUser { name: name.to_owned() })?;
    if !Uid::effective().is_root() {
        return Err(StartError::NotRoot { name: name.to_owned() });
    }
    Ok(WorkerUser { uid: user.uid.as_raw(), gid: user.gid.as_raw() })
}

/// A bare name is looked up on the path; anything else means what it means here.
fn interpreter(python: &Path) -> PathBuf {
    if python.components().count() > 1 { absolute(python) } else { python.to_owned() }
}

/// What a worker may have of the machine's memory: all but a tenth, divided among them.
fn memory_share(workers: usize) -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|total| total.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| (kib << 10) / 10 * 9 / workers.max(1) as u64)
}

/// Workers run in a folder of their own, so relative paths would mean something else there.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
