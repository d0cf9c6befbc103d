//! What an order names by digest, made from the local repo: the bundle and the environments.

pub mod bundle;
pub mod environment;
pub mod lock;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use outstation_protocol::ids::EnvironmentName;

use crate::declarations;
use crate::manifest::Manifest;
use crate::plan::{Declared, DeclaredEnvironment};
use crate::progress;
use bundle::Bundle;
use lock::{Lock, Requirements, Runtime};

/// A repo of declarations, evaluated and locked; nothing written to the store yet.
pub struct Repo {
    pub manifest: Manifest,
    pub runtime: Runtime,
    pub locks: BTreeMap<EnvironmentName, Lock>,
    pub bundle: Bundle,
    python: PathBuf,
}

impl Repo {
    pub async fn load(python: &Path, dir: &Path) -> anyhow::Result<Repo> {
        let python = python.to_owned();
        let load = declarations::load(&python, dir);
        let (manifest, runtime) = match tokio::join!(load, lock::probe(&python)) {
            // Of an interpreter that cannot do, the declarations' own failure says less.
            (Err(_), Err(interpreter)) if dir.is_dir() => return Err(interpreter),
            (manifest, runtime) => (manifest?, runtime?),
        };
        let mut locks = BTreeMap::new();
        let mut names: Vec<EnvironmentName> =
            manifest.environments.iter().map(|declared| declared.name.clone()).collect();
        names.extend(manifest.groups.iter().map(|group| group.environment_name()));
        names.sort();
        names.dedup();
        for name in names {
            let requirements = Requirements::read(dir, manifest.requirements(&name))?;
            let _spinner = progress::spinner(format!("locking environment {name}"));
            let lock = lock::lock(&requirements, &runtime, &python, &cache_dir()).await?;
            locks.insert(name, lock);
        }
        let bundle = bundle::pack(dir)?;
        Ok(Repo { manifest, runtime, locks, bundle, python })
    }

    pub fn declared(&self) -> anyhow::Result<Declared> {
        let mut declared = Declared::default();
        for group in &self.manifest.groups {
            let environment = group.environment_name();
            let lock = &self.locks[&environment];
            declared.environments.insert(
                environment,
                DeclaredEnvironment {
                    digest: lock.digest,
                    python: self.runtime.python.clone(),
                    outstation: self.runtime.outstation.clone(),
                    packages: lock.pins.len(),
                },
            );
            declared
                .groups
                .insert(group.name.clone(), group.spec(lock.digest, self.bundle.digest)?);
        }
        Ok(declared)
    }

    /// Writes the bundle and every environment that a group uses to the store.
    pub async fn write(&self, store: &Path) -> anyhow::Result<()> {
        self.bundle.write(store)?;
        let mut used: Vec<EnvironmentName> =
            self.manifest.groups.iter().map(|group| group.environment_name()).collect();
        used.sort();
        used.dedup();
        for name in used {
            let lock = &self.locks[&name];
            let count = lock.pins.len();
            let _spinner =
                progress::spinner(format!("building environment {name}: {count} packages"));
            environment::build(store, lock, &self.runtime, &self.python).await?;
        }
        Ok(())
    }
}

/// What can be made again at the cost of time and network.
fn cache_dir() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
    std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| home.join(".cache"), PathBuf::from)
        .join("outstation")
}
