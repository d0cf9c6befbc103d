//! Instance refresh: a group's instances are replaced within its healthy share (user guide, instance refresh).

use std::collections::BTreeSet;

use time::OffsetDateTime;

use super::describe::{Paged, page_size, read_token, write_token};
use super::group::{Group, Instance, LaunchTemplate, TemplateRef};
use super::requests::{Page, StartRefresh};
use super::{AwsError, Code, GroupName, InstanceId, Model, group_not_found};

mod rolling;

use rolling::{put, roll_back};
pub(super) use rolling::{step, surge};

/// Refreshes kept per group. AWS keeps six weeks; this bounds memory instead.
const REFRESHES_MAX: usize = 100;
/// As given; defaults are applied where they are used, so that describes show what was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preferences {
    pub min_healthy: Option<u32>,
    pub max_healthy: Option<u32>,
    pub warmup_secs: Option<u32>,
    pub skip_matching: Option<bool>,
    pub auto_rollback: Option<bool>,
    pub protected: Option<Protected>,
    pub standby: Option<Standby>,
}

/// What happens to instances that are protected from scale-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protected {
    Refresh,
    Ignore,
    Wait,
}

impl Protected {
    pub fn as_str(self) -> &'static str {
        match self {
            Protected::Refresh => "Refresh",
            Protected::Ignore => "Ignore",
            Protected::Wait => "Wait",
        }
    }
}

/// Taken and shown; there is no standby in this simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standby {
    Terminate,
    Ignore,
    Wait,
}

impl Standby {
    pub fn as_str(self) -> &'static str {
        match self {
            Standby::Terminate => "Terminate",
            Standby::Ignore => "Ignore",
            Standby::Wait => "Wait",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshStatus {
    Pending,
    InProgress,
    Successful,
    Failed,
    Cancelling,
    Cancelled,
    RollbackInProgress,
    RollbackFailed,
    RollbackSuccessful,
}

impl RefreshStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            RefreshStatus::Pending => "Pending",
            RefreshStatus::InProgress => "InProgress",
            RefreshStatus::Successful => "Successful",
            RefreshStatus::Failed => "Failed",
            RefreshStatus::Cancelling => "Cancelling",
            RefreshStatus::Cancelled => "Cancelled",
            RefreshStatus::RollbackInProgress => "RollbackInProgress",
            RefreshStatus::RollbackFailed => "RollbackFailed",
            RefreshStatus::RollbackSuccessful => "RollbackSuccessful",
        }
    }

    pub fn is_active(self) -> bool {
        match self {
            RefreshStatus::Pending
            | RefreshStatus::InProgress
            | RefreshStatus::Cancelling
            | RefreshStatus::RollbackInProgress => true,
            RefreshStatus::Successful
            | RefreshStatus::Failed
            | RefreshStatus::Cancelled
            | RefreshStatus::RollbackFailed
            | RefreshStatus::RollbackSuccessful => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refresh {
    pub id: String,
    pub status: RefreshStatus,
    pub reason: Option<String>,
    pub started: OffsetDateTime,
    pub ended: Option<OffsetDateTime>,
    pub desired: Option<TemplateRef>,
    pub preferences: Preferences,
    pub percent: u32,
    pub to_update: u32,
    pub rollback: Option<Rollback>,
    /// What the group launched before.
    origin: TemplateRef,
    /// Instances that must go, as of the start or of the rollback's.
    outdated: BTreeSet<InstanceId>,
    total: u32,
    /// The best so far, and when: without progress for an hour it fails.
    fewest_outdated: usize,
    most_updated: u32,
    progress: OffsetDateTime,
    /// When it was cancelled, if what was starting then is waited for.
    waits_since: Option<OffsetDateTime>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollback {
    pub reason: String,
    pub started: OffsetDateTime,
    pub percent: u32,
    pub to_update: u32,
}

impl Model {
    pub fn start_refresh(
        &mut self,
        call: StartRefresh,
        now: OffsetDateTime,
    ) -> Result<String, AwsError> {
        let (group, world) = self.living_group_mut(&call.group)?;
        if is_active(group) {
            return Err(AwsError::new(
                Code::InstanceRefreshInProgress,
                "An Instance Refresh is already in progress and blocks the execution of this Instance Refresh.",
            ));
        }
        let preferences = call.preferences;
        check(&preferences)?;
        let desired = call.desired.as_ref().map(|spec| world.template_ref(spec)).transpose()?;
        if preferences.auto_rollback == Some(true) {
            if desired.is_none() {
                return Err(AwsError::validation(
                    "The request isn't valid. The AutoRollback parameter cannot be set to true when the DesiredConfiguration \
                     parameter is empty. Set AutoRollback to false or specify a desired configuration and try again.",
                ));
            }
            if [Some(&group.template), desired.as_ref()].into_iter().flatten().any(is_moving) {
                return Err(AwsError::validation(
                    "The AutoRollback parameter cannot be set to true when the launch template version is $Latest or $Default.",
                ));
            }
        }
        let target = world.resolve(desired.as_ref().unwrap_or(&group.template))?;
        let skip = preferences.skip_matching == Some(true);
        let outdated = members(group)
            .filter(|instance| !(skip && matches(&instance.template, &target)))
            .filter(|instance| {
                !(instance.protected && preferences.protected == Some(Protected::Ignore))
            })
            .map(|instance| instance.id.clone())
            .collect();
        let refresh = Refresh {
            id: world.ids.uuid(),
            status: RefreshStatus::Pending,
            reason: None,
            started: now,
            ended: None,
            desired,
            preferences,
            percent: 0,
            to_update: 0,
            rollback: None,
            origin: group.template.clone(),
            outdated,
            total: 0,
            fewest_outdated: usize::MAX,
            most_updated: 0,
            progress: now,
            waits_since: None,
        };
        let mut refresh = refresh;
        refresh.total = count(refresh.outdated.len());
        refresh.to_update = refresh.total;
        let id = refresh.id.clone();
        group.refreshes.push_front(refresh);
        group.refreshes.truncate(REFRESHES_MAX);
        Ok(id)
    }

    /// Newest first; unknown ids are left out.
    pub fn describe_refreshes(
        &self,
        name: &GroupName,
        ids: &[String],
        page: &Page,
    ) -> Result<(&Group, Paged<&Refresh>), AwsError> {
        let group = self.groups.get(name).ok_or_else(|| group_not_found(name))?;
        let wanted = |refresh: &&Refresh| ids.is_empty() || ids.contains(&refresh.id);
        let mut refreshes: Vec<&Refresh> = group.refreshes.iter().filter(wanted).collect();
        let limit = page_size(page, 50)?;
        let skip = match &page.next_token {
            None => 0,
            Some(token) => {
                let last = read_token(token)?;
                let position = refreshes.iter().position(|refresh| refresh.id == last);
                position.ok_or_else(|| super::describe::invalid_token(token))? + 1
            }
        };
        let rest = refreshes.split_off(skip.min(refreshes.len()));
        let next_token = (rest.len() > limit).then(|| write_token(&rest[limit - 1].id));
        let items = rest.into_iter().take(limit).collect();
        Ok((group, Paged { items, next_token }))
    }

    pub fn cancel_refresh(
        &mut self,
        name: &GroupName,
        wait_for_transitions: bool,
        now: OffsetDateTime,
    ) -> Result<String, AwsError> {
        let (group, _) = self.living_group_mut(name)?;
        let refresh = active_mut(group, name)?;
        if refresh.status == RefreshStatus::Cancelling {
            return Err(no_active(name));
        }
        refresh.status = RefreshStatus::Cancelling;
        refresh.reason = Some("Cancelled by user".to_owned());
        refresh.waits_since = wait_for_transitions.then_some(now);
        Ok(refresh.id.clone())
    }

    pub fn rollback_refresh(
        &mut self,
        name: &GroupName,
        now: OffsetDateTime,
    ) -> Result<String, AwsError> {
        let (group, world) = self.living_group_mut(name)?;
        let refresh = active_mut(group, name)?;
        match refresh.status {
            RefreshStatus::Pending | RefreshStatus::InProgress => {}
            _ => return Err(no_active(name)),
        }
        if refresh.desired.is_none() || is_moving(&refresh.origin) {
            return Err(AwsError::new(
                Code::IrreversibleInstanceRefresh,
                "The instance refresh cannot be rolled back: it has no desired configuration, or the group's launch template \
                 version is $Latest or $Default.",
            ));
        }
        let mut refresh = refresh.clone();
        let id = refresh.id.clone();
        roll_back(&mut refresh, group, world, "Rollback requested by user".to_owned(), now);
        put(group, refresh);
        Ok(id)
    }
}

pub(super) fn is_active(group: &Group) -> bool {
    group.refreshes.front().is_some_and(|refresh| refresh.status.is_active())
}

/// What the group launches now: a refresh's desired configuration counts from its start, the group's own again as
/// soon as it is cancelled or rolled back (API reference, StartInstanceRefresh).
pub(super) fn launch_template(group: &Group) -> &TemplateRef {
    let desired = group.refreshes.front().filter(|refresh| match refresh.status {
        RefreshStatus::Pending | RefreshStatus::InProgress => true,
        RefreshStatus::Successful
        | RefreshStatus::Failed
        | RefreshStatus::Cancelling
        | RefreshStatus::Cancelled
        | RefreshStatus::RollbackInProgress
        | RefreshStatus::RollbackFailed
        | RefreshStatus::RollbackSuccessful => false,
    });
    desired.and_then(|refresh| refresh.desired.as_ref()).unwrap_or(&group.template)
}

/// Whether the group's template may not be changed because a refresh is on its way to another.
pub(super) fn pins_template(group: &Group) -> bool {
    group
        .refreshes
        .front()
        .is_some_and(|refresh| refresh.status.is_active() && refresh.desired.is_some())
}

fn check(preferences: &Preferences) -> Result<(), AwsError> {
    let range = |value: Option<u32>, name: &str, low: u32, high: u32| match value {
        Some(value) if value < low || value > high => Err(AwsError::constraint(
            &value.to_string(),
            &format!("preferences.{name}"),
            &if value < low {
                format!("Member must have value greater than or equal to {low}")
            } else {
                format!("Member must have value less than or equal to {high}")
            },
        )),
        Some(_) | None => Ok(()),
    };
    range(preferences.min_healthy, "minHealthyPercentage", 0, 100)?;
    range(preferences.max_healthy, "maxHealthyPercentage", 100, 200)?;
    match (preferences.min_healthy, preferences.max_healthy) {
        (None, Some(_)) => Err(AwsError::validation(
            "MinHealthyPercentage must be specified when MaxHealthyPercentage is specified.",
        )),
        (Some(min), Some(max)) if max - min > 100 => Err(AwsError::validation(
            "The difference between MaxHealthyPercentage and MinHealthyPercentage cannot be greater than 100.",
        )),
        (Some(_), Some(_)) | (_, None) => Ok(()),
    }
}

/// Instances of the group and of its pool that are not on their way out.
fn members(group: &Group) -> impl Iterator<Item = &Instance> {
    group.instances.values().filter(|instance| !instance.lifecycle.is_leaving())
}

fn matches(is: &LaunchTemplate, wanted: &LaunchTemplate) -> bool {
    (&is.id, is.version) == (&wanted.id, wanted.version)
}

fn is_moving(template: &TemplateRef) -> bool {
    template.version.starts_with('$')
}

fn active_mut<'a>(group: &'a mut Group, name: &GroupName) -> Result<&'a mut Refresh, AwsError> {
    let active = group.refreshes.front_mut().filter(|refresh| refresh.status.is_active());
    active.ok_or_else(|| no_active(name))
}

fn no_active(name: &GroupName) -> AwsError {
    AwsError::new(
        Code::ActiveInstanceRefreshNotFound,
        format!("No in progress or pending Instance Refresh found for Auto Scaling group {name}"),
    )
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
