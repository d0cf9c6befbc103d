//! What `describe`, `get` and `agents` print. Pure: `now` is an argument.

pub mod conditions;
pub mod json;
pub mod table;

use std::fmt::Write as _;

use outstation_api::admin::Agent;
use outstation_protocol::model::{GroupSpec, Scaling};
use outstation_protocol::order::Intent;

use self::conditions::{Condition, conditions, set_apart};
use crate::link::{Link, Linked};
use crate::view::{GroupView, Status};

/// `3 s ago`, in the largest unit that leaves a number.
pub fn ago(then_unix_secs: u64, now_unix_secs: u64) -> String {
    format!("{} ago", span(then_unix_secs, now_unix_secs))
}

fn span(then_unix_secs: u64, now_unix_secs: u64) -> String {
    let secs = now_unix_secs.saturating_sub(then_unix_secs);
    match secs {
        0..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs / 60),
        7200..172_800 => format!("{} h", secs / 3600),
        _ => format!("{} d", secs / 86_400),
    }
}

pub fn describe(group: &GroupView, link: &Link, now_unix_secs: u64) -> String {
    let mut out = String::new();
    let shown = group.shown();
    let kind = match shown.known {
        Some((Intent::Apply(spec), _)) => format!("  {}", spec.kind),
        Some((Intent::Destroy, _)) | None => String::new(),
    };
    let stale = link.stale_since_unix_secs(group);
    write!(out, "{}{kind}  {}", group.name, phase(group, stale)).expect("writing to a string");
    if let Some(status) = &group.status {
        let Status { desired_nodes, observed_nodes, ready_nodes, .. } = status;
        write!(out, "   desired {desired_nodes}  observed {observed_nodes}  ready {ready_nodes}")
            .expect("writing to a string");
    }
    writeln!(out, "   {}", answers(group, now_unix_secs)).expect("writing to a string");

    let mut row = |label: &str, text: &str| {
        writeln!(out, "  {label:<12} {text}").expect("writing to a string");
    };
    if let Some(since) = stale {
        row(
            "STALE",
            &format!(
                "nothing has been heard of this group for {}: phase, counts and nodes are as of then",
                span(since, now_unix_secs)
            ),
        );
    }
    if let Some(status) = &group.status {
        let since = ago(status.phase_since_unix_secs, now_unix_secs);
        row("reason", &format!("{} (since {since})", status.reason));
    } else {
        row("reason", "the account agent has not reported on this group yet");
    }
    row("order", &shown.order.to_string());
    if let Some(signed) = &group.signed {
        row("signed by", &signed.text());
    }
    match shown.known {
        Some((Intent::Apply(spec), _)) => {
            let desired = group.status.as_ref().map(|status| status.desired_nodes);
            scaling_row(spec, desired, &mut row);
            spec_rows(spec, &mut row);
        }
        Some((Intent::Destroy, _)) => row("", "destroy this group"),
        None => row("", "this broker does not have it: its database is older than the account"),
    }
    if let Some((label, text)) = set_apart(group, now_unix_secs) {
        row(label, &text);
    }
    out.push_str(&condition_table(&conditions(group, link), now_unix_secs));
    if let Some(status) = &group.status
        && !status.nodes.is_empty()
    {
        out.push_str(&nodes(status, now_unix_secs));
    }
    out
}

/// `was READY`: what was seen last is not taken for what is.
fn phase(group: &GroupView, stale_since_unix_secs: Option<u64>) -> String {
    let was = if stale_since_unix_secs.is_some() { "was " } else { "" };
    format!("{was}{}", group.phase())
}

/// Of the order in force, and when the account has last answered to it.
fn answers(group: &GroupView, now_unix_secs: u64) -> String {
    let order = group.shown().order;
    let mut text = format!("generation {}", order.generation);
    if let Some(accepted) = &group.accepted {
        let ago = ago(accepted.at_unix_secs, now_unix_secs);
        write!(text, ", accepted {ago}").expect("writing to a string");
    }
    if let Some(converged) = &group.converged {
        let ago = ago(converged.at_unix_secs, now_unix_secs);
        write!(text, ", converged {ago}").expect("writing to a string");
        if converged.generation != order.generation {
            write!(text, " (generation {})", converged.generation).expect("writing to a string");
        }
    }
    if group.accepted.is_none() {
        let ago = ago(group.put_at_unix_secs, now_unix_secs);
        let answer = match group.refusal_of(order.generation) {
            Some(_) => "refused",
            None => "not answered yet",
        };
        write!(text, ", put {ago}, {answer}").expect("writing to a string");
    }
    text
}

fn condition_table(conditions: &[Condition], now_unix_secs: u64) -> String {
    let mut rows = Vec::new();
    for condition in conditions {
        let was = if condition.stale { "was " } else { "" };
        let since = condition.since_unix_secs;
        rows.push(vec![
            format!("  {}", condition.name),
            format!("{was}{}", condition.state),
            since.map_or("-".into(), |since| ago(since, now_unix_secs)),
            condition.reason.clone(),
        ]);
        if let Some(hint) = &condition.hint {
            rows.push(vec!["".into(), "".into(), "".into(), format!("hint: {hint}")]);
        }
    }
    table::render(&["  CONDITION", "STATE", "SINCE", "REASON"], &rows)
}

/// `3 (2..10, CPU 60 %)`: how many AWS wants now, and what the order leaves to it.
fn scaling_row(spec: &GroupSpec, desired: Option<u32>, row: &mut impl FnMut(&str, &str)) {
    if let Scaling::Autoscaling { min_nodes, max_nodes, target } = &spec.scaling {
        let desired = desired.map_or("-".to_owned(), |desired| desired.to_string());
        row("nodes", &format!("{desired} ({min_nodes}..{max_nodes}, {target})"));
    }
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

pub fn groups(groups: &[GroupView], link: &Link, now_unix_secs: u64) -> String {
    let rows: Vec<Vec<String>> = groups
        .iter()
        .map(|group| {
            let shown = group.shown();
            let (kind, environment) = match shown.known {
                Some((Intent::Apply(spec), _)) => {
                    (spec.kind.to_string(), spec.environment.name.to_string())
                }
                Some((Intent::Destroy, _)) | None => ("-".into(), "-".into()),
            };
            let count = |pick: fn(&Status) -> u32| {
                group.status.as_ref().map_or("-".to_owned(), |status| pick(status).to_string())
            };
            vec![
                group.name.to_string(),
                kind,
                phase(group, link.stale_since_unix_secs(group)),
                count(|status| status.desired_nodes),
                count(|status| status.observed_nodes),
                count(|status| status.ready_nodes),
                shown.order.generation.to_string(),
                environment,
                shown.known.map_or("-".into(), |(_, put_at)| ago(put_at, now_unix_secs)),
                note(group),
            ]
        })
        .collect();
    let mut out = table::render(
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
    );
    writeln!(out, "{}", link_line(link, now_unix_secs)).expect("writing to a string");
    out
}

/// What is wrong with the newest order, else why the phase is what it is.
fn note(group: &GroupView) -> String {
    let reason = group.status.as_ref().map(|status| status.reason.clone()).unwrap_or_default();
    let newest = group.generation;
    let in_force = group.in_force().map(|in_force| in_force.order.generation);
    match (group.refusal_of(newest), in_force) {
        (Some(refused), _) => format!("generation {newest} refused: {}", refused.message),
        (None, Some(generation)) if generation < newest => {
            format!("generation {newest} not answered yet; {reason}")
        }
        (None, Some(generation)) if generation > newest => {
            format!("this broker knows generation {newest} only; {reason}")
        }
        (None, Some(_) | None) => reason,
    }
}

/// Who is connected since when, in one line.
fn link_line(link: &Link, now_unix_secs: u64) -> String {
    let since = |linked: &Linked| span(linked.since_unix_secs, now_unix_secs);
    match link {
        Link::Never => "No account agent has enrolled.".into(),
        Link::Up { agents } => {
            let agents: Vec<String> = agents
                .iter()
                .map(|linked| {
                    let Linked { agent, release, .. } = linked;
                    format!("{agent} (release {release}) connected for {}", since(linked))
                })
                .collect();
            format!("Account agent {}.", agents.join(", "))
        }
        Link::Down { last } => format!(
            "Account agent {} is NOT connected, for {} now: phases and counts are as of then.",
            last.agent,
            since(last)
        ),
    }
}

pub fn agents(agents: &[Agent], now_unix_secs: u64) -> String {
    let rows: Vec<Vec<String>> = agents
        .iter()
        .map(|agent| {
            let data_plane = agent
                .data_plane
                .as_ref()
                .map_or("-".into(), |plane| format!("{}/{}", plane.account, plane.region));
            let link = match (agent.revoked_at_unix_secs, agent.connected) {
                (Some(_), _) => "revoked",
                (None, true) => "connected",
                (None, false) => "gone",
            };
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
                "revoked_at_unix_secs": agent.revoked_at_unix_secs,
                "since_unix_secs": agent.since_unix_secs,
                "release": agent.release,
            })
        })
        .collect();
    serde_json::to_string_pretty(&agents).expect("plain values always serialize")
}

#[cfg(test)]
mod tests;
