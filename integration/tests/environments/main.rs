//! Environments from the CLI to the node: what is tampered with never serves, what crashes leave is found, and a
//! new one goes through a group without a call noticing, or stops at its first node.

mod crash;
mod machine;
mod rolling;
mod tamper;
mod throughput;
