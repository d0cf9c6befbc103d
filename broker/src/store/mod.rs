//! The durable state: orders, the agents' answers, agents and join tokens, in one SQLite file.
//!
//! One thread owns the connection; everybody else sends it jobs. What a job decides is decided
//! by pure functions (`orders::judge`, `tokens::judge`), inside the job's transaction.

pub mod admitted;
pub mod agents;
pub mod answers;
pub mod events;
pub mod news;
pub mod orders;
pub mod planes;
pub mod revoked;
pub mod schema;
pub mod tokens;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use outstation_protocol::ids::IdError;
use outstation_protocol::{AccountId, DataPlane, Digest, Generation, GroupName, Region};
use rusqlite::Connection;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// A job takes about a millisecond (its fsync), so a full queue is a wait of some 64 ms.
const JOBS_QUEUED_MAX: usize = 64;

/// A listener that falls further behind is told so, and reads everything again.
const CHANGES_KEPT_MAX: usize = 256;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle to the store; clones share one connection, which closes with the last of them.
#[derive(Clone)]
pub struct Store {
    jobs: Jobs,
    changes: broadcast::Sender<Change>,
    /// Wakes whoever reads the event log: something was written.
    written: watch::Sender<()>,
}

/// Where jobs run.
#[derive(Clone)]
enum Jobs {
    /// On the store's own thread: an fsync must not hold up the sessions.
    Thread(mpsc::Sender<Job>),
    /// At once, on whoever asks: no thread takes part in a simulation.
    Inline(Arc<Mutex<Connection>>),
}

/// Something changed: read it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub data_plane: DataPlane,
    pub what: Changed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    Order(GroupName),
    Answer(GroupName),
    /// An agent's session has ended. Where two agents serve one data plane, the store may hold the
    /// other's answers.
    AgentLeft,
    /// Who may have a session is another question now: a data plane was added or removed, or an agent
    /// revoked.
    Access,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database {path} is damaged ({verdict})")]
    Damaged { path: PathBuf, verdict: String },
    #[error(
        "the database {path} has schema {found}, this release knows {}",
        schema::SCHEMA_VERSION
    )]
    NewerSchema { path: PathBuf, found: i64 },
    #[error("the database {path} is in use by another process")]
    InUse { path: PathBuf },
    #[error("cannot open the database {path}")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error("the database refused a statement")]
    Sqlite {
        #[from]
        source: rusqlite::Error,
    },
    #[error("the database holds {what} that this release cannot read: {why}")]
    Content { what: &'static str, why: String },
    #[error("cannot start the store's thread")]
    Thread { source: std::io::Error },
    #[error("the store has stopped")]
    Stopped,
}

impl StoreError {
    /// A full or failing disk; every other failure is still there at the next try.
    pub fn may_pass(&self) -> bool {
        match self {
            StoreError::Sqlite { .. } => true,
            StoreError::Damaged { .. }
            | StoreError::NewerSchema { .. }
            | StoreError::InUse { .. }
            | StoreError::Open { .. }
            | StoreError::Content { .. }
            | StoreError::Thread { .. }
            | StoreError::Stopped => false,
        }
    }

    pub fn is_disk_full(&self) -> bool {
        match self {
            StoreError::Sqlite { source } => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            StoreError::Damaged { .. }
            | StoreError::NewerSchema { .. }
            | StoreError::InUse { .. }
            | StoreError::Open { .. }
            | StoreError::Content { .. }
            | StoreError::Thread { .. }
            | StoreError::Stopped => false,
        }
    }

    pub fn hint(&self) -> String {
        match self {
            StoreError::Damaged { path, .. } => format!(
                "put a backup in place of {} and its -wal file; the accounts go on meanwhile with \
                 what they accepted, and would refuse the low generations of an empty broker",
                path.display()
            ),
            StoreError::NewerSchema { .. } => {
                "run the release that wrote it, or a newer one; a database is never downgraded"
                    .into()
            }
            StoreError::InUse { .. } => {
                "stop the other broker that uses the same `state` directory".into()
            }
            StoreError::Open { .. } | StoreError::Sqlite { .. } => {
                "check the disk's free space, the directory's owner, and that no folder has its name"
                    .into()
            }
            StoreError::Content { .. } => "report this, with the release that wrote it".into(),
            StoreError::Thread { .. } => {
                "raise the limit of processes for the broker's user".into()
            }
            StoreError::Stopped => "see the log above for why it stopped".into(),
        }
    }
}

impl Store {
    /// Opens or makes the database. Nobody is connected to a broker that just started.
    pub fn open(path: &Path, now_unix_secs: u64) -> Result<Store, StoreError> {
        let mut connection = Store::prepare(path, now_unix_secs)?;
        let (jobs, mut queue) = mpsc::channel::<Job>(JOBS_QUEUED_MAX);
        thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                while let Some(job) = queue.blocking_recv() {
                    job(&mut connection);
                }
            })
            .map_err(|source| StoreError::Thread { source })?;
        Ok(Store::over(Jobs::Thread(jobs)))
    }

    /// The same without a thread: every call is done when it is first polled.
    pub fn open_inline(path: &Path, now_unix_secs: u64) -> Result<Store, StoreError> {
        let connection = Store::prepare(path, now_unix_secs)?;
        Ok(Store::over(Jobs::Inline(Arc::new(Mutex::new(connection)))))
    }

    fn prepare(path: &Path, now_unix_secs: u64) -> Result<Connection, StoreError> {
        let connection = schema::open(path)?;
        agents::disconnect_all(&connection, now_unix_secs)?;
        Ok(connection)
    }

    fn over(jobs: Jobs) -> Store {
        let (changes, _) = broadcast::channel(CHANGES_KEPT_MAX);
        Store { jobs, changes, written: watch::Sender::new(()) }
    }

    /// Every change from now on. Subscribe first, read then: nothing is missed in between.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Changes whenever something was written. Look first, read then: nothing is missed in between.
    pub fn written(&self) -> watch::Receiver<()> {
        self.written.subscribe()
    }

    fn announce(&self, data_plane: DataPlane, what: Changed) {
        // An error says that nobody listens.
        let _ = self.changes.send(Change { data_plane, what });
    }

    /// A caller that goes away does not stop its job.
    async fn run<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let written = self.written.clone();
        let job = move |connection: &mut Connection| {
            let before = connection.total_changes();
            let done = job(connection);
            if connection.total_changes() != before {
                written.send_replace(());
            }
            done
        };
        match &self.jobs {
            Jobs::Inline(connection) => {
                job(&mut connection.lock().unwrap_or_else(PoisonError::into_inner))
            }
            Jobs::Thread(jobs) => {
                let (answer, answered) = oneshot::channel();
                let job: Job = Box::new(move |connection| {
                    let _ = answer.send(job(connection));
                });
                jobs.send(job).await.map_err(|_| StoreError::Stopped)?;
                answered.await.map_err(|_| StoreError::Stopped)?
            }
        }
    }
}

/// What was checked on its way in is checked again on its way out: a file is an outside thing.
fn read_id<T>(what: &'static str, raw: Result<T, IdError>) -> Result<T, StoreError> {
    raw.map_err(|error| StoreError::Content { what, why: error.to_string() })
}

fn read_data_plane(account: String, region: String) -> Result<DataPlane, StoreError> {
    Ok(DataPlane {
        account: read_id("an account", AccountId::try_from(account))?,
        region: read_id("a region", Region::try_from(region))?,
    })
}

fn read_digest(bytes: &[u8]) -> Result<Digest, StoreError> {
    <[u8; 32]>::try_from(bytes).map(Digest::from_bytes).map_err(|_| StoreError::Content {
        what: "a digest",
        why: format!("{} bytes instead of 32", bytes.len()),
    })
}

/// SQLite's integers are signed. Generations rise by one and seconds count from 1970: neither
/// reaches 2^63.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn read_generation(value: i64) -> Generation {
    Generation(unsigned(value))
}
