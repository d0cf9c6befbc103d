//! `aws-sim`: see the library's documentation.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use outstation_aws_sim::config::Config;
use outstation_aws_sim::{launcher, print_error, serve};

/// A simulated AWS on this machine: AutoScaling, STS, and instances that are processes with their own IMDS.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or Ctrl-C.
    Serve {
        #[arg(long)]
        config: PathBuf,
    },
    /// The process of one instance; started by `serve`.
    #[command(hide = true)]
    Launcher {
        /// Only for people who read the process list.
        #[arg(long)]
        instance: Option<String>,
        #[arg(long)]
        probe: bool,
    },
    /// The first process inside an instance; started by `launcher`.
    #[command(hide = true)]
    LauncherInit {
        #[arg(long)]
        probe: bool,
    },
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Serve { config } => start(config).map(|()| 0),
        Command::Launcher { probe, .. } => launcher::run(probe),
        Command::LauncherInit { probe } => launcher::init::run(probe),
    };
    match result {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn start(config: PathBuf) -> anyhow::Result<()> {
    outstation_aws_sim::init_tracing();
    let config = Config::load(&config)?;
    // Two threads: one model behind one lock, and many small waits.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve::run(config))
}
