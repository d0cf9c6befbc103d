//! How the account agent is, for people on its host: written to `<state>/status.json` all the time, so
//! that `outstation-agent status` has an answer without the broker, and one also when the agent
//! hangs or is dead.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use outstation_protocol::ids::{AgentId, Digest, Generation, GroupName, TenantId};
use outstation_protocol::session::Answer;
use outstation_protocol::status::GroupStatus;
use outstation_protocol::{DataPlane, status::NODE_ENTRIES_MAX};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::journal;
use super::shared::{Shared, lock};
use crate::clock;
use crate::trust::files;

/// How often the file is compared with what is; people type no faster.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// It is written at least so often, changed or not: its age shows that the agent lives.
const WRITE_AT_LEAST_SECS: u64 = 5;
/// Three of those may be late on a loaded machine. An older file is that of an agent that hangs.
pub const FRESH_SECS_MAX: u64 = 15;
/// Nodes in the file, over all groups; the counts are whole. Keeps it below a megabyte.
const NODES_TOLD_MAX: usize = 10 * NODE_ENTRIES_MAX;
/// Of the file, for its reader: 500 groups with all they can be held for, and the nodes.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// How long a start waits for the lock: `status` holds it for an instant.
const LOCK_MAX: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// What the tasks note down as it happens.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    pub agent: Option<AgentId>,
    pub certificate_until_unix_secs: Option<u64>,
    pub link: Link,
    pub account: Account,
    pub looked_at_unix_secs: Option<u64>,
    pub look_error: Option<Trouble>,
    pub guardrails_since_unix_secs: u64,
}

#[derive(Debug, Default)]
pub struct Vitals(Mutex<Notes>);

impl Vitals {
    pub fn note(&self, change: impl FnOnce(&mut Notes)) {
        change(&mut lock(&self.0));
    }

    /// How a look at AWS went; an error keeps the time at which it was first seen.
    pub fn note_look(&self, now_unix_secs: u64, error: Option<String>) {
        self.note(|notes| match (error, &mut notes.look_error) {
            (None, _) => {
                notes.looked_at_unix_secs = Some(now_unix_secs);
                notes.look_error = None;
            }
            (Some(message), Some(trouble)) => trouble.message = message,
            (Some(message), none) => {
                *none = Some(Trouble { message, at_unix_secs: now_unix_secs });
            }
        });
    }

    /// What STS said of the credentials.
    pub fn note_account(&self, now_unix_secs: u64, error: Option<String>) {
        self.note(|notes| {
            notes.account = match (error, &notes.account) {
                (None, _) => Account::Checked { at_unix_secs: now_unix_secs },
                (Some(message), Account::Failed(before)) => {
                    Account::Failed(Trouble { message, at_unix_secs: before.at_unix_secs })
                }
                (Some(message), Account::Unchecked | Account::Checked { .. }) => {
                    Account::Failed(Trouble { message, at_unix_secs: now_unix_secs })
                }
            };
        });
    }

    pub fn notes(&self) -> Notes {
        lock(&self.0).clone()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Link {
    #[default]
    Starting,
    Dialling {
        broker: String,
        since_unix_secs: u64,
    },
    Connected {
        broker: String,
        since_unix_secs: u64,
    },
    Waiting {
        reason: String,
        since_unix_secs: u64,
        attempts: u32,
        next_attempt_unix_secs: u64,
    },
}

/// Whether STS has said that the credentials are those of the configured account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Account {
    #[default]
    Unchecked,
    Checked {
        at_unix_secs: u64,
    },
    Failed(Trouble),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    pub message: String,
    pub at_unix_secs: u64,
}

/// The status file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub release: String,
    pub pid: u32,
    pub started_unix_secs: u64,
    pub written_unix_secs: u64,
    pub tenant: TenantId,
    pub data_plane: DataPlane,
    pub agent: Option<AgentId>,
    pub certificate_until_unix_secs: Option<u64>,
    pub link: Link,
    pub account: Account,
    pub guardrails: GuardrailsState,
    pub looked_at_unix_secs: Option<u64>,
    pub look_error: Option<Trouble>,
    pub journal: Option<JournalLine>,
    /// Of the account store, each with its file.
    pub store_trouble: Vec<String>,
    pub contradictions: Vec<String>,
    pub groups: Vec<GroupLine>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalLine {
    /// None before the first record.
    pub chain: Option<String>,
    pub records: u64,
    /// Why it takes nothing.
    pub trouble: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardrailsState {
    /// Why there are none.
    pub error: Option<String>,
    pub pause: bool,
    /// Whose orders count, in words; empty without guardrails.
    #[serde(default)]
    pub orders: String,
    pub since_unix_secs: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLine {
    pub group: GroupName,
    /// Of the accepted order, if there is one that counts.
    pub generation: Option<Generation>,
    pub digest: Option<Digest>,
    /// A tombstone was accepted.
    pub destroy: bool,
    /// As the broker is told; none before the first look.
    pub status: Option<GroupStatus>,
}

/// Held by a running agent; the system lets go of it when the process ends, however it does.
#[derive(Debug)]
pub struct Running(#[expect(dead_code, reason = "held, not read")] Flock<File>);

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another account agent runs with the state folder {0}")]
    Taken(PathBuf),
    #[error("{path} cannot be used")]
    Io { path: PathBuf, source: std::io::Error },
}

impl Running {
    /// Two agents on one state folder would write over each other's key, nodes and answers.
    pub async fn claim(state: &Path) -> Result<Running, LockError> {
        let path = lock_file(state);
        let io = |source| LockError::Io { path: path.clone(), source };
        let until = clock::now() + LOCK_MAX;
        loop {
            let mut options = OpenOptions::new();
            let file = options.create(true).truncate(false).write(true).open(&path).map_err(io)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => {
                    files::remove_leftovers(state).map_err(io)?;
                    return Ok(Running(lock));
                }
                Err((_, Errno::EWOULDBLOCK)) if clock::now() < until => {
                    tokio::time::sleep(LOCK_RETRY).await;
                }
                Err((_, Errno::EWOULDBLOCK)) => return Err(LockError::Taken(state.to_owned())),
                Err((_, errno)) => return Err(io(errno.into())),
            }
        }
    }

    /// Whether an agent runs on this state folder now.
    pub fn is_there(state: &Path) -> Result<bool, LockError> {
        let path = lock_file(state);
        let io = |source| LockError::Io { path: path.clone(), source };
        match Flock::lock(File::open(&path).map_err(io)?, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(false),
            Err((_, Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, errno)) => Err(io(errno.into())),
        }
    }
}

fn lock_file(state: &Path) -> PathBuf {
    state.join("agent.lock")
}

fn status_file(state: &Path) -> PathBuf {
    state.join("status.json")
}

/// Keeps the status file as the agent is.
pub async fn write_all_the_time(shared: Arc<Shared>, stop: CancellationToken) {
    let started_unix_secs = clock::unix_secs();
    let mut written: Option<Snapshot> = None;
    let mut failing = false;
    loop {
        // Once more after the word to stop: what is left behind is how it was at the end.
        let last = stop.is_cancelled();
        let mut snapshot = snapshot(&shared, started_unix_secs);
        let due = written.as_ref().is_none_or(|before| {
            snapshot.written_unix_secs = before.written_unix_secs;
            *before != snapshot
                || clock::unix_secs().abs_diff(before.written_unix_secs) >= WRITE_AT_LEAST_SECS
        });
        if due {
            snapshot.written_unix_secs = clock::unix_secs();
            let (path, json) = (status_file(&shared.config.state), to_json(&snapshot));
            let writing =
                tokio::task::spawn_blocking(move || files::replace_quickly(&path, &json, 0o600));
            match writing.await {
                Ok(Ok(())) => failing = false,
                Ok(Err(error)) if !failing => {
                    tracing::warn!(%error, "the status file was not written");
                    failing = true;
                }
                Ok(Err(_)) | Err(_) => {}
            }
            written = Some(snapshot);
        }
        if last {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(WRITE_EVERY) => {}
        }
    }
}

fn to_json(snapshot: &Snapshot) -> Vec<u8> {
    serde_json::to_vec(snapshot).expect("plain values always serialize")
}

fn snapshot(shared: &Shared, started_unix_secs: u64) -> Snapshot {
    let Notes {
        agent,
        certificate_until_unix_secs,
        link,
        account,
        looked_at_unix_secs,
        look_error,
        guardrails_since_unix_secs,
    } = shared.vitals.notes();
    let guardrails = match shared.guardrails() {
        Ok(guardrails) => (None, guardrails.pause, guardrails.orders()),
        Err(why) => (Some(why.to_string()), false, String::new()),
    };
    let store_trouble =
        shared.view().trouble.iter().map(|trouble| trouble.message.clone()).collect();
    let standing = shared.standing.borrow().clone();
    Snapshot {
        release: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started_unix_secs,
        written_unix_secs: clock::unix_secs(),
        tenant: shared.identity.tenant.clone(),
        data_plane: shared.identity.data_plane.clone(),
        agent,
        certificate_until_unix_secs,
        link,
        account,
        guardrails: GuardrailsState {
            error: guardrails.0,
            pause: guardrails.1,
            orders: guardrails.2,
            since_unix_secs: guardrails_since_unix_secs,
        },
        looked_at_unix_secs,
        look_error,
        journal: shared.journal.as_ref().map(|journal| {
            let journal::State { head, trouble } = journal.state();
            let records = head.as_ref().map_or(0, |(_, head)| head.seq);
            JournalLine { chain: head.map(|(chain, _)| chain), records, trouble }
        }),
        store_trouble,
        contradictions: standing.contradictions().iter().map(|c| c.message()).collect(),
        groups: groups(shared),
    }
}

/// Those with an order and those that are there without one.
fn groups(shared: &Shared) -> Vec<GroupLine> {
    let accepted = shared.view().accepted;
    let answers = shared.answers.borrow().clone();
    let names: std::collections::BTreeSet<&GroupName> =
        accepted.keys().chain(answers.keys()).collect();
    let mut nodes_left = NODES_TOLD_MAX;
    names
        .into_iter()
        .map(|group| {
            let order = accepted.get(group);
            let answers = answers.get(group).map(Vec::as_slice).unwrap_or_default();
            let status = answers.iter().find_map(|answer| match answer {
                Answer::Status(status) => Some(status.clone()),
                Answer::Accepted { .. } | Answer::Refused { .. } | Answer::Converged { .. } => None,
            });
            let status = status.map(|mut status| {
                status.nodes.truncate(nodes_left);
                nodes_left -= status.nodes.len();
                status
            });
            GroupLine {
                group: group.clone(),
                generation: order.map(|accepted| accepted.order.generation),
                digest: order.map(|accepted| accepted.digest),
                destroy: order.is_some_and(|accepted| accepted.order.is_tombstone()),
                status,
            }
        })
        .collect()
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("no account agent has ever written {0}")]
    Never(PathBuf),
    #[error("{path} cannot be read")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a status file of this release")]
    Damaged { path: PathBuf, source: serde_json::Error },
}

pub fn read(state: &Path) -> Result<Snapshot, ReadError> {
    use std::io::Read as _;
    let path = status_file(state);
    let io = |source| ReadError::Io { path: path.clone(), source };
    let file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(ReadError::Never(path));
        }
        opened => opened.map_err(io)?,
    };
    let mut json = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut json).map_err(io)?;
    serde_json::from_slice(&json).map_err(|source| ReadError::Damaged { path, source })
}
