//! Every port: bytes that mean nothing, and peers that connect and then say nothing more.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use outstation_cli::dev::ServiceName;
use outstation_integration::bad::Said;
use outstation_integration::processes;
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use crate::Act::Do;
use crate::{Doing, Ground, PATIENCE, Table};

#[rustfmt::skip]
pub const TABLE: Table = &[
    ("garbage for the simulated AWS", Do(|g| garbage(g, Port::Aws)), "closed", "", ""),
    ("garbage for the broker's API", Do(|g| garbage(g, Port::Admin)), "closed", "", ""),
    ("garbage for the callers' port", Do(|g| garbage(g, Port::Callers)), "closed", "", ""),
    ("garbage for a transform server", Do(|g| garbage(g, Port::Server)), "closed", "", ""),
    ("garbage for an instance's IMDS", Do(|g| garbage(g, Port::Imds)), "closed", "", ""),
    ("garbage for the control link", Do(|g| datagrams(g, Port::ControlLink)), "not answered", "", ""),
    ("garbage for the node link", Do(|g| datagrams(g, Port::NodeLink)), "not answered", "", ""),
    ("200 silent connections to the simulated AWS", Do(|g| silent(g, Port::Aws)), "served and let go", "", ""),
    ("200 silent connections to the broker's API", Do(|g| silent(g, Port::Admin)), "served and let go", "", ""),
    ("200 silent connections to the callers' port", Do(|g| silent(g, Port::Callers)), "served and let go", "", ""),
    ("200 silent connections to a transform server", Do(|g| silent(g, Port::Server)), "served and let go", "", ""),
    ("more connections than the broker's API has places", Do(|g| full(g, Port::Admin, 256)),
        "turned away, and served again", "", ""),
];

/// Where something listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    Aws,
    Admin,
    Callers,
    Server,
    Imds,
    ControlLink,
    NodeLink,
}

/// Its address, and the process that listens there.
pub async fn listener(ground: &Ground, port: Port) -> Result<(SocketAddr, u32)> {
    let system = &ground.world.system;
    let agent: toml::Table =
        std::fs::read_to_string(system.layout().config("account-agent"))?.parse()?;
    let configured = |section: &str, key: &str| -> Result<SocketAddr> {
        let value = agent.get(section).and_then(|section| section.get(key));
        Ok(value.and_then(toml::Value::as_str).context("configured")?.parse()?)
    };
    let of_url = |url: &str| -> Result<SocketAddr> {
        Ok(url.split_once("://").context("a URL")?.1.parse()?)
    };
    let service = |name| system.pid(name).with_context(|| format!("{name:?} runs"));
    Ok(match port {
        Port::Aws => (of_url(&system.aws_endpoint())?, service(ServiceName::AwsSim)?),
        Port::Admin => (of_url(&system.context().broker.url)?, service(ServiceName::Broker)?),
        Port::ControlLink => (configured("broker", "address")?, service(ServiceName::Broker)?),
        Port::NodeLink => (configured("nodes", "listen")?, service(ServiceName::AccountAgent)?),
        Port::Callers => (configured("callers", "listen")?, service(ServiceName::AccountAgent)?),
        Port::Server | Port::Imds => {
            let group = system.admin().await?.group(&ground.world.group).await?;
            let nodes = group.status.context("a status")?.nodes;
            let node = nodes.iter().find(|node| node.endpoint.is_some()).context("a node")?;
            let server: SocketAddr = node.endpoint.as_ref().context("ready")?.parse()?;
            if port == Port::Imds {
                let instances = system.instances().await?;
                let instance = instances.iter().find(|i| i.instance_id == node.instance);
                let pid = instance.and_then(|i| i.launcher_pid).context("a launcher")?;
                return Ok((SocketAddr::new(server.ip(), 1338), pid));
            }
            let word = format!("--listen {server}");
            let found = processes(&system.layout().state);
            let pid = found.iter().find(|(_, command)| command.contains(&word));
            (server, *pid.context("its process")?.0)
        }
    })
}

/// What nobody should have to read, each with a reason to be there.
fn payloads() -> Vec<(&'static str, Vec<u8>)> {
    let mut random = StdRng::seed_from_u64(0x5eed);
    let mut noise = |bytes: usize| {
        let mut noise = vec![0; bytes];
        random.fill_bytes(&mut noise);
        noise
    };
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &noise(32)].concat();
    vec![
        ("nothing", Vec::new()),
        ("one byte", vec![0x16]),
        ("noise", noise(64 << 10)),
        ("zeros", vec![0; 64 << 10]),
        ("half a TLS hello", hello),
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (
            "a header without end",
            [b"GET / HTTP/1.1\r\nx: ".to_vec(), vec![b'a'; 256 << 10]].concat(),
        ),
        (
            "HTTP/2, then noise",
            [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), noise(4096)].concat(),
        ),
        (
            "HTTP/2, then a frame of 16 MB",
            [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]]
                .concat(),
        ),
    ]
}

/// Each payload over a connection of its own, which must end soon after ours has.
fn garbage(ground: Arc<Ground>, port: Port) -> Doing {
    Box::pin(async move {
        let (address, _) = listener(&ground, port).await?;
        for (name, payload) in payloads() {
            let exchange = async {
                let mut stream = TcpStream::connect(address).await.context("connect")?;
                // An error says that the other end has had enough, which is right.
                let _ = stream.write_all(&payload).await;
                let _ = stream.shutdown().await;
                let mut answer = [0; 4096];
                while stream.read(&mut answer).await.is_ok_and(|read| read > 0) {}
                anyhow::Ok(())
            };
            let ended = tokio::time::timeout(PATIENCE, exchange).await;
            ended.with_context(|| format!("{name} is waited on"))??;
        }
        Ok(Said { ends: "closed".into(), text: String::new() })
    })
}

fn datagrams(ground: Arc<Ground>, port: Port) -> Doing {
    Box::pin(async move {
        let (address, _) = listener(&ground, port).await?;
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        let mut random = StdRng::seed_from_u64(0x5eed);
        for number in 0..2000 {
            let mut datagram = vec![0; random.random_range(1..1500)];
            random.fill_bytes(&mut datagram);
            // Every other one begins as a QUIC packet does.
            if number % 2 == 0 {
                datagram.splice(0..datagram.len().min(5), [0xc0, 0, 0, 0, 1]);
            }
            socket.send_to(&datagram, address).await?;
        }
        Ok(Said { ends: "not answered".into(), text: String::new() })
    })
}

/// Half-open: connected, and nothing more. Others are served meanwhile, and when these have gone
/// nothing of them is kept.
fn silent(ground: Arc<Ground>, port: Port) -> Doing {
    Box::pin(async move {
        let (address, pid) = listener(&ground, port).await?;
        let before = descriptors(pid)?;
        let mut open = Vec::new();
        for number in 0..200 {
            let mut stream = TcpStream::connect(address).await?;
            // Some begin to speak.
            if number % 2 == 0 {
                let _ = stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await;
            }
            open.push(stream);
        }
        ground.serves().await.context("while they are open")?;
        drop(open);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        // Those of other callers come and go.
        while descriptors(pid)? > before + 20 {
            let now = descriptors(pid)?;
            ensure!(tokio::time::Instant::now() < deadline, "{now} descriptors, {before} before");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Ok(Said { ends: "served and let go".into(), text: String::new() })
    })
}

/// Who comes when every place is taken is told so at once; calls go on, and when there is room again so
/// does everything.
fn full(ground: Arc<Ground>, port: Port, places: usize) -> Doing {
    Box::pin(async move {
        let (address, pid) = listener(&ground, port).await?;
        let before = descriptors(pid)?;
        let mut open = Vec::new();
        for _ in 0..places + 100 {
            open.push(TcpStream::connect(address).await?);
        }
        let mut last = open.pop().context("the last one")?;
        let read = tokio::time::timeout(PATIENCE, last.read(&mut [0; 1])).await;
        let turned_away = matches!(read.context("it is kept waiting")?, Ok(0) | Err(_));
        ensure!(turned_away, "it is spoken to");
        let now = descriptors(pid)?;
        ensure!(now <= before + places, "{now} descriptors for {places} places, {before} before");
        let calls = ground.call("speed", vec![crate::calls::good_row()], PATIENCE).await;
        ensure!(calls.outcome.is_ok(), "{:?}", calls.outcome);
        drop(open);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while let Err(error) = ground.serves().await {
            ensure!(tokio::time::Instant::now() < deadline, "not served again: {error:#}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Ok(Said { ends: "turned away, and served again".into(), text: String::new() })
    })
}

fn descriptors(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"))?.count())
}
