//! The real data of the example: prepared once by its own script, kept as one JSON row a line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value as Json;
use tokio::process::Command;

use outstation_protocol::ids::Digest;

use crate::clean_env;
use crate::message::{Failure, Hint as _};
use crate::progress;

/// Some seconds; this is a machine that does a hundred other things.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(300);
const SCRIPT: &str = "departures.py";

/// Rows to call with, taken evenly from the whole year.
pub struct Departures {
    text: String,
    lines: usize,
}

impl Departures {
    /// Runs the folder's `departures.py`, if it has one, unless its output is in the cache.
    pub async fn load(
        python: &Path,
        dir: &Path,
        cache: &Path,
    ) -> anyhow::Result<Option<Departures>> {
        let script = dir.join(SCRIPT);
        if !script.is_file() {
            return Ok(None);
        }
        let source = fs::read(&script)
            .with_context(|| format!("read {}", script.display()))
            .hint("`outstation dev` drives calls with the rows that this script writes")?;
        let key = Digest::of(&source).hex();
        let path = cache.join(format!("departures-{}.ndjson", &key[..16]));
        if !path.is_file() {
            prepare(python, &script, &path).await?;
        }
        let text = fs::read_to_string(&path).context("read the prepared departures")?;
        let lines = text.lines().count();
        if lines == 0 {
            let what = format!("{} wrote no rows", script.display());
            return Err(Failure::new(what, "run it by hand").into());
        }
        Ok(Some(Departures { text, lines }))
    }

    pub fn len(&self) -> usize {
        self.lines
    }

    pub fn is_empty(&self) -> bool {
        self.lines == 0
    }

    /// `count` rows, evenly spread; again from the start when there are fewer.
    pub fn rows(&self, count: usize) -> impl Iterator<Item = anyhow::Result<Json>> + '_ {
        let stride = (self.lines / count.max(1)).max(1);
        let sample = self.text.lines().step_by(stride);
        sample
            .cycle()
            .take(count)
            .map(|line| serde_json::from_str(line).context("read a prepared departure"))
    }
}

async fn prepare(python: &Path, script: &Path, path: &PathBuf) -> anyhow::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    let _spinner = progress::spinner("preparing the departures, once");
    let home = tempfile::tempdir().context("create an empty home")?;
    let output = Command::new(python)
        .arg(script)
        .arg(path)
        .env_clear()
        .envs(clean_env::for_declarations(home.path()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", python.display()))?
        .wait_with_output();
    let output = tokio::time::timeout(PREPARE_TIMEOUT, output)
        .await
        .context("preparing the departures took over 5 minutes")
        .hint("run the script by hand")?
        .context("wait for the departures")?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let said = stderr.lines().find_map(|line| line.strip_prefix("error: "));
        let last = said.or(stderr.lines().last()).unwrap_or("it said nothing").to_owned();
        return Err(Failure::new(
            format!("{} failed: {last}", script.display()),
            "install the example's requirements-data.txt into that interpreter (`cargo dev` does)",
        )
        .into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_spread_over_all_lines_and_come_again() {
        let text: String = (0..10).map(|n| format!("{{\"n\":{n}}}\n")).collect();
        let departures = Departures { text, lines: 10 };
        let numbers = |count: usize| -> Vec<u64> {
            departures
                .rows(count)
                .map(|row| row.expect("valid")["n"].as_u64().expect("a number"))
                .collect()
        };
        assert_eq!(numbers(2), [0, 5]);
        assert_eq!(numbers(12), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]);
    }
}
