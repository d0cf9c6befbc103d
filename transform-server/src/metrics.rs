//! What is counted and timed, as Prometheus reads it. Labels are the bundle's own targets and lists that
//! are fixed here: nothing that a caller sends makes a new series.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::spawn::{WorkerMode, Workers};

/// Seconds: from a function that does nothing to one that runs into the default deadline.
const BUCKETS: [f64; 14] = [
    0.000_025, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5,
    10.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFunction {
    function: Name,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    function: Name,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    why: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Mode {
    mode: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Name(Arc<str>);

impl prometheus_client::encoding::EncodeLabelValue for Name {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(&self.0)
    }
}

pub struct Metrics {
    registry: Registry,
    calls: Family<Outcome, Counter>,
    refused: Family<Outcome, Counter>,
    queue: Family<OfFunction, Histogram>,
    worker: Family<OfFunction, Histogram>,
    function: Family<OfFunction, Histogram>,
    ends: Family<Why, Counter>,
    modes: Family<Mode, Gauge>,
    sandbox_missing: Gauge,
    pub waiting: Gauge,
    pub workers: Gauge,
    pub worker_starts: Counter,
    pub log_lines: Counter,
}

/// One target's, looked up once.
#[derive(Debug)]
pub struct TargetMetrics {
    name: Name,
    pub ok: Counter,
    /// From arrival until it was given to a worker.
    pub queue: Histogram,
    pub worker: Histogram,
    pub function: Histogram,
}

impl Metrics {
    pub fn new() -> Metrics {
        let histogram =
            || Family::<OfFunction, Histogram>::new_with_constructor(|| Histogram::new(BUCKETS));
        let mut metrics = Metrics {
            registry: Registry::with_prefix("outstation_transform"),
            calls: Family::default(),
            refused: Family::default(),
            queue: histogram(),
            worker: histogram(),
            function: histogram(),
            ends: Family::default(),
            modes: Family::default(),
            sandbox_missing: Gauge::default(),
            waiting: Gauge::default(),
            workers: Gauge::default(),
            worker_starts: Counter::default(),
            log_lines: Counter::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "calls",
            "Calls that a worker started, by what came of them",
            self.calls.clone(),
        );
        registry.register("refused", "Calls that were not started, and why", self.refused.clone());
        let seconds = |what: &str| (what.to_owned(), Unit::Seconds);
        for (name, (help, unit), family) in [
            ("queue", seconds("From a call's arrival until a worker was given it"), &self.queue),
            (
                "worker",
                seconds("A call in the worker, decoding and encoding included"),
                &self.worker,
            ),
            ("function", seconds("A call's time in user functions"), &self.function),
        ] {
            registry.register_with_unit(name, help, unit, family.clone());
        }
        registry.register("worker_ends", "Workers that ended, and why", self.ends.clone());
        registry.register(
            "worker_mode",
            "1 for how workers are started: forked from a warm parent, or as fresh interpreters",
            self.modes.clone(),
        );
        registry.register(
            "sandbox_missing",
            "Parts of the workers' confinement that the system did not grant; the log names them",
            self.sandbox_missing.clone(),
        );
        registry.register("worker_starts", "Workers that were started", self.worker_starts.clone());
        registry.register("workers", "Workers that have loaded the bundle", self.workers.clone());
        registry.register("waiting", "Calls that wait for a worker", self.waiting.clone());
        registry.register(
            "log_lines",
            "Lines that user code printed or logged",
            self.log_lines.clone(),
        );
    }

    pub fn of(&self, name: &Arc<str>) -> TargetMetrics {
        let name = Name(name.clone());
        let label = OfFunction { function: name.clone() };
        let ok = Outcome { function: name.clone(), outcome: "ok" };
        TargetMetrics {
            name,
            ok: self.calls.get_or_create_owned(&ok),
            queue: self.queue.get_or_create_owned(&label),
            worker: self.worker.get_or_create_owned(&label),
            function: self.function.get_or_create_owned(&label),
        }
    }

    /// A started call without an answer of its function.
    pub fn failed(&self, target: &TargetMetrics, outcome: &'static str) {
        self.calls.get_or_create(&Outcome { function: target.name.clone(), outcome }).inc();
    }

    pub fn refused(&self, target: &TargetMetrics, outcome: &'static str) {
        self.refused.get_or_create(&Outcome { function: target.name.clone(), outcome }).inc();
    }

    pub fn worker_ended(&self, why: &'static str) {
        self.ends.get_or_create(&Why { why }).inc();
    }

    /// How workers come about, and how much of their confinement the system did not grant.
    pub fn workers_are(&self, workers: &Workers) {
        let now = match workers.mode {
            WorkerMode::Unknown => return,
            WorkerMode::Forked => "forked",
            WorkerMode::Fresh { .. } => "fresh",
        };
        for mode in ["forked", "fresh"] {
            self.modes.get_or_create(&Mode { mode }).set(i64::from(mode == now));
        }
        self.sandbox_missing.set(workers.sandbox.missing.len() as i64);
    }

    /// In the text format of OpenMetrics.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

pub fn observe(histogram: &Histogram, took: Duration) {
    histogram.observe(took.as_secs_f64());
}
