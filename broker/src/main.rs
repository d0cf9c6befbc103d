//! `outstation-broker --config broker.toml`

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use outstation_broker::config::Config;
use outstation_broker::{Broker, BrokerError, chain};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

/// Keeps the orders of server groups and hands them to the account agents that dial in.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The configuration file (TOML).
    #[arg(long)]
    config: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(&error).replace('\n', " "));
            eprintln!("hint: {}", error.hint());
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), BrokerError> {
    // Before it says that it listens: whoever reads that may send a signal at once.
    let shutdown = shutdown();
    let broker = Broker::build(Config::load(&args.config)?).await?;
    if let Ok((link, admin)) = broker.addresses() {
        info!(%link, %admin, "listening");
    }
    broker.run(shutdown).await
}

/// SIGTERM or SIGINT, from this call on.
fn shutdown() -> impl Future<Output = ()> {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async move {
        let (Ok(mut term), Ok(mut int)) = signals else {
            // Without handlers the signals end the process by themselves.
            return std::future::pending().await;
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    }
}
