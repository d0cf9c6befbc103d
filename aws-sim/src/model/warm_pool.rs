//! Warm pools: instances that were started once and wait beside their group (user guide, warm pools).

use time::OffsetDateTime;

use super::activity::{ActivityId, ActivityStatus, at};
use super::capacity::{Going, Into, begin_terminate, launch, pace, record};
use super::describe::{Paged, paged};
use super::group::{Group, Instance, Lifecycle, Machine, Transition, Waiting, Warmed};
use super::refresh;
use super::requests::{Page, PutWarmPool};
use super::suspended::Process;
use super::{
    AwsError, Code, Effect, GroupName, InstanceId, Model, World, capacity, group_not_found,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmPool {
    pub min_size: u32,
    /// Instances of group and pool together; the group's maximum size unless given.
    pub prepared_max: Option<u32>,
    pub state: PoolState,
    pub reuse_on_scale_in: Option<bool>,
    /// DeleteWarmPool was called with force: its instances are going.
    pub deleting: bool,
}

/// What instances of the pool wait as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolState {
    Stopped,
    Running,
    Hibernated,
}

impl PoolState {
    pub fn as_str(self) -> &'static str {
        match self {
            PoolState::Stopped => "Stopped",
            PoolState::Running => "Running",
            PoolState::Hibernated => "Hibernated",
        }
    }
}

impl Model {
    /// Makes the pool, or changes what the call names of it.
    pub fn put_warm_pool(&mut self, call: PutWarmPool) -> Result<(), AwsError> {
        let (group, _) = self.living_group_mut(&call.group)?;
        if refresh::is_active(group) {
            return Err(AwsError::new(
                Code::InstanceRefreshInProgress,
                format!("An instance refresh of AutoScalingGroup '{}' is in progress.", call.group),
            ));
        }
        let is = group.warm_pool.clone();
        if is.as_ref().is_some_and(|pool| pool.deleting) {
            return Err(AwsError::validation(format!(
                "The warm pool of AutoScalingGroup '{}' is pending delete",
                call.group
            )));
        }
        let prepared_max = match call.prepared_max {
            // API reference: -1 takes it away.
            Some(-1) => None,
            Some(given) => Some(u32::try_from(given).map_err(|_| {
                AwsError::constraint(
                    &given.to_string(),
                    "maxGroupPreparedCapacity",
                    "Member must have value greater than or equal to -1",
                )
            })?),
            None => is.as_ref().and_then(|pool| pool.prepared_max),
        };
        let min_size = call.min_size.or(is.as_ref().map(|pool| pool.min_size)).unwrap_or(0);
        if prepared_max.is_some_and(|prepared| prepared < min_size) {
            return Err(AwsError::validation(
                "MaxGroupPreparedCapacity must be greater than or equal to MinSize",
            ));
        }
        let state = call.state.or(is.as_ref().map(|pool| pool.state)).unwrap_or(PoolState::Stopped);
        let reuse_on_scale_in =
            call.reuse_on_scale_in.or(is.and_then(|pool| pool.reuse_on_scale_in));
        let pool = WarmPool { min_size, prepared_max, state, reuse_on_scale_in, deleting: false };
        group.warm_pool = Some(pool);
        Ok(())
    }

    /// A pool with instances goes only by force, which also discards the actions that they wait for.
    pub fn delete_warm_pool(
        &mut self,
        name: &GroupName,
        force: bool,
        now: OffsetDateTime,
    ) -> Result<(), AwsError> {
        let (group, world) = self.living_group_mut(name)?;
        let warmed: Vec<InstanceId> = group.warmed().map(|instance| instance.id.clone()).collect();
        let Some(pool) = &mut group.warm_pool else {
            return Err(AwsError::validation(format!(
                "No warm pool found for AutoScalingGroup '{name}'"
            )));
        };
        if warmed.is_empty() {
            group.warm_pool = None;
            return Ok(());
        }
        if !force {
            return Err(AwsError::new(
                Code::ResourceInUse,
                "You cannot delete a warm pool while there are instances still in the warm pool.",
            ));
        }
        pool.deleting = true;
        for id in warmed {
            let cause = format!("At {} the warm pool was deleted with force.", at(now));
            capacity::discard(group, world, &id, cause, now);
        }
        Ok(())
    }

    /// Nothing when there is no pool, as at AWS.
    pub fn describe_warm_pool(
        &self,
        name: &GroupName,
        page: &Page,
    ) -> Result<(Option<&WarmPool>, Paged<&Instance>), AwsError> {
        let group = self.groups.get(name).ok_or_else(|| group_not_found(name))?;
        let warmed = group.warmed().map(|instance| (instance.id.to_string(), instance));
        Ok((group.warm_pool.as_ref(), paged(warmed, page, 50)?))
    }
}

impl Group {
    /// Instances that belong to the pool, those that are leaving it included.
    pub fn warmed(&self) -> impl Iterator<Item = &Instance> {
        self.instances
            .values()
            .filter(|instance| matches!(instance.lifecycle, Lifecycle::Warmed(_)))
    }

    /// Those that stay in it or come to it.
    fn warm_count(&self) -> u32 {
        let staying = self.warmed().filter(|instance| !instance.lifecycle.is_leaving()).count();
        u32::try_from(staying).unwrap_or(u32::MAX)
    }

    fn warm_wanted(&self) -> u32 {
        match &self.warm_pool {
            Some(pool) if !pool.deleting => pool
                .prepared_max
                .unwrap_or(self.max)
                .saturating_sub(self.desired)
                .max(pool.min_size),
            Some(_) | None => 0,
        }
    }
}

/// Moves a waiting instance into the group. `false` when there is none that matches the group's template.
pub(super) fn take(group: &mut Group, world: &mut World, now: OffsetDateTime) -> bool {
    let Ok(template) = world.resolve(refresh::launch_template(group)) else {
        return false;
    };
    let ready = |instance: &&Instance| {
        matches!(instance.lifecycle, Lifecycle::Warmed(Warmed::Ready(_)))
            && matches!(instance.machine, Machine::Halted | Machine::Running)
            && instance.template == template
    };
    let oldest = group.instances.values().filter(ready);
    let Some(id) = oldest
        .min_by_key(|instance| (instance.launched, instance.id.clone()))
        .map(|instance| instance.id.clone())
    else {
        return false;
    };
    let from = group.capacity();
    let cause = format!(
        "At {} an instance was started in response to a difference between desired and actual capacity, increasing the capacity from {from} to {}.",
        at(now),
        from + 1
    );
    let activity = ActivityId(world.ids.uuid());
    let placement = group.instances.get(&id).map(|instance| instance.placement.clone());
    let description = format!("Launching a new EC2 instance from warm pool: {id}");
    let status = ActivityStatus::PreInService;
    record(group, &activity, &description, cause, placement.as_ref(), status, now);
    if let Some(instance) = group.instances.get_mut(&id) {
        instance.activity = activity;
        instance.lifecycle = Lifecycle::Pending;
        if instance.machine == Machine::Halted {
            instance.machine = Machine::Booting { at: now };
        } else {
            let facts = world.facts(instance);
            world.effects.push(Effect::Update { facts });
        }
    }
    true
}

/// A scale-in returns the instance to the pool instead, if the pool wants it. Its terminating hooks run at
/// `Warmed:Pending:Wait` (user guide, lifecycle hooks with a warm pool).
pub(super) fn give_back(
    group: &mut Group,
    world: &mut World,
    id: &InstanceId,
    cause: &str,
    now: OffsetDateTime,
) -> bool {
    let Some(state) = group
        .warm_pool
        .as_ref()
        .filter(|pool| pool.reuse_on_scale_in == Some(true) && !pool.deleting)
        .map(|pool| pool.state)
    else {
        return false;
    };
    let fits = group.instances.get(id).is_some_and(|instance| {
        matches!(instance.lifecycle, Lifecycle::InService { .. })
            && instance.machine == Machine::Running
            && instance.healthy
    });
    if !fits || group.warm_count() >= group.warm_wanted() {
        return false;
    }
    let waiting = Waiting::start(group, Transition::Terminating, &mut world.ids, now);
    let activity = ActivityId(world.ids.uuid());
    let placement = group.instances.get(id).map(|instance| instance.placement.clone());
    let description = format!("Returning EC2 instance to warm pool: {id}");
    let status = ActivityStatus::InProgress;
    record(group, &activity, &description, cause.to_owned(), placement.as_ref(), status, now);
    if let Some(instance) = group.instances.get_mut(id) {
        instance.activity = activity;
        instance.lifecycle = Lifecycle::Warmed(Warmed::PendingWait(waiting.unwrap_or_default()));
        instance.pool = state;
        let facts = world.facts(instance);
        world.effects.push(Effect::Update { facts });
    }
    true
}

/// Its start, or its way back, is done: it waits as the pool says.
pub(super) fn rest(group: &mut Group, world: &mut World, id: &InstanceId, now: OffsetDateTime) {
    let state = group.warm_pool.as_ref().map_or(PoolState::Stopped, |pool| pool.state);
    let Some(instance) = group.instances.get_mut(id) else { return };
    instance.lifecycle = Lifecycle::Warmed(Warmed::Ready(state));
    instance.pool = state;
    let activity = instance.activity.clone();
    match state {
        PoolState::Running => {}
        PoolState::Stopped | PoolState::Hibernated => {
            instance.machine = Machine::Halting;
            world.effects.push(Effect::Shutdown { instance: id.clone() });
        }
    }
    group.end_activity(&activity, ActivityStatus::Successful, None, now);
}

/// Launches what the pool lacks, ends what it has too much of.
pub(super) fn fill(group: &mut Group, world: &mut World, now: OffsetDateTime) {
    while group.warm_count() > group.warm_wanted() && !group.suspended.has(Process::Terminate) {
        let newest = group
            .warmed()
            .filter(|instance| !instance.lifecycle.is_leaving())
            .max_by_key(|instance| (instance.launched, instance.id.clone()))
            .map(|instance| instance.id.clone());
        let Some(id) = newest else { break };
        let cause = format!(
            "At {} an instance was taken out of the warm pool in response to a difference between its desired and actual size.",
            at(now)
        );
        begin_terminate(group, world, &id, Going { cause, skip_hooks: false }, now);
    }
    while group.warm_count() < group.warm_wanted() && !group.suspended.has(Process::Launch) {
        let before = group.warm_count();
        if !pace(group, now) {
            break;
        }
        launch(group, world, Into::WarmPool, now);
        if group.warm_count() == before {
            break;
        }
    }
    if group.warm_pool.as_ref().is_some_and(|pool| pool.deleting) && group.warmed().count() == 0 {
        group.warm_pool = None;
    }
}
