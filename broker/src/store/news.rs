//! Which of an agent's answers are news. Pure: what was told of a group before and what the agent
//! answers now make the events, and what has been told then.
//!
//! The comparison is with what was *told*, not with the answers of before: an agent that restarts
//! gives its answers anew, and a status says something else with every node that boots. Neither is
//! an event; a phase, a rule or a generation that is another one is.

use outstation_protocol::session::Answers;
use outstation_protocol::status::{DRIFT_ENTRIES_MAX, Drift, GroupPhase, GroupStatus, Held};
use outstation_protocol::v1::RefusalRule;
use outstation_protocol::{Digest, Generation};
use serde::{Deserialize, Serialize};

/// A status is at most one frame, in which thousands of short entries would fit; a person reads a
/// handful. What is beyond is shown by `describe` as long as it lasts, and is no event.
const HELD_TOLD_MAX: usize = 16;

/// What an event is about. The names are part of the admin API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    OrderPut,
    /// The database had lost it; the account's ledger had not.
    TakenOver,
    Accepted,
    Refused,
    Converged,
    Phase,
    Held,
    Released,
    DriftSeen,
    DriftRepaired,
    /// The agent no longer stands by an order that it had accepted.
    Forgotten,
    AgentEnrolled,
    AgentConnected,
    AgentDisconnected,
    AgentRevoked,
    /// Somebody has shown a certificate of its that had been replaced: an alarm.
    AgentCopied,
}

impl EventKind {
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::OrderPut => "order_put",
            EventKind::TakenOver => "order_taken_over",
            EventKind::Accepted => "accepted",
            EventKind::Refused => "refused",
            EventKind::Converged => "converged",
            EventKind::Phase => "phase",
            EventKind::Held => "held",
            EventKind::Released => "released",
            EventKind::DriftSeen => "drift_seen",
            EventKind::DriftRepaired => "drift_repaired",
            EventKind::Forgotten => "forgotten",
            EventKind::AgentEnrolled => "agent_enrolled",
            EventKind::AgentConnected => "agent_connected",
            EventKind::AgentDisconnected => "agent_disconnected",
            EventKind::AgentRevoked => "agent_revoked",
            EventKind::AgentCopied => "agent_copied",
        }
    }
}

/// One thing that happened, before it has a number, a time and a place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    pub kind: EventKind,
    pub generation: Option<Generation>,
    pub digest: Option<Digest>,
    /// A short name such as `guardrail`; empty where no rule is concerned.
    pub rule: String,
    pub message: String,
    pub hint: String,
}

impl News {
    pub fn new(kind: EventKind, message: impl Into<String>) -> News {
        News {
            kind,
            generation: None,
            digest: None,
            rule: String::new(),
            message: message.into(),
            hint: String::new(),
        }
    }

    pub fn of_order(self, generation: Generation, digest: Option<Digest>) -> News {
        News { generation: Some(generation), digest, ..self }
    }

    fn by_rule(self, rule: impl Into<String>, hint: impl Into<String>) -> News {
        News { rule: rule.into(), hint: hint.into(), ..self }
    }
}

/// What has been told of a group. It outlives what the agent forgets when it restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Told {
    accepted: Option<(Generation, Digest)>,
    refused: Option<(Generation, Digest, String)>,
    converged: Option<Generation>,
    phase: Option<GroupPhase>,
    held: Vec<ToldHeld>,
    drift: Vec<Drift>,
}

/// A rule that holds something. Its message is not compared: it may count attempts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ToldHeld {
    generation: Option<Generation>,
    rule: String,
    hint: String,
    since_unix_secs: u64,
}

impl ToldHeld {
    fn is(&self, held: &Held) -> bool {
        (self.generation, &self.rule, &self.hint) == (held.generation, &held.rule, &held.hint)
    }
}

impl Told {
    /// As if all of it had been told already: for answers that are older than the log.
    pub fn of(answers: &Answers, now_unix_secs: u64) -> Told {
        let mut told = Told::default();
        told.update(answers, now_unix_secs);
        told
    }

    /// What is news in these answers; afterwards it has been told.
    pub fn update(&mut self, answers: &Answers, now_unix_secs: u64) -> Vec<News> {
        let mut news = Vec::new();
        self.decisions(answers, &mut news);
        if let Some(status) = &answers.status {
            self.status(status, answers.accepted, now_unix_secs, &mut news);
        }
        news
    }

    /// Since when each of these is held, as far as it was told.
    pub fn held_since_unix_secs(&self, held: &Held) -> Option<u64> {
        self.held.iter().find(|told| told.is(held)).map(|told| told.since_unix_secs)
    }

    fn decisions(&mut self, answers: &Answers, news: &mut Vec<News>) {
        match (answers.accepted, self.accepted) {
            (None, Some((generation, digest))) => {
                let message = "the account agent no longer knows that it accepted this order";
                let hint = "look at state/orders/ of the account store";
                news.push(
                    News::new(EventKind::Forgotten, message)
                        .by_rule("", hint)
                        .of_order(generation, Some(digest)),
                );
                // When it accepts that order again, all the rest is news again.
                self.converged = None;
            }
            (Some((generation, digest)), told) if told != Some((generation, digest)) => {
                let message = "written down by the account agent, which acts on it from now on";
                news.push(
                    News::new(EventKind::Accepted, message).of_order(generation, Some(digest)),
                );
            }
            (Some(_) | None, _) => {}
        }
        self.accepted = answers.accepted;

        // A refusal that ended has its event: the acceptance that ended it.
        if let Some((generation, digest, reason)) = &answers.refused {
            let rule = rule_name(reason.rule);
            let told = Some((*generation, *digest, rule.to_owned()));
            if self.refused != told {
                news.push(
                    News::new(EventKind::Refused, &reason.message)
                        .by_rule(rule, &reason.hint)
                        .of_order(*generation, Some(*digest)),
                );
                self.refused = told;
            }
        }
        // What was observed changes with every instance; that it is as ordered does not.
        if let Some((generation, _)) = answers.converged
            && self.converged != Some(generation)
        {
            let message = "the account is as this order wants it";
            let digest = digest_of(generation, answers.accepted);
            news.push(News::new(EventKind::Converged, message).of_order(generation, digest));
            self.converged = Some(generation);
        }
    }

    fn status(
        &mut self,
        status: &GroupStatus,
        accepted: Option<(Generation, Digest)>,
        now_unix_secs: u64,
        news: &mut Vec<News>,
    ) {
        let about = |event: News, generation: Option<Generation>| match generation {
            Some(generation) => event.of_order(generation, digest_of(generation, accepted)),
            None => event,
        };
        if self.phase != Some(status.phase) {
            let from = self.phase.map_or(String::new(), |phase| format!("{phase} -> "));
            let message = format!("{from}{}: {}", status.phase, status.reason);
            news.push(about(News::new(EventKind::Phase, message), accepted.map(|(g, _)| g)));
            self.phase = Some(status.phase);
        }

        let present = &status.held[..status.held.len().min(HELD_TOLD_MAX)];
        self.held.retain(|told| {
            let lasts = present.iter().any(|held| told.is(held));
            if !lasts {
                let message = format!("no longer held by {}", told.rule);
                let event = News::new(EventKind::Released, message).by_rule(&told.rule, "");
                news.push(about(event, told.generation));
            }
            lasts
        });
        for held in present {
            if self.held.iter().any(|told| told.is(held)) {
                continue;
            }
            let event = News::new(EventKind::Held, &held.message).by_rule(&held.rule, &held.hint);
            news.push(about(event, held.generation));
            self.held.push(ToldHeld {
                generation: held.generation,
                rule: held.rule.clone(),
                hint: held.hint.clone(),
                since_unix_secs: now_unix_secs,
            });
        }

        // Newest first on the wire. An agent that restarted has an empty list, which undoes nothing.
        let present = &status.drift[..status.drift.len().min(DRIFT_ENTRIES_MAX)];
        for drift in present.iter().rev() {
            let told = self.drift.iter().any(|told| {
                told == drift || (!drift.repaired && !told.repaired && told.change == drift.change)
            });
            if told {
                continue;
            }
            let event = if drift.repaired {
                News::new(EventKind::DriftRepaired, &drift.change)
            } else {
                let hint = "the account's guardrails keep the agent from repairing it: see `drift` \
                            and `pause` there";
                News::new(EventKind::DriftSeen, &drift.change).by_rule("", hint)
            };
            news.push(about(event, accepted.map(|(generation, _)| generation)));
        }
        if !present.is_empty() {
            self.drift = present.to_vec();
        }
    }
}

fn digest_of(generation: Generation, accepted: Option<(Generation, Digest)>) -> Option<Digest> {
    accepted.filter(|(accepted, _)| *accepted == generation).map(|(_, digest)| digest)
}

/// The names that `RefusalRule` has in JSON; part of the API.
pub fn rule_name(rule: RefusalRule) -> &'static str {
    match rule {
        RefusalRule::OlderGeneration => "older_generation",
        RefusalRule::ConflictingGeneration => "conflicting_generation",
        RefusalRule::UnknownParent => "unknown_parent",
        RefusalRule::Malformed => "malformed",
        RefusalRule::WrongDataPlane => "wrong_data_plane",
        RefusalRule::Expired => "expired",
        RefusalRule::Signature => "signature",
        RefusalRule::Guardrail => "guardrail",
        RefusalRule::PreventDestroy => "prevent_destroy",
        RefusalRule::AccountStore => "account_store",
        RefusalRule::Contradiction => "contradiction",
        RefusalRule::ChangeRate => "change_rate",
    }
}

#[cfg(test)]
#[path = "news_tests.rs"]
mod tests;
