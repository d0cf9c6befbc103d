//! A group's conditions: what an operator asks first, each with its state, since when, and why. Pure.

use std::fmt;

use outstation_protocol::order::Intent;
use serde::Serialize;

use super::ago;
use crate::link::{Link, Linked};
use crate::plan::{FieldChange, differences, nodes};
use crate::view::{GroupView, Refused};

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    pub name: &'static str,
    pub state: State,
    /// Nothing has been heard of it since the agent left: the state is the last one known.
    pub stale: bool,
    /// Since when the state is what it is; none where nobody knows.
    pub since_unix_secs: Option<u64>,
    pub reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Yes,
    No,
    /// The answer has not come yet.
    Waiting,
    Unknown,
    Up,
    Down,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Yes => "yes",
            State::No => "no",
            State::Waiting => "waiting",
            State::Unknown => "unknown",
            State::Up => "up",
            State::Down => "down",
        })
    }
}

impl Condition {
    fn new(
        name: &'static str,
        state: State,
        since_unix_secs: Option<u64>,
        reason: impl Into<String>,
    ) -> Condition {
        let reason = reason.into();
        Condition { name, state, stale: false, since_unix_secs, reason, hint: None }
    }

    fn hint(self, hint: impl Into<String>) -> Condition {
        Condition { hint: Some(hint.into()), ..self }
    }

    fn stale(self, stale: bool) -> Condition {
        Condition { stale, ..self }
    }
}

/// In the order of a story: decided, done, heard, held, changed from outside.
pub fn conditions(group: &GroupView, link: &Link) -> Vec<Condition> {
    let stale = link.stale_since_unix_secs(group).is_some();
    let mut conditions = vec![accepted(group), converged(group).stale(stale), heard(link)];
    conditions.extend(held(group).into_iter().map(|held| held.stale(stale)));
    conditions.push(drift(group).stale(stale));
    conditions
}

fn accepted(group: &GroupView) -> Condition {
    let newest = group.newest_order();
    if let Some(refused) = standing_refusal(group) {
        let Refused { rule, message, .. } = refused;
        let reason = format!("generation {} refused by {rule}: {message}", refused.generation);
        return Condition::new("accepted", State::No, Some(refused.at_unix_secs), reason)
            .hint(&refused.hint);
    }
    match &group.accepted {
        Some(accepted) if accepted.generation >= newest.generation => {
            let order = group.shown().order;
            Condition::new("accepted", State::Yes, Some(accepted.at_unix_secs), order.to_string())
        }
        Some(_) | None => {
            let reason = format!("{newest} is not answered yet");
            Condition::new("accepted", State::Waiting, Some(group.put_at_unix_secs), reason)
        }
    }
}

/// A refusal that no later acceptance has made history.
pub fn standing_refusal(group: &GroupView) -> Option<&Refused> {
    let accepted = group.accepted.as_ref().map(|accepted| accepted.generation);
    group.refused.as_ref().filter(|refused| accepted.is_none_or(|at| refused.generation > at))
}

/// Of the order in force: that another one was refused or waits is the condition above.
fn converged(group: &GroupView) -> Condition {
    let condition =
        |state, since, reason: String| Condition::new("converged", state, since, reason);
    let Some(in_force) = group.in_force() else {
        return condition(State::No, None, "nothing is accepted yet".into());
    };
    let Some(status) = &group.status else {
        let reason = "the account agent has not looked at the account since it started";
        return condition(State::Unknown, None, reason.into());
    };
    let at = group
        .converged
        .as_ref()
        .filter(|converged| converged.generation == in_force.order.generation);
    match (status.phase.as_str(), at) {
        ("READY" | "DELETED", Some(at)) => {
            condition(State::Yes, Some(at.at_unix_secs), in_force.order.to_string())
        }
        (phase, _) => {
            let reason = format!("{phase}: {}", status.reason);
            condition(State::No, Some(status.phase_since_unix_secs), reason)
        }
    }
}

fn heard(link: &Link) -> Condition {
    match link {
        Link::Never => Condition::new("link", State::Down, None, "no account agent has enrolled")
            .hint("enroll one with a join token; until then nothing is done"),
        Link::Up { agents } => {
            let since = agents.iter().map(|agent| agent.since_unix_secs).min();
            let names: Vec<&str> = agents.iter().map(|agent| agent.agent.as_str()).collect();
            let reason = format!("account agent {} is connected", names.join(", "));
            Condition::new("link", State::Up, since, reason)
        }
        Link::Down { last: Linked { agent, since_unix_secs, .. } } => {
            let reason = format!("account agent {agent} is not connected; the account goes on");
            Condition::new("link", State::Down, Some(*since_unix_secs), reason).hint(
                "`outstation events` says why it left; look at the agent's log and its way here",
            )
        }
    }
}

fn held(group: &GroupView) -> Vec<Condition> {
    let Some(status) = &group.status else {
        return vec![Condition::new("held", State::Unknown, None, "nothing is known")];
    };
    if status.held.is_empty() {
        return vec![Condition::new("held", State::No, None, "nothing")];
    }
    let held = status.held.iter().map(|held| {
        let generation = held
            .generation
            .map_or(String::new(), |generation| format!("generation {generation}: "));
        let since = Some(held.since_unix_secs).filter(|since| *since > 0);
        let reason = format!("{generation}{}: {}", held.rule, held.message);
        Condition::new("held", State::Yes, since, reason).hint(&held.hint)
    });
    held.collect()
}

fn drift(group: &GroupView) -> Condition {
    let Some(status) = &group.status else {
        return Condition::new("drift", State::Unknown, None, "nothing is known");
    };
    match status.drift.first() {
        None => Condition::new("drift", State::No, None, "none"),
        Some(last) if last.repaired => {
            let reason = format!("last: {}, repaired", last.change);
            Condition::new("drift", State::No, Some(last.at_unix_secs), reason)
        }
        Some(last) => {
            let reason = format!("{}, not repaired", last.change);
            Condition::new("drift", State::Yes, Some(last.at_unix_secs), reason)
        }
    }
}

/// The newest order, if it is not the one in force: what it wants, and what became of it.
pub fn set_apart(group: &GroupView, now_unix_secs: u64) -> Option<(&'static str, String)> {
    let in_force = group.in_force()?;
    let newest = group.newest_order();
    if in_force.order == newest {
        return None;
    }
    if in_force.order.generation > newest.generation {
        let text = format!(
            "the account is at {}, which this broker does not have: its database is older",
            in_force.order
        );
        return Some(("newest", format!("{newest}; {text}")));
    }
    let wanted = wanted(group);
    let put = ago(group.put_at_unix_secs, now_unix_secs);
    Some(match group.refusal_of(newest.generation) {
        Some(refused) => {
            let at = ago(refused.at_unix_secs, now_unix_secs);
            ("refused", format!("{newest}, put {put}, refused {at}; it wanted {wanted}"))
        }
        None => ("waiting", format!("{newest}, put {put}, not answered yet; it wants {wanted}")),
    })
}

/// `nodes 3 -> 90`: the newest order beside the one in force.
fn wanted(group: &GroupView) -> String {
    let before = group.in_force().and_then(|in_force| in_force.known);
    match (before, &group.intent) {
        (_, Intent::Destroy) => "the group gone".into(),
        (Some((Intent::Apply(from), _)), Intent::Apply(to)) => {
            let changes: Vec<String> = differences(from, to)
                .iter()
                .map(|FieldChange { field, from, to }| format!("{field} {from} -> {to}"))
                .collect();
            if changes.is_empty() { "the same".into() } else { changes.join(", ") }
        }
        (Some((Intent::Destroy, _)) | None, Intent::Apply(to)) => {
            format!("{} nodes, environment {}", nodes(&to.scaling), to.environment.name)
        }
    }
}
