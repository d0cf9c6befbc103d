//! Somebody can write the account store's artifacts. What is not what was ordered never serves; what serves
//! goes on, and the reason is told.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use outstation_integration::{LONG, Load, ONE_AT_A_TIME, World};

use crate::rolling::require;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_was_ordered_never_serves() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("environment-tamper").await?;
    world.edit("desired_nodes=3", "desired_nodes=2")?;
    require(&world, "holidays==0.109\n")?;
    // Nothing of a run before: the environments have to be fetched.
    let store = world.system.layout().store().join("artifacts/environments");
    let kept = world.system.layout().environments();
    drop((fs::remove_dir_all(&store), fs::remove_dir_all(kept)));
    world.apply(2).await?;
    let rows = world.rows(&world.departures()?[..100]).await?;
    let load = Load::start(&world.caller().await?, &rows, 2);
    load.pass(100).await?;

    let honest = manifests(&store)?.remove(0);
    let mut known = vec![honest.clone()];
    // Each is ordered as a new environment; before a node can fetch it, it is something else.
    type Tamper = fn(&Path, &Path) -> Result<()>;
    let tampers: [(&str, Tamper, &str); 4] = [
        ("six==1.12.0", |new, _| flip(&new.with_extension("pack")), "has other contents"),
        ("six==1.16.0", |new, _| flip(new), "the manifest of environment"),
        ("six==1.15.0", |new, old| copied(old, new, "pack"), "bytes, and its manifest says"),
        ("six==1.14.0", |new, old| copied(old, new, "json"), "has other contents"),
    ];
    for (requirement, tamper, wanted) in tampers {
        // The nodes cannot have it before it is tampered with: the order comes afterwards.
        require(&world, &format!("holidays==0.109\n{requirement}\n"))?;
        let orders = world.declarations().join(".orders.ndjson");
        let orders = orders.to_str().context("a path")?;
        let written = world.outstation(&["apply", ".", "--out", orders])?;
        assert_eq!(written.code, 0, "{written}");
        let new = manifests(&store)?.into_iter().find(|path| !known.contains(path));
        let new = new.context("apply has written an environment")?;
        known.push(new.clone());
        tamper(&new, &honest)?;
        let put = world.outstation(&["order", "put", orders, "--no-wait"])?;
        assert_eq!(put.code, 0, "{put}");
        world
            .system
            .wait_group(&world.group, LONG, |group| {
                let nodes = group.status.iter().flat_map(|status| &status.nodes);
                let reasons = nodes.filter_map(|node| node.reason.as_ref());
                reasons
                    .into_iter()
                    .any(|why| why.contains("stays, because") && why.contains(wanted))
            })
            .await
            .with_context(|| format!("{requirement}: {}", world.system.log_tails(20)))?;
        load.pass(50).await?;
        fs::remove_file(orders)?;
    }

    // The honest one again: also that is a new order.
    require(&world, "holidays==0.109\n")?;
    world.apply(2).await?;
    let (calls, failures) = load.stop().await?;
    assert!(failures.is_empty(), "{} of {calls}: {}", failures.len(), failures[0]);
    world.system.shutdown().await
}

fn manifests(store: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".json") && !name.ends_with(".cdx.json") {
            found.push(path);
        }
    }
    Ok(found)
}

/// A bit in the middle.
fn flip(path: &Path) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let (at, mut byte) = (file.metadata()?.len() / 2, [0]);
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 1], at)?)
}

/// A right artifact under a wrong name.
fn copied(from: &Path, to: &Path, extension: &str) -> Result<()> {
    fs::copy(from.with_extension(extension), to.with_extension(extension))?;
    Ok(())
}
