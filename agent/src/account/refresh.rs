//! A new image: the launch template that the guardrails name goes through a group as an instance refresh. Pure. What AWS
//! says of its newest refresh decides, so that a restart or a lost reply starts nothing twice.

use std::collections::BTreeSet;

use outstation_protocol::status::{GroupPhase, Held};

use super::guardrails::LaunchTemplate;
use super::plan::ObservedGroup;

/// What AWS has of a group's image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// What the instances that are not leaving were made from; `None` for one whose template cannot be told.
    pub templates: BTreeSet<Option<LaunchTemplate>>,
    /// The newest refresh. Asked for only where the image is not as wanted.
    pub refresh: Option<Refresh>,
    /// Why the newest refresh is not known.
    pub unknown: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refresh {
    pub state: RefreshState,
    /// What it leads to; `None` when somebody started it without saying.
    pub launch_template: Option<LaunchTemplate>,
    pub percent: u32,
    pub to_update: u32,
    /// AWS's words.
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshState {
    /// Pending, InProgress, Baking.
    UnderWay,
    Cancelling,
    RollingBack,
    Successful,
    Cancelled,
    Failed,
    RolledBack,
    RollbackFailed,
}

impl RefreshState {
    pub fn is_active(self) -> bool {
        match self {
            RefreshState::UnderWay | RefreshState::Cancelling | RefreshState::RollingBack => true,
            RefreshState::Successful
            | RefreshState::Cancelled
            | RefreshState::Failed
            | RefreshState::RolledBack
            | RefreshState::RollbackFailed => false,
        }
    }

    /// A state that is not known yet is one that goes on.
    pub fn of(status: &str) -> RefreshState {
        match status {
            "Cancelling" => RefreshState::Cancelling,
            "RollbackInProgress" => RefreshState::RollingBack,
            "Successful" => RefreshState::Successful,
            "Cancelled" => RefreshState::Cancelled,
            "Failed" => RefreshState::Failed,
            "RollbackSuccessful" => RefreshState::RolledBack,
            "RollbackFailed" => RefreshState::RollbackFailed,
            _ => RefreshState::UnderWay,
        }
    }
}

/// Where a group stands with the image that it shall have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rolling {
    /// Only the group's own template differs: no instance has to go.
    Adjust,
    Start,
    /// Another image is being rolled out, which nobody wants any more.
    Cancel {
        refresh: String,
    },
    UnderWay {
        reason: String,
    },
    /// It was tried and did not work. The same version is not tried again.
    Failed {
        reason: String,
    },
}

impl Rolling {
    /// What a person has to decide, if so.
    pub fn held(&self) -> Option<Held> {
        match self {
            Rolling::Failed { reason } => Some(Held {
                generation: None,
                rule: "instance_refresh".to_owned(),
                message: reason.clone(),
                hint: FAILED_HINT.to_owned(),
            }),
            Rolling::Adjust
            | Rolling::Start
            | Rolling::Cancel { .. }
            | Rolling::UnderWay { .. } => None,
        }
    }

    /// As `describe` shows it.
    pub fn told(&self) -> (GroupPhase, String) {
        match self {
            Rolling::Adjust => {
                (GroupPhase::Updating, "the launch template is corrected".to_owned())
            }
            Rolling::Start => (GroupPhase::Updating, "an instance refresh begins".to_owned()),
            Rolling::Cancel { refresh } => {
                (GroupPhase::Updating, format!("{refresh} is cancelled: another image is wanted"))
            }
            Rolling::UnderWay { reason } => (GroupPhase::Updating, reason.clone()),
            Rolling::Failed { reason } => (GroupPhase::Error, reason.clone()),
        }
    }
}

impl ObservedGroup {
    /// Whether its newest refresh has to be known.
    pub fn has_image(&self, wanted: &LaunchTemplate) -> bool {
        self.launch_template.as_ref() == Some(wanted) && self.instances_have(wanted)
    }

    fn instances_have(&self, wanted: &LaunchTemplate) -> bool {
        self.image.templates.iter().all(|template| template.as_ref() == Some(wanted))
    }
}

/// `None` when the group has the image, and all its instances too.
pub fn rolling(wanted: &LaunchTemplate, observed: &ObservedGroup) -> Option<Rolling> {
    if observed.has_image(wanted) {
        return None;
    }
    if let Some(why) = &observed.image.unknown {
        let reason = format!("where the instance refresh stands is not known: {why}");
        return Some(Rolling::UnderWay { reason });
    }
    let Some(refresh) = &observed.image.refresh else { return Some(begin(wanted, observed)) };
    let name = match &refresh.launch_template {
        Some(LaunchTemplate { name, version }) => {
            format!("the instance refresh to {name} version {version}")
        }
        None => "an instance refresh that somebody started".to_owned(),
    };
    let is_ours = refresh.launch_template.as_ref() == Some(wanted);
    let Refresh { percent, to_update, .. } = refresh;
    let why = refresh.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    Some(match refresh.state {
        RefreshState::UnderWay if is_ours => Rolling::UnderWay {
            reason: format!("{name} is at {percent} %, {to_update} instances to go{why}"),
        },
        RefreshState::UnderWay => Rolling::Cancel { refresh: name },
        RefreshState::Cancelling => {
            Rolling::UnderWay { reason: format!("{name} is being cancelled") }
        }
        RefreshState::RollingBack if is_ours => {
            Rolling::UnderWay { reason: format!("{name} failed and is being rolled back{why}") }
        }
        // Back to an image that nobody wants either, and that may never come up.
        RefreshState::RollingBack => Rolling::Cancel { refresh: format!("the rollback of {name}") },
        RefreshState::Failed if is_ours => {
            Rolling::Failed { reason: format!("{name} failed at {percent} %{why}") }
        }
        RefreshState::RolledBack if is_ours => {
            Rolling::Failed { reason: format!("{name} failed and was rolled back{why}") }
        }
        RefreshState::RollbackFailed if is_ours => {
            Rolling::Failed { reason: format!("{name} failed, and so did its rollback{why}") }
        }
        RefreshState::Successful
        | RefreshState::Cancelled
        | RefreshState::Failed
        | RefreshState::RolledBack
        | RefreshState::RollbackFailed => begin(wanted, observed),
    })
}

fn begin(wanted: &LaunchTemplate, observed: &ObservedGroup) -> Rolling {
    if observed.instances_have(wanted) { Rolling::Adjust } else { Rolling::Start }
}

const FAILED_HINT: &str = "publish a corrected version of the launch template and name it in guardrails/ of the \
    account store, or name the version before; the same version is not tried again";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::testing::observed;

    fn template(version: u64) -> LaunchTemplate {
        LaunchTemplate { name: "node".to_owned(), version }
    }

    /// A group of template version `group`, instances of `instances`, and its newest refresh: what follows when 2 is wanted.
    fn words(group: u64, instances: &[u64], refresh: Option<(&str, Option<u64>)>) -> String {
        let refresh = refresh.map(|(status, version)| Refresh {
            state: RefreshState::of(status),
            launch_template: version.map(template),
            percent: 33,
            to_update: 2,
            reason: Some("AWS's words".to_owned()),
        });
        let templates = instances.iter().map(|version| Some(template(*version))).collect();
        let mut observed = observed(3);
        observed.launch_template = Some(template(group));
        observed.image = Image { templates, refresh, unknown: None };
        match rolling(&template(2), &observed) {
            None => "done".to_owned(),
            Some(rolling) => {
                let (phase, reason) = rolling.told();
                format!("{phase} {reason}")
            }
        }
    }

    #[test]
    fn what_aws_says_of_the_newest_refresh_decides() {
        let begins = "UPDATING an instance refresh begins";
        for (name, group, instances, refresh, wanted) in [
            ("as wanted", 2, &[2][..], None, "done"),
            ("a new version", 1, &[1], None, begins),
            ("nothing to replace", 1, &[], None, "UPDATING the launch template is corrected"),
            ("the group by hand", 1, &[2], None, "UPDATING the launch template is corrected"),
            ("instances left behind", 2, &[1, 2], None, begins),
            (
                "just started",
                1,
                &[1],
                Some(("Pending", Some(2))),
                "UPDATING the instance refresh to node version 2 is at 33 %, 2 instances to go: AWS's words",
            ),
            (
                "all replaced, not ended",
                1,
                &[2],
                Some(("InProgress", Some(2))),
                "UPDATING the instance refresh to node version 2 is at 33 %, 2 instances to go: AWS's words",
            ),
            ("ended, something came after it", 1, &[1, 2], Some(("Successful", Some(2))), begins),
            (
                "of another version",
                1,
                &[1, 3],
                Some(("InProgress", Some(3))),
                "UPDATING the instance refresh to node version 3 is cancelled: another image is wanted",
            ),
            (
                "somebody's",
                1,
                &[1],
                Some(("InProgress", None)),
                "UPDATING an instance refresh that somebody started is cancelled: another image is wanted",
            ),
            (
                "being cancelled",
                1,
                &[1, 3],
                Some(("Cancelling", Some(3))),
                "UPDATING the instance refresh to node version 3 is being cancelled",
            ),
            ("cancelled", 1, &[1, 3], Some(("Cancelled", Some(3))), begins),
            (
                "rolling back",
                1,
                &[1, 2],
                Some(("RollbackInProgress", Some(2))),
                "UPDATING the instance refresh to node version 2 failed and is being rolled back: AWS's words",
            ),
            (
                "rolling back from another to another",
                1,
                &[1, 3],
                Some(("RollbackInProgress", Some(3))),
                "UPDATING the rollback of the instance refresh to node version 3 is cancelled: another image is wanted",
            ),
            (
                "rolled back",
                1,
                &[1],
                Some(("RollbackSuccessful", Some(2))),
                "ERROR the instance refresh to node version 2 failed and was rolled back: AWS's words",
            ),
            (
                "failed",
                1,
                &[1, 2],
                Some(("Failed", Some(2))),
                "ERROR the instance refresh to node version 2 failed at 33 %: AWS's words",
            ),
            (
                "the rollback failed",
                1,
                &[1, 2],
                Some(("RollbackFailed", Some(2))),
                "ERROR the instance refresh to node version 2 failed, and so did its rollback: AWS's words",
            ),
            (
                "another version failed before",
                1,
                &[1],
                Some(("RollbackSuccessful", Some(3))),
                begins,
            ),
            (
                "a state that AWS has added",
                1,
                &[1],
                Some(("Pondering", Some(2))),
                "UPDATING the instance refresh to node version 2 is at 33 %, 2 instances to go: AWS's words",
            ),
        ] {
            assert_eq!(words(group, instances, refresh), wanted, "{name}");
        }
    }
}
