//! `journal/` of the account store: for each chain a folder of anchors and one of segments. Everything in it is
//! created, nothing is ever replaced or removed: there the bucket has Object Lock.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::JournalError;
use super::record::{Anchor, Head};
use crate::trust::files;

/// Of an anchor's file, for whoever reads it.
const ANCHOR_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    pub fn new(folder: PathBuf) -> Store {
        Store { folder }
    }

    /// The chain ends at `head`, and says so before it goes on. `lines`: what else of it is nowhere yet.
    pub fn anchor(&self, chain: &str, head: Head, lines: Vec<String>) -> Result<(), JournalError> {
        let Head { seq, digest: Some(digest) } = head else { return Ok(()) };
        let path = self.anchors(chain).join(anchor_name(seq));
        let anchor = Anchor { chain: chain.to_owned(), seq, digest, lines };
        let json = serde_json::to_vec(&anchor).expect("plain values always serialize");
        match create(&path, &json) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Ours, if the reply of the first attempt was lost.
                match fs::read(&path).map_err(|source| JournalError::Io { path, source })? {
                    found if found == json => Ok(()),
                    _ => Err(JournalError::Forked { chain: chain.to_owned(), seq }),
                }
            }
            other => other.map_err(|source| JournalError::Io { path, source }),
        }
    }

    /// Keeps a closed segment. One that is there already is the same, or [`super::verify`] tells.
    pub fn archive(&self, chain: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
        match create(&self.segments(chain).join(name), bytes) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    pub fn has_segment(&self, chain: &str, name: &str) -> bool {
        self.segments(chain).join(name).exists()
    }

    /// Oldest first.
    pub fn chains(&self) -> io::Result<Vec<String>> {
        names(&self.folder)
    }

    pub fn newest_anchor(&self, chain: &str) -> io::Result<Option<Anchor>> {
        let newest = names(&self.anchors(chain))?.into_iter().next_back();
        newest.map(|name| read_anchor(&self.anchors(chain).join(name))).transpose()
    }

    /// By number of the record; those behind record `after`.
    pub fn anchors_after(&self, chain: &str, after: u64) -> io::Result<BTreeMap<u64, Anchor>> {
        let folder = self.anchors(chain);
        let first = anchor_name(after + 1);
        let names = names(&folder)?.into_iter().filter(|name| *name >= first);
        let anchors = names.map(|name| {
            let anchor = read_anchor(&folder.join(name))?;
            Ok((anchor.seq, anchor))
        });
        anchors.collect()
    }

    pub fn anchors(&self, chain: &str) -> PathBuf {
        self.folder.join(chain).join("anchors")
    }

    pub fn segments(&self, chain: &str) -> PathBuf {
        self.folder.join(chain).join("segments")
    }
}

fn anchor_name(seq: u64) -> String {
    format!("{seq:020}.json")
}

fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match files::create_new(path, bytes, 0o600) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
            files::create_new(path, bytes, 0o600)
        }
        other => other,
    }
}

fn read_anchor(path: &Path) -> io::Result<Anchor> {
    let invalid = |why: String| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} is no anchor: {why}", path.display()),
        )
    };
    if fs::metadata(path)?.len() > ANCHOR_BYTES_MAX {
        return Err(invalid(format!("longer than {ANCHOR_BYTES_MAX} bytes")));
    }
    serde_json::from_slice(&fs::read(path)?).map_err(|error| invalid(error.to_string()))
}

/// Of what is in a folder, in order; what writers left that were killed does not count. A folder that is not
/// there is empty.
pub fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
