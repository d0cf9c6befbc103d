//! The broker as a whole: its store on a real disk, its listeners on real sockets.

mod admin;
mod enroll;
mod events;
mod harness;
mod process;
mod session;
mod store;
