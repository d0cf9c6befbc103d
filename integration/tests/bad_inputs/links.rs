//! The links: account agents with a token, a root, a certificate or a clock that will not do, and
//! peers of the QUIC ports that are nobody.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use outstation_cli::dev::layout::agent_credentials;
use outstation_integration::bad::{Said, run_to_end};
use outstation_integration::{binaries, clock_shift};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use crate::Act::Do;
use crate::wire::{Port, listener};
use crate::{Doing, Ground, PATIENCE, Table};

const DAY: i64 = 24 * 3600;
const AGENT_URI: &str = "spiffe://dev.outstation/account/123456789012/agent/a-0123456789abcdef";

#[rustfmt::skip]
pub const TABLE: Table = &[
    ("a token that is none", Do(|g| agent(g, Broken::Token("password123"))), "goes on",
        "enroll at the broker: denied: the join token is not one of this broker's", "the whole token was copied"),
    ("a token that nobody made",
        Do(|g| { agent(g, Broken::Token("outstation-join-0123456789abcdef-0000000000000000000000000000000000000000000000000000000000000000")) }), "goes on",
        "denied: the join token is not one of this broker's", "make a new one"),
    ("a token that was used", Do(|g| agent(g, Broken::UsedToken)), "goes on",
        "denied: the join token was used with another key", "a token serves one agent"),
    ("a token that has expired", Do(|g| agent(g, Broken::ExpiredToken)), "goes on",
        "denied: the join token expired * s ago", "make a new token"),
    ("no token in the file", Do(|g| agent(g, Broken::Token(""))), "goes on",
        "denied: the join token is not one of this broker's", "make a new one"),
    ("no file with a token", Do(|g| agent(g, Broken::Entry("broker.join_token_file", "/nowhere/token"))), "goes on",
        "read the join token /nowhere/token*No such file", "make one at the broker"),
    ("another account's agent", Do(|g| agent(g, Broken::Entry("account", "999999999999"))), "goes on",
        "denied: this broker does not serve data plane 999999999999", "correct account and region"),
    ("another party's root", Do(|g| agent(g, Broken::Entry("broker.root", "CALLERS_ROOT"))), "goes on",
        "invalid peer certificate: UnknownIssuer", "root.pem of this broker"),
    ("a root that is a text", Do(|g| agent(g, Broken::Entry("broker.root", "FEATURES"))), "goes on",
        "features.py holds no certificate", "root.pem of this broker"),
    ("another name for the broker",
        Do(|g| agent(g, Broken::Entry("broker.server_name", "other.outstation"))), "goes on",
        "not valid for name \"other.outstation\"", "server_name"),
    ("an address without a port", Do(|g| agent(g, Broken::Entry("broker.address", "127.0.0.1"))), "goes on",
        "resolve 127.0.0.1", "host:port"),
    ("a port where no broker is", Do(|g| agent(g, Broken::Entry("broker.address", "127.0.0.1:1"))), "goes on",
        "the broker at 127.0.0.1:1 does not answer (UDP)", "UDP"),
    ("a certificate of another CA", Do(|g| agent(g, Broken::Certificate)), "goes on",
        "aborted by peer*invalid peer certificate: UnknownIssuer", "enrolls again"),
    ("a clock that is a day behind", Do(|g| agent(g, Broken::Clock(-DAY))), "goes on",
        "invalid peer certificate: certificate not valid yet", "the clock"),
    ("a command whose clock is a day behind", Do(|g| command(g, -DAY)), "exit 1",
        "reach the broker*certificate not valid yet", "check the clock"),
    ("a command whose clock is ten years ahead", Do(|g| command(g, 3700 * DAY)), "exit 1",
        "reach the broker*certificate expired", "check the clock"),
    ("the control link without a certificate",
        Do(|g| dial(g, Port::ControlLink, "outstation-control/1", None)), "refused",
        "this conversation needs a client certificate", ""),
    ("the control link with another CA's certificate",
        Do(|g| dial(g, Port::ControlLink, "outstation-control/1", Some(AGENT_URI))), "refused",
        "invalid peer certificate: UnknownIssuer", ""),
    ("the control link in another language", Do(|g| dial(g, Port::ControlLink, "h3", None)), "refused",
        "peer doesn't support any known protocol", ""),
    ("the node link without a certificate", Do(|g| dial(g, Port::NodeLink, "outstation-node/1", None)), "refused",
        "closed by peer: a session was opened without a client certificate", ""),
    ("the node link with another CA's certificate",
        Do(|g| { dial(g, Port::NodeLink, "outstation-node/1", Some("spiffe://dev.outstation/account/123456789012/group/delay_tsg/instance/i-0123456789abcdef0")) }), "refused",
        "invalid peer certificate: UnknownIssuer", ""),
    ("300 handshakes with the broker that stop halfway", Do(|g| half_open(g, Port::ControlLink)), "served", "", ""),
    ("200 handshakes with the account agent that stop halfway", Do(|g| half_open(g, Port::NodeLink)), "served",
        "", ""),
];

/// What is wrong with an account agent.
enum Broken {
    Token(&'static str),
    UsedToken,
    ExpiredToken,
    Entry(&'static str, &'static str),
    Certificate,
    Clock(i64),
}

/// An account agent of its own, with the good one's configuration but for one thing. It must not
/// end: nodes and callers of an account are served without a broker. It says what is wrong.
fn agent(ground: Arc<Ground>, broken: Broken) -> Doing {
    Box::pin(async move {
        let folder = ground.folder("agent")?;
        let layout = ground.world.system.layout();
        let path = |path: &Path| path.display().to_string();
        let mut config: toml::Table =
            std::fs::read_to_string(layout.config("account-agent"))?.parse()?;
        let mut set = |entry: &str, value: &str| -> Result<()> {
            let value = toml::Value::String(value.to_owned());
            match entry.split_once('.') {
                Some((section, key)) => {
                    let section = config.entry(section).or_insert(toml::Table::new().into());
                    section.as_table_mut().context("a section")?.insert(key.to_owned(), value)
                }
                None => config.insert(entry.to_owned(), value),
            };
            Ok(())
        };
        let token = folder.join("join.token");
        set("store", &path(&folder.join("store")))?;
        set("state", &path(&folder.join("state")))?;
        // It must not touch the account that the good one governs.
        set("aws.endpoint", "http://127.0.0.1:1")?;
        set("nodes.listen", "127.0.0.1:0")?;
        set("callers.listen", "127.0.0.1:0")?;
        set("callers.token_file", &path(&folder.join("callers.token")))?;
        set("broker.join_token_file", &path(&token))?;
        std::fs::write(&token, "password123")?;
        let mut command = Command::new(binaries().join("outstation-agent"));
        match broken {
            Broken::Token(text) => std::fs::write(&token, text)?,
            Broken::UsedToken => drop(std::fs::copy(layout.join_token(), &token)?),
            Broken::ExpiredToken => {
                let admin = ground.world.system.admin().await?;
                std::fs::write(&token, admin.create_join_token(1).await?)?;
                tokio::time::sleep(Duration::from_millis(2100)).await;
            }
            Broken::Entry(entry, value) => {
                let features = path(&ground.world.declarations().join("features.py"));
                let value = value.replace("CALLERS_ROOT", &path(&layout.callers_root()));
                set(entry, &value.replace("FEATURES", &features))?;
            }
            Broken::Certificate => {
                let (chain, key) = certificate_of_another_ca(AGENT_URI)?;
                std::fs::create_dir_all(folder.join("state"))?;
                std::fs::write(folder.join("state/control.pem"), chain.pem())?;
                std::fs::write(folder.join("state/control.key"), key.serialize_pem())?;
            }
            Broken::Clock(secs) => clock_shift::shift(&mut command, secs)?,
        }
        let file = folder.join("agent.toml");
        std::fs::write(&file, config.to_string())?;
        let log = folder.join("agent.log");
        let mut process = command
            .args(["account", "--config"])
            .arg(&file)
            .envs(agent_credentials())
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()?;
        let told = told_in(&log, &mut process).await;
        process.kill()?;
        process.wait()?;
        told
    })
}

/// The first reason for being without a control link: `what (what to do)`.
async fn told_in(log: &Path, process: &mut std::process::Child) -> Result<Said> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read_to_string(log)?;
        if let Some(status) = process.try_wait()? {
            bail!("it ended with {status}: {text}");
        }
        let line = text.lines().find(|line| line.contains("no control link"));
        if let Some(reason) = line.and_then(|line| line.split("reason=").nth(1)) {
            let reason = reason.trim_start_matches('"');
            let reason = reason.rsplit_once(" attempts=").map_or(reason, |(reason, _)| reason);
            let (what, hint) = reason.rsplit_once(" (").unwrap_or((reason, ""));
            let what = what.replace("\\\"", "\"");
            let hint = hint.trim_end_matches(['"', ')']);
            let hint = if hint.is_empty() { String::new() } else { format!("hint: {hint}") };
            let text = format!("error: {what}\n{hint}");
            return Ok(Said { ends: "goes on".into(), text });
        }
        if Instant::now() > deadline {
            bail!("it says nothing of the broker: {text}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn command(ground: Arc<Ground>, secs: i64) -> Doing {
    Box::pin(async move {
        let mut get = Command::new(binaries().join("outstation"));
        clock_shift::shift(&mut get, secs)?;
        run_to_end(get.arg("get").env("OUTSTATION_CONTEXT", ground.context()))
    })
}

/// As good as a real one in everything but who signed it.
fn certificate_of_another_ca(uri: &str) -> Result<(rcgen::Certificate, KeyPair)> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    Ok((params.signed_by(&key, &ca)?, key))
}

fn client(
    ground: &Ground,
    port: Port,
    alpn: &str,
    identity: Option<&str>,
) -> Result<(quinn::Endpoint, quinn::ClientConfig, &'static str)> {
    let layout = ground.world.system.layout();
    let (root, name) = match port {
        Port::ControlLink => (layout.broker_root(), "broker.outstation"),
        _ => (layout.callers_root(), "account-agent.outstation"),
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(root)?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut tls = match identity {
        None => tls.with_no_client_auth(),
        Some(uri) => {
            let (certificate, key) = certificate_of_another_ca(uri)?;
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
            tls.with_client_auth_cert(vec![certificate.der().clone()], key)?
        }
    };
    tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    Ok((quinn::Endpoint::client("127.0.0.1:0".parse()?)?, config, name))
}

/// A peer that is nobody: whatever it opens is closed, and it learns why.
fn dial(ground: Arc<Ground>, port: Port, alpn: &'static str, uri: Option<&'static str>) -> Doing {
    Box::pin(async move {
        let (address, _) = listener(&ground, port).await?;
        let (endpoint, config, name) = client(&ground, port, alpn, uri)?;
        let connecting = endpoint.connect_with(config, address, name)?;
        let closed = async {
            match connecting.await {
                // The server judges a client's certificate after the client is through.
                Ok(connection) => connection.closed().await,
                Err(error) => error,
            }
        };
        let why = tokio::time::timeout(PATIENCE, closed).await.context("it stays open")?;
        Ok(Said { ends: "refused".into(), text: format!("error: {why}") })
    })
}

/// First packets of handshakes, each from an address of its own, and nothing after them.
fn half_open(ground: Arc<Ground>, port: Port) -> Doing {
    Box::pin(async move {
        let (address, _) = listener(&ground, port).await?;
        let (alpn, count) = match port {
            Port::ControlLink => ("outstation-control-enroll/1", 300),
            _ => ("outstation-node-enroll/1", 200),
        };
        let relay = UdpSocket::bind("127.0.0.1:0").await?;
        let mut open = Vec::new();
        for _ in 0..count {
            open.push(first_packet(&ground, port, alpn, &relay, address).await?);
        }
        ground.serves().await.context("while they are open")?;
        // Somebody who goes on is let in.
        let (endpoint, config, name) = client(&ground, port, alpn, None)?;
        let connecting = endpoint.connect_with(config, address, name)?;
        tokio::time::timeout(PATIENCE, connecting).await.context("nobody else gets in")??;
        Ok(Said { ends: "served".into(), text: String::new() })
    })
}

/// Takes the first packet of a real client and passes it on from a new socket, which is returned.
async fn first_packet(
    ground: &Ground,
    port: Port,
    alpn: &str,
    relay: &UdpSocket,
    address: SocketAddr,
) -> Result<UdpSocket> {
    let (endpoint, config, name) = client(ground, port, alpn, None)?;
    let connecting = endpoint.connect_with(config, relay.local_addr()?, name)?;
    let connecting = tokio::spawn(connecting.into_future());
    let from = endpoint.local_addr()?.port();
    let mut packet = [0; 2048];
    let length = loop {
        let received = tokio::time::timeout(PATIENCE, relay.recv_from(&mut packet));
        let (length, sender) = received.await.context("a client begins")??;
        // Another one may still be repeating itself.
        if sender.port() == from {
            break length;
        }
    };
    connecting.abort();
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.send_to(&packet[..length], address).await?;
    Ok(socket)
}
