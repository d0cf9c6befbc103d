//! Closed loop: so many requests are always in flight. Open loop: requests arrive at a rate, whether
//! the server keeps up or not, and latency counts from the moment that a request was to be sent.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use outstation_transform_client::throttle::{self, Throttle};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::client::{Address, Client, Prepared, REFUSED};
use crate::machine;
use crate::tally::Tally;

/// How long answers are waited for after an open window.
const TAIL_WAIT: Duration = Duration::from_secs(3);

const ASK_WAIT: Duration = Duration::from_secs(20);

/// Where load goes, and whose CPU is counted.
#[derive(Clone, Debug)]
pub struct Aim {
    pub address: Address,
    pub connections: usize,
    /// The server's process; what it started is counted with it.
    pub server: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// Arrivals a second (Poisson).
    pub rate: f64,
    /// An arrival that finds so many outstanding is not sent, and counted as such.
    pub outstanding_max: usize,
    pub seed: u64,
    pub pace: Pace,
    /// As `transform-client` does: what would only be refused is not sent.
    pub throttled: bool,
}

/// How an arrival's moment is waited for.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Exactly, with all of a core that nobody else needs.
    Awake,
    /// Some 60 µs late, with little CPU, where the server is to have all cores.
    Asleep,
}

#[derive(Clone, Copy, Debug)]
pub enum Load {
    Closed { in_flight: usize },
    Open(Open),
}

/// One stream of requests among those that a window runs side by side.
#[derive(Clone, Debug)]
pub struct Stream {
    pub aim: Aim,
    pub request: Prepared,
    pub load: Load,
}

/// Runs the streams side by side on the calling thread; what happens in `warm` is not counted.
pub fn run(streams: &[Stream], warm: Duration, window: Duration) -> Result<Vec<Tally>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    LocalSet::new().block_on(&runtime, run_here(streams, warm, window))
}

/// One call on a new connection: its status and the answer's bytes.
pub fn ask(address: &Address, request: &Prepared) -> Result<(i32, bytes::Bytes)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = async {
        let client = Client::connect(address, request).await?;
        client.call_for_answer(request).await
    };
    let in_time = async { tokio::time::timeout(ASK_WAIT, asked).await.context("no answer")? };
    LocalSet::new().block_on(&runtime, in_time)
}

/// One stream alone.
pub fn run_one(
    aim: &Aim,
    request: &Prepared,
    load: Load,
    warm: Duration,
    window: Duration,
) -> Result<Tally> {
    let stream = Stream { aim: aim.clone(), request: request.clone(), load };
    Ok(run(&[stream], warm, window)?.remove(0))
}

struct Shared {
    tally: RefCell<Tally>,
    throttle: Option<RefCell<Throttle>>,
    outstanding: Cell<usize>,
    counts_from: Instant,
    counts_until: Instant,
}

impl Shared {
    fn record(&self, since: Instant, status: i32) {
        if since >= self.counts_from && since < self.counts_until {
            self.tally.borrow_mut().record(status, since.elapsed());
        }
    }
}

async fn run_here(streams: &[Stream], warm: Duration, window: Duration) -> Result<Vec<Tally>> {
    let mut connected = Vec::new();
    for stream in streams {
        let mut clients = Vec::new();
        for _ in 0..stream.aim.connections.max(1) {
            clients.push(Client::connect(&stream.aim.address, &stream.request).await?);
        }
        connected.push(clients);
    }
    let counts_from = Instant::now() + warm;
    let counts_until = counts_from + window;
    let mut running = Vec::new();
    for (stream, clients) in streams.iter().zip(connected) {
        let throttle = match stream.load {
            Load::Open(Open { throttled: true, seed, .. }) => {
                Some(RefCell::new(Throttle::new(throttle::Config::default(), seed)))
            }
            Load::Open(_) | Load::Closed { .. } => None,
        };
        let shared = Rc::new(Shared {
            tally: RefCell::new(Tally::new()),
            throttle,
            outstanding: Cell::new(0),
            counts_from,
            counts_until,
        });
        let request = Rc::new(stream.request.clone());
        match stream.load {
            Load::Closed { in_flight } => {
                for index in 0..in_flight {
                    let client = clients[index % clients.len()].clone();
                    tokio::task::spawn_local(again(client, request.clone(), shared.clone()));
                }
            }
            Load::Open(open) => {
                tokio::task::spawn_local(arrivals(open, clients, request, shared.clone()));
            }
        }
        running.push(shared);
    }
    let servers = || -> Vec<Duration> {
        let cpu = |stream: &Stream| stream.aim.server.map_or(Duration::ZERO, machine::cpu_of);
        streams.iter().map(cpu).collect()
    };
    tokio::time::sleep_until(counts_from.into()).await;
    let (began, before, own_before) = (Instant::now(), servers(), machine::own_cpu());
    tokio::time::sleep_until(counts_until.into()).await;
    let (own, after, lasted) = (machine::own_cpu(), servers(), began.elapsed());
    let give_up = Instant::now() + TAIL_WAIT;
    while running.iter().any(|shared| shared.outstanding.get() > 0) && Instant::now() < give_up {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let tallies = running.iter().zip(before.iter().zip(after)).map(|(shared, (before, after))| {
        let mut tally = shared.tally.borrow().clone();
        tally.window = lasted;
        tally.unanswered = shared.outstanding.get() as u64;
        tally.server_cpu = after.saturating_sub(*before);
        tally.own_cpu = own.saturating_sub(own_before);
        tally
    });
    Ok(tallies.collect())
}

/// One of the requests in flight of a closed loop.
async fn again(client: Client, request: Rc<Prepared>, shared: Rc<Shared>) {
    shared.outstanding.update(|count| count + 1);
    loop {
        let since = Instant::now();
        if since >= shared.counts_until {
            break;
        }
        let status = client.call(&request).await;
        shared.record(since, status);
        if status == crate::client::BROKEN {
            // A connection that is gone fails at once, and would be all that runs.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    shared.outstanding.update(|count| count - 1);
}

async fn arrivals(open: Open, clients: Vec<Client>, request: Rc<Prepared>, shared: Rc<Shared>) {
    let moments = moments(open, shared.counts_until);
    match open.pace {
        Pace::Awake => {
            for (turn, due) in moments.enumerate() {
                // A timer is too coarse, and a core that sleeps wakes late.
                while Instant::now() < due {
                    tokio::task::yield_now().await;
                }
                arrive(due, &clients[turn % clients.len()], &request, &shared, open).await;
            }
        }
        Pace::Asleep => {
            let (send, mut receive) = mpsc::unbounded_channel();
            std::thread::spawn(move || {
                for due in moments {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    if send.send(due).is_err() {
                        break;
                    }
                }
            });
            let mut turn = 0;
            while let Some(due) = receive.recv().await {
                arrive(due, &clients[turn % clients.len()], &request, &shared, open).await;
                turn += 1;
            }
        }
    }
}

/// A Poisson process from now on.
fn moments(open: Open, until: Instant) -> impl Iterator<Item = Instant> + Send {
    let mut random = fastrand::Rng::with_seed(open.seed);
    let mut due = Instant::now();
    std::iter::from_fn(move || {
        due += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / open.rate);
        (due < until).then_some(due)
    })
}

async fn arrive(
    due: Instant,
    client: &Client,
    request: &Rc<Prepared>,
    shared: &Rc<Shared>,
    open: Open,
) {
    let admitted = shared.throttle.as_ref().is_none_or(|throttle| {
        // The only target of the stream.
        throttle.borrow_mut().admits("", Instant::now())
    });
    if !admitted || shared.outstanding.get() >= open.outstanding_max {
        if due >= shared.counts_from {
            shared.tally.borrow_mut().unsent += 1;
        }
        // Who is late must still take answers.
        tokio::task::yield_now().await;
        return;
    }
    shared.outstanding.update(|count| count + 1);
    let (client, request, shared) = (client.clone(), request.clone(), shared.clone());
    tokio::task::spawn_local(async move {
        let status = client.call(&request).await;
        if let Some(throttle) = &shared.throttle {
            throttle.borrow_mut().ended("", status == REFUSED, Instant::now());
        }
        shared.record(due, status);
        shared.outstanding.update(|count| count - 1);
    });
}
