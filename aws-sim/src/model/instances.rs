//! Calls about single instances, and what the driver reports of them.

use time::OffsetDateTime;

use super::activity::{Activity, at};
use super::capacity::{Going, begin_terminate};
use super::group::{Lifecycle, Machine};
use super::requests::{SetHealth, SetProtection, TerminateInstance};
use super::{AwsError, InstanceId, Model};

impl Model {
    pub fn terminate_instance(
        &mut self,
        call: &TerminateInstance,
        now: OffsetDateTime,
    ) -> Result<Activity, AwsError> {
        let (group, world) = self.group_of_mut(&call.instance)?;
        let counts =
            group.instances.get(&call.instance).is_some_and(|instance| instance.lifecycle.counts());
        let mut cause = format!(
            "At {} instance {} was taken out of service in response to a user request",
            at(now),
            call.instance
        );
        if call.decrement && counts {
            if group.desired <= group.min {
                return Err(AwsError::validation(format!(
                    "Currently, desiredSize equals minSize ({}). Terminating instance without replacement will violate group's min \
                     size constraint. Either set shouldDecrementDesiredCapacity flag to false or lower group's min size.",
                    group.min
                )));
            }
            cause.push_str(&format!(
                ", shrinking the capacity from {} to {}",
                group.desired,
                group.desired - 1
            ));
            group.desired -= 1;
        }
        cause.push('.');
        let id =
            begin_terminate(group, world, &call.instance, Going { cause, skip_hooks: false }, now);
        group
            .activities
            .iter()
            .find(|activity| Some(&activity.id) == id.as_ref())
            .cloned()
            .ok_or_else(|| {
                AwsError::validation(format!(
                    "The instance {} is already terminating.",
                    call.instance
                ))
            })
    }

    pub fn set_health(&mut self, call: &SetHealth, now: OffsetDateTime) -> Result<(), AwsError> {
        let (group, _) = self.group_of_mut(&call.instance)?;
        let grace = group.health_check_grace;
        if let Some(instance) = group.instances.get_mut(&call.instance) {
            let in_grace = match &instance.lifecycle {
                Lifecycle::InService { since } => now < *since + grace,
                Lifecycle::Pending | Lifecycle::PendingWait(_) => true,
                Lifecycle::Terminating
                | Lifecycle::TerminatingWait(_)
                | Lifecycle::TerminatingProceed
                | Lifecycle::Warmed(_) => false,
            };
            if !(call.respect_grace && in_grace && !call.healthy) {
                instance.healthy = call.healthy;
            }
        }
        Ok(())
    }

    pub fn set_protection(&mut self, call: &SetProtection) -> Result<(), AwsError> {
        let (group, _) = self.living_group_mut(&call.group)?;
        for id in &call.instances {
            let Some(instance) = group.instances.get(id) else {
                return Err(AwsError::validation(format!(
                    "The instance {id} is not part of Auto Scaling group {}.",
                    call.group
                )));
            };
            if !matches!(instance.lifecycle, Lifecycle::InService { .. }) {
                return Err(AwsError::validation(format!(
                    "The instance {id} is not in InService or EnteringStandby or Standby."
                )));
            }
        }
        for id in &call.instances {
            if let Some(instance) = group.instances.get_mut(id) {
                instance.protected = call.protected;
            }
        }
        Ok(())
    }

    /// The driver's machine runs and its IMDS answers.
    pub fn instance_running(&mut self, id: &InstanceId) {
        if let Ok((group, _)) = self.group_of_mut(id)
            && let Some(instance) = group.instances.get_mut(id)
            && let Machine::Starting { .. } = instance.machine
        {
            instance.machine = Machine::Running;
            group.launches = Default::default();
        }
    }

    /// The driver's machine is gone: shut down as asked, died, or never came up.
    pub fn instance_dead(&mut self, id: &InstanceId) {
        if let Ok((group, _)) = self.group_of_mut(id)
            && let Some(instance) = group.instances.get_mut(id)
        {
            if let Machine::Starting { .. } = instance.machine {
                group.launches.failures += 1;
            }
            instance.machine = match instance.machine {
                Machine::Halting => Machine::Halted,
                _ => Machine::Ended,
            };
        }
    }
}
