//! The servers that are measured: started on their core, waited for until they answer, ended by pid.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Bench;
use crate::client::{Address, OK, Prepared};
use crate::drive::{self, Aim};
use crate::machine;

/// Importing pandas takes seconds on a busy machine.
const START_WAIT: Duration = Duration::from_secs(60);
const CONNECTIONS: usize = 4;

pub struct Server {
    child: Child,
    pub address: Address,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its workers end with it; it may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn aim(&self) -> Aim {
        self.aim_over(CONNECTIONS)
    }

    pub fn aim_over(&self, connections: usize) -> Aim {
        Aim { address: self.address.clone(), connections, server: Some(self.pid()) }
    }

    fn start(
        bench: &Bench,
        name: &str,
        cores: &[usize],
        command: &mut Command,
        address: Address,
    ) -> Result<Server> {
        let log = File::create(bench.folder.join("logs").join(format!("{name}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child =
            machine::pinned(cores, || command.spawn())?.with_context(|| format!("start {name}"))?;
        let mut server = Server { child, address };
        let request = Prepared::call("small", 1, None)?;
        let until = Instant::now() + START_WAIT;
        while !matches!(drive::ask(&server.address, &request), Ok((OK, _))) {
            if Instant::now() > until || server.child.try_wait()?.is_some() {
                bail!("{name} does not answer; see {}", bench.folder.join("logs").display());
            }
            sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// Ours, with everything switched on that it has.
    pub fn ours(bench: &Bench, cores: &[usize], workers: usize, unix: bool) -> Result<Server> {
        let port = free_port()?;
        let socket = bench.folder.join("ours.sock");
        let _ = std::fs::remove_file(&socket);
        let address = if unix { Address::Unix(socket.clone()) } else { tcp(port) };
        let mut command = Command::new(&bench.server);
        match unix {
            true => command.arg("--unix").arg(&socket),
            false => command.args(["--listen", &format!("127.0.0.1:{port}")]),
        };
        command
            .args(["--metrics", "127.0.0.1:0", "--workers", &workers.to_string()])
            .arg("--python")
            .arg(&bench.python)
            .arg("--python-path")
            .arg(bench.root.join("sdk"))
            .arg("--bundle")
            .arg(bench.root.join("integration/benches/bundle"))
            .args(&bench.server_options);
        Server::start(bench, "ours", cores, &mut command, address)
    }

    pub fn echo(bench: &Bench, unix: bool) -> Result<Server> {
        let port = free_port()?;
        let socket = bench.folder.join("echo.sock");
        let _ = std::fs::remove_file(&socket);
        let address = if unix { Address::Unix(socket) } else { tcp(port) };
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["echo", "--listen", &address.to_string()]);
        Server::start(bench, "echo", &[bench.server_core], &mut command, address)
    }

    pub fn grpcio(bench: &Bench) -> Result<Server> {
        let port = free_port()?;
        let mut command = Command::new(&bench.python);
        command
            .arg(peers(bench).join("grpcio_server.py"))
            .args(["--listen", &format!("127.0.0.1:{port}"), "--generated"])
            .arg(bench.folder.join("generated"));
        Server::start(bench, "grpcio", &[bench.server_core], &mut command, tcp(port))
    }
}

pub fn peers(bench: &Bench) -> std::path::PathBuf {
    bench.root.join("integration/benches/peers")
}

/// Runs `bare.py` on a core; what it prints is its calls a second.
pub fn bare(
    bench: &Bench,
    core: usize,
    arguments: &[&str],
    request: Option<&Path>,
) -> Result<Child> {
    let mut command = Command::new(&bench.python);
    command.arg(peers(bench).join("bare.py")).args(arguments).arg("--generated");
    command.arg(bench.folder.join("generated"));
    if let Some(request) = request {
        command.arg("--request").arg(request);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    machine::pinned(&[core], || command.spawn())?.context("start bare.py")
}

pub fn printed(child: Child) -> Result<f64> {
    let output = child.wait_with_output()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().context("bare.py printed no figure")
}

fn tcp(port: u16) -> Address {
    Address::Tcp(([127, 0, 0, 1], port).into())
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
