//! The account's own trust domain: the CA that lives in the account store, the STS evidence with
//! which nodes enroll, and the TLS of the node link. Nothing here knows the broker.

pub mod ca;
pub mod enroll;
pub mod files;
pub mod resets;
pub mod spiffe;
pub mod sts_client;
#[cfg(test)]
pub mod testing;
pub mod tls;

pub use ca::DataPlaneCa;
pub use spiffe::NodeId;
