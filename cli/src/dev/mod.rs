//! `outstation dev`: the whole system on one machine, with an example applied and driven.

pub mod command;
pub mod departures;
mod iam;
pub mod layout;
pub mod load;
pub mod report;
pub mod services;
mod sim;
pub mod slot;
pub mod system;

pub use iam::Judged;
pub use layout::{Detours, DevGuardrails};
pub use sim::{Sim, SimGroup, SimInstance};
pub use slot::Slot;
pub use system::{DevOptions, DevSystem, ServiceName};
