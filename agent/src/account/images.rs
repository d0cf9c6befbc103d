//! The calls about instance refreshes and broken instances, and what AWS last said of each group's refresh. Plain IO: what to
//! call is decided in `refresh` and `replacements`.

use std::collections::BTreeMap;

use aws_sdk_autoscaling::types::{
    DesiredConfiguration, InstanceRefresh, RefreshPreferences, ScaleInProtectedInstances,
    StandbyInstances,
};
use outstation_protocol::{GroupName, InstanceId};

use super::aws::{Aws, CallError, template};
use super::entry::READY_HOOK;
use super::guardrails::{Guardrails, LaunchTemplate};
use super::hooks::READY;
use super::plan::Observed;
use super::refresh::{Refresh, RefreshState};

/// Groups asked about in one look: each is a call of its own, and one account shares its API budget.
const ASKED_A_LOOK_MAX: usize = 20;
/// More than one, as the order of the list is AWS's business.
const NEWEST_OF: i32 = 10;

/// What AWS said of the refreshes of groups whose image is not as wanted.
#[derive(Default)]
pub struct Images {
    looks: u64,
    known: BTreeMap<GroupName, (u64, Result<Option<Refresh>, String>)>,
}

impl Images {
    /// Asks where it matters, those first whose answer is oldest. A group that cannot be asked about blocks no other.
    pub async fn look(&mut self, aws: &Aws, observed: &mut Observed, guardrails: &Guardrails) {
        self.looks += 1;
        let wanted = &guardrails.launch_template;
        let mut differ: Vec<&GroupName> = observed
            .iter()
            .filter(|(_, group)| !group.deleting && !group.has_image(wanted))
            .map(|(name, _)| name)
            .collect();
        self.known.retain(|name, _| differ.contains(&name));
        differ.sort_by_key(|name| self.known.get(*name).map_or(0, |(look, _)| *look));
        let asked: Vec<GroupName> = differ.into_iter().take(ASKED_A_LOOK_MAX).cloned().collect();
        for name in asked {
            let answer = aws.newest_refresh(&guardrails.asg_name(&name)).await;
            let answer = answer.map_err(|error| error.to_string());
            self.known.insert(name, (self.looks, answer));
        }
        for (name, group) in observed.iter_mut().filter(|(_, group)| !group.has_image(wanted)) {
            match self.known.get(name) {
                Some((_, Ok(refresh))) => group.image.refresh.clone_from(refresh),
                Some((_, Err(why))) => group.image.unknown = Some(why.clone()),
                None => group.image.unknown = Some("it is asked in a moment".to_owned()),
            }
        }
    }

    /// Something was changed: what was said before does not count.
    pub fn forget(&mut self, group: &GroupName) {
        self.known.remove(group);
    }
}

impl Aws {
    async fn newest_refresh(&self, asg_name: &str) -> Result<Option<Refresh>, CallError> {
        self.turn().await;
        let described = self
            .autoscaling
            .describe_instance_refreshes()
            .auto_scaling_group_name(asg_name)
            .max_records(NEWEST_OF)
            .send()
            .await
            .map_err(|e| CallError::of("DescribeInstanceRefreshes", e))?;
        let mut refreshes: Vec<&InstanceRefresh> = described.instance_refreshes().iter().collect();
        // Stable: of those that began at the same moment AWS's first stays the first.
        let started =
            |it: &&InstanceRefresh| it.start_time().map(|at| (at.secs(), at.subsec_nanos()));
        refreshes.sort_by_key(|refresh| std::cmp::Reverse(started(refresh)));
        let refreshes: Vec<Refresh> = refreshes.into_iter().map(refresh).collect();
        Ok(telling(refreshes))
    }

    /// One that is under way already is as good: the next look says which.
    pub(super) async fn start_refresh(
        &self,
        asg_name: &str,
        launch_template: &LaunchTemplate,
        min_healthy_percent: u32,
    ) -> Result<(), CallError> {
        let percent = i32::try_from(min_healthy_percent).unwrap_or(100);
        // With the maximum said, AWS launches before it ends where it cannot keep the minimum otherwise.
        let preferences = RefreshPreferences::builder()
            .min_healthy_percentage(percent)
            .max_healthy_percentage(100)
            .skip_matching(true)
            .auto_rollback(true)
            .scale_in_protected_instances(ScaleInProtectedInstances::Refresh)
            .standby_instances(StandbyInstances::Ignore)
            .build();
        let desired =
            DesiredConfiguration::builder().launch_template(template(launch_template)).build();
        let started = self
            .mutations
            .start_instance_refresh()
            .auto_scaling_group_name(asg_name)
            .desired_configuration(desired)
            .preferences(preferences)
            .send()
            .await
            .map(drop)
            .map_err(|e| CallError::of("StartInstanceRefresh", e));
        already(started, "InstanceRefreshInProgress")
    }

    /// Also for a group that was made before there was this hook, or that somebody took it from: without it AWS would go on
    /// as soon as a machine runs.
    pub(super) async fn put_ready_hook(&self, asg_name: &str) -> Result<(), CallError> {
        self.put_hook(asg_name, &READY).await
    }

    pub(super) async fn cancel_refresh(&self, asg_name: &str) -> Result<(), CallError> {
        let cancelled = self
            .mutations
            .cancel_instance_refresh()
            .auto_scaling_group_name(asg_name)
            // Instances of a broken image may never come up.
            .wait_for_transitioning_instances(false)
            .send()
            .await
            .map(drop)
            .map_err(|e| CallError::of("CancelInstanceRefresh", e));
        already(cancelled, "ActiveInstanceRefreshNotFound")
    }

    /// AWS ends it, through the drain hook, and launches another.
    pub(super) async fn replace(&self, instance: &InstanceId) -> Result<(), CallError> {
        let marked = self
            .mutations
            .set_instance_health()
            .instance_id(instance.as_str())
            .health_status("Unhealthy")
            .should_respect_grace_period(true)
            .send()
            .await
            .map(drop)
            .map_err(|e| CallError::of("SetInstanceHealth", e));
        // It is gone.
        already(marked, "ValidationError")
    }

    /// Lets a launched instance into service. One that does not wait any more is no error.
    pub(super) async fn complete_launch(
        &self,
        asg_name: &str,
        instance: &InstanceId,
    ) -> Result<(), CallError> {
        self.turn().await;
        let completed = self
            .autoscaling
            .complete_lifecycle_action()
            .auto_scaling_group_name(asg_name)
            .lifecycle_hook_name(READY_HOOK)
            .instance_id(instance.as_str())
            .lifecycle_action_result("CONTINUE")
            .send()
            .await
            .map(drop)
            .map_err(|e| CallError::of("CompleteLifecycleAction", e));
        already(completed, "ValidationError")
    }
}

/// Of refreshes, newest first, the one that says where the group stands: what is active; or else the last that led
/// anywhere. One that somebody ran without a goal does not take back that an image failed.
fn telling(refreshes: Vec<Refresh>) -> Option<Refresh> {
    let newest = refreshes.first().cloned();
    let is_active = newest.as_ref().is_some_and(|newest| newest.state.is_active());
    let with_goal = refreshes.into_iter().find(|refresh| refresh.launch_template.is_some());
    if is_active { newest } else { with_goal.or(newest) }
}

/// With this code it is as it shall be.
fn already(done: Result<(), CallError>, code: &str) -> Result<(), CallError> {
    match done {
        Err(error) if error.has_code(code) => Ok(()),
        done => done,
    }
}

fn refresh(refresh: &InstanceRefresh) -> Refresh {
    let desired = refresh.desired_configuration().and_then(|desired| desired.launch_template());
    let launch_template = desired.and_then(|template| {
        let name = template.launch_template_name()?.to_owned();
        Some(LaunchTemplate { name, version: template.version()?.parse().ok()? })
    });
    let count = |n: Option<i32>| u32::try_from(n.unwrap_or(0)).unwrap_or(0);
    let rolled_back = refresh.rollback_details().and_then(|details| details.rollback_reason());
    let reason = rolled_back.or(refresh.status_reason());
    Refresh {
        state: RefreshState::of(refresh.status().map_or("", |status| status.as_str())),
        launch_template,
        percent: count(refresh.percentage_complete()),
        to_update: count(refresh.instances_to_update()),
        reason: reason.map(|reason| reason.chars().take(300).collect()),
    }
}
