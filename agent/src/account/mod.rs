//! The account role: reconciles the groups of one data plane, and is what its nodes and callers
//! talk to. Tasks side by side: the control link, the reconciler, the node link, the callers.

pub mod adopt;
mod advice;
pub mod approvals;
pub mod aws;
mod backoff;
pub mod callers;
pub mod certificate;
pub mod changes;
pub mod config;
pub mod control;
pub mod desk;
pub mod dial;
pub mod dry_run;
pub mod entry;
pub mod floor;
pub mod guardrails;
pub mod hooks;
pub mod images;
pub mod journal;
pub mod judge;
pub mod ledger;
pub mod look;
pub mod node_link;
mod numbered;
pub mod pace;
pub mod pacing;
pub mod plan;
pub mod recall;
pub mod reconcile;
pub mod redial;
pub mod refresh;
pub mod registry;
pub mod replacements;
pub mod scale_only;
pub mod scaling;
pub mod shared;
pub mod show;
pub mod status;
#[cfg(test)]
mod testing;
mod turns;
pub mod vitals;
pub mod whereabouts;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::aws::{Aws, CallError};
use self::callers::Callers;
use self::certificate::Identity;
use self::config::Config;
use self::control::Control;
use self::journal::Journal;
use self::ledger::Ledger;
use self::node_link::NodeLink;
use self::reconcile::Reconciler;
use self::shared::Shared;
use self::vitals::Running;
use crate::clock::{self, Clock};
use crate::trust::DataPlaneCa;

/// What a stop may take; whatever is under way then is repeatable.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Runs until `shutdown`, or until something shows that this agent must not run at all.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    fs::create_dir_all(&config.state)
        .with_context(|| format!("create the state folder {}", config.state.display()))?;
    let _running = Running::claim(&config.state).await?;
    let store = config.open_store().context("open the account store")?;
    let ledger = Ledger::open(&store).context("open the ledger")?;
    // Told now, not when the first order comes; what was accepted before is kept up in any case.
    if let Err(error) = store.check_writable("state/orders") {
        tracing::error!(store = %config.store, error = format!("{:#}", anyhow::Error::from(error)), "the account store cannot be \
            written: orders are refused until it can (is its disk full or mounted read-only?)");
    }
    let ca = DataPlaneCa::open_or_create(&store, &config.tenant, clock::unix_secs())
        .context("open the account's CA")?;
    let ca = Arc::new(ca);
    let journal = Journal::new(&config.state, store, config.data_plane(), Clock::System);
    let journal = Arc::new(journal);
    let aws = Aws::connect(&config, Some(journal.clone())).await;
    let mut shared = Shared::new(config, ledger, Clock::System);
    shared.journal = Some(journal);
    let shared = Arc::new(shared);
    if let Ok(Some(identity)) = Identity::load(&shared.config.state) {
        shared.know_agent(&identity);
    }
    let span = shared.span.clone();
    run_all(shared, ca, aws, shutdown).instrument(span).await
}

async fn run_all(
    shared: Arc<Shared>,
    ca: Arc<DataPlaneCa>,
    aws: Aws,
    shutdown: CancellationToken,
) -> Result<()> {
    shared.refresh_guardrails().ok();
    let node_link = NodeLink::bind(shared.clone(), aws.clone(), ca.clone())?;
    let callers = Callers::bind(shared.clone()).await?;
    let stop = shutdown.child_token();
    let mut control = spawn(Control::new(shared.clone()).run(stop.clone()));
    let mut nodes = spawn(node_link.run(stop.clone()));
    let mut keeper = spawn(keep_nodes(shared.clone(), stop.clone()));
    let guardrails = spawn(watch_store(shared.clone(), stop.clone()));
    let status = spawn(vitals::write_all_the_time(shared.clone(), stop.clone()));
    let mut callers = spawn(Callers::run(shared.clone(), ca, callers, stop.clone()));
    let mut reconcile = spawn(reconcile_in_the_right_account(shared, aws, stop.clone()));

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
        for task in [control, nodes, keeper, guardrails, status] {
            if !task.is_finished() {
                let _ = task.await;
            }
        }
    };
    let _ = tokio::time::timeout(STOP_MAX, rest).await;
    outcome
}

/// With the span of the agent, which a task does not inherit.
fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(task.in_current_span())
}

/// A person who pauses an account, or decides in `adopt`, does not want to wait for the next look at
/// AWS.
async fn watch_store(shared: Arc<Shared>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        // What it says is kept in `shared`, told in the log and in every status.
        let _ = shared.refresh_guardrails();
        if shared.refresh_ledger() {
            shared.look.notify_one();
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(shared.store.pause()) => {}
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
        let message = format!("{error:#}");
        tracing::warn!(error = message, "STS does not say whose account this is");
        shared.stand_blind(message.clone());
        shared.vitals.note_account(shared.clock.unix_secs(), Some(message));
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(Duration::from_secs(30));
    }
    shared.vitals.note_account(shared.clock.unix_secs(), None);
    tracing::info!(account = %shared.config.account, region = %shared.config.region, "account checked");
    Reconciler::new(shared, aws, StdRng::from_os_rng()).run(stop).await;
    Ok(())
}
