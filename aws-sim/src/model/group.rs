//! An AutoScaling group as the model holds it, and what it is made of.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use time::OffsetDateTime;

use super::activity::{Activity, ActivityId};
use super::credentials::SessionCredentials;
use super::names::{GroupName, HookName, InstanceId, PolicyName};
use super::policies::Policy;

#[derive(Debug, Clone)]
pub struct Group {
    pub name: GroupName,
    pub arn: String,
    pub template: TemplateRef,
    pub min: u32,
    pub max: u32,
    pub desired: u32,
    pub placements: Vec<Placement>,
    /// As given; what DescribeAutoScalingGroups echoes.
    pub subnets: Option<String>,
    pub health_check_type: String,
    pub health_check_grace: Duration,
    pub default_cooldown: Duration,
    pub default_instance_warmup_secs: Option<u32>,
    pub termination_policies: Vec<TerminationPolicy>,
    pub new_instances_protected: bool,
    pub context: Option<String>,
    pub tags: BTreeMap<String, Tag>,
    pub hooks: BTreeMap<HookName, Hook>,
    pub policies: BTreeMap<PolicyName, Policy>,
    pub instances: BTreeMap<InstanceId, Instance>,
    pub created: OffsetDateTime,
    /// ForceDelete was asked for: instances are going, then the group goes.
    pub deleting: bool,
    pub activities: VecDeque<Activity>,
    pub launches: Launches,
    /// When the last scaling by desired capacity ended, for `HonorCooldown`.
    pub last_scaled: Option<OffsetDateTime>,
    /// Why a policy has changed the desired capacity, until the capacity follows: goes before the cause of each activity.
    pub scaling_cause: Option<String>,
}

/// Paces launches that keep failing.
#[derive(Debug, Clone, Default)]
pub struct Launches {
    pub failures: u32,
    pub not_before: Option<OffsetDateTime>,
}

/// A launch template by id, name and version as the caller gave it (`7`, `$Latest`, `$Default`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateRef {
    pub id: String,
    pub name: String,
    pub version: String,
}

/// One version of a launch template that exists in this simulated account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchTemplate {
    pub id: String,
    pub name: String,
    pub version: u32,
    pub image_id: String,
    pub instance_type: String,
    /// What the driver needs to find the user data; the model only hands it on.
    pub user_data: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Placement {
    pub zone: String,
    pub subnet: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    pub value: String,
    pub propagate: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerminationPolicy {
    Default,
    OldestInstance,
    NewestInstance,
    OldestLaunchTemplate,
}

impl TerminationPolicy {
    pub fn as_str(self) -> &'static str {
        match self {
            TerminationPolicy::Default => "Default",
            TerminationPolicy::OldestInstance => "OldestInstance",
            TerminationPolicy::NewestInstance => "NewestInstance",
            TerminationPolicy::OldestLaunchTemplate => "OldestLaunchTemplate",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub transition: Transition,
    pub heartbeat: Duration,
    pub default_result: HookResult,
    pub metadata: Option<String>,
}

impl Hook {
    /// Longest wait, heartbeats included: 48 hours or 100 heartbeats, whichever is shorter (user guide, lifecycle hooks).
    pub fn global_timeout(&self) -> Duration {
        (self.heartbeat * 100).min(Duration::from_secs(48 * 3600))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    Launching,
    Terminating,
}

impl Transition {
    pub fn as_str(self) -> &'static str {
        match self {
            Transition::Launching => "autoscaling:EC2_INSTANCE_LAUNCHING",
            Transition::Terminating => "autoscaling:EC2_INSTANCE_TERMINATING",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookResult {
    Continue,
    Abandon,
}

impl HookResult {
    pub fn as_str(self) -> &'static str {
        match self {
            HookResult::Continue => "CONTINUE",
            HookResult::Abandon => "ABANDON",
        }
    }
}

/// One instance: what AutoScaling says of it (`lifecycle`), and what its machine does (`machine`).
#[derive(Debug, Clone)]
pub struct Instance {
    pub id: InstanceId,
    pub group: GroupName,
    pub placement: Placement,
    pub address: Ipv4Addr,
    pub template: LaunchTemplate,
    pub launched: OffsetDateTime,
    /// Propagated tags as of the launch; later changes of the group's tags do not reach it.
    pub tags: BTreeMap<String, String>,
    pub protected: bool,
    pub healthy: bool,
    pub lifecycle: Lifecycle,
    pub machine: Machine,
    pub credentials: SessionCredentials,
    /// The scaling activity that currently concerns it.
    pub activity: ActivityId,
}

/// AutoScaling's view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lifecycle {
    Pending,
    PendingWait(Waiting),
    InService { since: OffsetDateTime },
    Terminating,
    TerminatingWait(Waiting),
    TerminatingProceed,
}

/// Lifecycle actions that must be completed (or time out) before the instance goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Waiting {
    pub actions: BTreeMap<HookName, HookAction>,
    pub abandoned: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookAction {
    pub token: String,
    pub heartbeat_until: OffsetDateTime,
    /// No heartbeat reaches beyond this.
    pub until: OffsetDateTime,
    pub heartbeat: Duration,
    pub default_result: HookResult,
}

/// EC2's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// Asked for; the driver is told to launch it at `at`.
    Booting {
        at: OffsetDateTime,
    },
    /// The driver was told; it has not said that the machine runs.
    Starting {
        give_up: OffsetDateTime,
    },
    Running,
    /// The driver was told to shut it down.
    Stopping,
    Ended,
}

impl Lifecycle {
    pub fn as_str(&self) -> &'static str {
        match self {
            Lifecycle::Pending => "Pending",
            Lifecycle::PendingWait(_) => "Pending:Wait",
            Lifecycle::InService { .. } => "InService",
            Lifecycle::Terminating => "Terminating",
            Lifecycle::TerminatingWait(_) => "Terminating:Wait",
            Lifecycle::TerminatingProceed => "Terminating:Proceed",
        }
    }

    /// Counts towards the desired capacity.
    pub fn counts(&self) -> bool {
        match self {
            Lifecycle::Pending | Lifecycle::PendingWait(_) | Lifecycle::InService { .. } => true,
            Lifecycle::Terminating
            | Lifecycle::TerminatingWait(_)
            | Lifecycle::TerminatingProceed => false,
        }
    }

    /// What IMDS shows as `autoscaling/target-lifecycle-state`.
    pub fn target(&self) -> &'static str {
        if self.counts() { "InService" } else { "Terminated" }
    }

    pub fn waiting_mut(&mut self) -> Option<&mut Waiting> {
        match self {
            Lifecycle::PendingWait(waiting) | Lifecycle::TerminatingWait(waiting) => Some(waiting),
            Lifecycle::Pending
            | Lifecycle::InService { .. }
            | Lifecycle::Terminating
            | Lifecycle::TerminatingProceed => None,
        }
    }
}

impl Group {
    /// Instances that count towards the desired capacity.
    pub fn capacity(&self) -> u32 {
        u32::try_from(
            self.instances.values().filter(|instance| instance.lifecycle.counts()).count(),
        )
        .unwrap_or(u32::MAX)
    }

    pub fn zones(&self) -> Vec<&str> {
        let mut zones: Vec<&str> =
            self.placements.iter().map(|placement| placement.zone.as_str()).collect();
        zones.dedup();
        zones
    }

    pub fn tag_list(&self) -> impl Iterator<Item = (&GroupName, &String, &Tag)> {
        self.tags.iter().map(|(key, tag)| (&self.name, key, tag))
    }
}
