//! What this account has accepted: one envelope per group under `state/orders/` of the account
//! store, tombstones included, written durably before anything acts on it. The swap names what it
//! replaces, so two agents cannot both move a group.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use outstation_protocol::envelope::EnvelopeError;
use outstation_protocol::ids::IdError;
use outstation_protocol::order::{Order, OrderError};
use outstation_protocol::{Digest, Envelope, GroupName};

use crate::trust::files;

/// An order that is in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    pub order: Order,
    pub digest: Digest,
}

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("{path} of the ledger cannot be used")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "{path} of the ledger is damaged: restore that file, or the account store, from a version before"
    )]
    Damaged { path: PathBuf, source: Damage },
    #[error(
        "group {group} was moved by another agent: the ledger holds {found:?}, not {expected:?}"
    )]
    Swapped { group: GroupName, expected: Option<Digest>, found: Option<Digest> },
}

#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("not an envelope")]
    Envelope(#[from] EnvelopeError),
    #[error("not an order")]
    Order(#[from] OrderError),
    #[error("not a group's file")]
    Name(#[from] IdError),
    #[error("holds an order of group {0}")]
    OtherGroup(GroupName),
}

pub struct Ledger {
    folder: PathBuf,
    accepted: BTreeMap<GroupName, Accepted>,
}

impl Ledger {
    /// Reads everything; a damaged file stops the agent rather than being taken for an absent one.
    pub fn open(store: &Path) -> Result<Ledger, LedgerError> {
        let folder = store.join("state").join("orders");
        let io = |source| LedgerError::Io { path: folder.clone(), source };
        fs::create_dir_all(&folder).map_err(io)?;
        let mut accepted = BTreeMap::new();
        for entry in fs::read_dir(&folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let Some(stem) = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.strip_suffix(".json"))
            else {
                continue;
            };
            let damaged = |source| LedgerError::Damaged { path: path.clone(), source };
            let group = GroupName::try_from(stem).map_err(|e| damaged(e.into()))?;
            if let Some(found) = read(&path)? {
                if found.order.group != group {
                    return Err(damaged(Damage::OtherGroup(found.order.group)));
                }
                accepted.insert(group, found);
            }
        }
        Ok(Ledger { folder, accepted })
    }

    pub fn accepted(&self) -> &BTreeMap<GroupName, Accepted> {
        &self.accepted
    }

    /// Puts `order` in the place of what this ledger last saw there. When it returns, the
    /// envelope survives a power cut.
    pub fn accept(&mut self, order: Order, envelope: &Envelope) -> Result<(), LedgerError> {
        let group = order.group.clone();
        let path = self.path(&group);
        let io = |source| LedgerError::Io { path: path.clone(), source };
        let _lock = self.lock().map_err(io)?;
        let expected = self.accepted.get(&group).map(|accepted| accepted.digest);
        let found = read(&path)?;
        let found_digest = found.as_ref().map(|accepted| accepted.digest);
        if found_digest != expected {
            if let Some(found) = found {
                self.accepted.insert(group.clone(), found);
            }
            // Another agent of this account has accepted the very same: that is what was asked for.
            if found_digest == Some(envelope.digest()) {
                return Ok(());
            }
            return Err(LedgerError::Swapped { group, expected, found: found_digest });
        }
        files::replace(&path, &envelope.to_json(), 0o600).map_err(io)?;
        self.accepted.insert(group, Accepted { order, digest: envelope.digest() });
        Ok(())
    }

    /// True if the account store still holds `digest` for `group`: asked before every mutation.
    pub fn is_newest(&self, group: &GroupName, digest: Digest) -> Result<bool, LedgerError> {
        Ok(read(&self.path(group))?.is_some_and(|found| found.digest == digest))
    }

    /// What was accepted for `group`, whole: for a broker that has lost it.
    pub fn envelope(&self, group: &GroupName) -> Result<Option<Envelope>, LedgerError> {
        let path = self.path(group);
        match read_file(&path)? {
            None => Ok(None),
            Some(bytes) => Envelope::from_json(&bytes)
                .map(Some)
                .map_err(|error| LedgerError::Damaged { path, source: error.into() }),
        }
    }

    fn path(&self, group: &GroupName) -> PathBuf {
        self.folder.join(format!("{group}.json"))
    }

    fn lock(&self) -> std::io::Result<Flock<File>> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.folder.join(".lock"))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, LedgerError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LedgerError::Io { path: path.to_owned(), source }),
    }
}

fn read(path: &Path) -> Result<Option<Accepted>, LedgerError> {
    let Some(bytes) = read_file(path)? else { return Ok(None) };
    let parse = || -> Result<Accepted, Damage> {
        let envelope = Envelope::from_json(&bytes)?;
        let order = Order::from_envelope(&envelope)?;
        Ok(Accepted { order, digest: envelope.digest() })
    };
    parse().map(Some).map_err(|source| LedgerError::Damaged { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::testing::{group, order, spec, temporary_folder};
    use outstation_protocol::order::Intent;

    #[test]
    fn what_was_accepted_is_there_after_a_restart() {
        let store = temporary_folder();
        let mut ledger = Ledger::open(store.path()).expect("an empty store");
        let first = order("a", 1, None, Intent::Apply(spec(3)));
        let envelope = first.clone().into_envelope();
        ledger.accept(first.clone(), &envelope).expect("nothing there before");
        drop(ledger);

        let ledger = Ledger::open(store.path()).expect("own files");
        assert_eq!(ledger.accepted()[&group("a")].order, first);
        assert!(ledger.is_newest(&group("a"), envelope.digest()).expect("readable"));
    }

    #[test]
    fn two_agents_cannot_both_move_a_group() {
        let store = temporary_folder();
        let mut one = Ledger::open(store.path()).expect("an empty store");
        let mut two = Ledger::open(store.path()).expect("an empty store");
        let three = order("a", 1, None, Intent::Apply(spec(3)));
        let four = order("a", 1, None, Intent::Apply(spec(4)));
        one.accept(three.clone(), &three.clone().into_envelope()).expect("first");
        let error = two.accept(four.clone(), &four.into_envelope()).expect_err("second");
        assert!(matches!(error, LedgerError::Swapped { expected: None, found: Some(_), .. }));
        assert_eq!(two.accepted()[&group("a")].order, three, "it has learnt what is there");
        let mut three_too = Ledger { accepted: BTreeMap::new(), ..two };
        three_too.accept(three.clone(), &three.into_envelope()).expect("the same order, twice");
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_an_absence() {
        let store = temporary_folder();
        let mut ledger = Ledger::open(store.path()).expect("an empty store");
        let first = order("a", 1, None, Intent::Destroy);
        ledger.accept(first.clone(), &first.into_envelope()).expect("accepted");
        fs::write(store.path().join("state/orders/a.json"), b"{\"payl").expect("writable");
        assert!(matches!(Ledger::open(store.path()), Err(LedgerError::Damaged { .. })));
    }
}
