//! The links of Outstation: ids, validated model types, frozen wire messages, framing, and both
//! ends of the session as state machines. No sockets, no clocks, no AWS: every input is a value.

pub mod envelope;
pub mod environment;
pub mod evidence;
pub mod frame;
pub mod ids;
pub mod model;
pub mod order;
pub mod session;
pub mod signing;
pub mod status;
pub mod v1;

pub use envelope::Envelope;
pub use ids::{
    AccountId, AgentId, Digest, EnvironmentName, Generation, GroupName, InstanceId, Region,
    TenantId,
};
pub use model::DataPlane;
