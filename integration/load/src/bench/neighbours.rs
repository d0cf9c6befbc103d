//! One function is flooded; another should not notice.

use std::time::Duration;

use anyhow::Result;

use super::Bench;
use super::figures::Figures;
use super::peers::Server;
use super::report::{Aim, Report};
use crate::client::Prepared;
use crate::drive::{Load, Open, Pace, Stream, run, run_one};

const WARM: Duration = Duration::from_millis(300);
/// Of the 1 ms function, where one core can do a thousand a second: a tenth of it.
const QUIET_RATE: f64 = 100.0;
/// Ten times the half of the core that is its share.
const FLOOD_RATE: f64 = 5000.0;

pub fn noisy(bench: &Bench, report: &mut Report) -> Result<()> {
    let ours = Server::ours(bench, &[bench.server_core], bench.workers, false)?;
    let secs = bench.secs(2.0, 5.0);
    let open = |rate, seed| {
        Load::Open(Open { rate, outstanding_max: 2048, seed, pace: Pace::Awake, throttled: false })
    };
    let deadline = Some(Duration::from_secs(2));
    let quiet = Prepared::call("quiet", 1, deadline)?;
    let noisy = Prepared::call("noisy", 1, deadline)?;
    let (mut alone, mut beside, mut lost) = (Figures::default(), Figures::default(), 0);
    let (mut alone_p50, mut beside_p50) = (Figures::default(), Figures::default());
    for seed in 0..bench.pick(4, 10) {
        let tally = run_one(&ours.aim_over(1), &quiet, open(QUIET_RATE, seed), WARM, secs)?;
        alone.push(tally.millis(0.99));
        alone_p50.push(tally.millis(0.5));
        let streams = [
            Stream { aim: ours.aim_over(1), request: quiet.clone(), load: open(QUIET_RATE, seed) },
            Stream { aim: ours.aim_over(8), request: noisy.clone(), load: open(FLOOD_RATE, seed) },
        ];
        let tallies = run(&streams, WARM, secs)?;
        beside.push(tallies[0].millis(0.99));
        beside_p50.push(tallies[0].millis(0.5));
        lost += tallies[0].bad();
    }
    report.figure("quiet function alone, p50", "ms", alone_p50);
    report.figure("quiet function beside the flood, p50", "ms", beside_p50);
    report.figure("quiet function alone, p99", "ms", alone.clone());
    report.figure("quiet function beside the flood, p99", "ms", beside.clone());
    report.line("beside / alone, p99", "×", beside.over(&alone), Aim::AtMost(1.5));
    report.line("its calls that failed", "", Figures(vec![lost as f64]), Aim::AtMost(0.0));
    Ok(())
}
