//! User code and the instance's role: functions run as a user whom the instance's firewall keeps from
//! instance metadata (`ami/image/outstation-metadata.nft`), and no server starts before that was tried.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nix::unistd::User;

/// Where metadata is reached over IPv6, if the instance has it.
const OVER_IPV6: &str = "[fd00:ec2::254]:80";
/// It is on the same machine.
const REACH_MAX: Duration = Duration::from_secs(1);

/// Whoever functions run as, and what that user must not reach.
#[derive(Debug, Clone)]
pub struct MetadataGuard {
    user: User,
    addresses: Vec<String>,
    shown: Arc<AtomicBool>,
}

impl MetadataGuard {
    /// `imds` is the URL at which this agent asks.
    pub fn new(user: &str, imds: &str) -> Result<MetadataGuard> {
        let found = User::from_name(user).context("look for the workers' user")?;
        let user = found.with_context(|| format!("there is no user {user} on this machine"))?;
        let host = imds.trim_start_matches("http://").trim_end_matches('/');
        let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        Ok(MetadataGuard {
            user,
            addresses: vec![host, OVER_IPV6.to_owned()],
            shown: Arc::default(),
        })
    }

    pub fn user(&self) -> &str {
        &self.user.name
    }

    /// Tries it as that user, once in the life of this agent.
    pub fn check(&self) -> Result<()> {
        if self.shown.load(Ordering::Relaxed) {
            return Ok(());
        }
        let program = std::env::current_exe().context("find this program")?;
        let output = Command::new(program)
            .arg("can-reach")
            .args(&self.addresses)
            .env_clear()
            .current_dir("/")
            .uid(self.user.uid.as_raw())
            .gid(self.user.gid.as_raw())
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("try instance metadata as user {}", self.user.name))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        match said.trim() {
            "none" if output.status.success() => {
                self.shown.store(true, Ordering::Relaxed);
                Ok(())
            }
            "" => bail!("nobody knows whether user {} reaches instance metadata", self.user.name),
            reached => bail!(
                "functions could read this instance's credentials: user {} reaches instance metadata \
                 at {reached}; load outstation-metadata.nft",
                self.user.name
            ),
        }
    }
}

#[derive(Debug, Args)]
pub struct ReachArgs {
    addresses: Vec<String>,
}

/// `outstation-agent can-reach`: prints the first address that takes a connection, or `none`.
pub fn reach(args: &ReachArgs) {
    let takes = |address: &&String| {
        let found: Vec<SocketAddr> = address.to_socket_addrs().into_iter().flatten().collect();
        found.iter().any(|found| TcpStream::connect_timeout(found, REACH_MAX).is_ok())
    };
    println!("{}", args.addresses.iter().find(takes).map_or("none", String::as_str));
}
