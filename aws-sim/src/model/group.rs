//! An AutoScaling group as the model holds it, and what it is made of.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use time::OffsetDateTime;

use super::activity::{Activity, ActivityId};
use super::credentials::SessionCredentials;
use super::names::{GroupName, HookName, InstanceId, PolicyName};
use super::policies::Policy;
use super::refresh::Refresh;
use super::suspended::Suspended;
use super::warm_pool::{PoolState, WarmPool};

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
    pub suspended: Suspended,
    /// Newest first.
    pub refreshes: VecDeque<Refresh>,
    pub warm_pool: Option<WarmPool>,
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
    /// What instances of its group's warm pool wait as, as of when it last came to the pool.
    pub pool: PoolState,
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
    InService {
        since: OffsetDateTime,
    },
    Terminating,
    TerminatingWait(Waiting),
    TerminatingProceed,
    /// It is in the warm pool.
    Warmed(Warmed),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warmed {
    Pending,
    PendingWait(Waiting),
    Ready(PoolState),
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
    /// The same, but it is stopped only: it keeps its id and address, and is started again.
    Halting,
    Halted,
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
            Lifecycle::Warmed(warmed) => warmed.as_str(),
        }
    }

    /// Counts towards the desired capacity.
    pub fn counts(&self) -> bool {
        match self {
            Lifecycle::Pending | Lifecycle::PendingWait(_) | Lifecycle::InService { .. } => true,
            Lifecycle::Terminating
            | Lifecycle::TerminatingWait(_)
            | Lifecycle::TerminatingProceed
            | Lifecycle::Warmed(_) => false,
        }
    }

    /// It ends, whatever happens.
    pub fn is_leaving(&self) -> bool {
        match self {
            Lifecycle::Pending | Lifecycle::PendingWait(_) | Lifecycle::InService { .. } => false,
            Lifecycle::Terminating
            | Lifecycle::TerminatingWait(_)
            | Lifecycle::TerminatingProceed => true,
            Lifecycle::Warmed(warmed) => match warmed {
                Warmed::Pending | Warmed::PendingWait(_) | Warmed::Ready(_) => false,
                Warmed::Terminating | Warmed::TerminatingWait(_) | Warmed::TerminatingProceed => {
                    true
                }
            },
        }
    }

    /// What IMDS shows as `autoscaling/target-lifecycle-state`; `pool` is what instances of the warm pool wait as.
    pub fn target(&self, pool: PoolState) -> &'static str {
        match (self, self.is_leaving()) {
            (Lifecycle::Warmed(_), true) => "Warmed:Terminated",
            (Lifecycle::Warmed(Warmed::Ready(state)), false) => warmed_state(*state),
            (Lifecycle::Warmed(_), false) => warmed_state(pool),
            (_, true) => "Terminated",
            (_, false) => "InService",
        }
    }

    pub fn waiting_mut(&mut self) -> Option<&mut Waiting> {
        match self {
            Lifecycle::PendingWait(waiting)
            | Lifecycle::TerminatingWait(waiting)
            | Lifecycle::Warmed(Warmed::PendingWait(waiting) | Warmed::TerminatingWait(waiting)) => {
                Some(waiting)
            }
            Lifecycle::Pending
            | Lifecycle::InService { .. }
            | Lifecycle::Terminating
            | Lifecycle::TerminatingProceed
            | Lifecycle::Warmed(
                Warmed::Pending
                | Warmed::Ready(_)
                | Warmed::Terminating
                | Warmed::TerminatingProceed,
            ) => None,
        }
    }
}

impl Warmed {
    fn as_str(&self) -> &'static str {
        match self {
            Warmed::Pending => "Warmed:Pending",
            Warmed::PendingWait(_) => "Warmed:Pending:Wait",
            Warmed::Ready(state) => warmed_state(*state),
            Warmed::Terminating => "Warmed:Terminating",
            Warmed::TerminatingWait(_) => "Warmed:Terminating:Wait",
            Warmed::TerminatingProceed => "Warmed:Terminating:Proceed",
        }
    }
}

fn warmed_state(state: PoolState) -> &'static str {
    match state {
        PoolState::Stopped => "Warmed:Stopped",
        PoolState::Running => "Warmed:Running",
        PoolState::Hibernated => "Warmed:Hibernated",
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
