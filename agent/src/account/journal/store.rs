//! `journal/` of the account store: for each chain a folder of anchors and one of segments. Everything in it is
//! created, nothing is ever replaced or removed: there the bucket has Object Lock.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::JournalError;
use super::record::{Anchor, Head};
use crate::store::{AccountStore, StoreError};
use crate::trust::files;

/// Of an anchor's file, for whoever reads it.
const ANCHOR_BYTES_MAX: u64 = 1 << 20;
/// A segment ends when it is 4 MiB long; the last record comes on top.
const ARCHIVED_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, Clone)]
pub struct Store {
    pub account_store: AccountStore,
}

impl Store {
    pub fn new(account_store: AccountStore) -> Store {
        Store { account_store }
    }

    /// The chain ends at `head`, and says so before it goes on. `lines`: what else of it is nowhere yet.
    pub fn anchor(&self, chain: &str, head: Head, lines: Vec<String>) -> Result<(), JournalError> {
        let Head { seq, digest: Some(digest) } = head else { return Ok(()) };
        let key = anchor_key(chain, &anchor_name(seq));
        let anchor = Anchor { chain: chain.to_owned(), seq, digest, lines };
        let json = serde_json::to_vec(&anchor).expect("plain values always serialize");
        let failed = |source| JournalError::Anchor { path: self.account_store.name(&key), source };
        match self.account_store.create(&key, &json) {
            Err(StoreError::Exists) => {
                // Ours, if the reply of the first attempt was lost.
                let found = self.account_store.get(&key, ANCHOR_BYTES_MAX).map_err(failed)?;
                match found {
                    Some(found) if found.bytes == json => Ok(()),
                    Some(_) | None => Err(JournalError::Forked { chain: chain.to_owned(), seq }),
                }
            }
            created => created.map(drop).map_err(failed),
        }
    }

    /// Keeps a closed segment. One that is there already is the same, or [`super::verify`] tells.
    pub fn archive(&self, chain: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
        match self.account_store.create(&segment_key(chain, name), bytes) {
            Err(StoreError::Exists) => Ok(()),
            created => Ok(created.map(drop)?),
        }
    }

    pub fn has_segment(&self, chain: &str, name: &str) -> bool {
        matches!(self.account_store.size(&segment_key(chain, name)), Ok(Some(_)))
    }

    /// Oldest first.
    pub fn chains(&self) -> io::Result<Vec<String>> {
        Ok(self.account_store.prefixes("journal")?)
    }

    /// Of those behind record `after`.
    pub fn newest_anchor(&self, chain: &str, after: u64) -> io::Result<Option<Anchor>> {
        let newest = self.anchor_names(chain, after)?.pop();
        newest.map(|name| self.read_anchor(chain, &name)).transpose()
    }

    /// By number of the record; those behind record `after`.
    pub fn anchors_after(&self, chain: &str, after: u64) -> io::Result<BTreeMap<u64, Anchor>> {
        let anchors = self.anchor_names(chain, after)?.into_iter().map(|name| {
            let anchor = self.read_anchor(chain, &name)?;
            Ok((anchor.seq, anchor))
        });
        anchors.collect()
    }

    fn anchor_names(&self, chain: &str, after: u64) -> io::Result<Vec<String>> {
        Ok(self.account_store.names(&anchor_prefix(chain), Some(&anchor_name(after)))?)
    }

    fn read_anchor(&self, chain: &str, name: &str) -> io::Result<Anchor> {
        let key = anchor_key(chain, name);
        let invalid = |why: String| {
            let name = self.account_store.name(&key);
            io::Error::new(io::ErrorKind::InvalidData, format!("{name} is no anchor: {why}"))
        };
        let found = match self.account_store.get(&key, ANCHOR_BYTES_MAX) {
            Err(StoreError::TooLarge { .. }) => {
                return Err(invalid(format!("longer than {ANCHOR_BYTES_MAX} bytes")));
            }
            found => found?.ok_or(io::ErrorKind::NotFound)?,
        };
        serde_json::from_slice(&found.bytes).map_err(|error| invalid(error.to_string()))
    }

    pub fn segment_names(&self, chain: &str) -> io::Result<Vec<String>> {
        Ok(self.account_store.names(&segment_prefix(chain), None)?)
    }

    pub fn segment(&self, chain: &str, name: &str) -> io::Result<Vec<u8>> {
        let found = self.account_store.get(&segment_key(chain, name), ARCHIVED_BYTES_MAX)?;
        Ok(found.ok_or(io::ErrorKind::NotFound)?.bytes)
    }

    /// For people.
    pub fn segments(&self, chain: &str) -> String {
        self.account_store.name(&segment_prefix(chain))
    }
}

fn anchor_prefix(chain: &str) -> String {
    format!("journal/{chain}/anchors")
}

fn segment_prefix(chain: &str) -> String {
    format!("journal/{chain}/segments")
}

fn anchor_key(chain: &str, name: &str) -> String {
    format!("{}/{name}", anchor_prefix(chain))
}

fn segment_key(chain: &str, name: &str) -> String {
    format!("{}/{name}", segment_prefix(chain))
}

fn anchor_name(seq: u64) -> String {
    format!("{seq:020}.json")
}

/// Of what is in a folder on this disk, in order; what writers left that were killed does not count. A folder that is
/// not there is empty.
pub fn names(folder: &Path) -> io::Result<Vec<String>> {
    Ok(files::names(folder)?.unwrap_or_default())
}
