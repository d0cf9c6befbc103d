//! What `describe`, `get` and `agents` print. Pure: `now` is an argument.

pub mod table;

use std::fmt::Write as _;

use outstation_api::admin::Agent;
use outstation_protocol::model::GroupSpec;
use outstation_protocol::order::Intent;
use time::OffsetDateTime;

use crate::view::{GroupView, Refused, Status};

/// `3 s ago`, in the largest unit that leaves a number.
pub fn ago(then_unix_secs: u64, now_unix_secs: u64) -> String {
    let secs = now_unix_secs.saturating_sub(then_unix_secs);
    match secs {
        0..120 => format!("{secs} s ago"),
        120..7200 => format!("{} min ago", secs / 60),
        7200..172_800 => format!("{} h ago", secs / 3600),
        _ => format!("{} d ago", secs / 86_400),
    }
}

/// `14:02` of today in UTC, with the date when it is another day.
fn clock_time(at_unix_secs: u64, now_unix_secs: u64) -> String {
    let parse = |secs: u64| {
        i64::try_from(secs).ok().and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok())
    };
    let (Some(at), Some(now)) = (parse(at_unix_secs), parse(now_unix_secs)) else {
        return format!("at {at_unix_secs}");
    };
    let time = format!("{:02}:{:02} UTC", at.hour(), at.minute());
    if at.date() == now.date() { time } else { format!("{} {time}", at.date()) }
}

pub fn describe(group: &GroupView, now_unix_secs: u64) -> String {
    let mut out = String::new();
    let kind = match &group.intent {
        Intent::Apply(spec) => format!("  {}", spec.kind),
        Intent::Destroy => String::new(),
    };
    write!(out, "{}{kind}  {}", group.name, group.phase()).expect("writing to a string");
    if let Some(status) = &group.status {
        let Status { desired_nodes, observed_nodes, ready_nodes, .. } = status;
        write!(out, "   desired {desired_nodes}  observed {observed_nodes}  ready {ready_nodes}")
            .expect("writing to a string");
    }
    writeln!(out, "   {}", answers(group, now_unix_secs)).expect("writing to a string");

    let mut row = |label: &str, text: &str| {
        writeln!(out, "  {label:<12} {text}").expect("writing to a string");
    };
    if let Some(status) = &group.status {
        let since = ago(status.phase_since_unix_secs, now_unix_secs);
        row("reason", &format!("{} (since {since})", status.reason));
    } else {
        row("reason", "the account agent has not reported on this group yet");
    }
    match &group.intent {
        Intent::Apply(spec) => spec_rows(spec, &mut row),
        Intent::Destroy => row("order", "destroy this group"),
    }
    // An order that was accepted since makes an older refusal history.
    let accepted = group.accepted.as_ref().map(|accepted| accepted.generation);
    let standing = |refused: &&Refused| accepted.is_none_or(|at| refused.generation > at);
    if let Some(refused) = group.refused.as_ref().filter(standing) {
        row(
            "refused",
            &format!(
                "generation {}, {}: {}: {}",
                refused.generation,
                ago(refused.at_unix_secs, now_unix_secs),
                refused.rule,
                refused.message
            ),
        );
        row("", &format!("hint: {}", refused.hint));
    }
    if let Some(status) = &group.status {
        status_rows(status, now_unix_secs, &mut row);
        if !status.nodes.is_empty() {
            out.push_str(&nodes(status, now_unix_secs));
        }
    }
    out
}

fn answers(group: &GroupView, now_unix_secs: u64) -> String {
    let mut text = format!("generation {}", group.generation);
    for (what, answer) in [("accepted", &group.accepted), ("converged", &group.converged)] {
        if let Some(answer) = answer {
            let ago = ago(answer.at_unix_secs, now_unix_secs);
            write!(text, ", {what} {ago}").expect("writing to a string");
            if answer.generation != group.generation {
                write!(text, " (generation {})", answer.generation).expect("writing to a string");
            }
        }
    }
    if group.accepted.is_none() && group.refused.is_none() {
        let ago = ago(group.put_at_unix_secs, now_unix_secs);
        write!(text, ", put {ago}, not answered yet").expect("writing to a string");
    }
    text
}

fn spec_rows(spec: &GroupSpec, row: &mut impl FnMut(&str, &str)) {
    row("environment", &format!("{}  {}", spec.environment.name, spec.environment.digest.short()));
    row("functions", &spec.bundle.short());
    if let Some(owner) = &spec.owner {
        row("owner", owner);
    }
    if let Some(description) = &spec.description {
        row("description", description);
    }
    let pairs = |map: &std::collections::BTreeMap<String, String>| {
        map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
    };
    if !spec.tags.is_empty() {
        row("tags", &pairs(&spec.tags));
    }
    if !spec.options.is_empty() {
        row("options", &pairs(&spec.options));
    }
    if spec.prevent_destroy {
        row("protected", "prevent_destroy");
    }
}

fn status_rows(status: &Status, now_unix_secs: u64, row: &mut impl FnMut(&str, &str)) {
    if status.held.is_empty() {
        row("held", "nothing");
    }
    for held in &status.held {
        let generation = held
            .generation
            .map_or(String::new(), |generation| format!("generation {generation}: "));
        row("held", &format!("{generation}{}: {}", held.rule, held.message));
        row("", &format!("hint: {}", held.hint));
    }
    if status.drift.is_empty() {
        row("drift", "none");
    }
    for drift in &status.drift {
        let outcome = if drift.repaired { "repaired" } else { "not repaired" };
        let at = clock_time(drift.at_unix_secs, now_unix_secs);
        row("drift", &format!("{}, {outcome} {at}", drift.change));
    }
}

fn nodes(status: &Status, now_unix_secs: u64) -> String {
    let rows: Vec<Vec<String>> = status
        .nodes
        .iter()
        .map(|node| {
            // `sha256:` and twelve digits are enough to tell two bundles apart.
            let bundle = node.bundle.as_deref().unwrap_or("-");
            vec![
                format!("  {}", node.instance),
                node.phase.clone(),
                node.endpoint.clone().unwrap_or_else(|| "-".into()),
                bundle.chars().take(19).collect(),
                ago(node.since_unix_secs, now_unix_secs),
                node.reason.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table::render(&["  NODE", "PHASE", "ENDPOINT", "FUNCTIONS", "SINCE", "REASON"], &rows)
}

pub fn groups(groups: &[GroupView], now_unix_secs: u64) -> String {
    let rows: Vec<Vec<String>> = groups
        .iter()
        .map(|group| {
            let (kind, environment) = match &group.intent {
                Intent::Apply(spec) => (spec.kind.to_string(), spec.environment.name.to_string()),
                Intent::Destroy => ("-".into(), "-".into()),
            };
            let count = |pick: fn(&Status) -> u32| {
                group.status.as_ref().map_or("-".to_owned(), |status| pick(status).to_string())
            };
            let note = match group.refusal_of(group.generation) {
                Some(refused) => format!("refused: {}", refused.message),
                None => {
                    group.status.as_ref().map(|status| status.reason.clone()).unwrap_or_default()
                }
            };
            vec![
                group.name.to_string(),
                kind,
                group.phase().to_owned(),
                count(|status| status.desired_nodes),
                count(|status| status.observed_nodes),
                count(|status| status.ready_nodes),
                group.generation.to_string(),
                environment,
                ago(group.put_at_unix_secs, now_unix_secs),
                note,
            ]
        })
        .collect();
    table::render(
        &[
            "GROUP",
            "KIND",
            "PHASE",
            "DESIRED",
            "OBSERVED",
            "READY",
            "GENERATION",
            "ENVIRONMENT",
            "APPLIED",
            "REASON",
        ],
        &rows,
    )
}

pub fn agents(agents: &[Agent], now_unix_secs: u64) -> String {
    let rows: Vec<Vec<String>> = agents
        .iter()
        .map(|agent| {
            let data_plane = agent
                .data_plane
                .as_ref()
                .map_or("-".into(), |plane| format!("{}/{}", plane.account, plane.region));
            let link = if agent.connected { "connected" } else { "gone" };
            vec![
                agent.id.clone(),
                data_plane,
                link.into(),
                ago(agent.since_unix_secs, now_unix_secs),
                agent.release.clone(),
            ]
        })
        .collect();
    table::render(&["AGENT", "DATA PLANE", "LINK", "SINCE", "RELEASE"], &rows)
}

pub fn agents_json(agents: &[Agent]) -> String {
    let agents: Vec<serde_json::Value> = agents
        .iter()
        .map(|agent| {
            serde_json::json!({
                "id": agent.id,
                "account": agent.data_plane.as_ref().map(|plane| &plane.account),
                "region": agent.data_plane.as_ref().map(|plane| &plane.region),
                "connected": agent.connected,
                "since_unix_secs": agent.since_unix_secs,
                "release": agent.release,
            })
        })
        .collect();
    serde_json::to_string_pretty(&agents).expect("plain values always serialize")
}

#[cfg(test)]
mod tests;
