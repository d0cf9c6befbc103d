//! Scaling policies: target tracking, put, described and deleted. What they do with time is in `tracking`.

use std::collections::BTreeMap;

use time::OffsetDateTime;

use super::describe::{Paged, paged};
use super::group::Group;
use super::names::{GroupName, PolicyName};
use super::random::Ids;
use super::requests::Page;
use super::{AwsError, Code, Model, POLICIES_MAX};

/// A metric of CloudWatch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Metric {
    pub namespace: String,
    pub name: String,
    pub dimensions: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Predefined {
    AverageCpuUtilization,
    AverageCpuUtilizationHighResolution,
    AverageNetworkIn,
    AverageNetworkOut,
}

impl Predefined {
    pub const ALL: [Predefined; 4] = [
        Predefined::AverageCpuUtilization,
        Predefined::AverageCpuUtilizationHighResolution,
        Predefined::AverageNetworkIn,
        Predefined::AverageNetworkOut,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Predefined::AverageCpuUtilization => "ASGAverageCPUUtilization",
            Predefined::AverageCpuUtilizationHighResolution => {
                "ASGAverageCPUUtilizationHighResolution"
            }
            Predefined::AverageNetworkIn => "ASGAverageNetworkIn",
            Predefined::AverageNetworkOut => "ASGAverageNetworkOut",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Predefined::AverageCpuUtilization | Predefined::AverageCpuUtilizationHighResolution => {
                "CPUUtilization"
            }
            Predefined::AverageNetworkIn => "NetworkIn",
            Predefined::AverageNetworkOut => "NetworkOut",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracked {
    Predefined(Predefined),
    Customized { metric: Metric, statistic: String, unit: Option<String> },
}

/// TargetTrackingConfiguration.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracking {
    pub tracked: Tracked,
    pub target: f64,
    pub disable_scale_in: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct PutPolicy {
    pub group: GroupName,
    pub policy: PolicyName,
    pub tracking: Tracking,
    pub enabled: bool,
    pub warmup_secs: Option<u32>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub arn: String,
    pub tracking: Tracking,
    pub enabled: bool,
    pub warmup_secs: Option<u32>,
    /// Of the two alarms that AWS makes for it.
    pub alarm_ids: [String; 2],
    /// Since when the metric is above, or well below, the target.
    pub above_since: Option<OffsetDateTime>,
    pub below_since: Option<OffsetDateTime>,
}

/// Name and ARN of each alarm: high, then low.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    pub name: String,
    pub arn: String,
}

/// Which policy DeletePolicy means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRef {
    pub group: Option<GroupName>,
    /// A name, or an ARN.
    pub policy: String,
}

#[derive(Debug, Clone, Default)]
pub struct DescribePolicies {
    pub group: Option<GroupName>,
    /// Names or ARNs.
    pub policies: Vec<String>,
    pub types: Vec<String>,
    pub page: Page,
}

pub const TARGET_TRACKING: &str = "TargetTrackingScaling";

impl Tracked {
    /// The metric that it is for this group.
    pub fn metric(&self, group: &GroupName) -> Metric {
        match self {
            Tracked::Customized { metric, .. } => metric.clone(),
            Tracked::Predefined(predefined) => Metric {
                namespace: "AWS/EC2".to_owned(),
                name: predefined.name().to_owned(),
                dimensions: [("AutoScalingGroupName".to_owned(), group.to_string())].into(),
            },
        }
    }
}

impl Policy {
    pub fn alarms(&self, group: &Group) -> [Alarm; 2] {
        // `arn:aws:autoscaling:REGION:ACCOUNT:…`, and the alarms of it are CloudWatch's.
        let mut parts = group.arn.splitn(6, ':').skip(3);
        let (region, account) =
            (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let alarm = |which: &str, id: &str| {
            let name = format!("TargetTracking-{}-Alarm{which}-{id}", group.name);
            let arn = format!("arn:aws:cloudwatch:{region}:{account}:alarm:{name}");
            Alarm { name, arn }
        };
        [alarm("High", &self.alarm_ids[0]), alarm("Low", &self.alarm_ids[1])]
    }

    fn is_meant(&self, name: &PolicyName, wanted: &str) -> bool {
        name.as_str() == wanted || self.arn == wanted
    }
}

impl Model {
    /// Makes it, or replaces what it was. Answers ARN and alarms.
    pub fn put_policy(&mut self, call: PutPolicy) -> Result<(String, [Alarm; 2]), AwsError> {
        let PutPolicy { group: name, policy, tracking, enabled, warmup_secs } = call;
        let (account, region) =
            (self.world.config.account.clone(), self.world.config.region.clone());
        let (group, world) = self.living_group_mut(&name)?;
        check(&tracking)?;
        let before = group.policies.get(&policy);
        if before.is_none() && group.policies.len() >= POLICIES_MAX {
            let message = format!("A group may have {POLICIES_MAX} scaling policies.");
            return Err(AwsError::new(Code::LimitExceeded, message));
        }
        let (arn, alarm_ids) = match before {
            Some(before) => (before.arn.clone(), before.alarm_ids.clone()),
            None => {
                let arn = arn(&region, &account, &name, &policy, &mut world.ids);
                (arn, [world.ids.uuid(), world.ids.uuid()])
            }
        };
        let (above_since, below_since) = (None, None);
        let put =
            Policy { arn, tracking, enabled, warmup_secs, alarm_ids, above_since, below_since };
        let answer = (put.arn.clone(), put.alarms(group));
        group.policies.insert(policy, put);
        Ok(answer)
    }

    pub fn delete_policy(&mut self, call: &PolicyRef) -> Result<(), AwsError> {
        let missing =
            || AwsError::validation(format!("No policy found with name: {}", call.policy));
        let name = match &call.group {
            Some(name) => name.clone(),
            None if call.policy.starts_with("arn:") => {
                let has = |group: &&Group| group.policies.values().any(|p| p.arn == call.policy);
                self.groups
                    .values()
                    .find(has)
                    .map(|group| group.name.clone())
                    .ok_or_else(missing)?
            }
            None => {
                return Err(AwsError::validation(
                    "AutoScalingGroupName is required when the policy is given by name",
                ));
            }
        };
        let (group, _) = self.living_group_mut(&name)?;
        let found = group.policies.iter().find(|(name, p)| p.is_meant(name, &call.policy));
        let policy = found.map(|(name, _)| name.clone()).ok_or_else(missing)?;
        group.policies.remove(&policy);
        Ok(())
    }

    /// In the order of groups and names. Unknown groups and policies are left out.
    pub fn describe_policies(
        &self,
        call: &DescribePolicies,
    ) -> Result<Paged<(&Group, &PolicyName, &Policy)>, AwsError> {
        let known_type = call.types.is_empty() || call.types.iter().any(|t| t == TARGET_TRACKING);
        let groups = self
            .groups
            .values()
            .filter(|group| known_type && call.group.as_ref().is_none_or(|g| *g == group.name));
        let policies = groups
            .flat_map(|group| group.policies.iter().map(move |(name, p)| (group, name, p)))
            .filter(|(_, name, policy)| {
                call.policies.is_empty() || call.policies.iter().any(|p| policy.is_meant(name, p))
            });
        let keyed = policies.map(|item| (format!("{}\0{}", item.0.name, item.1), item));
        paged(keyed, &call.page, 50)
    }
}

fn arn(
    region: &str,
    account: &str,
    group: &GroupName,
    policy: &PolicyName,
    ids: &mut Ids,
) -> String {
    format!(
        "arn:aws:autoscaling:{region}:{account}:scalingPolicy:{}:autoScalingGroupName/{group}:policyName/{policy}",
        ids.uuid()
    )
}

/// API reference, TargetTrackingConfiguration and CustomizedMetricSpecification.
fn check(tracking: &Tracking) -> Result<(), AwsError> {
    if !tracking.target.is_finite() || tracking.target <= 0.0 {
        return Err(AwsError::validation("TargetValue must be a positive number."));
    }
    Ok(())
}

/// What CloudWatch has of a metric: nothing but what somebody set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    Value(f64),
    /// Work in all: each instance in service has its share.
    Total(f64),
}

pub type Metrics = BTreeMap<Metric, Reading>;

impl Model {
    pub fn set_metric(&mut self, metric: Metric, reading: Option<Reading>) {
        match reading {
            Some(reading) => self.world.metrics.insert(metric, reading),
            None => self.world.metrics.remove(&metric),
        };
    }
}
