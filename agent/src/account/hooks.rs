//! The drain hook at AWS: without it an instance ends in the middle of its calls. Plain IO.

use std::fmt;

use aws_sdk_autoscaling::types::LifecycleHook;

use super::aws::{Aws, CallError, DRAIN_HEARTBEAT_SECS, DRAIN_HOOK};

const TERMINATING: &str = "autoscaling:EC2_INSTANCE_TERMINATING";
const CONTINUE: &str = "CONTINUE";

/// What AWS has under the name of our hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DrainHook {
    /// As we make it.
    Ours,
    Missing,
    /// Something else, in words.
    Other(String),
}

impl fmt::Display for DrainHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DrainHook::Ours => write!(f, "{DRAIN_HEARTBEAT_SECS} s, {CONTINUE}"),
            DrainHook::Missing => f.write_str("none"),
            DrainHook::Other(words) => f.write_str(words),
        }
    }
}

impl Aws {
    /// `None`: AWS does not have the group any more.
    pub(super) async fn drain_hook(&self, asg_name: &str) -> Result<Option<DrainHook>, CallError> {
        let described = self
            .autoscaling
            .describe_lifecycle_hooks()
            .auto_scaling_group_name(asg_name)
            .lifecycle_hook_names(DRAIN_HOOK)
            .send()
            .await
            .map_err(|e| CallError::of("DescribeLifecycleHooks", e));
        match described {
            Ok(answer) => {
                let ours = |hook: &&LifecycleHook| hook.lifecycle_hook_name() == Some(DRAIN_HOOK);
                let found = answer.lifecycle_hooks().iter().find(ours);
                Ok(Some(found.map_or(DrainHook::Missing, observed)))
            }
            Err(error) if error.has_code("ValidationError") => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn put_drain_hook(&self, asg_name: &str) -> Result<(), CallError> {
        self.mutations
            .put_lifecycle_hook()
            .auto_scaling_group_name(asg_name)
            .lifecycle_hook_name(DRAIN_HOOK)
            .lifecycle_transition(TERMINATING)
            .heartbeat_timeout(DRAIN_HEARTBEAT_SECS)
            .default_result(CONTINUE)
            .send()
            .await
            .map(drop)
            .map_err(|e| CallError::of("PutLifecycleHook", e))
    }
}

fn observed(hook: &LifecycleHook) -> DrainHook {
    let heartbeat = hook.heartbeat_timeout().unwrap_or(0);
    let result = hook.default_result().unwrap_or("ABANDON");
    let transition = hook.lifecycle_transition().unwrap_or("none");
    match transition {
        TERMINATING if (heartbeat, result) == (DRAIN_HEARTBEAT_SECS, CONTINUE) => DrainHook::Ours,
        TERMINATING => DrainHook::Other(format!("{heartbeat} s, {result}")),
        other => DrainHook::Other(format!("{heartbeat} s, {result}, at {other}")),
    }
}
