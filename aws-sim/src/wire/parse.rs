//! AutoScaling parameters to typed calls.

use std::time::Duration;

use super::query::Params;
use crate::model::group::{HookResult, TerminationPolicy, Transition};
use crate::model::requests::{
    ActionRef, Filter, GroupSettings, Page, PutHook, TagSpec, TemplateSpec,
};
use crate::model::{AwsError, GroupName, HookName, InstanceId};

pub fn group_name(params: &Params) -> Result<GroupName, AwsError> {
    GroupName::try_from(params.required("AutoScalingGroupName")?)
}

pub fn instance_ids(params: &Params) -> Result<Vec<InstanceId>, AwsError> {
    params.list("InstanceIds")?.into_iter().map(InstanceId::try_from).collect()
}

pub fn settings(params: &Params) -> Result<GroupSettings, AwsError> {
    only(params, "CapacityRebalance", "false")?;
    only(params, "DesiredCapacityType", "units")?;
    only(params, "MaxInstanceLifetime", "0")?;
    only(params, "DeletionProtection", "none")?;
    let zones = params.list("AvailabilityZones")?;
    let policies = params.list("TerminationPolicies")?;
    Ok(GroupSettings {
        template: template(params, "LaunchTemplate")?,
        min: params.count("MinSize")?,
        max: params.count("MaxSize")?,
        desired: params.count("DesiredCapacity")?,
        zones: (!zones.is_empty()).then_some(zones),
        subnets: params.string("VPCZoneIdentifier"),
        health_check_type: params.string("HealthCheckType"),
        health_check_grace: params.seconds("HealthCheckGracePeriod")?,
        default_cooldown: params.seconds("DefaultCooldown")?,
        default_instance_warmup: params.integer("DefaultInstanceWarmup")?,
        termination_policies: if policies.is_empty() {
            None
        } else {
            Some(
                policies
                    .iter()
                    .map(|policy| termination_policy(policy))
                    .collect::<Result<_, _>>()?,
            )
        },
        new_instances_protected: params.boolean("NewInstancesProtectedFromScaleIn")?,
        context: params.string("Context"),
    })
}

/// A parameter of which only the value that changes nothing is simulated.
fn only(params: &Params, name: &str, value: &str) -> Result<(), AwsError> {
    match params.string(name) {
        Some(given) if given != value => Err(AwsError::not_simulated(format!(
            "The simulated AWS knows {name} only as {value}, not {given}."
        ))),
        Some(_) | None => Ok(()),
    }
}

/// The launch template whose parameters begin with `prefix`.
pub fn template(params: &Params, prefix: &str) -> Result<Option<TemplateSpec>, AwsError> {
    if !params.has(prefix) {
        return Ok(None);
    }
    let field = |name: &str| params.string(&format!("{prefix}.{name}"));
    Ok(Some(TemplateSpec {
        id: field("LaunchTemplateId"),
        name: field("LaunchTemplateName"),
        version: field("Version"),
    }))
}

fn termination_policy(raw: &str) -> Result<TerminationPolicy, AwsError> {
    match raw {
        "Default" => Ok(TerminationPolicy::Default),
        "OldestInstance" => Ok(TerminationPolicy::OldestInstance),
        "NewestInstance" => Ok(TerminationPolicy::NewestInstance),
        "OldestLaunchTemplate" => Ok(TerminationPolicy::OldestLaunchTemplate),
        "AllocationStrategy" | "ClosestToNextInstanceHour" | "OldestLaunchConfiguration" => {
            Err(AwsError::not_simulated(format!(
                "The simulated AWS does not know termination policy {raw}."
            )))
        }
        other => Err(AwsError::validation(format!("Invalid termination policy {other}"))),
    }
}

pub fn tags(params: &Params) -> Result<Vec<TagSpec>, AwsError> {
    let tag = |prefix: String| {
        Ok(TagSpec {
            group: params.string(&format!("{prefix}.ResourceId")),
            resource_type: params.string(&format!("{prefix}.ResourceType")),
            key: params.get(&format!("{prefix}.Key")).unwrap_or_default().to_owned(),
            value: params.get(&format!("{prefix}.Value")).map(str::to_owned),
            propagate: params.boolean(&format!("{prefix}.PropagateAtLaunch"))?.unwrap_or(false),
        })
    };
    params.members("Tags")?.into_iter().map(tag).collect()
}

/// The hooks of CreateAutoScalingGroup.
pub fn hook_specifications(params: &Params, group: &GroupName) -> Result<Vec<PutHook>, AwsError> {
    params
        .members("LifecycleHookSpecificationList")?
        .into_iter()
        .map(|prefix| hook(params, &format!("{prefix}."), group))
        .collect()
}

/// One hook whose parameters begin with `prefix`.
pub fn hook(params: &Params, prefix: &str, group: &GroupName) -> Result<PutHook, AwsError> {
    let name = |field: &str| format!("{prefix}{field}");
    let transition = match params.string(&name("LifecycleTransition")).as_deref() {
        None => None,
        Some("autoscaling:EC2_INSTANCE_LAUNCHING") => Some(Transition::Launching),
        Some("autoscaling:EC2_INSTANCE_TERMINATING") => Some(Transition::Terminating),
        Some(other) => {
            return Err(AwsError::validation(format!("Invalid lifecycle transition {other}")));
        }
    };
    Ok(PutHook {
        group: group.clone(),
        hook: HookName::try_from(params.required(&name("LifecycleHookName"))?)?,
        transition,
        heartbeat: params
            .count(&name("HeartbeatTimeout"))?
            .map(|secs| Duration::from_secs(u64::from(secs))),
        default_result: params
            .string(&name("DefaultResult"))
            .map(|raw| hook_result(&raw))
            .transpose()?,
        metadata: params.string(&name("NotificationMetadata")),
    })
}

pub fn hook_result(raw: &str) -> Result<HookResult, AwsError> {
    match raw {
        "CONTINUE" => Ok(HookResult::Continue),
        "ABANDON" => Ok(HookResult::Abandon),
        other => Err(AwsError::validation(format!(
            "Invalid lifecycle action result {other}: it must be CONTINUE or ABANDON"
        ))),
    }
}

pub fn action_ref(params: &Params) -> Result<ActionRef, AwsError> {
    Ok(ActionRef {
        group: group_name(params)?,
        hook: HookName::try_from(params.required("LifecycleHookName")?)?,
        token: params.string("LifecycleActionToken"),
        instance: params.string("InstanceId").map(InstanceId::try_from).transpose()?,
    })
}

pub fn filters(params: &Params) -> Result<Vec<Filter>, AwsError> {
    let filter = |prefix: String| {
        Ok(Filter {
            name: params.required(&format!("{prefix}.Name"))?,
            values: params.list(&format!("{prefix}.Values"))?,
        })
    };
    params.members("Filters")?.into_iter().map(filter).collect()
}

pub fn page(params: &Params) -> Result<Page, AwsError> {
    Ok(Page { records_max: params.count("MaxRecords")?, next_token: params.string("NextToken") })
}
