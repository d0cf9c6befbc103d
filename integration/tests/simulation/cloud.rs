//! AWS's side of a run: calls arrive, machines boot and die, nodes speak.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use outstation_aws_sim::model::credentials::{InstanceRole, Principal};
use outstation_aws_sim::model::group::LaunchTemplate;
use outstation_aws_sim::model::refresh::{Refresh, RefreshStatus};
use outstation_aws_sim::model::tracking::Patience;
use outstation_aws_sim::model::{AccessKeyId, Effect, ModelConfig};
use outstation_aws_sim::wire::faults::Fault;
use outstation_aws_sim::wire::query::Params;
use outstation_protocol::InstanceId;
use rand::Rng as _;

use crate::agent::Pid;
use crate::nodes::{Beat, Node};
use crate::tally;
use crate::wire::CallId;
use crate::world::{ACCOUNT, AGENT_KEY, AGENT_SECRET, Event, REGION, World};

/// A describe may be so old, and a call so long on its way.
const STALE_SECS: i64 = 20;
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
        let of = form.get("AutoScalingGroupName").unwrap_or_default();
        self.calls.push((self.now_millis, action.to_owned(), of.to_owned()));
        if action == "StartInstanceRefresh"
            && response.as_ref().is_none_or(|response| response.status().is_success())
        {
            self.check_refresh(&form);
        }
        if action == "SetInstanceHealth" {
            tally::REPLACED.fetch_add(1, Ordering::Relaxed);
        }
        if action == "CreateAutoScalingGroup" && self.cloud.sim.model.groups().count() > groups {
            self.oracle.created(&form);
        }
        if let Some(response) = response {
            crate::policy::check(&self.cloud.sim, &form, &response);
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

    /// AWS has taken a StartInstanceRefresh, unless it never came.
    fn check_refresh(&mut self, form: &Params) {
        let name = form.get("AutoScalingGroupName").unwrap_or_default();
        let Some(group) = self.cloud.sim.model.groups().find(|group| group.name.as_str() == name)
        else {
            return;
        };
        let Some(begun) = group.refreshes.front().filter(|begun| begun.started == self.aws_now())
        else {
            return;
        };
        tally::BEGUN.fetch_add(1, Ordering::Relaxed);
        let of =
            |refresh: &Refresh| refresh.desired.as_ref().map(|desired| desired.version.clone());
        // What failed is not tried again.
        let before = group.refreshes.iter().skip(1).find(|before| of(before).is_some());
        if let Some(before) = before.filter(|before| of(before) == of(begun)) {
            let failed = match before.status {
                RefreshStatus::Failed
                | RefreshStatus::RollbackFailed
                | RefreshStatus::RollbackSuccessful => true,
                RefreshStatus::Successful | RefreshStatus::Cancelled => false,
                status => panic!("{name}: a second refresh beside one that is {}", status.as_str()),
            };
            let seen = before
                .ended
                .is_some_and(|ended| begun.started - ended > time::Duration::seconds(STALE_SECS));
            assert!(!(failed && seen), "{name}: version {:?} is tried again", of(begun));
        }
        // Of one intent there is one. Another finds something to replace; or it was sent by what was so a moment ago, to
        // another agent, in an old describe, before somebody's hand, before the last old instance died.
        let refreshes = group.refreshes.iter().skip(1).filter_map(|before| before.ended);
        let activities = group.activities.iter().flat_map(|it| [Some(it.started), it.ended]);
        let is_late = refreshes
            .chain(activities.flatten())
            .any(|at| begun.started - at <= time::Duration::seconds(STALE_SECS));
        let differs = of(begun).is_some_and(|version| version != group.template.version);
        let is_stale =
            self.weather.aws.iter().any(|(fault, odds)| *fault == Fault::Stale && *odds > 0.0);
        let is_needed = begun.to_update > 0 || differs || is_late || is_stale || self.weather.hands;
        assert!(is_needed, "{name}: a refresh with nothing to replace");
    }

    /// Time passes for AWS.
    pub fn tick(&mut self) {
        let now = self.aws_now();
        for effect in self.cloud.sim.tick(now) {
            match effect {
                Effect::Launch { facts, user_data } => {
                    let node = Node::new(&facts);
                    let instance = node.instance.clone();
                    self.nodes.insert(instance.clone(), node);
                    let is_broken = user_data == BROKEN_VERSION.to_string();
                    let up = (self.calm || !self.random.random_bool(self.weather.boots_fail))
                        && !is_broken;
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
        if node.is_mute && !self.calm {
            if let Some((pid, session)) = node.forget_session() {
                let instance = instance.clone();
                self.after(SILENCE_MILLIS, Event::Lost { instance, pid, session });
            }
            return self.after(pause, Event::Beat { instance: instance.clone() });
        }
        node.is_ailing &= !self.calm;
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

/// The images that people choose from meanwhile; machines of the last of them never come up.
pub const BROKEN_VERSION: u32 = 4;
/// What the account has in the end, if images changed at all.
pub const FINAL_VERSION: u32 = 5;

fn template(version: u32) -> LaunchTemplate {
    LaunchTemplate {
        id: "lt-0123456789abcdef0".to_owned(),
        name: "outstation-node".to_owned(),
        version,
        image_id: "ami-0123456789abcdef0".to_owned(),
        instance_type: "c7i.large".to_owned(),
        user_data: version.to_string(),
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
        subnets: crate::policy::subnets(),
        role: InstanceRole {
            account: ACCOUNT.to_owned(),
            name: "outstation-node".to_owned(),
            id: "AROASIMULATEDNODE000".to_owned(),
        },
        net: Ipv4Addr::new(10, 83, 0, 0),
        boot_delay: Duration::ZERO,
        templates: (1..=FINAL_VERSION).map(template).collect(),
        patience: Patience { out: Duration::from_secs(30), back: Duration::from_secs(120) },
        hooks_hold_dead_instances: false,
        principals: vec![(AccessKeyId::from(AGENT_KEY.to_owned()), principal)],
        seed,
    }
}
