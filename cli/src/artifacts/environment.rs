//! Builds an environment: a virtual environment with exactly what its lock names, as a manifest and
//! a pack. What was built is kept by its lock's digest in the cache; the same lock gives the same bytes.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use outstation_protocol::environment::{self, Manifest};
use outstation_protocol::ids::Digest;
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use super::lock::{Lock, Runtime, find_uv, package_files};
use super::sbom;
use crate::clean_env;
use crate::message::{Failure, Hint as _};

/// A large machine-learning stack over a slow line.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Builds in the cache; a hundred megabytes each.
const BUILDS_KEPT: usize = 8;
const COPY_BYTES: usize = 1024 * 1024;

/// What every virtual environment has and the node makes anew: it is of one place.
const NOT_PACKED: [&str; 6] =
    ["pyvenv.cfg", "lib64", ".gitignore", ".lock", "CACHEDIR.TAG", "lock.txt"];

/// One that is built, in the cache.
#[derive(Debug, Clone)]
pub struct Environment {
    pub digest: Digest,
    pub manifest: Manifest,
    folder: PathBuf,
}

impl Environment {
    fn open(folder: PathBuf) -> anyhow::Result<Environment> {
        let bytes = fs::read(folder.join("manifest.json")).context("read the manifest")?;
        let manifest = Manifest::from_bytes(&bytes).context("read the manifest")?;
        Ok(Environment { digest: Digest::of(&bytes), manifest, folder })
    }

    /// Where its manifest is in an account store, its pack and its bill of materials beside it.
    pub fn path(&self, store: &Path) -> PathBuf {
        store.join("artifacts/environments").join(format!("{}.json", self.digest.hex()))
    }

    /// Writes it to the store unless it is there. Says whether it wrote.
    pub fn write(&self, store: &Path) -> anyhow::Result<bool> {
        let manifest = self.path(store);
        let pack = manifest.with_extension("pack");
        // The manifest is written last: where it is, everything is.
        let whole = fs::metadata(&pack).is_ok_and(|of| of.len() == self.manifest.bytes());
        if whole && manifest.is_file() {
            return Ok(false);
        }
        let parent = manifest.parent().expect("below the store");
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        self.copy_pack(&pack).context("write the environment to the account store")?;
        for (from, to) in [("sbom.cdx.json", "cdx.json"), ("manifest.json", "json")] {
            let bytes = fs::read(self.folder.join(from)).with_context(|| format!("read {from}"))?;
            put(&manifest.with_extension(to), |file| file.write_all(&bytes))?;
        }
        Ok(true)
    }

    /// The cache is only a folder: what goes into the store is what the manifest says, or nothing.
    fn copy_pack(&self, target: &Path) -> anyhow::Result<()> {
        let source = self.folder.join("pack");
        let hint = format!("remove {} and apply again", self.folder.display());
        let mut pack = File::open(&source).context("open the pack")?;
        let mut buffer = vec![0; COPY_BYTES];
        put(target, |copy| {
            for file in &self.manifest.files {
                let (mut left, mut hasher) = (file.bytes, Sha256::new());
                while left > 0 {
                    let some = &mut buffer[..left.min(COPY_BYTES as u64) as usize];
                    pack.read_exact(some)?;
                    hasher.update(&*some);
                    copy.write_all(some)?;
                    left -= some.len() as u64;
                }
                if Digest::from_bytes(hasher.finalize().into()) != file.digest {
                    return Err(io::Error::other(format!("{} has changed", file.path)));
                }
            }
            Ok(())
        })
        .with_context(|| format!("copy {}", source.display()))
        .hint(hint)
    }
}

/// Beside its place first, so that nobody ever sees half of it.
fn put(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> anyhow::Result<()> {
    let parent = path.parent().expect("below the store");
    let mut file = tempfile::NamedTempFile::new_in(parent)
        .with_context(|| format!("write in {}", parent.display()))?;
    write(file.as_file_mut()).with_context(|| format!("write {}", path.display()))?;
    // The nodes may run as other users.
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).context("open it up")?;
    file.as_file().sync_all().with_context(|| format!("write {}", path.display()))?;
    file.persist(path).with_context(|| format!("write {}", path.display()))?;
    Ok(())
}

/// Makes the environment unless the cache has it.
pub async fn build(
    lock: &Lock,
    runtime: &Runtime,
    python: &Path,
    cache: &Path,
) -> anyhow::Result<Environment> {
    runtime.check_protocol()?;
    let parent = cache.join("environments");
    fs::create_dir_all(&parent).with_context(|| format!("create {}", parent.display()))?;
    // Two at once: one builds, the other waits and then finds it made.
    let guard = parent.join(format!(".{}.lock", lock.digest.hex()));
    let guard = File::create(&guard).with_context(|| format!("create {}", guard.display()))?;
    let guard = tokio::task::spawn_blocking(move || guard.lock().map(|()| guard))
        .await
        .context("wait for another build")?
        .context("lock the environment")?;
    let folder = parent.join(lock.digest.hex());
    if let Ok(built) = Environment::open(folder.clone()) {
        // What was used last is kept.
        drop(File::open(&folder).and_then(|folder| folder.set_modified(SystemTime::now())));
        return Ok(built);
    }
    let unfinished = parent.join(format!(".{}.building", lock.digest.hex()));
    for left in [&unfinished, &folder] {
        if left.exists() {
            fs::remove_dir_all(left)
                .with_context(|| format!("remove the unfinished {}", left.display()))?;
        }
    }
    let venv = unfinished.join("venv");
    fs::create_dir_all(&unfinished).with_context(|| format!("create {}", venv.display()))?;
    install(lock, runtime, python, &venv).await?;
    let (lock, runtime) = (lock.clone(), runtime.clone());
    let built = tokio::task::spawn_blocking(move || -> anyhow::Result<Environment> {
        pack(&lock, &runtime, &venv, &unfinished)?;
        fs::remove_dir_all(&venv).context("remove the packed environment")?;
        fs::rename(&unfinished, &folder).context("keep the environment")?;
        Environment::open(folder)
    })
    .await
    .context("pack the environment")??;
    drop(guard);
    prune(&parent);
    Ok(built)
}

async fn install(lock: &Lock, runtime: &Runtime, python: &Path, venv: &Path) -> anyhow::Result<()> {
    let uv = find_uv(python)?;
    let make = ["venv", "--quiet", "--no-project", "--no-config", "--relocatable", "--python"];
    run(&uv, &make, &[python, venv]).await.context("make the virtual environment")?;
    let listing = venv.join("lock.txt");
    fs::write(&listing, &lock.text).context("write the environment's lock")?;
    let interpreter = venv.join("bin/python");
    if !lock.pins.is_empty() {
        // The lock names everything there is, so nothing else may come along.
        let install =
            ["pip", "install", "--quiet", "--no-config", "--no-deps", "--no-build", "--python"];
        run(&uv, &install, &[&interpreter, Path::new("--requirements"), &listing])
            .await
            .context("install the locked requirements")
            .hint("check the connection to the package index, and that each pin has a wheel")?;
    }
    install_package(venv, runtime)?;
    compile(&interpreter, venv).await
}

/// Bytecode that is valid by its presence: every file is checked by its digest anyway, and the
/// times of files differ from machine to machine.
async fn compile(interpreter: &Path, venv: &Path) -> anyhow::Result<()> {
    let output = Command::new(interpreter)
        .args(["-I", "-m", "compileall", "-q", "-q", "-j", "1"])
        .args(["--invalidation-mode", "unchecked-hash", "-s"])
        .arg(venv)
        .arg(venv.join("lib"))
        .env_clear()
        .envs(clean_env::for_packages())
        .env("PYTHONHASHSEED", "0")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    // Its status is not asked: packages carry files of other Pythons, which nobody imports.
    tokio::time::timeout(INSTALL_TIMEOUT, output)
        .await
        .context("compiling the packages took over 30 minutes")?
        .context("compile the packages")?;
    Ok(())
}

/// Copies the interpreter's own `outstation`, so that declarations and workers are of one release.
fn install_package(venv: &Path, runtime: &Runtime) -> anyhow::Result<()> {
    let site = venv.join(format!("lib/python{}/site-packages", runtime.python));
    if !site.is_dir() {
        let what = format!("{} is missing in the new environment", site.display());
        return Err(
            Failure::new(what, "which interpreter does `python` in the context name?").into()
        );
    }
    for (relative, source) in package_files(&runtime.package)? {
        let copy = site.join("outstation").join(relative);
        let parent = copy.parent().expect("below site-packages");
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        fs::copy(&source, &copy).with_context(|| format!("copy {}", source.display()))?;
    }
    let info = site.join(format!("outstation-{}.dist-info", runtime.outstation));
    fs::create_dir_all(&info).with_context(|| format!("create {}", info.display()))?;
    let metadata = format!(
        "Metadata-Version: 2.1\nName: outstation\nVersion: {}\nLicense: Apache-2.0\n",
        runtime.outstation
    );
    fs::write(info.join("METADATA"), metadata).context("describe the package")?;
    fs::write(info.join("INSTALLER"), "outstation\n").context("describe the package")?;
    Ok(())
}

/// `pack`, `sbom.cdx.json` and `manifest.json` in `target`.
fn pack(lock: &Lock, runtime: &Runtime, venv: &Path, target: &Path) -> anyhow::Result<()> {
    let mut paths = Vec::new();
    collect(venv, "", &mut paths)?;
    paths.sort();
    let pack = target.join("pack");
    let mut out = BufWriter::new(File::create(&pack).context("create the pack")?);
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let source = venv.join(&path);
        let appended = append(&source, path, &mut out);
        files.push(appended.with_context(|| format!("pack {}", source.display()))?);
    }
    out.into_inner().map_err(|error| error.into_error()).context("write the pack")?;
    let manifest = Manifest {
        format: environment::FORMAT,
        python: runtime.python.clone(),
        machine: runtime.machine.clone(),
        outstation: runtime.outstation.clone(),
        worker_protocol: runtime.worker_protocol,
        lock: lock.text.clone(),
        files,
    };
    manifest.check().context("this environment cannot be used").hint("take packages out of it")?;
    let bytes = manifest.to_bytes();
    anyhow::ensure!(
        bytes.len() as u64 <= environment::MANIFEST_BYTES_MAX,
        "the environment's list of files is too long"
    );
    let site = venv.join(format!("lib/python{}/site-packages", runtime.python));
    let sbom = sbom::cyclonedx(&sbom::packages(&site)?);
    fs::write(target.join("sbom.cdx.json"), sbom).context("write the bill of materials")?;
    fs::write(target.join("manifest.json"), bytes).context("write the manifest")
}

fn append(source: &Path, path: String, out: &mut impl Write) -> io::Result<environment::File> {
    let mut file = File::open(source)?;
    let executable = file.metadata()?.permissions().mode() & 0o111 != 0;
    let (mut bytes, mut hasher, mut buffer) = (0, Sha256::new(), vec![0; COPY_BYTES]);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            let digest = Digest::from_bytes(hasher.finalize().into());
            return Ok(environment::File { path, executable, bytes, digest });
        }
        bytes += read as u64;
        hasher.update(&buffer[..read]);
        out.write_all(&buffer[..read])?;
    }
}

fn collect(venv: &Path, below: &str, paths: &mut Vec<String>) -> anyhow::Result<()> {
    let dir = venv.join(below);
    for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("list {}", dir.display()))?;
        let Ok(name) = entry.file_name().into_string() else {
            anyhow::bail!("{} is not named in UTF-8", entry.path().display());
        };
        let relative = if below.is_empty() { name } else { format!("{below}/{name}") };
        if is_of_one_place(&relative) {
            continue;
        }
        let kind = entry.file_type().context("look at a file")?;
        if kind.is_dir() {
            collect(venv, &relative, paths)?;
        } else if kind.is_file() {
            paths.push(relative);
        } else {
            anyhow::bail!("{} is a link or a device", entry.path().display());
        }
    }
    Ok(())
}

/// The interpreter and what activates the environment in a shell; uv's own helper.
fn is_of_one_place(path: &str) -> bool {
    NOT_PACKED.contains(&path)
        || ["bin/python", "bin/activate", "bin/deactivate", "bin/pydoc"]
            .iter()
            .any(|prefix| path.starts_with(prefix))
        || path.rsplit('/').next().is_some_and(|name| name.starts_with("_virtualenv."))
}

/// Keeps the builds that were used last. What another build still needs is not in its final place.
fn prune(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let mut builds: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    builds.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
    for (_, old) in builds.into_iter().skip(BUILDS_KEPT) {
        drop(fs::remove_dir_all(old));
    }
}

async fn run(uv: &Path, flags: &[&str], paths: &[&Path]) -> anyhow::Result<()> {
    let output = Command::new(uv)
        .args(flags)
        .args(paths)
        .env_clear()
        .envs(clean_env::for_packages())
        .env("UV_LINK_MODE", "copy")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(INSTALL_TIMEOUT, output)
        .await
        .context("uv took over 30 minutes")
        .hint("check the connection to the package index")?
        .context("start uv")?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(
        format!("uv {}: {}", flags.first().unwrap_or(&""), stderr.trim()),
        "run it by hand to see more",
    )
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_one_place_is_not_packed() {
        for path in ["pyvenv.cfg", "lib64", "bin/python3.11", "bin/activate.fish", "lock.txt"] {
            assert!(is_of_one_place(path), "{path}");
        }
        assert!(is_of_one_place("lib/python3.11/site-packages/_virtualenv.pth"));
        for path in ["bin/tool", "lib/python3.11/site-packages/lib64", "share/data.json"] {
            assert!(!is_of_one_place(path), "{path}");
        }
    }
}
