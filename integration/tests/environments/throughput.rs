//! How fast an environment is fetched and verified, beside a plain copy of the same bytes.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use outstation_integration::number;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::machine::Machine;

const MEMORY_KIB_MAX: i64 = 64 * 1024;

/// `OUTSTATION_FETCH_MB=500 OUTSTATION_FETCH_ROUNDS=7` for the figures.
#[test]
fn an_environment_is_fetched_in_little_memory() -> Result<()> {
    let megabytes = number("OUTSTATION_FETCH_MB").unwrap_or(40);
    let rounds = number("OUTSTATION_FETCH_ROUNDS").unwrap_or(1);
    let machine = Machine::new(usize::try_from(megabytes)?, &mut StdRng::seed_from_u64(1))?;
    let (mut copies, mut fetches, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        copies.push(copy(&machine.pack())?);
        fetches.push(fetch(&machine)?);
        // Without its marker, as after a power cut: everything is read and hashed, nothing fetched.
        fs::remove_file(machine.marker())?;
        again.push(fetch(&machine)?);
        ensure!(machine.is_whole()?);
        // Aside, not away: ext4 is slow to give inodes out again that were just freed.
        fs::rename(
            machine.environments(),
            machine.environments().with_extension(round.to_string()),
        )?;
    }
    let bytes = machine.manifest.bytes() as f64;
    for (what, times) in
        [("copied", &mut copies), ("fetched", &mut fetches), ("verified", &mut again)]
    {
        times.sort();
        let rate = |time: Duration| bytes / time.as_secs_f64() / 1e6;
        let (least, most) = (rate(times[times.len() - 1]), rate(times[0]));
        println!("{what}: {:.0} MB/s ({least:.0} … {most:.0})", rate(times[times.len() / 2]));
    }
    // Of all children that have ended: only the fetching ones.
    let memory = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    let ratio = copies[copies.len() / 2].as_secs_f64() / fetches[fetches.len() / 2].as_secs_f64();
    println!(
        "{} files, {:.0} MB: fetched at {ratio:.2} of a copy's speed, in {memory} KiB of memory",
        machine.manifest.files.len(),
        bytes / 1e6
    );
    ensure!(memory <= MEMORY_KIB_MAX, "{memory} KiB of memory, more than {MEMORY_KIB_MAX}");
    Ok(())
}

/// As it tells itself: until a server could be started from it.
fn fetch(machine: &Machine) -> Result<Duration> {
    let output = machine.fetch()?.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let seconds = text.split(" verified in ").nth(1).and_then(|rest| rest.split(' ').next());
    let seconds = seconds.and_then(|seconds| seconds.parse().ok());
    ensure!(seconds.is_some(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(Duration::from_secs_f64(seconds.unwrap_or_default()))
}

/// Neither hashed nor synced.
fn copy(pack: &Path) -> Result<Duration> {
    let target = pack.with_extension("copy");
    let start = Instant::now();
    let (mut from, mut to) = (File::open(pack)?, File::create(&target)?);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        to.write_all(&buffer[..read])?;
    }
    let took = start.elapsed();
    fs::remove_file(target)?;
    Ok(took)
}
