//! The command `outstation`: reads declarations, plans, applies, shows, calls; and `dev`, which
//! runs the whole system on one machine. [`dev::DevSystem`] is that system for tests.

pub mod admin;
pub mod apply;
pub mod args;
pub mod artifacts;
pub mod call;
pub mod caller;
mod clean_env;
mod clock;
pub mod context;
mod dataplane;
pub mod declarations;
pub mod dev;
mod environments;
pub mod events;
pub mod follow;
pub mod key;
pub mod link;
pub mod manifest;
pub mod message;
pub mod orders;
pub mod plan;
pub mod progress;
pub mod show;
pub mod signing;
pub mod ssh_agent;
pub mod supervise;
pub mod values;
mod verbs;
pub mod view;

use std::process::ExitCode;

use anyhow::Context as _;

/// Runs one verb. `supervise` replaces this process, so it comes before any runtime.
pub fn run(args: args::Args) -> anyhow::Result<ExitCode> {
    if let args::Verb::Supervise(verb) = args.verb {
        return Err(supervise::exec(&verb));
    }
    // Libraries' own info lines are not for the person at the terminal.
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(verbs::run(args))
}
