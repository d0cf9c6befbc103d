//! What stands between two parties in a fault test: a proxy for datagrams (QUIC) and one for
//! streams (gRPC, AWS), which pass everything on until told to be a bad or a cut link.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use outstation_cli::dev::{Detours, Slot};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};

use crate::fate::{Condition, Place, Way, fate};

/// As large as a datagram can be.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// A system of tests has some ten nodes, each with one flow at a time and a new one after a death.
const FLOWS_MAX: usize = 256;
/// On their way at once; a router with a full queue drops as well.
const LATE_MAX: usize = 4096;
const CHUNK_BYTES: usize = 16 * 1024;

/// The links of one system, by name.
pub struct Links {
    /// Account agent → broker.
    pub control: UdpLink,
    /// Node agents → account agent.
    pub nodes: UdpLink,
    /// CLI → broker.
    pub admin: TcpLink,
    /// Callers → account agent. The calls themselves go straight to the servers.
    pub callers: TcpLink,
    /// Account agent and nodes → AutoScaling and STS.
    pub aws: TcpLink,
}

impl Links {
    /// In front of what will run in `slot`.
    pub async fn start(slot: &Slot, seed: u64) -> Result<Links> {
        Ok(Links {
            control: UdpLink::start(slot.broker_link(), seed).await?,
            nodes: UdpLink::start(slot.nodes(), seed.wrapping_add(1)).await?,
            admin: TcpLink::start(slot.broker_admin(), seed.wrapping_add(2)).await?,
            callers: TcpLink::start(slot.callers(), seed.wrapping_add(3)).await?,
            aws: TcpLink::start(slot.aws_sim(), seed.wrapping_add(4)).await?,
        })
    }

    pub fn detours(&self) -> Detours {
        Detours {
            broker_link: Some(self.control.address),
            nodes: Some(self.nodes.address),
            broker_admin: Some(self.admin.address),
            callers: Some(self.callers.address),
            aws: Some(self.aws.address),
        }
    }
}

/// What a link did so far, so that a test of a bad link knows that the link was bad.
#[derive(Debug, Default)]
pub struct Counts {
    pub passed: AtomicU64,
    pub lost: AtomicU64,
    pub delayed: AtomicU64,
    pub repeated: AtomicU64,
}

impl Counts {
    fn count(&self, copies: &[Duration]) {
        let add = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        add(if copies.is_empty() { &self.lost } else { &self.passed });
        if copies.len() > 1 {
            add(&self.repeated);
        }
        if copies.iter().any(|after| !after.is_zero()) {
            add(&self.delayed);
        }
    }
}

/// Passes datagrams on. Each client has a socket of its own towards the server, bound to the
/// client's own address: the account agent checks where a node's datagrams come from.
pub struct UdpLink {
    pub address: SocketAddr,
    condition: watch::Sender<Condition>,
    counts: Arc<Counts>,
    task: AbortHandle,
}

impl UdpLink {
    pub async fn start(server: SocketAddr, seed: u64) -> Result<UdpLink> {
        let front = UdpSocket::bind("127.0.0.1:0").await.context("bind a link")?;
        let address = front.local_addr()?;
        let (condition, conditions) = watch::channel(Condition::Clear);
        let counts = Arc::new(Counts::default());
        let road = Road {
            seed,
            conditions,
            counts: counts.clone(),
            late: Arc::new(Semaphore::new(LATE_MAX)),
        };
        let task = tokio::spawn(pass_datagrams(Arc::new(front), server, road)).abort_handle();
        Ok(UdpLink { address, condition, counts, task })
    }

    pub fn set(&self, condition: Condition) {
        self.condition.send_replace(condition);
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl Drop for UdpLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a datagram needs to know of its link.
#[derive(Clone)]
struct Road {
    seed: u64,
    conditions: watch::Receiver<Condition>,
    counts: Arc<Counts>,
    late: Arc<Semaphore>,
}

impl Road {
    /// Sends each copy when it is due.
    async fn carry(
        &self,
        place: Place,
        datagram: &[u8],
        socket: &Arc<UdpSocket>,
        to: Option<SocketAddr>,
    ) {
        let condition = *self.conditions.borrow();
        let copies = fate(self.seed, place, &condition);
        self.counts.count(&copies);
        for after in copies {
            if after.is_zero() {
                deliver(socket, datagram, to).await;
                continue;
            }
            let Ok(permit) = self.late.clone().try_acquire_owned() else { continue };
            let (socket, datagram) = (socket.clone(), datagram.to_vec());
            let conditions = self.conditions.clone();
            tokio::spawn(async move {
                sleep(after).await;
                // A cut catches what is on its way as well.
                if *conditions.borrow() != Condition::Cut {
                    deliver(&socket, &datagram, to).await;
                }
                drop(permit);
            });
        }
    }
}

async fn deliver(socket: &UdpSocket, datagram: &[u8], to: Option<SocketAddr>) {
    // Nobody there: then it is lost, as on any network.
    let _ = match to {
        Some(to) => socket.send_to(datagram, to).await,
        None => socket.send(datagram).await,
    };
}

struct Flow {
    number: u64,
    sent: u64,
    last: Instant,
    back: Arc<UdpSocket>,
    /// Carries what comes back; ends with the flow.
    answers: AbortHandle,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

async fn pass_datagrams(front: Arc<UdpSocket>, server: SocketAddr, road: Road) {
    let mut flows: BTreeMap<SocketAddr, Flow> = BTreeMap::new();
    let mut opened = 0;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let Ok((length, client)) = front.recv_from(&mut buffer).await else { continue };
        if !flows.contains_key(&client) {
            if flows.len() >= FLOWS_MAX
                && let Some(idle) = flows.iter().min_by_key(|(_, flow)| flow.last).map(|(c, _)| *c)
            {
                flows.remove(&idle);
            }
            opened += 1;
            match open_flow(&front, client, server, opened, &road).await {
                Ok(flow) => flows.insert(client, flow),
                Err(_) => continue,
            };
        }
        let flow = flows.get_mut(&client).expect("put there above");
        let place = Place { flow: flow.number, way: Way::ToServer, number: flow.sent };
        flow.sent += 1;
        flow.last = Instant::now();
        road.carry(place, &buffer[..length], &flow.back, None).await;
    }
}

async fn open_flow(
    front: &Arc<UdpSocket>,
    client: SocketAddr,
    server: SocketAddr,
    number: u64,
    road: &Road,
) -> io::Result<Flow> {
    let back = Arc::new(UdpSocket::bind((client.ip(), 0)).await?);
    back.connect(server).await?;
    let (front, answers, road) = (front.clone(), back.clone(), road.clone());
    let answers = tokio::spawn(async move {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        for count in 0.. {
            // An error says that the server is away at the moment.
            let Ok(length) = answers.recv(&mut buffer).await else { continue };
            let place = Place { flow: number, way: Way::ToClient, number: count };
            road.carry(place, &buffer[..length], &front, Some(client)).await;
        }
    });
    Ok(Flow { number, sent: 0, last: Instant::now(), back, answers: answers.abort_handle() })
}

/// Passes streams on. TCP itself repairs loss and order, so a bad link only delays; a cut one holds
/// everything until it is restored, as a short outage does, or until [`TcpLink::reset`].
pub struct TcpLink {
    pub address: SocketAddr,
    condition: watch::Sender<Condition>,
    resets: watch::Sender<u64>,
    task: AbortHandle,
}

impl TcpLink {
    pub async fn start(server: SocketAddr, seed: u64) -> Result<TcpLink> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("bind a link")?;
        let address = listener.local_addr()?;
        let (condition, conditions) = watch::channel(Condition::Clear);
        let (resets, reset) = watch::channel(0);
        let task =
            tokio::spawn(pass_streams(listener, server, seed, conditions, reset)).abort_handle();
        Ok(TcpLink { address, condition, resets, task })
    }

    pub fn set(&self, condition: Condition) {
        self.condition.send_replace(condition);
    }

    /// Every connection of now breaks off, with a reset to both ends.
    pub fn reset(&self) {
        self.resets.send_modify(|count| *count += 1);
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass_streams(
    listener: TcpListener,
    server: SocketAddr,
    seed: u64,
    mut conditions: watch::Receiver<Condition>,
    reset: watch::Receiver<u64>,
) {
    // They end with the link.
    let mut streams = JoinSet::new();
    for flow in 0.. {
        let accepted = listener.accept().await;
        while streams.try_join_next().is_some() {}
        let Ok((client, _)) = accepted else { continue };
        not_cut(&mut conditions).await;
        let (conditions, mut reset) = (conditions.clone(), reset.clone());
        reset.mark_unchanged();
        streams.spawn(async move {
            let mut client = client;
            let Ok(mut server) = TcpStream::connect(server).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let passed = {
                let (mut from_client, mut to_client) = client.split();
                let (mut from_server, mut to_server) = server.split();
                let mut there = Stream { seed, flow, way: Way::ToServer, conditions };
                let mut back = Stream { way: Way::ToClient, ..there.clone() };
                tokio::select! {
                    _ = async { tokio::join!(
                        there.pass(&mut from_client, &mut to_server),
                        back.pass(&mut from_server, &mut to_client),
                    ) } => true,
                    _ = reset.changed() => false,
                }
            };
            if !passed {
                let _ = (client.set_zero_linger(), server.set_zero_linger());
            }
        });
    }
}

async fn not_cut(conditions: &mut watch::Receiver<Condition>) {
    // An error says that the link is gone; then so is this task, in a moment.
    let _ = conditions.wait_for(|condition| *condition != Condition::Cut).await;
}

/// One direction of one connection.
#[derive(Clone)]
struct Stream {
    seed: u64,
    flow: u64,
    way: Way,
    conditions: watch::Receiver<Condition>,
}

impl Stream {
    async fn pass(&mut self, from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) {
        let mut buffer = vec![0; CHUNK_BYTES];
        for number in 0.. {
            let read = from.read(&mut buffer).await;
            not_cut(&mut self.conditions).await;
            let condition = *self.conditions.borrow();
            let place = Place { flow: self.flow, way: self.way, number };
            let delay = fate(self.seed, place, &condition).into_iter().max();
            sleep(delay.unwrap_or_default()).await;
            match read {
                Ok(length @ 1..) => {
                    if to.write_all(&buffer[..length]).await.is_err() {
                        return;
                    }
                }
                Ok(0) | Err(_) => {
                    let _ = to.shutdown().await;
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fate::Disturbance;

    /// Generous: what is waited for takes milliseconds.
    const SOON: Duration = Duration::from_secs(20);

    /// Sends back what it gets, with the address that it came from in front.
    async fn echo() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("bound");
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let mut answer = from.ip().to_string().into_bytes();
                answer.push(b' ');
                answer.extend(&buffer[..length]);
                let _ = socket.send_to(&answer, from).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn datagrams_go_both_ways_and_the_server_sees_the_clients_own_address() {
        let link = UdpLink::start(echo().await, 1).await.expect("a link");
        for ip in ["127.0.0.1", "127.9.8.7"] {
            let client = UdpSocket::bind((ip, 0)).await.expect("loopback");
            client.connect(link.address).await.expect("an address");
            client.send(b"hello").await.expect("sent");
            let mut buffer = [0; 64];
            let answered = tokio::time::timeout(SOON, client.recv(&mut buffer)).await;
            let length = answered.expect("an answer").expect("received");
            assert_eq!(String::from_utf8_lossy(&buffer[..length]), format!("{ip} hello"));
        }
    }

    #[tokio::test]
    async fn a_cut_link_passes_nothing_until_it_is_restored_and_a_bad_one_some() {
        let link = UdpLink::start(echo().await, 1).await.expect("a link");
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        client.connect(link.address).await.expect("an address");
        link.set(Condition::Cut);
        for _ in 0..10 {
            client.send(b"cut").await.expect("sent");
        }
        // In order, so that they are known to be lost before the restoration.
        while link.counts().lost.load(Ordering::Relaxed) < 10 {
            sleep(Duration::from_millis(1)).await;
        }
        link.set(Condition::Bad(Disturbance::TENTH));
        let mut answers = 0;
        let mut buffer = [0; 64];
        for _ in 0..200 {
            client.send(b"bad").await.expect("sent");
        }
        while answers < 100 {
            let length = tokio::time::timeout(SOON, client.recv(&mut buffer)).await;
            let length = length.expect("an answer").expect("received");
            assert!(
                buffer[..length].ends_with(b"bad"),
                "nothing of what was sent while it was cut"
            );
            answers += 1;
        }
        let lost = link.counts().lost.load(Ordering::Relaxed);
        assert!(lost > 10, "{lost}");
        assert!(link.counts().repeated.load(Ordering::Relaxed) > 0);
    }

    #[tokio::test]
    async fn a_stream_waits_while_it_is_cut_and_breaks_when_it_is_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        let link = TcpLink::start(server, 1).await.expect("a link");
        let mut client = TcpStream::connect(link.address).await.expect("connected");
        let mut buffer = [0; 5];
        client.write_all(b"first").await.expect("sent");
        tokio::time::timeout(SOON, client.read_exact(&mut buffer))
            .await
            .expect("soon")
            .expect("echo");
        link.set(Condition::Cut);
        client.write_all(b"later").await.expect("the kernel takes it");
        link.set(Condition::Bad(Disturbance::TENTH));
        tokio::time::timeout(SOON, client.read_exact(&mut buffer))
            .await
            .expect("soon")
            .expect("echo");
        assert_eq!(&buffer, b"later");
        link.reset();
        let broken = tokio::time::timeout(SOON, client.read(&mut buffer)).await.expect("soon");
        assert!(matches!(broken, Err(_) | Ok(0)), "{broken:?}");
    }
}
