//! Scaling policies on the wire.

use super::query::Params;
use super::xml::Xml;
use super::{Answer, parse};
use crate::model::group::Group;
use crate::model::policies::{
    Alarm, DescribePolicies, Metric, Policy, PolicyRef, Predefined, PutPolicy, TARGET_TRACKING,
    Tracked, Tracking,
};
use crate::model::{AwsError, GroupName, Model, PolicyName};

pub fn put(model: &mut Model, params: &Params) -> Result<Answer, AwsError> {
    let call = PutPolicy {
        group: parse::group_name(params)?,
        policy: PolicyName::try_from(params.required("PolicyName")?)?,
        tracking: tracking(params)?,
        enabled: params.boolean("Enabled")?.unwrap_or(true),
        warmup_secs: params.count("EstimatedInstanceWarmup")?,
    };
    params.finish("PutScalingPolicy")?;
    let (arn, alarms) = model.put_policy(call)?;
    let mut xml = Xml::fragment();
    xml.text("PolicyARN", arn);
    render_alarms(&mut xml, alarms);
    Ok(Some(xml))
}

pub fn delete(model: &mut Model, params: &Params) -> Result<Answer, AwsError> {
    let call = PolicyRef { group: optional_group(params)?, policy: params.required("PolicyName")? };
    params.finish("DeletePolicy")?;
    model.delete_policy(&call).map(|()| None)
}

pub fn describe(model: &Model, params: &Params, xml: &mut Xml) -> Result<Option<String>, AwsError> {
    let call = DescribePolicies {
        group: optional_group(params)?,
        policies: params.list("PolicyNames")?,
        types: params.list("PolicyTypes")?,
        page: parse::page(params)?,
    };
    params.finish("DescribePolicies")?;
    let paged = model.describe_policies(&call)?;
    xml.list("ScalingPolicies", paged.items, render);
    Ok(paged.next_token)
}

fn optional_group(params: &Params) -> Result<Option<GroupName>, AwsError> {
    params.string("AutoScalingGroupName").map(GroupName::try_from).transpose()
}

fn tracking(params: &Params) -> Result<Tracking, AwsError> {
    match params.string("PolicyType").as_deref() {
        Some(TARGET_TRACKING) => {}
        // The default is the oldest kind.
        None | Some("SimpleScaling" | "StepScaling" | "PredictiveScaling") => {
            return Err(AwsError::not_simulated(format!(
                "The simulated AWS knows scaling policies only of type {TARGET_TRACKING}."
            )));
        }
        Some(other) => {
            return Err(AwsError::validation(format!("Invalid PolicyType {other}")));
        }
    }
    const AT: &str = "TargetTrackingConfiguration";
    if !params.has(AT) {
        return Err(AwsError::validation(
            "TargetTrackingConfiguration is required for policies of type TargetTrackingScaling",
        ));
    }
    let predefined = format!("{AT}.PredefinedMetricSpecification");
    let customized = format!("{AT}.CustomizedMetricSpecification");
    let tracked = match (params.has(&predefined), params.has(&customized)) {
        (true, false) => Tracked::Predefined(predefined_metric(
            &params.required(&format!("{predefined}.PredefinedMetricType"))?,
        )?),
        (false, true) => customized_metric(params, &customized)?,
        (true, true) | (false, false) => {
            return Err(AwsError::validation(
                "Exactly one of PredefinedMetricSpecification and CustomizedMetricSpecification is required",
            ));
        }
    };
    Ok(Tracking {
        tracked,
        target: params.number(&format!("{AT}.TargetValue"))?.ok_or_else(|| {
            AwsError::constraint(
                "null",
                "targetTrackingConfiguration.targetValue",
                "Member must not be null",
            )
        })?,
        disable_scale_in: params.boolean(&format!("{AT}.DisableScaleIn"))?.unwrap_or(false),
    })
}

fn predefined_metric(raw: &str) -> Result<Predefined, AwsError> {
    if raw == "ALBRequestCountPerTarget" {
        return Err(AwsError::not_simulated("The simulated AWS has no load balancers."));
    }
    Predefined::ALL.into_iter().find(|known| known.as_str() == raw).ok_or_else(|| {
        AwsError::constraint(
            raw,
            "targetTrackingConfiguration.predefinedMetricSpecification.predefinedMetricType",
            "Member must satisfy enum value set: [ASGAverageCPUUtilization, ASGAverageCPUUtilizationHighResolution, \
             ASGAverageNetworkIn, ASGAverageNetworkOut, ALBRequestCountPerTarget]",
        )
    })
}

fn customized_metric(params: &Params, prefix: &str) -> Result<Tracked, AwsError> {
    let required = |field: &str| {
        params.string(&format!("{prefix}.{field}")).ok_or_else(|| {
            AwsError::validation(format!("CustomizedMetricSpecification needs {field}"))
        })
    };
    let statistic = required("Statistic")?;
    const STATISTICS: [&str; 5] = ["Average", "Minimum", "Maximum", "SampleCount", "Sum"];
    if !STATISTICS.contains(&statistic.as_str()) {
        return Err(AwsError::constraint(
            &statistic,
            "targetTrackingConfiguration.customizedMetricSpecification.statistic",
            "Member must satisfy enum value set: [Average, Minimum, Maximum, SampleCount, Sum]",
        ));
    }
    let dimension = |at: String| {
        Ok((params.required(&format!("{at}.Name"))?, params.required(&format!("{at}.Value"))?))
    };
    let metric = Metric {
        namespace: required("Namespace")?,
        name: required("MetricName")?,
        dimensions: params
            .members(&format!("{prefix}.Dimensions"))?
            .into_iter()
            .map(dimension)
            .collect::<Result<_, AwsError>>()?,
    };
    Ok(Tracked::Customized { metric, statistic, unit: params.string(&format!("{prefix}.Unit")) })
}

fn render(xml: &mut Xml, (group, name, policy): (&Group, &PolicyName, &Policy)) {
    xml.text("AutoScalingGroupName", &group.name);
    xml.text("PolicyName", name);
    xml.text("PolicyARN", &policy.arn);
    xml.text("PolicyType", TARGET_TRACKING);
    xml.list("StepAdjustments", None::<()>, |_, ()| {});
    xml.optional("EstimatedInstanceWarmup", policy.warmup_secs);
    render_alarms(xml, policy.alarms(group));
    let Tracking { tracked, target, disable_scale_in } = &policy.tracking;
    xml.element("TargetTrackingConfiguration", |xml| {
        match tracked {
            Tracked::Predefined(predefined) => {
                xml.element("PredefinedMetricSpecification", |xml| {
                    xml.text("PredefinedMetricType", predefined.as_str());
                });
            }
            Tracked::Customized { metric, statistic, unit } => {
                xml.element("CustomizedMetricSpecification", |xml| {
                    xml.text("MetricName", &metric.name);
                    xml.text("Namespace", &metric.namespace);
                    xml.list("Dimensions", &metric.dimensions, |xml, (name, value)| {
                        xml.text("Name", name);
                        xml.text("Value", value);
                    });
                    xml.text("Statistic", statistic);
                    xml.optional("Unit", unit.as_ref());
                });
            }
        }
        xml.text("TargetValue", format!("{target:?}"));
        xml.text("DisableScaleIn", disable_scale_in);
    });
    xml.text("Enabled", policy.enabled);
}

fn render_alarms(xml: &mut Xml, alarms: [Alarm; 2]) {
    xml.list("Alarms", alarms, |xml, alarm| {
        xml.text("AlarmName", alarm.name);
        xml.text("AlarmARN", alarm.arn);
    });
}
