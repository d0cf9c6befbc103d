//! The repo's own Python environment, `.venv`: made once, made again when what goes in changes.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::run;

/// Relative to the root. Those that do not exist are left out.
const REQUIREMENTS: &[&str] = &[
    "sdk/requirements-dev.txt",
    "examples/flights/requirements-data.txt",
    "aws-sim/tests/requirements.txt",
    "integration/tests/iam/requirements.txt",
];
const OLDEST: (u32, u32) = (3, 9);

/// The interpreter of `.venv`, which has `outstation` (from `sdk/`), uv, and what tests and
/// examples need.
pub fn environment(root: &Path) -> anyhow::Result<PathBuf> {
    let (base, version) = find_python()?;
    let venv = root.join(".venv");
    let python = venv.join("bin/python");
    let stamp = venv.join(".outstation-stamp");
    // Two commands at once: the second waits and finds it made.
    let lock = root.join("target/.venv.lock");
    fs::create_dir_all(root.join("target")).context("create target/")?;
    let lock = fs::File::create(&lock).with_context(|| format!("open {}", lock.display()))?;
    lock.lock().context("wait for another command that makes .venv")?;

    let identity = format!("python {version}\nroot {}\n", root.display());
    let wanted = wanted_stamp(root, &identity);
    let present = fs::read_to_string(&stamp).unwrap_or_default();
    if python.exists() && present == wanted {
        return Ok(python);
    }
    eprintln!("making the Python environment .venv …");
    // Of another interpreter or of a repo that has moved: nothing in it can stay.
    if !python.exists() || !present.starts_with(&identity) {
        if venv.exists() {
            fs::remove_dir_all(&venv).context("remove the outdated .venv")?;
        }
        make_venv(&base, &venv)?;
    }
    let index = "hint: check the connection to the package index";
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"]);
    run(&mut pip).context(index)?;
    let mut install = Command::new(venv.join("bin/uv"));
    install.args(["pip", "install", "--quiet", "--no-config", "--python"]).arg(&python);
    install.args(["--editable", "sdk"]).current_dir(root);
    for file in present_requirements(root) {
        install.arg("--requirement").arg(file);
    }
    run(&mut install).context(index)?;
    fs::write(&stamp, wanted).context("remember what is in .venv")?;
    Ok(python)
}

/// Puts what cargo has built from `sdk/native` where the editable package finds it. Running workers
/// have the file before it mapped, so that is replaced as a whole, never written to.
pub fn place_native_module(root: &Path, bin_dir: &Path) -> anyhow::Result<()> {
    let library = format!("{DLL_PREFIX}outstation_native{DLL_SUFFIX}");
    let built = bin_dir.join(library);
    let target = root.join("sdk/outstation/_native.abi3.so");
    let new = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    if fs::read(&target).is_ok_and(|present| present == new) {
        return Ok(());
    }
    // Beside the package: what is in it may be copied at any moment.
    let beside = root.join(format!("sdk/.native-{}.so", std::process::id()));
    fs::write(&beside, new).with_context(|| format!("write {}", beside.display()))?;
    fs::rename(&beside, &target).with_context(|| format!("write {}", target.display()))
}

fn present_requirements(root: &Path) -> Vec<PathBuf> {
    REQUIREMENTS.iter().map(|file| root.join(file)).filter(|path| path.is_file()).collect()
}

/// Everything that decides what is in the environment, as one text.
fn wanted_stamp(root: &Path, identity: &str) -> String {
    let mut text = identity.to_owned();
    let mut files = present_requirements(root);
    files.push(root.join("sdk/pyproject.toml"));
    for file in files {
        text.push_str(&format!("--- {}\n", file.display()));
        text.push_str(&fs::read_to_string(&file).unwrap_or_default());
    }
    text
}

/// `python3` on the path, new enough.
fn find_python() -> anyhow::Result<(PathBuf, String)> {
    let script = "import sys; print(sys.executable); print('%d.%d.%d' % sys.version_info[:3])";
    let output = Command::new("python3").args(["-c", script]).stdin(Stdio::null()).output();
    let install =
        "hint: install Python 3.9 or newer, on Debian: apt-get install python3 python3-venv";
    let output = output.context("there is no python3 on the path").context(install)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines();
    let (Some(program), Some(version), true) =
        (lines.next(), lines.next(), output.status.success())
    else {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().last().unwrap_or("it says nothing");
        return Err(anyhow::anyhow!("python3 does not start: {last}").context(install));
    };
    if parse_version(version).is_none_or(|version| version < OLDEST) {
        return Err(anyhow::anyhow!("python3 is {version}, older than 3.9").context(install));
    }
    Ok((PathBuf::from(program), version.to_owned()))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn make_venv(base: &Path, venv: &Path) -> anyhow::Result<()> {
    let has_ensurepip = || {
        let status = Command::new(base)
            .args(["-c", "import ensurepip, venv"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    };
    if !has_ensurepip() {
        // Debian keeps it in a package of its own.
        install_venv_package()?;
        if !has_ensurepip() {
            bail!("{} cannot make virtual environments", base.display());
        }
    }
    run(Command::new(base).args(["-m", "venv"]).arg(venv)).context("make .venv")
}

fn install_venv_package() -> anyhow::Result<()> {
    let hint = "hint: apt-get install -y python3-venv (as root), then run this again";
    let is_root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    if !is_root || !Path::new("/usr/bin/apt-get").exists() {
        return Err(anyhow::anyhow!("python3 has no module ensurepip").context(hint));
    }
    eprintln!("installing the Debian package python3-venv …");
    let apt = |args: &[&str]| {
        let mut command = Command::new("/usr/bin/apt-get");
        run(command.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()))
    };
    // The first may fail for one bad source and the second still succeed.
    if apt(&["install", "-y", "-q", "python3-venv"]).is_err() {
        apt(&["update", "-q"]).context(hint)?;
        apt(&["install", "-y", "-q", "python3-venv"]).context(hint)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_workers_native_module_is_not_written_to() {
        let root = std::env::temp_dir().join(format!("outstation-runner-{}", std::process::id()));
        let (package, bin_dir) = (root.join("sdk/outstation"), root.join("bin"));
        fs::create_dir_all(&package).expect("a folder");
        fs::create_dir_all(&bin_dir).expect("a folder");
        let built = bin_dir.join(format!("{DLL_PREFIX}outstation_native{DLL_SUFFIX}"));
        let placed = package.join("_native.abi3.so");
        fs::write(&built, "old").expect("built");
        place_native_module(&root, &bin_dir).expect("placed");
        let mapped = fs::File::open(&placed).expect("there");
        fs::write(&built, "newer").expect("built again");
        place_native_module(&root, &bin_dir).expect("placed again");
        assert_eq!(std::io::read_to_string(mapped).expect("open"), "old");
        assert_eq!(fs::read_to_string(&placed).expect("there"), "newer");
        assert_eq!(fs::read_dir(root.join("sdk")).expect("there").count(), 1, "nothing else");
        fs::remove_dir_all(&root).expect("ours");
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (text, new_enough) in
            [("3.8.19", false), ("3.9.0", true), ("3.11.7", true), ("x", false)]
        {
            assert_eq!(parse_version(text).is_some_and(|v| v >= OLDEST), new_enough, "{text}");
        }
    }
}
