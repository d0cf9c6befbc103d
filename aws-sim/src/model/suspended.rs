//! Processes of a group that a person has suspended (user guide, suspend and resume processes).

use std::collections::BTreeMap;

use time::OffsetDateTime;

use super::activity::at;
use super::{AwsError, GroupName, Model};

/// In the order in which AWS lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Process {
    Launch,
    Terminate,
    AddToLoadBalancer,
    AlarmNotification,
    AzRebalance,
    HealthCheck,
    InstanceRefresh,
    ReplaceUnhealthy,
    ScheduledActions,
}

impl Process {
    pub const ALL: [Process; 9] = [
        Process::Launch,
        Process::Terminate,
        Process::AddToLoadBalancer,
        Process::AlarmNotification,
        Process::AzRebalance,
        Process::HealthCheck,
        Process::InstanceRefresh,
        Process::ReplaceUnhealthy,
        Process::ScheduledActions,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Process::Launch => "Launch",
            Process::Terminate => "Terminate",
            Process::AddToLoadBalancer => "AddToLoadBalancer",
            Process::AlarmNotification => "AlarmNotification",
            Process::AzRebalance => "AZRebalance",
            Process::HealthCheck => "HealthCheck",
            Process::InstanceRefresh => "InstanceRefresh",
            Process::ReplaceUnhealthy => "ReplaceUnhealthy",
            Process::ScheduledActions => "ScheduledActions",
        }
    }
}

/// What is suspended, and AWS's words for why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Suspended(BTreeMap<Process, String>);

impl Suspended {
    pub fn has(&self, process: Process) -> bool {
        self.0.contains_key(&process)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Process, &String)> {
        self.0.iter()
    }
}

impl Model {
    /// No names mean all. One that is suspended already keeps its reason.
    pub fn suspend_processes(
        &mut self,
        name: &GroupName,
        processes: &[String],
        now: OffsetDateTime,
    ) -> Result<(), AwsError> {
        let named = named(processes)?;
        let (group, _) = self.living_group_mut(name)?;
        for process in named {
            let reason = || format!("User suspended at {}", at(now));
            group.suspended.0.entry(process).or_insert_with(reason);
        }
        Ok(())
    }

    pub fn resume_processes(
        &mut self,
        name: &GroupName,
        processes: &[String],
    ) -> Result<(), AwsError> {
        let named = named(processes)?;
        let (group, _) = self.living_group_mut(name)?;
        group.suspended.0.retain(|process, _| !named.contains(process));
        Ok(())
    }
}

fn named(names: &[String]) -> Result<Vec<Process>, AwsError> {
    if names.is_empty() {
        return Ok(Process::ALL.to_vec());
    }
    let find = |name: &String| {
        let found = Process::ALL.into_iter().find(|process| process.as_str() == name);
        found.ok_or_else(|| {
            let known: Vec<&str> = Process::ALL.iter().map(|process| process.as_str()).collect();
            AwsError::validation(format!(
                "{name} is not a valid process. Valid processes are: [{}]",
                known.join(", ")
            ))
        })
    };
    names.iter().map(find).collect()
}
