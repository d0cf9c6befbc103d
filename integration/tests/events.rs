//! `outstation events --follow` as a process of its own, while what it listens to is killed.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use outstation_cli::dev::ServiceName;
use outstation_integration::{LONG, ONE_AT_A_TIME, World, binaries};
use serde_json::Value as Json;

const NODES: &str = "desired_nodes=3";

/// A follower whose lines go into a file.
struct Follower {
    child: Child,
    dir: tempfile::TempDir,
}

impl Follower {
    fn start(world: &World) -> Result<Follower> {
        let dir = tempfile::tempdir()?;
        let child = Command::new(binaries().join("outstation"))
            .args(["events", "--follow", "--json"])
            .env("OUTSTATION_CONTEXT", world.system.context_path())
            .stdin(Stdio::null())
            .stdout(File::create(dir.path().join("out"))?)
            .stderr(File::create(dir.path().join("err"))?)
            .spawn()
            .context("start outstation events")?;
        Ok(Follower { child, dir })
    }

    /// Whole lines only: the last may be on its way.
    fn lines(&self) -> Result<Vec<String>> {
        let text = std::fs::read_to_string(self.dir.path().join("out"))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        Ok(text[..whole].lines().map(str::to_owned).collect())
    }

    fn stderr(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.path().join("err"))?)
    }

    /// Waits until so many lines satisfy the condition.
    async fn seen(&mut self, count: usize, what: impl Fn(&Json) -> bool) -> Result<()> {
        let deadline = tokio::time::Instant::now() + LONG;
        loop {
            let events = events(&self.lines()?)?;
            if events.iter().filter(|event| what(event)).count() >= count {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the follower has ended: {status}\n{}", self.stderr()?);
            }
            if tokio::time::Instant::now() > deadline {
                bail!("not seen {count} times: {events:#?}\n{}", self.stderr()?);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have ended by itself; the test has said so then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn events(lines: &[String]) -> Result<Vec<Json>> {
    lines.iter().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_misses_nothing_and_repeats_nothing_when_the_broker_is_killed() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("events").await?;
    let mut follower = Follower::start(&world)?;
    follower.seen(1, |event| event["kind"] == "agent_connected").await?;

    // The broker dies while events come in, twice.
    let mut declared = NODES.to_owned();
    for (kill, nodes) in [(1, "desired_nodes=1"), (2, "desired_nodes=2")] {
        world.edit(&declared, nodes)?;
        declared = nodes.to_owned();
        let run = world.outstation(&["apply", ".", "--no-wait"])?;
        assert_eq!(run.code, 0, "{run}");
        assert!(run.stdout.contains(&format!("delay_tsg: generation {kill} sha256:")), "{run}");
        follower.seen(kill, |event| event["kind"] == "accepted").await?;
        world.system.kill(ServiceName::Broker)?;
        follower.seen(kill + 1, |event| event["kind"] == "agent_connected").await?;
    }
    follower.seen(1, |event| event["kind"] == "converged" && event["generation"] == 2).await?;
    world.ready(2).await?;

    // What it has printed is what the log holds, line by line.
    let log = world.outstation(&["events", "--json"])?;
    assert_eq!(log.code, 0, "{log}");
    let log: Vec<String> = log.stdout.lines().map(str::to_owned).collect();
    let newest = events(&log)?.last().context("an event")?["sequence"].clone();
    follower.seen(1, |event| event["sequence"] == newest).await?;
    let printed = follower.lines()?;
    assert_eq!(printed[..log.len()], log, "{}", follower.stderr()?);
    let log = events(&log)?;
    let numbers: Vec<u64> = log.iter().filter_map(|event| event["sequence"].as_u64()).collect();
    assert_eq!(numbers, (1..=log.len() as u64).collect::<Vec<_>>());

    // The story of one order carries the same ids all the way.
    let of_second: Vec<&Json> = log.iter().filter(|event| event["generation"] == 2).collect();
    assert!(of_second.iter().any(|event| event["kind"] == "order_put"));
    for event in &of_second {
        assert_eq!(event["digest"], of_second[0]["digest"], "{event}");
        assert_eq!(event["group"], "delay_tsg", "{event}");
    }
    let killed = log.iter().filter(|event| {
        let message = event["message"].as_str().unwrap_or_default();
        event["kind"] == "agent_disconnected" && message.starts_with("the broker was killed")
    });
    assert_eq!(killed.count(), 2);

    // Less of it, and in words.
    let run = world.outstation(&["events", "delay_tsg", "--since", "1h"])?;
    assert_eq!(run.code, 0, "{run}");
    assert!(run.stdout.lines().all(|line| line.contains("delay_tsg")), "{run}");
    assert!(run.stdout.contains("generation 2 sha256:"), "{run}");
    let after = (log.len() - 1).to_string();
    let run = world.outstation(&["events", "--after", &after])?;
    assert!(run.stdout.starts_with(&format!("{:>6}  ", log.len())), "{run}");
    let run = world.outstation(&["events", "nobody_tsg"])?;
    assert_eq!(run.code, 1, "{run}");
    assert!(run.stderr.starts_with("error: there is no server group nobody_tsg\nhint: "), "{run}");
    let run = world.outstation(&["get"])?;
    assert!(run.stdout.contains("connected for"), "{run}");
    drop(follower);
    world.system.shutdown().await
}
