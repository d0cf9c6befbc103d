//! The broker: takes orders from the CLI, keeps them, and hands each data plane's newest to the
//! account agent that dialled in. It holds no credential for any account.

pub mod admin;
pub mod ca;
pub mod clock;
pub mod config;
pub mod control;
pub mod enroll;
pub mod files;
pub mod frames;
pub mod identity;
pub mod link;
pub mod resets;
pub mod served;
pub mod store;

#[cfg(test)]
mod testing;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outstation_protocol::session::BrokerConfig;
use outstation_sts::{Limits, StsVerifier};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin::{Admin, AdminService};
use crate::ca::{Ca, CaError};
use crate::config::{Config, ConfigError};
use crate::link::{Link, Shared};
use crate::served::Served;
use crate::store::{Store, StoreError};

/// How far off the time may be since when agents are seen as gone, after a broker was killed. Each
/// is one fsync.
const ALIVE_EVERY: Duration = Duration::from_secs(15);
/// From the signal to the end, goodbyes included.
const STOP_MAX: Duration = Duration::from_secs(5);

/// A broker that has opened everything it needs, and listens.
pub struct Broker {
    link: Link,
    admin: Admin,
    store: Store,
    stopping: CancellationToken,
}

/// Why a broker does not start, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot use the state directory {path}")]
    State { path: std::path::PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Link(#[from] link::BindError),
    #[error(transparent)]
    Admin(#[from] admin::BindError),
    #[error(transparent)]
    Run(#[from] admin::RunError),
    #[error("a listener stopped by itself")]
    Stopped,
}

impl BrokerError {
    /// What a person can do about it.
    pub fn hint(&self) -> String {
        let port = |source: &io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => {
                "stop the process that uses this port, or change `listen` in the configuration"
            }
            _ => "check that `listen` is an address of this machine",
        };
        match self {
            BrokerError::Config(error) => error.hint(),
            BrokerError::State { source, .. } => match source.kind() {
                io::ErrorKind::ReadOnlyFilesystem => {
                    "the disk is mounted read-only: mount it writable, or change `state`".into()
                }
                _ => "check `state` and the owner of its directory".into(),
            },
            BrokerError::Store(error) => error.hint(),
            BrokerError::Ca(error) => error.hint(),
            BrokerError::Link(link::BindError::Listen { source, .. }) => port(source).into(),
            BrokerError::Admin(admin::BindError::Listen { source, .. }) => port(source).into(),
            BrokerError::Admin(admin::BindError::Token(error)) => error.hint(),
            BrokerError::Link(link::BindError::Tls(_) | link::BindError::Verifier(_))
            | BrokerError::Run(_)
            | BrokerError::Stopped => "report this, with the log above".into(),
        }
    }
}

impl Broker {
    /// Opens the state and both listeners. The root certificate is on disk before they listen.
    pub async fn build(config: Config) -> Result<Broker, BrokerError> {
        config.check()?;
        let Config { state, tenant, link, admin, data_planes, sts } = config;
        let verifier = StsVerifier::new(sts.endpoint()?, Limits::CONTROL_LINK);
        files::ensure_private_dir(&state)
            .map_err(|source| BrokerError::State { path: state.clone(), source })?;
        // First of all, as it is what keeps a second broker out of this directory.
        let store = Store::open(&state.join("broker.db"), clock::unix_secs())?;
        let ca = Ca::open(&state, tenant.clone(), clock::utc())?;
        let server = ca.server(clock::utc())?;

        let stopping = CancellationToken::new();
        let served = Served::new(data_planes, store.clone());
        let service =
            AdminService::new(tenant.clone(), served.clone(), store.clone(), stopping.clone());
        let admin = Admin::bind(admin.listen, &admin.token_file, &server, service).await?;
        let shared = Shared {
            tenant,
            served,
            verifier,
            store: store.clone(),
            ca,
            session: BrokerConfig::default(),
            sessions: Arc::default(),
            stopping: stopping.clone(),
        };
        let link = Link::bind(link.listen, &server, Arc::new(shared))?;
        Ok(Broker { link, admin, store, stopping })
    }

    /// Where agents dial, and where the admin API is; of interest when a port was 0.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.link.local_addr()?, self.admin.local_addr()?))
    }

    /// Serves until `shutdown`, then tells every agent and ends within five seconds.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), BrokerError> {
        let Broker { link, admin, store, stopping } = self;
        tokio::spawn(stopping.clone().run_until_cancelled_owned(stay_alive(store)));
        let mut link = tokio::spawn(link.run());
        let mut admin = tokio::spawn(admin.run(stopping.clone()));
        let failed = tokio::select! {
            () = shutdown => None,
            _ = &mut link => Some(BrokerError::Stopped),
            ended = &mut admin => Some(match ended {
                Ok(Err(error)) => error.into(),
                Ok(Ok(())) | Err(_) => BrokerError::Stopped,
            }),
        };
        if let Some(error) = failed {
            stopping.cancel();
            return Err(error);
        }
        info!("stopping");
        stopping.cancel();
        let both = async { tokio::join!(&mut link, &mut admin) };
        if tokio::time::timeout(STOP_MAX, both).await.is_err() {
            link.abort();
            admin.abort();
            warn!("not everything ended within {STOP_MAX:?}");
        }
        Ok(())
    }
}

/// Writes now and then that this broker runs.
async fn stay_alive(store: Store) {
    loop {
        if let Err(error) = store.alive(clock::unix_secs()).await {
            warn!(error = chain(&error), "cannot write that this broker runs");
        }
        tokio::time::sleep(ALIVE_EVERY).await;
    }
}

/// A peer's text, cut to what a log line or a table has room for.
pub fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
