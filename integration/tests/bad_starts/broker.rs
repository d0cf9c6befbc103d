//! The broker.

use std::process::Command;

use anyhow::{Result, ensure};
use outstation_integration::bad::run_until_told;
use outstation_integration::python;

use crate::Wrong::{Config, Do, File, Full, Kind, Missing, Nobody, ReadOnly};
use crate::{Place, Table, judge};

const LINK: &str = "listen = \"127.0.0.1:0\" # link";
const ADMIN: &str = "listen = \"127.0.0.1:0\" # admin";
const CONFIG: &str = r#"state = "state"
tenant = "dev"

[link]
listen = "127.0.0.1:0" # link

[admin]
listen = "127.0.0.1:0" # admin
token_file = "admin.token"

[[data_planes]]
account = "123456789012"
region = "eu-central-1"
"#;

#[rustfmt::skip]
const TABLE: Table = &[
    ("no configuration", Missing("broker.toml"), "exit 1",
        "cannot read the configuration *broker.toml: No such file", "--config"),
    ("a folder for the configuration", Kind("broker.toml"), "exit 1",
        "cannot read the configuration *Is a directory", "--config"),
    ("a configuration that is none", File("broker.toml", b"\x00\xff\x00garbage"), "exit 1",
        "cannot read the configuration *broker.toml: *UTF-8", "a text file in TOML"),
    ("an entry too many", Config("tenant =", "colour = \"red\"\ntenant ="), "exit 1",
        "line 2 (colour = \"red\"): unknown field `colour`", "unknown keys are errors"),
    ("a tenant in capitals", Config("\"dev\"", "\"DEV\""), "exit 1",
        "tenant \"DEV\" is not valid: 1-63 lower-case", "correct the line"),
    ("an API for everybody", Config(ADMIN, "listen = \"0.0.0.0:0\""), "exit 1",
        "would listen on 0.0.0.0:0, which others can reach", "loopback"),
    ("a port above all ports", Config(LINK, "listen = \"127.0.0.1:70000\""), "exit 1",
        "line 5 (listen = \"127.0.0.1:70000\"): invalid socket address", "correct the line"),
    ("an STS that is not one of a test", Config("[link]", "[sts]\nendpoint = \"https://sts.example.com\"\n[link]"), "exit 1",
        "[sts] endpoint cannot be used: \"https://sts.example.com\" is not an STS endpoint", "http://host:port"),
    ("one data plane twice", Config("[[data_planes]]",
        "[[data_planes]]\naccount = \"123456789012\"\nregion = \"eu-central-1\"\n[[data_planes]]"), "exit 1",
        "data plane 123456789012/eu-central-1 is named twice", "remove one"),
    ("the link's port in use", Do(link_taken), "exit 1",
        "cannot listen on 127.0.0.1:* (UDP): Address already in use", "stop the process"),
    ("the API's port in use", Do(admin_taken), "exit 1",
        "cannot listen on 127.0.0.1:* (TCP): Address already in use", "stop the process"),
    ("an address of another machine", Config(LINK, "listen = \"192.0.2.1:4433\""), "exit 1",
        "cannot listen on 192.0.2.1:4433 (UDP)*Cannot assign", "an address of this machine"),
    ("a database that is none", File("state/broker.db", b"this is not a database, whatever its name says"), "exit 1",
        "the database *broker.db is damaged (file is not a database)", "put a backup in place"),
    ("half a database", Do(half_a_database), "exit 1",
        "the database *broker.db is damaged", "put a backup in place"),
    ("a database with a hole", Do(database_with_a_hole), "exit 1",
        "the database *broker.db is damaged", "put a backup in place"),
    ("a database of the future", Do(database_of_the_future), "exit 1",
        "has schema 99, this release knows", "never downgraded"),
    ("a folder for the database", Kind("state/broker.db"), "exit 1",
        "cannot open the database *broker.db", "no folder has its name"),
    ("the root's key lost", Missing("state/root.key"), "exit 1",
        "root.pem is there, its key *root.key is not", "restore both files"),
    ("the root's key damaged", File("state/root.key", b"-----BEGIN PRIVATE KEY-----\ngarbage\n"), "exit 1",
        "do not belong together, or are damaged", "restore both files"),
    ("the root damaged", File("state/root.pem", b"-----BEGIN CERTIFICATE-----\ngarbage\n"), "exit 1",
        "root.pem cannot be read as a PEM file", "restore both files"),
    ("an empty root", File("state/root.pem", b""), "exit 1",
        "root.pem cannot be read as a PEM file", "restore both files"),
    ("the key of another root", Do(key_of_another_root), "exit 1",
        "do not belong together, or are damaged", "restore both files"),
    ("a short token", File("admin.token", b"secret\n"), "exit 1",
        "admin.token is shorter than 32 characters", "remove *; the next start makes a good one"),
    ("a token that everybody may read", Do(open_token), "exit 1",
        "others may read the admin token", "chmod 600"),
    ("a folder for the token", Kind("admin.token"), "exit 1",
        "cannot read or write the admin token *Is a directory", "token_file"),
    ("a file for the state", Kind("state"), "exit 1",
        "cannot use the state directory state", "check `state`"),
    ("a disk that cannot be written", ReadOnly("state"), "exit 1",
        "state*Read-only file system", "mount it writable"),
    ("a full disk", Full("state"), "exit 1",
        "cannot open the database *: database or disk is full", "free space"),
    ("somebody else's state", Nobody, "exit 1",
        "cannot use the state directory state: *not permitted", "owner"),
    ("a second one in the same place", Do(second), "exit 1",
        "broker.db is in use by another process", "stop the other broker"),
];

fn good() -> Result<Place> {
    let place = Place::new("outstation-broker", &[])?.with_config("broker.toml", CONFIG)?;
    run_until_told(&mut place.command(), "listening")?;
    // All into the one file, as after a quiet day: what is in the log beside it would mend it.
    let script =
        "import sqlite3\nsqlite3.connect('broker.db').execute('PRAGMA wal_checkpoint(TRUNCATE)')";
    let status =
        Command::new(python()).args(["-c", script]).current_dir(place.path("state")).status()?;
    ensure!(status.success(), "{status}");
    ensure!(std::fs::metadata(place.path("state/broker.db"))?.len() > 8192, "it has pages");
    Ok(place)
}

#[test]
fn a_broker_that_cannot_work_says_why() -> Result<()> {
    judge(&good()?, &[TABLE])?.finish()
}

fn link_taken(place: &Place, _: &mut Command) -> Result<()> {
    place.taken("UDP", LINK, |taken| format!("listen = \"{taken}\""))
}

fn admin_taken(place: &Place, _: &mut Command) -> Result<()> {
    place.taken("TCP", ADMIN, |taken| format!("listen = \"{taken}\""))
}

fn change_database(place: &Place, change: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
    let path = place.path("state/broker.db");
    let mut bytes = std::fs::read(&path)?;
    change(&mut bytes);
    // What the log holds would be put over it.
    for rest in ["state/broker.db-wal", "state/broker.db-shm"] {
        let _ = std::fs::remove_file(place.path(rest));
    }
    Ok(std::fs::write(&path, bytes)?)
}

fn half_a_database(place: &Place, _: &mut Command) -> Result<()> {
    change_database(place, |bytes| bytes.truncate(bytes.len() / 2))
}

/// Its header says that it is whole.
fn database_with_a_hole(place: &Place, _: &mut Command) -> Result<()> {
    change_database(place, |bytes| bytes[4096..].fill(0xa5))
}

/// <https://sqlite.org/fileformat.html>: the user version is at 60, big-endian.
fn database_of_the_future(place: &Place, _: &mut Command) -> Result<()> {
    change_database(place, |bytes| bytes[60..64].copy_from_slice(&99u32.to_be_bytes()))
}

fn key_of_another_root(place: &Place, _: &mut Command) -> Result<()> {
    let other = good()?;
    std::fs::copy(other.path("state/root.key"), place.path("state/root.key"))?;
    Ok(())
}

fn open_token(place: &Place, _: &mut Command) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let everybody = std::fs::Permissions::from_mode(0o644);
    Ok(std::fs::set_permissions(place.path("admin.token"), everybody)?)
}

fn second(place: &Place, _: &mut Command) -> Result<()> {
    place.start_beside(&mut place.command(), "listening")
}
