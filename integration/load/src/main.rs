//! `outstation-load`: load on a server by hand, and the echo to compare it with.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};
use outstation_load::client::{Address, OK, Prepared};
use outstation_load::drive::{Aim, Load, Open, Pace, run_one};
use outstation_load::{bench, echo, machine, tally::Tally};

/// Puts load on a transform server, and tells how it bears it
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    load: LoadArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Serves an echo on tonic: the limit of any server that is built on it
    Echo {
        /// ADDRESS:PORT, or the path of a Unix socket
        #[arg(long, value_name = "WHERE")]
        listen: Address,
        /// Threads that serve
        #[arg(long, default_value_t = 1)]
        threads: usize,
    },
    /// Runs the benchmark's scenarios and prints what they show
    Bench(bench::Options),
}

#[derive(Args)]
struct LoadArgs {
    /// ADDRESS:PORT, or the path of a Unix socket
    #[arg(long, value_name = "WHERE", default_value = "127.0.0.1:7400")]
    to: Address,
    /// View or service to call
    #[arg(long, default_value = "small")]
    target: String,
    /// Rows of a request
    #[arg(long, default_value_t = 1)]
    rows: usize,
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Closed loop: requests always in flight
    #[arg(long, default_value_t = 32, conflicts_with = "rate")]
    in_flight: usize,
    /// Open loop: arrivals a second
    #[arg(long)]
    rate: Option<f64>,
    /// Open loop: an arrival that finds so many outstanding is not sent
    #[arg(long, default_value_t = 4096)]
    outstanding: usize,
    /// Deadline of each request
    #[arg(long)]
    timeout_ms: Option<u64>,
    #[arg(long, default_value_t = 5.0)]
    secs: f64,
    #[arg(long, default_value_t = 1.0)]
    warm_secs: f64,
    #[arg(long, default_value_t = 1)]
    windows: usize,
    /// The server's process, to count its CPU
    #[arg(long)]
    pid: Option<u32>,
    /// Core to run on
    #[arg(long, default_value_t = 1)]
    core: usize,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Echo { listen, threads }) => {
            let mut builder = match threads {
                1 => tokio::runtime::Builder::new_current_thread(),
                _ => tokio::runtime::Builder::new_multi_thread(),
            };
            let runtime = builder.worker_threads(threads).enable_all().build()?;
            runtime.block_on(echo::serve(&listen))
        }
        Some(Command::Bench(options)) => bench::run(&options),
        None => load(&cli.load),
    }
}

fn load(args: &LoadArgs) -> Result<()> {
    ensure!(args.secs > 0.0 && args.warm_secs >= 0.0, "a window has a length");
    machine::pin(&[args.core])?;
    let deadline = args.timeout_ms.map(Duration::from_millis);
    let request = Prepared::call(&args.target, args.rows, deadline)?;
    let aim = Aim { address: args.to.clone(), connections: args.connections, server: args.pid };
    for window in 0..args.windows {
        let load = match args.rate {
            None => Load::Closed { in_flight: args.in_flight },
            Some(rate) => Load::Open(Open {
                rate,
                outstanding_max: args.outstanding,
                seed: window as u64,
                pace: Pace::Awake,
                throttled: false,
            }),
        };
        let warm = Duration::from_secs_f64(args.warm_secs);
        let tally = run_one(&aim, &request, load, warm, Duration::from_secs_f64(args.secs))?;
        print(&tally);
    }
    Ok(())
}

fn print(tally: &Tally) {
    let [p50, p90, p99, p999] = [0.5, 0.9, 0.99, 0.999].map(|quantile| tally.millis(quantile));
    print!("{:9.0}/s  p50 {p50:.3}  p90 {p90:.3}  p99 {p99:.3}  p99.9 {p999:.3} ms", tally.rate());
    if !tally.server_cpu.is_zero() {
        let share = tally.server_cpu.as_secs_f64() / tally.window.as_secs_f64();
        print!("  server {:.1} µs a request, {share:.2} cores", tally.cpu_micros());
    }
    print!("  load {:.2} cores", tally.own_share());
    for (status, count) in tally.statuses.iter().filter(|(status, _)| **status != OK) {
        print!("  status {status}: {count}");
    }
    if tally.unsent + tally.unanswered > 0 {
        print!("  unsent {}  unanswered {}", tally.unsent, tally.unanswered);
    }
    println!();
}
