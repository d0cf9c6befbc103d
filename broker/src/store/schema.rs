//! Opening the database: who may have it, whether it is whole, and which schema it has.

use std::path::Path;
use std::time::Duration;

use outstation_protocol::GroupName;
use rusqlite::{Connection, ErrorCode, Transaction};

use super::news::Told;
use super::{StoreError, answers, events, read_data_plane, read_id, unsigned};

/// Goes up with every change of the schema; `user_version` holds what a file has.
pub const SCHEMA_VERSION: i64 = 3;

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

const SCHEMA_2: &str = "
    -- Which log this is, and which opening of it: a reader's cursor names both.
    CREATE TABLE event_log (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        log TEXT NOT NULL,
        run TEXT NOT NULL,
        -- When a broker last wrote that it runs.
        alive_at INTEGER NOT NULL
    ) STRICT;
    INSERT INTO event_log (id, log, run, alive_at) VALUES (1, lower(hex(randomblob(8))), '', 0);

    -- What happened, by number within its data plane; the oldest go first.
    CREATE TABLE events (
        account TEXT NOT NULL,
        region TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        run TEXT NOT NULL,
        at INTEGER NOT NULL,
        name TEXT,
        generation INTEGER,
        digest TEXT,
        agent TEXT,
        kind TEXT NOT NULL,
        rule TEXT NOT NULL,
        message TEXT NOT NULL,
        hint TEXT NOT NULL,
        PRIMARY KEY (account, region, sequence)
    ) STRICT, WITHOUT ROWID;

    -- What the events have told of each group: only what differs from it is one.
    CREATE TABLE told (
        account TEXT NOT NULL,
        region TEXT NOT NULL,
        name TEXT NOT NULL,
        told TEXT NOT NULL,
        PRIMARY KEY (account, region, name)
    ) STRICT;
";

const SCHEMA_3: &str = "
    -- The data planes whose agents enroll with an IAM role.
    CREATE TABLE data_planes (
        name TEXT PRIMARY KEY,
        account TEXT NOT NULL,
        region TEXT NOT NULL,
        role TEXT NOT NULL,
        role_id TEXT NOT NULL,
        added_at INTEGER NOT NULL,
        UNIQUE (account, region)
    ) STRICT;

    -- Of an agent that enrolled with a role: its key, by which it is known again, and the session
    -- of its first proof.
    ALTER TABLE agents ADD COLUMN key BLOB;
    ALTER TABLE agents ADD COLUMN session TEXT;
    ALTER TABLE agents ADD COLUMN revoked_at INTEGER;
    -- Of the certificate that it showed last; `certificate_serial` is of the newest issued.
    ALTER TABLE agents ADD COLUMN shown_serial TEXT;
    -- Serials that a newer certificate has taken the place of: whoever shows one has a copy.
    CREATE TABLE retired_serials (
        agent TEXT NOT NULL,
        serial TEXT NOT NULL,
        retired_at INTEGER NOT NULL,
        alarmed_at INTEGER,
        PRIMARY KEY (agent, serial)
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX agents_by_key ON agents (account, region, key) WHERE key IS NOT NULL;
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
    let transaction = connection.transaction()?;
    if found < 1 {
        transaction.execute_batch(SCHEMA_1)?;
    }
    if found < 2 {
        transaction.execute_batch(SCHEMA_2)?;
        told_before_the_log(&transaction)?;
    }
    if found < 3 {
        transaction.execute_batch(SCHEMA_3)?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.execute("UPDATE event_log SET run = lower(hex(randomblob(8)))", [])?;
    transaction.commit()?;
    Ok(connection)
}

/// Answers that were there before there was a log are no news: nobody knows when they were.
fn told_before_the_log(transaction: &Transaction<'_>) -> Result<(), StoreError> {
    let mut statement = transaction
        .prepare("SELECT account, region, name, answers, COALESCE(status_at, 0) FROM answers")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let data_plane = read_data_plane(row.get(0)?, row.get(1)?)?;
        let group = read_id("a group name", GroupName::try_from(row.get::<_, String>(2)?))?;
        let answers = answers::read_answers(&row.get::<_, String>(3)?)?;
        let told = Told::of(&answers, unsigned(row.get(4)?));
        events::keep_told(transaction, &data_plane, &group, &told)?;
    }
    Ok(())
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
