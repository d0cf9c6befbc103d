//! Workers that are killed: how soon there is another, and what callers notice at full load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Bench;
use super::figures::Figures;
use super::peers::Server;
use super::report::{Aim, Report};
use crate::client::{BROKEN, OK, Prepared};
use crate::drive::{Load, ask, run_one};
use crate::machine;

const WARM: Duration = Duration::from_millis(500);

fn end(pid: u32) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL).context("kill a worker")
}

/// pandas is imported by the bundle.
pub fn restart(bench: &Bench, report: &mut Report) -> Result<()> {
    let ours = Server::ours(bench, &[bench.server_core], 1, false)?;
    let request = Prepared::call("small", 1, None)?;
    let mut again = Figures::default();
    for _ in 0..bench.pick(3, 10) {
        let worker = *machine::leaves(ours.pid()).last().context("a worker")?;
        // A worker that has lived for a while is replaced without a pause.
        sleep(Duration::from_millis(10_500).min(bench.secs(10.5, 10.5)));
        let began = Instant::now();
        end(worker)?;
        while !matches!(ask(&ours.address, &request), Ok((OK, _))) {}
        again.push(began.elapsed().as_secs_f64() * 1e3);
    }
    report.line("from the kill to the next answer", "ms", again, Aim::AtMost(20.0));
    Ok(())
}

pub fn chaos(bench: &Bench, report: &mut Report) -> Result<()> {
    let ours = Server::ours(bench, &[bench.server_core], 2, false)?;
    let request = Prepared::call("small", 1, Some(Duration::from_secs(5)))?;
    let load = Load::Closed { in_flight: 32 };
    let secs = bench.secs(10.0, 60.0);
    let calm = run_one(&ours.aim(), &request, load, WARM, bench.secs(3.0, 10.0))?;
    let before = (machine::descriptors(ours.pid()), machine::descendants(ours.pid()).len());
    let memory = machine::memory(ours.pid()).private_kib;
    let (done, killed) = (AtomicBool::new(false), AtomicU64::new(0));
    let wild = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = fastrand::Rng::with_seed(7);
            while !done.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(random.u64(500..2500)));
                if let Some(worker) = random.choice(machine::leaves(ours.pid())) {
                    killed.fetch_add(u64::from(end(worker).is_ok()), Ordering::Relaxed);
                }
            }
        });
        let wild = run_one(&ours.aim(), &request, load, WARM, secs);
        done.store(true, Ordering::Relaxed);
        wild
    })?;
    sleep(Duration::from_secs(3));
    let broken = wild.statuses.get(&BROKEN).copied().unwrap_or(0) + wild.unanswered;
    report.figure("workers killed", "", Figures(vec![killed.into_inner() as f64]));
    report.figure("calls that failed, with a status", "", Figures(vec![wild.bad() as f64]));
    report.line(
        "calls without an answer or a status",
        "",
        Figures(vec![broken as f64]),
        Aim::AtMost(0.0),
    );
    report.line(
        "throughput / without kills",
        "×",
        Figures(vec![wild.rate() / calm.rate()]),
        Aim::AtLeast(0.9),
    );
    let after = (machine::descriptors(ours.pid()), machine::descendants(ours.pid()).len());
    let grown = |before: usize, after: usize| Figures(vec![after as f64 - before as f64]);
    report.line("descriptors more than before", "", grown(before.0, after.0), Aim::AtMost(4.0));
    report.line("processes more than before", "", grown(before.1, after.1), Aim::AtMost(0.0));
    let more = machine::memory(ours.pid()).private_kib as f64 - memory as f64;
    report.line("memory more than before", "KiB", Figures(vec![more]), Aim::AtMost(8192.0));
    Ok(())
}
