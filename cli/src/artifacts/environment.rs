//! Builds an environment into the account store: a virtual environment with exactly what its
//! lock names, complete only when its marker exists.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::Command;

use super::lock::{Lock, Runtime, find_uv, package_files};
use crate::clean_env;
use crate::message::{Failure, Hint as _};

/// A large machine-learning stack over a slow line.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(30 * 60);

pub fn path(store: &Path, lock: &Lock) -> PathBuf {
    store.join("artifacts/environments").join(lock.digest.hex())
}

pub fn is_complete(store: &Path, lock: &Lock) -> bool {
    path(store, lock).join(".complete").is_file()
}

/// Makes the environment unless it is there. Says whether it built.
pub async fn build(
    store: &Path,
    lock: &Lock,
    runtime: &Runtime,
    python: &Path,
) -> anyhow::Result<bool> {
    if is_complete(store, lock) {
        return Ok(false);
    }
    let target = path(store, lock);
    let parent = store.join("artifacts/environments");
    fs::create_dir_all(&parent).with_context(|| format!("create {}", parent.display()))?;
    // Two appliers at once: one builds, the other waits and then finds it complete.
    let guard = parent.join(format!(".{}.lock", lock.digest.hex()));
    let guard = fs::File::create(&guard).with_context(|| format!("create {}", guard.display()))?;
    let guard = tokio::task::spawn_blocking(move || guard.lock().map(|()| guard))
        .await
        .context("wait for another build")?
        .context("lock the environment")?;
    if is_complete(store, lock) {
        return Ok(false);
    }
    if target.exists() {
        fs::remove_dir_all(&target)
            .with_context(|| format!("remove the unfinished {}", target.display()))?;
    }

    let uv = find_uv(python)?;
    run(&uv, &["venv", "--quiet", "--no-project", "--no-config", "--python"], &[python, &target])
        .await
        .context("make the virtual environment")?;
    fs::write(target.join("lock.txt"), &lock.text).context("write the environment's lock")?;
    if !lock.pins.is_empty() {
        let interpreter = target.join("bin/python");
        // The lock names everything there is, so nothing else may come along.
        run(
            &uv,
            &[
                "pip",
                "install",
                "--quiet",
                "--no-config",
                "--no-deps",
                "--no-build",
                "--compile-bytecode",
                "--python",
            ],
            &[&interpreter, Path::new("--requirements"), &target.join("lock.txt")],
        )
        .await
        .context("install the locked requirements")
        .hint("check the connection to the package index, and that each pin has a wheel")?;
    }
    install_package(&target, runtime)?;
    let mut marker = fs::File::create(target.join(".complete")).context("mark as complete")?;
    marker.write_all(b"").and_then(|()| marker.sync_all()).context("mark as complete")?;
    drop(guard);
    Ok(true)
}

/// Copies the interpreter's own `outstation`, so that declarations and workers are of one release.
fn install_package(target: &Path, runtime: &Runtime) -> anyhow::Result<()> {
    let site = target.join(format!("lib/python{}/site-packages", runtime.python));
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
        let mode = fs::metadata(&copy)?.permissions().mode() | 0o444;
        fs::set_permissions(&copy, fs::Permissions::from_mode(mode))?;
    }
    let info = site.join(format!("outstation-{}.dist-info", runtime.outstation));
    fs::create_dir_all(&info).with_context(|| format!("create {}", info.display()))?;
    let metadata =
        format!("Metadata-Version: 2.1\nName: outstation\nVersion: {}\n", runtime.outstation);
    fs::write(info.join("METADATA"), metadata).context("describe the package")?;
    fs::write(info.join("INSTALLER"), "outstation\n").context("describe the package")?;
    Ok(())
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
