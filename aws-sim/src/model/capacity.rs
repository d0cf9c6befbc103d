//! The steps that change a group's capacity: launch one instance, begin to terminate one, choose which.

use std::cmp::Reverse;
use std::time::Duration;

use time::OffsetDateTime;

use super::activity::{Activity, ActivityId, ActivityStatus, at};
use super::group::{
    Group, Instance, Lifecycle, Machine, Placement, TerminationPolicy, Transition, Waiting, Warmed,
};
use super::tags::launch_obstacle;
use super::warm_pool::PoolState;
use super::{Effect, InstanceId, World, refresh};

/// Pause after the n-th failed launch in a row: doubling from one second, at most a minute, as a broken template
/// would otherwise launch as fast as the model ticks.
fn launch_pause(failures: u32) -> Duration {
    Duration::from_secs(1u64 << failures.saturating_sub(1).min(6)).min(Duration::from_secs(60))
}

/// Why an instance goes, and whether hooks may hold it.
pub(super) struct Going {
    pub cause: String,
    pub skip_hooks: bool,
}

/// Where a new instance belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Into {
    Group,
    WarmPool,
}

/// Starts one instance where the group has fewest, or records why it cannot.
pub(super) fn launch(group: &mut Group, world: &mut World, into: Into, now: OffsetDateTime) {
    let from = group.capacity();
    let (description, cause, lifecycle) = match into {
        Into::Group => (
            "Launching a new EC2 instance",
            format!(
                "{}At {} an instance was started in response to a difference between desired and actual capacity, increasing the capacity from {from} to {}.",
                group.scaling_cause.as_deref().unwrap_or_default(),
                at(now),
                from + 1
            ),
            Lifecycle::Pending,
        ),
        Into::WarmPool => (
            "Launching a new EC2 instance into warm pool",
            format!(
                "At {} an instance was started in response to a difference between the desired and actual size of the warm pool.",
                at(now)
            ),
            Lifecycle::Warmed(Warmed::Pending),
        ),
    };
    let activity = ActivityId(world.ids.uuid());
    let tags = group.tags.iter().filter(|(_, tag)| tag.propagate);
    let obstacle = tags.clone().find_map(|(key, _)| launch_obstacle(key));
    let template = world.resolve(refresh::launch_template(group));
    let (template, address) = match (obstacle, template, world.take_address()) {
        (None, Ok(template), Some(address)) => (template, address),
        (obstacle, template, address) => {
            let message = obstacle
                .or(template.err().map(|error| error.message))
                .unwrap_or_else(|| "There are not enough free addresses in the subnet. Launching EC2 instance failed.".to_owned());
            if let Some(address) = address {
                world.addresses.remove(&address);
            }
            group.launches.failures += 1;
            group.launches.not_before = Some(now + launch_pause(group.launches.failures));
            record(group, &activity, description, cause, None, ActivityStatus::Failed, now);
            group.end_activity(&activity, ActivityStatus::Failed, Some(message), now);
            return;
        }
    };
    let mut tags: std::collections::BTreeMap<String, String> =
        tags.map(|(key, tag)| (key.clone(), tag.value.clone())).collect();
    tags.insert("aws:autoscaling:groupName".to_owned(), group.name.to_string());
    let id = world.ids.instance_id();
    let credentials = world.principals.issue(&mut world.ids, &world.config.role, &id, now);
    let placement = emptiest(group);
    record(
        group,
        &activity,
        &format!("{description}: {id}"),
        cause,
        Some(&placement),
        ActivityStatus::PreInService,
        now,
    );
    let instance = Instance {
        id: id.clone(),
        group: group.name.clone(),
        placement,
        address,
        template,
        launched: now,
        tags,
        protected: group.new_instances_protected,
        healthy: true,
        lifecycle,
        pool: group.warm_pool.as_ref().map_or(PoolState::Stopped, |pool| pool.state),
        machine: Machine::Booting { at: now + world.config.boot_delay },
        credentials,
        activity,
    };
    group.instances.insert(id, instance);
}

/// Moves the instance to Terminating (or Terminating:Wait). `None` when it was already on its way out.
pub(super) fn begin_terminate(
    group: &mut Group,
    world: &mut World,
    id: &InstanceId,
    going: Going,
    now: OffsetDateTime,
) -> Option<ActivityId> {
    let instance = group.instances.get(id).filter(|instance| !instance.lifecycle.is_leaving())?;
    let is_warmed = matches!(instance.lifecycle, Lifecycle::Warmed(_));
    let launching = match instance.lifecycle {
        Lifecycle::Pending
        | Lifecycle::PendingWait(_)
        | Lifecycle::Warmed(Warmed::Pending | Warmed::PendingWait(_)) => {
            Some(instance.activity.clone())
        }
        Lifecycle::Warmed(_)
        | Lifecycle::InService { .. }
        | Lifecycle::Terminating
        | Lifecycle::TerminatingWait(_)
        | Lifecycle::TerminatingProceed => None,
    };
    let (placement, machine) = (instance.placement.clone(), instance.machine);
    if let Some(launch) = launching {
        let status =
            if machine.is_ended() { ActivityStatus::Failed } else { ActivityStatus::Cancelled };
        group.end_activity(
            &launch,
            status,
            Some("Instance failed to become InService.".to_owned()),
            now,
        );
    }
    // A machine that never ran has nobody to complete an action.
    let ran = matches!(machine, Machine::Running)
        || (machine.is_ended() && world.config.hooks_hold_dead_instances);
    let waiting = if going.skip_hooks || !ran {
        None
    } else {
        Waiting::start(group, Transition::Terminating, &mut world.ids, now)
    };
    let activity = ActivityId(world.ids.uuid());
    let status = if waiting.is_some() {
        ActivityStatus::MidLifecycleAction
    } else {
        ActivityStatus::InProgress
    };
    record(
        group,
        &activity,
        &format!("Terminating EC2 instance: {id}"),
        going.cause,
        Some(&placement),
        status,
        now,
    );
    let instance = group.instances.get_mut(id)?;
    instance.activity = activity.clone();
    instance.lifecycle = match (waiting, is_warmed) {
        (Some(waiting), false) => Lifecycle::TerminatingWait(waiting),
        (None, false) => Lifecycle::Terminating,
        (Some(waiting), true) => Lifecycle::Warmed(Warmed::TerminatingWait(waiting)),
        (None, true) => Lifecycle::Warmed(Warmed::Terminating),
    };
    let facts = world.facts(instance);
    if matches!(instance.machine, Machine::Starting { .. } | Machine::Running) {
        world.effects.push(Effect::Update { facts });
    }
    Some(activity)
}

/// ForceDelete: every instance goes at once, also those that wait.
pub(super) fn discard_hooks(group: &mut Group, world: &mut World, now: OffsetDateTime) {
    let ids: Vec<InstanceId> = group.instances.keys().cloned().collect();
    for id in ids {
        let cause = format!("At {} the AutoScalingGroup was deleted with force.", at(now));
        discard(group, world, &id, cause, now);
    }
}

/// One instance goes at once, whatever it waits for.
pub(super) fn discard(
    group: &mut Group,
    world: &mut World,
    id: &InstanceId,
    cause: String,
    now: OffsetDateTime,
) {
    begin_terminate(group, world, id, Going { cause, skip_hooks: true }, now);
    if let Some(instance) = group.instances.get_mut(id) {
        match instance.lifecycle {
            Lifecycle::TerminatingWait(_) => instance.lifecycle = Lifecycle::TerminatingProceed,
            Lifecycle::Warmed(Warmed::TerminatingWait(_)) => {
                instance.lifecycle = Lifecycle::Warmed(Warmed::TerminatingProceed);
            }
            _ => {}
        }
    }
}

/// Who goes first on a scale-in. Simplified from AWS's default policy: the zone with the most instances; there, the policy
/// (`Default`: oldest template version, then oldest instance); protected instances never.
pub(super) fn victim(group: &Group) -> Option<InstanceId> {
    let candidates: Vec<&Instance> = group
        .instances
        .values()
        .filter(|instance| instance.lifecycle.counts() && !instance.protected)
        .collect();
    let count = |zone: &str| {
        group
            .instances
            .values()
            .filter(|instance| instance.lifecycle.counts() && instance.placement.zone == zone)
            .count()
    };
    let fullest = candidates.iter().map(|instance| count(&instance.placement.zone)).max()?;
    let candidates =
        candidates.into_iter().filter(|instance| count(&instance.placement.zone) == fullest);
    let policy = group.termination_policies.first().copied().unwrap_or(TerminationPolicy::Default);
    let chosen = match policy {
        TerminationPolicy::Default | TerminationPolicy::OldestLaunchTemplate => candidates
            .min_by_key(|instance| {
                (instance.template.version, instance.launched, instance.id.clone())
            }),
        TerminationPolicy::OldestInstance => {
            candidates.min_by_key(|instance| (instance.launched, instance.id.clone()))
        }
        TerminationPolicy::NewestInstance => {
            candidates.min_by_key(|instance| (Reverse(instance.launched), instance.id.clone()))
        }
    };
    chosen.map(|instance| instance.id.clone())
}

/// The placement with the fewest instances, the first of equals.
fn emptiest(group: &Group) -> Placement {
    let held = |placement: &Placement| {
        group
            .instances
            .values()
            .filter(|instance| instance.lifecycle.counts() && instance.placement == *placement)
            .count()
    };
    group
        .placements
        .iter()
        .min_by_key(|placement| held(placement))
        .cloned()
        .expect("a group without placement is refused at create")
}

pub(super) fn record(
    group: &mut Group,
    id: &ActivityId,
    description: &str,
    cause: String,
    placement: Option<&Placement>,
    status: ActivityStatus,
    now: OffsetDateTime,
) {
    let details = match placement {
        Some(Placement { zone, subnet: Some(subnet) }) => {
            format!(r#"{{"Subnet ID":"{subnet}","Availability Zone":"{zone}"}}"#)
        }
        Some(Placement { zone, subnet: None }) => format!(r#"{{"Availability Zone":"{zone}"}}"#),
        None => "{}".to_owned(),
    };
    group.record(Activity {
        id: id.clone(),
        group: group.name.clone(),
        group_arn: group.arn.clone(),
        description: description.to_owned(),
        cause,
        started: now,
        ended: None,
        status,
        message: None,
        details,
    });
}

/// A launch that never came up counts as failed and slows the next.
pub(super) fn pace(group: &mut Group, now: OffsetDateTime) -> bool {
    if group.launches.failures > 0 && group.launches.not_before.is_none() {
        group.launches.not_before = Some(now + launch_pause(group.launches.failures));
    }
    match group.launches.not_before {
        Some(until) if now < until => false,
        Some(_) => {
            group.launches.not_before = None;
            true
        }
        None => true,
    }
}
