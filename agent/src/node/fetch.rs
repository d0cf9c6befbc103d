//! `outstation-agent fetch-environment`: what an image is baked with, by the same path as an instance
//! takes.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use outstation_protocol::Digest;

use super::environments::Environments;
use crate::clock;
use crate::hint::Hinted;
use crate::store::{Access, AccountStore, Location};

#[derive(Debug, Args)]
pub struct FetchArgs {
    /// As `outstation plan` shows it: sha256:…
    digest: Digest,
    /// The account store: a folder, or s3://BUCKET/PREFIX
    #[arg(long, value_name = "WHERE")]
    store: Location,
    /// Where environments are kept; name it to the node agent as well
    #[arg(long, value_name = "DIR")]
    environments: PathBuf,
    /// An interpreter; may be given once for each version of Python  [default: python3.X on the path]
    #[arg(long, value_name = "PATH")]
    python: Vec<PathBuf>,
}

/// Ends when everything is on disk.
pub fn run(args: FetchArgs) -> Result<()> {
    let root = std::path::absolute(&args.environments).context("find the environments' folder")?;
    if let Location::Folder(folder) = &args.store
        && !folder.is_dir()
    {
        return Err(Hinted::error(
            format!("there is no account store at {}", folder.display()),
            "mount it, or correct --store",
        ));
    }
    let store = AccountStore::open(&args.store, Access::of_environment(None))
        .context("open the account store")?;
    let environments = Environments::new(store, &root, args.python);
    let start = clock::now();
    let progress = environments.install(&args.digest)?;
    let took = clock::now().duration_since(start).as_secs_f64();
    environments.sync(&args.digest)?;
    let synced = clock::now().duration_since(start).as_secs_f64();
    println!(
        "{}: {} of {} bytes fetched and verified in {took:.3} s, on disk after {synced:.3} s",
        args.digest, progress.bytes_fetched, progress.bytes
    );
    Ok(())
}
