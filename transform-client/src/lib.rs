//! The balanced client of transform servers: a set of endpoints in, calls spread over it. A call is
//! repeated only when it is certain that no server has started it.

mod backoff;
pub mod balance;
mod client;
mod clock;
mod connection;
mod errors;
mod source;
pub mod throttle;
mod verdict;

pub use balance::{Endpoint, EndpointView, Phase};
pub use client::{Client, Config, EndpointUsed};
pub use source::{Agent, EndpointSource, SourceError, Token};
