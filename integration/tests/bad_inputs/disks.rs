//! The command on disks that are full or cannot be written, as somebody who owns nothing, and beside
//! another system.

use std::process::Command;
use std::sync::Arc;

use anyhow::{Result, ensure};
use outstation_integration::bad::{Said, full_disk, read_only, run_to_end, with_mounts};
use outstation_integration::{World, binaries, python};

use crate::Act::Do;
use crate::{Doing, Ground, Table};

#[rustfmt::skip]
pub const TABLE: Table = &[
    ("a full disk under the account store", Do(|g| apply(g, Disk::Full)), "exit 1",
        "write the bundle to the account store*No space left on device", "make room on the disk"),
    ("an account store that cannot be written", Do(|g| apply(g, Disk::ReadOnly)), "exit 1",
        "write the bundle to the account store*Read-only file system", "mount it writable"),
    ("a full disk for a system", Do(|g| dev(g, Disk::Full)), "exit 1",
        "No space left on device", "make room on the disk"),
    ("a disk that cannot be written for a system", Do(|g| dev(g, Disk::ReadOnly)), "exit 1",
        "Read-only file system", "mount it writable"),
    ("a system in somebody else's folder", Do(dev_by_nobody), "exit 1",
        "Permission denied", "user that owns it"),
    ("a file for the folder of a system", Do(dev_in_a_file), "exit 1",
        "create *file*", "a file stands where"),
    ("a second system beside the first", Do(second), "both served", "", ""),
];

#[derive(Clone, Copy)]
enum Disk {
    Full,
    ReadOnly,
}

fn on(disk: Disk, folder: &std::path::Path, command: &Command) -> Command {
    match disk {
        Disk::Full => with_mounts(&full_disk(folder), command),
        Disk::ReadOnly => with_mounts(&read_only(folder), command),
    }
}

/// The disk is full, or read-only, for the command alone.
fn apply(ground: Arc<Ground>, disk: Disk) -> Doing {
    Box::pin(async move {
        let declared = ground.declarations("desired_nodes=2", "desired_nodes=1")?;
        let mut apply = Command::new(binaries().join("outstation"));
        apply.arg("apply").arg(declared).env("OUTSTATION_CONTEXT", ground.context());
        let store = ground.world.system.layout().store().join("artifacts");
        let said = run_to_end(&mut on(disk, &store, &apply))?;
        // Nothing was ordered of which the artifacts are missing.
        let plan = ground.outstation_in(ground.world.declarations(), &["plan", "."])?;
        ensure!(plan.ends == "exit 0", "something was ordered: {plan:?}");
        Ok(said)
    })
}

fn dev_command(ground: &Ground, state: &std::path::Path) -> Command {
    let mut dev = Command::new(binaries().join("outstation"));
    dev.arg("dev").arg(ground.world.declarations()).arg("--once").arg("--state").arg(state);
    dev.arg("--python").arg(python());
    dev
}

fn dev(ground: Arc<Ground>, disk: Disk) -> Doing {
    Box::pin(async move {
        let state = ground.folder("state")?;
        let mut command = on(disk, &state, &dev_command(&ground, &state.join("its-own")));
        run_to_end(&mut command)
    })
}

fn dev_by_nobody(ground: Arc<Ground>) -> Doing {
    Box::pin(async move {
        use std::os::unix::process::CommandExt as _;
        let state = ground.folder("state")?;
        run_to_end(dev_command(&ground, &state).uid(65534).gid(65534))
    })
}

fn dev_in_a_file(ground: Arc<Ground>) -> Doing {
    Box::pin(async move {
        let file = ground.folder("state")?.join("file");
        std::fs::write(&file, "of somebody")?;
        run_to_end(&mut dev_command(&ground, &file))
    })
}

/// Other ports, another account, other instances: neither knows of the other.
fn second(ground: Arc<Ground>) -> Doing {
    Box::pin(async move {
        let second = World::start("bad-inputs-second").await?;
        let served: Result<()> = async {
            ensure!(second.system.admin().await?.groups().await?.is_empty(), "it has our groups");
            ground.serves().await
        }
        .await;
        second.system.shutdown().await?;
        served?;
        Ok(Said { ends: "both served".into(), text: String::new() })
    })
}
