//! AWS's side of a run: calls arrive, machines boot and die, nodes speak.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use outstation_aws_sim::model::credentials::{InstanceRole, Principal};
use outstation_aws_sim::model::group::LaunchTemplate;
use outstation_aws_sim::model::tracking::Patience;
use outstation_aws_sim::model::{AccessKeyId, Effect, ModelConfig};
use outstation_aws_sim::wire::faults::Fault;
use outstation_aws_sim::wire::query::Params;
use outstation_protocol::InstanceId;
use rand::Rng as _;

use crate::agent::Pid;
use crate::nodes::{Beat, Node};
use crate::wire::CallId;
use crate::world::{ACCOUNT, AGENT_KEY, AGENT_SECRET, Event, REGION, World};

/// The node link notices that a node is gone.
const SILENCE_MILLIS: u64 = 20_000;

impl World {
    pub fn aws_call(
        &mut self,
        pid: Pid,
        call: CallId,
        request: &http::Request<Bytes>,
        fault: Option<Fault>,
    ) {
        let now = self.aws_now();
        let groups = self.cloud.sim.model.groups().count();
        let response = self.cloud.handle(request, now, fault);
        let form = Params::parse(&String::from_utf8_lossy(request.body()));
        let action = form.get("Action").unwrap_or_default();
        if action == "CreateAutoScalingGroup" && self.cloud.sim.model.groups().count() > groups {
            self.oracle.created(&form);
        }
        if let Some(response) = response {
            if !action.starts_with("Describe") {
                self.note(format_args!("AWS: {action} {}", response.status().as_u16()));
            }
            let late = if self.calm {
                5
            } else {
                self.random.random_range(0..=self.weather.aws_latency_max_millis)
            };
            self.after(late, Event::AwsReply { pid, call, response });
        }
        self.tick();
    }

    /// Time passes for AWS.
    pub fn tick(&mut self) {
        let now = self.aws_now();
        for effect in self.cloud.sim.tick(now) {
            match effect {
                Effect::Launch { facts, user_data: _ } => {
                    let node = Node::new(&facts);
                    let instance = node.instance.clone();
                    self.nodes.insert(instance.clone(), node);
                    let up = self.calm || !self.random.random_bool(self.weather.boots_fail);
                    let late = self.random.random_range(500..4000);
                    self.after(late, Event::Machine { instance, up });
                }
                Effect::Update { facts } => {
                    let instance = facts.instance_id.as_str();
                    let node =
                        self.nodes.values_mut().find(|node| node.instance.as_str() == instance);
                    if let Some(node) = node {
                        node.leaving = facts.target_lifecycle_state == "Terminated";
                    }
                }
                Effect::Shutdown { instance } => {
                    let instance = InstanceId::try_from(instance.as_str()).expect("a valid id");
                    self.after(1000, Event::Machine { instance, up: false });
                }
            }
        }
        if self.weather.aws.iter().any(|(fault, odds)| *fault == Fault::Stale && *odds > 0.0) {
            self.cloud.remember(now);
        }
    }

    pub fn machine(&mut self, instance: &InstanceId, up: bool) {
        let id = outstation_aws_sim::model::InstanceId::try_from(instance.as_str().to_owned())
            .expect("a valid id");
        if up {
            let Some(node) = self.nodes.get_mut(instance) else { return };
            node.up = true;
            self.cloud.sim.model.instance_running(&id);
            self.after(1, Event::Beat { instance: instance.clone() });
        } else {
            let gone = self.nodes.remove(instance).and_then(|node| node.session());
            if let Some((pid, session)) = gone {
                let instance = instance.clone();
                self.after(SILENCE_MILLIS, Event::Lost { instance, pid, session });
            }
            self.cloud.sim.model.instance_dead(&id);
        }
        self.tick();
    }

    pub fn beat(&mut self, instance: &InstanceId) {
        let now = self.now_millis;
        self.numbers += 1;
        let fresh = self.numbers;
        let Some(node) = self.nodes.get_mut(instance).filter(|node| node.up) else { return };
        let mut pause = self.setup.beat_millis;
        if let Some(agent) = self.agents.values_mut().next() {
            match node.beat(agent.pid, &agent.shared, now, fresh) {
                Beat::Quiet => {}
                Beat::Busy => pause = 1000,
                Beat::Drained => {
                    pause = 5000;
                    if let Some(asg_name) = agent.shared.asg_name(&node.group) {
                        agent.complete_drain(instance.clone(), asg_name);
                    }
                }
            }
        }
        self.after(pause, Event::Beat { instance: instance.clone() });
    }
}

pub fn config(seed: u64) -> ModelConfig {
    let principal = Principal {
        secret_access_key: AGENT_SECRET.to_owned(),
        session_token: Some("sim".to_owned()),
        arn: format!("arn:aws:sts::{ACCOUNT}:assumed-role/outstation-agent/sim"),
        user_id: "AROASIMULATEDAGENT00:sim".to_owned(),
        expires: None,
    };
    ModelConfig {
        account: ACCOUNT.to_owned(),
        region: REGION.to_owned(),
        zones: vec![format!("{REGION}a"), format!("{REGION}b")],
        subnets: BTreeMap::new(),
        role: InstanceRole {
            account: ACCOUNT.to_owned(),
            name: "outstation-node".to_owned(),
            id: "AROASIMULATEDNODE000".to_owned(),
        },
        net: Ipv4Addr::new(10, 83, 0, 0),
        boot_delay: Duration::ZERO,
        templates: vec![LaunchTemplate {
            id: "lt-0123456789abcdef0".to_owned(),
            name: "outstation-node".to_owned(),
            version: 1,
            image_id: "ami-0123456789abcdef0".to_owned(),
            instance_type: "c7i.large".to_owned(),
            user_data: String::new(),
        }],
        patience: Patience { out: Duration::from_secs(30), back: Duration::from_secs(120) },
        hooks_hold_dead_instances: false,
        principals: vec![(AccessKeyId::from(AGENT_KEY.to_owned()), principal)],
        seed,
    }
}
