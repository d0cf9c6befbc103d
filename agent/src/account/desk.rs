//! Where orders are dealt with: judged, written down, answered. No sockets: the control link drives
//! it over QUIC, the simulation over its own wire.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use outstation_protocol::Envelope;
use outstation_protocol::ids::{AgentId, Digest, Generation, GroupName};
use outstation_protocol::session::{AgentConfig, AgentSession, Answers, Reports, Verdict};
use outstation_protocol::signing::SignerName;
use outstation_protocol::v1::{self, Hello, Refusal, RefusalRule, SetEntry};

use super::changes::{self, Changed, Changes};
use super::guardrails::{Guardrails, NoGuardrails};
use super::journal::record::Event;
use super::judge::{Approved, Bench, judge};
use super::ledger::Ledger;
use super::shared::Shared;
use crate::trust::files;

pub struct Desk {
    shared: Arc<Shared>,
    /// What this agent stands by; outlives sessions.
    reports: Reports,
}

impl Desk {
    pub fn new(shared: Arc<Shared>) -> Desk {
        let reports = refusals_kept(&shared.config.state);
        Desk { shared, reports }
    }

    /// A new session, which starts from what is in the ledger and what was refused.
    pub fn open_session(&mut self, agent: AgentId) -> AgentSession {
        let accepted = self.heads();
        for (group, head) in &accepted {
            self.reports.entry(group.clone()).or_default().accepted = Some(*head);
        }
        let hello = Hello {
            versions: vec![v1::VERSION],
            features: vec![v1::FEATURE_HAND_BACK.to_owned()],
            agent,
            data_plane: self.shared.identity.data_plane.clone(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let config = AgentConfig::default();
        AgentSession::new(hello, accepted, self.reports.clone(), config, self.shared.clock.now())
    }

    /// The newest order of each group, as the ledger holds it now.
    pub fn heads(&self) -> BTreeMap<GroupName, (Generation, Digest)> {
        let view = self.shared.view();
        let heads = view.accepted.iter();
        heads.map(|(group, a)| (group.clone(), (a.order.generation, a.digest))).collect()
    }

    /// *Accepted* is said only of what is on disk.
    pub fn judge(&self, entry: &SetEntry, envelope: &Envelope) -> Verdict {
        let guardrails = self.shared.refresh_guardrails();
        let (refused, signed_by) =
            self.shared.with_ledger(|ledger| self.weighed(entry, envelope, &guardrails, ledger));
        self.tell(entry, envelope, refused, &signed_by)
    }

    /// Why it is refused, or who has signed what is in the ledger now.
    fn weighed(
        &self,
        entry: &SetEntry,
        envelope: &Envelope,
        guardrails: &Result<Guardrails, NoGuardrails>,
        ledger: &mut Ledger,
    ) -> (Option<Refusal>, String) {
        // In this order: whoever changes the ledger says first what that makes of the account.
        // Another agent may have accepted something since the last look: a refusal is final, so it
        // must not come from what is no longer so.
        if ledger.refresh() {
            self.shared.weigh(ledger);
            self.shared.ledger_changed.send_modify(|count| *count += 1);
            self.shared.look.notify_one();
        }
        let standing = self.shared.standing.borrow().clone();
        let store = &self.shared.store;
        let per_hour = guardrails.as_ref().ok().and_then(|guardrails| guardrails.changes_per_hour);
        let changes = per_hour.map_or(Ok(Changes::default()), |per_hour| {
            Changes::read(store, per_hour).map_err(|error| error.to_string())
        });
        let now_unix_secs = self.shared.clock.unix_secs();
        let bench = Bench {
            identity: &self.shared.identity,
            ledger: ledger.accepted(),
            floors: ledger.floors(),
            standing: &standing,
            guardrails,
            changes: &changes,
            now_unix_secs,
        };
        let judged = judge(entry, envelope, &bench).and_then(|approved| {
            let Some(number) = approved.change else { return Ok(approved) };
            let (group, generation) = (entry.group.clone(), entry.generation);
            let changed = Changed { group, generation, at_unix_secs: now_unix_secs };
            changes::note(store, number, &changed).map(|()| approved).map_err(|error| Refusal {
                rule: RefusalRule::AccountStore,
                message: format!("the change cannot be counted: {error}"),
                hint: "look at state/changes/ of the account store; the agent tries again"
                    .to_owned(),
            })
        });
        let mut signed_by = String::new();
        let refused = match judged {
            Ok(Approved { order, signed_by: names, change: _ }) => {
                match ledger.accept(order, envelope) {
                    Ok(()) => {
                        signed_by = who(&names);
                        None
                    }
                    Err(error) => {
                        // It has learnt what is there instead.
                        self.shared.weigh(ledger);
                        self.shared.ledger_changed.send_modify(|count| *count += 1);
                        self.shared.look.notify_one();
                        Some(Refusal {
                            rule: RefusalRule::AccountStore,
                            message: format!("{:#}", anyhow!(error)),
                            hint: "look at state/ of the account store; the agent tries again"
                                .to_owned(),
                        })
                    }
                }
            }
            Err(refusal) => Some(refusal),
        };
        (refused, signed_by)
    }

    fn tell(
        &self,
        entry: &SetEntry,
        envelope: &Envelope,
        refused: Option<Refusal>,
        signed_by: &str,
    ) -> Verdict {
        let (group, generation) = (&entry.group, entry.generation);
        let digest = entry.digest.short();
        self.shared.note(|| Event::Order {
            group: group.clone(),
            generation,
            digest: envelope.digest(),
            refused: refused.as_ref().map(|refusal| refusal.rule),
            message: refused.as_ref().map_or(String::new(), |refusal| refusal.message.clone()),
        });
        match refused {
            None => {
                tracing::info!(%group, %generation, digest, signed_by, "accepted");
                self.shared.changed.send_modify(|count| *count += 1);
                self.shared.look.notify_one();
                Verdict::Accepted
            }
            Some(refusal) => {
                tracing::warn!(%group, %generation, digest, rule = ?refusal.rule,
                    reason = %refusal.message, "refused");
                Verdict::Refused(refusal)
            }
        }
    }

    /// The order that a broker with an older database has lost, as the ledger holds it.
    pub fn hand_back(&self, entry: &SetEntry) -> Option<Envelope> {
        let kept = self.shared.with_ledger(|ledger| ledger.envelope(&entry.group));
        let kept = kept.inspect_err(|error| {
            tracing::warn!(group = %entry.group, generation = %entry.generation,
                digest = entry.digest.short(), error = format!("{:#}", anyhow!("{error}")),
                "an order that the broker has lost cannot be read");
        });
        kept.ok().flatten().filter(|envelope| envelope.digest() == entry.digest)
    }

    /// Takes over what the session stands by now. A refusal is final for its generation, also after
    /// a restart.
    pub fn keep(&mut self, session: &AgentSession) {
        if self.reports == *session.reports() {
            return;
        }
        let before = refusals(&self.reports);
        self.reports = session.reports().clone();
        let refused = refusals(&self.reports);
        if refused == before {
            return;
        }
        let path = refusals_file(&self.shared.config.state);
        let json = serde_json::to_vec(&refused).expect("maps of plain values always serialize");
        if let Err(error) = files::replace(&path, &json, 0o600) {
            tracing::warn!(%error, path = %path.display(), "the refusals were not written down");
        }
    }
}

/// What could not be judged or taken; it is asked for again.
pub fn is_asked_again(verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Refused(refusal) => !refusal.rule.is_final(),
        Verdict::Accepted => false,
    }
}

fn who(signers: &BTreeSet<SignerName>) -> String {
    let names: Vec<String> = signers.iter().map(ToString::to_string).collect();
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}

fn refusals(reports: &Reports) -> Reports {
    reports
        .iter()
        .filter(|(_, answers)| {
            answers.refused.as_ref().is_some_and(|(.., reason)| reason.rule.is_final())
        })
        .map(|(group, answers)| {
            let refused = answers.refused.clone();
            (group.clone(), Answers { refused, ..Answers::default() })
        })
        .collect()
}

fn refusals_file(state: &Path) -> PathBuf {
    state.join("refused.json")
}

fn refusals_kept(state: &Path) -> Reports {
    let path = refusals_file(state);
    // Absent before the first refusal.
    let Ok(json) = std::fs::read(&path) else { return Reports::default() };
    serde_json::from_slice(&json).unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), %error, "what was refused before cannot be read: it may \
            be judged again; restore the file, or apply anew what must not come");
        Reports::default()
    })
}
