//! The benchmark: ours and its peers on the same core in the same run, window by window in turn, so
//! that what the machine does meanwhile is done to all of them. Verdicts are printed, never enforced.

mod batch;
mod chaos;
mod figures;
mod neighbours;
mod peers;
mod picture;
mod report;
mod speed;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::machine;
use report::Report;

/// Scenarios in the order in which they run.
type Scenario = (&'static str, fn(&Bench, &mut Report) -> Result<()>);
const SCENARIOS: [Scenario; 10] = [
    ("closed", speed::closed),
    ("half", speed::half),
    ("open", speed::open),
    ("overload", speed::overload),
    ("uds", speed::unix_socket),
    ("onems", batch::one_millisecond),
    ("batch", batch::hundred_rows),
    ("noisy", neighbours::noisy),
    ("restart", chaos::restart),
    ("chaos", chaos::chaos),
];

/// What is to be run, and where its parts are
#[derive(clap::Args, Debug)]
pub struct Options {
    /// closed, half, open, overload, uds, onems, batch, noisy, restart, chaos; all without any
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// Short windows: to see whether it works, or where a change goes
    #[arg(long)]
    quick: bool,
    /// The repo
    #[arg(long, value_name = "DIR", default_value = ".")]
    root: PathBuf,
    /// outstation-transform-server; beside this program by default
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// Python with `outstation`, pandas and protobuf; the repo's .venv by default
    #[arg(long, value_name = "PATH", env = "OUTSTATION_TEST_PYTHON")]
    python: Option<PathBuf>,
    /// More options for our server, in one string
    #[arg(long, value_name = "OPTIONS", default_value = "", allow_hyphen_values = true)]
    server_options: String,
    /// Workers of our server on its one core
    #[arg(long, default_value_t = 1)]
    workers: usize,
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    #[arg(long, default_value_t = 1)]
    load_core: usize,
}

/// What every scenario needs to know.
struct Bench {
    quick: bool,
    root: PathBuf,
    /// Logs, environments of the peers, results.
    folder: PathBuf,
    server: PathBuf,
    python: PathBuf,
    server_options: Vec<String>,
    workers: usize,
    server_core: usize,
    load_core: usize,
}

impl Bench {
    fn new(options: &Options) -> Result<Self> {
        let root = options.root.canonicalize().context("the repo's folder")?;
        let own = std::env::current_exe().context("where this program is")?;
        let beside = own.parent().unwrap_or(Path::new("")).to_owned();
        let server = options.server.clone().unwrap_or(beside.join("outstation-transform-server"));
        if !server.is_file() {
            bail!(
                "{} is not there: cargo bench -p outstation-integration --bench transform makes it",
                server.display()
            );
        }
        let python = options.python.clone().unwrap_or(root.join(".venv/bin/python"));
        if !python.is_file() {
            bail!("{} is not there; `cargo dev -- --once` makes it", python.display());
        }
        let folder = beside.parent().unwrap_or(&beside).join("bench");
        std::fs::create_dir_all(folder.join("logs")).context("make the folder for results")?;
        Ok(Self {
            quick: options.quick,
            root,
            folder,
            server,
            python,
            server_options: options.server_options.split_whitespace().map(str::to_owned).collect(),
            workers: options.workers,
            server_core: options.server_core,
            load_core: options.load_core,
        })
    }

    /// By the length of the run.
    fn pick<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    fn secs(&self, quick: f64, full: f64) -> Duration {
        Duration::from_secs_f64(self.pick(quick, full))
    }
}

pub fn run(options: &Options) -> Result<()> {
    for name in &options.scenarios {
        if SCENARIOS.iter().all(|(known, _)| known != name) {
            let known: Vec<&str> = SCENARIOS.iter().map(|(name, _)| *name).collect();
            bail!("no scenario {name}; there are {}", known.join(", "));
        }
    }
    let bench = Bench::new(options)?;
    machine::pin(&[bench.load_core])?;
    let mut report = Report::new(&bench);
    let began = Instant::now();
    for (name, scenario) in SCENARIOS {
        if !options.scenarios.is_empty() && options.scenarios.iter().all(|wanted| wanted != name) {
            continue;
        }
        eprintln!("[{:4.0} s] {name} …", began.elapsed().as_secs_f64());
        report.begin(name);
        if let Err(error) = scenario(&bench, &mut report) {
            report.note(format!("BROKE OFF: {error:#}"));
        }
        // A scenario may have let the load run elsewhere.
        machine::pin(&[bench.load_core])?;
    }
    report.finish(&bench.folder, began.elapsed())
}
