//! Scaling policies at AWS: ours as an order's target says it, and as AWS has it. Plain IO; what to
//! put or to delete is decided in `plan`.

use std::collections::BTreeMap;

use aws_sdk_autoscaling::types::{
    CustomizedMetricSpecification, MetricDimension, MetricStatistic, MetricType,
    PredefinedMetricSpecification, ScalingPolicy, TargetTrackingConfiguration,
};
use outstation_protocol::model::{Statistic, Target, TargetValue};

use super::aws::{Aws, CallError, PAGES_MAX, RECORDS_MAX};

/// The one policy that is ours; others of the same group are nobody's business here.
pub const TARGET_POLICY: &str = "outstation-target";
const TARGET_TRACKING: &str = "TargetTrackingScaling";

/// What AWS has under the name of our policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    Tracks(Target),
    /// Nothing that an order can say: in words.
    Other(String),
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Policy::Tracks(target) => target.fmt(f),
            Policy::Other(words) => f.write_str(words),
        }
    }
}

/// By AutoScaling group's name.
pub type Policies = BTreeMap<String, Policy>;

impl Aws {
    /// Ours in all groups of the account: AWS lists them a hundred at a time, and no other way is
    /// cheaper than one call for each group.
    pub(super) async fn policies(&self) -> Result<Policies, CallError> {
        let mut policies = Policies::new();
        let mut token = None;
        for _ in 0..PAGES_MAX {
            self.turn().await;
            let page = self
                .autoscaling
                .describe_policies()
                .max_records(RECORDS_MAX)
                .set_next_token(token)
                .send()
                .await
                .map_err(|e| CallError::of("DescribePolicies", e))?;
            let ours =
                page.scaling_policies().iter().filter(|p| p.policy_name() == Some(TARGET_POLICY));
            policies.extend(ours.filter_map(|policy| {
                Some((policy.auto_scaling_group_name()?.to_owned(), observed(policy)))
            }));
            token = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if token.is_none() {
                return Ok(policies);
            }
        }
        Err(CallError {
            call: "DescribePolicies",
            code: None,
            message: format!("more than {PAGES_MAX} pages"),
        })
    }

    pub(super) async fn track(&self, asg_name: &str, target: &Target) -> Result<(), CallError> {
        self.mutations
            .put_scaling_policy()
            .auto_scaling_group_name(asg_name)
            .policy_name(TARGET_POLICY)
            .policy_type(TARGET_TRACKING)
            .target_tracking_configuration(configuration(target))
            .send()
            .await
            .map(drop)
            .map_err(|e| CallError::of("PutScalingPolicy", e))
    }

    /// One that is gone already counts as deleted.
    pub(super) async fn track_nothing(&self, asg_name: &str) -> Result<(), CallError> {
        let deleted = self
            .mutations
            .delete_policy()
            .auto_scaling_group_name(asg_name)
            .policy_name(TARGET_POLICY)
            .send()
            .await
            .map_err(|e| CallError::of("DeletePolicy", e));
        match deleted {
            Ok(_) => Ok(()),
            Err(error) if error.has_code("ValidationError") => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn configuration(target: &Target) -> TargetTrackingConfiguration {
    let builder = TargetTrackingConfiguration::builder();
    match target {
        Target::Cpu { percent } => {
            let metric = PredefinedMetricSpecification::builder()
                .predefined_metric_type(MetricType::AsgAverageCpuUtilization)
                .build();
            builder.predefined_metric_specification(metric).target_value(percent.get()).build()
        }
        Target::Metric { namespace, name, statistic, dimensions, value } => {
            let dimensions: Vec<MetricDimension> = dimensions
                .iter()
                .map(|(name, value)| MetricDimension::builder().name(name).value(value).build())
                .collect();
            let metric = CustomizedMetricSpecification::builder()
                .namespace(namespace)
                .metric_name(name)
                .statistic(MetricStatistic::from(statistic.as_str()))
                .set_dimensions(Some(dimensions))
                .build();
            builder.customized_metric_specification(metric).target_value(value.get()).build()
        }
    }
}

fn observed(policy: &ScalingPolicy) -> Policy {
    let Some(target) = policy.target_tracking_configuration().and_then(target) else {
        return Policy::Other(format!(
            "a policy of type {}",
            policy.policy_type().unwrap_or("none")
        ));
    };
    let tracking = policy.target_tracking_configuration();
    if policy.enabled() == Some(false) {
        return Policy::Other(format!("{target}, disabled"));
    }
    if tracking.and_then(|tracking| tracking.disable_scale_in()) == Some(true) {
        return Policy::Other(format!("{target}, never scales in"));
    }
    Policy::Tracks(target)
}

/// Nothing where AWS says more, or something else, than a target can.
fn target(tracking: &TargetTrackingConfiguration) -> Option<Target> {
    let value = TargetValue::try_from(tracking.target_value()?).ok()?;
    let predefined = tracking.predefined_metric_specification();
    match (predefined, tracking.customized_metric_specification()) {
        (Some(metric), None) => (metric.predefined_metric_type()
            == Some(&MetricType::AsgAverageCpuUtilization))
        .then_some(Target::Cpu { percent: value }),
        (None, Some(metric)) => {
            let said = metric.statistic()?.as_str();
            let statistic = Statistic::ALL.into_iter().find(|known| known.as_str() == said)?;
            if metric.unit().is_some() || !metric.metrics().is_empty() {
                return None;
            }
            let dimensions = metric
                .dimensions()
                .iter()
                .filter_map(|dimension| {
                    Some((dimension.name()?.to_owned(), dimension.value()?.to_owned()))
                })
                .collect();
            Some(Target::Metric {
                namespace: metric.namespace()?.to_owned(),
                name: metric.metric_name()?.to_owned(),
                statistic,
                dimensions,
                value,
            })
        }
        (Some(_), Some(_)) | (None, None) => None,
    }
}
