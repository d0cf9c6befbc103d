//! The transform server: a gRPC front that passes request bytes through, a pure admission stage, and
//! Python worker processes that evaluate the functions of one bundle.

pub mod admission;
mod backoff;
mod clock;
mod connection;
mod deadline;
mod frame;
mod health;
mod log_writer;
mod logs;
mod marks;
mod metrics;
mod options;
mod parent;
mod pool;
mod process;
mod queue;
mod reflection;
mod reply;
mod routed;
mod scrape;
mod server;
mod service;
mod shares;
mod spawn;
mod status;
mod supervise;
mod talk;
mod targets;

pub use frame::MESSAGE_BYTES_MAX;
pub use log_writer::LogWriter;
pub use options::Options;
pub use parent::{Missing, SandboxReport};
pub use server::{Server, StartError};
pub use service::SERVICE;
pub use spawn::{WorkerMode, Workers};
