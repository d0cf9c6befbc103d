//! An account store that is a folder: what is written is synced and put in its place whole, and one writer at a time swaps.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::{Entry, Object, Read, StoreError, Version};
use crate::trust::files;

#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
}

fn disk(action: &'static str) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Disk { action, source }
}

impl Folder {
    pub fn new(root: &Path) -> Folder {
        Folder { root: root.to_owned() }
    }

    pub fn path(&self, key: &str) -> PathBuf {
        if key.is_empty() { self.root.clone() } else { self.root.join(key) }
    }

    pub fn check(&self) -> Result<(), StoreError> {
        if self.root.is_dir() {
            return Ok(());
        }
        Err(disk("find")(io::ErrorKind::NotFound.into()))
    }

    pub fn prepare(&self, prefix: &str) -> Result<(), StoreError> {
        let folder = self.path(prefix);
        fs::create_dir_all(&folder).map_err(disk("create"))?;
        let _lock = lock(&folder)?;
        files::remove_leftovers(&folder).map_err(disk("tidy"))
    }

    pub fn check_writable(&self, prefix: &str) -> Result<(), StoreError> {
        files::check_writable(&self.path(prefix)).map_err(disk("write to"))
    }

    pub fn get(
        &self,
        key: &str,
        bytes_max: u64,
        known: Option<&Version>,
    ) -> Result<Read, StoreError> {
        let Some(file) = self.open(key)? else { return Ok(Read::Absent) };
        // Taken before the content: a change in between is seen at the next look.
        let version = version(&file.metadata().map_err(disk("read"))?);
        if known == Some(&version) {
            return Ok(Read::Same);
        }
        let mut bytes = Vec::new();
        file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(disk("read"))?;
        if bytes.len() as u64 > bytes_max {
            return Err(StoreError::TooLarge { bytes_max });
        }
        Ok(Read::Object(Object { bytes, version }))
    }

    fn open(&self, key: &str) -> Result<Option<File>, StoreError> {
        match File::open(self.path(key)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(disk("read")(error)),
        }
    }

    pub fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        match fs::metadata(self.path(key)) {
            Ok(of) => Ok(Some(of.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(disk("read")(error)),
        }
    }

    pub fn read_at(&self, key: &str, offset: u64, len: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(mut file) = self.open(key)? else { return Ok(None) };
        // As much as there will be, so that it does not grow bit by bit.
        let left = file.metadata().map_err(disk("read"))?.len().saturating_sub(offset);
        let mut bytes = Vec::with_capacity(usize::try_from(left.min(len)).unwrap_or(0));
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| file.take(len).read_to_end(&mut bytes))
            .map_err(disk("read"))?;
        Ok(Some(bytes))
    }

    pub fn list(&self, prefix: &str) -> Result<Option<Vec<Entry>>, StoreError> {
        let folder = self.path(prefix);
        let Some(names) = files::names(&folder).map_err(disk("read"))? else { return Ok(None) };
        let mut entries = Vec::new();
        for name in names {
            match fs::metadata(folder.join(&name)) {
                Ok(of) => entries.push(Entry { name, version: version(&of) }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(disk("read")(error)),
            }
        }
        Ok(Some(entries))
    }

    pub fn names(&self, prefix: &str, after: Option<&str>) -> Result<Vec<String>, StoreError> {
        let mut names = files::names(&self.path(prefix)).map_err(disk("read"))?.unwrap_or_default();
        names.retain(|name| after.is_none_or(|after| name.as_str() > after));
        Ok(names)
    }

    pub fn create(&self, key: &str, bytes: &[u8]) -> Result<Version, StoreError> {
        let path = self.path(key);
        let create = || files::create_new(&path, bytes, mode(key));
        let created = match create() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path.parent().unwrap_or(&self.root)).and_then(|()| create())
            }
            created => created,
        };
        created.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => StoreError::Exists,
            _ => disk("write")(error),
        })?;
        self.version(&path)
    }

    pub fn swap(
        &self,
        key: &str,
        bytes: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, StoreError> {
        let path = self.path(key);
        let _lock = lock(path.parent().unwrap_or(&self.root))?;
        let found = match fs::metadata(&path) {
            Ok(of) => Some(version(&of)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(disk("read")(error)),
        };
        if found.as_ref() != expected {
            return Err(StoreError::Moved);
        }
        files::replace(&path, bytes, mode(key)).map_err(disk("write"))?;
        self.version(&path)
    }

    fn version(&self, path: &Path) -> Result<Version, StoreError> {
        Ok(version(&fs::metadata(path).map_err(disk("read"))?))
    }
}

/// Differs for every file that was ever put at a path by [`files::replace`].
fn version(of: &fs::Metadata) -> Version {
    Version(format!("{}-{}.{:09}-{}", of.ino(), of.ctime(), of.ctime_nsec(), of.len()))
}

/// Roots are for everybody on the machine, the rest is the agent's.
fn mode(key: &str) -> u32 {
    if key.starts_with("trust/") { 0o644 } else { 0o600 }
}

/// One writer at a time.
fn lock(folder: &Path) -> Result<Flock<File>, StoreError> {
    let path = folder.join(".lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    Flock::lock(file.map_err(disk("lock"))?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| disk("lock")(errno.into()))
}
