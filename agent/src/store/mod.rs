//! The account store: the root of everything in an account (DESIGN §6). One seam, two places: a folder on this machine, or a
//! bucket of S3. Nothing else of the agent knows which. Calls are plain: they return when it is done, and within a bound.

mod folder;
mod location;
mod s3;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::hint::Hinted;

use self::folder::Folder;
pub use self::location::{Location, LocationError};
pub use self::s3::Access;
use self::s3::S3;

/// Of an object that is read whole: an envelope has 192 KiB at most, a root a few.
pub const OBJECT_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Clone)]
pub struct AccountStore {
    place: Arc<Place>,
}

#[derive(Debug)]
enum Place {
    Folder(Folder),
    S3(S3),
}

/// Differs for everything that was ever put at a key: an ETag, or what tells one file from the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub bytes: Vec<u8>,
    pub version: Version,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    Absent,
    /// It is still the version that the caller has.
    Same,
    Object(Object),
}

/// One object below a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub version: Version,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("it is there already")]
    Exists,
    #[error("somebody else has changed it meanwhile")]
    Moved,
    #[error("it has more than {bytes_max} bytes")]
    TooLarge { bytes_max: u64 },
    #[error("there are more than {entries_max} objects")]
    TooMany { entries_max: usize },
    #[error("cannot {action} it")]
    Disk { action: &'static str, source: io::Error },
    #[error(
        "S3 does not let this role {action} {object} ({code}): its policy must allow {allowed} there, as the one that \
         `outstation-agent iam-policy --profile store` prints does"
    )]
    Denied { action: &'static str, object: String, code: String, allowed: &'static str },
    #[error(
        "there is no bucket {bucket}: create it in the account, or correct store in the configuration"
    )]
    NoBucket { bucket: String },
    #[error(
        "bucket {bucket} is in another region than {region}: correct store or region in the configuration"
    )]
    OtherRegion { bucket: String, region: String },
    #[error("S3 cannot be reached to {action} {object}: {why}")]
    Unreachable { action: &'static str, object: String, why: String },
    #[error("S3 refuses to {action} {object}: {code}")]
    Refused { action: &'static str, object: String, code: String },
    #[error("the client for S3 cannot be made: {why}")]
    Client { why: String },
}

impl StoreError {
    /// Nothing is wrong with what is asked for, and asking again may help.
    pub fn is_passing(&self) -> bool {
        match self {
            StoreError::Unreachable { .. } => true,
            StoreError::Exists
            | StoreError::Moved
            | StoreError::TooLarge { .. }
            | StoreError::TooMany { .. }
            | StoreError::Disk { .. }
            | StoreError::Denied { .. }
            | StoreError::NoBucket { .. }
            | StoreError::OtherRegion { .. }
            | StoreError::Refused { .. }
            | StoreError::Client { .. } => false,
        }
    }
}

impl From<StoreError> for io::Error {
    /// Invalid data is what is damaged, and only that.
    fn from(error: StoreError) -> io::Error {
        match error {
            StoreError::Disk { source, .. } => source,
            StoreError::Exists | StoreError::Moved => {
                io::Error::new(io::ErrorKind::AlreadyExists, error)
            }
            StoreError::TooLarge { .. } => io::Error::new(io::ErrorKind::InvalidData, error),
            StoreError::Denied { .. } => io::Error::new(io::ErrorKind::PermissionDenied, error),
            StoreError::Unreachable { .. } => io::Error::new(io::ErrorKind::TimedOut, error),
            StoreError::TooMany { .. }
            | StoreError::NoBucket { .. }
            | StoreError::OtherRegion { .. }
            | StoreError::Refused { .. }
            | StoreError::Client { .. } => io::Error::other(error),
        }
    }
}

impl AccountStore {
    /// Asks nobody yet.
    pub fn open(location: &Location, access: Access) -> Result<AccountStore, StoreError> {
        let place = match location {
            Location::Folder(root) => return Ok(AccountStore::folder(root)),
            Location::S3 { bucket, prefix } => Place::S3(S3::open(bucket, prefix, access)?),
        };
        Ok(AccountStore { place: Arc::new(place) })
    }

    pub fn folder(root: &Path) -> AccountStore {
        AccountStore { place: Arc::new(Place::Folder(Folder::new(root))) }
    }

    /// Where a key is, for people.
    pub fn name(&self, key: &str) -> String {
        match &*self.place {
            Place::Folder(folder) => folder.path(key).display().to_string(),
            Place::S3(s3) => s3.name(key),
        }
    }

    /// That there is a store, for commands that would otherwise make an empty one.
    pub fn check(&self) -> Result<(), StoreError> {
        match &*self.place {
            Place::Folder(folder) => folder.check(),
            Place::S3(s3) => s3.check(),
        }
    }

    /// Where the objects of `prefix` will be, with nothing left of writers that were killed. Nobody else may be tidying there.
    pub fn prepare(&self, prefix: &str) -> Result<(), StoreError> {
        match &*self.place {
            Place::Folder(folder) => folder.prepare(prefix),
            Place::S3(_) => Ok(()),
        }
    }

    /// Whether something could be written there now, as far as that can be told without writing.
    pub fn check_writable(&self, prefix: &str) -> Result<(), StoreError> {
        match &*self.place {
            Place::Folder(folder) => folder.check_writable(prefix),
            Place::S3(_) => Ok(()),
        }
    }

    /// None if nothing is there.
    pub fn get(&self, key: &str, bytes_max: u64) -> Result<Option<Object>, StoreError> {
        match self.get_unless(key, bytes_max, None)? {
            Read::Object(object) => Ok(Some(object)),
            Read::Absent | Read::Same => Ok(None),
        }
    }

    /// Costs next to nothing when it is still the version that is known.
    pub fn get_unless(
        &self,
        key: &str,
        bytes_max: u64,
        known: Option<&Version>,
    ) -> Result<Read, StoreError> {
        match &*self.place {
            Place::Folder(folder) => folder.get(key, bytes_max, known),
            Place::S3(s3) => s3.get(key, bytes_max, known),
        }
    }

    /// How many bytes it has.
    pub fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        match &*self.place {
            Place::Folder(folder) => folder.size(key),
            Place::S3(s3) => s3.size(key),
        }
    }

    /// At most `len` bytes from `offset` on, fewer at the end of the object. Objects that are replaced meanwhile mix: for
    /// what is created once.
    pub fn read_at(&self, key: &str, offset: u64, len: u64) -> Result<Option<Vec<u8>>, StoreError> {
        if len == 0 {
            return Ok(self.size(key)?.map(|_| Vec::new()));
        }
        match &*self.place {
            Place::Folder(folder) => folder.read_at(key, offset, len),
            Place::S3(s3) => s3.read_at(key, offset, len),
        }
    }

    /// What is directly below `prefix`, in order of names. None if a folder is not there, which S3 cannot tell from an empty one.
    pub fn list(&self, prefix: &str) -> Result<Option<Vec<Entry>>, StoreError> {
        match &*self.place {
            Place::Folder(folder) => folder.list(prefix),
            Place::S3(s3) => s3.list(prefix, None).map(Some),
        }
    }

    /// The names alone, those behind `after`.
    pub fn names(&self, prefix: &str, after: Option<&str>) -> Result<Vec<String>, StoreError> {
        match &*self.place {
            Place::Folder(folder) => folder.names(prefix, after),
            Place::S3(s3) => {
                Ok(s3.list(prefix, after)?.into_iter().map(|entry| entry.name).collect())
            }
        }
    }

    /// Of the prefixes directly below `prefix`, in order.
    pub fn prefixes(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        match &*self.place {
            Place::Folder(folder) => folder.names(prefix, None),
            Place::S3(s3) => s3.prefixes(prefix),
        }
    }

    /// Puts it there if nothing is: [`StoreError::Exists`] otherwise. Of two that race exactly one wins.
    pub fn create(&self, key: &str, bytes: &[u8]) -> Result<Version, StoreError> {
        match &*self.place {
            Place::Folder(folder) => folder.create(key, bytes),
            Place::S3(s3) => s3.create(key, bytes),
        }
    }

    /// Puts it in the place of `expected`, or of nothing: [`StoreError::Moved`] if something else is there. Durable when it
    /// returns.
    pub fn swap(
        &self,
        key: &str,
        bytes: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, StoreError> {
        match &*self.place {
            Place::Folder(folder) => folder.swap(key, bytes, expected),
            Place::S3(s3) => s3.swap(key, bytes, expected),
        }
    }

    /// Runs what may wait for this store, or for somebody else who does, without keeping other tasks of the runtime waiting.
    pub fn waiting<T>(&self, wait: impl FnOnce() -> T) -> T {
        match &*self.place {
            Place::Folder(_) => wait(),
            Place::S3(_) => s3::waiting(wait),
        }
    }

    /// Between two looks of somebody who waits for a change: S3 is paid by the request.
    pub fn pause(&self) -> Duration {
        match &*self.place {
            Place::Folder(_) => Duration::from_secs(1),
            Place::S3(_) => Duration::from_secs(5),
        }
    }
}

/// For commands: an account store that is not there is named, with what to do.
pub fn there(store: &AccountStore, hint: &str) -> anyhow::Result<()> {
    store.check().map_err(|error| match error {
        StoreError::Disk { .. } => {
            Hinted::error(format!("there is no account store at {}", store.name("")), hint)
        }
        error => error.into(),
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
