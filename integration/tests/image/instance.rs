//! One instance by hand: metadata, an account store, and the node agent as its unit starts it. No account
//! agent, no broker.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outstation_cli::artifacts::Repo;
use outstation_integration::s3::S3;
use outstation_integration::{LONG, binaries, python};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Instance metadata, version 2, as far as a node asks it. Whoever asks is written down.
pub struct Metadata {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Metadata {
    pub async fn start(address: SocketAddr, texts: BTreeMap<String, String>) -> Result<Metadata> {
        let listener = TcpListener::bind(address).await.context("bind instance metadata")?;
        let address = listener.local_addr()?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (texts, log) = (texts.clone(), log.clone());
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let request = String::from_utf8_lossy(&request).into_owned();
                    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                    let (status, body) = match texts.get(path.trim_start_matches("/latest/")) {
                        Some(text) => ("200 OK", text.as_str()),
                        None => ("404 Not Found", ""),
                    };
                    log.lock().expect("no panic").push(path);
                    let answer = format!(
                        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                        body.len()
                    );
                    // Whoever asked may be gone.
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        Ok(Metadata { address, asked })
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

pub struct Instance {
    folder: tempfile::TempDir,
    pub address: Ipv4Addr,
    pub metadata: Metadata,
    store: String,
    variables: Vec<(&'static str, String)>,
    socket: UnixDatagram,
    told: Vec<String>,
    node: Option<Child>,
}

impl Instance {
    /// Born with the tags of a group that serves `features`, in an environment of `outstation` alone.
    pub async fn new(metadata: SocketAddr, address: Ipv4Addr, features: &str) -> Result<Instance> {
        Instance::with(metadata, address, features, "").await
    }

    pub async fn with(
        metadata: SocketAddr,
        address: Ipv4Addr,
        features: &str,
        requirements: &str,
    ) -> Result<Instance> {
        let folder = tempfile::tempdir()?;
        // Functions of another user read the environment and the bundle that are in it.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let (repo, store) = (folder.path().join("repo"), folder.path().join("store"));
        fs::create_dir_all(&repo)?;
        fs::write(repo.join("features.py"), features)?;
        fs::write(repo.join("requirements.txt"), requirements)?;
        let repo = Repo::load(&python(), &repo).await?;
        repo.write(&store).await?;
        let environment = repo.environments.values().next().context("one environment")?;
        let mut texts: BTreeMap<String, String> = [
            ("api/token", "token"),
            ("meta-data/instance-id", "i-0123456789abcdef0"),
            ("meta-data/autoscaling/target-lifecycle-state", "InService"),
            ("meta-data/iam/security-credentials", "outstation-node"),
            ("meta-data/iam/security-credentials/", "outstation-node"),
            (
                "meta-data/iam/security-credentials/outstation-node",
                r#"{"Code":"Success","AccessKeyId":"ASIAABCDEFGHIJ234567","SecretAccessKey":"known-to-the-test","Token":"t","Expiration":"2036-11-22T12:00:00Z"}"#,
            ),
        ]
        .map(|(path, text)| (path.to_owned(), text.to_owned()))
        .into();
        texts.insert("meta-data/local-ipv4".into(), address.to_string());
        let tags = [
            ("tenant", "dev".to_owned()),
            ("group", "delay".to_owned()),
            ("generation", "1".to_owned()),
            ("environment", environment.digest.to_string()),
            ("bundle", repo.bundle.digest.to_string()),
        ];
        let names: Vec<String> =
            tags.iter().map(|(name, _)| format!("outstation:{name}")).collect();
        texts.insert("meta-data/tags/instance".into(), names.join("\n"));
        for (name, value) in tags {
            texts.insert(format!("meta-data/tags/instance/outstation:{name}"), value);
        }
        let metadata = Metadata::start(metadata, texts).await?;
        let socket = UnixDatagram::bind(folder.path().join("notify"))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let store = store.display().to_string();
        let (variables, told) = (Vec::new(), Vec::new());
        Ok(Instance { folder, address, metadata, store, variables, socket, told, node: None })
    }

    /// Programs that another user may start, wherever this checkout is.
    fn program(&self, name: &str) -> Result<PathBuf> {
        let program = self.folder.path().join(name);
        if !program.exists() {
            fs::copy(binaries().join(name), &program)?;
        }
        Ok(program)
    }

    /// Its account store is a bucket from here on, and no folder any more.
    pub fn move_store_into(&mut self, s3: &S3) -> Result<()> {
        for kind in ["environments", "bundles"] {
            let folder = self.path("store/artifacts").join(kind);
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                s3.put(&format!("prod/artifacts/{kind}/{name}"), &fs::read(entry.path())?)?;
            }
        }
        fs::remove_dir_all(self.path("store"))?;
        self.store = "s3://store/prod".to_owned();
        self.variables = s3.variables();
        Ok(())
    }

    pub fn start_node(&mut self, more: &[&str]) -> Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.path("node.log"))?;
        // As systemd does, which names the process that it means.
        let child = Command::new("/bin/sh")
            .args(["-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\""])
            .arg(self.program("outstation-agent")?)
            .args(["node", "--account-agent", "127.0.0.1:9", "--account", "123456789012"])
            .args(["--region", "eu-central-1", "--store", &self.store])
            .envs(self.variables.clone())
            .arg("--dir")
            .arg(self.path("instances"))
            .arg("--transform-server")
            .arg(self.program("outstation-transform-server")?)
            .args(["--imds", &format!("http://{}", self.metadata.address)])
            .args(more)
            .env("NOTIFY_SOCKET", self.path("notify"))
            .env("WATCHDOG_USEC", "400000")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.node = Some(child);
        Ok(())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn kill_node(&mut self) -> Result<()> {
        if let Some(mut node) = self.node.take() {
            node.kill()?;
            node.wait()?;
        }
        Ok(())
    }

    /// The instance is no more: its agent, and the servers that outlive it. Each is found by its folder in its command line.
    pub fn end(&mut self) -> Result<()> {
        self.kill_node()?;
        let deadline = Instant::now() + LONG;
        loop {
            let left = outstation_integration::processes(self.folder.path());
            if left.is_empty() {
                // What it has told and nobody has heard yet is not the next one's.
                self.socket.set_nonblocking(true)?;
                while self.socket.recv(&mut [0; 4096]).is_ok() {}
                return Ok(self.socket.set_nonblocking(false)?);
            }
            for pid in left.into_keys() {
                // It may have ended since.
                let _ = kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL);
            }
            ensure!(Instant::now() < deadline, "a process does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path("node.log"))?)
    }

    /// Waits until the service manager has been told something that `is` so; everything that it was told
    /// since the last time.
    pub fn until_told(&mut self, what: &str, is: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + LONG;
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            if let Ok(read) = self.socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..read]).trim().to_owned();
                self.told.push(text.clone());
                if is(&text) {
                    return Ok(text);
                }
            }
        }
        let log = fs::read_to_string(self.path("node.log")).unwrap_or_default();
        bail!("{what}: told only {:?}\n{log}", self.told)
    }

    /// Processes of the server on that port.
    pub fn server_pid(&self) -> Result<u64> {
        let path = self.path("instances/i-0123456789abcdef0/server.json");
        let memory: serde_json::Value = serde_json::from_slice(&fs::read(path)?)?;
        memory["servers"][0]["pid"].as_u64().context("a server")
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // A test that has failed already says why.
        drop(self.end());
    }
}

/// In `ami/image/`.
pub fn image(file: &str) -> PathBuf {
    Path::new(&outstation_integration::workspace()).join("ami/image").join(file)
}
