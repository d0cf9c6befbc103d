//! What the tasks of the account agent share: each field behind its own short lock, never held
//! over an await.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use outstation_protocol::order::Intent;
use outstation_protocol::session::Answer;
use outstation_protocol::v1::Artifacts;
use outstation_protocol::{GroupName, InstanceId};
use tokio::sync::{Notify, watch};

use super::config::Config;
use super::guardrails::{Guardrails, NoGuardrails};
use super::judge::Identity;
use super::ledger::Ledger;
use super::plan::Observed;
use super::registry::{CallerEndpoint, Registry};
use crate::clock;
use crate::trust::files;

pub struct Shared {
    pub config: Config,
    pub identity: Identity,
    pub ledger: Mutex<Ledger>,
    guardrails: Mutex<Result<Guardrails, NoGuardrails>>,
    /// The last valid ones: whose name an AutoScaling group bears does not change with a typing
    /// error, and nodes go on renewing their certificates meanwhile.
    last_guardrails: Mutex<Option<Guardrails>>,
    registry: Mutex<Registry>,
    /// The last look at AWS; empty until the first.
    pub observed: Mutex<Observed>,
    /// Answers for the broker: converged and status of each group.
    pub answers: watch::Sender<BTreeMap<GroupName, Vec<Answer>>>,
    /// Counts changes of the registry and the ledger: who depends on them looks again.
    pub changed: watch::Sender<u64>,
    /// Counts changes of the guardrails: what they refused is asked for again.
    pub guardrails_changed: watch::Sender<u64>,
    pub link_live: watch::Sender<bool>,
    /// Something happened that the next look at AWS should not wait for.
    pub look: Notify,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(config: Config, ledger: Ledger) -> Shared {
        let identity = Identity { tenant: config.tenant.clone(), data_plane: config.data_plane() };
        let registry = std::fs::read(nodes_file(&config))
            .ok()
            .and_then(|json| Registry::restore(&json, clock::unix_secs()).ok())
            .unwrap_or_default();
        Shared {
            guardrails: Mutex::new(Err(NoGuardrails("not read yet".to_owned()))),
            last_guardrails: Mutex::default(),
            config,
            identity,
            ledger: Mutex::new(ledger),
            registry: Mutex::new(registry),
            observed: Mutex::default(),
            answers: watch::Sender::new(BTreeMap::new()),
            changed: watch::Sender::new(0),
            guardrails_changed: watch::Sender::new(0),
            link_live: watch::Sender::new(false),
            look: Notify::new(),
        }
    }

    /// Reads the guardrails again; they count from this moment on.
    pub fn refresh_guardrails(&self) -> Result<Guardrails, NoGuardrails> {
        let read = Guardrails::read(&self.config.store.join("guardrails").join("guardrails.toml"));
        let mut current = lock(&self.guardrails);
        if *current != read {
            match &read {
                Ok(guardrails) => {
                    tracing::info!("guardrails read");
                    *lock(&self.last_guardrails) = Some(guardrails.clone());
                }
                Err(why) => tracing::error!(%why, "no valid guardrails: everything is held"),
            }
            current.clone_from(&read);
            self.guardrails_changed.send_modify(|count| *count += 1);
        }
        read
    }

    /// What we call the AutoScaling group of `group`; unknown until guardrails were once valid.
    pub fn asg_name(&self, group: &GroupName) -> Option<String> {
        lock(&self.last_guardrails).as_ref().map(|guardrails| guardrails.asg_name(group))
    }

    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        lock(&self.registry)
    }

    /// Changes the registry, keeps it for a restart and tells everybody.
    pub fn update_registry<T>(&self, change: impl FnOnce(&mut Registry) -> T) -> T {
        let mut registry = lock(&self.registry);
        let before = registry.clone();
        let result = change(&mut registry);
        if *registry != before {
            let path = nodes_file(&self.config);
            if let Err(error) = files::replace(&path, &registry.to_json(), 0o600) {
                tracing::warn!(%error, path = %path.display(), "the nodes were not written down");
            }
            drop(registry);
            self.changed.send_modify(|count| *count += 1);
            self.look.notify_one();
        }
        result
    }

    /// What the newest accepted order wants nodes of `group` to serve.
    pub fn wanted_artifacts(&self, group: &GroupName) -> Option<Artifacts> {
        let ledger = lock(&self.ledger);
        let order = &ledger.accepted().get(group)?.order;
        match &order.intent {
            Intent::Destroy => None,
            Intent::Apply(spec) => Some(Artifacts {
                generation: order.generation,
                environment: spec.environment.digest,
                bundle: spec.bundle,
                options: spec.options.clone().into_iter().collect(),
            }),
        }
    }

    /// What `instance` of `group` shall serve now, in its turn.
    pub fn artifacts_for(&self, instance: &InstanceId, group: &GroupName) -> Option<Artifacts> {
        let wanted = self.wanted_artifacts(group)?;
        Some(self.registry().artifacts_for(instance, &wanted))
    }

    pub fn knows_group(&self, group: &GroupName) -> bool {
        lock(&self.ledger).accepted().get(group).is_some_and(|a| !a.order.is_tombstone())
    }

    pub fn endpoints(&self, group: &GroupName) -> Vec<CallerEndpoint> {
        self.registry().endpoints(group, clock::unix_secs())
    }
}

fn nodes_file(config: &Config) -> PathBuf {
    config.state.join("nodes.json")
}
