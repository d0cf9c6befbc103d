//! Carries out the model's effects: launches, feeds and ends the processes that are the instances, and tells the model
//! when one runs or died.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::{Notify, watch};

use super::spawner::Spawner;
use crate::config::Config;
use crate::launcher::{FromLauncher, ToLauncher};
use crate::model::policies::{Metric, Reading};
use crate::model::{Effect, InstanceFacts, InstanceId};
use crate::policy::Judged;
use crate::wire::Sim;
use crate::{Hinted, clock};

/// A launcher gives its processes two seconds after SIGTERM; past this it is stuck and killed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// One instance's launcher, as long as it has not been waited for: its pid is its own while it is in the map.
#[derive(Debug)]
struct Machine {
    pid: Pid,
    facts: watch::Sender<InstanceFacts>,
}

type Machines = Arc<Mutex<BTreeMap<InstanceId, Machine>>>;

#[derive(Debug)]
pub struct Driver {
    sim: Arc<Mutex<Sim>>,
    machines: Machines,
    spawner: Spawner,
    /// Something happened; let time pass now.
    wake: Arc<Notify>,
    dir: PathBuf,
    imds_port: u16,
}

/// One line of `GET /_sim/groups`.
#[derive(Debug, Serialize)]
pub struct GroupLine {
    pub name: String,
    pub desired: u32,
    /// Everything but instances that are terminated already.
    pub instances: usize,
}

/// One line of `GET /_sim/instances`.
#[derive(Debug, Serialize)]
pub struct InstanceLine {
    pub instance_id: InstanceId,
    pub group: String,
    pub address: String,
    /// In the namespace that the simulation runs in; absent while the machine boots and when it is dead.
    pub launcher_pid: Option<i32>,
    pub lifecycle_state: String,
    pub imds: String,
}

/// `PUT /_sim/metrics`: a value, or a total of which each instance in service has its share, or neither: no data.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricLine {
    pub namespace: String,
    pub name: String,
    #[serde(default)]
    pub dimensions: BTreeMap<String, String>,
    pub value: Option<f64>,
    pub total: Option<f64>,
}

impl Driver {
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let mut sim = Sim::new(config.model(rand::random()));
        sim.guard = config.guard()?;
        Ok(Driver {
            sim: Arc::new(Mutex::new(sim)),
            machines: Machines::default(),
            spawner: Spawner::start()?,
            wake: Arc::default(),
            dir: config.dir.clone(),
            imds_port: config.imds_port,
        })
    }

    /// Can instances exist on this machine? Better to know before a group waits for them.
    pub async fn probe(&self) -> anyhow::Result<()> {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("aws-sim")
            .args(["launcher", "--probe"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = self.spawner.spawn(command).await?;
        let output = tokio::task::spawn_blocking(move || child.wait_with_output())
            .await?
            .context("wait for the probe")?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = |prefix: &str| {
            said.lines().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned)
        };
        let what = line("error: ")
            .unwrap_or_else(|| format!("instances cannot start here: {}", said.trim()));
        let hint = line("hint: ").unwrap_or_else(|| "run as root".to_owned());
        Err(Hinted::new(what, hint).into())
    }

    pub fn call(
        &self,
        request: &http::Request<Bytes>,
        now: OffsetDateTime,
    ) -> http::Response<Bytes> {
        let response = lock(&self.sim).handle(request, now);
        self.wake.notify_one();
        response
    }

    /// How calls of principals with a policy were judged.
    pub fn judged(&self) -> Vec<Judged> {
        lock(&self.sim).guard.judged().cloned().collect()
    }

    pub fn groups(&self) -> Vec<GroupLine> {
        let sim = lock(&self.sim);
        let line = |group: &crate::model::group::Group| GroupLine {
            name: group.name.to_string(),
            desired: group.desired,
            instances: group.instances.len(),
        };
        sim.model.groups().map(line).collect()
    }

    pub fn set_metric(&self, line: MetricLine) {
        let MetricLine { namespace, name, dimensions, value, total } = line;
        let reading = total.map(Reading::Total).or(value.map(Reading::Value));
        lock(&self.sim).model.set_metric(Metric { namespace, name, dimensions }, reading);
        self.wake.notify_one();
    }

    pub fn instances(&self) -> Vec<InstanceLine> {
        let sim = lock(&self.sim);
        let machines = lock(&self.machines);
        let line = |instance: &crate::model::group::Instance| InstanceLine {
            instance_id: instance.id.clone(),
            group: instance.group.to_string(),
            address: instance.address.to_string(),
            launcher_pid: machines.get(&instance.id).map(|machine| machine.pid.as_raw()),
            lifecycle_state: instance.lifecycle.as_str().to_owned(),
            imds: format!("http://{}:{}", instance.address, self.imds_port),
        };
        sim.model.instances().map(line).collect()
    }

    /// Lets time pass for the model, and carries out what it says, one after another.
    pub async fn run(&self, every: Duration) {
        loop {
            let effects = lock(&self.sim).tick(clock::now());
            for effect in effects {
                match effect {
                    Effect::Launch { facts, user_data } => {
                        let instance = facts.instance_id.clone();
                        if let Err(error) = self.launch(facts, &user_data).await {
                            tracing::warn!(%instance, "could not launch: {error:#}");
                            lock(&self.sim).model.instance_dead(&instance);
                        }
                    }
                    Effect::Update { facts } => {
                        if let Some(machine) = lock(&self.machines).get(&facts.instance_id) {
                            machine.facts.send_replace(facts);
                        }
                    }
                    Effect::Shutdown { instance } => self.shut_down(instance),
                }
            }
            // Woken early by a call or by an instance's news.
            let _ = tokio::time::timeout(every, self.wake.notified()).await;
        }
    }

    async fn launch(&self, facts: InstanceFacts, user_data: &str) -> anyhow::Result<()> {
        let user_data = std::fs::read_to_string(user_data)
            .with_context(|| format!("read user data {user_data}"))?;
        let instance = facts.instance_id.clone();
        let home = self.dir.join("instances").join(instance.as_str());
        let log = self.dir.join("instances").join(format!("{instance}.log"));
        let log_file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("aws-sim").args(["launcher", "--instance", instance.as_str()]);
        // A group of its own: Ctrl-C in a terminal reaches the simulation alone, which then ends instances in order.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log_file);
        let mut child = self.spawner.spawn(command).await?;
        let pid = Pid::from_raw(i32::try_from(child.id()).context("pid")?);
        tracing::info!(%instance, address = %facts.address, launcher_pid = pid.as_raw(), "instance launched");

        let stdin =
            pipe::Sender::from_owned_fd(OwnedFd::from(child.stdin.take().context("no stdin")?))?;
        let stdout = pipe::Receiver::from_owned_fd(OwnedFd::from(
            child.stdout.take().context("no stdout")?,
        ))?;
        let (send, receive) = watch::channel(facts.clone());
        lock(&self.machines).insert(instance.clone(), Machine { pid, facts: send });
        let start = ToLauncher::Start { facts, user_data, home, log, imds_port: self.imds_port };
        tokio::spawn(feed(stdin, start, receive));
        tokio::spawn(attend(
            instance,
            child,
            stdout,
            self.sim.clone(),
            self.machines.clone(),
            self.wake.clone(),
        ));
        Ok(())
    }

    /// SIGTERM now, SIGKILL if it is still there later.
    fn shut_down(&self, instance: InstanceId) {
        tracing::info!(%instance, "instance terminates");
        signal(&self.machines, &instance, Signal::SIGTERM);
        let machines = self.machines.clone();
        tokio::spawn(async move {
            tokio::time::sleep(STOP_PATIENCE).await;
            signal(&machines, &instance, Signal::SIGKILL);
        });
    }

    /// Ends every instance and returns when none is left.
    pub async fn end_all(&self) {
        let all: Vec<InstanceId> = lock(&self.machines).keys().cloned().collect();
        for instance in all {
            signal(&self.machines, &instance, Signal::SIGTERM);
        }
        let until = tokio::time::Instant::now() + STOP_PATIENCE;
        while !lock(&self.machines).is_empty() && tokio::time::Instant::now() < until {
            let _ = tokio::time::timeout(Duration::from_millis(50), self.wake.notified()).await;
        }
        let stuck: Vec<InstanceId> = lock(&self.machines).keys().cloned().collect();
        for instance in stuck {
            signal(&self.machines, &instance, Signal::SIGKILL);
        }
    }
}

/// Signals a launcher if it has not been waited for.
fn signal(machines: &Machines, instance: &InstanceId, signal: Signal) {
    if let Some(machine) = lock(machines).get(instance) {
        let _ = kill(machine.pid, signal);
    }
}

/// Writes to a launcher: first the start, then the newest facts whenever they change.
async fn feed(
    mut stdin: pipe::Sender,
    start: ToLauncher,
    mut facts: watch::Receiver<InstanceFacts>,
) {
    let mut order = start;
    loop {
        let Ok(mut line) = serde_json::to_vec(&order) else {
            return;
        };
        line.push(b'\n');
        if stdin.write_all(&line).await.is_err() || facts.changed().await.is_err() {
            return;
        }
        order = ToLauncher::Facts { facts: facts.borrow_and_update().clone() };
    }
}

/// Listens to a launcher until it and its pid 1 are gone, then tells the model.
async fn attend(
    instance: InstanceId,
    mut child: Child,
    stdout: pipe::Receiver,
    sim: Arc<Mutex<Sim>>,
    machines: Machines,
    wake: Arc<Notify>,
) {
    let mut lines = BufReader::new(stdout).lines();
    let mut ran = false;
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str::<FromLauncher>(&line) {
            Ok(FromLauncher::Running) => {
                ran = true;
                lock(&sim).model.instance_running(&instance);
                wake.notify_one();
            }
            Err(error) => tracing::warn!(%instance, "launcher said something odd: {error}"),
        }
    }
    // Out of the map before it is waited for: after that the pid may be someone else's.
    lock(&machines).remove(&instance);
    let status = tokio::task::spawn_blocking(move || child.wait()).await;
    match status {
        Ok(Ok(status)) if ran => tracing::info!(%instance, %status, "instance ended"),
        other => {
            tracing::warn!(%instance, ?other, "instance ended before it ran; its log says why")
        }
    }
    lock(&sim).model.instance_dead(&instance);
    wake.notify_one();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while holding it is a bug that has been printed; the simulation goes on.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
