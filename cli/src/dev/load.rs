//! Drives calls through the balanced client: real rows, a fixed number in flight, each counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use indicatif::ProgressBar;
use serde_json::Value as Json;

use outstation_api::transform::{CallRequest, Row};
use outstation_protocol::ids::GroupName;

use super::report::{Node, Report};
use crate::call::first_error;
use crate::caller::Caller;
use crate::clock;
use crate::context::Context;
use crate::manifest::Manifest;
use crate::values::row_from_wider_json;

/// In flight at once: enough to keep three nodes of two workers busy on a small machine.
pub const CONCURRENCY: usize = 16;
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What to call: one target of one group, with rows that fit it.
pub struct Load {
    pub group: GroupName,
    pub target: String,
    pub rows: Vec<Row>,
}

impl Load {
    /// One load for each service that has a group, sharing `calls` between them.
    pub fn of_manifest(
        manifest: &Manifest,
        calls: usize,
        rows: impl Fn(usize) -> anyhow::Result<Vec<Json>>,
    ) -> anyhow::Result<Vec<Load>> {
        let services: Vec<(&str, &GroupName)> = manifest
            .feature_services
            .iter()
            .filter_map(|service| Some((service.name.as_str(), manifest.group_of(&service.name)?)))
            .filter(|(_, group)| manifest.nodes_of(group) > 0)
            .collect();
        let share = calls.div_ceil(services.len().max(1));
        let mut loads = Vec::new();
        for (target, group) in services {
            let schema = manifest
                .input_schema(target)
                .with_context(|| format!("the manifest has no service {target}"))?;
            let rows = rows(share)?
                .iter()
                .map(|row| row_from_wider_json(row, &schema))
                .collect::<Result<Vec<Row>, _>>()
                .with_context(|| format!("fit the departures to {target}"))?;
            loads.push(Load { group: group.clone(), target: target.to_owned(), rows });
        }
        Ok(loads)
    }

    /// Calls with each row once. `nodes` is how many endpoints to wait for first.
    pub async fn drive(
        self,
        context: &Context,
        nodes: usize,
        ready_timeout: Duration,
        progress: &ProgressBar,
    ) -> anyhow::Result<Report> {
        let caller = Arc::new(Caller::connect(context, &self.group).await?);
        let mut report = Report::default();
        for instance in caller.wait_for_endpoints(nodes, ready_timeout).await? {
            report.expect(Node { group: self.group.to_string(), instance });
        }
        let next = Arc::new(AtomicUsize::new(0));
        let load = Arc::new(self);
        let started = clock::now();
        let mut lanes = tokio::task::JoinSet::new();
        for _ in 0..CONCURRENCY.min(load.rows.len()) {
            let (load, caller, next) = (load.clone(), caller.clone(), next.clone());
            let progress = progress.clone();
            lanes.spawn(async move { load.lane(&caller, &next, &progress).await });
        }
        while let Some(lane) = lanes.join_next().await {
            report.merge(lane.context("a lane of calls")?);
        }
        report.elapsed = started.elapsed();
        Ok(report)
    }

    async fn lane(&self, caller: &Caller, next: &AtomicUsize, progress: &ProgressBar) -> Report {
        let mut report = Report::default();
        while let Some(row) = self.rows.get(next.fetch_add(1, Ordering::Relaxed)) {
            let request = CallRequest { target: self.target.clone(), rows: vec![row.clone()] };
            let started = clock::now();
            let answered = caller.call(request, CALL_TIMEOUT).await;
            let latency = started.elapsed();
            let error = match &answered.outcome {
                Ok(response) => first_error(response, 1),
                Err(status) => Some(format!("{:?}: {}", status.code(), status.message())),
            };
            match (answered.node, error) {
                (Some(instance), error) => {
                    let node = Node { group: self.group.to_string(), instance };
                    report.answered(node, latency, error);
                }
                (None, error) => {
                    let error = error.unwrap_or_else(|| "an answer of no node".into());
                    report.lost(self.group.as_str(), error);
                }
            }
            progress.inc(1);
        }
        report
    }
}
