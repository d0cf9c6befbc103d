//! What the whole-system tests share: a system of their own, declarations that can be edited, calls
//! that go on in the background while something happens, faults, and what must hold meanwhile.

pub mod debian;
pub mod disk;
pub mod fate;
pub mod faults;
pub mod invariants;
pub mod links;
pub mod parts;
pub mod s3;
pub mod usage;
pub mod venv;

pub mod bad;
pub mod clock_shift;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use outstation_api::transform::{CallRequest, Row};
use outstation_cli::artifacts::Repo;
use outstation_cli::caller::Caller;
use outstation_cli::dev::{DevGuardrails, DevOptions, DevSystem, Slot};
use outstation_cli::values::row_from_wider_json;
use outstation_protocol::GroupName;
use serde_json::Value as Json;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::disk::SmallDisk;
use crate::faults::Place;
use crate::invariants::Watch;
use crate::links::Links;

/// The machine is small: one whole system at a time, also under plain `cargo test`, which runs the
/// tests of one program side by side.
pub static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Far beyond what anything takes here; a test that reaches it has failed for another reason.
pub const LONG: Duration = Duration::from_secs(120);

pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// The interpreter that `cargo verify` has prepared.
pub fn python() -> PathBuf {
    match std::env::var_os("OUTSTATION_TEST_PYTHON") {
        Some(path) => path.into(),
        None => workspace().join(".venv/bin/python"),
    }
}

/// Where cargo has put the binaries of this workspace.
pub fn binaries() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    test.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>").to_owned()
}

/// The whole system, with a folder of declarations that starts as a copy of `examples/flights`.
pub struct World {
    pub system: DevSystem,
    pub group: GroupName,
    links: Option<Links>,
    disks: tokio::sync::Mutex<BTreeMap<Place, SmallDisk>>,
    declarations: TempDir,
}

impl World {
    /// `name` keeps the caches of one test from one run to the next.
    pub async fn start(name: &str) -> Result<World> {
        World::start_in(Slot::claim()?, None, name, |_| {}).await
    }

    /// The same with an account agent that enrolls with a join token, as in a place without AWS.
    pub async fn start_by_token(name: &str) -> Result<World> {
        World::start_in(Slot::claim()?, None, name, |options| options.enroll_by_token = true).await
    }

    /// The same with an account agent that may set desired capacity, and nothing else.
    pub async fn start_scale_only(name: &str) -> Result<World> {
        World::start_in(Slot::claim()?, None, name, |options| options.profile = "scale-only").await
    }

    /// The same with a [`Links`] between the parties; `seed` decides what bad ones do.
    pub async fn start_with_links(name: &str, seed: u64) -> Result<World> {
        let slot = Slot::claim()?;
        let links = Links::start(&slot, seed).await?;
        World::start_in(slot, Some(links), name, |_| {}).await
    }

    async fn start_in(
        slot: Slot,
        links: Option<Links>,
        name: &str,
        change: impl FnOnce(&mut DevOptions),
    ) -> Result<World> {
        let state = workspace().join("target").join("whole-system").join(name);
        disk::unmount_below(&state)?;
        let mut options = DevOptions::new(binaries(), state, python());
        change(&mut options);
        options.detours = links.as_ref().map(Links::detours).unwrap_or_default();
        let system = DevSystem::start_in(slot, options).await?;
        let declarations = tempfile::tempdir()?;
        for file in ["features.py", "requirements.txt"] {
            let from = workspace().join("examples/flights").join(file);
            std::fs::copy(&from, declarations.path().join(file))?;
        }
        let group = GroupName::try_from("delay_tsg")?;
        Ok(World { system, group, links, disks: Default::default(), declarations })
    }

    /// Those of [`World::start_with_links`].
    pub fn links(&self) -> &Links {
        self.links.as_ref().expect("this world was started with links")
    }

    /// Looks at what must hold, from now on.
    pub fn watch(&self) -> Watch {
        Watch::start(self.system.layout().store(), DevGuardrails::default(), self.system.sim())
    }

    pub fn declarations(&self) -> &Path {
        self.declarations.path()
    }

    /// Replaces text in the declarations, as a person would with an editor.
    pub fn edit(&self, from: &str, to: &str) -> Result<()> {
        let path = self.declarations().join("features.py");
        let text = std::fs::read_to_string(&path)?;
        if !text.contains(from) {
            bail!("{from:?} is not in the declarations");
        }
        std::fs::write(&path, text.replace(from, to))?;
        Ok(())
    }

    /// Runs the real `outstation`, with no terminal.
    pub fn outstation(&self, arguments: &[&str]) -> Result<Run> {
        self.outstation_in(self.declarations(), arguments)
    }

    /// The same in another folder.
    pub fn outstation_in(&self, folder: &Path, arguments: &[&str]) -> Result<Run> {
        let output = Command::new(binaries().join("outstation"))
            .args(arguments)
            .env("OUTSTATION_CONTEXT", self.system.context_path())
            .current_dir(folder)
            .stdin(std::process::Stdio::null())
            .output()
            .context("run outstation")?;
        Ok(Run::from(output))
    }

    /// Runs a command of the real `outstation-agent` on the account agent's host, with no terminal.
    pub fn outstation_agent(&self, command: &str, arguments: &[&str]) -> Result<Run> {
        let config = self.system.layout().config("account-agent");
        agent_command(&config, command, arguments)
    }

    /// A call to AutoScaling by boto3, as somebody with a console would make it.
    pub fn by_hand(&self, call: &str) -> Result<Run> {
        let script = format!(
            "import boto3\nboto3.client('autoscaling', 'eu-central-1', endpoint_url='{}').{call}",
            self.system.aws_endpoint()
        );
        let output = Command::new(python())
            .args(["-c", &script])
            .envs(outstation_cli::dev::layout::people_credentials())
            .output()
            .context("run boto3")?;
        Ok(Run::from(output))
    }

    /// Applies the declarations as they are now and waits until that many nodes are ready.
    pub async fn apply(&self, nodes: u32) -> Result<()> {
        let run = self.outstation(&["apply", ".", "--timeout", "120"])?;
        if run.code != 0 {
            bail!("apply failed:\n{run}\n{}", self.system.log_tails(20));
        }
        self.ready(nodes).await
    }

    pub async fn ready(&self, nodes: u32) -> Result<()> {
        self.system
            .wait_group(&self.group, LONG, |group| {
                group.status.as_ref().is_some_and(|status| {
                    let counts = [status.desired_nodes, status.observed_nodes, status.ready_nodes];
                    counts == [nodes; 3]
                })
            })
            .await
            .map(drop)
            .with_context(|| self.system.log_tails(20))
    }

    pub async fn caller(&self) -> Result<Arc<Caller>> {
        Ok(Arc::new(Caller::connect(self.system.context(), &self.group).await?))
    }

    /// Rows of the service `delay`, made from JSON objects as `departures.py` writes them.
    pub async fn rows(&self, objects: &[Json]) -> Result<Vec<Row>> {
        let repo = Repo::load(&python(), self.declarations()).await?;
        let schema = repo.manifest.input_schema("delay").context("the example's service")?;
        Ok(objects
            .iter()
            .map(|object| row_from_wider_json(object, &schema))
            .collect::<Result<_, _>>()?)
    }

    /// The real departures, written once by the example's own script.
    pub fn departures(&self) -> Result<Vec<Json>> {
        let path = workspace().join("target/whole-system/departures.ndjson");
        if !path.exists() {
            let part = path.with_extension(format!("{}.part", std::process::id()));
            let output = Command::new(python())
                .arg(workspace().join("examples/flights/departures.py"))
                .arg(&part)
                .output()?;
            if !output.status.success() {
                bail!("departures.py: {}", String::from_utf8_lossy(&output.stderr));
            }
            std::fs::rename(part, &path)?;
        }
        std::fs::read_to_string(path)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

pub fn agent_command(config: &Path, command: &str, arguments: &[&str]) -> Result<Run> {
    let output = Command::new(binaries().join("outstation-agent"))
        .args(command.split(' '))
        .arg("--config")
        .arg(config)
        .args(arguments)
        .envs(outstation_cli::dev::layout::agent_credentials())
        .stdin(std::process::Stdio::null())
        .output()
        .context("run outstation-agent")?;
    Ok(Run::from(output))
}

/// Processes that belong to a system: each has its state folder in its command line (a worker has
/// its bundle's, which is below it).
pub fn processes(state: &Path) -> BTreeMap<u32, String> {
    let needle = state.to_string_lossy().into_owned();
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").expect("a Linux machine").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(command) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let mut command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&needle) {
            // What was forked has its parent's command line, and a name of its own.
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            command.push_str(&format!("[{}]", name.trim()));
            found.insert(pid, command);
        }
    }
    found
}

/// `address:port` of the listening sockets, TCP and UDP, that these processes hold.
pub fn listeners_of(pids: &BTreeMap<u32, String>) -> Vec<String> {
    let output = Command::new("ss").args(["-H", "-l", "-t", "-u", "-n", "-p"]).output();
    let Ok(output) = output else { return Vec::new() };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| pids.keys().any(|pid| line.contains(&format!("pid={pid},"))))
        .filter_map(|line| line.split_whitespace().nth(4).map(str::to_owned))
        .collect()
}

/// Nothing that was held is held any more, over TCP or UDP. A process that is ending loses its command
/// line a moment before its sockets.
pub fn assert_released(listeners: &[String]) {
    let deadline = std::time::Instant::now() + LONG;
    for listener in listeners {
        while std::net::TcpListener::bind(listener).is_err()
            || std::net::UdpSocket::bind(listener).is_err()
        {
            assert!(std::time::Instant::now() < deadline, "{listener} is still taken");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A number that makes a test longer or repeats it.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// How a command ended.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Run {
        Run {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit {}\n{}\n{}", self.code, self.stdout, self.stderr)
    }
}

/// Calls that go on until told to stop; failures are kept.
pub struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    lanes: Vec<JoinHandle<Vec<String>>>,
}

/// Nobody reads more, and ten minutes of a broken system shall not fill the memory.
const FAILURES_KEPT_MAX: usize = 100;

impl Load {
    pub fn start(caller: &Arc<Caller>, rows: &[Row], lanes: usize) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (calls, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let lanes = (0..lanes)
            .map(|lane| {
                let (stop, calls, caller) = (stop.clone(), calls.clone(), caller.clone());
                let failed = failed.clone();
                let rows = rows.to_vec();
                tokio::spawn(async move {
                    let mut failures = Vec::new();
                    for row in rows.iter().cycle().skip(lane) {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let request =
                            CallRequest { target: "delay".to_owned(), rows: vec![row.clone()] };
                        let answered = caller.call(request, Duration::from_secs(10)).await;
                        calls.fetch_add(1, Ordering::Relaxed);
                        let Err(status) = answered.outcome else { continue };
                        failed.fetch_add(1, Ordering::Relaxed);
                        if failures.len() < FAILURES_KEPT_MAX {
                            failures.push(format!("{:?}: {}", status.code(), status.message()));
                        }
                    }
                    failures
                })
            })
            .collect();
        Load { stop, calls, failed, lanes }
    }

    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// How many calls have failed so far; may be more than [`Load::stop`] tells one by one.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Waits until so many further calls have been answered: what was to happen under load has.
    pub async fn pass(&self, further: u64) -> Result<()> {
        let target = self.calls() + further;
        let waiting = async {
            while self.calls() < target {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, waiting).await.context("the calls have come to a halt")
    }

    /// Ends the calls; their number and what failed.
    pub async fn stop(self) -> Result<(u64, Vec<String>)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        for lane in self.lanes {
            failures.extend(lane.await?);
        }
        Ok((self.calls.load(Ordering::Relaxed), failures))
    }
}
