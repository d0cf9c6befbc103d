//! One server core, a small function: throughput, latency, and what happens past the limit.

use std::time::Duration;

use anyhow::Result;

use super::Bench;
use super::figures::Figures;
use super::peers::Server;
use super::report::{Aim, Point, Report};
use crate::client::Prepared;
use crate::drive::{Load, Open, Pace, run_one};
use crate::tally::Tally;

const WARM: Duration = Duration::from_millis(500);
/// What a caller waits for at most in an open loop.
const DEADLINE: Duration = Duration::from_secs(1);
const OUTSTANDING_MAX: usize = 4096;

fn small() -> Result<Prepared> {
    Prepared::call("small", 1, None)
}

fn window(server: &Server, in_flight: usize, secs: Duration) -> Result<Tally> {
    let connections = in_flight.min(4);
    run_one(&server.aim_over(connections), &small()?, Load::Closed { in_flight }, WARM, secs)
}

fn offered(server: &Server, rate: f64, secs: Duration, seed: u64) -> Result<Tally> {
    let open =
        Open { rate, outstanding_max: OUTSTANDING_MAX, seed, pace: Pace::Awake, throttled: false };
    let request = Prepared::call("small", 1, Some(DEADLINE))?;
    run_one(&server.aim_over(8), &request, Load::Open(open), WARM, secs)
}

pub fn closed(bench: &Bench, report: &mut Report) -> Result<()> {
    let ours = Server::ours(bench, &[bench.server_core], bench.workers, false)?;
    let echo = Server::echo(bench, false)?;
    let grpcio = Server::grpcio(bench)?;
    let secs = bench.secs(1.0, 4.0);
    let (mut own, mut limit, mut plain) =
        (Figures::default(), Figures::default(), Figures::default());
    let (mut own_cpu, mut own_one, mut limit_one) =
        (Figures::default(), Figures::default(), Figures::default());
    for _ in 0..bench.pick(3, 7) {
        let tally = window(&ours, 32, secs)?;
        own.push(tally.rate());
        own_cpu.push(tally.cpu_micros());
        limit.push(window(&echo, 32, secs)?.rate());
        plain.push(window(&grpcio, 32, secs)?.rate());
        own_one.push(window(&ours, 1, secs / 2)?.millis(0.5));
        limit_one.push(window(&echo, 1, secs / 2)?.millis(0.5));
    }
    report.figure("ours, 32 in flight", "1/s", own.clone());
    report.figure("ours, CPU of server and worker", "µs", own_cpu);
    report.figure("tonic echo, 32 in flight", "1/s", limit.clone());
    report.figure("grpcio, 16 threads, 32 in flight", "1/s", plain.clone());
    report.line("ours / grpcio", "×", own.over(&plain), Aim::AtLeast(10.0));
    report.line("ours / echo", "×", own.over(&limit), Aim::AtLeast(0.45));
    report.figure("ours, one in flight, p50", "ms", own_one.clone());
    report.line("ours / echo, one in flight, p50", "×", own_one.over(&limit_one), Aim::AtMost(1.5));
    Ok(())
}

/// At half of what grpcio can do at most.
pub fn half(bench: &Bench, report: &mut Report) -> Result<()> {
    let ours = Server::ours(bench, &[bench.server_core], bench.workers, false)?;
    let echo = Server::echo(bench, false)?;
    let grpcio = Server::grpcio(bench)?;
    let secs = bench.secs(1.5, 5.0);
    let rate = window(&grpcio, 32, secs)?.rate() / 2.0;
    let (mut own, mut limit, mut plain) =
        (Figures::default(), Figures::default(), Figures::default());
    for seed in 0..bench.pick(3, 7) {
        own.push(offered(&ours, rate, secs, seed)?.millis(0.99));
        limit.push(offered(&echo, rate, secs, seed)?.millis(0.99));
        plain.push(offered(&grpcio, rate, secs, seed)?.millis(0.99));
    }
    report.figure("half of grpcio's most", "1/s", Figures(vec![rate]));
    report.figure("ours, p99", "ms", own.clone());
    report.figure("grpcio, p99", "ms", plain.clone());
    report.figure("echo, p99", "ms", limit.clone());
    report.line("ours / grpcio, p99", "×", own.over(&plain), Aim::AtMost(0.5));
    report.line("ours / echo, p99", "×", own.over(&limit), Aim::AtMost(1.5));
    Ok(())
}

/// The highest rate that is borne with p99 under 10 ms, and the way there as curves.
pub fn open(bench: &Bench, report: &mut Report) -> Result<()> {
    let secs = bench.secs(1.0, 3.0);
    let mut most = Vec::new();
    for (name, server) in [
        ("ours", Server::ours(bench, &[bench.server_core], bench.workers, false)?),
        ("grpcio", Server::grpcio(bench)?),
        ("tonic echo", Server::echo(bench, false)?),
    ] {
        let peak = window(&server, 128, secs)?.rate();
        let (mut curve, mut borne) = (Vec::new(), 0.0);
        for (seed, share) in (0..).zip([0.05, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1]) {
            let rate = peak * share;
            let tally = offered(&server, rate, secs, seed)?;
            let p99_ms = tally.millis(0.99);
            curve.push(Point { rate, p50_ms: tally.millis(0.5), p99_ms });
            if p99_ms < 10.0 && (tally.bad() as f64) < 0.001 * tally.answered() as f64 {
                borne = tally.rate().max(borne);
            }
        }
        report.figure(format!("{name}, borne with p99 < 10 ms"), "1/s", Figures(vec![borne]));
        report.curves.push((name.to_owned(), curve));
        most.push(borne);
    }
    report.line("ours / grpcio", "×", Figures(vec![most[0] / most[1]]), Aim::AtLeast(8.0));
    Ok(())
}

/// Twice as much as it can do: from eight callers, whom the server holds back by what it takes of one connection; and
/// from so many that it has to refuse, which do or do not listen to that.
pub fn overload(bench: &Bench, report: &mut Report) -> Result<()> {
    let ours = Server::ours(bench, &[bench.server_core], bench.workers, false)?;
    let secs = bench.secs(1.5, 4.0);
    // A slower function than the small one, so that the load's own core is not the limit.
    let request = Prepared::call("pandas100", 1, Some(DEADLINE))?;
    let mut peak = Figures::default();
    let callers =
        [("8 callers", 8, false), ("64 deaf callers", 64, false), ("64 callers", 64, true)];
    let mut good = callers.map(|_| (Figures::default(), Figures::default()));
    for seed in 0..bench.pick(3, 5) {
        let aim = ours.aim_over(8);
        let most = run_one(&aim, &request, Load::Closed { in_flight: 128 }, WARM, secs)?.rate();
        peak.push(most);
        for ((_, connections, throttled), (rates, p99)) in callers.iter().zip(&mut good) {
            let open = Open {
                rate: 2.0 * most,
                outstanding_max: OUTSTANDING_MAX,
                seed,
                pace: Pace::Awake,
                throttled: *throttled,
            };
            // The throttle has a memory of two seconds.
            let aim = ours.aim_over(*connections);
            let tally = run_one(&aim, &request, Load::Open(open), 4 * WARM, secs)?;
            rates.push(tally.rate());
            p99.push(tally.millis(0.99));
        }
    }
    report.figure("peak", "1/s", peak.clone());
    for ((name, ..), (rates, p99)) in callers.iter().zip(good) {
        report.figure(format!("good answers a second at twice that, {name}"), "1/s", rates.clone());
        report.figure(format!("their p99, {name}"), "ms", p99);
        let over = rates.over(&peak);
        report.line(format!("goodput at 2× / peak, {name}"), "×", over, Aim::AtLeast(0.9));
    }
    Ok(())
}

pub fn unix_socket(bench: &Bench, report: &mut Report) -> Result<()> {
    let tcp = Server::ours(bench, &[bench.server_core], bench.workers, false)?;
    let unix = Server::ours(bench, &[bench.server_core], bench.workers, true)?;
    let secs = bench.secs(1.0, 3.0);
    let (mut cpu, mut p50) = (Figures::default(), Figures::default());
    for _ in 0..bench.pick(3, 7) {
        cpu.push(window(&tcp, 32, secs)?.cpu_micros() / window(&unix, 32, secs)?.cpu_micros());
        p50.push(window(&tcp, 1, secs)?.millis(0.5) / window(&unix, 1, secs)?.millis(0.5));
    }
    report.line("TCP / Unix socket, CPU of a request", "×", cpu, Aim::AtMost(1.2));
    report.line("TCP / Unix socket, one in flight, p50", "×", p50, Aim::AtMost(1.25));
    Ok(())
}
