//! What an order names by digest, made from the local repo: the bundle and the environments.

pub mod bundle;
pub mod environment;
pub mod lock;
pub mod sbom;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use outstation_protocol::ids::EnvironmentName;

use crate::declarations;
use crate::manifest::Manifest;
use crate::plan::{Declared, DeclaredEnvironment};
use crate::progress;
use bundle::Bundle;
use environment::Environment;
use lock::{Lock, Requirements, Runtime};

/// A repo of declarations, evaluated, with what its groups need built; nothing written to the
/// store yet.
pub struct Repo {
    pub manifest: Manifest,
    pub runtime: Runtime,
    pub locks: BTreeMap<EnvironmentName, Lock>,
    /// Those that a group uses.
    pub environments: BTreeMap<EnvironmentName, Environment>,
    pub bundle: Bundle,
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
        let used: BTreeSet<EnvironmentName> =
            manifest.groups.iter().map(|group| group.environment_name()).collect();
        let declared = manifest.environments.iter().map(|declared| declared.name.clone());
        let (mut locks, mut environments) = (BTreeMap::new(), BTreeMap::new());
        for name in declared.chain(used.iter().cloned()).collect::<BTreeSet<_>>() {
            let requirements = Requirements::read(dir, manifest.requirements(&name))?;
            let spinner = progress::spinner(format!("locking environment {name}"));
            let lock = lock::lock(&requirements, &runtime, &python, &cache_dir()).await?;
            drop(spinner);
            if used.contains(&name) {
                let count = lock.pins.len();
                let _spinner =
                    progress::spinner(format!("building environment {name}: {count} packages"));
                let built = environment::build(&lock, &runtime, &python, &cache_dir()).await;
                environments.insert(
                    name.clone(),
                    built.with_context(|| format!("build environment {name}"))?,
                );
            }
            locks.insert(name, lock);
        }
        let bundle = bundle::pack(dir)?;
        Ok(Repo { manifest, runtime, locks, environments, bundle })
    }

    pub fn declared(&self) -> anyhow::Result<Declared> {
        let mut declared = Declared::default();
        for group in &self.manifest.groups {
            let environment = group.environment_name();
            let digest = self.environments[&environment].digest;
            let packages = self.locks[&environment].pins.len();
            declared.environments.insert(
                environment,
                DeclaredEnvironment {
                    digest,
                    python: self.runtime.python.clone(),
                    outstation: self.runtime.outstation.clone(),
                    packages,
                },
            );
            declared.groups.insert(group.name.clone(), group.spec(digest, self.bundle.digest)?);
        }
        Ok(declared)
    }

    /// Writes the bundle and every environment that a group uses to the store.
    pub async fn write(&self, store: &Path) -> anyhow::Result<()> {
        self.bundle.write(store)?;
        for (name, environment) in &self.environments {
            let _spinner = progress::spinner(format!("writing environment {name}"));
            let (environment, store) = (environment.clone(), store.to_owned());
            tokio::task::spawn_blocking(move || environment.write(&store))
                .await
                .context("write the environment")??;
        }
        Ok(())
    }
}

/// The environment of one file of requirements, without declarations.
pub async fn build_file(python: &Path, requirements: &Path) -> anyhow::Result<Environment> {
    let runtime = lock::probe(python).await?;
    let file = requirements.to_str().context("the file's name is not UTF-8")?;
    let requirements = Requirements::read(Path::new(""), Some(file))?;
    let spinner = progress::spinner(format!("locking {file}"));
    let lock = lock::lock(&requirements, &runtime, python, &cache_dir()).await?;
    drop(spinner);
    let _spinner = progress::spinner(format!("building {file}: {} packages", lock.pins.len()));
    environment::build(&lock, &runtime, python, &cache_dir()).await
}

/// What can be made again at the cost of time and network.
fn cache_dir() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
    std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| home.join(".cache"), PathBuf::from)
        .join("outstation")
}
