-- A database as the release with schema 1 wrote it: one group whose second order was refused, and
-- an agent that was connected when that broker was killed. Never changed, only added to.
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
