//! `outstation-agent account` governs one data plane; `outstation-agent node` runs on an instance.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use outstation_agent::account::adopt::{self, AdoptArgs};
use outstation_agent::account::journal::{self, command::JournalCommand};
use outstation_agent::account::{self, config::Config, dry_run, show};
use outstation_agent::hint::Hinted;
use outstation_agent::iam::{self, IamPolicyArgs};
use outstation_agent::node::fetch::{self, FetchArgs};
use outstation_agent::node::metadata::{self, ReachArgs};
use outstation_agent::node::{self, NodeArgs};
use outstation_agent::store::StoreError;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(name = "outstation-agent", version, about)]
struct Args {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Reconcile the server groups of one AWS account and region, and serve its nodes.
    Account {
        #[arg(long)]
        config: PathBuf,
    },
    /// What the account agent on this host sees, without the broker. Exit code 1: it is dead or hangs.
    Status {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        #[arg(long)]
        json: bool,
    },
    /// Decide who is right when the account and its ledger contradict each other. Exit code 2:
    /// something is left to decide.
    Adopt(AdoptArgs),
    /// What the account agent was told and what it did, for auditors.
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Print the IAM policy of the agent's role for one account.
    IamPolicy(IamPolicyArgs),
    /// What the account agent would do now, by its ledger, the guardrails and the account as they are;
    /// nothing is done. Exit code 2: it would do something.
    Plan(dry_run::PlanArgs),
    /// Bring an environment to this machine before it is an instance, when its image is made.
    FetchEnvironment(FetchArgs),
    /// Say which of these addresses takes a connection.
    #[command(hide = true)]
    CanReach(ReachArgs),
    /// Run on an instance: fetch what its tags name, and supervise its server.
    Node(NodeArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(args.role) {
        Ok(code) => code,
        Err(error) => {
            let lines = format!("{error:#}");
            let lines: Vec<&str> = lines.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
            eprintln!("error: {}", lines.join(" "));
            match error.downcast_ref::<Hinted>() {
                Some(hinted) => eprintln!("hint: {}", hinted.hint),
                None => eprintln!("hint: {}", hint(&error)),
            }
            ExitCode::FAILURE
        }
    }
}

fn run(role: Role) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        cancel_on_signal(shutdown.clone()).context("listen for signals")?;
        match role {
            Role::Account { config } => {
                let config = Config::load(&config)?;
                raise_descriptor_limit();
                account::run(config, shutdown).await?;
                Ok(ExitCode::SUCCESS)
            }
            Role::Status { config, json } => show::run(&Config::load(&config)?, json),
            Role::Journal(command) => journal::command::run(&command),
            Role::Adopt(args) => tokio::select! {
                () = shutdown.cancelled() => bail!("interrupted; what was decided before stands"),
                ended = adopt::run(args) => ended,
            },
            Role::IamPolicy(args) => {
                iam::run(args)?;
                Ok(ExitCode::SUCCESS)
            }
            Role::Plan(args) => tokio::select! {
                () = shutdown.cancelled() => bail!("interrupted; nothing was done"),
                ended = dry_run::run(args) => ended,
            },
            Role::FetchEnvironment(args) => {
                fetch::run(args)?;
                Ok(ExitCode::SUCCESS)
            }
            Role::CanReach(args) => {
                metadata::reach(&args);
                Ok(ExitCode::SUCCESS)
            }
            Role::Node(args) => {
                node::run(args, shutdown).await?;
                Ok(ExitCode::SUCCESS)
            }
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ended
}

/// Usual is 1,024, which is less than callers may be connected; the hard limit is the machine's.
fn raise_descriptor_limit() {
    const WANTED: u64 = 16 * 1024;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, soft.max(WANTED.min(hard)), hard)
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open descriptors stays as it is");
    }
}

fn cancel_on_signal(shutdown: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    });
    Ok(())
}

/// What to do about the commonest ends. What the machine refused comes first: a full disk is no
/// damaged file.
fn hint(error: &anyhow::Error) -> &'static str {
    let text = format!("{error:#}").to_lowercase();
    let refused = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    match refused.map(io::Error::kind) {
        Some(io::ErrorKind::AddrInUse) => {
            return "another process listens there: stop it, or change the address in the \
                    configuration";
        }
        Some(io::ErrorKind::AddrNotAvailable) => {
            return "the address is not one of this machine: correct `listen` in the configuration";
        }
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            return "make room on the disk that holds it; what was written before is as it was";
        }
        Some(io::ErrorKind::ReadOnlyFilesystem) => {
            return "mount the disk that holds it writable, or name another place in the \
                    configuration";
        }
        Some(io::ErrorKind::PermissionDenied) => {
            return "run the agent as the user that owns its folders";
        }
        Some(
            io::ErrorKind::IsADirectory
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::AlreadyExists,
        ) => {
            return "a file stands where there must be a folder, or a folder where there must be a \
                    file: move it away, or change the configuration";
        }
        Some(_) | None => {}
    }
    match error.chain().find_map(|cause| cause.downcast_ref::<StoreError>()) {
        Some(StoreError::Denied { .. }) => {
            return "attach to the role what `outstation-agent iam-policy --profile store` prints, and look at the \
                    bucket's own policy";
        }
        Some(StoreError::Unreachable { .. }) => {
            return "check the way to S3 (a gateway endpoint of the VPC, AWS_ENDPOINT_URL_S3), and start again";
        }
        Some(
            StoreError::NoBucket { .. }
            | StoreError::OtherRegion { .. }
            | StoreError::Refused { .. }
            | StoreError::Client { .. },
        ) => return "correct store or region in the configuration, or the bucket that it names",
        Some(
            StoreError::Disk { .. }
            | StoreError::Exists
            | StoreError::Moved
            | StoreError::TooLarge { .. }
            | StoreError::TooMany { .. },
        )
        | None => {}
    }
    if text.contains("another account agent runs") {
        "one is enough: stop it first, or give this one a state folder of its own"
    } else if text.contains("read the configuration") {
        "name an existing file with --config: a text in TOML"
    } else if text.contains("configuration") {
        "compare the file with the one that `outstation dev` writes: config/account-agent.toml \
         below its state folder"
    } else if text.contains("sts endpoint") {
        "correct aws.endpoint in the configuration, or leave it out for the region's own"
    } else if text.contains("belong to account") {
        "use credentials of the configured account, or correct account in the configuration"
    } else if text.contains("holds no token") {
        "remove the file: the next start makes a good one"
    } else if text.contains("ledger") || text.contains("the account's ca") {
        "nothing was changed; restore the named file of the account store from a version before"
    } else {
        "RUST_LOG=debug shows more"
    }
}
