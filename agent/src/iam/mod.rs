//! What the agent's role may do at AWS: one table of calls, and the two policies made of it. Pure; nothing here
//! is read while the agent runs.

pub mod calls;
mod command;
pub mod page;
pub mod parameters;
pub mod policy;

pub use command::{IamPolicyArgs, run};
