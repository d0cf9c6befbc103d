//! The transform server: a gRPC front that passes request bytes through, a pure admission stage, and
//! Python worker processes that evaluate the functions of one bundle.

pub mod admission;
mod clock;
mod deadline;
mod frame;
mod health;
mod log_writer;
mod logs;
mod options;
mod pool;
mod reflection;
mod scan;
mod server;
mod service;
mod spawn;
mod supervise;
mod targets;

pub use frame::MESSAGE_BYTES_MAX;
pub use log_writer::LogWriter;
pub use options::Options;
pub use server::{Server, StartError};
pub use service::SERVICE;
