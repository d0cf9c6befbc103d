//! Load on a transform server, as one thread of one core can make it: prepared requests over bare
//! HTTP/2, closed and open loop, latency from the intended moment of sending, the server's CPU.

pub mod bench;
pub mod client;
pub mod drive;
pub mod echo;
pub mod http1;
pub mod machine;
pub mod tally;
pub mod wire;
