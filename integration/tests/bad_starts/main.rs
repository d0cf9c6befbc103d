//! Programs that are started wrongly: with a configuration, files, a disk, a port, a user or an
//! interpreter that will not do. Those that cannot work end with two lines; those that must go on say
//! what is wrong; nothing that was there before is lost.

mod agent;
mod broker;
mod others;

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use outstation_integration::bad::{Row, Said, Verdicts, contents, run_to_end, run_until_told};
use outstation_integration::binaries;
use tempfile::TempDir;

/// What is wrong with an otherwise good start.
enum Wrong {
    /// This text of the configuration reads like that.
    Config(&'static str, &'static str),
    /// This file holds that.
    File(&'static str, &'static [u8]),
    /// This file is not there.
    Missing(&'static str),
    /// A folder stands in the place of this file, or a file in that of a folder.
    Kind(&'static str),
    /// This folder lies on a disk that is full: with nothing of before, or with all of it.
    Full(&'static str),
    Filled(&'static str),
    /// It lies on a disk that cannot be written.
    ReadOnly(&'static str),
    /// Somebody else starts it.
    Nobody,
    Do(fn(&Place, &mut Command) -> Result<()>),
}

type Table = &'static [Row<Wrong>];

/// A folder in which a program has run well before.
struct Place {
    folder: TempDir,
    /// Below the folder.
    config: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    /// Processes and sockets that last as long as it does.
    beside: RefCell<Vec<Beside>>,
}

enum Beside {
    Process(Child),
    Udp(#[expect(dead_code, reason = "held, not used")] UdpSocket),
    Tcp(#[expect(dead_code, reason = "held, not used")] TcpListener),
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Beside::Process(child) = self {
            // Errors say that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Place {
    fn new(program: &'static str, arguments: &'static [&'static str]) -> Result<Place> {
        let (folder, beside) = (tempfile::tempdir()?, RefCell::default());
        Ok(Place { folder, config: "", program, arguments, beside })
    }

    fn with_config(mut self, name: &'static str, text: &str) -> Result<Place> {
        self.config = name;
        std::fs::write(self.path(name), text)?;
        Ok(self)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binaries().join(self.program));
        command.args(self.arguments).current_dir(self.folder.path());
        command.env("RUST_LOG", "info");
        if !self.config.is_empty() {
            command.arg("--config").arg(self.path(self.config));
        }
        command
    }

    /// The same again, to be made wrong.
    fn again(&self) -> Result<Place> {
        let mut again = Place::new(self.program, self.arguments)?;
        again.config = self.config;
        copy(self.folder.path(), again.folder.path())?;
        Ok(again)
    }

    /// A port that somebody else has: with the address in the place of this text.
    fn taken(&self, kind: &str, from: &str, to: impl Fn(SocketAddr) -> String) -> Result<()> {
        let (address, held) = if kind == "UDP" {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            (socket.local_addr()?, Beside::Udp(socket))
        } else {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            (listener.local_addr()?, Beside::Tcp(listener))
        };
        self.beside.borrow_mut().push(held);
        self.change_config(from, &to(address))
    }

    /// Another process, until this place is gone; it has said these words.
    fn start_beside(&self, command: &mut Command, words: &str) -> Result<()> {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let log = child.stderr.take().context("piped")?;
        self.beside.borrow_mut().push(Beside::Process(child));
        let mut lines = BufReader::new(log).lines();
        for line in lines.by_ref() {
            if line?.contains(words) {
                // What it says later must not hold it up.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(());
            }
        }
        anyhow::bail!("it has ended and did not say {words:?}")
    }

    fn change_config(&self, from: &str, to: &str) -> Result<()> {
        let path = self.path(self.config);
        let text = std::fs::read_to_string(&path)?;
        ensure!(text.contains(from), "{from:?} is not in the configuration");
        Ok(std::fs::write(&path, text.replace(from, to))?)
    }

    fn run(&self, good: &Place, wrong: &Wrong, told: &str) -> Result<Said> {
        use outstation_integration::bad::{filled_disk, full_disk, read_only, with_mounts};
        let mut command = self.command();
        match wrong {
            Wrong::Config(from, to) => self.change_config(from, to)?,
            Wrong::File(name, bytes) => std::fs::write(self.path(name), bytes)?,
            Wrong::Missing(name) => std::fs::remove_file(self.path(name))?,
            Wrong::Kind(name) => {
                let path = self.path(name);
                if path.is_dir() {
                    std::fs::remove_dir_all(&path)?;
                    std::fs::write(&path, "a file")?;
                } else {
                    std::fs::remove_file(&path)?;
                    std::fs::create_dir(&path)?;
                }
            }
            Wrong::Full(name) => command = with_mounts(&full_disk(&self.path(name)), &command),
            Wrong::Filled(name) => command = with_mounts(&filled_disk(&self.path(name)), &command),
            Wrong::ReadOnly(name) => command = with_mounts(&read_only(&self.path(name)), &command),
            Wrong::Nobody => {
                use std::os::unix::process::CommandExt as _;
                open_to_all(self.folder.path())?;
                command.uid(65534).gid(65534);
            }
            Wrong::Do(act) => act(self, &mut command)?,
        }
        let (was, before) = (contents(good.folder.path())?, contents(self.folder.path())?);
        let said = if told.is_empty() {
            run_to_end(&mut command)
        } else {
            run_until_told(&mut command, told)
        }?;
        let after = contents(self.folder.path())?;
        // Nothing is removed, and what was damaged is left to whoever repairs it.
        let lost = before.iter().find(|(name, bytes)| {
            let damaged = was.get(*name) != Some(bytes);
            let left = after.get(*name);
            let sqlite = name.ends_with("-wal") || name.ends_with("-shm");
            // Written again with what is known by then.
            let remembered = name.ends_with("nodes.json");
            !sqlite && !remembered && (left.is_none() || damaged && left != Some(bytes))
        });
        Ok(said.and(match lost {
            Some((name, _)) => Err(anyhow::anyhow!("{name} is lost")),
            None => Ok(()),
        }))
    }
}

/// Runs every row. Of a process that goes on, the first words are awaited in its log.
fn judge(good: &Place, tables: &[Table]) -> Result<Verdicts> {
    let mut verdicts = Verdicts::default();
    for row in tables.iter().copied().flatten() {
        let told =
            if row.2 == "goes on" { row.3.split('*').next().unwrap_or_default() } else { "" };
        let said = good.again().and_then(|place| place.run(good, &row.1, told));
        let said = said.unwrap_or_else(|error| Said {
            ends: format!("cannot be done: {error:#}"),
            text: String::new(),
        });
        verdicts.add(row, &said);
    }
    Ok(verdicts)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status()?;
    ensure!(status.success(), "cp: {status}");
    Ok(())
}

/// Others may come to the folder, but to nothing that is private in it.
fn open_to_all(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).context("open it")
}
