//! The agent: one binary, two roles. `account` reconciles the groups of one data plane and is
//! what its nodes and callers talk to; `node` runs on each instance and supervises its server.

pub mod account;
pub mod clock;
pub mod frames;
pub mod hint;
pub mod iam;
pub mod node;
pub mod store;
mod tags;
pub mod trust;
