//! When a new instance counts as in service: while an image is rolled out, as soon as its node serves. AWS ends the next
//! old instance only then, so that the healthy share is one of nodes that work. Pure.

use outstation_protocol::InstanceId;
use outstation_protocol::status::NodePhase;

use super::plan::ObservedGroup;
use super::refresh::Rolling;
use super::registry::Registry;

pub const READY_HOOK: &str = "outstation-ready";
/// A node that has not come up after it is ended by AWS, and the refresh makes no progress: a dead account agent stops a
/// refresh rather than letting it go on blindly.
pub const READY_HEARTBEAT_SECS: i32 = 900;
/// Calls of one look and group; the next look goes on.
const ENTERING_MAX: usize = 10;

/// Instances whose launch AWS shall complete now. Nobody is kept waiting outside of a refresh.
pub fn entering(
    observed: &ObservedGroup,
    rolling: Option<&Rolling>,
    registry: &Registry,
) -> Vec<InstanceId> {
    let is_rolling = matches!(rolling, Some(Rolling::UnderWay { .. }));
    let waits = observed.instances.iter().filter(|(_, held)| held.lifecycle == "Pending:Wait");
    let serves =
        |id: &InstanceId| registry.get(id).is_some_and(|node| node.phase == NodePhase::Ready);
    waits
        .map(|(id, _)| id)
        .filter(|id| !is_rolling || serves(id))
        .take(ENTERING_MAX)
        .cloned()
        .collect()
}
