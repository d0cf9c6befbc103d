//! The environments of this machine: each a folder named after its digest, in which every file has
//! been checked against the manifest that has that digest. A folder under its final name is whole; one
//! that a power cut may have torn, because nobody had synced it yet, is read again before it is used.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use outstation_protocol::Digest;
use outstation_protocol::environment::{MANIFEST_BYTES_MAX, Manifest, ManifestError};

use super::install::{self, Pack, Progress};
use crate::clock;
use crate::store::{AccountStore, StoreError};
use crate::trust::files;

/// Environments that nobody here uses any more, kept for the way back.
const UNUSED_KEPT: usize = 3;
/// As long as another process of this machine may take to fetch the same.
const TURN_MAX: Duration = Duration::from_secs(100);
const TURN_RETRY: Duration = Duration::from_millis(50);
/// Room that stays free: logs, the next bundle.
const SPARE_BYTES: u64 = 256 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot read {object} of the account store")]
    Store { object: String, source: StoreError },
    #[error("the account store has no environment {}: `outstation apply` writes it", digest.short())]
    Missing { digest: Digest },
    #[error("the manifest of environment {} has other contents: {}", wanted.short(), found.short())]
    Digest { wanted: Digest, found: Digest },
    #[error("environment {} cannot be used", digest.short())]
    Manifest { digest: Digest, source: ManifestError },
    #[error("environment {} is for {found} and this machine is {}", digest.short(), std::env::consts::ARCH)]
    Machine { digest: Digest, found: String },
    #[error(
        "environment {} needs Python {python}, and this machine has {have}: start the node agent with \
         --python and its path",
        digest.short()
    )]
    Python { digest: Digest, python: String, have: String },
    #[error("the pack of environment {} has {found} bytes, and its manifest says {wanted}", digest.short())]
    Size { digest: Digest, wanted: u64, found: u64 },
    #[error("file {path} of environment {} has other contents: {}, not {}", digest.short(), found.short(), wanted.short())]
    File { digest: Digest, path: String, wanted: Digest, found: Digest },
    #[error("environment {} needs {needed} bytes of disk, and {} has {free}", digest.short(), path.display())]
    Disk { digest: Digest, path: PathBuf, needed: u64, free: u64 },
    #[error("another node agent of this machine is still busy with environment {}", digest.short())]
    Busy { digest: Digest },
}

pub(super) fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> EnvironmentError + 'a {
    move |source| EnvironmentError::Io { action, path: path.to_owned(), source }
}

pub(super) fn unread<'a>(
    store: &'a AccountStore,
    key: &'a str,
) -> impl FnOnce(StoreError) -> EnvironmentError + 'a {
    move |source| EnvironmentError::Store { object: store.name(key), source }
}

/// Where environments come from, where they are kept, and what runs them.
#[derive(Debug, Clone)]
pub struct Environments {
    store: AccountStore,
    root: PathBuf,
    /// Any of them may be inside a virtual environment: what is under it counts.
    interpreters: Vec<PathBuf>,
    /// Kept from being removed by another node of this machine.
    held: Arc<Mutex<BTreeMap<Digest, Flock<File>>>>,
}

impl Environments {
    pub fn new(store: AccountStore, root: &Path, interpreters: Vec<PathBuf>) -> Environments {
        Environments { store, root: root.to_owned(), interpreters, held: Arc::default() }
    }

    /// Its interpreter, once it is installed.
    pub fn python(&self, digest: &Digest) -> PathBuf {
        self.folder(digest).join("bin/python")
    }

    /// Has it here, whole and checked. Fetches what is missing of it.
    pub fn install(&self, digest: &Digest) -> Result<Progress, EnvironmentError> {
        fs::create_dir_all(&self.root).map_err(failed("create", &self.root))?;
        if self.held.lock().unwrap_or_else(PoisonError::into_inner).contains_key(digest) {
            return Ok(Progress::default());
        }
        let turn = self.turn(digest)?;
        let progress =
            if self.is_synced(digest) { Progress::default() } else { self.fetch(digest)? };
        // Of the lock's file: when it was used last.
        let path = self.beside(digest, "lock");
        let used = turn.set_modified(SystemTime::now());
        used.and_then(|()| turn.relock(FlockArg::LockShared).map_err(io::Error::from))
            .map_err(failed("lock", &path))?;
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(*digest, turn);
        Ok(progress)
    }

    fn fetch(&self, digest: &Digest) -> Result<Progress, EnvironmentError> {
        let manifest = self.manifest(digest)?;
        let interpreter = self.interpreter(digest, &manifest.python)?;
        let (folder, part) = (self.folder(digest), self.beside(digest, "part"));
        // Of a folder that is gone: what is put there now is not on disk yet.
        drop(fs::remove_file(self.beside(digest, "synced")));
        if folder.exists() {
            // A server of an earlier life of this agent may run from it: what is whole stays in its place.
            if install::is_whole(&manifest, &folder, &interpreter) {
                self.sync_later(digest);
                return Ok(Progress { bytes: manifest.bytes(), bytes_fetched: 0 });
            }
            // Torn by a power cut, which left no server: what is whole of it need not be fetched again.
            drop(fs::remove_dir_all(&part));
            fs::rename(&folder, &part).map_err(failed("set aside", &folder))?;
        }
        self.check_disk(digest, &manifest, &part)?;
        let pack = Pack { store: &self.store, key: key(digest, "pack") };
        let found = pack.size()?.ok_or(EnvironmentError::Missing { digest: *digest })?;
        if found != manifest.bytes() {
            let wanted = manifest.bytes();
            return Err(EnvironmentError::Size { digest: *digest, wanted, found });
        }
        let progress = install::files(digest, &manifest, &pack, &part)?;
        install::interpreter(&part, &manifest.python, &interpreter)?;
        fs::rename(&part, &folder).map_err(failed("finish", &folder))?;
        self.sync_later(digest);
        Ok(progress)
    }

    /// The manifest whose bytes have this digest.
    pub fn manifest(&self, digest: &Digest) -> Result<Manifest, EnvironmentError> {
        let key = key(digest, "json");
        let object = self.store.get(&key, MANIFEST_BYTES_MAX).map_err(unread(&self.store, &key))?;
        let bytes = object.ok_or(EnvironmentError::Missing { digest: *digest })?.bytes;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(EnvironmentError::Digest { wanted: *digest, found });
        }
        let manifest = Manifest::from_bytes(&bytes)
            .map_err(|source| EnvironmentError::Manifest { digest: *digest, source })?;
        if manifest.machine != std::env::consts::ARCH {
            return Err(EnvironmentError::Machine { digest: *digest, found: manifest.machine });
        }
        Ok(manifest)
    }

    /// Removes what none of `used` needs, but for the few that were used last.
    pub fn prune(&self, used: &[Digest]) {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|digest, _| used.contains(digest));
        let Ok(entries) = fs::read_dir(&self.root) else { return };
        let mut unused: Vec<(SystemTime, Digest)> = entries
            .flatten()
            .filter_map(|entry| digest_of(&entry.file_name().to_string_lossy()))
            .filter(|digest| !used.contains(digest))
            .map(|digest| {
                let used = fs::metadata(self.beside(&digest, "lock")).and_then(|of| of.modified());
                (used.unwrap_or(SystemTime::UNIX_EPOCH), digest)
            })
            .collect();
        unused.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
        for (_, digest) in unused.into_iter().skip(UNUSED_KEPT) {
            // One that another node of this machine uses stays.
            let exclusive = FlockArg::LockExclusiveNonblock;
            let Ok(Some(_turn)) = self.lock(&digest, exclusive) else { continue };
            drop(fs::remove_file(self.beside(&digest, "synced")));
            let gone = self.beside(&digest, "part");
            // Left behind at worst: the next time tries again.
            drop(fs::remove_dir_all(&gone));
            if fs::rename(self.folder(&digest), &gone).is_ok() {
                drop(fs::remove_dir_all(&gone));
            }
        }
    }

    fn turn(&self, digest: &Digest) -> Result<Flock<File>, EnvironmentError> {
        let until = clock::now() + TURN_MAX;
        loop {
            // What is there and synced is only read: others may read it too.
            let how = if self.is_synced(digest) {
                FlockArg::LockSharedNonblock
            } else {
                FlockArg::LockExclusiveNonblock
            };
            if let Some(turn) = self.lock(digest, how)? {
                return Ok(turn);
            }
            if clock::now() >= until {
                return Err(EnvironmentError::Busy { digest: *digest });
            }
            std::thread::sleep(TURN_RETRY);
        }
    }

    /// Against the other node agents of this machine.
    fn lock(
        &self,
        digest: &Digest,
        how: FlockArg,
    ) -> Result<Option<Flock<File>>, EnvironmentError> {
        let path = self.beside(digest, "lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(failed("open", &path))?;
        match Flock::lock(file, how) {
            Ok(turn) => Ok(Some(turn)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(failed("lock", &path)(errno.into())),
        }
    }

    fn is_synced(&self, digest: &Digest) -> bool {
        self.beside(digest, "synced").is_file() && self.python(digest).exists()
    }

    /// Nobody waits for the disk to serve; until it is done, a restart reads everything again.
    fn sync_later(&self, digest: &Digest) {
        let (environments, digest) = (self.clone(), *digest);
        std::thread::spawn(move || {
            if let Err(error) = environments.sync(&digest) {
                let error = anyhow::Error::from(error);
                tracing::warn!(error = format!("{error:#}"), "an environment cannot be synced");
            }
        });
    }

    /// Whatever happens to the machine from now on, what is installed stays as it is.
    pub fn sync(&self, digest: &Digest) -> Result<(), EnvironmentError> {
        let folder = self.folder(digest);
        File::open(&folder)
            .and_then(|folder| nix::unistd::syncfs(&folder).map_err(io::Error::from))
            .and_then(|()| File::open(&self.root)?.sync_all())
            .and_then(|()| files::replace(&self.beside(digest, "synced"), b"", 0o644))
            .map_err(failed("sync", &folder))
    }

    fn check_disk(
        &self,
        digest: &Digest,
        manifest: &Manifest,
        part: &Path,
    ) -> Result<(), EnvironmentError> {
        let space = nix::sys::statvfs::statvfs(&self.root).map_err(io::Error::from);
        let space = space.map_err(failed("look at", &self.root))?;
        let free = space.blocks_available() as u64 * space.fragment_size() as u64;
        let there: u64 = manifest
            .files
            .iter()
            .filter_map(|file| fs::metadata(part.join(&file.path)).ok())
            .map(|there| there.size())
            .sum();
        let needed = (manifest.bytes() + SPARE_BYTES).saturating_sub(there);
        if free < needed {
            let path = self.root.clone();
            return Err(EnvironmentError::Disk { digest: *digest, path, needed, free });
        }
        Ok(())
    }

    /// The base interpreter of that version, asked of each that there is.
    fn interpreter(&self, digest: &Digest, python: &str) -> Result<PathBuf, EnvironmentError> {
        let mut have = Vec::new();
        for candidate in &self.interpreters {
            match ask_interpreter(candidate) {
                Ok((version, base)) if version == python => return Ok(base),
                Ok((version, _)) => have.push(format!("{version} ({})", candidate.display())),
                Err(why) => have.push(format!("{} ({why})", candidate.display())),
            }
        }
        let name = format!("python{python}");
        let on_path = std::env::var_os("PATH").unwrap_or_default();
        for candidate in std::env::split_paths(&on_path).map(|folder| folder.join(&name)) {
            if let Ok((version, base)) = ask_interpreter(&candidate)
                && version == python
            {
                return Ok(base);
            }
        }
        let have = if have.is_empty() { "none".to_owned() } else { have.join(", ") };
        Err(EnvironmentError::Python { digest: *digest, python: python.to_owned(), have })
    }

    fn folder(&self, digest: &Digest) -> PathBuf {
        self.root.join(digest.hex())
    }

    fn beside(&self, digest: &Digest, what: &str) -> PathBuf {
        self.root.join(format!(".{}.{what}", digest.hex()))
    }
}

fn key(digest: &Digest, extension: &str) -> String {
    format!("artifacts/environments/{}.{extension}", digest.hex())
}

/// Of a folder, or of what was left of one.
fn digest_of(name: &str) -> Option<Digest> {
    let hex = name.strip_prefix('.').and_then(|name| name.strip_suffix(".part")).unwrap_or(name);
    Digest::try_from(format!("sha256:{hex}").as_str()).ok()
}

/// Its version, and the interpreter under it if it is that of a virtual environment.
fn ask_interpreter(python: &Path) -> Result<(String, PathBuf), String> {
    const SCRIPT: &str = "import sys; print('%d.%d' % sys.version_info[:2]); \
         print(getattr(sys, '_base_executable', None) or sys.executable)";
    let output = Command::new(python)
        .args(["-I", "-S", "-c", SCRIPT])
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines();
    match (lines.next(), lines.next().map(fs::canonicalize)) {
        (Some(version), Some(Ok(base))) if output.status.success() => {
            Ok((version.to_owned(), base))
        }
        _ => Err("is no Python interpreter".to_owned()),
    }
}

#[cfg(test)]
#[path = "environments_tests.rs"]
mod tests;
