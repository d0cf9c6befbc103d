//! What a window of load has shown.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::client::OK;

/// Latencies are kept from a microsecond to a minute with two digits and a half.
const LATENCY_HIGHEST_NS: u64 = 60_000_000_000;

/// Answers of one window by status, with the latency of those that were good.
#[derive(Clone, Debug)]
pub struct Tally {
    pub window: Duration,
    /// Good answers only.
    pub latency: Histogram<u64>,
    /// Every answer, `grpc-status` → how many.
    pub statuses: BTreeMap<i32, u64>,
    /// Arrivals that were not sent: too much was outstanding already.
    pub unsent: u64,
    /// Sent, and not answered in the time given after the window.
    pub unanswered: u64,
    /// CPU of the server and what it started, within the window.
    pub server_cpu: Duration,
    /// CPU of this process.
    pub own_cpu: Duration,
}

impl Tally {
    pub fn new() -> Self {
        Self {
            window: Duration::ZERO,
            latency: Histogram::new_with_bounds(1_000, LATENCY_HIGHEST_NS, 3)
                .expect("bounds and digits are fixed and fit"),
            statuses: BTreeMap::new(),
            unsent: 0,
            unanswered: 0,
            server_cpu: Duration::ZERO,
            own_cpu: Duration::ZERO,
        }
    }

    pub fn record(&mut self, status: i32, latency: Duration) {
        *self.statuses.entry(status).or_default() += 1;
        if status == OK {
            let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
            self.latency.saturating_record(nanos);
        }
    }

    pub fn good(&self) -> u64 {
        self.latency.len()
    }

    pub fn answered(&self) -> u64 {
        self.statuses.values().sum()
    }

    /// Everything that was to get a good answer and did not.
    pub fn bad(&self) -> u64 {
        self.answered() - self.good() + self.unsent + self.unanswered
    }

    /// Good answers a second.
    pub fn rate(&self) -> f64 {
        self.good() as f64 / self.window.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Latency at `quantile` (0.99) of the good answers, in milliseconds.
    pub fn millis(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e6
    }

    /// The server's CPU per answer of any kind, in microseconds.
    pub fn cpu_micros(&self) -> f64 {
        self.server_cpu.as_secs_f64() * 1e6 / self.answered().max(1) as f64
    }

    /// How much of a core this process used; near 1, it is itself what is measured.
    pub fn own_share(&self) -> f64 {
        self.own_cpu.as_secs_f64() / self.window.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}
