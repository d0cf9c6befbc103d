//! The verb `dev`: start the system, apply, call, show; then stay up until told to end.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use outstation_protocol::model::GroupKind;

use super::departures::Departures;
use super::layout::Layout;
use super::load::Load;
use super::report::Report;
use super::system::{DevOptions, DevSystem, check_unlocked, log_tails};
use crate::apply::{self, ApplyOptions, Outcome};
use crate::args;
use crate::artifacts::Repo;
use crate::call::since;
use crate::clock;
use crate::manifest::Manifest;
use crate::message::{Failure, Hint as _};
use crate::progress;
use crate::values::row_to_json;

/// First nodes on a cold, loaded machine; ten seconds are usual, one is possible.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const LOG_LINES: usize = 20;

pub async fn run(verb: args::Dev) -> anyhow::Result<ExitCode> {
    let mut ended = Ended::new()?;
    let started = clock::now();
    let bin_dir = std::env::current_exe().context("find this program")?;
    let bin_dir = bin_dir.parent().context("find this program's folder")?.to_owned();
    let options = DevOptions::new(bin_dir, &verb.state, find_python(verb.python.clone())?);
    let layout = Layout::new(&verb.state)?;
    check_unlocked(&layout)?;

    let (system, run) = tokio::select! {
        // Dropping what has been started so far ends it.
        () = ended.wait() => return Ok(interrupted()),
        begun = begin(&verb, options, &layout) => begun?,
    };
    let extra = extra_context(&layout);
    if let Some(extra) = &extra {
        system.context().write(extra)?;
    }
    let outcome = tokio::select! {
        () = ended.wait() => Ok(None),
        outcome = use_it(&verb, &system, &run, started) => outcome.map(Some),
    };
    let code = match &outcome {
        Ok(Some(report)) if verb.once => {
            let complaints = match run.departures {
                Some(_) => report.complaints(),
                None => Vec::new(),
            };
            for complaint in &complaints {
                eprintln!("failed: {complaint}");
            }
            if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Ok(Some(_)) => {
            what_next(&verb, &system, &run);
            stay(&mut ended, &system).await
        }
        Ok(None) => interrupted(),
        Err(_) => ExitCode::FAILURE,
    };
    if code != ExitCode::SUCCESS && !matches!(outcome, Ok(None)) {
        eprint!("{}", log_tails(&layout, LOG_LINES));
        eprintln!("the logs are in {}", layout.logs().display());
    }
    let spinner = progress::spinner("shutting down");
    let shutdown = system.shutdown().await;
    drop(spinner);
    if let Some(extra) = &extra {
        // Nothing answers there any more; a second `dev` may have put its own in place by now.
        let ours = std::fs::read(extra).ok() == std::fs::read(layout.context()).ok();
        if ours {
            let _ = std::fs::remove_file(extra);
        }
    }
    outcome?;
    shutdown?;
    Ok(code)
}

/// What is known of the declarations and the data when the system is up.
struct Run {
    repo: Repo,
    /// Not every folder of declarations comes with data to call with.
    departures: Option<Departures>,
}

async fn begin(
    verb: &args::Dev,
    options: DevOptions,
    layout: &Layout,
) -> anyhow::Result<(DevSystem, Run)> {
    let spinner = progress::spinner("starting the simulated AWS, broker and account agent");
    let python = options.python.clone();
    let store = layout.store();
    let cache = layout.state.join("cache");
    let prepare = async {
        let repo = Repo::load(&python, &verb.dir).await?;
        repo.write(&store).await?;
        anyhow::Ok(repo)
    };
    let start = async {
        let started = DevSystem::start(options).await;
        if started.is_err() {
            eprint!("{}", log_tails(layout, LOG_LINES));
        }
        started
    };
    let (system, repo, departures) =
        tokio::try_join!(start, prepare, Departures::load(&python, &verb.dir, &cache))?;
    drop(spinner);
    Ok((system, Run { repo, departures }))
}

async fn use_it(
    verb: &args::Dev,
    system: &DevSystem,
    run: &Run,
    started: Instant,
) -> anyhow::Result<Report> {
    eprintln!("The system is up after {}.", since(started));
    let options = ApplyOptions {
        yes: false,
        confirm_destroy: None,
        follow: Some(READY_TIMEOUT),
        interactive: false,
        out: None,
    };
    let mut out = std::io::stderr();
    match apply::apply_repo(system.context(), &run.repo, &options, &mut out).await? {
        Outcome::Followed(followed) => {
            if let Some(failure) = apply::not_converged(&followed) {
                return Err(failure.into());
            }
        }
        Outcome::NothingToDo | Outcome::Declined | Outcome::Put(_) | Outcome::Written(_) => {}
    }
    for group in run.repo.manifest.groups.iter().filter(|group| group.kind == GroupKind::Transform)
    {
        let wanted = group.scaling.nodes_min();
        let spinner =
            progress::spinner(format!("waiting for {wanted} ready nodes of {}", group.name));
        system
            .wait_group(&group.name, READY_TIMEOUT, |view| {
                view.status.as_ref().is_some_and(|status| {
                    status.desired_nodes >= wanted && status.ready_nodes == status.desired_nodes
                })
            })
            .await?;
        drop(spinner);
        eprintln!("{}: {wanted} nodes ready after {}.", group.name, since(started));
    }
    let Some(departures) = &run.departures else {
        eprintln!("No calls are made: {} has no departures.py.", verb.dir.display());
        return Ok(Report::default());
    };
    let report = drive(verb, system, &run.repo.manifest, departures, started).await?;
    if verb.json {
        crate::message::print(format_args!("{}\n", report.json()));
    } else {
        crate::message::print(format_args!("{}", report.text()));
    }
    Ok(report)
}

async fn drive(
    verb: &args::Dev,
    system: &DevSystem,
    manifest: &Manifest,
    departures: &Departures,
    started: Instant,
) -> anyhow::Result<Report> {
    let calls = usize::try_from(verb.calls).context("that many calls")?;
    let loads = Load::of_manifest(manifest, calls, |count| departures.rows(count).collect())?;
    let total: usize = loads.iter().map(|load| load.rows.len()).sum();
    eprintln!("Calling with {total} of {} departures.", departures.len());
    let bar = progress::bar(total as u64, "calls");
    let mut report = Report::default();
    let mut first = true;
    for load in loads {
        let nodes = usize::try_from(manifest.nodes_of(&load.group)).context("that many nodes")?;
        if std::mem::take(&mut first) {
            let one = Load {
                group: load.group.clone(),
                target: load.target.clone(),
                rows: load.rows.iter().take(1).cloned().collect(),
            };
            let hidden = indicatif::ProgressBar::hidden();
            let answer = one.drive(system.context(), nodes, READY_TIMEOUT, &hidden).await?;
            if answer.errors() == 0 {
                eprintln!("First answer after {}.", since(started));
            }
            bar.reset();
        }
        let part = load.drive(system.context(), nodes, READY_TIMEOUT, &bar).await?;
        let elapsed = report.elapsed + part.elapsed;
        report.merge(part);
        report.elapsed = elapsed;
    }
    bar.finish_and_clear();
    Ok(report)
}

fn what_next(verb: &args::Dev, system: &DevSystem, run: &Run) {
    let program = std::env::current_exe().unwrap_or_else(|_| "outstation".into());
    let here = std::env::current_dir().unwrap_or_default();
    let program = program.strip_prefix(&here).unwrap_or(&program).display();
    let dir = verb.dir.display();
    let context = match extra_context(system.layout()) {
        Some(_) => String::new(),
        None => format!(" --context {}", system.context_path().display()),
    };
    let line = |rest: String| eprintln!("  {program}{context} {rest}");
    eprintln!("\nThe system stays up until Ctrl-C. To try in another terminal:");
    line("get".into());
    if let Some(group) = run.repo.manifest.groups.first() {
        line(format!("describe {}", group.name));
    }
    if let Some((target, row)) = example_call(run) {
        line(format!("call {target} --declarations {dir} --row '{row}'"));
    }
    line(format!("plan {dir}     # after a change in {dir}/features.py; then apply"));
    eprintln!("Logs: {}", system.layout().logs().display());
}

/// A row that the first service takes, and its name.
fn example_call(run: &Run) -> Option<(String, serde_json::Value)> {
    let departures = run.departures.as_ref()?;
    let rows = |count| departures.rows(count).collect();
    let load = Load::of_manifest(&run.repo.manifest, 1, rows).ok()?.into_iter().next()?;
    Some((load.target, serde_json::Value::Object(row_to_json(load.rows.first()?))))
}

async fn stay(ended: &mut Ended, system: &DevSystem) -> ExitCode {
    loop {
        tokio::select! {
            () = ended.wait() => return ExitCode::SUCCESS,
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                if system.is_broken() {
                    eprintln!("error: the simulated AWS has died");
                    eprintln!("hint: its log is {}", system.layout().logs().join("aws-sim.log").display());
                    return ExitCode::FAILURE;
                }
            }
        }
    }
}

fn interrupted() -> ExitCode {
    // As shells count: 128 + SIGINT.
    ExitCode::from(130)
}

/// The default state directory also gives the default context: `.outstation/context.toml`.
fn extra_context(layout: &Layout) -> Option<PathBuf> {
    let parent = layout.state.parent()?;
    let default = layout.state.file_name()? == "dev" && parent.file_name()? == ".outstation";
    default.then(|| parent.join("context.toml"))
}

fn find_python(explicit: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let here = std::env::current_dir().context("find the current directory")?;
    if let Some(python) = explicit {
        return absolute(&here, &python);
    }
    let found = here.ancestors().map(|dir| dir.join(".venv/bin/python")).find(|p| p.is_file());
    found
        .context("no .venv/bin/python here or above")
        .hint("`cargo dev` makes one; or name an interpreter with --python")
}

/// Not resolved: a virtual environment's interpreter is a link whose place is what matters.
fn absolute(here: &Path, path: &Path) -> anyhow::Result<PathBuf> {
    let path = here.join(path);
    match std::fs::metadata(&path) {
        Ok(found) if found.is_file() => return Ok(path),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(error).with_context(|| format!("look at {}", path.display()));
        }
        Ok(_) | Err(_) => {}
    }
    let what = format!("there is no interpreter {}", path.display());
    Err(Failure::new(what, "name one that has `outstation` and uv installed").into())
}

/// SIGINT, SIGTERM or SIGHUP.
struct Ended {
    signals: [tokio::signal::unix::Signal; 3],
}

impl Ended {
    fn new() -> anyhow::Result<Ended> {
        let listen = |kind| signal(kind).context("listen for signals");
        let signals = [
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ];
        Ok(Ended { signals })
    }

    async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
