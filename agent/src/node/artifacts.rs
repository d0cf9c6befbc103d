//! What a server is started with, from the account store. Nothing is believed by its name: the
//! bundle's bytes and the environment's manifest must have the digest that was ordered.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use outstation_protocol::Digest;
use outstation_protocol::v1::Artifacts;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::environments::{EnvironmentError, Environments};
use super::install::Progress;
use crate::store::{AccountStore, StoreError};

/// The CLI packs no more than 64 MiB of files; the headers come on top.
pub const TAR_BYTES_MAX: u64 = 96 * 1024 * 1024;
/// A repository of declarations, not a data set.
pub const ENTRIES_MAX: usize = 10_000;
pub const DEPTH_MAX: usize = 40;
/// Read at once.
const READ_BYTES: u64 = 4 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot read {object} of the account store")]
    Store { object: String, source: StoreError },
    #[error("the account store has no bundle {}", digest.short())]
    Missing { digest: Digest },
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    #[error("bundle {} has other contents: {}", wanted.short(), found.short())]
    Digest { wanted: Digest, found: Digest },
    #[error("the bundle has more than {TAR_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the bundle has more than {ENTRIES_MAX} entries")]
    TooMany,
    #[error("the bundle's entry {path:?} {what}")]
    Entry { path: String, what: &'static str },
}

/// What a server is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    pub python: PathBuf,
    pub bundle: PathBuf,
}

/// Where one node keeps its bundles, and where they come from.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    store: AccountStore,
    bundles: PathBuf,
    environments: Environments,
    /// One at a time: an abandoned attempt may still be at work on the same files.
    turn: Arc<Mutex<()>>,
}

impl ArtifactStore {
    /// `dir` is this node's own folder.
    pub fn new(store: AccountStore, dir: &Path, environments: Environments) -> ArtifactStore {
        ArtifactStore { store, bundles: dir.join("bundles"), environments, turn: Arc::default() }
    }

    pub fn prepared(&self, artifacts: &Artifacts) -> Prepared {
        Prepared {
            python: self.environments.python(&artifacts.environment),
            bundle: self.bundles.join(artifacts.bundle.hex()),
        }
    }

    /// Brings environment and bundle to this machine, unless they were verified here before.
    pub fn fetch(&self, artifacts: &Artifacts) -> Result<(), ArtifactError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let fetched = self.environments.install(&artifacts.environment)?;
        if fetched.bytes > 0 {
            let Progress { bytes, bytes_fetched } = fetched;
            let environment = artifacts.environment.short();
            tracing::info!(environment, bytes, bytes_fetched, "environment installed");
        }
        if self.bundles.join(artifacts.bundle.hex()).is_dir() {
            return Ok(());
        }
        fs::create_dir_all(&self.bundles).map_err(failed("create", &self.bundles))?;
        let key = format!("artifacts/bundles/{}.tar", artifacts.bundle.hex());
        let unread = |source| ArtifactError::Store { object: self.store.name(&key), source };
        let bytes = self.store.size(&key).map_err(unread)?;
        let bytes = bytes.ok_or(ArtifactError::Missing { digest: artifacts.bundle })?;
        if bytes > TAR_BYTES_MAX {
            return Err(ArtifactError::TooLarge);
        }
        let target = self.download(&artifacts.bundle);
        let mut copy = File::create(&target).map_err(failed("write", &target))?;
        let mut offset = 0;
        while offset < bytes {
            let read = self.store.read_at(&key, offset, READ_BYTES.min(bytes - offset));
            let read = read.map_err(unread)?.filter(|read| !read.is_empty());
            let read = read.ok_or(ArtifactError::Missing { digest: artifacts.bundle })?;
            copy.write_all(&read).map_err(failed("write", &target))?;
            offset += read.len() as u64;
        }
        Ok(())
    }

    /// Checks the bundle's digest and unpacks it from the very bytes that were checked.
    pub fn verify(&self, artifacts: &Artifacts) -> Result<Prepared, ArtifactError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let prepared = self.prepared(artifacts);
        if prepared.bundle.is_dir() {
            return Ok(prepared);
        }
        let download = self.download(&artifacts.bundle);
        let unpacked = self.unpack(&download, &artifacts.bundle, &prepared.bundle);
        drop(fs::remove_file(&download));
        unpacked?;
        Ok(prepared)
    }

    /// Removes what none of `used` needs.
    pub fn prune(&self, used: &[&Artifacts]) {
        self.environments.prune(&used.iter().map(|a| a.environment).collect::<Vec<_>>());
        let keep: Vec<String> = used.iter().map(|a| a.bundle.hex()).collect();
        let Ok(entries) = fs::read_dir(&self.bundles) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') && !keep.contains(&name) {
                // Left behind at worst: the next start tries again.
                drop(fs::remove_dir_all(entry.path()));
            }
        }
    }

    fn unpack(&self, tar: &Path, wanted: &Digest, target: &Path) -> Result<(), ArtifactError> {
        // Nobody but this node writes below its own folder, so these bytes stay what they are.
        let found = file_digest(tar, TAR_BYTES_MAX).map_err(failed("read", tar))?;
        if found != *wanted {
            return Err(ArtifactError::Digest { wanted: *wanted, found });
        }
        let unfinished = target.with_file_name(format!(".{}.unpacking", wanted.hex()));
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(failed("clear", &unfinished))?;
        }
        fs::create_dir_all(&unfinished).map_err(failed("create", &unfinished))?;
        let file = File::open(tar).map_err(failed("read", tar))?;
        let unpacked = unpack_entries(file, &unfinished);
        if unpacked.is_err() {
            drop(fs::remove_dir_all(&unfinished));
        }
        unpacked?;
        // No fsync of the files: an instance that loses power is replaced, not restarted.
        fs::rename(&unfinished, target).map_err(failed("finish", target))
    }

    fn download(&self, bundle: &Digest) -> PathBuf {
        self.bundles.join(format!(".{}.tar", bundle.hex()))
    }
}

fn unpack_entries(tar: File, target: &Path) -> Result<(), ArtifactError> {
    let reading = |e| failed("read the bundle for", target)(e);
    let mut archive = tar::Archive::new(io::BufReader::new(tar));
    for (number, entry) in archive.entries().map_err(reading)?.enumerate() {
        if number >= ENTRIES_MAX {
            return Err(ArtifactError::TooMany);
        }
        let mut entry = entry.map_err(reading)?;
        let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let refuse = |what| ArtifactError::Entry { path: shown.clone(), what };
        let relative = entry.path().map_err(|_| refuse("has a name that is none"))?.into_owned();
        check_path(&relative).map_err(refuse)?;
        let path = target.join(&relative);
        match entry.header().entry_type() {
            EntryType::Directory => {
                fs::create_dir_all(&path).map_err(failed("create", &path))?;
            }
            EntryType::Regular => {
                let parent = path.parent().unwrap_or(target);
                fs::create_dir_all(parent).map_err(failed("create", parent))?;
                let executable = entry.header().mode().unwrap_or(0) & 0o111 != 0;
                let mut file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(if executable { 0o755 } else { 0o644 })
                    .open(&path)
                    .map_err(|e| match e.kind() {
                        io::ErrorKind::AlreadyExists => refuse("is there twice"),
                        _ => failed("create", &path)(e),
                    })?;
                // The whole file's size bounds what can come out: tar does not compress.
                io::copy(&mut entry, &mut file).map_err(failed("write", &path))?;
                file.flush().map_err(failed("write", &path))?;
            }
            _ => return Err(refuse("is neither a file nor a folder")),
        }
    }
    fs::set_permissions(target, fs::Permissions::from_mode(0o755))
        .map_err(failed("open up", target))
}

fn check_path(path: &Path) -> Result<(), &'static str> {
    let mut depth = 0;
    for component in path.components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::ParentDir => return Err("leads upward"),
            Component::RootDir | Component::Prefix(_) => return Err("is absolute"),
            Component::CurDir => return Err("has a `.` in its path"),
        }
    }
    match depth {
        0 => Err("has no name"),
        1..=DEPTH_MAX => Ok(()),
        _ => Err("is too deep"),
    }
}

fn file_digest(path: &Path, bytes_max: u64) -> io::Result<Digest> {
    let mut file = File::open(path)?.take(bytes_max);
    let mut hasher = Sha256::new();
    io::copy(&mut file, &mut hasher)?;
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> ArtifactError + 'a {
    move |source| ArtifactError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
#[path = "artifacts_tests.rs"]
mod tests;
