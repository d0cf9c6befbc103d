//! Every call that the agent makes, and those that AWS checks because of it. What is not here is in no policy.

/// The statement of a policy by which a call is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grant {
    Look,
    Create,
    Change,
    Steer,
    Tag,
    LaunchInstance,
    LaunchFrom,
    LaunchBehind,
    TagLaunched,
    PassNodeRole,
}

impl Grant {
    pub const ALL: [Grant; 10] = [
        Grant::Look,
        Grant::Create,
        Grant::Change,
        Grant::Steer,
        Grant::Tag,
        Grant::LaunchInstance,
        Grant::LaunchFrom,
        Grant::LaunchBehind,
        Grant::TagLaunched,
        Grant::PassNodeRole,
    ];

    /// Its `Sid`.
    pub fn sid(self) -> &'static str {
        match self {
            Grant::Look => "Look",
            Grant::Create => "Create",
            Grant::Change => "Change",
            Grant::Steer => "Steer",
            Grant::Tag => "Tag",
            Grant::LaunchInstance => "LaunchInstance",
            Grant::LaunchFrom => "LaunchFrom",
            Grant::LaunchBehind => "LaunchBehind",
            Grant::TagLaunched => "TagLaunched",
            Grant::PassNodeRole => "PassNodeRole",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profiles {
    Both,
    ScaleOnly,
    Manage,
}

#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub action: &'static str,
    pub grants: &'static [Grant],
    pub profiles: Profiles,
    /// Completes "so that the agent …".
    pub why: &'static str,
}

const fn call(
    action: &'static str,
    grants: &'static [Grant],
    profiles: Profiles,
    why: &'static str,
) -> Call {
    Call { action, grants, profiles, why }
}

use Profiles::{Both, Manage, ScaleOnly};

/// `sts:GetCallerIdentity` is called too, and needs no permission: AWS answers it to everybody, also
/// where a policy denies it.
pub const NEEDS_NO_PERMISSION: &[&str] = &["sts:GetCallerIdentity"];

pub const CALLS: &[Call] = &[
    call(
        "autoscaling:DescribeAutoScalingGroups",
        &[Grant::Look],
        Both,
        "sees its groups; groups of others are dropped before anything is reported",
    ),
    call(
        "autoscaling:DescribeAutoScalingInstances",
        &[Grant::Look],
        Both,
        "knows which group an instance is in before it gives it a certificate",
    ),
    call(
        "autoscaling:DescribePolicies",
        &[Grant::Look],
        Both,
        "sees whether a scaling policy is as ordered",
    ),
    call(
        "autoscaling:DescribeLifecycleHooks",
        &[Grant::Look],
        Manage,
        "sees whether the hooks on which drains and roll-outs rest are as they must be",
    ),
    call(
        "autoscaling:DescribeInstanceRefreshes",
        &[Grant::Look],
        Manage,
        "follows the roll-out of a new image",
    ),
    call(
        "autoscaling:CreateAutoScalingGroup",
        &[Grant::Create],
        Manage,
        "makes the group that was ordered",
    ),
    call(
        "autoscaling:UpdateAutoScalingGroup",
        &[Grant::Change],
        Manage,
        "changes bounds, template and subnets, and repairs them",
    ),
    call(
        "autoscaling:SetDesiredCapacity",
        &[Grant::Steer],
        ScaleOnly,
        "sets how many nodes there are, within the bounds of the customer; with manage it sets the bounds",
    ),
    call(
        "autoscaling:CompleteLifecycleAction",
        &[Grant::Steer],
        Both,
        "lets a drained instance go at once instead of at the hook's timeout",
    ),
    call(
        "autoscaling:DeleteAutoScalingGroup",
        &[Grant::Steer],
        Manage,
        "removes a group that was destroyed by order and has drained to zero",
    ),
    call(
        "autoscaling:PutLifecycleHook",
        &[Grant::Steer],
        Manage,
        "puts the hooks on which drains and roll-outs rest, where they are missing or changed",
    ),
    call(
        "autoscaling:PutScalingPolicy",
        &[Grant::Steer],
        Manage,
        "lets AWS scale the group by the metric that was ordered",
    ),
    call(
        "autoscaling:DeletePolicy",
        &[Grant::Steer],
        Manage,
        "takes a scaling policy away that is no longer ordered",
    ),
    call(
        "autoscaling:StartInstanceRefresh",
        &[Grant::Steer],
        Manage,
        "rolls a new image out, keeping the minimum healthy share",
    ),
    call(
        "autoscaling:CancelInstanceRefresh",
        &[Grant::Steer],
        Manage,
        "stops a roll-out that a newer order has overtaken",
    ),
    call(
        "autoscaling:SetInstanceHealth",
        &[Grant::Steer],
        Manage,
        "has a node replaced that says itself that it is broken",
    ),
    call(
        "autoscaling:CreateOrUpdateTags",
        &[Grant::Tag],
        Manage,
        "writes what new instances are born with: generation, environment, bundle",
    ),
    call(
        "ec2:RunInstances",
        &[Grant::LaunchInstance, Grant::LaunchFrom, Grant::LaunchBehind],
        Manage,
        "may use the launch template: AutoScaling asks whether its caller may launch from it",
    ),
    call(
        "ec2:CreateTags",
        &[Grant::TagLaunched],
        Manage,
        "may use a launch template that tags what it launches",
    ),
    call(
        "iam:PassRole",
        &[Grant::PassNodeRole],
        Manage,
        "may use a launch template with an instance profile: its role goes to the instances",
    ),
];

/// Those of `grant` that an agent of this profile makes.
pub fn granted(grant: Grant, scale_only: bool) -> impl Iterator<Item = &'static Call> {
    let wanted = if scale_only { ScaleOnly } else { Manage };
    CALLS
        .iter()
        .filter(move |call| call.grants.contains(&grant))
        .filter(move |call| call.profiles == Both || call.profiles == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_call_stands_here_once_with_a_reason() {
        let actions: BTreeSet<&str> = CALLS.iter().map(|call| call.action).collect();
        assert_eq!(actions.len(), CALLS.len());
        for call in CALLS {
            assert!(!call.why.is_empty() && !call.grants.is_empty(), "{call:?}");
        }
        for grant in Grant::ALL {
            assert!(granted(grant, false).next().is_some(), "nothing needs {grant:?}");
        }
    }
}
