//! Time passes: instances move through their lifecycle, groups launch and terminate towards their desired capacity.

use std::time::Duration;

use time::OffsetDateTime;

use super::activity::{ActivityStatus, at};
use super::capacity::{Going, Into, begin_terminate, launch, pace, victim};
use super::credentials::RENEW_BEFORE;
use super::group::{Group, Instance, Lifecycle, Machine, Transition, Waiting, Warmed};
use super::suspended::{Process, Suspended};
use super::tracking::track;
use super::{Effect, InstanceId, Model, World, refresh, warm_pool};

/// A machine that is told to start and does not say that it runs for this long has failed. A launcher on a busy machine
/// needs a second or two.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// One instance's next step.
enum Step {
    Stay,
    Start,
    GiveUp,
    InService,
    PendingWait,
    Abandon,
    Replace(&'static str),
    Proceed,
    ShutDown,
    /// Terminating, but nothing of its machine runs.
    NeverMind,
    WarmWait,
    WarmProceed,
    /// Ready, in the pool.
    Rest,
    Gone,
}

impl Model {
    /// Advances everything to `now` and returns what the driver must do, in order. Calling it again at the same time does
    /// nothing more.
    pub fn tick(&mut self, now: OffsetDateTime) -> Vec<Effect> {
        for group in self.groups.values_mut() {
            let ids: Vec<InstanceId> = group.instances.keys().cloned().collect();
            for id in ids {
                // An instance passes a handful of states; more steps at one instant would be a loop in the model.
                for _ in 0..8 {
                    if !advance(group, &mut self.world, &id, now) {
                        break;
                    }
                }
            }
            if !group.deleting {
                if !group.suspended.has(Process::AlarmNotification) {
                    track(group, &self.world.metrics, self.world.config.patience, now);
                }
                refresh::step(group, &mut self.world, now);
                reconcile(group, &mut self.world, now);
                if group.warm_pool.is_some() {
                    warm_pool::fill(group, &mut self.world, now);
                    // What was just launched, or taken out of it, starts in this tick.
                    let ids: Vec<InstanceId> = group.instances.keys().cloned().collect();
                    for id in ids {
                        while advance(group, &mut self.world, &id, now) {}
                    }
                }
            }
            renew_credentials(group, &mut self.world, now);
        }
        self.groups.retain(|_, group| !(group.deleting && group.instances.is_empty()));
        self.world.principals.forget_expired(now);
        std::mem::take(&mut self.world.effects)
    }
}

/// Takes one step of one instance; true if it moved.
fn advance(group: &mut Group, world: &mut World, id: &InstanceId, now: OffsetDateTime) -> bool {
    let Some(instance) = group.instances.get_mut(id) else {
        return false;
    };
    let step = next_step(instance, &group.suspended, now);
    let activity = instance.activity.clone();
    match step {
        Step::Stay => return false,
        Step::Start => {
            instance.machine = Machine::Starting { give_up: now + START_PATIENCE };
            let facts = world.facts(instance);
            world
                .effects
                .push(Effect::Launch { facts, user_data: instance.template.user_data.clone() });
        }
        Step::GiveUp => {
            group.launches.failures += 1;
            going(group, world, id, "an instance did not start", now);
        }
        Step::PendingWait => {
            match Waiting::start(group, Transition::Launching, &mut world.ids, now) {
                Some(waiting) => {
                    group.set_activity(&activity, ActivityStatus::MidLifecycleAction);
                    set(group, id, Lifecycle::PendingWait(waiting));
                }
                None => in_service(group, id, now),
            }
        }
        Step::InService => in_service(group, id, now),
        Step::Abandon => going(
            group,
            world,
            id,
            "an instance was taken out of service because its launch lifecycle action was abandoned",
            now,
        ),
        Step::Replace(why) => going(group, world, id, why, now),
        Step::Proceed => {
            group.set_activity(&activity, ActivityStatus::InProgress);
            set(group, id, Lifecycle::TerminatingProceed);
        }
        Step::ShutDown => {
            instance.machine = Machine::Stopping;
            world.effects.push(Effect::Shutdown { instance: id.clone() });
        }
        Step::NeverMind => instance.machine = Machine::Ended,
        Step::WarmWait => {
            let waiting = Waiting::start(group, Transition::Launching, &mut world.ids, now);
            if waiting.is_some() {
                group.set_activity(&activity, ActivityStatus::MidLifecycleAction);
            }
            let waiting = waiting.unwrap_or_default();
            set(group, id, Lifecycle::Warmed(Warmed::PendingWait(waiting)));
        }
        Step::WarmProceed => {
            group.set_activity(&activity, ActivityStatus::InProgress);
            set(group, id, Lifecycle::Warmed(Warmed::TerminatingProceed));
        }
        Step::Rest => warm_pool::rest(group, world, id, now),
        Step::Gone => {
            group.end_activity(&activity, ActivityStatus::Successful, None, now);
            if let Some(gone) = group.instances.remove(id) {
                world.addresses.remove(&gone.address);
            }
        }
    }
    true
}

fn next_step(instance: &mut Instance, suspended: &Suspended, now: OffsetDateTime) -> Step {
    // Its health is not looked at, or nobody acts on it (user guide, suspend and resume processes).
    let is_stuck = suspended.has(Process::ReplaceUnhealthy) || suspended.has(Process::Terminate);
    let dead = instance.machine.is_ended() && !suspended.has(Process::HealthCheck) && !is_stuck;
    match &mut instance.lifecycle {
        Lifecycle::Pending | Lifecycle::PendingWait(_) | Lifecycle::InService { .. } if dead => {
            Step::Replace(
                "an instance was taken out of service in response to an EC2 health check indicating it has been terminated or stopped",
            )
        }
        Lifecycle::Pending => match instance.machine {
            Machine::Booting { at } if at <= now => Step::Start,
            Machine::Starting { give_up } if give_up <= now => Step::GiveUp,
            Machine::Running => Step::PendingWait,
            Machine::Booting { .. }
            | Machine::Starting { .. }
            | Machine::Stopping
            | Machine::Ended
            | Machine::Halting
            | Machine::Halted => Step::Stay,
        },
        Lifecycle::PendingWait(waiting) => {
            waiting.expire(now);
            match (waiting.abandoned, waiting.is_over()) {
                (true, _) => Step::Abandon,
                (false, true) => Step::InService,
                (false, false) => Step::Stay,
            }
        }
        Lifecycle::InService { .. } if !instance.healthy && !is_stuck => {
            Step::Replace("an instance was taken out of service in response to a user health-check")
        }
        Lifecycle::InService { .. } => Step::Stay,
        Lifecycle::TerminatingWait(waiting) => {
            waiting.expire(now);
            if waiting.is_over() { Step::Proceed } else { Step::Stay }
        }
        Lifecycle::Terminating | Lifecycle::TerminatingProceed => ending(instance.machine),
        Lifecycle::Warmed(warmed) => match warmed {
            Warmed::Pending | Warmed::PendingWait(_) | Warmed::Ready(_) if dead => Step::Replace(
                "an instance was taken out of the warm pool in response to an EC2 health check indicating it has been terminated or stopped",
            ),
            Warmed::Pending => match instance.machine {
                Machine::Booting { at } if at <= now => Step::Start,
                Machine::Starting { give_up } if give_up <= now => Step::GiveUp,
                Machine::Running => Step::WarmWait,
                Machine::Booting { .. }
                | Machine::Starting { .. }
                | Machine::Stopping
                | Machine::Ended
                | Machine::Halting
                | Machine::Halted => Step::Stay,
            },
            Warmed::PendingWait(waiting) => {
                waiting.expire(now);
                match (waiting.abandoned, waiting.is_over()) {
                    (true, _) => Step::Abandon,
                    (false, true) => Step::Rest,
                    (false, false) => Step::Stay,
                }
            }
            Warmed::Ready(_) => Step::Stay,
            Warmed::TerminatingWait(waiting) => {
                waiting.expire(now);
                if waiting.is_over() { Step::WarmProceed } else { Step::Stay }
            }
            Warmed::Terminating | Warmed::TerminatingProceed => ending(instance.machine),
        },
    }
}

fn ending(machine: Machine) -> Step {
    match machine {
        Machine::Booting { .. } | Machine::Halted => Step::NeverMind,
        Machine::Starting { .. } | Machine::Running => Step::ShutDown,
        Machine::Stopping | Machine::Halting => Step::Stay,
        Machine::Ended => Step::Gone,
    }
}

fn in_service(group: &mut Group, id: &InstanceId, now: OffsetDateTime) {
    if let Some(instance) = group.instances.get_mut(id) {
        instance.lifecycle = Lifecycle::InService { since: now };
        let activity = instance.activity.clone();
        group.end_activity(&activity, ActivityStatus::Successful, None, now);
    }
}

fn set(group: &mut Group, id: &InstanceId, lifecycle: Lifecycle) {
    if let Some(instance) = group.instances.get_mut(id) {
        instance.lifecycle = lifecycle;
    }
}

fn going(group: &mut Group, world: &mut World, id: &InstanceId, why: &str, now: OffsetDateTime) {
    let cause = format!("At {} {why}.", at(now));
    begin_terminate(group, world, id, Going { cause, skip_hooks: false }, now);
}

/// Launches what is missing, lets go what is too much.
fn reconcile(group: &mut Group, world: &mut World, now: OffsetDateTime) {
    let wanted = group.desired + refresh::surge(group);
    while group.capacity() > wanted && !group.suspended.has(Process::Terminate) {
        let Some(id) = victim(group) else { break };
        let from = group.capacity();
        let cause = format!(
            "{}At {} an instance was taken out of service in response to a difference between desired and actual capacity, shrinking the capacity from {from} to {}.",
            group.scaling_cause.as_deref().unwrap_or_default(),
            at(now),
            from - 1
        );
        if warm_pool::give_back(group, world, &id, &cause, now) {
            continue;
        }
        begin_terminate(group, world, &id, Going { cause, skip_hooks: false }, now);
        // Without a hook (or a machine) the next tick would say it; the driver should not wait for that.
        while advance(group, world, &id, now) {}
    }
    while group.capacity() < wanted && !group.suspended.has(Process::Launch) {
        if warm_pool::take(group, world, now) {
            continue;
        }
        if !pace(group, now) {
            break;
        }
        let before = group.capacity();
        launch(group, world, Into::Group, now);
        if group.capacity() == before {
            break;
        }
        let booted: Vec<InstanceId> = group.instances.keys().cloned().collect();
        for id in booted {
            advance(group, world, &id, now);
        }
    }
}

/// New credentials for instances whose own end soon; their IMDS is told.
fn renew_credentials(group: &mut Group, world: &mut World, now: OffsetDateTime) {
    for instance in group.instances.values_mut() {
        let due = instance.credentials.expires <= now + RENEW_BEFORE;
        if due && matches!(instance.machine, Machine::Starting { .. } | Machine::Running) {
            instance.credentials =
                world.principals.issue(&mut world.ids, &world.config.role, &instance.id, now);
            let facts = world.facts(instance);
            world.effects.push(Effect::Update { facts });
        }
    }
}
