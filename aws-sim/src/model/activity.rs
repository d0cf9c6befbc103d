//! Scaling activities: the record of what a group did and why.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::group::Group;
use super::names::GroupName;

/// Newest activities kept per group. AWS keeps six weeks; this bounds memory instead.
const ACTIVITIES_MAX: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ActivityId(pub String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activity {
    pub id: ActivityId,
    pub group: GroupName,
    pub group_arn: String,
    pub description: String,
    pub cause: String,
    pub started: OffsetDateTime,
    pub ended: Option<OffsetDateTime>,
    pub status: ActivityStatus,
    pub message: Option<String>,
    pub details: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivityStatus {
    PreInService,
    InProgress,
    MidLifecycleAction,
    Successful,
    Failed,
    Cancelled,
}

impl ActivityStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            ActivityStatus::PreInService => "PreInService",
            ActivityStatus::InProgress => "InProgress",
            ActivityStatus::MidLifecycleAction => "MidLifecycleAction",
            ActivityStatus::Successful => "Successful",
            ActivityStatus::Failed => "Failed",
            ActivityStatus::Cancelled => "Cancelled",
        }
    }

    pub fn progress(self) -> u32 {
        match self {
            ActivityStatus::PreInService => 30,
            ActivityStatus::InProgress => 50,
            ActivityStatus::MidLifecycleAction => 60,
            ActivityStatus::Successful | ActivityStatus::Failed | ActivityStatus::Cancelled => 100,
        }
    }
}

impl Group {
    pub(super) fn record(&mut self, activity: Activity) {
        self.activities.push_front(activity);
        self.activities.truncate(ACTIVITIES_MAX);
    }

    pub(super) fn set_activity(&mut self, id: &ActivityId, status: ActivityStatus) {
        if let Some(activity) = self.activities.iter_mut().find(|activity| &activity.id == id) {
            activity.status = status;
        }
    }

    pub(super) fn end_activity(
        &mut self,
        id: &ActivityId,
        status: ActivityStatus,
        message: Option<String>,
        now: OffsetDateTime,
    ) {
        if let Some(activity) = self
            .activities
            .iter_mut()
            .find(|activity| &activity.id == id && activity.ended.is_none())
        {
            activity.status = status;
            activity.message = message;
            activity.ended = Some(now);
        }
    }
}

/// `2026-11-22T21:33:05Z`: how AWS writes times into causes.
pub(super) fn at(now: OffsetDateTime) -> String {
    now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default()
}
