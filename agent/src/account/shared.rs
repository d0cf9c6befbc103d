//! What the tasks of the account agent share: each field behind its own short lock, never held
//! over an await.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outstation_protocol::order::Intent;
use outstation_protocol::session::Answer;
use outstation_protocol::v1::Artifacts;
use outstation_protocol::{GroupName, InstanceId};
use tokio::sync::{Notify, watch};

use super::approvals::Approvals;
use super::certificate;
use super::config::{Config, Profile};
use super::floor::Standing;
use super::guardrails::{DestroyPolicy, Guardrails, NoGuardrails};
use super::journal::Journal;
use super::journal::record::Event;
use super::judge::Identity;
use super::ledger::{Ledger, View};
use super::plan::Observed;
use super::registry::{CallerEndpoint, Registry};
use super::vitals::Vitals;
use crate::clock::Clock;
use crate::store::AccountStore;
use crate::tags;
use crate::trust::files;

/// Nodes dial again within 30 s; the rest is for those that have to enroll first.
const SILENCE_AFTER_LOSS: Duration = Duration::from_secs(60);

pub struct Shared {
    pub config: Config,
    pub clock: Clock,
    pub identity: Identity,
    pub store: AccountStore,
    /// Held while the account store is asked, so only by whoever asks it.
    ledger: Mutex<Ledger>,
    view: Mutex<View>,
    guardrails: Mutex<Result<Guardrails, NoGuardrails>>,
    /// The last valid ones: whose name an AutoScaling group bears does not change with a typing
    /// error, and nodes go on renewing their certificates meanwhile.
    last_guardrails: Mutex<Option<Guardrails>>,
    registry: Mutex<Registry>,
    /// An agent that came back without its memory says nothing to callers until then: they have
    /// better endpoints than it does.
    silent_until: Option<Instant>,
    /// Groups whose order was accepted before this agent started.
    of_before: BTreeSet<GroupName>,
    /// The last look at AWS; empty until the first.
    pub observed: Mutex<Observed>,
    /// Answers for the broker: converged and status of each group.
    pub answers: watch::Sender<BTreeMap<GroupName, Vec<Answer>>>,
    /// Counts changes of the registry and the ledger: who depends on them looks again.
    pub changed: watch::Sender<u64>,
    /// Counts changes of the ledger that this agent did not make itself.
    pub ledger_changed: watch::Sender<u64>,
    /// Whether the account and its ledger agree.
    pub standing: watch::Sender<Standing>,
    pub link_live: watch::Sender<bool>,
    /// For people on this host.
    pub vitals: Vitals,
    /// Around all tasks: what they log names the agent.
    pub span: tracing::Span,
    /// Something happened that the next look at AWS should not wait for.
    pub look: Notify,
    /// What is written down for auditors; a simulation has none.
    pub journal: Option<Arc<Journal>>,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(config: Config, ledger: Ledger, clock: Clock) -> Shared {
        let identity = Identity { tenant: config.tenant.clone(), data_plane: config.data_plane() };
        let path = nodes_file(&config);
        let restored = std::fs::read(&path).ok().and_then(|json| {
            let restored = Registry::restore(&json, clock.unix_secs());
            let told = restored.inspect_err(|error| {
                tracing::warn!(path = %path.display(), %error, "what was known of the nodes cannot be \
                    read: callers are told nothing until the nodes have dialled again");
            });
            told.ok()
        });
        let silent_until = restored.is_none().then(|| clock.now() + SILENCE_AFTER_LOSS);
        let of_before = ledger.accepted().keys().cloned().collect();
        let (store, view) = (ledger.store().clone(), Mutex::new(ledger.view()));
        let registry = restored.unwrap_or_default();
        Shared {
            guardrails: Mutex::new(Err(NoGuardrails("not read yet".to_owned()))),
            last_guardrails: Mutex::default(),
            config,
            clock,
            identity,
            store,
            ledger: Mutex::new(ledger),
            view,
            registry: Mutex::new(registry),
            observed: Mutex::default(),
            silent_until,
            of_before,
            answers: watch::Sender::new(BTreeMap::new()),
            changed: watch::Sender::new(0),
            ledger_changed: watch::Sender::new(0),
            standing: watch::Sender::new(Standing::NotLooked),
            link_live: watch::Sender::new(false),
            vitals: Vitals::default(),
            span: tracing::info_span!("account", agent = tracing::field::Empty),
            look: Notify::new(),
            journal: None,
        }
    }

    /// Reads the guardrails again; they count from this moment on.
    pub fn refresh_guardrails(&self) -> Result<Guardrails, NoGuardrails> {
        let mut read = Guardrails::read(&self.store);
        if let Ok(guardrails) = &mut read
            && guardrails.destroy == DestroyPolicy::Approve
        {
            guardrails.approvals = Approvals::read(&self.store, self.ending().iter());
        }
        let mut current = lock(&self.guardrails);
        if *current != read {
            match &read {
                Ok(guardrails) => {
                    tracing::info!(orders = guardrails.orders(), "guardrails read");
                    for approval in guardrails.approvals.given() {
                        tracing::info!(?approval, "the end of a group is approved");
                    }
                    for (group, why) in guardrails.approvals.broken() {
                        tracing::error!(%group, why, "guardrails/approvals/ holds something that approves nothing");
                    }
                    *lock(&self.last_guardrails) = Some(guardrails.clone());
                }
                Err(why) => tracing::error!(%why, "no valid guardrails: everything is held"),
            }
            current.clone_from(&read);
            drop(current);
            let now = self.clock.unix_secs();
            self.vitals.note(|notes| notes.guardrails_since_unix_secs = now);
            self.changed.send_modify(|count| *count += 1);
            self.look.notify_one();
        }
        read
    }

    /// What the ledger holds, as far as this agent knows.
    pub fn view(&self) -> View {
        lock(&self.view).clone()
    }

    /// Asks the ledger itself, which may wait for the account store. What it has learnt is known to everybody when `ask` returns.
    pub fn with_ledger<T>(&self, ask: impl FnOnce(&mut Ledger) -> T) -> T {
        self.store.waiting(|| {
            let mut ledger = lock(&self.ledger);
            let answer = ask(&mut ledger);
            *lock(&self.view) = ledger.view();
            answer
        })
    }

    /// Groups that have a tombstone and are still there.
    fn ending(&self) -> BTreeSet<GroupName> {
        let there: BTreeSet<GroupName> = lock(&self.observed).keys().cloned().collect();
        let accepted = self.view().accepted;
        let ends = |group: &GroupName| {
            accepted.get(group).is_some_and(|accepted| accepted.order.is_tombstone())
        };
        there.into_iter().filter(ends).collect()
    }

    pub fn note(&self, event: impl FnOnce() -> Event) {
        if let Some(journal) = &self.journal {
            journal.note(event());
        }
    }

    /// As they were when they were last read.
    pub fn guardrails(&self) -> Result<Guardrails, NoGuardrails> {
        lock(&self.guardrails).clone()
    }

    /// What we call the AutoScaling group of `group`; unknown until guardrails were once valid.
    pub fn asg_name(&self, group: &GroupName) -> Option<String> {
        lock(&self.last_guardrails).as_ref().map(|guardrails| guardrails.asg_name(group))
    }

    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        lock(&self.registry)
    }

    /// Keeps the nodes for a restart, so that callers have their endpoints meanwhile.
    pub fn write_nodes(&self) {
        let json = self.registry().to_json();
        let path = nodes_file(&self.config);
        if let Err(error) = files::replace(&path, &json, 0o600) {
            tracing::warn!(%error, path = %path.display(), "the nodes were not written down");
        }
    }

    /// Changes the registry and tells everybody if that made a difference.
    pub fn update_registry<T>(&self, change: impl FnOnce(&mut Registry) -> T) -> T {
        let mut registry = lock(&self.registry);
        let before = registry.clone();
        let result = change(&mut registry);
        if *registry != before {
            drop(registry);
            self.changed.send_modify(|count| *count += 1);
            self.look.notify_one();
        }
        result
    }

    /// What nodes of `group` shall serve: as the newest accepted order says. Where there is none, the AutoScaling group is ahead
    /// of it, or its end is held, as that group's tags say.
    pub fn wanted_artifacts(&self, group: &GroupName) -> Option<Artifacts> {
        let ordered = self.view().accepted.get(group).map(|a| a.order.clone());
        let is_contradicted =
            self.standing.borrow().contradictions().iter().any(|c| c.group == *group);
        let tagged = || {
            let observed = lock(&self.observed);
            observed.get(group).and_then(|is| tags::artifacts(&is.tags).ok())
        };
        if is_contradicted || ordered.is_none() {
            let tagged = tagged();
            if tagged.is_some() {
                return tagged;
            }
        }
        let order = ordered?;
        match &order.intent {
            Intent::Destroy => tagged().filter(|_| self.is_kept(group)),
            Intent::Apply(spec) => Some(Artifacts {
                generation: order.generation,
                environment: spec.environment.digest,
                bundle: spec.bundle,
                options: spec.options.clone().into_iter().collect(),
            }),
        }
    }

    /// Of a group that shall be gone: nothing was done about it yet, which may last. It serves on.
    fn is_kept(&self, group: &GroupName) -> bool {
        lock(&self.observed).get(group).is_some_and(|is| match self.config.profile {
            Profile::Manage => is.max > 0 && !is.deleting,
            Profile::ScaleOnly => is.desired > is.min && !is.deleting,
        })
    }

    /// What `instance` of `group` shall serve now, in its turn.
    pub fn artifacts_for(&self, instance: &InstanceId, group: &GroupName) -> Option<Artifacts> {
        let wanted = self.wanted_artifacts(group)?;
        let held = lock(&self.guardrails).as_ref().map_or(true, |guardrails| guardrails.pause)
            || self.standing.borrow().refusal().is_some();
        let registry = self.registry();
        let serving = registry.get(instance).and_then(|node| node.artifacts.clone());
        match serving {
            // What holds everything holds new code too; a node without any needs some.
            Some(serving) if held => Some(serving),
            Some(_) | None => Some(registry.artifacts_for(instance, &wanted)),
        }
    }

    /// What a node is welcomed with, before it has said what it serves. What is remembered of it may be
    /// older than what it serves by now, and nobody shall be sent back while the ledger is in doubt.
    pub fn artifacts_at_hello(
        &self,
        instance: &InstanceId,
        group: &GroupName,
    ) -> Option<Artifacts> {
        let kept = self.artifacts_for(instance, group)?;
        let is_in_doubt = !self.standing.borrow().contradictions().is_empty();
        let wanted = self
            .wanted_artifacts(group)
            .filter(|wanted| is_in_doubt && wanted.generation > kept.generation);
        Some(wanted.unwrap_or(kept))
    }

    /// A group that is there is served, also when the ledger has lost its order, or its end is held.
    pub fn knows_group(&self, group: &GroupName) -> bool {
        let is_ending = self.view().accepted.get(group).map(|a| a.order.is_tombstone());
        match is_ending {
            Some(false) => true,
            Some(true) => self.is_kept(group),
            None => lock(&self.observed).contains_key(group) || self.registry().has_nodes_of(group),
        }
    }

    /// Who this agent is, as soon as it has a certificate: from then on it is in every log line.
    pub fn know_agent(&self, identity: &certificate::Identity) {
        let mut is_news = false;
        self.vitals.note(|notes| {
            is_news = notes.agent.as_ref() != Some(&identity.agent);
            notes.agent = Some(identity.agent.clone());
            notes.certificate_until_unix_secs = Some(identity.not_after_unix_secs);
        });
        if is_news {
            self.span.record("agent", identity.agent.as_str());
        }
    }

    /// All groups that are ordered or there.
    pub fn groups(&self) -> BTreeSet<GroupName> {
        let mut groups: BTreeSet<GroupName> = self.view().accepted.keys().cloned().collect();
        groups.extend(lock(&self.observed).keys().cloned());
        groups
    }

    /// `None` while this agent does not know enough to say.
    pub fn endpoints(&self, group: &GroupName) -> Option<Vec<CallerEndpoint>> {
        let is_of_before =
            self.of_before.contains(group) || !self.view().accepted.contains_key(group);
        let silent =
            is_of_before && self.silent_until.is_some_and(|until| self.clock.now() < until);
        (!silent).then(|| self.registry().endpoints(group, self.clock.unix_secs()))
    }
}

fn nodes_file(config: &Config) -> PathBuf {
    config.state.join("nodes.json")
}
