//! How a refresh goes on: who leaves next, what counts as done, when it fails. Time is an argument.

use std::collections::BTreeSet;
use std::time::Duration;

use time::OffsetDateTime;

use super::{Protected, Refresh, RefreshStatus, Rollback, count, is_active, matches, members};
use crate::model::activity::at;
use crate::model::capacity::{Going, begin_terminate};
use crate::model::group::{Group, Instance, Lifecycle};
use crate::model::suspended::Process;
use crate::model::{InstanceId, World};

/// AWS waits so long for protected instances (API reference). That it also gives up on launches which never
/// become healthy after it is an assumption.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Instances beyond the desired capacity that a refresh starts before it ends others.
pub(in crate::model) fn surge(group: &Group) -> u32 {
    let Some(refresh) = group.refreshes.front() else { return 0 };
    match refresh.status {
        RefreshStatus::InProgress | RefreshStatus::RollbackInProgress => {}
        _ => return 0,
    }
    let Some(max) = refresh.preferences.max_healthy else { return 0 };
    let room = (u64::from(group.desired) * u64::from(max) / 100) as u32 - group.desired;
    let impossible = min_healthy(refresh, group.desired) == group.desired;
    room.max(u32::from(impossible)).min(refresh.outdated_in(group))
}

/// One step towards the end of the group's active refresh.
pub(in crate::model) fn step(group: &mut Group, world: &mut World, now: OffsetDateTime) {
    if !is_active(group) || group.suspended.has(Process::InstanceRefresh) {
        return;
    }
    let Some(mut refresh) = group.refreshes.front().cloned() else { return };
    match refresh.status {
        RefreshStatus::Pending => refresh.status = RefreshStatus::InProgress,
        RefreshStatus::Cancelling => {
            if !refresh.waits_since.is_some_and(|since| is_starting(group, since)) {
                refresh.status = RefreshStatus::Cancelled;
                refresh.ended = Some(now);
            }
        }
        RefreshStatus::InProgress | RefreshStatus::RollbackInProgress => {}
        _ => return,
    }
    if matches!(refresh.status, RefreshStatus::InProgress | RefreshStatus::RollbackInProgress) {
        advance(&mut refresh, group, world, now);
    }
    put(group, refresh);
}

pub(super) fn put(group: &mut Group, refresh: Refresh) {
    if let Some(front) = group.refreshes.front_mut() {
        *front = refresh;
    }
}

fn advance(refresh: &mut Refresh, group: &mut Group, world: &mut World, now: OffsetDateTime) {
    let warmup = warmup(refresh, group);
    let is_ready = |refresh: &Refresh, instance: &Instance| match instance.lifecycle {
        Lifecycle::InService { since } => {
            instance.healthy
                && !instance.machine.is_ended()
                && (refresh.outdated.contains(&instance.id) || since + warmup <= now)
        }
        _ => false,
    };
    let present: BTreeSet<InstanceId> = members(group).map(|held| held.id.clone()).collect();
    refresh.outdated.retain(|id| present.contains(id));
    let ready: BTreeSet<InstanceId> = members(group)
        .filter(|instance| is_ready(refresh, instance))
        .map(|instance| instance.id.clone())
        .collect();
    let updated = count(ready.difference(&refresh.outdated).count());
    if refresh.outdated.len() < refresh.fewest_outdated || updated > refresh.most_updated {
        refresh.fewest_outdated = refresh.fewest_outdated.min(refresh.outdated.len());
        refresh.most_updated = refresh.most_updated.max(updated);
        refresh.progress = now;
    }
    refresh.tell(group, count(ready.len()));

    if refresh.outdated.is_empty() && count(ready.len()) >= group.desired && is_at_rest(group) {
        finish(refresh, group, now);
        return;
    }
    if refresh.progress + PATIENCE <= now {
        fail(refresh, group, world, now);
        return;
    }
    let pooled: Vec<InstanceId> = group
        .warmed()
        .filter(|instance| refresh.outdated.contains(&instance.id))
        .map(|instance| instance.id.clone())
        .collect();
    let mut waits_for = None;
    let mut going = pooled;
    let mut spare = spare(refresh, group.desired, count(ready.len()));
    let mut candidates: Vec<&Instance> = group
        .instances
        .values()
        .filter(|instance| instance.lifecycle.counts() && refresh.outdated.contains(&instance.id))
        .collect();
    // Those that serve nobody cost nothing.
    candidates.sort_by_key(|instance| {
        (ready.contains(&instance.id), instance.launched, instance.id.clone())
    });
    for instance in candidates {
        let wait = refresh.preferences.protected.unwrap_or(Protected::Wait) != Protected::Refresh;
        if instance.protected && wait {
            waits_for = Some(instance.id.clone());
        } else if !ready.contains(&instance.id) {
            going.push(instance.id.clone());
        } else if spare > 0 {
            spare -= 1;
            going.push(instance.id.clone());
        }
    }
    if group.suspended.has(Process::Terminate) {
        going.clear();
    }
    let idle = going.is_empty();
    for id in going {
        let cause = format!(
            "At {} an instance was taken out of service in response to an instance refresh.",
            at(now)
        );
        begin_terminate(group, world, &id, Going { cause, skip_hooks: false }, now);
    }
    refresh.reason = match waits_for {
        Some(id) if idle => Some(format!(
            "Waiting for instances to be unprotected from scale in. For example: {id} is protected."
        )),
        Some(_) | None => members(group)
            .find(|instance| {
                !refresh.outdated.contains(&instance.id) && !is_ready(refresh, instance)
            })
            .map(|instance| {
                format!(
                    "Waiting for remaining instances to be available. For example: {} is {}.",
                    instance.id,
                    match instance.lifecycle {
                        Lifecycle::InService { .. } => "warming up",
                        _ => instance.lifecycle.as_str(),
                    }
                )
            }),
    };
}

/// How many more may leave now. Without an explicit maximum AWS terminates and launches at the same time, one
/// instance at least (API reference, MaxHealthyPercentage).
fn spare(refresh: &Refresh, desired: u32, ready: u32) -> u32 {
    let spare = ready.saturating_sub(min_healthy(refresh, desired));
    match refresh.preferences.max_healthy {
        Some(_) => spare,
        None => spare.max(u32::from(ready >= desired)),
    }
}

fn min_healthy(refresh: &Refresh, desired: u32) -> u32 {
    let percent = u64::from(refresh.preferences.min_healthy.unwrap_or(90));
    (u64::from(desired) * percent).div_ceil(100) as u32
}

fn warmup(refresh: &Refresh, group: &Group) -> Duration {
    let secs = refresh.preferences.warmup_secs.or(group.default_instance_warmup_secs);
    secs.map_or(group.health_check_grace, |secs| Duration::from_secs(u64::from(secs)))
}

fn finish(refresh: &mut Refresh, group: &mut Group, now: OffsetDateTime) {
    refresh.ended = Some(now);
    refresh.reason = None;
    if refresh.status == RefreshStatus::RollbackInProgress {
        refresh.status = RefreshStatus::RollbackSuccessful;
        return;
    }
    refresh.status = RefreshStatus::Successful;
    (refresh.percent, refresh.to_update) = (100, 0);
    if let Some(desired) = &refresh.desired {
        group.template = desired.clone();
    }
}

fn fail(refresh: &mut Refresh, group: &Group, world: &World, now: OffsetDateTime) {
    let waiting = refresh.reason.take().unwrap_or_default();
    let reason = format!("No instance was replaced for one hour. {waiting}").trim().to_owned();
    match refresh.status {
        RefreshStatus::InProgress if refresh.preferences.auto_rollback == Some(true) => {
            roll_back(refresh, group, world, reason, now);
        }
        RefreshStatus::RollbackInProgress => {
            refresh.status = RefreshStatus::RollbackFailed;
            (refresh.reason, refresh.ended) = (Some(reason), Some(now));
        }
        _ => {
            refresh.status = RefreshStatus::Failed;
            (refresh.reason, refresh.ended) = (Some(reason), Some(now));
        }
    }
}

/// Turns round: what was replaced is replaced again.
pub(super) fn roll_back(
    refresh: &mut Refresh,
    group: &Group,
    world: &World,
    reason: String,
    now: OffsetDateTime,
) {
    let origin = world.resolve(&refresh.origin).ok();
    refresh.rollback = Some(Rollback {
        reason: reason.clone(),
        started: now,
        percent: refresh.percent,
        to_update: refresh.to_update,
    });
    refresh.status = RefreshStatus::RollbackInProgress;
    refresh.reason = Some(reason);
    refresh.outdated = members(group)
        .filter(|instance| {
            !origin.as_ref().is_some_and(|origin| matches(&instance.template, origin))
        })
        .map(|instance| instance.id.clone())
        .collect();
    (refresh.fewest_outdated, refresh.most_updated, refresh.progress) = (usize::MAX, 0, now);
}

impl Refresh {
    fn outdated_in(&self, group: &Group) -> u32 {
        let counts = |id: &&InstanceId| {
            group.instances.get(*id).is_some_and(|instance| instance.lifecycle.counts())
        };
        count(self.outdated.iter().filter(counts).count())
    }

    fn tell(&mut self, group: &Group, ready: u32) {
        let outdated = count(self.outdated.len());
        let missing = group.desired.saturating_sub(ready);
        match &self.rollback {
            None => {
                let done = self.total.saturating_sub(outdated + missing);
                let percent = (done * 100).checked_div(self.total).unwrap_or(0);
                self.percent = self.percent.max(percent);
                self.to_update = outdated;
            }
            // It gradually goes back to zero (API reference, InstanceRefresh).
            Some(rollback) => {
                let replaced = self.total.saturating_sub(rollback.to_update).max(1);
                let left = (outdated + missing).min(replaced);
                self.percent = self.percent.min(rollback.percent * left / replaced);
            }
        }
    }
}

/// Something that was launched by then is on its way into service.
fn is_starting(group: &Group, by: OffsetDateTime) -> bool {
    group.instances.values().any(|instance| {
        let waits = matches!(instance.lifecycle, Lifecycle::Pending | Lifecycle::PendingWait(_));
        waits && instance.launched <= by
    })
}

/// The group has what it wants, and nothing is starting.
fn is_at_rest(group: &Group) -> bool {
    group.capacity() == group.desired
        && group
            .instances
            .values()
            .filter(|instance| instance.lifecycle.counts())
            .all(|instance| matches!(instance.lifecycle, Lifecycle::InService { .. }))
}
