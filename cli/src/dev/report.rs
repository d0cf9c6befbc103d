//! What the calls of `dev` came to: counted as they end, shown as a table.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::show::table;

/// A minute is beyond every deadline that is used here.
const LATENCY_MICROS_MAX: u64 = 60_000_000;

/// Which server answered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Node {
    pub group: String,
    pub instance: String,
}

struct Tally {
    calls: u64,
    errors: u64,
    latency: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        let latency = Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3)
            .expect("constant bounds that are valid");
        Tally { calls: 0, errors: 0, latency }
    }
}

impl Tally {
    fn add(&mut self, latency: Duration, failed: bool) {
        self.calls += 1;
        self.errors += u64::from(failed);
        let micros = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_MICROS_MAX);
        self.latency.saturating_record(micros.max(1));
    }

    fn merge(&mut self, other: &Tally) {
        self.calls += other.calls;
        self.errors += other.errors;
        self.latency.add(&other.latency).expect("histograms of the same bounds");
    }
}

/// Everything that was counted.
#[derive(Default)]
pub struct Report {
    nodes: BTreeMap<Node, Tally>,
    /// Calls that no node answered, by group, with their first messages.
    lost: BTreeMap<String, u64>,
    messages: Vec<String>,
    pub elapsed: Duration,
}

/// Enough to see what is wrong.
const MESSAGES_MAX: usize = 5;

impl Report {
    /// A node answered; `error` if the call or one of its rows failed there.
    pub fn answered(&mut self, node: Node, latency: Duration, error: Option<String>) {
        self.nodes.entry(node).or_default().add(latency, error.is_some());
        self.messages.extend(error.filter(|_| self.messages.len() < MESSAGES_MAX));
    }

    pub fn lost(&mut self, group: &str, error: String) {
        *self.lost.entry(group.to_owned()).or_default() += 1;
        if self.messages.len() < MESSAGES_MAX {
            self.messages.push(error);
        }
    }

    /// Nodes that take part even if no call comes to them.
    pub fn expect(&mut self, node: Node) {
        self.nodes.entry(node).or_default();
    }

    pub fn merge(&mut self, other: Report) {
        for (node, tally) in other.nodes {
            self.nodes.entry(node).or_default().merge(&tally);
        }
        for (group, lost) in other.lost {
            *self.lost.entry(group).or_default() += lost;
        }
        let room = MESSAGES_MAX.saturating_sub(self.messages.len());
        self.messages.extend(other.messages.into_iter().take(room));
        self.elapsed = self.elapsed.max(other.elapsed);
    }

    pub fn calls(&self) -> u64 {
        self.nodes.values().map(|tally| tally.calls).sum::<u64>() + self.lost.values().sum::<u64>()
    }

    pub fn errors(&self) -> u64 {
        self.nodes.values().map(|tally| tally.errors).sum::<u64>() + self.lost.values().sum::<u64>()
    }

    /// Why this is no success; nothing if it is one.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        if self.calls() == 0 {
            complaints.push("no call was made".to_owned());
        }
        if self.errors() > 0 {
            complaints.push(format!("{} of {} calls failed", self.errors(), self.calls()));
        }
        for (node, tally) in &self.nodes {
            if tally.calls == 0 {
                complaints.push(format!("{} of {} got no call", node.instance, node.group));
            }
        }
        complaints.extend(self.messages.iter().map(|message| format!("a call: {message}")));
        complaints
    }

    fn groups(&self) -> BTreeMap<&str, (usize, Tally)> {
        let mut groups: BTreeMap<&str, (usize, Tally)> = BTreeMap::new();
        for (node, tally) in &self.nodes {
            let (count, sum) = groups.entry(&node.group).or_default();
            *count += 1;
            sum.merge(tally);
        }
        for (group, lost) in &self.lost {
            let (_, sum) = groups.entry(group).or_default();
            sum.calls += lost;
            sum.errors += lost;
        }
        groups
    }

    pub fn text(&self) -> String {
        let mut rows = Vec::new();
        let row = |group: &str, node: String, tally: &Tally| {
            vec![
                group.to_owned(),
                node,
                tally.calls.to_string(),
                tally.errors.to_string(),
                per_second(tally.calls, self.elapsed),
                millis(tally, 0.5),
                millis(tally, 0.99),
            ]
        };
        for (group, (count, sum)) in &self.groups() {
            for (node, tally) in self.nodes.iter().filter(|(node, _)| node.group == *group) {
                rows.push(row(group, node.instance.clone(), tally));
            }
            rows.push(row(group, crate::plan::counted(*count as u64, "node"), sum));
        }
        table::render(&["GROUP", "NODE", "CALLS", "ERRORS", "CALLS/S", "P50 MS", "P99 MS"], &rows)
    }

    pub fn json(&self) -> String {
        let tally = |tally: &Tally| {
            serde_json::json!({
                "calls": tally.calls,
                "errors": tally.errors,
                "p50_micros": tally.latency.value_at_quantile(0.5),
                "p99_micros": tally.latency.value_at_quantile(0.99),
            })
        };
        let groups: serde_json::Map<String, serde_json::Value> = self
            .groups()
            .into_iter()
            .map(|(group, (_, sum))| {
                let mut entry = tally(&sum);
                let nodes = self.nodes.iter().filter(|(node, _)| node.group == group);
                entry["nodes"] = nodes
                    .map(|(node, sum)| (node.instance.clone(), tally(sum)))
                    .collect::<serde_json::Map<_, _>>()
                    .into();
                (group.to_owned(), entry)
            })
            .collect();
        let report = serde_json::json!({
            "elapsed_secs": self.elapsed.as_secs_f64(),
            "calls": self.calls(),
            "errors": self.errors(),
            "groups": groups,
        });
        serde_json::to_string_pretty(&report).expect("plain values always serialize")
    }
}

fn per_second(calls: u64, elapsed: Duration) -> String {
    if elapsed.is_zero() {
        return "0".into();
    }
    format!("{:.0}", calls as f64 / elapsed.as_secs_f64())
}

fn millis(tally: &Tally, quantile: f64) -> String {
    if tally.latency.is_empty() {
        return "-".into();
    }
    format!("{:.2}", tally.latency.value_at_quantile(quantile) as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(instance: &str) -> Node {
        Node { group: "delay_tsg".into(), instance: instance.into() }
    }

    #[test]
    fn the_table_sums_its_nodes() {
        let mut report = Report { elapsed: Duration::from_secs(2), ..Report::default() };
        for micros in [1000, 2000, 3000] {
            report.answered(node("i-a"), Duration::from_micros(micros), None);
        }
        report.answered(node("i-b"), Duration::from_micros(8192), None);
        assert_eq!(report.complaints(), Vec::<String>::new());
        assert_eq!(
            report.text(),
            "\
GROUP      NODE     CALLS  ERRORS  CALLS/S  P50 MS  P99 MS
delay_tsg  i-a          3       0        2    2.00    3.00
delay_tsg  i-b          1       0        0    8.20    8.20
delay_tsg  2 nodes      4       0        2    2.00    8.20
"
        );
    }

    #[test]
    fn errors_idle_nodes_and_lost_calls_are_complaints() {
        let mut report = Report::default();
        assert_eq!(report.complaints(), ["no call was made"]);
        report.expect(node("i-a"));
        report.answered(node("i-b"), Duration::from_millis(1), Some("it raised".into()));
        report.lost("delay_tsg", "no endpoint".into());
        assert_eq!(
            report.complaints(),
            [
                "2 of 2 calls failed",
                "i-a of delay_tsg got no call",
                "a call: it raised",
                "a call: no endpoint"
            ]
        );
    }
}
