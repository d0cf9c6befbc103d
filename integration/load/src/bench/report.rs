//! What a run has shown: a table for people, JSON for programs, a picture.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::figures::Figures;
use super::{Bench, picture};

#[derive(Clone, Copy, Debug)]
pub enum Aim {
    AtLeast(f64),
    AtMost(f64),
}

impl Aim {
    fn met(self, value: f64) -> bool {
        match self {
            Aim::AtLeast(bound) => value >= bound,
            Aim::AtMost(bound) => value <= bound,
        }
    }

    fn text(self) -> String {
        match self {
            Aim::AtLeast(bound) => format!("≥ {bound}"),
            Aim::AtMost(bound) => format!("≤ {bound}"),
        }
    }
}

struct Line {
    scenario: &'static str,
    what: String,
    unit: &'static str,
    figures: Figures,
    aim: Option<Aim>,
}

/// Latency of one server at one offered rate.
#[derive(Clone, Debug)]
pub struct Point {
    pub rate: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

pub struct Report {
    machine: String,
    quick: bool,
    scenario: &'static str,
    lines: Vec<Line>,
    notes: Vec<(&'static str, String)>,
    pub curves: Vec<(String, Vec<Point>)>,
}

impl Report {
    pub(super) fn new(bench: &Bench) -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
        let machine = format!("{cores} × {}", model.map_or("unknown", |(_, name)| name));
        Self {
            machine,
            quick: bench.quick,
            scenario: "",
            lines: Vec::new(),
            notes: Vec::new(),
            curves: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self, scenario: &'static str) {
        self.scenario = scenario;
    }

    /// A figure without an aim.
    pub fn figure(&mut self, what: impl Into<String>, unit: &'static str, figures: Figures) {
        self.line(what, unit, figures, None);
    }

    pub fn line(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        figures: Figures,
        aim: impl Into<Option<Aim>>,
    ) {
        let line =
            Line { scenario: self.scenario, what: what.into(), unit, figures, aim: aim.into() };
        eprintln!("    {}", text(&line));
        self.lines.push(line);
    }

    pub fn note(&mut self, note: String) {
        eprintln!("    ! {note}");
        self.notes.push((self.scenario, note));
    }

    pub(super) fn finish(self, folder: &Path, lasted: Duration) -> Result<()> {
        let mut out = String::new();
        let length = if self.quick { "quick" } else { "full" };
        writeln!(out, "\n{} run, {:.0} s, {}", length, lasted.as_secs_f64(), self.machine)?;
        let mut scenario = "";
        for line in &self.lines {
            if line.scenario != scenario {
                scenario = line.scenario;
                writeln!(out, "\n{scenario}")?;
            }
            writeln!(out, "  {}", text(line))?;
        }
        if !self.notes.is_empty() {
            writeln!(out, "\nNOT MEASURED, or to be known:")?;
        }
        for (scenario, note) in &self.notes {
            writeln!(out, "  {scenario}: {note}")?;
        }
        print!("{out}");
        std::fs::write(folder.join("transform.txt"), &out).context("write the table")?;
        let json = serde_json::to_string_pretty(&self.json(lasted))?;
        std::fs::write(folder.join("transform.json"), json).context("write the figures")?;
        if !self.curves.is_empty() {
            let svg = picture::latency_against_load(&self.curves);
            std::fs::write(folder.join("transform.svg"), svg).context("write the picture")?;
        }
        println!("\n{}/transform.{{txt,json,svg}}", folder.display());
        Ok(())
    }

    fn json(&self, lasted: Duration) -> Value {
        let lines: Vec<Value> = self.lines.iter().map(line_json).collect();
        let curves: serde_json::Map<String, Value> =
            self.curves.iter().map(|(name, points)| (name.clone(), points_json(points))).collect();
        let notes: Vec<Value> = self
            .notes
            .iter()
            .map(|(scenario, note)| json!({"scenario": scenario, "note": note}))
            .collect();
        json!({
            "machine": self.machine, "quick": self.quick, "secs": lasted.as_secs_f64(),
            "lines": lines, "latency_against_load": curves, "notes": notes,
        })
    }
}

fn line_json(line: &Line) -> Value {
    let median = line.figures.median();
    json!({
        "scenario": line.scenario, "what": line.what, "unit": line.unit,
        "median": median, "windows": line.figures.0,
        "aim": line.aim.map(Aim::text), "met": line.aim.map(|aim| aim.met(median)),
    })
}

fn points_json(points: &[Point]) -> Value {
    let point =
        |point: &Point| json!({"rate": point.rate, "p50_ms": point.p50_ms, "p99_ms": point.p99_ms});
    points.iter().map(point).collect()
}

fn text(line: &Line) -> String {
    let median = line.figures.median();
    let mut text = format!("{:<58}{:>10} {:<6}", line.what, number(median), line.unit);
    let spread = match line.figures.0.len() {
        0 | 1 => String::new(),
        _ => format!("{} … {}", number(line.figures.lowest()), number(line.figures.highest())),
    };
    write!(text, " {spread:<20}").expect("a string takes everything");
    if let Some(aim) = line.aim {
        let verdict = if aim.met(median) { "met" } else { "MISSED" };
        write!(text, " aim {:<7} {verdict}", aim.text()).expect("a string takes everything");
    }
    text.trim_end().to_owned()
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
