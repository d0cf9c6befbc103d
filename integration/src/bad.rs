//! Bad inputs as a table: what is done, how it must end, and the words that a person must read then.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Run;

/// name, what is done, how it ends, the words of the `error:` line and of the `hint:` line.
///
/// An end is `exit 1`, a gRPC code such as `NOT_FOUND`, or `goes on` for a process that must. Words
/// hold `*` for whatever stands between; none at all mean that there must be no such line.
pub type Row<Act> = (&'static str, Act, &'static str, &'static str, &'static str);

/// How something ended, and everything that it said.
#[derive(Debug, Clone)]
pub struct Said {
    pub ends: String,
    pub text: String,
}

impl Said {
    /// A gRPC answer; its message counts as the `error:` line.
    pub fn status(code: &str, message: &str) -> Said {
        Said { ends: code.to_owned(), text: format!("error: {}", message.replace('\n', " ")) }
    }

    pub fn ok() -> Said {
        Said { ends: "OK".to_owned(), text: String::new() }
    }

    /// The same, but nothing is told beside how it ended.
    pub fn and(self, also: Result<()>) -> Said {
        match also {
            Ok(()) => self,
            Err(error) => Said { ends: format!("{}, but {error:#}", self.ends), ..self },
        }
    }

    fn line(&self, prefix: &str) -> Vec<&str> {
        self.text.lines().filter_map(|line| line.strip_prefix(prefix)).collect()
    }
}

impl From<Run> for Said {
    fn from(run: Run) -> Said {
        Said { ends: format!("exit {}", run.code), text: run.stderr }
    }
}

/// Every row that did not end as it must, and the whole table for those who look (`--no-capture`).
#[derive(Default)]
pub struct Verdicts {
    rows: usize,
    wrong: Vec<String>,
}

impl Verdicts {
    pub fn add<Act>(&mut self, (name, _, ends, error, hint): &Row<Act>, said: &Said) {
        self.rows += 1;
        println!("{name}\n    {}", said.ends);
        let mut complaints = Vec::new();
        if said.ends != *ends {
            complaints.push(format!("ended with {}, not {ends}", said.ends));
        }
        for (prefix, words) in [("error: ", error), ("hint: ", hint)] {
            let lines = said.line(prefix);
            lines.iter().for_each(|line| println!("    {prefix}{line}"));
            match lines.as_slice() {
                [] if words.is_empty() => {}
                [line] if !words.is_empty() && holds(line, words) => {}
                _ => complaints.push(format!("{prefix}{lines:?} should be one with {words:?}")),
            }
        }
        if said.text.contains("panicked at") {
            complaints.push("it panicked".to_owned());
        }
        if !complaints.is_empty() {
            let complaints = complaints.join("\n  ");
            self.wrong.push(format!("{name}:\n  {complaints}\n  all it said: {}", said.text));
        }
    }

    /// What else must hold after a row, such as that others are still served.
    pub fn also(&mut self, name: &str, holds: Result<()>) {
        if let Err(error) = holds {
            self.wrong.push(format!("after {name}: {error:#}"));
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn finish(self) -> Result<()> {
        let Verdicts { rows, wrong } = self;
        if !wrong.is_empty() {
            bail!("{} of {rows} rows are wrong:\n\n{}", wrong.len(), wrong.join("\n\n"));
        }
        println!("{rows} rows");
        Ok(())
    }
}

/// Whether the text holds the words between the stars, in their order.
fn holds(text: &str, words: &str) -> bool {
    let mut rest = text;
    words.split('*').map(str::trim).all(|word| {
        let Some(at) = rest.find(word) else { return false };
        rest = &rest[at + word.len()..];
        true
    })
}

/// Runs a program to its end, which must come: one that is still there after a minute has not
/// understood that it cannot work.
pub fn run_to_end(command: &mut Command) -> Result<Said> {
    let errors = tempfile::tempfile()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors.try_clone()?)
        .spawn()
        .context("start it")?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let code = loop {
        if let Some(status) = child.try_wait()? {
            break status.code().map_or_else(|| status.to_string(), |code| format!("exit {code}"));
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            break "goes on".to_owned();
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Ok(Said { ends: code, text: read_from_start(errors)? })
}

/// A process that must go on: waits until it has told of something, then ends it. The line counts as
/// its `error:` line.
pub fn run_until_told(command: &mut Command, words: &str) -> Result<Said> {
    let log = tempfile::NamedTempFile::new()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.reopen()?)
        .spawn()
        .context("start it")?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let said = loop {
        let ended = child.try_wait()?;
        let text = String::from_utf8_lossy(&std::fs::read(log.path())?).into_owned();
        if let Some(status) = ended {
            break Said { ends: status.to_string(), text };
        }
        if let Some(line) = text.lines().find(|line| line.contains(words)) {
            break Said { ends: "goes on".to_owned(), text: format!("error: {line}") };
        }
        if Instant::now() > deadline {
            break Said { ends: "goes on and says nothing of it".to_owned(), text };
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    end(&mut child)?;
    Ok(said)
}

/// As a service manager ends it: SIGTERM, then SIGKILL.
fn end(child: &mut Child) -> Result<()> {
    // ESRCH: it has ended already.
    let _ = kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM);
    let deadline = Instant::now() + Duration::from_secs(10);
    while child.try_wait()?.is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    // An error says that it has ended already.
    let _ = child.kill();
    child.wait()?;
    Ok(())
}

/// The same command with mounts of its own, which end with it, however it ends.
pub fn with_mounts(script: &str, command: &Command) -> Command {
    let mut wrapped = Command::new("unshare");
    wrapped.args(["--mount", "--propagation", "private", "sh", "-c"]);
    wrapped.arg(format!("set -e; {script}; exec \"$0\" \"$@\""));
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    wrapped
}

/// A disk of so many bytes over a folder, filled to the last.
pub fn full_disk(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "mount -t tmpfs -o size=64k none '{folder}'; \
         (cat /dev/zero > '{folder}/filled' 2>/dev/null || true)"
    )
}

/// The folder as it is, on a disk that has been filled since.
pub fn filled_disk(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "kept=$(mktemp); tar -C '{folder}' -cf \"$kept\" .; \
         mount -t tmpfs -o size=256k none '{folder}'; tar -C '{folder}' -xf \"$kept\"; rm \"$kept\"; \
         (cat /dev/zero > '{folder}/filled' 2>/dev/null || true)"
    )
}

/// The folder as it is, on a disk that cannot be written.
pub fn read_only(folder: &Path) -> String {
    let folder = folder.display();
    format!("mount --bind '{folder}' '{folder}'; mount -o remount,bind,ro '{folder}'")
}

fn read_from_start(mut file: std::fs::File) -> Result<String> {
    use std::io::{Read as _, Seek as _};
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Names and contents of every regular file below a folder: what must not be lost.
pub fn contents(folder: &Path) -> Result<std::collections::BTreeMap<String, Vec<u8>>> {
    let mut found = std::collections::BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                let name = path.strip_prefix(folder)?.display().to_string();
                found.insert(name, std::fs::read(&path)?);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_ends_otherwise_is_wrong() {
        let row: Row<()> = ("name", (), "exit 1", "no such * here", "look *there");
        let said = |ends: &str, text: &str| Said { ends: ends.into(), text: text.into() };
        for (said, right) in [
            (said("exit 1", "error: no such thing here\nhint: look over there"), true),
            (said("exit 2", "error: no such thing here\nhint: look over there"), false),
            (said("exit 1", "error: here is no such\nhint: look over there"), false),
            (said("exit 1", "error: no such thing here"), false),
            (said("exit 1", "error: no such x here\nerror: again\nhint: look over there"), false),
            (said("exit 1", "panicked at x\nerror: no such x here\nhint: look there"), false),
        ] {
            let mut verdicts = Verdicts::default();
            verdicts.add(&row, &said);
            assert_eq!(verdicts.finish().is_ok(), right, "{said:?}");
        }
    }
}
