//! The calls, typed: what is left of a request once the wire layer has parsed it.

use std::time::Duration;

use super::group::{HookResult, TerminationPolicy, Transition};
use super::names::{GroupName, HookName, InstanceId};
use super::refresh::Preferences;
use super::warm_pool::PoolState;

/// A launch template as a caller names it: id or name, version optional (`$Default`).
#[derive(Debug, Clone, Default)]
pub struct TemplateSpec {
    pub id: Option<String>,
    pub name: Option<String>,
    pub version: Option<String>,
}

#[derive(Debug, Clone)]
pub struct TagSpec {
    pub group: Option<String>,
    pub resource_type: Option<String>,
    pub key: String,
    /// Absent in DeleteTags means whatever the value is.
    pub value: Option<String>,
    pub propagate: bool,
}

/// What Create and Update have in common; in an update, what is absent stays.
#[derive(Debug, Clone, Default)]
pub struct GroupSettings {
    pub template: Option<TemplateSpec>,
    pub min: Option<u32>,
    pub max: Option<u32>,
    pub desired: Option<u32>,
    pub zones: Option<Vec<String>>,
    pub subnets: Option<String>,
    pub health_check_type: Option<String>,
    pub health_check_grace: Option<Duration>,
    pub default_cooldown: Option<Duration>,
    pub default_instance_warmup: Option<i64>,
    pub termination_policies: Option<Vec<TerminationPolicy>>,
    pub new_instances_protected: Option<bool>,
    pub context: Option<String>,
}

#[derive(Debug, Clone)]
pub struct CreateGroup {
    pub name: GroupName,
    pub settings: GroupSettings,
    pub tags: Vec<TagSpec>,
    pub hooks: Vec<PutHook>,
}

#[derive(Debug, Clone)]
pub struct UpdateGroup {
    pub name: GroupName,
    pub settings: GroupSettings,
}

#[derive(Debug, Clone)]
pub struct SetDesired {
    pub name: GroupName,
    pub desired: u32,
    pub honor_cooldown: bool,
}

#[derive(Debug, Clone)]
pub struct PutHook {
    pub group: GroupName,
    pub hook: HookName,
    pub transition: Option<Transition>,
    pub heartbeat: Option<Duration>,
    pub default_result: Option<HookResult>,
    pub metadata: Option<String>,
}

/// Which waiting lifecycle action is meant: by token, or by instance.
#[derive(Debug, Clone)]
pub struct ActionRef {
    pub group: GroupName,
    pub hook: HookName,
    pub token: Option<String>,
    pub instance: Option<InstanceId>,
}

#[derive(Debug, Clone)]
pub struct TerminateInstance {
    pub instance: InstanceId,
    pub decrement: bool,
}

#[derive(Debug, Clone)]
pub struct SetHealth {
    pub instance: InstanceId,
    pub healthy: bool,
    pub respect_grace: bool,
}

#[derive(Debug, Clone)]
pub struct SetProtection {
    pub group: GroupName,
    pub instances: Vec<InstanceId>,
    pub protected: bool,
}

#[derive(Debug, Clone)]
pub struct StartRefresh {
    pub group: GroupName,
    pub desired: Option<TemplateSpec>,
    pub preferences: Preferences,
}

/// What is absent stays as it is.
#[derive(Debug, Clone)]
pub struct PutWarmPool {
    pub group: GroupName,
    pub min_size: Option<u32>,
    pub prepared_max: Option<i64>,
    pub state: Option<PoolState>,
    pub reuse_on_scale_in: Option<bool>,
}

/// `tag:<key>`, `tag-key`, … and the values of which one must match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub name: String,
    pub values: Vec<String>,
}

#[derive(Debug, Clone, Default)]
pub struct Page {
    pub records_max: Option<u32>,
    pub next_token: Option<String>,
}
