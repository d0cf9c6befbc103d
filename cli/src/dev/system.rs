//! The whole system on this machine as one value: started, used, shut down. `outstation dev` is
//! one user of it, whole-system tests are the other.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::iam;
use super::layout::{self, Detours, DevGuardrails, Layout};
use super::services::{Service, ServiceSpec, ServiceState, Spawner, tail};
use super::sim::{Sim, SimInstance};
use super::slot::Slot;
use crate::admin::Admin;
use crate::apply::{self, ApplyOptions, Outcome};
use crate::context::Context;
use crate::message::Failure;
use crate::view::GroupView;
use outstation_protocol::ids::GroupName;

#[derive(Debug, Clone)]
pub struct DevOptions {
    /// Where our binaries are: `outstation`, `outstation-broker`, ….
    pub bin_dir: PathBuf,
    pub state: PathBuf,
    /// An interpreter with `outstation` and uv.
    pub python: PathBuf,
    pub guardrails: DevGuardrails,
    /// How long a simulated instance takes to boot.
    pub boot_delay_ms: u64,
    pub detours: Detours,
    /// The account agent's: `manage`, or `scale-only` where a test makes the AutoScaling groups itself.
    pub profile: &'static str,
    /// With a join token, as in a place without AWS, instead of the agent's role.
    pub enroll_by_token: bool,
}

impl DevOptions {
    pub fn new(
        bin_dir: impl Into<PathBuf>,
        state: impl Into<PathBuf>,
        python: impl Into<PathBuf>,
    ) -> DevOptions {
        DevOptions {
            bin_dir: bin_dir.into(),
            state: state.into(),
            python: python.into(),
            guardrails: DevGuardrails::default(),
            boot_delay_ms: 0,
            detours: Detours::default(),
            profile: "manage",
            enroll_by_token: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceName {
    AwsSim,
    Broker,
    AccountAgent,
}

pub struct DevSystem {
    layout: Layout,
    slot: Slot,
    context: Context,
    aws_sim: Service,
    broker: Service,
    account_agent: Service,
    // Dropped last: children die with the spawner's thread.
    _spawner: Spawner,
    lock: File,
}

/// A debug build on a loaded two-core machine; usually well below a second.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at something that has no event to wait for.
const POLL: Duration = Duration::from_millis(15);
/// A service that died this often while starting will not come up.
const DEATHS_MAX: u32 = 3;
const JOIN_TOKEN_VALID_SECS: u32 = 600;

impl DevSystem {
    /// Returns when the account agent is enrolled and connected. On an error nothing is left.
    pub async fn start(options: DevOptions) -> anyhow::Result<DevSystem> {
        DevSystem::start_in(Slot::claim()?, options).await
    }

    /// The same for who must know the ports before anything runs there.
    pub async fn start_in(slot: Slot, options: DevOptions) -> anyhow::Result<DevSystem> {
        let layout = Layout::new(&options.state)?;
        let lock = lock_state(&layout)?;
        layout.reset()?;
        check_binaries(&options.bin_dir)?;
        let signers = layout::make_signer(&layout)?;
        layout::write_configs(&layout, &slot, &options, &signers)?;
        iam::write_policy(&layout, &options).await?;
        let context = layout::context(&layout, &slot, &options, &signers);
        context.write(&layout.context())?;

        let spawner = Spawner::new(options.bin_dir.join("outstation"))?;
        let (aws_sim, (broker, account_agent)) = tokio::try_join!(
            start_aws_sim(&spawner, &options, &layout, &slot),
            start_broker_and_agent(&spawner, &options, &layout, &slot, &context),
        )?;
        let system = DevSystem {
            layout,
            slot,
            context,
            aws_sim,
            broker,
            account_agent,
            _spawner: spawner,
            lock,
        };
        system.wait_enrolled().await?;
        Ok(system)
    }

    pub fn context(&self) -> &Context {
        &self.context
    }

    pub fn context_path(&self) -> PathBuf {
        self.layout.context()
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// `http://127.0.0.1:…` of the simulated AWS.
    pub fn aws_endpoint(&self) -> String {
        format!("http://{}", self.slot.aws_sim())
    }

    pub async fn admin(&self) -> anyhow::Result<Admin> {
        Admin::connect(&self.context).await
    }

    fn service(&self, name: ServiceName) -> &Service {
        match name {
            ServiceName::AwsSim => &self.aws_sim,
            ServiceName::Broker => &self.broker,
            ServiceName::AccountAgent => &self.account_agent,
        }
    }

    fn services(&self) -> [&Service; 3] {
        [&self.aws_sim, &self.broker, &self.account_agent]
    }

    pub fn state_of(&self, name: ServiceName) -> ServiceState {
        self.service(name).state()
    }

    pub fn pid(&self, name: ServiceName) -> Option<u32> {
        self.state_of(name).pid
    }

    pub fn log(&self, name: ServiceName) -> &Path {
        self.service(name).log()
    }

    /// SIGKILL; the broker and the account agent are started again.
    pub fn kill(&self, name: ServiceName) -> anyhow::Result<()> {
        self.service(name).signal(Signal::SIGKILL)
    }

    /// `SIGSTOP` and `SIGCONT`, for instance.
    pub fn signal(&self, name: ServiceName, signal: Signal) -> anyhow::Result<()> {
        self.service(name).signal(signal)
    }

    /// SIGKILL without a restart, as if its machine were gone; returns when the process is.
    pub async fn hold(&self, name: ServiceName) {
        self.service(name).hold().await;
    }

    /// Ends a hold: the service is started again.
    pub fn release(&self, name: ServiceName) {
        self.service(name).release();
    }

    /// The simulated AWS has died: nothing can be expected of the system any more.
    pub fn is_broken(&self) -> bool {
        self.aws_sim.is_over()
    }

    /// The simulated AWS's own view of itself.
    pub fn sim(&self) -> Sim {
        Sim::at(self.slot.aws_sim())
    }

    pub async fn instances(&self) -> anyhow::Result<Vec<SimInstance>> {
        self.sim().instances().await
    }

    /// Applies a folder of declarations without asking, and follows it.
    pub async fn apply(&self, dir: &Path, timeout: Duration) -> anyhow::Result<Outcome> {
        let options = ApplyOptions {
            yes: true,
            confirm_destroy: None,
            follow: Some(timeout),
            interactive: false,
            out: None,
        };
        apply::apply(&self.context, dir, &options, &mut std::io::sink()).await
    }

    /// Waits until `condition` holds for the group; the error tells its last state.
    pub async fn wait_group(
        &self,
        name: &GroupName,
        timeout: Duration,
        condition: impl Fn(&GroupView) -> bool,
    ) -> anyhow::Result<GroupView> {
        let deadline = Instant::now() + timeout;
        let mut last = None;
        loop {
            let look = async { self.admin().await?.group(name).await };
            match tokio::time::timeout_at(deadline, look).await {
                Ok(Ok(group)) if condition(&group) => return Ok(group),
                Ok(Ok(group)) => last = Some(Ok(group)),
                // The broker may be down at the moment.
                Ok(Err(error)) => last = Some(Err(error)),
                Err(_) => {}
            }
            if Instant::now() + POLL >= deadline {
                let state = match last {
                    Some(Ok(group)) => crate::apply::progress_line(&group),
                    Some(Err(error)) => format!("{error:#}"),
                    None => "no answer".into(),
                };
                return Err(Failure::new(
                    format!("{name} is not as awaited after {timeout:?}: {state}"),
                    format!("the logs are in {}", self.layout.logs().display()),
                )
                .into());
            }
            tokio::time::sleep(POLL * 4).await;
        }
    }

    /// Every process's last lines, those of the instances included.
    pub fn log_tails(&self, lines: usize) -> String {
        log_tails(&self.layout, lines)
    }

    /// Ends everything, in order, and checks that it is gone.
    pub async fn shutdown(self) -> anyhow::Result<()> {
        let launchers: Vec<u32> = match self.instances().await {
            Ok(instances) => {
                instances.iter().filter_map(|instance| instance.launcher_pid).collect()
            }
            Err(_) => Vec::new(),
        };
        // The account agent first: what follows is no drift for it to repair. The broker holds
        // nothing open; the simulated AWS takes its instances along.
        self.account_agent.stop().await;
        self.broker.stop().await;
        self.aws_sim.stop().await;
        // The next to come need not be told of a process that is gone.
        self.lock.set_len(0).context("clear the state directory's lock")?;
        let deadline = Instant::now() + Duration::from_secs(10);
        for pid in launchers {
            while Path::new(&format!("/proc/{pid}")).exists() && !is_zombie(pid) {
                if Instant::now() >= deadline {
                    let what = format!("the instance of process {pid} outlives the simulated AWS");
                    return Err(Failure::new(what, "end it by hand").into());
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    async fn wait_enrolled(&self) -> anyhow::Result<()> {
        let admin = self.admin().await?;
        until("the account agent to enroll", &self.services(), || async {
            // The broker may be restarting.
            admin.agents().await.is_ok_and(|agents| agents.iter().any(|agent| agent.connected))
        })
        .await
    }
}

fn is_zombie(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

/// Fails early, before anything of the system that runs there is touched or shown.
pub fn check_unlocked(layout: &Layout) -> anyhow::Result<()> {
    lock_state(layout)?.set_len(0).context("clear the state directory's lock")
}

/// One dev system per state directory; whoever comes second learns who is there.
fn lock_state(layout: &Layout) -> anyhow::Result<File> {
    let path = layout.state.join("dev.lock");
    refuse_other_folders(&layout.state, &path)?;
    let open = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let mut file = open.with_context(|| format!("open {}", path.display()))?;
    if file.try_lock().is_err() {
        let mut pid = String::new();
        // Only for the message.
        let _ = file.read_to_string(&mut pid);
        return Err(Failure::new(
            format!(
                "another `outstation dev` (process {}) runs in {}",
                pid.trim(),
                layout.state.display()
            ),
            "end it with Ctrl-C, or run this one beside it with --state DIR",
        )
        .into());
    }
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| write!(file, "{}", std::process::id()));
    written.with_context(|| format!("write {}", path.display()))?;
    Ok(file)
}

/// A start clears its folder: it must be one that an earlier start has made, or an empty one.
fn refuse_other_folders(state: &Path, lock: &Path) -> anyhow::Result<()> {
    let mut entries =
        std::fs::read_dir(state).with_context(|| format!("list {}", state.display()))?;
    if lock.exists() || entries.next().is_none() {
        return Ok(());
    }
    Err(Failure::new(
        format!("{} holds files that are not of `outstation dev`", state.display()),
        "it would clear that folder: name a new or empty one with --state",
    )
    .into())
}

fn check_binaries(bin_dir: &Path) -> anyhow::Result<()> {
    for name in [
        "outstation",
        "aws-sim",
        "outstation-broker",
        "outstation-agent",
        "outstation-transform-server",
    ] {
        if !bin_dir.join(name).is_file() {
            let what = format!("there is no {name} in {}", bin_dir.display());
            return Err(Failure::new(what, "cargo build --workspace --bins").into());
        }
    }
    Ok(())
}

fn spec(
    name: &'static str,
    program: &str,
    arguments: &[&str],
    options: &DevOptions,
    layout: &Layout,
) -> ServiceSpec {
    ServiceSpec {
        name,
        program: options.bin_dir.join(program),
        arguments: arguments
            .iter()
            .map(Into::into)
            .chain(["--config".into(), layout.config(name).into_os_string()])
            .collect(),
        env: Default::default(),
        log: layout.logs().join(format!("{name}.log")),
        restart: true,
    }
}

async fn start_aws_sim(
    spawner: &Spawner,
    options: &DevOptions,
    layout: &Layout,
    slot: &Slot,
) -> anyhow::Result<Service> {
    // Not started again: its instances would be gone, which no real AWS does.
    let spec =
        ServiceSpec { restart: false, ..spec("aws-sim", "aws-sim", &["serve"], options, layout) };
    let service = Service::start(spawner, spec).await?;
    until("the simulated AWS", &[&service], || async { Sim::at(slot.aws_sim()).is_up().await })
        .await?;
    Ok(service)
}

async fn start_broker_and_agent(
    spawner: &Spawner,
    options: &DevOptions,
    layout: &Layout,
    slot: &Slot,
    context: &Context,
) -> anyhow::Result<(Service, Service)> {
    let broker =
        Service::start(spawner, spec("broker", "outstation-broker", &[], options, layout)).await?;
    until("the broker", &[&broker], || async {
        layout.broker_root().is_file()
            && layout.broker_token().is_file()
            && TcpStream::connect(slot.broker_admin()).await.is_ok()
    })
    .await?;
    let admin = Admin::connect(context).await?;
    if options.enroll_by_token {
        let token = admin.create_join_token(JOIN_TOKEN_VALID_SECS).await?;
        std::fs::write(layout.join_token(), "").context("write the join token")?;
        std::fs::set_permissions(layout.join_token(), std::fs::Permissions::from_mode(0o600))
            .context("keep the join token to ourselves")?;
        std::fs::write(layout.join_token(), token).context("write the join token")?;
    } else {
        admin.add_data_plane(layout::registration()).await?;
    }

    let agent = ServiceSpec {
        env: layout::agent_credentials(),
        ..spec("account-agent", "outstation-agent", &["account"], options, layout)
    };
    let agent = Service::start(spawner, agent).await?;
    until("the account agent", &[&broker, &agent], || async {
        layout.callers_root().is_file()
            && layout.callers_token().is_file()
            && TcpStream::connect(slot.callers()).await.is_ok()
    })
    .await?;
    Ok((broker, agent))
}

/// Waits for `ready`, and not for a service that keeps dying.
async fn until<F: Future<Output = bool>>(
    what: &str,
    services: &[&Service],
    ready: impl Fn() -> F,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while !ready().await {
        for service in services {
            let ServiceState { starts, last_exit, .. } = service.state();
            if service.is_over() || starts > DEATHS_MAX {
                let exit = last_exit.unwrap_or_else(|| "it ended".into());
                return Err(failed_start(
                    &format!("{} does not start: {exit}", service.name()),
                    service,
                ));
            }
        }
        if Instant::now() >= deadline {
            let last = services.last().expect("called with at least one service");
            return Err(failed_start(&format!("waited 60 s for {what}"), last));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn failed_start(what: &str, service: &Service) -> anyhow::Error {
    let lines = tail(service.log(), 20);
    let said = lines
        .iter()
        .rev()
        .find_map(|line| line.strip_prefix("error: "))
        .or_else(|| lines.last().map(String::as_str))
        .unwrap_or("it said nothing");
    let hint = format!("its log is {}", service.log().display());
    Failure::new(format!("{what}: {said}"), hint).into()
}

pub fn log_tails(layout: &Layout, lines: usize) -> String {
    let mut text = String::new();
    for dir in [layout.logs(), layout.state.join("aws-sim/instances")] {
        let Ok(entries) = std::fs::read_dir(&dir) else {
            continue;
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|ext| ext == "log")) {
            text.push_str(&format!("--- {}\n", path.display()));
            for line in tail(path, lines) {
                text.push_str(&format!("    {line}\n"));
            }
        }
    }
    text
}
