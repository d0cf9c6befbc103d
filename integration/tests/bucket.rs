//! The whole system with its account store in a bucket: an order is accepted there, and an agent that lost its host and its disk
//! goes on from there.

use std::path::Path;

use anyhow::{Context as _, Result};
use outstation_cli::dev::ServiceName;
use outstation_integration::s3::S3;
use outstation_integration::{Load, ONE_AT_A_TIME, World};

/// What the folder of the account store holds goes into the bucket, but for what nodes read.
fn move_into(s3: &S3, folder: &Path, prefix: &str) -> Result<usize> {
    let mut moved = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || name == "artifacts" {
            continue;
        }
        let key = format!("{prefix}/{name}");
        if entry.file_type()?.is_dir() {
            moved += move_into(s3, &entry.path(), &key)?;
        } else {
            s3.put(&key, &std::fs::read(entry.path())?)?;
            moved += 1;
        }
    }
    Ok(moved)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_an_empty_disk_goes_on_from_its_bucket() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let s3 = S3::start()?;
    let world = World::start("bucket").await?;
    let agent = ServiceName::AccountAgent;
    world.system.hold(agent).await;
    let layout = world.system.layout();
    let folder = layout.store();
    assert!(move_into(&s3, &folder, "prod")? >= 3, "guardrails, key and root");
    for gone in ["guardrails", "state", "keys", "journal"] {
        std::fs::remove_dir_all(folder.join(gone)).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
    }
    let config = layout.config("account-agent");
    let text = std::fs::read_to_string(&config)?;
    let line = text.lines().find(|line| line.starts_with("store = ")).context("a store")?;
    let text = text.replace(line, "store = \"s3://store/prod\"");
    let text = text.replace("[aws]\n", &format!("[aws]\ns3_endpoint = \"{}\"\n", s3.url()));
    std::fs::write(&config, text)?;
    world.system.release(agent);

    world.edit("desired_nodes=3", "desired_nodes=2")?;
    world.apply(2).await?;
    let key = "prod/state/orders/delay_tsg.json";
    let first = s3.get(key)?.context("the order is in the bucket")?;
    let run = world.outstation(&["describe", "delay_tsg"])?;
    assert!(run.stdout.contains("READY") && run.stdout.contains("generation 1"), "{run}");
    let departures = world.departures()?;
    let rows = world.rows(&departures[..500]).await?;
    let caller = world.caller().await?;
    let load = Load::start(&caller, &rows, 2);
    load.pass(50).await?;

    // The host is gone, with its disk. What it had accepted is not.
    world.system.kill(agent)?;
    world.system.hold(agent).await;
    std::fs::remove_dir_all(layout.agent_state())?;
    world.system.release(agent);
    world.ready(2).await?;
    assert_eq!(s3.get(key)?, Some(first.clone()), "nothing was written again");
    let run = world.outstation(&["plan", "."])?;
    assert!(run.code == 0, "{run}");
    load.pass(50).await?;
    let failures = load.stop().await?.1;
    assert!(failures.is_empty(), "{} calls failed: {failures:?}", failures.len());

    world.edit("desired_nodes=2", "desired_nodes=3")?;
    world.apply(3).await?;
    let second = s3.get(key)?.context("the order is in the bucket")?;
    assert_ne!(first, second);
    let run = world.outstation_agent("status", &[])?;
    assert!(run.code == 0 && run.stdout.contains("delay_tsg  2 "), "{run}");
    let run = world.outstation_agent("plan", &[])?;
    assert!(run.code == 0 && run.stdout.contains("delay_tsg: as ordered"), "{run}");
    let run = world.outstation_agent("adopt", &["--dry-run"])?;
    assert!(run.code == 0 && run.stdout.contains("Nothing to decide"), "{run}");

    // A pause, as a person writes it into the bucket.
    let rules = "prod/guardrails/guardrails.toml";
    let text = String::from_utf8(s3.get(rules)?.context("guardrails")?)?;
    s3.put(rules, format!("pause = true\n{text}").as_bytes())?;
    world.edit("desired_nodes=3", "desired_nodes=2")?;
    let run = world.outstation(&["apply", ".", "--timeout", "20"])?;
    assert!(run.code != 0 && format!("{run}").contains("pause"), "{run}");
    s3.put(rules, text.as_bytes())?;
    world.ready(2).await?;

    let verified = s3.agent(["journal", "verify", "--store", "s3://store/prod"])?;
    let told = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(verified.status.success() && told.lines().count() == 2, "two chains: {told}");
    assert!(!folder.join("state").exists(), "nothing was written beside the bucket");
    world.system.shutdown().await
}
