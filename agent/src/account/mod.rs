//! The account role: reconciles the groups of one data plane, and is what its nodes and callers
//! talk to. Tasks side by side: the control link, the reconciler, the node link, the callers.

pub mod aws;
pub mod callers;
pub mod certificate;
pub mod config;
pub mod control;
pub mod desk;
pub mod dial;
pub mod guardrails;
pub mod judge;
pub mod ledger;
pub mod node_link;
pub mod plan;
pub mod reconcile;
pub mod redial;
pub mod registry;
pub mod shared;
pub mod status;
#[cfg(test)]
mod testing;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;

use self::aws::{Aws, CallError};
use self::callers::Callers;
use self::config::Config;
use self::control::Control;
use self::ledger::Ledger;
use self::node_link::NodeLink;
use self::reconcile::Reconciler;
use self::shared::Shared;
use crate::clock::{self, Clock};
use crate::trust::DataPlaneCa;

/// What a stop may take; whatever is under way then is repeatable.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Runs until `shutdown`, or until something shows that this agent must not run at all.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    fs::create_dir_all(&config.state)
        .with_context(|| format!("create the state folder {}", config.state.display()))?;
    let ledger = Ledger::open(&config.store).context("open the ledger")?;
    let ca = DataPlaneCa::open_or_create(&config.store, &config.tenant, clock::unix_secs())
        .context("open the account's CA")?;
    let ca = Arc::new(ca);
    let aws = Aws::connect(&config).await;
    let shared = Arc::new(Shared::new(config, ledger, Clock::System));
    shared.refresh_guardrails().ok();

    let node_link = NodeLink::bind(shared.clone(), aws.clone(), ca.clone())?;
    let callers = Callers::bind(shared.clone()).await?;
    let stop = shutdown.child_token();
    let mut control = tokio::spawn(Control::new(shared.clone()).run(stop.clone()));
    let mut nodes = tokio::spawn(node_link.run(stop.clone()));
    let mut keeper = tokio::spawn(keep_nodes(shared.clone(), stop.clone()));
    let guardrails = tokio::spawn(watch_guardrails(shared.clone(), stop.clone()));
    let mut callers = tokio::spawn(Callers::run(shared.clone(), ca, callers, stop.clone()));
    let mut reconcile = tokio::spawn(reconcile_in_the_right_account(shared, aws, stop.clone()));

    let outcome = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        ended = &mut reconcile => ended.context("the reconciler stopped")?,
        ended = &mut callers => ended.context("the callers' listener stopped")?,
        // None of them ends by itself; a service manager starts the whole agent anew.
        ended = &mut control => ended.context("the control link's task stopped"),
        ended = &mut nodes => ended.context("the node link's task stopped"),
        ended = &mut keeper => ended.context("the task that keeps the nodes stopped"),
    };
    stop.cancel();
    let rest = async {
        for task in [control, nodes, keeper, guardrails] {
            if !task.is_finished() {
                let _ = task.await;
            }
        }
    };
    let _ = tokio::time::timeout(STOP_MAX, rest).await;
    outcome
}

/// A person who pauses an account does not want to wait for the next look at AWS.
const GUARDRAILS_LOOK: Duration = Duration::from_secs(1);

async fn watch_guardrails(shared: Arc<Shared>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        // What it says is kept in `shared`, told in the log and in every status.
        let _ = shared.refresh_guardrails();
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(GUARDRAILS_LOOK) => {}
        }
    }
}

/// Writes the nodes down after they have changed, at most so often: a fleet that boots changes them
/// thousands of times.
const KEEP_NODES: Duration = Duration::from_millis(200);

async fn keep_nodes(shared: Arc<Shared>, stop: CancellationToken) {
    let mut changed = shared.changed.subscribe();
    while !stop.is_cancelled() {
        let writing = shared.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || writing.write_nodes()).await {
            tracing::error!(%error, "the nodes were not written down");
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(KEEP_NODES) => {}
        }
        tokio::select! {
            () = stop.cancelled() => {}
            _ = changed.changed() => {}
        }
    }
}

/// AWS may be out of reach at start: nodes and callers are served meanwhile, but nothing is
/// changed before STS has said that this is the right account.
async fn reconcile_in_the_right_account(
    shared: Arc<Shared>,
    aws: Aws,
    stop: CancellationToken,
) -> Result<()> {
    let mut pause = Duration::from_millis(250);
    while let Err(error) = aws.check_account(&shared.config).await {
        if error.downcast_ref::<CallError>().is_none() {
            bail!(error);
        }
        tracing::warn!(error = format!("{error:#}"), "STS does not say whose account this is");
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(Duration::from_secs(30));
    }
    tracing::info!(account = %shared.config.account, region = %shared.config.region, "account checked");
    Reconciler::new(shared, aws, StdRng::from_os_rng()).run(stop).await;
    Ok(())
}
