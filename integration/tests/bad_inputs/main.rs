//! Everything that a person, or somebody who means harm, can get wrong while the system runs. One
//! system for all; after each row it must serve as before, and nothing of it may have been restarted.

mod calls;
mod cli;
mod context;
mod declarations;
mod disks;
mod links;
mod wire;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use outstation_api::transform::{CallRequest, CallResponse, Row as ApiRow};
use outstation_cli::caller::{Answered, Caller};
use outstation_cli::dev::ServiceName;
use outstation_integration::bad::{Row, Said, Verdicts};
use outstation_integration::{ONE_AT_A_TIME, World};
use tempfile::TempDir;

const DECLARATIONS: &str = include_str!("declarations.py");
const NODES: u32 = 2;
/// A machine that does ten other things; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is done. Each module has a table of these.
enum Act {
    /// `outstation` with these arguments, in the folder of the good declarations.
    Cli(&'static [&'static str]),
    /// `outstation plan .` where this text of the good declarations reads like that.
    Declared(&'static str, &'static str),
    /// The good context with this entry (`broker.url`) in another way, or without it; then this.
    Context(&'static str, &'static str, &'static [&'static str]),
    /// Whatever else.
    Do(fn(Arc<Ground>) -> Doing),
}

type Doing = Pin<Box<dyn Future<Output = Result<Said>> + Send>>;
type Table = &'static [Row<Act>];

/// The system that all of it is done to.
struct Ground {
    world: World,
    caller: Arc<Caller>,
    scratch: TempDir,
}

impl Ground {
    /// An empty folder for one row.
    fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.scratch.path().join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// A folder of the good declarations, with one text in another way.
    fn declarations(&self, from: &str, to: &str) -> Result<PathBuf> {
        ensure!(from.is_empty() || DECLARATIONS.contains(from), "{from:?} is not declared");
        let folder = self.folder("declarations")?;
        let text = if from.is_empty() { to.to_owned() } else { DECLARATIONS.replace(from, to) };
        std::fs::write(folder.join("features.py"), text)?;
        std::fs::write(folder.join("requirements.txt"), "# nothing\n")?;
        Ok(folder)
    }

    fn outstation_in(&self, folder: &Path, arguments: &[&str]) -> Result<Said> {
        Ok(self.world.outstation_in(folder, arguments)?.into())
    }

    fn context(&self) -> PathBuf {
        self.world.system.context_path()
    }

    async fn call(&self, target: &str, rows: Vec<ApiRow>, timeout: Duration) -> Answered {
        let request = CallRequest { target: target.to_owned(), rows };
        self.caller.call(request, timeout).await
    }

    /// As before: a call is answered, and all that was started is still the first of its name.
    async fn serves(&self) -> Result<()> {
        let answered = self.call("speed", vec![calls::good_row()], PATIENCE).await;
        match answered.outcome {
            Ok(CallResponse { results }) if results.len() == 1 => {}
            Ok(response) => bail!("a good call is answered with {response:?}"),
            Err(status) => bail!("a good call fails: {:?} {}", status.code(), status.message()),
        }
        for service in [ServiceName::AwsSim, ServiceName::Broker, ServiceName::AccountAgent] {
            let state = self.world.system.state_of(service);
            ensure!(state.starts == 1, "{service:?} was restarted: {:?}", state.last_exit);
        }
        let groups = self.world.system.admin().await?.groups().await?;
        ensure!(groups.len() == 1, "the broker has {} groups", groups.len());
        Ok(())
    }

    async fn act(self: &Arc<Ground>, act: &Act) -> Result<Said> {
        match act {
            Act::Cli(arguments) => self.outstation_in(self.world.declarations(), arguments),
            Act::Declared(from, to) => {
                let folder = self.declarations(from, to)?;
                self.outstation_in(&folder, &["plan", "."])
            }
            Act::Context(entry, value, arguments) => {
                context::outstation_with(self, entry, value, arguments)
            }
            Act::Do(act) => act(self.clone()).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_person_gets_wrong_is_told_and_harms_nobody() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start_by_token("bad-inputs").await?;
    std::fs::write(world.declarations().join("features.py"), DECLARATIONS)?;
    std::fs::write(world.declarations().join("requirements.txt"), "# nothing\n")?;
    world.apply(NODES).await?;
    let caller = world.caller().await?;
    let ground = Arc::new(Ground { world, caller, scratch: tempfile::tempdir()? });

    let mut verdicts = Verdicts::default();
    // One part of it, for who works on that: OUTSTATION_BAD=context.
    let only = std::env::var("OUTSTATION_BAD").unwrap_or_default();
    for (part, table) in [
        ("arguments", cli::TABLE),
        ("declarations", declarations::TABLE),
        ("context", context::TABLE),
        ("calls", calls::TABLE),
        ("disks", disks::TABLE),
        ("links", links::TABLE),
        ("wire", wire::TABLE),
    ] {
        for row in table.iter().filter(|_| part.contains(&only)) {
            let said = ground.act(&row.1).await;
            let said = said.unwrap_or_else(|error| Said {
                ends: format!("cannot be done: {error:#}"),
                text: String::new(),
            });
            verdicts.add(row, &said);
            verdicts.also(row.0, ground.serves().await);
        }
    }
    // Nothing was given up or started in another way.
    ground.world.ready(NODES).await?;
    let rows = verdicts.rows();
    assert!(!only.is_empty() || rows >= 50, "{rows} rows");
    let tails = ground.world.system.log_tails(5);
    let finished = verdicts.finish().map_err(|error| error.context(tails));
    let Ok(ground) = Arc::try_unwrap(ground).map_err(drop) else { bail!("something goes on") };
    ground.world.system.shutdown().await?;
    finished
}
