//! An account agent as a process of the simulation: the real reconciler over the real SDK, the real
//! desk and session, on virtual time. A crash drops it; the account store and its disk stay.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use aws_sdk_autoscaling::config::{
    BehaviorVersion, Credentials, Region, SharedCredentialsProvider,
};
use outstation_agent::account::aws::{Aws, CallError};
use outstation_agent::account::config::{AwsConfig, Config};
use outstation_agent::account::desk::Desk;
use outstation_agent::account::floor::Standing;
use outstation_agent::account::ledger::{Ledger, LedgerError};
use outstation_agent::account::pacing::Pacer;
use outstation_agent::account::reconcile::{LOOK_MIN, Reconciler};
use outstation_agent::account::redial::Redial;
use outstation_agent::account::shared::Shared;
use outstation_agent::clock::{Clock, ManualClock};
use outstation_agent::store::AccountStore;
use outstation_protocol::session::{AgentSession, Answer};
use outstation_protocol::v1::SetEntry;
use outstation_protocol::{AgentId, Envelope, GroupName, InstanceId};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::watch;

use crate::time::{TimeOfDay, Timers};
use crate::wire::Wire;
use crate::world::{ACCOUNT, AGENT_KEY, AGENT_SECRET, REGION, Setup, TENANT, millis};

/// Tells one process from the next: what was meant for a dead one reaches nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pid(pub u64);

type Step = Pin<Box<dyn Future<Output = (Reconciler, Duration)>>>;
type Drain = Pin<Box<dyn Future<Output = Result<(), CallError>>>>;

enum Reconciling {
    Step(Step),
    Pause {
        reconciler: Box<Reconciler>,
        until_millis: u64,
    },
    /// Taken out for a moment.
    Busy,
}

pub struct Agent {
    pub pid: Pid,
    pub id: AgentId,
    pub disk: PathBuf,
    pub shared: Arc<Shared>,
    pub aws: Aws,
    pub clock: Arc<ManualClock>,
    pub timers: Timers,
    pub wire: Wire,
    pub desk: Desk,
    pub session: Option<AgentSession>,
    pub redial: Redial,
    pub dial_at_millis: u64,
    pub dialled_at_millis: u64,
    pub ask_again_millis: Option<u64>,
    /// Orders that wait for the first look at the account.
    pub waiting: Vec<(SetEntry, Envelope)>,
    pub standing: watch::Receiver<Standing>,
    pub ledger_changed: watch::Receiver<u64>,
    /// News for the session.
    pub answers: watch::Receiver<BTreeMap<GroupName, Vec<Answer>>>,
    reconciling: Reconciling,
    drains: Vec<(InstanceId, Drain)>,
}

impl Agent {
    /// As `account::run` does it. An error ends the process before it has done anything.
    pub fn start(
        pid: Pid,
        store: &Path,
        disk: &Path,
        now_millis: u64,
        unix_millis: u64,
        setup: Setup,
        seed: u64,
    ) -> Result<Agent, LedgerError> {
        std::fs::create_dir_all(disk).expect("a folder of the simulation");
        let config = config(store, disk, setup);
        let clock = ManualClock::new(0);
        clock.set_unix_millis(unix_millis);
        let ledger = Ledger::open(&AccountStore::folder(store))?;
        let shared = Arc::new(Shared::new(config, ledger, Clock::Manual(clock.clone())));
        let _ = shared.refresh_guardrails();
        let (timers, wire) = (Timers::at(now_millis), Wire::default());
        let aws = connect(&shared.config.aws, &clock, &timers, &wire);
        let answers = shared.answers.subscribe();
        let standing = shared.standing.subscribe();
        let ledger_changed = shared.ledger_changed.subscribe();
        let jitter = StdRng::seed_from_u64(seed);
        let reconciler = Box::new(Reconciler::new(shared.clone(), aws.clone(), jitter));
        Ok(Agent {
            pid,
            id: AgentId::try_from(format!("agent-{}", pid.0)).expect("a valid id"),
            disk: disk.to_owned(),
            desk: Desk::new(shared.clone()),
            shared,
            aws,
            clock,
            timers,
            wire,
            session: None,
            redial: Redial::default(),
            dial_at_millis: now_millis,
            dialled_at_millis: now_millis,
            ask_again_millis: None,
            waiting: Vec::new(),
            standing,
            ledger_changed,
            answers,
            reconciling: Reconciling::Pause { reconciler, until_millis: now_millis },
            drains: Vec::new(),
        })
    }

    /// Polls what is under way. True if anything moved.
    pub fn poll(&mut self, now_millis: u64) -> bool {
        let mut moved = self.poll_reconciler(now_millis);
        self.drains.retain_mut(|(_, drain)| {
            let pending = poll_once(drain.as_mut()).is_none();
            moved |= !pending;
            pending
        });
        moved
    }

    fn poll_reconciler(&mut self, now_millis: u64) -> bool {
        match std::mem::replace(&mut self.reconciling, Reconciling::Busy) {
            Reconciling::Pause { mut reconciler, until_millis } if now_millis >= until_millis => {
                let future: Step = Box::pin(async move {
                    let pause = reconciler.step().await;
                    (*reconciler, pause)
                });
                self.reconciling = Reconciling::Step(future);
                true
            }
            Reconciling::Pause { reconciler, mut until_millis } => {
                // As in `Reconciler::run`: what happened shortens the pause.
                let notified = std::pin::pin!(self.shared.look.notified());
                if poll_once(notified).is_some() {
                    until_millis = until_millis.min(now_millis + millis(LOOK_MIN));
                }
                self.reconciling = Reconciling::Pause { reconciler, until_millis };
                false
            }
            Reconciling::Step(mut future) => match poll_once(future.as_mut()) {
                Some((reconciler, pause)) => {
                    let until_millis = now_millis + millis(pause);
                    let reconciler = Box::new(reconciler);
                    self.reconciling = Reconciling::Pause { reconciler, until_millis };
                    true
                }
                None => {
                    self.reconciling = Reconciling::Step(future);
                    false
                }
            },
            Reconciling::Busy => unreachable!("it is always put back"),
        }
    }

    pub fn is_reconciling(&self) -> bool {
        match &self.reconciling {
            Reconciling::Step(_) => true,
            Reconciling::Pause { .. } | Reconciling::Busy => false,
        }
    }

    /// As the node link does when a node says that it has drained.
    pub fn complete_drain(&mut self, instance: InstanceId, asg_name: String) {
        if self.drains.iter().all(|(draining, _)| *draining != instance) {
            let aws = self.aws.clone();
            let drained = instance.clone();
            let drain = Box::pin(async move { aws.complete_drain(&asg_name, &drained).await });
            self.drains.push((instance, drain));
        }
    }

    /// The next moment at which something happens here by itself.
    pub fn next_millis(&self, now_millis: u64) -> u64 {
        let mut next = u64::MAX;
        if let Reconciling::Pause { until_millis, .. } = &self.reconciling {
            next = next.min(*until_millis);
        }
        if let Some(deadline) = self.timers.next_deadline() {
            next = next.min(deadline);
        }
        match &self.session {
            Some(session) => {
                next = next.min(self.millis_of(session.next_timeout(), now_millis));
                next = next.min(self.ask_again_millis.unwrap_or(u64::MAX));
            }
            None => next = next.min(self.dial_at_millis),
        }
        next.max(now_millis + 1)
    }

    pub fn millis_of(&self, at: Instant, now_millis: u64) -> u64 {
        now_millis + millis(at.saturating_duration_since(self.clock.now()))
    }
}

/// `Some` when it is done. Nobody is woken: the world polls again after everything that happens.
pub fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

fn connect(aws: &AwsConfig, clock: &Arc<ManualClock>, timers: &Timers, wire: &Wire) -> Aws {
    let credentials =
        Credentials::new(AGENT_KEY, AGENT_SECRET, Some("sim".to_owned()), None, "simulation");
    let config = aws_config::SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url("http://aws.sim")
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .http_client(wire.clone())
        .sleep_impl(timers.clone())
        .time_source(TimeOfDay(clock.clone()))
        .timeout_config(Aws::timeouts())
        .build();
    let pacer = Pacer::new(aws.requests_per_second(), Clock::Manual(clock.clone()));
    Aws::with(&config, None, pacer)
}

fn config(store: &Path, disk: &Path, setup: Setup) -> Config {
    let Setup { reconcile_secs, scale_only, requests_per_second, .. } = setup;
    let rate =
        requests_per_second.map_or(String::new(), |rate| format!("requests_per_second = {rate}"));
    let profile = if scale_only { "scale-only" } else { "manage" };
    let quoted = |path: &Path| toml::Value::String(path.display().to_string());
    toml::from_str(&format!(
        r#"tenant = "{TENANT}"
profile = "{profile}"
account = "{ACCOUNT}"
region = "{REGION}"
store = {store}
state = {disk}
reconcile_secs = {reconcile_secs}
[aws]
{rate}
[broker]
address = "127.0.0.1:1"
server_name = "broker"
root = "root.pem"
[nodes]
listen = "127.0.0.1:1"
[callers]
listen = "127.0.0.1:1"
token_file = "token"
"#,
        store = quoted(store),
        disk = quoted(disk),
    ))
    .expect("a valid configuration")
}
