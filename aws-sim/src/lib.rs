//! A simulated AWS on one machine: AutoScaling and STS behind their wire protocols, and instances that are processes with
//! their own IMDS. `outstation dev` and the tests run against it through the real AWS SDK.
//!
//! Three layers, each usable without the next: [`model`] (pure: typed calls, `now` as an argument, effects out), [`wire`]
//! (pure: request bytes in, response bytes out, signatures verified; a test can plug it below an SDK as its HTTP client) and
//! [`serve`] with [`launcher`] (sockets and processes).
//!
//! # What it models
//!
//! **AutoScaling** (Query/XML, 2011-01-01): `CreateAutoScalingGroup`, `UpdateAutoScalingGroup`, `SetDesiredCapacity`,
//! `DescribeAutoScalingGroups` (names, filters `tag:<key>`, `tag-key`, `tag-value`, pages), `DescribeAutoScalingInstances`,
//! `DeleteAutoScalingGroup`, `CreateOrUpdateTags`, `DeleteTags`, `DescribeTags`, `PutLifecycleHook`, `DescribeLifecycleHooks`,
//! `DeleteLifecycleHook`, `CompleteLifecycleAction`, `RecordLifecycleActionHeartbeat`, `TerminateInstanceInAutoScalingGroup`,
//! `SetInstanceHealth`, `SetInstanceProtection`, `DescribeScalingActivities`, `PutScalingPolicy`, `DescribePolicies`,
//! `DeletePolicy`, `StartInstanceRefresh`, `CancelInstanceRefresh`, `RollbackInstanceRefresh`, `DescribeInstanceRefreshes`,
//! `PutWarmPool`, `DescribeWarmPool`, `DeleteWarmPool`, `SuspendProcesses`, `ResumeProcesses`.
//! - Lifecycle: Pending → (Pending:Wait) → InService → Terminating, or Terminating:Wait → Terminating:Proceed → gone. An
//!   instance is InService once its launcher's IMDS answers. `Pending:Proceed` and `Terminated` pass within one step and are
//!   never seen.
//! - Hooks wait, take heartbeats up to min(48 h, 100 × heartbeat) and end in their default result. ABANDON on launch
//!   terminates the instance, which is replaced; on termination it ends the other hooks' waiting.
//! - A group launches towards its desired capacity in the zone with fewest instances, replaces dead and unhealthy instances,
//!   and scales in by zone balance, then policy (`Default`: oldest template version, then oldest instance; also
//!   `OldestInstance`, `NewestInstance`, `OldestLaunchTemplate`); only the first policy counts. Protected instances stay.
//!   Launches that fail are slowed, one second doubling to a minute.
//! - Target tracking: a metric that is above its target for three minutes, or below nine tenths of it for fifteen
//!   (`scale_out_after_ms`, `scale_in_after_ms`), moves the desired capacity within the bounds to what would bring it there.
//!   CloudWatch has what `PUT /_sim/metrics` or [`model::Model::set_metric`] said: a value, or a total that the instances in
//!   service share. Without data nothing moves. Any policy may grow a group; all must agree to shrink it.
//! - An instance refresh replaces instances through the same lifecycle, within minimum and maximum healthy percentage, each
//!   new one after its warm-up; skip matching, protected instances, cancel, rollback, automatic rollback. Without progress
//!   for an hour it fails. The group's template changes when it succeeds, and cannot be changed before.
//! - A warm pool holds instances stopped, hibernated (which is the same here) or running; a scale-out takes from it first, and
//!   with `ReuseOnScaleIn` a scale-in gives back to it.
//! - Suspended processes do nothing: `Launch`, `Terminate`, `HealthCheck`, `ReplaceUnhealthy`, `InstanceRefresh`,
//!   `AlarmNotification`. The others are held and shown; there is nothing here that they would stop.
//! - Tags reach instances at launch only; a propagated key that IMDS cannot show makes the launch fail, as at AWS.
//! - Quotas: 500 groups, 50 hooks, 50 policies and 50 tags a group, pages of at most 100.
//!
//! **IAM** ([`policy`]): a principal with a policy in the configuration is held to it, call by call, by iam-rs; so is what
//! using a launch template entails for the caller (`ec2:RunInstances` on each kind of resource, `ec2:CreateTags`,
//! `iam:PassRole`), at create, at an update of template or subnets, and at a refresh that names a template.
//!
//! **STS** (2011-06-15): `GetCallerIdentity`, POST form or GET query.
//!
//! **SigV4** in the `Authorization` header of every call, for the principals of the configuration and the session credentials
//! that IMDS handed out: known key, its token, scope (region, service), 15 minutes of skew, `host` and all `x-amz-*` signed,
//! every signed header covered. Session credentials live six hours, are renewed an hour before, and outlive their instance.
//!
//! **IMDSv2** per instance, on port 1338 of its own loopback address: `meta-data/{ami-id, instance-id, instance-type, local-ipv4,
//! placement/{availability-zone, region}, iam/security-credentials/[role], tags/instance/[key],
//! autoscaling/target-lifecycle-state}`, `dynamic/instance-identity/document` (unsigned), `user-data`. Served by the instance's
//! own first process: it ends with the instance, and goes on while the simulation is stopped (SIGSTOP: an AWS outage).
//!
//! **Instances**: a launcher in its own PID and mount namespaces runs the user data as a service that is always restarted
//! (100 ms doubling to 5 s, from the start again after 10 s up); other processes survive a restart of the service. Killing the
//! launcher kills all of it. Terminating: SIGTERM to all, two seconds, SIGKILL. The simulation's own death is theirs.
//!
//! # What it does not model
//!
//! - Any other action (`InvalidAction`) or parameter (`NotSimulated`, which is not an AWS code: refused rather than ignored):
//!   mixed instances, launch configurations, scaling policies of other types than target tracking, load balancers,
//!   notifications, standby, zone rebalancing, a refresh's checkpoints, alarms and bake time, maximum lifetime, deletion
//!   protection.
//! - IAM beyond identity-based policies of configured principals: no boundaries, organisations, session policies; a principal
//!   without a policy may do everything. Presigned URLs. Other hashes than SHA-256.
//! - Throttling (also by a rate), contention, outages, lost requests and replies, stale reads happen only where a test asks for them
//!   ([`wire::faults`]); `aws-sim serve` answers at once and consistently.
//! - EC2's status checks: a dead machine is noticed at once. By default hooks do not hold it, as nobody could complete
//!   them; `hooks_hold_dead_instances` makes them. Which of the two AWS does could not be verified.
//! - Network, disks and users: instances share this machine's, apart from `/proc`.
//! - Wording: error *codes* and statuses are AWS's. Messages are AWS's where public issue reports quote them (existing and
//!   missing groups, desired capacity beyond bounds, instances still in the group, decrement below minimum, lifecycle actions,
//!   missing template or zone, signatures); the others are ours. Which code a group that is pending delete answers is a guess
//!   (`ScalingActivityInProgress`).
//! - `$Latest` is the highest version of a template in the configuration, `$Default` the lowest.
//!
//! # Sources
//!
//! AutoScaling API reference and botocore's service model 2011-01-01; AutoScaling user guide (lifecycle hooks, termination
//! policies, quotas); STS API reference; IAM user guide (SigV4) and the CRT's signing test suite; EC2 user guide (IMDS).

pub mod clock;
pub mod config;
pub mod imds;
pub mod launcher;
pub mod model;
pub mod policy;
pub mod serve;
pub mod wire;

use std::io::{ErrorKind, IsTerminal as _};

/// An error with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Hinted {
    what: String,
    hint: String,
}

impl Hinted {
    pub fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Hinted { what: what.into(), hint: hint.into() }
    }
}

/// Two lines: what, and what to do.
pub fn print_error(error: &anyhow::Error) {
    let hint = error
        .downcast_ref::<Hinted>()
        .map_or_else(|| general_hint(error), |hinted| hinted.hint.as_str());
    let lines = format!("{error:#}");
    let lines: Vec<&str> = lines.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    eprintln!("error: {}", lines.join(" "));
    eprintln!("hint: {hint}");
}

fn general_hint(error: &anyhow::Error) -> &'static str {
    let refused = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    match refused.map(std::io::Error::kind) {
        Some(ErrorKind::NotFound) => "check the path: nothing is there",
        Some(ErrorKind::PermissionDenied) => {
            "run it as the user that owns the path; instances need root (PID namespaces)"
        }
        Some(ErrorKind::NotADirectory | ErrorKind::AlreadyExists) => {
            "a file stands where there must be a folder: move it away, or change `dir`"
        }
        Some(ErrorKind::StorageFull) => "make room on the disk of `dir`",
        Some(ErrorKind::ReadOnlyFilesystem) => "set `dir` to a place that can be written",
        Some(_) | None => {
            "compare the configuration with the one that `outstation dev` writes: \
             config/aws-sim.toml below its state folder"
        }
    }
}

/// Logs to stderr; `RUST_LOG` says how much, colour only on a terminal.
pub fn init_tracing() {
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
