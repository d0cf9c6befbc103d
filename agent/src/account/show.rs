//! `outstation-agent status`: what the status file says, and whether the agent that wrote it lives.
//! Pure but for [`look`]; `now` is an argument.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use outstation_protocol::status::{GroupStatus, NodeStatus};
use serde::Serialize;

use super::config::Config;
use super::vitals::{
    self, Account, FRESH_SECS_MAX, GroupLine, GuardrailsState, JournalLine, Link, ReadError,
    Running, Snapshot, Trouble,
};

use crate::clock;
use crate::hint::Hinted;

/// Whether what the file says is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Process {
    Running,
    /// It holds its lock and has stopped writing.
    Hanging,
    Dead,
}

/// Prints it. Exit code 1 if what is printed is not what is.
pub fn run(config: &Config, as_json: bool) -> Result<ExitCode> {
    let now = clock::unix_secs();
    let (process, snapshot) = look(&config.state, now)?;
    if as_json {
        println!("{}", json(process, &snapshot, now));
    } else {
        print!("{}", text(process, &snapshot, now));
    }
    let hint = match process {
        Process::Running => return Ok(ExitCode::SUCCESS),
        Process::Hanging => {
            "it is stopped, starved, or its disk is full: look at its log and at the disk, \
             then let the service manager restart it"
        }
        Process::Dead => "start it again; its log says why it ended",
    };
    let age = ago(snapshot.written_unix_secs, now);
    Err(Hinted::error(
        format!("the account agent {process}; its last sign of life was {age}"),
        hint,
    ))
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Process::Running => "runs",
            Process::Hanging => "hangs",
            Process::Dead => "is not running",
        })
    }
}

/// Reads the file, and asks the system whether its writer lives.
pub fn look(state: &Path, now_unix_secs: u64) -> Result<(Process, Snapshot)> {
    let snapshot = vitals::read(state).map_err(|error| {
        let hint = match error {
            ReadError::Never(_) => "start it: outstation-agent account --config …",
            ReadError::Io { .. } => "run this as the user that owns the agent's folders",
            ReadError::Damaged { .. } => "use the status command of the release that runs there",
        };
        Hinted::error(format!("{:#}", anyhow::Error::from(error)), hint)
    })?;
    let is_there = Running::is_there(state)?;
    let age = now_unix_secs.saturating_sub(snapshot.written_unix_secs);
    let process = match is_there {
        false => Process::Dead,
        true if age > FRESH_SECS_MAX => Process::Hanging,
        true => Process::Running,
    };
    Ok((process, snapshot))
}

pub fn json(process: Process, snapshot: &Snapshot, now_unix_secs: u64) -> String {
    #[derive(Serialize)]
    struct Document<'a> {
        process: Process,
        age_secs: u64,
        #[serde(flatten)]
        snapshot: &'a Snapshot,
    }
    let age_secs = now_unix_secs.saturating_sub(snapshot.written_unix_secs);
    serde_json::to_string_pretty(&Document { process, age_secs, snapshot })
        .expect("plain values always serialize")
}

pub fn text(process: Process, snapshot: &Snapshot, now: u64) -> String {
    let mut out = format!(
        "account agent  {}  {} of tenant {}\n",
        snapshot.agent.as_ref().map_or("not enrolled".to_owned(), ToString::to_string),
        snapshot.data_plane,
        snapshot.tenant,
    );
    let mut row = |label: &str, text: String| {
        writeln!(out, "  {label:<12} {text}").expect("writing to a string");
    };
    let (pid, written) = (snapshot.pid, ago(snapshot.written_unix_secs, now));
    let up = ago(snapshot.started_unix_secs, now);
    match process {
        Process::Running => {
            let release = &snapshot.release;
            row("process", format!("pid {pid}, release {release}, started {up}"));
        }
        Process::Hanging => {
            row("process", format!("HANGS: pid {pid}, started {up}, last sign of life {written}"));
            row("", "what follows is from then".to_owned());
        }
        Process::Dead => {
            row("process", format!("DEAD: it was pid {pid}, last sign of life {written}"));
            row("", "what follows is from then".to_owned());
        }
    }
    row("link", link(&snapshot.link, now));
    row("certificate", certificate(snapshot.certificate_until_unix_secs, now));
    row("account", account(&snapshot.account, now));
    row("guardrails", guardrails(&snapshot.guardrails, now));
    row("AWS", looked(snapshot.looked_at_unix_secs, snapshot.look_error.as_ref(), now));
    if let Some(line) = &snapshot.journal {
        row("journal", journal(line));
    }
    for trouble in &snapshot.store_trouble {
        row("store", trouble.clone());
    }
    for contradiction in &snapshot.contradictions {
        row("CONTRADICTS", contradiction.clone());
    }
    if !snapshot.contradictions.is_empty() {
        row("", format!("hint: {}", super::floor::HINT));
    }
    out.push('\n');
    out.push_str(&groups(&snapshot.groups, now));
    out.push_str(&reasons(&snapshot.groups, now));
    out.push_str(&nodes(&snapshot.groups, now));
    out
}

fn link(link: &Link, now: u64) -> String {
    match link {
        Link::Starting => "not dialled yet".to_owned(),
        Link::Dialling { broker, since_unix_secs } => {
            format!("dialling {broker} for {}", since(*since_unix_secs, now))
        }
        Link::Connected { broker, since_unix_secs } => {
            format!("connected to {broker} for {}", since(*since_unix_secs, now))
        }
        Link::Waiting { reason, since_unix_secs, attempts, next_attempt_unix_secs } => format!(
            "not connected for {}, attempts {attempts}, the next in {}: {reason}",
            since(*since_unix_secs, now),
            span(next_attempt_unix_secs.saturating_sub(now)),
        ),
    }
}

fn certificate(until: Option<u64>, now: u64) -> String {
    match until {
        None => "none yet".to_owned(),
        Some(until) if until <= now => format!("EXPIRED {}", ago(until, now)),
        Some(until) => format!("valid for {}", span(until - now)),
    }
}

fn account(account: &Account, now: u64) -> String {
    match account {
        Account::Unchecked => "STS has not been asked yet whose it is".to_owned(),
        Account::Checked { at_unix_secs } => format!("checked {}", ago(*at_unix_secs, now)),
        Account::Failed(Trouble { message, at_unix_secs }) => {
            format!("STS does not say whose it is, {}: {message}", ago(*at_unix_secs, now))
        }
    }
}

fn guardrails(guardrails: &GuardrailsState, now: u64) -> String {
    let GuardrailsState { error, pause, orders, since_unix_secs } = guardrails;
    let since = since(*since_unix_secs, now);
    let orders = if orders.is_empty() { String::new() } else { format!("; {orders}") };
    match error {
        Some(why) => format!("NONE for {since}, everything is held: {why}"),
        None if *pause => format!("PAUSE for {since}, everything is held{orders}"),
        None => format!("valid for {since}{orders}"),
    }
}

fn looked(at: Option<u64>, error: Option<&Trouble>, now: u64) -> String {
    let at = at.map_or("never looked at".to_owned(), |at| format!("looked at {}", ago(at, now)));
    match error {
        None => at,
        Some(Trouble { message, at_unix_secs }) => {
            format!("{at}; failing for {}: {message}", since(*at_unix_secs, now))
        }
    }
}

fn journal(line: &JournalLine) -> String {
    let JournalLine { chain, records, trouble } = line;
    let there = chain.as_ref().map(|chain| format!("{records} records in {chain}"));
    match (trouble, there) {
        (Some(trouble), _) => trouble.clone(),
        (None, Some(there)) => there,
        (None, None) => "empty".to_owned(),
    }
}

fn groups(groups: &[GroupLine], now: u64) -> String {
    let count = |line: &GroupLine, pick: fn(&GroupStatus) -> u32| {
        line.status.as_ref().map_or("-".to_owned(), |status| pick(status).to_string())
    };
    let rows: Vec<Vec<String>> = groups
        .iter()
        .map(|line| {
            let status = line.status.as_ref();
            vec![
                line.group.to_string(),
                line.generation.map_or("-".to_owned(), |generation| generation.to_string()),
                line.digest.map_or("-".to_owned(), |digest| digest.short()),
                status.map_or("-".to_owned(), |status| status.phase.to_string()),
                status.map_or("-".to_owned(), |status| ago(status.phase_since_unix_secs, now)),
                count(line, |status| status.desired_nodes),
                count(line, |status| status.observed_nodes),
                count(line, |status| status.ready_nodes),
                status.map_or(String::new(), |status| status.reason.clone()),
            ]
        })
        .collect();
    let head = ["GROUP", "GENERATION", "DIGEST", "PHASE", "SINCE", "DESIRED", "OBSERVED", "READY"];
    table(&[&head[..], &["REASON"]].concat(), &rows)
}

fn reasons(groups: &[GroupLine], now: u64) -> String {
    let mut out = String::new();
    for line in groups {
        let Some(status) = &line.status else { continue };
        for held in &status.held {
            let text = format!("{}: held by {}: {}\n", line.group, held.rule, held.message);
            out.push_str(&text);
            out.push_str(&format!("  hint: {}\n", held.hint));
        }
        for drift in &status.drift {
            let outcome = if drift.repaired { "repaired" } else { "not repaired" };
            let at = ago(drift.at_unix_secs, now);
            out.push_str(&format!("{}: drift {at}, {outcome}: {}\n", line.group, drift.change));
        }
    }
    if out.is_empty() { out } else { format!("\n{out}") }
}

fn nodes(groups: &[GroupLine], now: u64) -> String {
    let row = |line: &GroupLine, node: &NodeStatus| {
        let since = match node.since_unix_secs {
            0 => "-".to_owned(),
            since => ago(since, now),
        };
        vec![
            node.instance.to_string(),
            line.group.to_string(),
            node.phase.to_string(),
            since,
            node.endpoint.clone().unwrap_or_else(|| "-".to_owned()),
            node.reason.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<Vec<String>> = groups
        .iter()
        .flat_map(|line| {
            let nodes = line.status.as_ref().map(|status| status.nodes.as_slice());
            nodes.unwrap_or_default().iter().map(move |node| row(line, node))
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("\n{}", table(&["NODE", "GROUP", "PHASE", "SINCE", "ENDPOINT", "REASON"], &rows))
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|title| (*title).to_owned()).collect();
    let width = |column: usize| {
        let cells = rows.iter().chain([&head]).map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    for row in [&head].into_iter().chain(rows) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn since(then_unix_secs: u64, now_unix_secs: u64) -> String {
    span(now_unix_secs.saturating_sub(then_unix_secs))
}

fn ago(then_unix_secs: u64, now_unix_secs: u64) -> String {
    format!("{} ago", span(now_unix_secs.saturating_sub(then_unix_secs)))
}

/// In the largest unit that leaves a number.
fn span(secs: u64) -> String {
    match secs {
        0..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs / 60),
        7200..172_800 => format!("{} h", secs / 3600),
        _ => format!("{} d", secs / 86_400),
    }
}

#[cfg(test)]
#[path = "show_tests.rs"]
mod tests;
