//! What an account agent takes of its host when it looks after as many groups as AWS allows: the real process, against the
//! simulated AWS.

use std::time::Duration;

use anyhow::{Context as _, Result};
use outstation_cli::dev::{DevSystem, ServiceName};
use outstation_cli::view::GroupView;
use outstation_integration::{LONG, ONE_AT_A_TIME, World, number};
use tokio::time::Instant;

/// The suite makes 100 groups; `OUTSTATION_GROUPS=500` is AWS's limit.
const GROUPS: u64 = 100;
/// What it has allocated itself (RssAnon). The pages of the program and its libraries are the kernel's to drop.
const PRIVATE_KIB_MAX: u64 = 20 * 1024;
/// Linux's USER_HZ.
const TICKS_A_SECOND: u32 = 100;
/// An account whose groups are all as ordered: so many looks are watched.
const IDLE_LOOKS: u64 = 5;
const LOOK_SECS: u64 = 2;
/// Those of an agent whose configuration does not say.
const LOOK_SECS_USUAL: u64 = 30;

struct Process {
    private_kib: u64,
    resident_kib: u64,
    /// The most that was ever resident.
    peak_kib: u64,
    threads: u64,
    cpu: Duration,
}

impl Process {
    fn of(pid: u32) -> Result<Process> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let number = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            Ok(line
                .and_then(|line| line.split_whitespace().next())
                .context("no number")?
                .parse()?)
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Behind the name in brackets: state, parent and so on, user and system time as the 12th and 13th.
        let behind = stat.rsplit(") ").next().context("no name")?;
        let fields: Vec<&str> = behind.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Process {
            private_kib: number("RssAnon:")?,
            resident_kib: number("VmRSS:")?,
            peak_kib: number("VmHWM:")?,
            threads: number("Threads:")?,
            cpu: Duration::from_secs(ticks) / TICKS_A_SECOND,
        })
    }

    fn of_agent(system: &DevSystem) -> Result<Process> {
        Process::of(system.pid(ServiceName::AccountAgent).context("the account agent runs")?)
    }
}

/// As fast as its configuration allows, and looking often: an idle time of several looks shall not take minutes.
async fn hurry(world: &World) -> Result<()> {
    world.system.hold(ServiceName::AccountAgent).await;
    let path = world.system.layout().config("account-agent");
    let text = std::fs::read_to_string(&path)?;
    let text = text.replace("[aws]\n", "[aws]\nrequests_per_second = 100\n");
    std::fs::write(&path, format!("reconcile_secs = {LOOK_SECS}\n{text}"))?;
    world.system.release(ServiceName::AccountAgent);
    Ok(())
}

async fn all_converged(world: &World, groups: usize) -> Result<()> {
    let deadline = Instant::now() + 5 * LONG;
    let is_done = |group: &GroupView| {
        group.has_converged(group.generation)
            && group.status.as_ref().is_some_and(|status| status.phase == "READY")
    };
    loop {
        let seen = world.system.admin().await?.groups().await?;
        let done = seen.iter().filter(|group| is_done(group)).count();
        if (done, seen.len()) == (groups, groups) {
            return Ok(());
        }
        let waiting = seen.iter().find(|group| !is_done(group));
        anyhow::ensure!(
            Instant::now() < deadline,
            "{done} of {groups} have converged: {waiting:?}\n{}",
            world.system.log_tails(20)
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_many_groups_is_small_and_idle() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let groups = usize::try_from(number("OUTSTATION_GROUPS").unwrap_or(GROUPS))?;
    let world = World::start("many-groups").await?;
    let few = Process::of_agent(&world.system)?;
    hurry(&world).await?;
    world.edit("desired_nodes=3", "desired_nodes=0")?;
    world.edit(
        "\ndeparture = RequestSource(",
        &format!(
            "\nfor _number in range({}):\n    TransformServerGroup(\n        name=f\"g{{_number:03}}_tsg\",\n        \
             environment=\"flights\",\n        owner=\"ops\",\n        description=\"One of many\",\n        \
             scaling_config=ProvisionedScalingConfig(desired_nodes=0),\n    )\n\ndeparture = RequestSource(",
            groups - 1
        ),
    )?;
    let begun = Instant::now();
    let run = world.outstation(&["apply", ".", "--no-wait"])?;
    anyhow::ensure!(run.code == 0, "{run}");
    all_converged(&world, groups).await?;
    let took = begun.elapsed();
    assert_eq!(world.system.sim().groups().await?.len(), groups, "each was made");

    // What the last changes have left behind is dealt with.
    tokio::time::sleep(Duration::from_secs(2 * LOOK_SECS)).await;
    let before = Process::of_agent(&world.system)?;
    tokio::time::sleep(Duration::from_secs(IDLE_LOOKS * LOOK_SECS)).await;
    let now = Process::of_agent(&world.system)?;
    let idle = now.cpu.saturating_sub(before.cpu);
    let a_look = idle.as_secs_f64() * 1000.0 / IDLE_LOOKS as f64;
    println!(
        "{groups} groups made in {:.0} s; the account agent: {} KiB of its own (RssAnon; {} without any group), {} KiB resident, \
         {} KiB at most, {} threads; idle: {a_look:.0} ms of CPU a look, {:.2} % of a core at a look every {LOOK_SECS_USUAL} s",
        took.as_secs_f64(),
        now.private_kib,
        few.private_kib,
        now.resident_kib,
        now.peak_kib,
        now.threads,
        a_look / 10.0 / LOOK_SECS_USUAL as f64,
    );
    assert!(
        now.private_kib <= PRIVATE_KIB_MAX,
        "{} KiB of its own with {groups} groups",
        now.private_kib
    );
    world.system.shutdown().await
}
