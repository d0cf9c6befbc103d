//! What this account has accepted: one envelope per group under `state/orders/` of the account
//! store, tombstones included, written durably before anything acts on it. The swap names what it
//! replaces, so two agents cannot both move a group. Beside it, under `state/floors/`, what people
//! have decided about groups of which the ledger knew too little.

use std::collections::BTreeMap;
use std::sync::Arc;

use outstation_protocol::envelope::EnvelopeError;
use outstation_protocol::ids::IdError;
use outstation_protocol::order::{Order, OrderError};
use outstation_protocol::{Digest, Envelope, GroupName};

use super::floor::{Floor, Floors};
use crate::store::{AccountStore, OBJECT_BYTES_MAX, Object, StoreError, Version};

/// An order that is in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    pub order: Order,
    pub digest: Digest,
}

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("{path} of the ledger cannot be used")]
    Store { path: String, source: StoreError },
    #[error(
        "{path} of the ledger is damaged: restore that file, or the account store, from a version before"
    )]
    Damaged { path: String, source: Damage },
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
    store: AccountStore,
    orders: Folder<Stored>,
    floors: Folder<Floor>,
    /// The orders that count: those above their group's floor.
    accepted: Arc<BTreeMap<GroupName, Accepted>>,
    trouble: Arc<Vec<Trouble>>,
}

/// What a ledger knew at one moment, for whoever must not wait for the account store.
#[derive(Debug, Clone, Default)]
pub struct View {
    pub accepted: Arc<BTreeMap<GroupName, Accepted>>,
    pub trouble: Arc<Vec<Trouble>>,
}

/// An order as it is in its file, whether it counts or not.
type Stored = Accepted;

impl Ledger {
    /// Reads everything; a damaged file stops the agent rather than being taken for an absent one.
    pub fn open(store: &AccountStore) -> Result<Ledger, LedgerError> {
        let orders = Folder::new(store.clone(), "state/orders", read_order)?;
        let floors = Folder::new(store.clone(), "state/floors", read_floor)?;
        let (accepted, trouble) = (Arc::default(), Arc::default());
        let mut ledger = Ledger { store: store.clone(), orders, floors, accepted, trouble };
        let (_, failures) = ledger.scan();
        match failures.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(ledger),
        }
    }

    pub fn store(&self) -> &AccountStore {
        &self.store
    }

    pub fn view(&self) -> View {
        View { accepted: self.accepted.clone(), trouble: self.trouble.clone() }
    }

    /// Takes over what has changed in the account store since: another agent's acceptance, a
    /// person's floor, or a file that is gone. The account store is right, whatever we remember.
    /// True if there was anything; what cannot be read is in [`Ledger::trouble`].
    pub fn refresh(&mut self) -> bool {
        let (changed, failures) = self.scan();
        let told = failures.into_iter().map(|(group, error)| Trouble {
            group,
            message: format!("{:#}", anyhow::Error::from(error)),
        });
        self.trouble = Arc::new(told.collect());
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
        let counting = orders
            .filter(|(group, stored)| counts(group, stored))
            .map(|(group, stored)| (group.clone(), stored.clone()));
        self.accepted = Arc::new(counting.collect());
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
        let expected = self.orders.values.get(&group).map(|stored| stored.digest);
        let floor = self.floors.values.get(&group).cloned();
        let mut found = self.orders.look(&group)?.map(|stored| stored.digest);
        let mut floor_found = self.floors.look(&group)?.cloned();
        if found == expected && floor_found == floor {
            let accepted = Accepted { order, digest: envelope.digest() };
            match self.orders.swap(&group, &envelope.to_json(), accepted) {
                Ok(()) => {
                    self.count();
                    found = Some(envelope.digest());
                }
                Err(LedgerError::Store { source: StoreError::Moved, .. }) => {
                    found = self.orders.look(&group)?.map(|stored| stored.digest);
                }
                Err(error) => return Err(error),
            }
            // A person may have decided while it was written: then it counts only above the floor.
            floor_found = self.floors.look(&group)?.cloned();
        }
        self.count();
        if floor_found != floor {
            return Err(LedgerError::FloorMoved { group });
        }
        // Ours, or another agent of this account has accepted the very same: that is what was asked for.
        if found == Some(envelope.digest()) {
            return Ok(());
        }
        Err(LedgerError::Swapped { group, expected, found })
    }

    /// Puts a floor in the place of the one that this ledger last saw there, durably.
    pub fn decide(&mut self, floor: Floor) -> Result<(), LedgerError> {
        let group = floor.group.clone();
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
        let written = self.floors.swap(&group, &json, floor);
        self.count();
        // An order that came meanwhile was not what the person has seen.
        let moved = self.orders.look(&group)?.map(|stored| stored.digest) != ordered;
        self.count();
        match written {
            Err(LedgerError::Store { source: StoreError::Moved, .. }) => {
                Err(LedgerError::FloorMoved { group })
            }
            Err(error) => Err(error),
            Ok(()) if moved => Err(LedgerError::FloorMoved { group }),
            Ok(()) => Ok(()),
        }
    }

    /// True if the account store still holds `digest` for `group`, and nobody has put a floor above
    /// it: asked before every mutation.
    pub fn is_newest(&self, group: &GroupName, digest: Digest) -> Result<bool, LedgerError> {
        let Some((found, _)) = self.orders.read(group)? else { return Ok(false) };
        let floor = self.floors.read(group)?.and_then(|(floor, _)| floor.generation);
        Ok(found.digest == digest && Some(found.order.generation) > floor)
    }

    /// What was accepted for `group`, whole: for a broker that has lost it.
    pub fn envelope(&self, group: &GroupName) -> Result<Option<Envelope>, LedgerError> {
        let Some(object) = self.orders.get(group)? else { return Ok(None) };
        let envelope = Envelope::from_json(&object.bytes);
        envelope.map(Some).map_err(|error| self.orders.damaged(group, error.into()))
    }
}

type Parse<T> = fn(&[u8], &GroupName) -> Result<T, Damage>;

/// A folder of one file per group, as it was when it was last looked at.
struct Folder<T> {
    store: AccountStore,
    prefix: &'static str,
    parse: Parse<T>,
    seen: BTreeMap<GroupName, Version>,
    values: BTreeMap<GroupName, T>,
}

impl<T> Folder<T> {
    fn new(
        store: AccountStore,
        prefix: &'static str,
        parse: Parse<T>,
    ) -> Result<Folder<T>, LedgerError> {
        let prepared = store.prepare(prefix);
        prepared.map_err(|source| LedgerError::Store { path: store.name(prefix), source })?;
        Ok(Folder { store, prefix, parse, seen: BTreeMap::new(), values: BTreeMap::new() })
    }

    fn key(&self, group: &GroupName) -> String {
        format!("{}/{group}.json", self.prefix)
    }

    fn failed(&self, group: &GroupName) -> impl Fn(StoreError) -> LedgerError {
        let path = self.store.name(&self.key(group));
        move |source| LedgerError::Store { path: path.clone(), source }
    }

    fn damaged(&self, group: &GroupName, source: Damage) -> LedgerError {
        LedgerError::Damaged { path: self.store.name(&self.key(group)), source }
    }

    fn get(&self, group: &GroupName) -> Result<Option<Object>, LedgerError> {
        self.store.get(&self.key(group), OBJECT_BYTES_MAX).map_err(self.failed(group))
    }

    fn read(&self, group: &GroupName) -> Result<Option<(T, Version)>, LedgerError> {
        let Some(Object { bytes, version }) = self.get(group)? else { return Ok(None) };
        let parsed = (self.parse)(&bytes, group);
        parsed.map(|value| Some((value, version))).map_err(|source| self.damaged(group, source))
    }

    /// Reads what is new and forgets what is gone; what cannot be read stays as it was. True if
    /// anything changed.
    fn scan(&mut self, failures: &mut Vec<(Option<GroupName>, LedgerError)>) -> bool {
        let there = match self.there() {
            Ok(there) => there,
            Err(error) => {
                failures.push((None, error));
                return false;
            }
        };
        let mut changed = false;
        for (group, version) in &there {
            if self.seen.get(group) == Some(version) {
                continue;
            }
            match self.look(group) {
                Ok(_) => changed = true,
                // Of a store that does not answer, one is enough.
                Err(LedgerError::Store { path, source }) if source.is_passing() => {
                    failures.push((None, LedgerError::Store { path, source }));
                    return changed;
                }
                Err(error) => failures.push((Some(group.clone()), error)),
            }
        }
        let before = self.values.len();
        self.seen.retain(|group, _| there.contains_key(group));
        self.values.retain(|group, _| there.contains_key(group));
        changed | (self.values.len() != before)
    }

    /// Takes over what is there for one group now.
    fn look(&mut self, group: &GroupName) -> Result<Option<&T>, LedgerError> {
        match self.read(group)? {
            Some((value, version)) => self.put(group, value, version),
            None => {
                self.seen.remove(group);
                self.values.remove(group);
            }
        }
        Ok(self.values.get(group))
    }

    fn put(&mut self, group: &GroupName, value: T, version: Version) {
        self.seen.insert(group.clone(), version);
        self.values.insert(group.clone(), value);
    }

    /// Puts `value` in the place of what was there at the last look.
    fn swap(&mut self, group: &GroupName, bytes: &[u8], value: T) -> Result<(), LedgerError> {
        let swapped = self.store.swap(&self.key(group), bytes, self.seen.get(group));
        let version = swapped.map_err(self.failed(group))?;
        self.put(group, value, version);
        Ok(())
    }

    fn there(&self) -> Result<BTreeMap<GroupName, Version>, LedgerError> {
        let failed = |source| LedgerError::Store { path: self.store.name(self.prefix), source };
        let gone =
            || StoreError::Disk { action: "read", source: std::io::ErrorKind::NotFound.into() };
        let entries = self.store.list(self.prefix).and_then(|entries| entries.ok_or_else(gone));
        let mut there = BTreeMap::new();
        for entry in entries.map_err(failed)? {
            if let Some(stem) = entry.name.strip_suffix(".json") {
                let group = GroupName::try_from(stem).map_err(|error| LedgerError::Damaged {
                    path: self.store.name(&format!("{}/{}", self.prefix, entry.name)),
                    source: error.into(),
                })?;
                there.insert(group, entry.version);
            }
        }
        Ok(there)
    }
}

fn read_order(bytes: &[u8], group: &GroupName) -> Result<Stored, Damage> {
    let envelope = Envelope::from_json(bytes)?;
    let order = Order::from_envelope(&envelope)?;
    if order.group != *group {
        return Err(Damage::OtherGroup(order.group));
    }
    Ok(Accepted { order, digest: envelope.digest() })
}

fn read_floor(bytes: &[u8], group: &GroupName) -> Result<Floor, Damage> {
    let floor: Floor = serde_json::from_slice(bytes).map_err(Damage::Floor)?;
    if floor.group != *group {
        return Err(Damage::OtherGroup(floor.group));
    }
    Ok(floor)
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
