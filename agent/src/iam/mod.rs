//! What the agent's role may do at AWS: one table of calls and one of the account store's operations, and the policies made of
//! them. Pure; nothing here
//! is read while the agent runs.

pub mod calls;
mod command;
pub mod page;
pub mod parameters;
pub mod policy;
pub mod store;

pub use command::{IamPolicyArgs, run};
