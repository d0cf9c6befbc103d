//! Opening the database: who may have it, whether it is whole, and which schema it has.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use super::StoreError;

/// Goes up with every change of the schema; `user_version` holds what a file has.
pub const SCHEMA_VERSION: i64 = 1;

/// A predecessor that is shutting down lets go within its own bound of 5 s.
const BUSY_MAX: Duration = Duration::from_secs(6);

const SCHEMA_1: &str = "
    -- Every order that was ever put; the newest generation of a group is its desired state.
    CREATE TABLE orders (
        account TEXT NOT NULL,
        region TEXT NOT NULL,
        name TEXT NOT NULL,
        generation INTEGER NOT NULL,
        digest BLOB NOT NULL,
        envelope BLOB NOT NULL,
        put_at INTEGER NOT NULL,
        PRIMARY KEY (account, region, name, generation)
    ) STRICT;

    -- The newest answers of the account agent about each group, and when each of them came.
    CREATE TABLE answers (
        account TEXT NOT NULL,
        region TEXT NOT NULL,
        name TEXT NOT NULL,
        answers TEXT NOT NULL,
        accepted_at INTEGER,
        refused_at INTEGER,
        converged_at INTEGER,
        status_at INTEGER,
        PRIMARY KEY (account, region, name)
    ) STRICT;

    CREATE TABLE agents (
        id TEXT PRIMARY KEY,
        account TEXT NOT NULL,
        region TEXT NOT NULL,
        enrolled_at INTEGER NOT NULL,
        certificate_serial TEXT,
        certificate_expires_at INTEGER,
        release TEXT NOT NULL DEFAULT '',
        connected INTEGER NOT NULL DEFAULT 0,
        since INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE join_tokens (
        id TEXT PRIMARY KEY,
        secret_hash BLOB NOT NULL,
        account TEXT NOT NULL,
        region TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        bound_key BLOB,
        agent TEXT REFERENCES agents (id),
        CHECK ((bound_key IS NULL) = (agent IS NULL))
    ) STRICT;
";

/// Opens the database, or makes it. The connection is the only one there may be.
pub fn open(path: &Path) -> Result<Connection, StoreError> {
    try_open(path).map_err(|error| match error {
        StoreError::Sqlite { source } => explain(path, source),
        other => other,
    })
}

fn try_open(path: &Path) -> Result<Connection, StoreError> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_MAX)?;
    // Notifications of changes live in this process: a second writer would go unnoticed.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;

    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(StoreError::Damaged { path: path.to_owned(), verdict });
    }
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::NewerSchema { path: path.to_owned(), found });
    }
    if found < 1 {
        let transaction = connection.transaction()?;
        transaction.execute_batch(SCHEMA_1)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        transaction.commit()?;
    }
    Ok(connection)
}

fn explain(path: &Path, source: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            StoreError::Damaged { path, verdict: source.to_string() }
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::InUse { path },
        Some(_) | None => StoreError::Open { path, source },
    }
}
