//! Our two lifecycle hooks at AWS. Without the drain hook an instance ends in the middle of its calls; without the ready hook
//! it counts as in service before its node serves. Plain IO.

use std::fmt;

use aws_sdk_autoscaling::types::LifecycleHook;

use super::aws::{Aws, CallError, DRAIN_HEARTBEAT_SECS, DRAIN_HOOK};
use super::entry::{READY_HEARTBEAT_SECS, READY_HOOK};

const TERMINATING: &str = "autoscaling:EC2_INSTANCE_TERMINATING";
const LAUNCHING: &str = "autoscaling:EC2_INSTANCE_LAUNCHING";

/// A hook as we make it.
pub(super) struct Ours {
    name: &'static str,
    transition: &'static str,
    heartbeat_secs: i32,
    result: &'static str,
}

const DRAIN: Ours = Ours {
    name: DRAIN_HOOK,
    transition: TERMINATING,
    heartbeat_secs: DRAIN_HEARTBEAT_SECS,
    result: "CONTINUE",
};
pub(super) const READY: Ours = Ours {
    name: READY_HOOK,
    transition: LAUNCHING,
    heartbeat_secs: READY_HEARTBEAT_SECS,
    result: "ABANDON",
};

/// What AWS has under the name of a hook of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hook {
    /// As we make it.
    Ours,
    Missing,
    /// Something else, in words.
    Other(String),
}

/// Both of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    pub drain: Hook,
    pub ready: Hook,
}

impl Hooks {
    pub const OURS: Hooks = Hooks { drain: Hook::Ours, ready: Hook::Ours };

    /// How they differ from ours, in words; nothing of one that is as we make it.
    pub fn drain_drift(&self) -> Option<String> {
        self.drain.drift("drain", &DRAIN)
    }

    pub fn ready_drift(&self) -> Option<String> {
        self.ready.drift("ready", &READY)
    }
}

impl Hook {
    fn drift(&self, name: &str, ours: &Ours) -> Option<String> {
        let Ours { heartbeat_secs, result, .. } = ours;
        match self {
            Hook::Ours => None,
            is => Some(format!("{name} hook {heartbeat_secs} s, {result} -> {is}")),
        }
    }

    fn observed(hooks: &[LifecycleHook], ours: &Ours) -> Hook {
        let found = hooks.iter().find(|hook| hook.lifecycle_hook_name() == Some(ours.name));
        let Some(hook) = found else { return Hook::Missing };
        let heartbeat = hook.heartbeat_timeout().unwrap_or(0);
        let result = hook.default_result().unwrap_or("ABANDON");
        let transition = hook.lifecycle_transition().unwrap_or("none");
        if transition != ours.transition {
            return Hook::Other(format!("{heartbeat} s, {result}, at {transition}"));
        }
        if (heartbeat, result) == (ours.heartbeat_secs, ours.result) {
            return Hook::Ours;
        }
        Hook::Other(format!("{heartbeat} s, {result}"))
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hook::Ours => f.write_str("ours"),
            Hook::Missing => f.write_str("none"),
            Hook::Other(words) => f.write_str(words),
        }
    }
}

impl Aws {
    /// `None`: AWS does not have the group any more.
    pub(super) async fn hooks(&self, asg_name: &str) -> Result<Option<Hooks>, CallError> {
        self.turn().await;
        let described = self
            .autoscaling
            .describe_lifecycle_hooks()
            .auto_scaling_group_name(asg_name)
            .lifecycle_hook_names(DRAIN_HOOK)
            .lifecycle_hook_names(READY_HOOK)
            .send()
            .await
            .map_err(|e| CallError::of("DescribeLifecycleHooks", e));
        match described {
            Ok(answer) => {
                let of = |ours| Hook::observed(answer.lifecycle_hooks(), ours);
                Ok(Some(Hooks { drain: of(&DRAIN), ready: of(&READY) }))
            }
            Err(error) if error.has_code("ValidationError") => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn put_drain_hook(&self, asg_name: &str) -> Result<(), CallError> {
        self.put_hook(asg_name, &DRAIN).await
    }

    pub(super) async fn put_hook(&self, asg_name: &str, hook: &Ours) -> Result<(), CallError> {
        self.mutations
            .put_lifecycle_hook()
            .auto_scaling_group_name(asg_name)
            .lifecycle_hook_name(hook.name)
            .lifecycle_transition(hook.transition)
            .heartbeat_timeout(hook.heartbeat_secs)
            .default_result(hook.result)
            .send()
            .await
            .map(drop)
            .map_err(|e| CallError::of("PutLifecycleHook", e))
    }
}
