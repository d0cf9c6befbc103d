//! What people do meanwhile: apply, destroy, edit the guardrails, turn knobs by hand in AWS.

use std::collections::BTreeMap;
use std::time::Duration;

use outstation_agent::account::aws::DRAIN_HOOK;
use outstation_agent::account::entry::READY_HOOK;
use outstation_agent::account::guardrails::DestroyPolicy;
use outstation_agent::account::scaling::TARGET_POLICY;
use outstation_aws_sim::model::HookName;
use outstation_aws_sim::model::policies::{Metric, PolicyRef, Reading};
use outstation_aws_sim::model::refresh::Preferences;
use outstation_aws_sim::model::requests::{
    GroupSettings, PutHook, StartRefresh, TagSpec, UpdateGroup,
};
use outstation_broker::store::orders::PutVerdict;
use outstation_protocol::model::{
    EnvironmentRef, GroupKind, GroupSpec, Scaling, Statistic, Target, TargetValue,
};
use outstation_protocol::order::{Intent, Order};
use outstation_protocol::{Digest, EnvironmentName, Generation, GroupName, TenantId};
use rand::Rng as _;

use crate::cloud::BROKEN_VERSION;
use crate::oracle::{PREFIX, Rules};
use crate::world::{REGION, TENANT, World, data_plane, group};

pub const GROUPS: usize = 3;
const WEEK_SECS: u64 = 7 * 24 * 3600;

/// What was last wanted of each group; `None`: to be gone.
pub struct People {
    pub wanted: BTreeMap<GroupName, Option<GroupSpec>>,
}

impl People {
    pub fn new() -> People {
        People { wanted: BTreeMap::new() }
    }
}

pub fn spec(nodes: u32, bundle: u8, prevent_destroy: bool) -> GroupSpec {
    GroupSpec {
        kind: GroupKind::Transform,
        scaling: Scaling::Provisioned { desired_nodes: nodes },
        environment: EnvironmentRef {
            name: EnvironmentName::try_from("env").expect("valid"),
            digest: Digest::of(b"environment"),
        },
        bundle: Digest::of(&[bundle]),
        owner: None,
        description: None,
        tags: BTreeMap::new(),
        prevent_destroy,
        options: BTreeMap::new(),
    }
}

impl World {
    pub fn people_act(&mut self) {
        if self.weather.approvals && self.random.random_bool(0.3) {
            return self.somebody_approves();
        }
        match self.random.random_range(0..13) {
            0..6 => {
                let name = group(self.random.random_range(0..GROUPS));
                let (nodes, bundle) =
                    (self.random.random_range(0..8), self.random.random_range(0..3));
                let protected = self.random.random_bool(0.1);
                let mut wanted = spec(nodes, bundle, protected);
                if self.weather.autoscaling && self.random.random_bool(0.5) {
                    wanted.scaling = self.some_autoscaling();
                }
                self.apply(&name, Some(wanted));
            }
            6 => {
                let name = group(self.random.random_range(0..GROUPS));
                if self.people.wanted.get(&name).is_some_and(Option::is_some) {
                    self.apply(&name, None);
                }
            }
            7 if self.weather.guardrail_edits => {
                let rules = Rules {
                    valid: self.random.random_bool(0.8),
                    pause: self.random.random_bool(0.2),
                    destroy: match (self.random.random_bool(0.7), self.weather.approvals) {
                        (false, _) => DestroyPolicy::Never,
                        (true, false) => DestroyPolicy::Allow,
                        (true, true) if self.random.random_bool(0.2) => DestroyPolicy::Allow,
                        (true, true) => DestroyPolicy::Approve,
                    },
                    nodes_per_group_max: self.random.random_range(1..7),
                    nodes_total_max: self.random.random_range(4..12),
                    changes_per_hour: match self.weather.change_rate {
                        true => Some(self.random.random_range(2..7)),
                        false => None,
                    },
                    ..self.rules
                };
                self.set_rules(rules);
            }
            12 if self.weather.images => {
                let version = self.random.random_range(1..=BROKEN_VERSION);
                self.set_rules(Rules { version, ..self.rules });
            }
            11 if self.weather.images && self.weather.hands => self.meddle_with_a_refresh(),
            8 | 9 if self.setup.scale_only => self.the_customer_acts(),
            8 | 9 if self.weather.hands => self.turn_a_knob(),
            10 if self.weather.autoscaling => self.load_changes(),
            _ => {}
        }
    }

    /// Of what waits for it, or of something else; or takes it back.
    fn somebody_approves(&mut self) {
        let name = group(self.random.random_range(0..GROUPS));
        let Some((order, digest)) = self.oracle.accepted.get(&name).cloned() else { return };
        if !order.is_tombstone() && self.random.random_bool(0.4) {
            return self.apply(&name, None);
        }
        let (right, older) = ((order.generation, digest), Generation(order.generation.0 - 1));
        let odds = self.random.random_range(0..10);
        let (approved, who) = match odds {
            0 => return self.approve(&name, None, ""),
            1 => ((older, digest), "ann"),
            2 => ((order.generation, Digest::of(b"another order")), "ann"),
            3 => (right, ""),
            4 => ((order.generation.next(), digest), "ann"),
            _ => (right, "ann"),
        };
        self.approve(&name, Some(approved), who);
    }

    /// Writes the file; without a name it is none.
    pub fn approve(&mut self, group: &GroupName, of: Option<(Generation, Digest)>, who: &str) {
        let folder = self.store().join("guardrails/approvals");
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join(format!("{group}.json"));
        match of {
            None => drop(std::fs::remove_file(&path)),
            Some((generation, digest)) => {
                let text = format!(
                    r#"{{"group":"{group}","generation":{generation},"digest":"{digest}","who":"{who}"}}"#
                );
                std::fs::write(&path, text).expect("written");
            }
        }
        match of.filter(|_| !who.is_empty()) {
            Some(of) => drop(self.oracle.approved.insert(group.clone(), of)),
            None => drop(self.oracle.approved.remove(group)),
        }
        self.note(format_args!("{who:?} approves {group}: {:?}", of.map(|(of, _)| of)));
        for agent in self.agents.values() {
            let _ = agent.shared.refresh_guardrails();
        }
    }

    /// Everything that waits for it.
    pub fn approve_all(&mut self) {
        let accepted = self.oracle.accepted.clone();
        for (name, (order, digest)) in accepted {
            let right = (order.generation, digest);
            if order.is_tombstone() && self.oracle.approved.get(&name) != Some(&right) {
                self.approve(&name, Some(right), "ann");
            }
        }
    }

    fn some_autoscaling(&mut self) -> Scaling {
        let min_nodes = self.random.random_range(0..3);
        let max_nodes = self.random.random_range(min_nodes.max(1)..8);
        let value = TargetValue::try_from(f64::from(self.random.random_range(5..9) * 10));
        let value = value.expect("valid");
        let target = if min_nodes > 0 && self.random.random_bool(0.5) {
            Target::Cpu { percent: value }
        } else {
            Target::Metric {
                namespace: "Queue".to_owned(),
                name: "Depth".to_owned(),
                statistic: Statistic::Average,
                dimensions: [("queue".to_owned(), "a".to_owned())].into(),
                value,
            }
        };
        Scaling::Autoscaling { min_nodes, max_nodes, target }
    }

    /// The load of a group changes, and what its policies look at.
    fn load_changes(&mut self) {
        let name = group(self.random.random_range(0..GROUPS));
        let asg_name = format!("{PREFIX}{name}");
        let dimension = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
        let metric = if self.random.random_bool(0.5) {
            Metric {
                namespace: "AWS/EC2".to_owned(),
                name: "CPUUtilization".to_owned(),
                dimensions: dimension("AutoScalingGroupName", &asg_name),
            }
        } else {
            Metric {
                namespace: "Queue".to_owned(),
                name: "Depth".to_owned(),
                dimensions: dimension("queue", "a"),
            }
        };
        let load = f64::from(self.random.random_range(0..500));
        self.note(format_args!("load of {name}: {load}"));
        self.cloud.sim.model.set_metric(metric, Some(Reading::Total(load)));
    }

    /// As the CLI does it: the next generation, after whatever the broker says is the newest.
    pub fn apply(&mut self, name: &GroupName, wanted: Option<GroupSpec>) {
        let unix_secs = self.unix_secs();
        let short = !self.calm && self.random.random_bool(0.1);
        let Some(broker) = &mut self.broker else { return };
        let newest = broker.group(name);
        if newest.is_none() && wanted.is_none() {
            return;
        }
        let order = Order {
            tenant: TenantId::try_from(TENANT).expect("valid"),
            data_plane: data_plane(),
            group: name.clone(),
            generation: newest.as_ref().map_or(Generation::FIRST, |group| group.generation.next()),
            parent: newest.map(|group| group.digest),
            accept_before_unix_secs: unix_secs + if short { 20 } else { WEEK_SECS },
            intent: wanted.clone().map_or(Intent::Destroy, Intent::Apply),
        };
        let generation = order.generation;
        let verdict = broker.put(order, unix_secs);
        assert_eq!(verdict, PutVerdict::Stored, "nobody else puts orders");
        let nodes = wanted.as_ref().map(|spec| spec.scaling.nodes_max());
        self.note(format_args!("apply {name} {generation}: {nodes:?}"));
        self.people.wanted.insert(name.clone(), wanted);
    }

    /// Somebody with a console.
    fn turn_a_knob(&mut self) {
        let name = group(self.random.random_range(0..GROUPS));
        if self.random.random_bool(0.7) {
            let nodes = self.random.random_range(0..6);
            return self.somebody_sets(&name, nodes);
        }
        let asg_name = format!("{PREFIX}{name}");
        if self.random.random_bool(0.3) {
            let group = outstation_aws_sim::model::GroupName::try_from(asg_name).ok();
            let policy = PolicyRef { group, policy: TARGET_POLICY.to_owned() };
            if self.cloud.sim.model.delete_policy(&policy).is_ok() {
                self.note(format_args!("by hand: the policy of {name} is deleted"));
            }
            return;
        }
        if self.random.random_bool(0.1) {
            return self.somebody_moves_or_unhooks(&name);
        }
        let tag = TagSpec {
            group: Some(asg_name.clone()),
            resource_type: Some("auto-scaling-group".to_owned()),
            key: "outstation:bundle".to_owned(),
            value: Some("by hand".to_owned()),
            propagate: true,
        };
        if self.cloud.sim.model.put_tags(vec![tag]).is_ok() {
            self.note(format_args!("by hand: a tag of {name}"));
            self.tick();
        }
    }

    /// Somebody with a console who knows about instance refreshes.
    fn meddle_with_a_refresh(&mut self) {
        let name = group(self.random.random_range(0..GROUPS));
        let asg_name = outstation_aws_sim::model::GroupName::try_from(format!("{PREFIX}{name}"));
        let asg_name = asg_name.expect("valid");
        let now = self.aws_now();
        let model = &mut self.cloud.sim.model;
        let done = match self.random.random_range(0..3) {
            0 => model.cancel_refresh(&asg_name, true, now),
            1 => model.rollback_refresh(&asg_name, now),
            _ => {
                let call = StartRefresh {
                    group: asg_name,
                    desired: None,
                    preferences: Preferences::default(),
                };
                model.start_refresh(call, now)
            }
        };
        if done.is_ok() {
            self.note(format_args!("by hand: the refresh of {name}"));
            self.tick();
        }
    }

    /// Another zone, no drain hook, or one that ends instances at once.
    fn somebody_moves_or_unhooks(&mut self, group: &GroupName) {
        let name = outstation_aws_sim::model::GroupName::try_from(format!("{PREFIX}{group}"));
        let name = name.expect("valid");
        let hook = HookName::try_from(DRAIN_HOOK.to_owned()).expect("valid");
        let model = &mut self.cloud.sim.model;
        // A hook is looked at once in half an hour, which is a long run.
        let (what, done) = match self.random.random_range(0..20) {
            2 => {
                let ready = HookName::try_from(READY_HOOK.to_owned()).expect("valid");
                ("the ready hook is deleted", model.delete_hook(&name, &ready))
            }
            0 => ("the drain hook is deleted", model.delete_hook(&name, &hook)),
            1 => {
                let call = PutHook {
                    group: name,
                    hook,
                    transition: None,
                    heartbeat: Some(Duration::from_secs(30)),
                    default_result: None,
                    metadata: None,
                };
                ("the drain hook is shorter", model.put_hook(call))
            }
            _ => {
                let zones = Some(vec![format!("{REGION}a")]);
                let settings = GroupSettings { zones, ..GroupSettings::default() };
                ("one zone only", model.update_group(UpdateGroup { name, settings }))
            }
        };
        if done.is_ok() {
            self.note(format_args!("by hand: {what}, {group}"));
            self.tick();
        }
    }

    pub fn somebody_sets(&mut self, group: &GroupName, nodes: u32) {
        let name = outstation_aws_sim::model::GroupName::try_from(format!("{PREFIX}{group}"));
        let settings = GroupSettings {
            min: Some(nodes.min(1)),
            max: Some(nodes),
            desired: Some(nodes),
            ..GroupSettings::default()
        };
        let call = UpdateGroup { name: name.expect("valid"), settings };
        if self.cloud.sim.model.update_group(call).is_ok() {
            self.note(format_args!("by hand: {nodes} nodes of {group}"));
            self.tick();
        }
    }
}
