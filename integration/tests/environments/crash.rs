//! `outstation-agent fetch-environment` is killed again and again while it fetches, and what was not
//! synced is torn: the next one always ends with the whole environment, byte for byte.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use outstation_integration::number;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::machine::Machine;

/// `OUTSTATION_CRASHES=500` for the long run.
#[test]
fn a_fetch_that_is_killed_anywhere_is_ended_by_the_next_one() -> Result<()> {
    let crashes = number("OUTSTATION_CRASHES").unwrap_or(25);
    let seed = number("OUTSTATION_SEED").unwrap_or_else(|| rand::rng().random());
    println!("OUTSTATION_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let machine = Machine::new(20, &mut random)?;
    let whole_takes = {
        let start = Instant::now();
        ensure!(machine.fetch()?.wait()?.success(), "it cannot fetch at all");
        start.elapsed()
    };
    let (mut killed, mut resumed) = (0, 0);
    while killed < crashes {
        let (marker, installed) = (machine.marker(), machine.environments());
        if marker.exists() {
            ensure!(machine.is_whole()?, "its marker says whole");
            // From nothing, or from a machine that lost its power before the marker.
            fs::remove_file(marker)?;
            if random.random_bool(0.5) {
                fs::remove_dir_all(installed)?;
            }
        }
        machine.tear(&mut random)?;
        let mut child = machine.fetch()?;
        std::thread::sleep(random.random_range(Duration::ZERO..whole_takes));
        child.kill()?;
        if child.wait()?.success() {
            continue;
        }
        killed += 1;
        machine.tear(&mut random)?;
        if random.random_bool(0.5) {
            let output = machine.fetch()?.wait_with_output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            ensure!(machine.marker().exists() && machine.is_whole()?, "the next one ends it");
            resumed += 1;
        }
    }
    println!("{killed} killed, {resumed} ended by the next one");
    Ok(())
}
