//! `aws-sim serve` as a process of its own, with a port and an address range that no other test has.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

/// Longest wait for something that takes well under a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub const ACCESS_KEY: &str = "ASIAEXAMPLEAGENT";
pub const SECRET: &str = "agent-secret";
pub const TOKEN: &str = "agent/token+=";

pub struct Serve {
    pub child: Child,
    pub endpoint: SocketAddr,
    pub dir: tempfile::TempDir,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Line {
    pub instance_id: String,
    pub group: String,
    pub address: String,
    pub launcher_pid: Option<i32>,
    pub lifecycle_state: String,
    pub imds: String,
}

impl Serve {
    /// `net` is the second octet of the instances' addresses; each test that may run at the same time has its own.
    pub fn start(net: u8, user_data: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("user-data.sh");
        std::fs::write(&script, user_data).unwrap();
        let endpoint = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = format!(
            r#"
listen = "{endpoint}"
account = "123456789012"
region = "eu-central-1"
instance_net = "127.{net}.0.0"
instance_role = "outstation-node"
instance_role_id = "AROAEXAMPLENODE"
dir = "{0}/aws-sim"
[[principals]]
access_key_id = "{ACCESS_KEY}"
secret_access_key = "{SECRET}"
session_token = "{TOKEN}"
arn = "arn:aws:sts::123456789012:assumed-role/outstation-agent/dev"
user_id = "AROAEXAMPLEAGENT:dev"
[[launch_templates]]
name = "outstation-node"
id = "lt-0123456789abcdef0"
version = 1
user_data = "{1}"
[[launch_templates]]
name = "outstation-node"
id = "lt-0123456789abcdef0"
version = 2
user_data = "{1}"
"#,
            dir.path().display(),
            script.display()
        );
        let path = dir.path().join("sim.toml");
        std::fs::write(&path, config).unwrap();
        let child = serve(&path)
            .stderr(std::fs::File::create(dir.path().join("sim.log")).unwrap())
            .spawn()
            .unwrap();
        let mut this = Serve { child, endpoint, dir };
        this.until("it listens", |serve| serve.get("/_sim/health").filter(|body| body == "ok"));
        this
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.endpoint)
    }

    pub fn get(&self, path: &str) -> Option<String> {
        http(
            self.endpoint,
            &format!("GET {path} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\n\r\n"),
        )
    }

    pub fn instances(&self) -> Vec<Line> {
        serde_json::from_str(&self.get("/_sim/instances").unwrap_or_default()).unwrap_or_default()
    }

    /// Waits until `count` instances are InService and no other is left.
    pub fn in_service(&mut self, count: usize) -> Vec<Line> {
        self.until(&format!("{count} instances are in service"), |serve| {
            Some(serve.instances()).filter(|lines| {
                lines.len() == count && lines.iter().all(|line| line.lifecycle_state == "InService")
            })
        })
    }

    /// Polls until there is a value; prints the simulation's log when patience ends.
    pub fn until<T>(&mut self, what: &str, mut found: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = found(self) {
                return value;
            }
            if Instant::now() > deadline || self.child.try_wait().unwrap().is_some() {
                let log =
                    std::fs::read_to_string(self.dir.path().join("sim.log")).unwrap_or_default();
                panic!("waited for: {what}\ninstances: {:?}\nlog:\n{log}", self.instances());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn serve(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aws-sim"));
    command.args(["serve", "--config"]).arg(config).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// One exchange over plain HTTP/1.1; the body, if there is an answer with 200.
pub fn http(to: SocketAddr, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
}

/// A document of an instance's IMDS.
pub fn imds(base: &str, path: &str) -> Option<String> {
    let to: SocketAddr = base.strip_prefix("http://")?.parse().ok()?;
    let ttl = "x-aws-ec2-metadata-token-ttl-seconds: 60";
    let token = http(
        to,
        &format!(
            "PUT /latest/api/token HTTP/1.1\r\nhost: imds\r\n{ttl}\r\nconnection: close\r\n\r\n"
        ),
    )?;
    http(
        to,
        &format!(
            "GET /latest/{path} HTTP/1.1\r\nhost: imds\r\nx-aws-ec2-metadata-token: {token}\r\nconnection: close\r\n\r\n"
        ),
    )
}

/// Pids (in this namespace) whose command line contains `marker`, with their parents' pids.
pub fn processes(marker: &str) -> BTreeMap<i32, i32> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let mut fields = rest.split(' ');
        // A zombie has no command line and only waits to be collected.
        let (state, parent) = (fields.next(), fields.next().and_then(|parent| parent.parse().ok()));
        if state != Some("Z") && String::from_utf8_lossy(&line).contains(marker) {
            found.insert(pid, parent.unwrap_or(0));
        }
    }
    found
}
