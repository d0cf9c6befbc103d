//! The lock of an environment: one canonical text that names everything in it, and from which it
//! is built.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use outstation_protocol::environment::WORKER_PROTOCOLS;
use outstation_protocol::ids::Digest;

use crate::clean_env;
use crate::context::write_atomically;
use crate::declarations::INTERPRETER_HINT;
use crate::message::{self, Failure, Hint as _};

/// A resolution that needs the network; an index that hangs must not hang a plan for good.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(300);
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// `-r` inside a requirements file inside …
const INCLUDE_DEPTH_MAX: usize = 8;

/// The interpreter that runs the declarations, and with it the base of every environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// `major.minor`.
    pub python: String,
    /// The package's version; of a source tree with the digest of its files, so that changed
    /// sources make another environment.
    pub outstation: String,
    /// The folder of the package itself.
    pub package: PathBuf,
    /// `x86_64` or `aarch64`.
    pub machine: String,
    /// What its workers speak with the transform server.
    pub worker_protocol: u32,
}

impl Runtime {
    /// Refused here already: on the nodes it would not serve.
    pub fn check_protocol(&self) -> Result<(), Failure> {
        if WORKER_PROTOCOLS.contains(&self.worker_protocol) {
            return Ok(());
        }
        let (found, version) = (self.worker_protocol, &self.outstation);
        let (least, most) = (WORKER_PROTOCOLS.start(), WORKER_PROTOCOLS.end());
        Err(Failure::new(
            format!(
                "the package outstation {version} speaks version {found} with the transform server, \
                 and this release of the fleet speaks {least} to {most}"
            ),
            "install the package and this command of one release",
        ))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    pub text: String,
    /// `name==version` lines.
    pub pins: BTreeSet<String>,
    pub digest: Digest,
}

impl Lock {
    fn new(runtime: &Runtime, pins: BTreeSet<String>) -> Lock {
        let Runtime { python, outstation, machine, .. } = runtime;
        let mut text = format!("# python {python} {machine}\n# outstation {outstation}\n");
        for pin in &pins {
            text.push_str(pin);
            text.push('\n');
        }
        Lock { digest: Digest::of(text.as_bytes()), pins, text }
    }
}

/// The package's own bound: its syntax is of this Python.
const OLDEST_PYTHON: (u32, u32) = (3, 9);

/// Asks the interpreter what it is and where its `outstation` lives.
pub async fn probe(python: &Path) -> anyhow::Result<Runtime> {
    // Runs in every Python there is, so that an old one can say that it is.
    const SCRIPT: &str = "import json, os, platform, sys\n\
        told = {'version': list(sys.version_info[:2]), 'machine': platform.machine()}\n\
        try:\n\
        \x20 import outstation, outstation._frames\n\
        \x20 from importlib import metadata\n\
        \x20 told['outstation'] = metadata.version('outstation')\n\
        \x20 told['protocol'] = outstation._frames.PROTOCOL\n\
        \x20 told['package'] = os.path.dirname(os.path.abspath(outstation.__file__))\n\
        except Exception:\n\
        \x20 told['lacks'] = '%s: %s' % (sys.exc_info()[0].__name__, sys.exc_info()[1])\n\
        print(json.dumps(told))";
    #[derive(Deserialize)]
    struct Probe {
        version: (u32, u32),
        #[serde(default)]
        machine: String,
        protocol: Option<u32>,
        outstation: Option<String>,
        package: Option<PathBuf>,
        lacks: Option<String>,
    }
    let home = tempfile::tempdir().context("create an empty home")?;
    let output = Command::new(python)
        .args(["-c", SCRIPT])
        .env_clear()
        .envs(clean_env::for_declarations(home.path()))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let shown = python.display();
    let output = tokio::time::timeout(PROBE_TIMEOUT, output)
        .await
        .with_context(|| format!("{shown} did not answer within 30 s"))
        .and_then(|output| output.with_context(|| format!("start {shown}")))
        .hint(INTERPRETER_HINT)?;
    let Ok(probe) = serde_json::from_slice::<Probe>(&output.stdout) else {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().last().unwrap_or("asked for its version, it said nothing");
        let what = format!("{shown} is no Python interpreter: {last}");
        return Err(Failure::new(what, INTERPRETER_HINT).into());
    };
    let (major, minor) = probe.version;
    if probe.version < OLDEST_PYTHON {
        let (least, oldest) = OLDEST_PYTHON;
        let what = format!("{shown} is Python {major}.{minor}, older than {least}.{oldest}");
        return Err(Failure::new(what, INTERPRETER_HINT).into());
    }
    let (Some(version), Some(worker_protocol), Some(package)) =
        (probe.outstation, probe.protocol, probe.package)
    else {
        let lacks = probe.lacks.unwrap_or_default();
        let what = format!("{shown} cannot import the package `outstation`: {lacks}");
        let hint = format!("{shown} -m pip install outstation, or {INTERPRETER_HINT}");
        return Err(Failure::new(what, hint).into());
    };
    let installed = package.components().any(|part| part.as_os_str() == "site-packages");
    let outstation = if installed {
        version
    } else {
        format!("{version}+source.{}", &package_digest(&package)?.hex()[..12])
    };
    let (python, machine) = (format!("{major}.{minor}"), probe.machine);
    Ok(Runtime { python, outstation, package, machine, worker_protocol })
}

/// Names and contents of the package's files, caches aside.
fn package_digest(package: &Path) -> anyhow::Result<Digest> {
    let mut listing = String::new();
    for (relative, path) in package_files(package)? {
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        listing.push_str(&format!("{} {}\n", Digest::of(&bytes), relative.display()));
    }
    Ok(Digest::of(listing.as_bytes()))
}

pub(super) fn package_files(package: &Path) -> anyhow::Result<BTreeMap<PathBuf, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(below) = dirs.pop() {
        let dir = package.join(&below);
        for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            let entry = entry.with_context(|| format!("list {}", dir.display()))?;
            let relative = below.join(entry.file_name());
            if entry.path().is_dir() {
                if entry.file_name() != "__pycache__" {
                    dirs.push(relative);
                }
            } else if entry.path().extension().is_none_or(|ext| ext != "pyc") {
                files.insert(relative, entry.path());
            }
        }
    }
    Ok(files)
}

/// The requirements of one environment, ready to resolve.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requirements {
    /// The file, or none for an environment of `outstation` alone.
    pub path: Option<PathBuf>,
    /// The file's own lines that say something.
    pub main: String,
    /// Those and the lines of the files that it includes.
    pub lines: Vec<String>,
}

impl Requirements {
    pub fn read(dir: &Path, file: Option<&str>) -> anyhow::Result<Requirements> {
        let Some(file) = file else {
            return Ok(Requirements::default());
        };
        let path = dir.join(file);
        let mut lines = Vec::new();
        read_lines(&path, 0, &mut lines)?;
        let main = own_lines(&path)?.iter().map(|line| format!("{line}\n")).collect();
        Ok(Requirements { path: Some(path), main, lines })
    }

    fn cache_key(&self, runtime: &Runtime) -> Digest {
        let Runtime { python, machine, .. } = runtime;
        let lines = self.lines.join("\n");
        Digest::of(format!("python {python} {machine}\n{lines}").as_bytes())
    }
}

fn read_lines(path: &Path, depth: usize, lines: &mut Vec<String>) -> anyhow::Result<()> {
    if depth > INCLUDE_DEPTH_MAX {
        let what = format!("{} is included too deep", path.display());
        return Err(Failure::new(what, "a requirements file includes itself?").into());
    }
    for line in own_lines(path)? {
        let included = ["-r ", "--requirement ", "-c ", "--constraint "]
            .iter()
            .find_map(|flag| line.strip_prefix(flag).map(str::trim))
            .map(|file| path.parent().unwrap_or(Path::new(".")).join(file));
        lines.push(line);
        if let Some(next) = included {
            read_lines(&next, depth + 1, lines)?;
        }
    }
    Ok(())
}

fn own_lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let mut text = fs::read_to_string(path)
        .with_context(|| format!("read the requirements {}", path.display()))
        .hint("Environment(requirements=…) names a file relative to the declarations' folder")?;
    if path.extension().is_some_and(|extension| extension == "toml") {
        text = project_dependencies(&text, path)?.join("\n");
    }
    Ok(text
        .lines()
        .map(|line| line.split(" #").next().unwrap_or(line).trim())
        .filter(|line| !line.is_empty() && !line.starts_with('#') && !names_outstation(line))
        .map(str::to_owned)
        .collect())
}

/// <https://packaging.python.org/en/latest/specifications/pyproject-toml/#dependencies-optional-dependencies>:
/// what stands there; what a build would have to say is not asked, as that would run its code.
fn project_dependencies(text: &str, path: &Path) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct File {
        project: Option<Project>,
    }
    #[derive(Deserialize)]
    struct Project {
        dependencies: Option<Vec<String>>,
    }
    let file: File = toml::from_str(text)
        .map_err(|error| anyhow::anyhow!(message::of_toml(text, &error)))
        .with_context(|| format!("read the requirements {}", path.display()))?;
    file.project.and_then(|project| project.dependencies).ok_or_else(|| {
        let what = format!("{} has no dependencies under [project]", path.display());
        Failure::new(what, "list them there, even if it is none: dynamic ones are not asked for")
            .into()
    })
}

/// The package itself comes with the environment, whatever the requirements say.
fn names_outstation(line: &str) -> bool {
    let end = line
        .find(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)))
        .unwrap_or(line.len());
    &line[..end] == "outstation"
}

/// The lock for `requirements`: from the cache while they stay the same, else resolved by uv.
pub async fn lock(
    requirements: &Requirements,
    runtime: &Runtime,
    python: &Path,
    cache: &Path,
) -> anyhow::Result<Lock> {
    let make = |pins| Lock::new(runtime, pins);
    let Some(path) = requirements.path.as_ref().filter(|_| !requirements.lines.is_empty()) else {
        return Ok(make(BTreeSet::new()));
    };
    let cached = cache.join("locks").join(format!("{}.txt", requirements.cache_key(runtime).hex()));
    if let Ok(text) = fs::read_to_string(&cached) {
        return Ok(make(parse_pins(&text)));
    }
    let text = resolve(path, &requirements.main, python).await?;
    let pins = parse_pins(&text);
    let listing: String = pins.iter().map(|pin| format!("{pin}\n")).collect();
    write_atomically(&cached, listing.as_bytes()).context("remember the resolved requirements")?;
    Ok(make(pins))
}

async fn resolve(path: &Path, main: &str, python: &Path) -> anyhow::Result<String> {
    let mut child = Command::new(find_uv(python)?)
        .args([
            "pip",
            "compile",
            "--quiet",
            "--no-header",
            "--no-annotate",
            "--no-config",
            "--no-build",
        ])
        .arg("--python")
        .arg(python)
        .arg("-")
        // Files that it includes are named relative to it.
        .current_dir(path.parent().unwrap_or(Path::new(".")))
        .env_clear()
        .envs(clean_env::for_packages())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("start uv")?;
    let mut stdin = child.stdin.take().expect("piped above");
    stdin.write_all(main.as_bytes()).await.context("hand the requirements to uv")?;
    drop(stdin);
    let output = tokio::time::timeout(RESOLVE_TIMEOUT, child.wait_with_output())
        .await
        .context("resolving the requirements took over 5 minutes")
        .hint("check the connection to the package index")?
        .context("wait for uv")?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::new(
            format!("uv cannot resolve {}: {}", path.display(), stderr.trim()),
            "correct the requirements, or check the connection to the package index; only wheels are taken, as building a \
             package would run its code: one that has none can be built elsewhere and named with UV_FIND_LINKS",
        )
        .into());
    }
    String::from_utf8(output.stdout).context("uv printed something that is not text")
}

/// Beside the interpreter, or on the path.
pub fn find_uv(python: &Path) -> anyhow::Result<PathBuf> {
    let beside = python.parent().map(|bin| bin.join("uv")).filter(|uv| uv.is_file());
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join("uv")).find(|uv| uv.is_file())
    };
    beside.or_else(on_path).ok_or_else(|| {
        let what = format!("uv is neither beside {} nor on the path", python.display());
        Failure::new(what, format!("{} -m pip install uv", python.display())).into()
    })
}

fn parse_pins(text: &str) -> BTreeSet<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with('-'))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> Runtime {
        Runtime {
            python: "3.11".into(),
            outstation: "0.1.0".into(),
            package: "/package".into(),
            machine: "x86_64".into(),
            worker_protocol: 1,
        }
    }

    #[test]
    fn a_package_that_no_server_understands_is_refused_with_both_versions() {
        let newer = Runtime { worker_protocol: 9, ..runtime() };
        let why = newer.check_protocol().expect_err("refused").to_string();
        assert!(why.contains("outstation 0.1.0 speaks version 9"), "{why}");
        assert!(why.contains("speaks 1 to 1"), "{why}");
        runtime().check_protocol().expect("spoken");
    }

    #[test]
    fn the_lock_text_is_canonical() {
        let pins = parse_pins("# made by uv\nnumpy==2.1\n--index-url x\n\n  attrs==24\n");
        let lock = Lock::new(&runtime(), pins);
        assert_eq!(lock.text, "# python 3.11 x86_64\n# outstation 0.1.0\nattrs==24\nnumpy==2.1\n");
        assert_eq!(lock.digest, Digest::of(lock.text.as_bytes()));
    }

    #[test]
    fn the_package_itself_is_not_a_requirement() {
        for (line, named) in [
            ("outstation", true),
            ("outstation>=0.1", true),
            ("outstation[worker]==1", true),
            ("outstation-extras", false),
            ("numpy", false),
        ] {
            assert_eq!(names_outstation(line), named, "{line}");
        }
    }

    #[test]
    fn a_project_names_its_dependencies_or_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let read = |text: &str| {
            fs::write(dir.path().join("pyproject.toml"), text).expect("written");
            Requirements::read(dir.path(), Some("pyproject.toml"))
        };
        let project = "[project]\nname = 'a'\ndependencies = ['numpy>=2', 'outstation', 'six']\n";
        assert_eq!(read(project).expect("reads").lines, ["numpy>=2", "six"]);
        for (text, wanted) in [
            (
                "[project]\nname = 'a'\ndynamic = ['dependencies']\n",
                "no dependencies under [project]",
            ),
            ("[tool.other]\n", "no dependencies under [project]"),
            ("[project\n", "read the requirements"),
        ] {
            let why = read(text).expect_err("refused").to_string();
            assert!(why.contains(wanted), "{why}");
        }
    }

    #[test]
    fn comments_change_nothing_and_included_files_count() {
        let dir = tempfile::tempdir().expect("dir");
        let read = |main: &str, other: &str| {
            fs::write(dir.path().join("requirements.txt"), main).expect("written");
            fs::write(dir.path().join("other.txt"), other).expect("written");
            Requirements::read(dir.path(), Some("requirements.txt")).expect("reads")
        };
        let key = |requirements: Requirements| requirements.cache_key(&runtime());
        let plain = key(read("numpy\n-r other.txt\n", "attrs\n"));
        assert_eq!(plain, key(read("# why\nnumpy # this\n\n-r other.txt\n", "attrs\n")));
        assert_ne!(plain, key(read("numpy\n-r other.txt\n", "attrs==1\n")));
        assert!(Requirements::read(dir.path(), Some("missing.txt")).is_err());
    }
}
