//! The instances of the simulation: machines that boot, and the node agent on each as the account
//! agent sees it.

use std::net::{IpAddr, SocketAddr};

use outstation_agent::account::registry::SessionId;
use outstation_agent::account::shared::Shared;
use outstation_aws_sim::model::InstanceFacts;
use outstation_protocol::status::NodePhase;
use outstation_protocol::v1::{Artifacts, NodeState};
use outstation_protocol::{GroupName, InstanceId};

use crate::agent::Pid;

pub struct Node {
    pub instance: InstanceId,
    pub group: GroupName,
    address: IpAddr,
    pub up: bool,
    pub leaving: bool,
    /// Its server does not work, and it says so.
    pub is_ailing: bool,
    /// Its node agent says nothing.
    pub is_mute: bool,
    withdrawn: bool,
    serving: Option<Artifacts>,
    warming: Option<(Artifacts, u64)>,
    session: Option<(Pid, SessionId)>,
}

/// What the node wants of its account agent after a beat.
pub enum Beat {
    Quiet,
    Busy,
    Drained,
}

/// Import of the user's functions.
const WARM_MILLIS: u64 = 1500;

impl Node {
    pub fn new(facts: &InstanceFacts) -> Node {
        let tag = |key: &str| facts.tags.get(key).cloned().unwrap_or_default();
        Node {
            instance: InstanceId::try_from(facts.instance_id.as_str()).expect("a valid id"),
            group: GroupName::try_from(tag("outstation:group")).expect("tagged at launch"),
            address: facts.address.into(),
            up: false,
            leaving: false,
            is_ailing: false,
            is_mute: false,
            withdrawn: false,
            serving: None,
            warming: None,
            session: None,
        }
    }

    pub fn serves(&self) -> Option<&Artifacts> {
        self.serving.as_ref()
    }

    pub fn forget_session(&mut self) -> Option<(Pid, SessionId)> {
        self.session.take()
    }

    pub fn session(&self) -> Option<(Pid, SessionId)> {
        self.session
    }

    /// A heartbeat to whichever account agent answers, as the two ends of the node link do it.
    pub fn beat(&mut self, agent: Pid, shared: &Shared, now_millis: u64, fresh: u64) -> Beat {
        let unix = shared.clock.unix_secs();
        let wanted = shared.artifacts_for(&self.instance, &self.group);
        let session = match self.session {
            Some((pid, session)) if pid == agent => session,
            Some(_) | None => {
                if wanted.is_none() && self.serving.is_none() {
                    return Beat::Busy; // Turned away: the group is not ordered here.
                }
                let session = SessionId(fresh);
                let (instance, group) = (self.instance.clone(), self.group.clone());
                shared.update_registry(|registry| registry.hello(instance, group, session, unix));
                self.session = Some((agent, session));
                session
            }
        };
        if self.leaving && self.withdrawn {
            shared.update_registry(|registry| registry.drained(&self.instance, unix));
            return Beat::Drained;
        }
        self.withdrawn = self.leaving;
        if !self.leaving {
            self.follow(wanted, now_millis);
        }
        let phase = match (self.leaving, &self.serving) {
            (true, _) => NodePhase::Draining,
            (false, _) if self.is_ailing => NodePhase::Unhealthy,
            (false, Some(_)) => NodePhase::Ready,
            (false, None) => NodePhase::Warming,
        };
        let endpoint =
            self.serving.as_ref().map(|_| SocketAddr::new(self.address, 7400).to_string());
        let artifacts = self.serving.clone();
        let state = NodeState { phase, endpoint, artifacts, reason: None };
        let told = shared.update_registry(|registry| {
            registry.state(&self.instance, session, self.address, state, unix)
        });
        told.expect("its own address");
        if self.leaving || self.warming.is_some() || self.serving.is_none() {
            Beat::Busy
        } else {
            Beat::Quiet
        }
    }

    fn follow(&mut self, wanted: Option<Artifacts>, now_millis: u64) {
        if let Some((warm, at)) = &self.warming
            && now_millis >= *at
        {
            self.serving = Some(warm.clone());
            self.warming = None;
        }
        if let Some(wanted) = wanted
            && self.serving.as_ref() != Some(&wanted)
            && self.warming.as_ref().is_none_or(|(warm, _)| *warm != wanted)
        {
            self.warming = Some((wanted, now_millis + WARM_MILLIS));
        }
    }
}
