//! Environments for tests: few files, and a script in the interpreter's place.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use outstation_protocol::Digest;
use outstation_protocol::environment::{FORMAT, File, Manifest, WORKER_PROTOCOLS};

use super::environments::Environments;
use crate::store::AccountStore;

pub fn manifest(files: &[(&str, &[u8])]) -> Manifest {
    let file = |(path, contents): &(&str, &[u8])| File {
        path: (*path).to_owned(),
        executable: path.starts_with("bin/"),
        bytes: contents.len() as u64,
        digest: Digest::of(contents),
    };
    Manifest {
        format: FORMAT,
        python: "3.11".into(),
        machine: std::env::consts::ARCH.into(),
        outstation: "0.1.0".into(),
        worker_protocol: *WORKER_PROTOCOLS.end(),
        lock: "# python 3.11\n".into(),
        files: files.iter().map(file).collect(),
    }
}

/// Puts it into the account store; the order's digest is that of the manifest.
pub fn put(account_store: &Path, manifest: &Manifest, pack: &[u8]) -> Digest {
    let folder = account_store.join("artifacts/environments");
    fs::create_dir_all(&folder).expect("creates");
    let bytes = manifest.to_bytes();
    let digest = Digest::of(&bytes);
    fs::write(folder.join(format!("{}.pack", digest.hex())), pack).expect("writes");
    fs::write(folder.join(format!("{}.json", digest.hex())), bytes).expect("writes");
    digest
}

/// An honest one.
pub fn put_files(account_store: &Path, files: &[(&str, &[u8])]) -> Digest {
    let pack: Vec<u8> = files.iter().flat_map(|(_, contents)| contents.to_vec()).collect();
    put(account_store, &manifest(files), &pack)
}

/// Answers as a Python 3.11 does when it is asked what it is.
pub fn interpreter(folder: &Path) -> PathBuf {
    let path = folder.join("python");
    fs::write(&path, "#!/bin/sh\necho 3.11\necho /bin/sh\n").expect("writes");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("sets");
    path
}

/// Those of a machine whose account store and folder are in `folder`.
pub fn environments(folder: &Path) -> Environments {
    let interpreters = vec![interpreter(folder)];
    Environments::new(
        AccountStore::folder(&folder.join("store")),
        &folder.join("environments"),
        interpreters,
    )
}
