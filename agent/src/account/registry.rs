//! What the account agent knows of its nodes, from their own words. Pure: events in, answers out.
//! Survives a restart in `<state>/nodes.json`, so that callers keep their endpoints meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use outstation_protocol::status::{NodePhase, NodeStatus};
use outstation_protocol::v1::{Artifacts, NodeState};
use outstation_protocol::{GroupName, InstanceId};
use serde::{Deserialize, Serialize};

use super::plan::{Observed, ObservedInstance};

/// One session of one node; a newer one of the same node takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub group: GroupName,
    pub phase: NodePhase,
    pub endpoint: Option<SocketAddr>,
    pub artifacts: Option<Artifacts>,
    pub reason: Option<String>,
    pub since_unix_secs: u64,
    #[serde(skip)]
    session: Option<SessionId>,
    /// AWS had its instance and has it no more; its session may run on for a while.
    #[serde(skip)]
    gone_from_aws: bool,
    #[serde(skip)]
    seen_on_aws: bool,
    /// When its last session ended, while it has none.
    pub(super) lost_at_unix_secs: Option<u64>,
    /// It has served at some time: then its trouble is not its code's.
    #[serde(default)]
    pub(super) was_ready: bool,
}

/// A node without a session keeps its endpoint for so long: its server outlives its agent, and
/// callers notice a dead server by themselves.
const LOST_NODE_KEEPS_ENDPOINT_SECS: u64 = 60;

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    nodes: BTreeMap<InstanceId, NodeRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerEndpoint {
    pub instance: InstanceId,
    pub address: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateRefused {
    #[error("endpoint {endpoint:?} is not an address and port")]
    NotAnAddress { endpoint: String },
    #[error("endpoint {endpoint} is not on the node's own address {address}")]
    AnotherAddress { endpoint: SocketAddr, address: IpAddr },
}

impl Registry {
    /// As read back after a restart: nobody is connected yet, everybody was just lost.
    pub fn restore(json: &[u8], now_unix_secs: u64) -> serde_json::Result<Registry> {
        let mut registry: Registry = serde_json::from_slice(json)?;
        for node in registry.nodes.values_mut() {
            node.lost_at_unix_secs = Some(now_unix_secs);
        }
        Ok(registry)
    }

    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps of plain values always serialize")
    }

    pub fn hello(
        &mut self,
        instance: InstanceId,
        group: GroupName,
        session: SessionId,
        now_unix_secs: u64,
    ) {
        let node = self.nodes.entry(instance).or_insert_with(|| NodeRecord {
            group: group.clone(),
            phase: NodePhase::Booting,
            endpoint: None,
            artifacts: None,
            reason: None,
            since_unix_secs: now_unix_secs,
            session: None,
            gone_from_aws: false,
            seen_on_aws: false,
            lost_at_unix_secs: None,
            was_ready: false,
        });
        node.group = group;
        node.session = Some(session);
        node.lost_at_unix_secs = None;
    }

    /// The node's whole state, from `session`; an older session's word no longer counts.
    pub fn state(
        &mut self,
        instance: &InstanceId,
        session: SessionId,
        address: IpAddr,
        state: NodeState,
        now_unix_secs: u64,
    ) -> Result<(), StateRefused> {
        let Some(node) = self.nodes.get_mut(instance).filter(|n| n.session == Some(session)) else {
            return Ok(());
        };
        let endpoint = state
            .endpoint
            .map(|endpoint| match endpoint.parse::<SocketAddr>() {
                Err(_) => Err(StateRefused::NotAnAddress { endpoint }),
                Ok(parsed) if parsed.ip() != address => {
                    Err(StateRefused::AnotherAddress { endpoint: parsed, address })
                }
                Ok(parsed) => Ok(parsed),
            })
            .transpose()?;
        if node.phase != state.phase {
            node.since_unix_secs = now_unix_secs;
        }
        node.phase = state.phase;
        node.was_ready |= state.phase == NodePhase::Ready;
        node.endpoint = endpoint;
        node.artifacts = state.artifacts;
        node.reason = state.reason.map(|reason| reason.chars().take(300).collect());
        Ok(())
    }

    /// Nothing is in flight there any more.
    pub fn drained(&mut self, instance: &InstanceId, now_unix_secs: u64) {
        if let Some(node) = self.nodes.get_mut(instance) {
            if node.phase != NodePhase::Gone {
                node.since_unix_secs = now_unix_secs;
            }
            node.phase = NodePhase::Gone;
            node.endpoint = None;
        }
    }

    pub fn lost(&mut self, instance: &InstanceId, session: SessionId, now_unix_secs: u64) {
        if let Some(node) = self.nodes.get_mut(instance).filter(|n| n.session == Some(session)) {
            node.session = None;
            node.lost_at_unix_secs = Some(now_unix_secs);
        }
    }

    /// Forgets the nodes whose instances AWS no longer has. True if there were any.
    pub fn forget_missing(&mut self, observed: &Observed) -> bool {
        let present: BTreeSet<&InstanceId> =
            observed.values().flat_map(|group| group.instances.keys()).collect();
        let before = self.nodes.len();
        self.nodes.retain(|instance, node| {
            let is_present = present.contains(instance);
            node.gone_from_aws = node.seen_on_aws && !is_present;
            node.seen_on_aws |= is_present;
            // A node that has just said hello may be newer than the last look at AWS, and a look
            // may be older than it says.
            is_present || node.session.is_some()
        });
        self.nodes.len() != before
    }

    /// Where callers may send their requests. When no node at all is connected any more, the fault
    /// is more likely ours than theirs: then the last known ones stay.
    pub fn endpoints(&self, group: &GroupName, now_unix_secs: u64) -> Vec<CallerEndpoint> {
        let ready = || {
            let nodes = self.nodes.iter();
            nodes.filter(|(_, node)| node.group == *group && node.phase == NodePhase::Ready)
        };
        let endpoint = |(instance, node): (&InstanceId, &NodeRecord)| {
            let address = node.endpoint?;
            Some(CallerEndpoint { instance: instance.clone(), address })
        };
        let is_heard = |node: &NodeRecord| {
            node.lost_at_unix_secs
                .is_none_or(|at| now_unix_secs < at + LOST_NODE_KEEPS_ENDPOINT_SECS)
        };
        let heard: Vec<_> =
            ready().filter(|(_, node)| is_heard(node)).filter_map(endpoint).collect();
        if heard.is_empty() { ready().filter_map(endpoint).collect() } else { heard }
    }

    pub fn has_nodes_of(&self, group: &GroupName) -> bool {
        self.nodes.values().any(|node| node.group == *group)
    }

    pub fn is_anybody_heard(&self) -> bool {
        self.nodes.values().any(|node| node.session.is_some())
    }

    pub fn get(&self, instance: &InstanceId) -> Option<&NodeRecord> {
        self.nodes.get(instance)
    }

    /// What `instance` shall serve now. New artifacts go to one node first; when they serve there they
    /// go through the group batch by batch: a node gets them when enough of the others are done
    /// with theirs. A node that serves nothing yet gets them at once, or what the others serve as
    /// long as no node has shown that they do.
    pub fn artifacts_for(&self, instance: &InstanceId, wanted: &Artifacts) -> Artifacts {
        let Some(own) = self.nodes.get(instance) else {
            return wanted.clone();
        };
        let group = || self.nodes.values().filter(|node| node.group == own.group);
        let ready = || group().filter(|node| node.phase == NodePhase::Ready);
        let proven = ready().any(|node| node.artifacts.as_ref().is_some_and(|a| same(a, wanted)));
        let Some(serving) = &own.artifacts else {
            let others =
                ready().filter(|node| !node.gone_from_aws).find_map(|node| node.artifacts.as_ref());
            return others.filter(|_| !proven).unwrap_or(wanted).clone();
        };
        if same(serving, wanted) {
            return wanted.clone();
        }
        let serving_others: Vec<&InstanceId> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.group == own.group && node.phase == NodePhase::Ready)
            .filter(|(_, node)| node.artifacts.as_ref().is_some_and(|a| !same(a, wanted)))
            // One that is not there cannot take its turn and must not hold up the others.
            .filter(|(_, node)| node.session.is_some() && !node.gone_from_aws)
            .map(|(instance, _)| instance)
            .collect();
        let batch = if proven { (group().count() / 3).max(1) } else { 1 };
        let first_in_line = serving_others.iter().take(batch).any(|id| *id == instance);
        if first_in_line || own.phase != NodePhase::Ready {
            wanted.clone()
        } else {
            serving.clone()
        }
    }

    /// The nodes of a group for people: what AWS has, with what the nodes say of themselves.
    pub fn statuses(
        &self,
        group: &GroupName,
        instances: &BTreeMap<InstanceId, ObservedInstance>,
    ) -> Vec<NodeStatus> {
        instances
            .iter()
            .map(|(instance, observed)| match self.nodes.get(instance) {
                Some(node) if node.group == *group => NodeStatus {
                    instance: instance.clone(),
                    phase: node.phase,
                    endpoint: node.endpoint.map(|endpoint| endpoint.to_string()),
                    bundle: node.artifacts.as_ref().map(|artifacts| artifacts.bundle),
                    reason: match node.lost_at_unix_secs {
                        None => node.reason.clone(),
                        Some(_) => Some("its node agent is not connected".to_owned()),
                    },
                    since_unix_secs: node.since_unix_secs,
                },
                Some(_) | None => NodeStatus {
                    instance: instance.clone(),
                    phase: if observed.is_leaving() { NodePhase::Gone } else { NodePhase::Booting },
                    endpoint: None,
                    bundle: None,
                    reason: Some(format!("AWS says {}", observed.lifecycle)),
                    since_unix_secs: 0,
                },
            })
            .collect()
    }
}

/// The same content; the generation alone makes no difference to a server.
pub fn same(a: &Artifacts, b: &Artifacts) -> bool {
    (a.environment, a.bundle, &a.options) == (b.environment, b.bundle, &b.options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::plan::ObservedGroup;
    use crate::account::testing::group;
    use outstation_protocol::{Digest, Generation};

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 83, 0, 1));

    fn instance(n: u32) -> InstanceId {
        InstanceId::try_from(format!("i-{n:08x}")).expect("valid")
    }

    fn artifacts(bundle: &[u8]) -> Artifacts {
        Artifacts {
            generation: Generation(1),
            environment: Digest::of(b"env"),
            bundle: Digest::of(bundle),
            options: vec![],
        }
    }

    fn ready(bundle: &[u8]) -> NodeState {
        NodeState {
            phase: NodePhase::Ready,
            endpoint: Some(format!("{ADDRESS}:7400")),
            artifacts: Some(artifacts(bundle)),
            reason: None,
        }
    }

    fn with_nodes(count: u32) -> Registry {
        let mut registry = Registry::default();
        for n in 0..count {
            registry.hello(instance(n), group("a"), SessionId(1), 0);
            registry.state(&instance(n), SessionId(1), ADDRESS, ready(b"old"), 0).expect("own");
        }
        registry
    }

    #[test]
    fn only_ready_nodes_are_endpoints_and_a_lost_one_stays_for_a_while() {
        let mut registry = with_nodes(2);
        assert_eq!(registry.endpoints(&group("a"), 0).len(), 2);
        let draining = NodeState { phase: NodePhase::Draining, ..ready(b"old") };
        registry.state(&instance(0), SessionId(1), ADDRESS, draining, 5).expect("own");
        assert_eq!(registry.endpoints(&group("a"), 5).len(), 1, "draining: withdrawn");
        let ready_again = ready(b"old");
        registry.state(&instance(0), SessionId(1), ADDRESS, ready_again, 6).expect("own");
        registry.lost(&instance(1), SessionId(1), 10);
        assert_eq!(registry.endpoints(&group("a"), 69).len(), 2, "its server may live");
        assert_eq!(registry.endpoints(&group("a"), 70).len(), 1, "but not for ever");
        registry.lost(&instance(0), SessionId(1), 80);
        assert_eq!(registry.endpoints(&group("a"), 1000).len(), 2, "none is heard: all stay");
        assert_eq!(registry.endpoints(&group("b"), 5).len(), 0);
    }

    #[test]
    fn a_node_cannot_send_callers_to_another_address() {
        let mut registry = with_nodes(1);
        let elsewhere = NodeState { endpoint: Some("10.0.0.9:7400".to_owned()), ..ready(b"old") };
        let refused = registry.state(&instance(0), SessionId(1), ADDRESS, elsewhere, 1);
        assert!(matches!(refused, Err(StateRefused::AnotherAddress { .. })));
        let nonsense = NodeState { endpoint: Some("here".to_owned()), ..ready(b"old") };
        let refused = registry.state(&instance(0), SessionId(1), ADDRESS, nonsense, 1);
        assert!(matches!(refused, Err(StateRefused::NotAnAddress { .. })));
    }

    #[test]
    fn an_older_session_has_no_say() {
        let mut registry = with_nodes(1);
        registry.hello(instance(0), group("a"), SessionId(2), 3);
        let gone = NodeState { phase: NodePhase::Unhealthy, ..ready(b"old") };
        registry.state(&instance(0), SessionId(1), ADDRESS, gone, 4).expect("ignored");
        registry.lost(&instance(0), SessionId(1), 4);
        assert_eq!(registry.endpoints(&group("a"), 1000).len(), 1);
    }

    #[test]
    fn a_restart_forgets_no_endpoint() {
        let registry = with_nodes(3);
        let restored = Registry::restore(&registry.to_json(), 100).expect("own JSON");
        assert_eq!(restored.endpoints(&group("a"), 100), registry.endpoints(&group("a"), 100));
    }

    #[test]
    fn new_artifacts_go_through_a_group_batch_by_batch() {
        let mut registry = with_nodes(6);
        let wanted = artifacts(b"new");
        let told = |registry: &Registry| -> Vec<u32> {
            (0..6)
                .filter(|n| same(&registry.artifacts_for(&instance(*n), &wanted), &wanted))
                .collect()
        };
        assert_eq!(told(&registry), [0], "where they fail, they fail once");
        registry.state(&instance(0), SessionId(1), ADDRESS, ready(b"new"), 1).expect("own");
        assert_eq!(told(&registry), [0, 1, 2], "one is done, a third starts");
        for n in 1..6 {
            registry.state(&instance(n), SessionId(1), ADDRESS, ready(b"new"), 2).expect("own");
        }
        assert_eq!(told(&registry), [0, 1, 2, 3, 4, 5]);
        assert_eq!(registry.artifacts_for(&instance(99), &wanted), wanted, "a new node: at once");
    }

    #[test]
    fn a_new_node_gets_what_serves_as_long_as_the_new_does_not() {
        let mut registry = with_nodes(2);
        registry.hello(instance(7), group("a"), SessionId(3), 1);
        let wanted = artifacts(b"new");
        assert_eq!(registry.artifacts_for(&instance(7), &wanted), artifacts(b"old"));
        registry.state(&instance(0), SessionId(1), ADDRESS, ready(b"new"), 2).expect("own");
        assert_eq!(registry.artifacts_for(&instance(7), &wanted), wanted, "one has shown it");
        let mut registry = Registry::default();
        registry.hello(instance(7), group("a"), SessionId(3), 1);
        assert_eq!(registry.artifacts_for(&instance(7), &wanted), wanted, "nobody serves yet");
    }

    #[test]
    fn a_node_that_is_not_there_holds_up_nobody() {
        let mut registry = with_nodes(2);
        registry.lost(&instance(0), SessionId(1), 1);
        let wanted = artifacts(b"new");
        assert_eq!(registry.artifacts_for(&instance(1), &wanted), wanted);
    }

    #[test]
    fn a_node_whose_instance_is_gone_takes_no_turn_although_its_session_runs_on() {
        let mut registry = with_nodes(2);
        let aws = |instances: &[u32]| {
            let running = ObservedInstance { lifecycle: "InService".to_owned(), healthy: true };
            let observed = ObservedGroup {
                min: 2,
                max: 2,
                desired: 2,
                instances: instances.iter().map(|n| (instance(*n), running.clone())).collect(),
                ..ObservedGroup::default()
            };
            Observed::from([(group("a"), observed)])
        };
        let wanted = artifacts(b"new");
        registry.forget_missing(&aws(&[0, 1]));
        assert_eq!(registry.artifacts_for(&instance(1), &wanted), artifacts(b"old"), "its turn");
        registry.forget_missing(&aws(&[1]));
        assert_eq!(registry.artifacts_for(&instance(1), &wanted), wanted);
        // The look was a stale one: the node is still known, and takes its turn again.
        registry.forget_missing(&aws(&[0, 1]));
        assert_eq!(registry.artifacts_for(&instance(1), &wanted), artifacts(b"old"));
    }
}
