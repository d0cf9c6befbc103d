//! Functions that take their time, next to the same functions without a server.

use std::time::Duration;

use anyhow::Result;

use super::Bench;
use super::figures::Figures;
use super::peers::{Server, bare, printed};
use super::report::{Aim, Report};
use crate::client::Prepared;
use crate::drive::{Load, Open, Pace, run_one};
use crate::machine;

const WARM: Duration = Duration::from_millis(500);
/// What a request of a hundred rows has before its message.
const PREFIX_BYTES: usize = 5;

/// Two workers on two cores against two processes that call the function in a loop; what the load
/// generator takes of the cores is given back to the server.
pub fn one_millisecond(bench: &Bench, report: &mut Report) -> Result<()> {
    let cores = [bench.server_core, bench.load_core];
    let ours = Server::ours(bench, &cores, 2, false)?;
    machine::pin(&cores)?;
    let secs = bench.secs(2.0, 5.0);
    let arguments = ["spin_1ms", "--secs", &secs.as_secs_f64().to_string()];
    let request = Prepared::call("spin_1ms", 1, None)?;
    let (mut own, mut two, mut p99) = (Figures::default(), Figures::default(), Figures::default());
    for seed in 0..bench.pick(3, 5) {
        let running: Vec<_> =
            cores.iter().map(|core| bare(bench, *core, &arguments, None)).collect::<Result<_>>()?;
        two.push(running.into_iter().map(printed).sum::<Result<f64>>()?);
        let tally = run_one(&ours.aim(), &request, Load::Closed { in_flight: 8 }, WARM, secs)?;
        let given = 2.0 - tally.own_share();
        own.push(tally.rate() * 2.0 / given);
        let rate = 0.75 * tally.rate();
        let open = Open { rate, outstanding_max: 1024, seed, pace: Pace::Asleep, throttled: false };
        p99.push(run_one(&ours.aim(), &request, Load::Open(open), WARM, secs)?.millis(0.99));
    }
    report.figure("two bare processes", "1/s", two.clone());
    report.line("ours / two bare processes", "×", own.over(&two), Aim::AtLeast(0.85));
    report.line("p99 at 75 % load / the function's 1 ms", "×", p99, Aim::AtMost(5.0));
    Ok(())
}

/// A batch of a hundred rows in pandas mode, decoded and encoded on both sides.
pub fn hundred_rows(bench: &Bench, report: &mut Report) -> Result<()> {
    let ours = Server::ours(bench, &[bench.server_core], 1, false)?;
    let secs = bench.secs(2.0, 5.0);
    let path = bench.folder.join("pandas100.request");
    std::fs::write(&path, &crate::wire::call("pandas100", 100)[PREFIX_BYTES..])?;
    let arguments = ["pandas100", "--secs", &secs.as_secs_f64().to_string()];
    let request = Prepared::call("pandas100", 100, None)?;
    let (mut own, mut loops) = (Figures::default(), Figures::default());
    for _ in 0..bench.pick(3, 5) {
        loops.push(printed(bare(bench, bench.server_core, &arguments, Some(&path))?)?);
        own.push(run_one(&ours.aim(), &request, Load::Closed { in_flight: 4 }, WARM, secs)?.rate());
    }
    report.figure("bare loop", "1/s", loops.clone());
    report.line("ours / bare loop, batches of 100 rows", "×", own.over(&loops), Aim::AtLeast(0.9));
    Ok(())
}
