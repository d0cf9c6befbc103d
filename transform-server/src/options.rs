//! What the server is started with.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Parser};

/// Serves the real-time feature views of one bundle, in Python worker processes.
#[derive(Debug, Clone, Parser)]
#[command(version, group = ArgGroup::new("where").required(true).multiple(true).args(["listen", "unix"]))]
pub struct Options {
    /// Address and port for gRPC (port 0: any)
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,

    /// Path of a Unix socket for gRPC
    #[arg(long, value_name = "PATH")]
    pub unix: Option<PathBuf>,

    /// The environment's Python interpreter
    #[arg(long, value_name = "PATH")]
    pub python: PathBuf,

    /// The folder that the bundle was unpacked to
    #[arg(long, value_name = "DIR")]
    pub bundle: PathBuf,

    /// Number of Python processes; one per core is a good start
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = workers)]
    pub workers: usize,

    /// How long calls that were taken may go on after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub drain_secs: u64,

    /// How long a worker may take to load the bundle
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub start_secs: u64,

    /// No call is given longer than this, whatever its caller's deadline
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub deadline_max_secs: u64,

    /// A worker that has answered so many calls is replaced by a fresh one (0: never)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub worker_calls_max: u64,

    /// A worker with more memory than this is replaced by a fresh one (default: the machine's, less a
    /// tenth, divided by the workers)
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(16..1 << 30))]
    pub worker_memory_max_mib: Option<u64>,

    /// A folder with one file for each secret that functions may read through their context
    #[arg(long, value_name = "DIR")]
    pub secrets: Option<PathBuf>,

    /// Address and port for Prometheus, which reads /metrics there
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<SocketAddr>,

    /// The server group that this server belongs to, for its log lines
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,

    /// The instance that this server runs on, for its log lines
    #[arg(long, value_name = "ID")]
    pub instance: Option<String>,

    /// The user that user code runs as; takes root. It must be able to read the interpreter and the bundle
    #[arg(long, value_name = "NAME")]
    pub worker_user: Option<String>,

    /// Module path put before the interpreter's own
    #[arg(long, value_name = "DIR", hide = true)]
    pub python_path: Option<PathBuf>,

    /// A script that is run in the place of the SDK's worker
    #[arg(long, value_name = "PATH", hide = true)]
    pub worker_script: Option<PathBuf>,
}

/// More processes than this on one machine is a mistake of the caller.
const WORKERS_MAX: usize = 512;

fn workers(raw: &str) -> Result<usize, String> {
    match raw.parse() {
        Ok(count @ 1..=WORKERS_MAX) => Ok(count),
        _ => Err(format!("expected a number from 1 to {WORKERS_MAX}")),
    }
}
