//! From the start of a node agent to the first answered call, beside the time that Python itself takes to start
//! and to import the same bundle.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use outstation_integration::{ONE_AT_A_TIME, number};

use crate::instance::Instance;
use crate::node::{DECLARED, call};

/// `OUTSTATION_BOOTS=7` for the figures, with pandas among what the bundle imports.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_takes_hardly_longer_to_serve_than_python_to_import() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let rounds = number("OUTSTATION_BOOTS");
    let (import, requirements) = match rounds {
        Some(_) => ("import pandas\n", "pandas==3.1.1\n"),
        None => ("", ""),
    };
    let features = format!(
        "{import}{DECLARED}
@realtime_feature_view(sources=[row], mode='python', features=[Attribute('text', String)])
def next_number(row):
    return {{'text': str(row['number'] + 1)}}
"
    );
    let (mut bare, mut cold, mut baked) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds.unwrap_or(1) {
        let address = Ipv4Addr::from(0x7f4f_0000 | (rand::random::<u32>() & 0xffff));
        let metadata = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut instance = Instance::with(metadata, address, &features, requirements).await?;
        cold.push(boot(&mut instance, address).await?);
        ensure!(instance.log()?.contains("environment installed"), "it was fetched");
        instance.end()?;

        // What an image would have brought along.
        fs::remove_dir_all(instance.path("instances/i-0123456789abcdef0"))?;
        fs::remove_file(instance.path("node.log"))?;
        baked.push(boot(&mut instance, address).await?);
        ensure!(!instance.log()?.contains("environment installed"), "nothing of it was fetched");

        bare.push(import_by_hand(&instance)?);
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        (times[times.len() / 2], times[0], times[times.len() - 1])
    };
    let (import, ..) = median(&mut bare);
    for (what, times) in [("bare", &mut bare), ("cold", &mut cold), ("pre-baked", &mut baked)] {
        let (middle, least, most) = median(times);
        let ratio = middle.as_secs_f64() / import.as_secs_f64();
        println!("{what}: {middle:.3?} ({least:.3?} … {most:.3?}), {ratio:.2} of bare");
    }
    Ok(())
}

async fn boot(instance: &mut Instance, address: Ipv4Addr) -> Result<Duration> {
    let start = Instant::now();
    instance.start_node(&[])?;
    instance.until_told("it serves", |told| told.starts_with("STATUS=ready"))?;
    ensure!(call(address, "next_number").await? == "42", "it answers");
    Ok(start.elapsed())
}

/// The interpreter of the environment, with what every worker needs and the bundle.
fn import_by_hand(instance: &Instance) -> Result<Duration> {
    let only = |folder: &str| -> Result<std::path::PathBuf> {
        let mut entries = fs::read_dir(instance.path(folder))?.filter_map(Result::ok);
        let folder = entries.find(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
        Ok(folder.context("one")?.path())
    };
    let python = only("instances/environments")?.join("bin/python");
    let bundle = only("instances/i-0123456789abcdef0/bundles")?;
    let start = Instant::now();
    let status = Command::new(python)
        .args(["-c", "import outstation.worker, features"])
        .current_dir(bundle)
        .env_clear()
        .stdin(Stdio::null())
        .status()?;
    ensure!(status.success(), "{status}");
    Ok(start.elapsed())
}
