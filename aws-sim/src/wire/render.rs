//! Model types as AutoScaling's XML, members in the order of the service's API model.

use time::OffsetDateTime;
use time::macros::format_description;

use super::fleet;
use super::xml::Xml;
use crate::model::activity::Activity;
use crate::model::group::{Group, Hook, Instance, Lifecycle, Tag};
use crate::model::{GroupName, HookName};

pub fn group(xml: &mut Xml, group: &Group, with_instances: bool) {
    xml.text("AutoScalingGroupName", &group.name);
    xml.text("AutoScalingGroupARN", &group.arn);
    launch_template(xml, &group.template.id, &group.template.name, &group.template.version);
    xml.text("MinSize", group.min);
    xml.text("MaxSize", group.max);
    xml.text("DesiredCapacity", group.desired);
    xml.text("DefaultCooldown", group.default_cooldown.as_secs());
    xml.texts("AvailabilityZones", group.zones());
    xml.list("LoadBalancerNames", None::<()>, |_, ()| {});
    xml.list("TargetGroupARNs", None::<()>, |_, ()| {});
    xml.text("HealthCheckType", &group.health_check_type);
    xml.text("HealthCheckGracePeriod", group.health_check_grace.as_secs());
    if with_instances {
        let of_group = |held: &&Instance| !matches!(held.lifecycle, Lifecycle::Warmed(_));
        xml.list("Instances", group.instances.values().filter(of_group), instance);
    }
    xml.text("CreatedTime", timestamp(group.created));
    xml.list("SuspendedProcesses", group.suspended.iter(), |xml, (process, reason)| {
        xml.text("ProcessName", process.as_str());
        xml.text("SuspensionReason", reason);
    });
    xml.text("VPCZoneIdentifier", group.subnets.as_deref().unwrap_or_default());
    xml.list("EnabledMetrics", None::<()>, |_, ()| {});
    xml.optional("Status", group.deleting.then_some("Delete in progress"));
    xml.list("Tags", group.tag_list(), tag);
    xml.texts(
        "TerminationPolicies",
        group.termination_policies.iter().map(|policy| policy.as_str()),
    );
    xml.text("NewInstancesProtectedFromScaleIn", group.new_instances_protected);
    if let Some(pool) = &group.warm_pool {
        fleet::warm_pool(xml, pool);
        xml.text("WarmPoolSize", group.warmed().count());
    }
    xml.optional("Context", group.context.as_ref());
    xml.optional("DefaultInstanceWarmup", group.default_instance_warmup_secs);
}

/// The members that an instance has in DescribeAutoScalingGroups and in DescribeAutoScalingInstances.
pub fn instance(xml: &mut Xml, instance: &Instance) {
    let template = &instance.template;
    xml.text("InstanceId", &instance.id);
    xml.text("InstanceType", &template.instance_type);
    xml.text("AvailabilityZone", &instance.placement.zone);
    xml.text("LifecycleState", instance.lifecycle.as_str());
    xml.text(
        "HealthStatus",
        if instance.healthy && !instance.machine.is_ended() { "Healthy" } else { "Unhealthy" },
    );
    launch_template(xml, &template.id, &template.name, &template.version.to_string());
    xml.text("ProtectedFromScaleIn", instance.protected);
}

pub fn launch_template(xml: &mut Xml, id: &str, name: &str, version: &str) {
    xml.element("LaunchTemplate", |xml| {
        xml.text("LaunchTemplateId", id);
        xml.text("LaunchTemplateName", name);
        xml.text("Version", version);
    });
}

pub fn tag(xml: &mut Xml, (group, key, tag): (&GroupName, &String, &Tag)) {
    xml.text("ResourceId", group);
    xml.text("ResourceType", "auto-scaling-group");
    xml.text("Key", key);
    xml.text("Value", &tag.value);
    xml.text("PropagateAtLaunch", tag.propagate);
}

pub fn hook(xml: &mut Xml, group: &GroupName, (name, hook): (&HookName, &Hook)) {
    xml.text("LifecycleHookName", name);
    xml.text("AutoScalingGroupName", group);
    xml.text("LifecycleTransition", hook.transition.as_str());
    xml.optional("NotificationMetadata", hook.metadata.as_ref());
    xml.text("HeartbeatTimeout", hook.heartbeat.as_secs());
    xml.text("GlobalTimeout", hook.global_timeout().as_secs());
    xml.text("DefaultResult", hook.default_result.as_str());
}

pub fn activity(xml: &mut Xml, activity: &Activity) {
    xml.text("ActivityId", &activity.id.0);
    xml.text("AutoScalingGroupName", &activity.group);
    xml.text("Description", &activity.description);
    xml.text("Cause", &activity.cause);
    xml.text("StartTime", timestamp(activity.started));
    xml.optional("EndTime", activity.ended.map(timestamp));
    xml.text("StatusCode", activity.status.as_str());
    xml.optional("StatusMessage", activity.message.as_ref());
    xml.text("Progress", activity.status.progress());
    xml.text("Details", &activity.details);
    xml.text("AutoScalingGroupARN", &activity.group_arn);
}

/// `2026-11-22T21:33:05.123Z`
pub fn timestamp(at: OffsetDateTime) -> String {
    at.format(format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
    ))
    .unwrap_or_default()
}
