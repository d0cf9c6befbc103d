//! What is in `ami/image/`: the units and scripts as tools judge them, and a node as they start it, in a network
//! namespace with instance metadata of its own.

mod boot;
mod files;
mod instance;
mod node;
