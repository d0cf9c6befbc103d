//! What a system does on bad days, each while calls run: links that are bad or cut, parts that stand
//! still, a broker or an account agent that is gone for good, disks that are full, and any of it in a
//! row. What must always hold is looked at all the while (`outstation_integration::invariants`).

mod alone;
mod any;
mod disks;
mod links;
mod soak;
mod stops;

use std::sync::Arc;

use anyhow::Result;
use outstation_api::transform::Row;
use outstation_cli::caller::Caller;
use outstation_cli::dev::ServiceName;
use outstation_integration::invariants::Watch;
use outstation_integration::{LONG, Load, World};

const NODES: u32 = 3;
/// Calls in flight at any time.
const LANES: usize = 4;

/// A system with three nodes, calls to it, and a look at what must hold.
struct Day {
    world: World,
    caller: Arc<Caller>,
    rows: Vec<Row>,
    watch: Watch,
}

impl Day {
    /// With links between the parties that can be bad; `seed` decides what those do.
    async fn begin(name: &str, seed: u64) -> Result<Day> {
        Day::of(World::start_with_links(name, seed).await?).await
    }

    async fn of(world: World) -> Result<Day> {
        world.apply(NODES).await?;
        let departures = world.departures()?;
        let rows = world.rows(&departures[..500]).await?;
        let caller = world.caller().await?;
        caller.wait_for_endpoints(NODES as usize, LONG).await?;
        let watch = world.watch();
        Ok(Day { world, caller, rows, watch })
    }

    fn load(&self) -> Load {
        Load::start(&self.caller, &self.rows, LANES)
    }

    async fn end(self) -> Result<()> {
        self.watch.end().await?;
        self.world.system.shutdown().await
    }

    /// How often a log says this.
    fn said(&self, service: ServiceName, words: &str) -> usize {
        let log = std::fs::read_to_string(self.world.system.log(service)).unwrap_or_default();
        log.lines().filter(|line| line.contains(words)).count()
    }

    /// Waits until a log says this more than `before` times.
    async fn says(&self, service: ServiceName, words: &str, before: usize) -> Result<()> {
        until(&format!("{service:?} to say {words:?}"), || async {
            Ok(self.said(service, words) > before)
        })
        .await
    }
}

/// Waits for something that is not among what `wait_group` sees.
async fn until<F: Future<Output = Result<bool>>>(what: &str, is: impl Fn() -> F) -> Result<()> {
    let deadline = tokio::time::Instant::now() + LONG;
    let mut last = String::new();
    while tokio::time::Instant::now() < deadline {
        match is().await {
            Ok(true) => return Ok(()),
            Ok(false) => last.clear(),
            Err(error) => last = format!(": {error:#}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    anyhow::bail!("waited {LONG:?} in vain for {what}{last}")
}

/// No more than so many calls were lost, each with a status that says what became of it.
async fn lost_at_most(load: Load, most: usize) -> Result<()> {
    let failed = load.failed();
    let (calls, failures) = load.stop().await?;
    anyhow::ensure!(
        failures.len() <= most,
        "{} (first {failed}) of {calls} calls lost, {most} may be: {failures:#?}",
        failures.len()
    );
    for failure in &failures {
        let clear = ["Unavailable: ", "Aborted: ", "DeadlineExceeded: "];
        anyhow::ensure!(clear.iter().any(|code| failure.starts_with(code)), "{failure}");
    }
    println!("{} of {calls} calls lost {failures:?}", failures.len());
    Ok(())
}
