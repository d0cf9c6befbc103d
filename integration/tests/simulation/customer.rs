//! Profile `scale-only`: the customer makes, changes and deletes the AutoScaling groups.

use outstation_agent::account::aws::DRAIN_HOOK;
use outstation_agent::account::scaling::TARGET_POLICY;
use outstation_aws_sim::model::group::{HookResult, Transition};
use outstation_aws_sim::model::policies::{
    Metric, PolicyRef, Predefined, PutPolicy, Tracked, Tracking,
};
use outstation_aws_sim::model::requests::{
    CreateGroup, GroupSettings, PutHook, TagSpec, TemplateSpec, UpdateGroup,
};
use outstation_aws_sim::model::{GroupName as AsgName, HookName, PolicyName};
use outstation_protocol::GroupName;
use outstation_protocol::model::{GroupSpec, Target};
use outstation_protocol::order::Intent;
use rand::Rng as _;

use crate::oracle::PREFIX;
use crate::people::GROUPS;
use crate::world::{REGION, TENANT, World, group};

fn asg_name(group: &GroupName) -> AsgName {
    AsgName::try_from(format!("{PREFIX}{group}")).expect("valid")
}

impl World {
    /// On a day like any other: a group appears or goes, bounds and counts move.
    pub fn the_customer_acts(&mut self) {
        let name = group(self.random.random_range(0..GROUPS));
        let max = self.random.random_range(1..8);
        let min = self.random.random_range(0..=max.min(2));
        match self.random.random_range(0..6) {
            0..3 => self.customer_makes(&name, min, max),
            3 => self.customer_bounds(&name, min, max),
            4 if self.weather.hands => {
                let nodes = self.random.random_range(0..6);
                self.somebody_sets(&name, nodes);
            }
            _ => self.customer_deletes(&name),
        }
    }

    /// In calm people do what the status asks them to.
    pub fn the_customer_obliges(&mut self) {
        let accepted: Vec<(GroupName, Intent)> = self
            .oracle
            .accepted
            .iter()
            .map(|(name, (order, _))| (name.clone(), order.intent.clone()))
            .collect();
        for (name, intent) in accepted {
            match intent {
                Intent::Destroy => {
                    self.customer_bounds(&name, 0, 8);
                    self.customer_deletes(&name);
                }
                Intent::Apply(spec) => {
                    let (min, max) = (spec.scaling.nodes_min(), spec.scaling.nodes_max());
                    self.customer_makes(&name, min, max);
                    self.customer_bounds(&name, min, max);
                    self.customer_tracks(&name, &spec);
                }
            }
        }
    }

    fn customer_makes(&mut self, group: &GroupName, min: u32, max: u32) {
        let name = asg_name(group);
        let tag = |key: &str, value: &str| TagSpec {
            group: Some(name.to_string()),
            resource_type: Some("auto-scaling-group".to_owned()),
            key: key.to_owned(),
            value: Some(value.to_owned()),
            propagate: true,
        };
        let hook = PutHook {
            group: name.clone(),
            hook: HookName::try_from(DRAIN_HOOK.to_owned()).expect("valid"),
            transition: Some(Transition::Terminating),
            heartbeat: Some(std::time::Duration::from_secs(90)),
            default_result: Some(HookResult::Continue),
            metadata: None,
        };
        let call = CreateGroup {
            settings: GroupSettings {
                template: Some(TemplateSpec {
                    name: Some("outstation-node".to_owned()),
                    version: Some("1".to_owned()),
                    id: None,
                }),
                min: Some(min),
                max: Some(max),
                zones: Some(vec![format!("{REGION}a"), format!("{REGION}b")]),
                ..GroupSettings::default()
            },
            tags: vec![tag("outstation:tenant", TENANT), tag("outstation:group", group.as_str())],
            hooks: vec![hook],
            name: name.clone(),
        };
        let now = self.aws_now();
        if self.cloud.sim.model.create_group(call, now).is_ok() {
            self.note(format_args!("the customer makes {name} {min}..{max}"));
            self.tick();
        }
    }

    fn customer_bounds(&mut self, group: &GroupName, min: u32, max: u32) {
        let settings = GroupSettings { min: Some(min), max: Some(max), ..GroupSettings::default() };
        let call = UpdateGroup { name: asg_name(group), settings };
        if self.cloud.sim.model.update_group(call).is_ok() {
            self.note(format_args!("the customer gives {group} {min}..{max}"));
            self.tick();
        }
    }

    /// Without force: as long as it has instances AWS refuses.
    fn customer_deletes(&mut self, group: &GroupName) {
        let now = self.aws_now();
        if self.cloud.sim.model.delete_group(&asg_name(group), false, now).is_ok() {
            self.note(format_args!("the customer deletes {group}"));
        }
    }

    fn customer_tracks(&mut self, group: &GroupName, spec: &GroupSpec) {
        let name = asg_name(group);
        let policy = PolicyName::try_from(TARGET_POLICY.to_owned()).expect("valid");
        let tracking = match spec.scaling.target() {
            None => {
                let call = PolicyRef { group: Some(name), policy: policy.to_string() };
                let _ = self.cloud.sim.model.delete_policy(&call);
                return;
            }
            Some(Target::Cpu { percent }) => Tracking {
                tracked: Tracked::Predefined(Predefined::AverageCpuUtilization),
                target: percent.get(),
                disable_scale_in: false,
            },
            Some(Target::Metric { namespace, name, statistic, dimensions, value }) => Tracking {
                tracked: Tracked::Customized {
                    metric: Metric {
                        namespace: namespace.clone(),
                        name: name.clone(),
                        dimensions: dimensions.clone(),
                    },
                    statistic: statistic.as_str().to_owned(),
                    unit: None,
                },
                target: value.get(),
                disable_scale_in: false,
            },
        };
        let has = self.cloud.sim.model.groups().any(|group| {
            group.name == name
                && group.policies.get(&policy).is_some_and(|has| has.tracking == tracking)
        });
        if !has {
            let call =
                PutPolicy { group: name, policy, tracking, enabled: true, warmup_secs: None };
            let _ = self.cloud.sim.model.put_policy(call);
        }
    }
}
