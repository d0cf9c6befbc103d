//! What this account has accepted: one envelope per group under `state/orders/` of the account
//! store, tombstones included, written durably before anything acts on it. The swap names what it
//! replaces, so two agents cannot both move a group. Beside it, under `state/floors/`, what people
//! have decided about groups of which the ledger knew too little.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use outstation_protocol::envelope::EnvelopeError;
use outstation_protocol::ids::IdError;
use outstation_protocol::order::{Order, OrderError};
use outstation_protocol::{Digest, Envelope, GroupName};

use super::floor::{Floor, Floors};
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
    #[error("what is decided about group {group} was changed meanwhile")]
    FloorMoved { group: GroupName },
}

#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("not an envelope")]
    Envelope(#[from] EnvelopeError),
    #[error("not an order")]
    Order(#[from] OrderError),
    #[error("not a floor")]
    Floor(#[source] serde_json::Error),
    #[error("not a group's file")]
    Name(#[from] IdError),
    #[error("holds an order of group {0}")]
    OtherGroup(GroupName),
}

/// A file that cannot be used: of one group, or of all that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub group: Option<GroupName>,
    pub message: String,
}

pub struct Ledger {
    lock: PathBuf,
    orders: Folder<Stored>,
    floors: Folder<Floor>,
    /// The orders that count: those above their group's floor.
    accepted: BTreeMap<GroupName, Accepted>,
    trouble: Vec<Trouble>,
}

/// An order as it is in its file, whether it counts or not.
type Stored = Accepted;

impl Ledger {
    /// Reads everything; a damaged file stops the agent rather than being taken for an absent one.
    pub fn open(store: &Path) -> Result<Ledger, LedgerError> {
        let state = store.join("state");
        let orders = Folder::new(state.join("orders"), read_order)?;
        let floors = Folder::new(state.join("floors"), read_floor)?;
        let lock = state.join("orders").join(".lock");
        let accepted = BTreeMap::new();
        let mut ledger = Ledger { lock, orders, floors, accepted, trouble: Vec::new() };
        ledger.remove_leftovers()?;
        let (_, failures) = ledger.scan();
        match failures.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(ledger),
        }
    }

    fn remove_leftovers(&self) -> Result<(), LedgerError> {
        let _lock = self.lock()?;
        for folder in [&self.orders.folder, &self.floors.folder] {
            files::remove_leftovers(folder)
                .map_err(|source| LedgerError::Io { path: folder.clone(), source })?;
        }
        Ok(())
    }

    /// Takes over what has changed in the account store since: another agent's acceptance, a
    /// person's floor, or a file that is gone. The account store is right, whatever we remember.
    /// True if there was anything; what cannot be read is in [`Ledger::trouble`].
    pub fn refresh(&mut self) -> bool {
        let (changed, failures) = self.scan();
        self.trouble = failures
            .into_iter()
            .map(|(group, error)| Trouble {
                group,
                message: format!("{:#}", anyhow::Error::from(error)),
            })
            .collect();
        changed
    }

    fn scan(&mut self) -> (bool, Vec<(Option<GroupName>, LedgerError)>) {
        let mut failures = Vec::new();
        let changed = self.orders.scan(&mut failures) | self.floors.scan(&mut failures);
        if changed {
            self.count();
        }
        (changed, failures)
    }

    /// Which of the orders count.
    fn count(&mut self) {
        let counts = |group: &GroupName, stored: &Stored| {
            let floor = self.floors.values.get(group).and_then(|floor| floor.generation);
            Some(stored.order.generation) > floor
        };
        let orders = self.orders.values.iter();
        self.accepted = orders
            .filter(|(group, stored)| counts(group, stored))
            .map(|(group, stored)| (group.clone(), stored.clone()))
            .collect();
    }

    pub fn accepted(&self) -> &BTreeMap<GroupName, Accepted> {
        &self.accepted
    }

    pub fn floors(&self) -> &Floors {
        &self.floors.values
    }

    /// What could not be read at the last [`Ledger::refresh`]; for it, what was read before is used.
    pub fn trouble(&self) -> &[Trouble] {
        &self.trouble
    }

    /// Puts `order` in the place of what this ledger last saw there. When it returns, the
    /// envelope survives a power cut.
    pub fn accept(&mut self, order: Order, envelope: &Envelope) -> Result<(), LedgerError> {
        let group = order.group.clone();
        let path = self.orders.path(&group);
        let io = |source| LedgerError::Io { path: path.clone(), source };
        let _lock = self.lock()?;
        let expected = self.orders.values.get(&group).map(|stored| stored.digest);
        let floor = self.floors.values.get(&group).cloned();
        let found = self.orders.look(&group)?.map(|stored| stored.digest);
        let floor_found = self.floors.look(&group)?.cloned();
        if found != expected || floor_found != floor {
            self.count();
            if floor_found != floor {
                return Err(LedgerError::FloorMoved { group });
            }
            // Another agent of this account has accepted the very same: that is what was asked for.
            if found == Some(envelope.digest()) {
                return Ok(());
            }
            return Err(LedgerError::Swapped { group, expected, found });
        }
        files::replace(&path, &envelope.to_json(), 0o600).map_err(io)?;
        self.orders.put(&group, Accepted { order, digest: envelope.digest() });
        self.count();
        Ok(())
    }

    /// Puts a floor in the place of the one that this ledger last saw there, durably.
    pub fn decide(&mut self, floor: Floor) -> Result<(), LedgerError> {
        let group = floor.group.clone();
        let path = self.floors.path(&group);
        let _lock = self.lock()?;
        let expected = self.floors.values.get(&group).cloned();
        let ordered = self.orders.values.get(&group).map(|stored| stored.digest);
        let found = self.floors.look(&group)?.cloned();
        let moved = self.orders.look(&group)?.map(|stored| stored.digest) != ordered;
        let falls = floor.generation < found.as_ref().and_then(|found| found.generation);
        if found != expected || moved || falls {
            self.count();
            return Err(LedgerError::FloorMoved { group });
        }
        let json = serde_json::to_vec_pretty(&floor).expect("plain values always serialize");
        files::replace(&path, &json, 0o600).map_err(|source| LedgerError::Io { path, source })?;
        self.floors.put(&group, floor);
        self.count();
        Ok(())
    }

    /// True if the account store still holds `digest` for `group`, and nobody has put a floor above
    /// it: asked before every mutation.
    pub fn is_newest(&self, group: &GroupName, digest: Digest) -> Result<bool, LedgerError> {
        let Some(found) = read_order(&self.orders.path(group), group)? else { return Ok(false) };
        let floor = read_floor(&self.floors.path(group), group)?.and_then(|f| f.generation);
        Ok(found.digest == digest && Some(found.order.generation) > floor)
    }

    /// What was accepted for `group`, whole: for a broker that has lost it.
    pub fn envelope(&self, group: &GroupName) -> Result<Option<Envelope>, LedgerError> {
        read(&self.orders.path(group), |bytes| Ok(Envelope::from_json(bytes)?))
    }

    /// One writer at a time; between two of them the files themselves are compared.
    fn lock(&self) -> Result<Flock<File>, LedgerError> {
        let io = |source| LedgerError::Io { path: self.lock.clone(), source };
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&self.lock);
        Flock::lock(file.map_err(io)?, FlockArg::LockExclusive)
            .map_err(|(_, errno)| io(errno.into()))
    }
}

type Read<T> = fn(&Path, &GroupName) -> Result<Option<T>, LedgerError>;

/// A folder of one file per group, as it was when it was last looked at.
struct Folder<T> {
    folder: PathBuf,
    read: Read<T>,
    seen: BTreeMap<GroupName, FileId>,
    values: BTreeMap<GroupName, T>,
}

/// Differs for every file that was ever put at a path by [`files::replace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    inode: u64,
    changed: (i64, i64),
    len: u64,
}

impl FileId {
    fn of(path: &Path) -> std::io::Result<FileId> {
        let of = fs::metadata(path)?;
        Ok(FileId { inode: of.ino(), changed: (of.ctime(), of.ctime_nsec()), len: of.len() })
    }
}

impl<T> Folder<T> {
    fn new(folder: PathBuf, read: Read<T>) -> Result<Folder<T>, LedgerError> {
        fs::create_dir_all(&folder)
            .map_err(|source| LedgerError::Io { path: folder.clone(), source })?;
        Ok(Folder { folder, read, seen: BTreeMap::new(), values: BTreeMap::new() })
    }

    fn path(&self, group: &GroupName) -> PathBuf {
        self.folder.join(format!("{group}.json"))
    }

    /// Reads what is new and forgets what is gone; what cannot be read stays as it was. True if
    /// anything changed.
    fn scan(&mut self, failures: &mut Vec<(Option<GroupName>, LedgerError)>) -> bool {
        let groups = match self.groups() {
            Ok(groups) => groups,
            Err(error) => {
                failures.push((None, error));
                return false;
            }
        };
        let mut changed = false;
        for group in &groups {
            let id = FileId::of(&self.path(group)).ok();
            if id.is_some() && self.seen.get(group) == id.as_ref() {
                continue;
            }
            match self.look(group) {
                Ok(_) => changed = true,
                Err(error) => failures.push((Some(group.clone()), error)),
            }
        }
        let before = self.values.len();
        self.seen.retain(|group, _| groups.contains(group));
        self.values.retain(|group, _| groups.contains(group));
        changed | (self.values.len() != before)
    }

    /// Takes over what is there for one group now.
    fn look(&mut self, group: &GroupName) -> Result<Option<&T>, LedgerError> {
        let path = self.path(group);
        // Taken before the content: a change in between is seen at the next look.
        let id = FileId::of(&path).ok();
        match ((self.read)(&path, group)?, id) {
            (Some(value), Some(id)) => {
                self.seen.insert(group.clone(), id);
                self.values.insert(group.clone(), value);
            }
            (Some(_) | None, _) => {
                self.seen.remove(group);
                self.values.remove(group);
            }
        }
        Ok(self.values.get(group))
    }

    /// What we have just written there ourselves.
    fn put(&mut self, group: &GroupName, value: T) {
        if let Ok(id) = FileId::of(&self.path(group)) {
            self.seen.insert(group.clone(), id);
        }
        self.values.insert(group.clone(), value);
    }

    fn groups(&self) -> Result<BTreeSet<GroupName>, LedgerError> {
        let io = |source| LedgerError::Io { path: self.folder.clone(), source };
        let mut groups = BTreeSet::new();
        for entry in fs::read_dir(&self.folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(stem) = name.and_then(|name| name.strip_suffix(".json")) {
                let group = GroupName::try_from(stem).map_err(|error| LedgerError::Damaged {
                    path: path.clone(),
                    source: error.into(),
                })?;
                groups.insert(group);
            }
        }
        Ok(groups)
    }
}

fn read_order(path: &Path, group: &GroupName) -> Result<Option<Stored>, LedgerError> {
    read(path, |bytes| {
        let envelope = Envelope::from_json(bytes)?;
        let order = Order::from_envelope(&envelope)?;
        if order.group != *group {
            return Err(Damage::OtherGroup(order.group));
        }
        Ok(Accepted { order, digest: envelope.digest() })
    })
}

fn read_floor(path: &Path, group: &GroupName) -> Result<Option<Floor>, LedgerError> {
    read(path, |bytes| {
        let floor: Floor = serde_json::from_slice(bytes).map_err(Damage::Floor)?;
        if floor.group != *group {
            return Err(Damage::OtherGroup(floor.group));
        }
        Ok(floor)
    })
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, LedgerError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LedgerError::Io { path: path.to_owned(), source }),
    }
}

fn read<T>(
    path: &Path,
    parse: impl Fn(&[u8]) -> Result<T, Damage>,
) -> Result<Option<T>, LedgerError> {
    let Some(bytes) = read_file(path)? else { return Ok(None) };
    parse(&bytes).map(Some).map_err(|source| LedgerError::Damaged { path: path.to_owned(), source })
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
