//! Lifecycle hooks and the actions that wait on them.

use std::time::Duration;

use time::OffsetDateTime;

use super::group::{Group, Hook, HookAction, HookResult, Transition, Waiting};
use super::random::Ids;
use super::requests::{ActionRef, PutHook};
use super::{AwsError, Code, GroupName, HOOKS_MAX, HookName, Model};

/// API reference, PutLifecycleHook: 30 to 7200 seconds, one hour unless told.
const HEARTBEAT_SECS: std::ops::RangeInclusive<u64> = 30..=7200;
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(3600);

impl Model {
    pub fn put_hook(&mut self, call: PutHook) -> Result<(), AwsError> {
        let (group, _) = self.living_group_mut(&call.group)?;
        put(group, call)
    }

    /// Actions that wait on it stop waiting: AWS completes them (API reference: ABANDON for launching, CONTINUE for
    /// terminating instances).
    pub fn delete_hook(&mut self, name: &GroupName, hook: &HookName) -> Result<(), AwsError> {
        let (group, _) = self.living_group_mut(name)?;
        let Some(removed) = group.hooks.remove(hook) else {
            return Err(hook_not_found(hook));
        };
        for instance in group.instances.values_mut() {
            if let Some(waiting) = instance.lifecycle.waiting_mut()
                && waiting.actions.remove(hook).is_some()
                && removed.transition == Transition::Launching
            {
                waiting.abandoned = true;
            }
        }
        Ok(())
    }

    pub fn complete_action(
        &mut self,
        call: &ActionRef,
        result: HookResult,
    ) -> Result<(), AwsError> {
        let waiting = self.waiting(call)?;
        waiting.actions.remove(&call.hook);
        waiting.settle(result);
        Ok(())
    }

    pub fn record_heartbeat(
        &mut self,
        call: &ActionRef,
        now: OffsetDateTime,
    ) -> Result<(), AwsError> {
        let waiting = self.waiting(call)?;
        if let Some(action) = waiting.actions.get_mut(&call.hook) {
            action.heartbeat_until = (now + action.heartbeat).min(action.until);
        }
        Ok(())
    }

    /// The waiting action that a call means, or AWS's words for that there is none.
    fn waiting(&mut self, call: &ActionRef) -> Result<&mut Waiting, AwsError> {
        let (group, _) = self.group_mut(&call.group)?;
        if !group.hooks.contains_key(&call.hook) {
            return Err(hook_not_found(&call.hook));
        }
        let wanted = |waiting: &Waiting, id: &super::InstanceId| {
            waiting.actions.get(&call.hook).is_some_and(|action| {
                call.token.as_ref().is_none_or(|token| *token == action.token)
                    && call.instance.as_ref().is_none_or(|instance| instance == id)
            })
        };
        let missing = match (&call.token, &call.instance) {
            (Some(token), _) => format!("No active Lifecycle Action found with token {token}"),
            (None, Some(instance)) => {
                format!("No active Lifecycle Action found with instance ID {instance}")
            }
            (None, None) => {
                return Err(AwsError::validation(
                    "Either LifecycleActionToken or InstanceId must be specified",
                ));
            }
        };
        group
            .instances
            .values_mut()
            .find_map(|instance| {
                let id = &instance.id;
                instance.lifecycle.waiting_mut().filter(|waiting| wanted(waiting, id))
            })
            .ok_or_else(|| AwsError::validation(missing))
    }
}

impl Waiting {
    /// The actions of every hook of this transition, started now; `None` when there is no such hook.
    pub(super) fn start(
        group: &Group,
        transition: Transition,
        ids: &mut Ids,
        now: OffsetDateTime,
    ) -> Option<Waiting> {
        let actions: std::collections::BTreeMap<HookName, HookAction> = group
            .hooks
            .iter()
            .filter(|(_, hook)| hook.transition == transition)
            .map(|(name, hook)| (name.clone(), HookAction::start(hook, ids.uuid(), now)))
            .collect();
        (!actions.is_empty()).then_some(Waiting { actions, abandoned: false })
    }

    /// Lets those whose time is up take their default result.
    pub(super) fn expire(&mut self, now: OffsetDateTime) {
        while let Some(name) = self
            .actions
            .iter()
            .find(|(_, action)| action.heartbeat_until <= now)
            .map(|(name, _)| name.clone())
        {
            if let Some(action) = self.actions.remove(&name) {
                self.settle(action.default_result);
            }
        }
    }

    /// ABANDON ends the wait whatever the other hooks say (user guide, lifecycle hooks).
    fn settle(&mut self, result: HookResult) {
        match result {
            HookResult::Continue => {}
            HookResult::Abandon => {
                self.abandoned = true;
                self.actions.clear();
            }
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.actions.is_empty()
    }
}

impl HookAction {
    fn start(hook: &Hook, token: String, now: OffsetDateTime) -> Self {
        HookAction {
            token,
            heartbeat_until: now + hook.heartbeat,
            until: now + hook.global_timeout(),
            heartbeat: hook.heartbeat,
            default_result: hook.default_result,
        }
    }
}

/// Adds the hook, or changes what the call names of an existing one.
pub(super) fn put(group: &mut Group, call: PutHook) -> Result<(), AwsError> {
    let existing = group.hooks.get(&call.hook);
    if existing.is_none() && group.hooks.len() >= HOOKS_MAX {
        let message =
            format!("AutoScalingGroup '{}' may have {HOOKS_MAX} lifecycle hooks.", group.name);
        return Err(AwsError::new(Code::LimitExceeded, message));
    }
    let Some(transition) = call.transition.or(existing.map(|hook| hook.transition)) else {
        return Err(AwsError::validation(
            "Lifecycle transition is required to create a lifecycle hook",
        ));
    };
    let heartbeat =
        call.heartbeat.or(existing.map(|hook| hook.heartbeat)).unwrap_or(HEARTBEAT_DEFAULT);
    if !HEARTBEAT_SECS.contains(&heartbeat.as_secs()) {
        return Err(AwsError::validation(format!(
            "Heartbeat timeout of {} seconds is not between {} and {}",
            heartbeat.as_secs(),
            HEARTBEAT_SECS.start(),
            HEARTBEAT_SECS.end()
        )));
    }
    let default_result = call
        .default_result
        .or(existing.map(|hook| hook.default_result))
        .unwrap_or(HookResult::Abandon);
    let metadata = call.metadata.or(existing.and_then(|hook| hook.metadata.clone()));
    group.hooks.insert(call.hook, Hook { transition, heartbeat, default_result, metadata });
    Ok(())
}

fn hook_not_found(hook: &HookName) -> AwsError {
    AwsError::validation(format!("No Lifecycle Hook found with name: {hook}"))
}
