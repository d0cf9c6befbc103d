//! The loop that brings AWS to what was ordered: look, plan, act, tell. One stuck group never
//! blocks another; a call that failed is repeated with a growing delay.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outstation_protocol::session::Answer;
use outstation_protocol::status::Held;
use outstation_protocol::{Digest, GroupName};
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;

use super::aws::{Aws, CallError};
use super::backoff::{Class, backoff};
use super::config::Profile;
use super::dry_run;
use super::entry::entering;
use super::images::Images;
use super::journal::record::Event;
use super::ledger::Accepted;
use super::look::Eyes;
use super::plan::{Action, GroupPlan, Observed, ObservedGroup, Plan, plan};
use super::recall::{Known, status_as_it_is};
use super::replacements::{self, Facts, FirstSeen, History, Replaced};
use super::scale_only;
use super::shared::{Shared, lock};
use super::status::{Memory, assess};
use super::turns::Turns;

/// Looks are at least so far apart, however much happens: one account shares its API budget.
pub const LOOK_MIN: Duration = Duration::from_millis(200);
/// While something is under way.
const LOOK_BUSY: Duration = Duration::from_secs(1);
/// So many looks that show nothing new are no reason to slow down: instances take their time.
const LOOKS_PATIENT: u32 = 10;
/// Calls that change something, from one look to the next: what happens meanwhile must not wait for five hundred of them.
const ACTIONS_A_LOOK_MAX: usize = 10;
/// For instances that enter service, however many others there were.
const ENTERING_A_LOOK_MIN: usize = 5;
/// Of an action in the journal; the call behind it is there whole.
const ACTION_CHARS_MAX: usize = 400;

/// When a group whose call failed may be tried again.
struct Backoff {
    attempts: u32,
    until: Instant,
}

/// Why an action was not done.
struct Failure {
    held: Held,
    class: Class,
}

/// What a look came to.
struct Seen {
    /// Every group is as ordered.
    settled: bool,
    /// Something is different from the look before.
    news: bool,
}

pub struct Reconciler {
    shared: Arc<Shared>,
    aws: Aws,
    /// Spreads retries; seeded by whoever makes it, so that a simulation repeats itself.
    jitter: StdRng,
    eyes: Eyes,
    memories: BTreeMap<GroupName, Memory>,
    backoffs: BTreeMap<GroupName, Backoff>,
    turns: Turns,
    /// Of groups whose instances enter service.
    entries: Turns,
    images: Images,
    first_seen: FirstSeen,
    /// Looks in a row that failed.
    failures: u32,
    /// Looks in a row that showed nothing new while something was still to come.
    unchanged: u32,
}

impl Reconciler {
    pub fn new(shared: Arc<Shared>, aws: Aws, jitter: StdRng) -> Reconciler {
        let (memories, backoffs) = (BTreeMap::new(), BTreeMap::new());
        Reconciler {
            shared,
            aws,
            jitter,
            eyes: Eyes::default(),
            memories,
            backoffs,
            turns: Turns::default(),
            entries: Turns::default(),
            images: Images::default(),
            first_seen: FirstSeen::default(),
            failures: 0,
            unchanged: 0,
        }
    }

    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let pause = self.step().await;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.shared.look.notified() => {
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = tokio::time::sleep(LOOK_MIN) => {}
                    }
                }
            }
        }
    }

    /// One look and what follows from it. Returns how long to wait for the next one, if nothing
    /// happens before.
    pub async fn step(&mut self) -> Duration {
        match self.look().await {
            Ok(seen) => {
                self.failures = 0;
                self.unchanged = if seen.news { 0 } else { self.unchanged.saturating_add(1) };
                let interval = self.shared.config.reconcile_interval();
                if seen.settled { interval } else { waiting(self.unchanged).min(interval) }
            }
            Err(error) => {
                self.failures += 1;
                tracing::warn!(%error, failures = self.failures,
                    "AWS cannot be looked at; what is there goes on");
                let now = self.shared.clock.unix_secs();
                self.shared.vitals.note_look(now, Some(error.to_string()));
                self.shared.stand_blind(error.to_string());
                self.tell_blind(&error);
                backoff(error.class(), self.failures, &mut self.jitter)
            }
        }
    }

    async fn look(&mut self) -> Result<Seen, CallError> {
        let guardrails = self.shared.refresh_guardrails();
        let mut observed = match &guardrails {
            Ok(guardrails) => {
                let accepted = self.shared.view().accepted;
                let (config, now) = (&self.shared.config, self.shared.clock.now());
                let mut observed =
                    self.eyes.look(&self.aws, config, guardrails, &accepted, now).await?;
                if config.profile == Profile::Manage {
                    self.images.look(&self.aws, &mut observed, guardrails).await;
                }
                self.first_seen.look(&observed, self.shared.clock.unix_secs());
                self.shared.vitals.note_look(self.shared.clock.unix_secs(), None);
                lock(&self.shared.observed).clone_from(&observed);
                self.shared.update_registry(|registry| registry.forget_missing(&observed));
                observed
            }
            // Without the prefix nothing tells ours from others; what was last seen is kept.
            Err(_) => lock(&self.shared.observed).clone(),
        };

        let blind = guardrails.as_ref().err().map(|why| format!("no valid guardrails: {why}"));
        let known = self.shared.recall(&observed, blind);
        let plans = self.plan(&known, &observed);
        // What this look has shown is not kept back until a long round of calls is over.
        if plans.values().map(|plan| plan.actions.len()).sum::<usize>() > ENTERING_A_LOOK_MIN {
            self.rest_idle(&plans);
            self.tell(&known, &plans, &observed);
        }
        let acted = self.act_in_turn(&known, &plans, &mut observed).await;
        let rest = ACTIONS_A_LOOK_MAX.saturating_sub(acted).max(ENTERING_A_LOOK_MIN);
        self.let_in(&plans, &observed, rest).await;
        let seen = lock(&self.shared.observed).clone();
        Ok(self.tell(&known, &plans, &seen))
    }

    /// By the rules and the link as they are at this moment.
    fn plan(&self, known: &Known, observed: &Observed) -> Plan {
        let guardrails = self.shared.refresh_guardrails();
        let live = *self.shared.link_live.borrow();
        let tenant = &self.shared.identity.tenant;
        let mut plans = match self.shared.config.profile {
            Profile::Manage => plan(&known.accepted, observed, &guardrails, tenant, live),
            Profile::ScaleOnly => {
                let done = self.memories.iter();
                let done =
                    done.filter_map(|(group, memory)| Some((group.clone(), memory.converged?)));
                let done = done.collect();
                scale_only::plan(&known.accepted, observed, &guardrails, tenant, live, &done)
            }
        };
        if let Ok(guardrails) = &guardrails
            && self.shared.config.profile == Profile::Manage
        {
            let history = History::read(&self.shared.store, guardrails.replacements_per_hour);
            let facts = Facts {
                observed,
                registry: &self.shared.registry(),
                first_seen: &self.first_seen,
                history: &history.map_err(|error| error.to_string()),
                now_unix_secs: self.shared.clock.unix_secs(),
            };
            replacements::add(&mut plans, &facts, guardrails);
        }
        known.hold(&mut plans);
        plans
    }

    /// All of one group's actions, then the next group's, until the look's share is used up: what is begun is done before
    /// anything else, as each step that waits for another look takes as long as everything in between. Returns how many there
    /// were.
    async fn act_in_turn(&mut self, known: &Known, plans: &Plan, observed: &mut Observed) -> usize {
        let now = self.shared.clock.now();
        self.turns.forget_others(|group| plans.contains_key(group));
        self.rest_idle(plans);
        let may_act =
            |group: &GroupName| self.backoffs.get(group).is_none_or(|backoff| now >= backoff.until);
        let acting =
            plans.iter().filter(|(group, plan)| !plan.actions.is_empty() && may_act(group));
        let waiting = acting.map(|(group, _)| (group, observed.contains_key(group)));
        let mut acted = 0;
        'groups: for group in self.turns.order(waiting) {
            for action in &plans[&group].actions {
                if acted == ACTIONS_A_LOOK_MAX {
                    self.shared.look.notify_one();
                    return acted;
                }
                acted += 1;
                self.turns.had(&group);
                if !self.act(&group, known, action, observed).await {
                    continue 'groups;
                }
            }
            self.rest(&group, &plans[&group], true);
            // What was just done shows at the next look.
            self.shared.look.notify_one();
        }
        acted
    }

    fn rest_idle(&mut self, plans: &Plan) {
        for (group, plan) in plans.iter().filter(|(_, plan)| plan.actions.is_empty()) {
            self.rest(group, plan, false);
        }
    }

    /// Nothing is left to do of what was planned for a group.
    fn rest(&mut self, group: &GroupName, plan: &GroupPlan, repaired: bool) {
        let memory = self.memories.entry(group.clone()).or_default();
        memory.note_drift(&plan.drift, repaired, self.shared.clock.unix_secs());
        memory.failure = None;
        self.backoffs.remove(group);
    }

    /// False: nothing more of this group before the next look.
    async fn act(
        &mut self,
        group: &GroupName,
        known: &Known,
        action: &Action,
        observed: &mut Observed,
    ) -> bool {
        self.aws.turn().await;
        // The calls before took their time, and so did the turn: a pause, a lost link or another group may be in the way by
        // now. Then the next look says so.
        if !self.plan(known, observed)[group].actions.contains(action) {
            self.aws.pacer.give_back();
            self.shared.look.notify_one();
            return false;
        }
        self.eyes.changing(action);
        let accepted = &known.accepted[group];
        let done = perform(&self.shared, &self.aws, group, accepted, action).await;
        if let Err(Failure { held, class }) = done {
            let memory = self.memories.entry(group.clone()).or_default();
            let attempts = self.backoffs.get(group).map_or(0, |b| b.attempts) + 1;
            tracing::warn!(%group, generation = %accepted.order.generation,
                digest = accepted.digest.short(), attempts, error = %held.message, "an action failed; it is tried again");
            memory.failure = Some(held);
            let until = self.shared.clock.now() + backoff(class, attempts, &mut self.jitter);
            self.backoffs.insert(group.clone(), Backoff { attempts, until });
            return false;
        }
        match action {
            Action::Create(shape) => {
                self.eyes.created(&shape.asg_name, self.shared.clock.now());
                observed.insert(group.clone(), ObservedGroup::created(shape));
            }
            Action::StartRefresh { .. } | Action::CancelRefresh { .. } => {
                self.images.forget(group);
                if let Some(group) = observed.get_mut(group) {
                    group.done(action);
                }
            }
            Action::Resize { .. }
            | Action::Track { .. }
            | Action::TrackNothing { .. }
            | Action::Replace { .. }
            | Action::SetDesired { .. }
            | Action::PutDrainHook { .. }
            | Action::PutReadyHook { .. }
            | Action::Place { .. }
            | Action::UseTemplate { .. }
            | Action::Tag { .. }
            | Action::DrainToZero { .. }
            | Action::Delete { .. } => {
                if let Some(group) = observed.get_mut(group) {
                    group.done(action);
                }
            }
        }
        true
    }

    /// Launched instances whose node is far enough, or that nothing keeps waiting, enter service: one of each group, then
    /// the next, the longest unserved group first.
    async fn let_in(&mut self, plans: &Plan, observed: &Observed, most: usize) {
        let mut entering_of = BTreeMap::new();
        for (group, observed) in observed {
            let rolling = plans.get(group).and_then(|plan| plan.rolling.as_ref());
            let entering = entering(observed, rolling, &self.shared.registry());
            if !entering.is_empty() {
                entering_of.insert(group, entering.into_iter());
            }
        }
        self.entries.forget_others(|group| observed.contains_key(group));
        let mut calls = 0;
        while !entering_of.is_empty() {
            for group in self.entries.order(entering_of.keys().map(|group| (*group, true))) {
                let next = entering_of.get_mut(&group).and_then(Iterator::next);
                let (Some(instance), Some(asg_name)) = (next, self.shared.asg_name(&group)) else {
                    entering_of.remove(&group);
                    continue;
                };
                if calls == most {
                    self.shared.look.notify_one();
                    return;
                }
                calls += 1;
                self.entries.had(&group);
                if let Err(error) = self.aws.complete_launch(&asg_name, &instance).await {
                    tracing::warn!(%group, %instance, %error, "its launch is not completed; the next look tries again");
                    entering_of.remove(&group);
                }
            }
        }
    }

    /// Tells what every group looks like.
    fn tell(
        &mut self,
        known: &Known,
        plans: &BTreeMap<GroupName, GroupPlan>,
        observed: &Observed,
    ) -> Seen {
        let now = self.shared.clock.unix_secs();
        let mut settled = known.is_settled();
        let mut answers = BTreeMap::new();
        for (group, plan) in plans {
            let observed = observed.get(group);
            let instances = observed.map(|o| o.instances.clone()).unwrap_or_default();
            let nodes = self.shared.registry().statuses(group, &instances);
            let memory = self.memories.entry(group.clone()).or_default();
            let order = &known.accepted[group];
            if known.contradicts(group) {
                let held = plan.held.clone();
                answers.insert(
                    group.clone(),
                    vec![Answer::Status(status_as_it_is(held, observed, nodes, memory, now))],
                );
                continue;
            }
            let before = memory.phase.map(|(phase, _)| phase);
            let (status, converged) = assess(group, order, plan, observed, nodes, memory, now);
            if before != Some(status.phase) {
                tracing::info!(%group, generation = %order.order.generation,
                    digest = order.digest.short(), phase = %status.phase, reason = %status.reason, "phase");
            }
            settled &= converged.is_some();
            answers.insert(group.clone(), answers_of(order, converged, status));
        }
        for (group, held) in known.left_alone(observed) {
            let observed = observed.get(&group);
            let instances = observed.map(|o| o.instances.clone()).unwrap_or_default();
            let nodes = self.shared.registry().statuses(&group, &instances);
            let memory = self.memories.entry(group.clone()).or_default();
            let status = status_as_it_is(held, observed, nodes, memory, now);
            answers.insert(group, vec![Answer::Status(status)]);
        }
        Seen { settled, news: publish(&self.shared, answers) }
    }

    /// AWS does not answer: says so in every group's status, and leaves the rest as it was.
    fn tell_blind(&self, error: &CallError) {
        let failure = error.clone().into_held();
        let mut answers = self.shared.answers.borrow().clone();
        for answer in answers.values_mut().flatten() {
            if let Answer::Status(status) = answer
                && !status.held.iter().any(|held| same_call(held, &failure))
            {
                status.held.retain(|held| held.rule != failure.rule);
                status.held.push(failure.clone());
            }
        }
        publish(&self.shared, answers);
    }
}

fn same_call(a: &Held, b: &Held) -> bool {
    (&a.rule, &a.hint) == (&b.rule, &b.hint)
}

/// Only if the account store still holds this order as the newest: another agent may have moved on.
async fn perform(
    shared: &Shared,
    aws: &Aws,
    group: &GroupName,
    accepted: &Accepted,
    action: &Action,
) -> Result<(), Failure> {
    let newest = shared.with_ledger(|ledger| ledger.is_newest(group, accepted.digest));
    let held = |message: String| Failure {
        held: Held {
            generation: Some(accepted.order.generation),
            rule: "account_store".to_owned(),
            message,
            hint: "look at state/orders/ of the account store".to_owned(),
        },
        class: Class::Transient,
    };
    match newest {
        Ok(true) => {}
        Ok(false) => {
            return Err(held("the account store holds another order by now".to_owned()));
        }
        Err(error) => return Err(held(format!("{:#}", anyhow::Error::from(error)))),
    }
    if let Action::Replace { instance, number, .. } = action {
        let at_unix_secs = shared.clock.unix_secs();
        let replaced = Replaced { instance: instance.clone(), at_unix_secs };
        let noted = replacements::note(&shared.store, *number, &replaced);
        noted.map_err(|error| held(format!("the replacement cannot be counted: {error}")))?;
    }
    tracing::info!(%group, generation = %accepted.order.generation,
        digest = accepted.digest.short(), ?action, "apply");
    shared.note(|| Event::Action {
        group: group.clone(),
        generation: accepted.order.generation,
        digest: accepted.digest,
        action: dry_run::words(action).chars().take(ACTION_CHARS_MAX).collect(),
    });
    aws.apply(action)
        .await
        .map_err(|error| Failure { class: error.class(), held: error.into_held() })
}

fn answers_of(
    accepted: &Accepted,
    converged: Option<Digest>,
    status: outstation_protocol::status::GroupStatus,
) -> Vec<Answer> {
    let generation = accepted.order.generation;
    let mut answers = Vec::new();
    answers.extend(converged.map(|observed| Answer::Converged { generation, observed }));
    answers.push(Answer::Status(status));
    answers
}

/// True if that is news.
fn publish(shared: &Shared, answers: BTreeMap<GroupName, Vec<Answer>>) -> bool {
    shared.answers.send_if_modified(|current| {
        let differs = *current != answers;
        *current = answers;
        differs
    })
}

/// What is held may be held for days: it is looked at less and less often, until something happens.
fn waiting(unchanged: u32) -> Duration {
    LOOK_BUSY.saturating_mul(1 << unchanged.saturating_sub(LOOKS_PATIENT).min(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_as_it_is_is_looked_at_less_often() {
        let secs = |unchanged| waiting(unchanged).as_secs();
        assert_eq!([0, 5, 10, 11, 12, 15].map(secs), [1, 1, 1, 2, 4, 32]);
        assert_eq!(secs(u32::MAX), 1024, "the interval of a quiet account is the limit");
    }
}
