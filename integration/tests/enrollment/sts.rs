//! The STS that a broker asks: the simulated AWS, which checks signatures, with callers of every kind; or an answer that no STS
//! would give. Counts how often it was asked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use outstation_aws_sim::config::Config;
use outstation_aws_sim::model::Model;
use outstation_aws_sim::policy::Guard;
use outstation_aws_sim::wire::Sim;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

pub const ACCOUNT: &str = "123456789012";
pub const REGION: &str = "eu-central-1";
pub const ROLE: &str = "outstation-agent";
pub const ROLE_ID: &str = "AROAENROLLAGENT000000";
pub const SECRET: &str = "a-secret-of-this-test-alone";

/// Name, key, ARN, user id. All with [`SECRET`] and a session token of the key's name.
#[rustfmt::skip]
const CALLERS: &[(&str, &str, &str, &str)] = &[
    ("agent", "ASIAENROLLAGENT00000", "arn:aws:sts::123456789012:assumed-role/outstation-agent/i-0123456789abcdef0", "AROAENROLLAGENT000000:i-0123456789abcdef0"),
    ("other role", "ASIAENROLLOTHER00000", "arn:aws:sts::123456789012:assumed-role/other/i-0123456789abcdef0", "AROAENROLLOTHER000000:i-0123456789abcdef0"),
    ("role made again", "ASIAENROLLAGAIN00000", "arn:aws:sts::123456789012:assumed-role/outstation-agent/i-0123456789abcdef0", "AROAENROLLAGAIN000000:i-0123456789abcdef0"),
    ("other account", "ASIAENROLLELSE000000", "arn:aws:sts::999999999999:assumed-role/outstation-agent/i-0123456789abcdef0", "AROAENROLLAGENT000000:i-0123456789abcdef0"),
    ("other partition", "ASIAENROLLCHINA00000", "arn:aws-cn:sts::123456789012:assumed-role/outstation-agent/i-0123456789abcdef0", "AROAENROLLAGENT000000:i-0123456789abcdef0"),
    ("user", "ASIAENROLLUSER000000", "arn:aws:iam::123456789012:user/outstation-agent", "AIDAENROLLUSER0000000"),
    ("root", "ASIAENROLLROOT000000", "arn:aws:iam::123456789012:root", "123456789012"),
    ("federated user", "ASIAENROLLFEDERATED0", "arn:aws:sts::123456789012:federated-user/outstation-agent", "123456789012:outstation-agent"),
    ("two sessions", "ASIAENROLLTWOSESSION", "arn:aws:sts::123456789012:assumed-role/outstation-agent/i-0123456789abcdef0", "AROAENROLLAGENT000000:i-0fffffffffffffff0"),
];

/// Credentials of one of them.
#[derive(Debug, Clone)]
pub struct Session {
    pub key: String,
    pub secret: String,
    pub token: String,
}

pub fn session(name: &str) -> Session {
    let (_, key, _, _) =
        CALLERS.iter().find(|caller| caller.0 == name).expect("one of the callers");
    Session { key: (*key).into(), secret: SECRET.into(), token: key.to_lowercase() }
}

fn model() -> Model {
    let callers: String = CALLERS
        .iter()
        .map(|(_, key, arn, user_id)| {
            format!(
                "[[principals]]\naccess_key_id = \"{key}\"\nsecret_access_key = \"{SECRET}\"\n\
                 session_token = \"{}\"\narn = \"{arn}\"\nuser_id = \"{user_id}\"\n",
                key.to_lowercase()
            )
        })
        .collect();
    let text = format!(
        r#"
listen = "127.0.0.1:1"
account = "{ACCOUNT}"
region = "{REGION}"
instance_net = "127.83.0.0"
instance_role = "outstation-node"
instance_role_id = "AROAENROLLNODE0000000"
dir = "."
launch_templates = []
{callers}"#
    );
    Model::new(toml::from_str::<Config>(&text).expect("a configuration").model(7))
}

#[derive(Debug, Clone)]
pub enum Mode {
    Honest,
    /// Bytes as they go over the wire, then the end of the connection.
    Says(Vec<u8>),
    /// Takes the request and says nothing.
    Hangs,
    /// Never ends its answer.
    Goes(&'static str),
}

pub struct Sts {
    pub url: String,
    pub mode: Arc<Mutex<Mode>>,
    asked: Arc<AtomicU64>,
}

impl Sts {
    pub async fn start() -> Result<Sts> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (mode, asked) = (Arc::new(Mutex::new(Mode::Honest)), Arc::new(AtomicU64::new(0)));
        let sim = Arc::new(Mutex::new(Sim { model: model(), guard: Guard::default() }));
        let (modes, count) = (mode.clone(), asked.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mode = modes.lock().expect("no panic").clone();
                tokio::spawn(serve(stream, mode, sim.clone(), count.clone()));
            }
        });
        Ok(Sts { url, mode, asked })
    }

    pub fn set(&self, mode: Mode) {
        *self.mode.lock().expect("no panic") = mode;
    }

    /// How often a whole request has arrived.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream, mode: Mode, sim: Arc<Mutex<Sim>>, asked: Arc<AtomicU64>) {
    let mut received = Vec::new();
    let request = loop {
        if let Some(request) = whole(&received) {
            break request;
        }
        if stream.read_buf(&mut received).await.unwrap_or(0) == 0 {
            return;
        }
    };
    asked.fetch_add(1, Ordering::SeqCst);
    match mode {
        Mode::Honest => {
            let now = OffsetDateTime::now_utc();
            let answer = sim.lock().expect("no panic").handle(&request, now);
            let (head, body) = answer.into_parts();
            let mut text = format!("HTTP/1.1 {}\r\nconnection: close\r\n", head.status.as_u16());
            for (name, value) in &head.headers {
                text += &format!("{name}: {}\r\n", value.to_str().unwrap_or_default());
            }
            text += &format!("content-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(&[text.as_bytes(), &body].concat()).await;
        }
        Mode::Says(bytes) => {
            let _ = stream.write_all(&bytes).await;
        }
        Mode::Hangs => {
            // Until the verifier has had enough.
            let _ = stream.read_buf(&mut received).await;
        }
        Mode::Goes(head) => {
            let _ = stream.write_all(head.as_bytes()).await;
            while stream.write_all(b"<x>").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

fn whole(received: &[u8]) -> Option<http::Request<Bytes>> {
    let text = std::str::from_utf8(received).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let mut start = lines.next()?.split(' ');
    let mut request = http::Request::builder().method(start.next()?).uri(start.next()?);
    let mut length = 0;
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().ok()?;
        }
        request = request.header(name, value);
    }
    let body = Bytes::copy_from_slice(body.as_bytes());
    (body.len() >= length).then(|| request.body(body).ok())?
}
