//! A broker process, an account agent process, and the commands of a person who works with them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outstation_cli::dev::Slot;
use outstation_integration::venv::python_with_moto;
use outstation_integration::{LONG, Run, binaries, workspace};
use outstation_protocol::v1::{Evidence, FromIssuer};
use rcgen::KeyPair;
use serde_json::Value as Json;
use tempfile::TempDir;

use crate::proof::{Conversation, Sent, Signing, csr, data_plane};
use crate::sts::{REGION, Session};

pub struct Process(Child);

impl Process {
    /// As a service manager ends it: it says goodbye.
    pub fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.0.id())?), Signal::SIGTERM)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Rig {
    pub slot: Slot,
    pub dir: TempDir,
    pub sts_url: String,
    broker: Option<Process>,
}

impl Rig {
    /// A broker that asks the STS at `sts_url`, and knows no data plane.
    pub async fn start(sts_url: &str) -> Result<Rig> {
        let (slot, dir) = (Slot::claim()?, tempfile::tempdir()?);
        let mut rig = Rig { slot, dir, sts_url: sts_url.to_owned(), broker: None };
        let (link, admin) = (rig.slot.broker_link(), rig.slot.broker_admin());
        let path = |name: &str| format!("{:?}", rig.dir.path().join(name));
        let (broker, token) = (path("broker"), path("broker/admin.token"));
        std::fs::write(
            rig.dir.path().join("broker.toml"),
            format!(
                "state = {broker}\ntenant = \"dev\"\n[link]\nlisten = \"{link}\"\n[admin]\n\
                 listen = \"{admin}\"\ntoken_file = {token}\n[sts]\nendpoint = \"{sts_url}\"\n"
            ),
        )?;
        let (root, store, python) =
            (path("broker/root.pem"), path("store"), outstation_integration::python());
        std::fs::write(
            rig.dir.path().join("context.toml"),
            format!(
                "tenant = \"dev\"\naccount = \"123456789012\"\nregion = \"{REGION}\"\n\
                 python = {python:?}\nartifacts = {store}\nunsigned_orders = \"dev\"\n[broker]\n\
                 url = \"https://{admin}\"\nca = {root}\nserver_name = \"broker.outstation\"\n\
                 token_file = {token}\n"
            ),
        )?;
        rig.start_broker().await?;
        Ok(rig)
    }

    pub async fn start_broker(&mut self) -> Result<()> {
        self.broker = None;
        self.broker = Some(self.spawn("outstation-broker", &[], "broker", &BTreeMap::new())?);
        let admin = self.slot.broker_admin();
        self.until(
            "the broker",
            || async move { tokio::net::TcpStream::connect(admin).await.is_ok() },
        )
        .await
    }

    fn spawn(
        &self,
        program: &str,
        arguments: &[&str],
        name: &str,
        env: &BTreeMap<String, String>,
    ) -> Result<Process> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("{name}.log")))?;
        let child = Command::new(binaries().join(program))
            .args(arguments)
            .arg("--config")
            .arg(self.dir.path().join(format!("{name}.toml")))
            .env_clear()
            .envs(env)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {program}"))?;
        Ok(Process(child))
    }

    async fn until<F: Future<Output = bool>>(
        &self,
        what: &str,
        mut is_so: impl FnMut() -> F,
    ) -> Result<()> {
        let deadline = tokio::time::Instant::now() + LONG;
        while !is_so().await {
            if tokio::time::Instant::now() > deadline {
                let log = |name| std::fs::read_to_string(self.dir.path().join(name));
                let logs = [log("broker.log"), log("agent.log")].map(Result::unwrap_or_default);
                bail!("no {what}\n{}\n{}", logs[0], logs[1]);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    pub fn outstation(&self, arguments: &[&str]) -> Result<Run> {
        let output = Command::new(binaries().join("outstation"))
            .args(arguments)
            .env("OUTSTATION_CONTEXT", self.dir.path().join("context.toml"))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()?;
        Ok(Run::from(output))
    }

    /// A command that must go well.
    pub fn done(&self, arguments: &[&str]) -> Result<String> {
        let run = self.outstation(arguments)?;
        if run.code != 0 {
            bail!("{arguments:?}: {run}");
        }
        Ok(run.stdout)
    }

    pub fn register(&self, name: &str, account: &str, role_id: &str) -> Result<String> {
        self.done(&[
            "dataplane",
            "add",
            name,
            "--account",
            account,
            "--region",
            REGION,
            "--role",
            "outstation-agent",
            "--role-id",
            role_id,
        ])
    }

    pub fn agents(&self) -> Result<Vec<Json>> {
        Ok(serde_json::from_str(&self.done(&["agents", "--json"])?)?)
    }

    /// Starts an account agent with these credentials; its state stays from one start to the next.
    pub fn agent(&self, account: &str, session: &Session) -> Result<Process> {
        let path = |name: &str| format!("{:?}", self.dir.path().join(name));
        let (link, nodes, callers) =
            (self.slot.broker_link(), self.slot.nodes(), self.slot.callers());
        std::fs::create_dir_all(self.dir.path().join("store/guardrails"))?;
        std::fs::write(
            self.dir.path().join("agent.toml"),
            format!(
                "tenant = \"dev\"\naccount = \"{account}\"\nregion = \"{REGION}\"\nstore = {}\n\
                 state = {}\n[aws]\nendpoint = \"{}\"\n[broker]\naddress = \"{link}\"\n\
                 server_name = \"broker.outstation\"\nroot = {}\n[nodes]\nlisten = \"{nodes}\"\n\
                 [callers]\nlisten = \"{callers}\"\ntoken_file = {}\n",
                path("store"),
                path("agent"),
                self.sts_url,
                path("broker/root.pem"),
                path("callers.token"),
            ),
        )?;
        let env = [
            ("AWS_ACCESS_KEY_ID", &session.key),
            ("AWS_SECRET_ACCESS_KEY", &session.secret),
            ("AWS_SESSION_TOKEN", &session.token),
        ]
        .map(|(name, value)| (name.to_owned(), value.clone()));
        self.spawn("outstation-agent", &["account"], "agent", &env.into())
    }

    /// Waits until exactly one agent is connected; its id.
    pub async fn connected(&self) -> Result<String> {
        let id = || -> Result<Option<String>> {
            let agents = self.agents()?;
            let mut ids = agents.iter().filter(|agent| agent["connected"] == true);
            Ok(ids.next().and_then(|agent| agent["id"].as_str()).map(str::to_owned))
        };
        self.until("connected agent", || async { matches!(id(), Ok(Some(_))) }).await?;
        id()?.context("it has gone again")
    }

    pub async fn nobody_connected(&self) -> Result<()> {
        let all_gone =
            || self.agents().is_ok_and(|all| all.iter().all(|a| a["connected"] == false));
        self.until("end of the session", || async { all_gone() }).await
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("broker/root.pem")
    }

    pub fn host(&self) -> &str {
        self.sts_url.trim_start_matches("http://")
    }

    pub async fn begin(&self) -> Result<Conversation> {
        Conversation::begin(self.slot.broker_link(), &self.root()).await
    }

    /// An honest proof for a conversation.
    pub fn honest(
        &self,
        conversation: &Conversation,
        account: &str,
        session: &Session,
        key: &KeyPair,
    ) -> Result<Sent> {
        let csr = csr(key)?;
        let signing = Signing::honest(account, self.host(), &conversation.challenge, &csr)?;
        let (data_plane, proof) = (data_plane(account)?, signing.prove(session)?);
        Ok(Sent { csr, evidence: Evidence::AccountSts { data_plane, proof } })
    }

    /// A whole honest enrollment: the identity that was issued.
    pub async fn enroll(&self, account: &str, session: &Session, key: &KeyPair) -> Result<String> {
        let mut conversation = self.begin().await?;
        let sent = self.honest(&conversation, account, session, key)?;
        conversation.show(sent).await?;
        match conversation.answer().await? {
            FromIssuer::Issued { identity, .. } => Ok(identity),
            other => bail!("not enrolled: {other:?}"),
        }
    }
}

/// moto or ministack, in a Python environment of their own.
pub struct OtherSts {
    pub url: String,
    pub account: String,
    pub role_id: String,
    pub agent: Session,
    pub other: Session,
    process: Process,
}

impl OtherSts {
    pub fn start(kind: &str) -> Result<OtherSts> {
        let here = workspace().join("integration/tests/enrollment");
        let mut child = Command::new(python_with_moto()?)
            .arg(here.join("other_sts.py"))
            .arg(kind)
            .env("NO_PROXY", "127.0.0.1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("piped")?;
        let process = Process(child);
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
        let told: Json = serde_json::from_str(&line).with_context(|| format!("start {kind}"))?;
        let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
        let session = |role: &str| {
            let role = &told["roles"][role];
            Session {
                key: text(&role["access_key_id"]),
                secret: text(&role["secret_access_key"]),
                token: text(&role["session_token"]),
            }
        };
        let ours = &told["roles"]["outstation-agent"];
        Ok(OtherSts {
            url: text(&told["url"]),
            account: text(&ours["account"]),
            role_id: text(&ours["role_id"]),
            agent: session("outstation-agent"),
            other: session("other"),
            process,
        })
    }
}

/// The script ends its server when its standard input does.
impl Drop for OtherSts {
    fn drop(&mut self) {
        drop(self.process.0.stdin.take());
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while matches!(self.process.0.try_wait(), Ok(None)) && std::time::Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
