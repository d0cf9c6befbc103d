//! The gRPC surfaces, generated from `proto/`: the broker's admin API, the account agent's
//! endpoints for callers, and the transform servers' data path.

pub mod codec;
pub mod incoming;
pub mod scan;

pub mod admin {
    tonic::include_proto!("outstation.admin.v1");
}

pub mod callers {
    tonic::include_proto!("outstation.callers.v1");
}

pub mod transform {
    tonic::include_proto!("outstation.transform.v1");
}

/// Encoded `FileDescriptorSet` of everything above, for gRPC server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Metadata key with which a server says that it did not start a call: safe to repeat elsewhere.
pub const NOT_STARTED: &str = "outstation-not-started";
