//! A plan as a person reads it, and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use outstation_protocol::ids::{Digest, EnvironmentName, GroupName};
use outstation_protocol::model::{GroupKind, GroupSpec, Scaling};

use super::{Change, Counts, FieldChange, Plan, counted};

/// One line per environment and group that changes, and a closing sentence.
pub fn text(plan: &Plan) -> String {
    let mut out = String::new();
    for (name, environment) in &plan.new_environments {
        let packages = match environment.packages {
            0 => String::new(),
            count => format!(", {}", counted(count as u64, "package")),
        };
        line(
            &mut out,
            '+',
            "environment",
            name.as_str(),
            &format!(
                "{}  python {}, outstation {}{packages}",
                environment.digest.short(),
                environment.python,
                environment.outstation
            ),
        );
    }
    for (name, change) in &plan.changes {
        let row = |out: &mut String, sign, spec: &GroupSpec, what: &str| {
            line(out, sign, &spec.kind.to_string(), name.as_str(), what);
        };
        match change {
            Change::Create { spec } => row(&mut out, '+', spec, &summary(spec)),
            Change::Update { spec, fields } => {
                let fields: Vec<String> = fields
                    .iter()
                    .map(|change| format!("{} {} -> {}", change.field, change.from, change.to))
                    .collect();
                row(&mut out, '~', spec, &fields.join(", "));
            }
            Change::Retry { spec, refused } => {
                row(
                    &mut out,
                    '~',
                    spec,
                    &format!("as declared, asked again: refused by {refused}"),
                );
            }
            Change::Destroy { spec } => {
                row(&mut out, '-', spec, &format!("{}, no longer declared", summary(spec)));
            }
            Change::Forbidden { spec } => {
                row(&mut out, '!', spec, "no longer declared, but protected by prevent_destroy");
            }
            Change::Unchanged { .. } => {}
        }
        match (change, plan.refused.get(name)) {
            // Says so already.
            (Change::Retry { .. }, _) | (_, None) => {}
            (_, Some((generation, refused))) => {
                let text = format!(
                    "the newest order, generation {generation}, was refused by {refused}; the \
                     account is still as an older one says"
                );
                line(&mut out, ' ', "", "", &text);
            }
        }
    }
    out.push_str(&closing(plan));
    out.push('\n');
    out
}

fn line(out: &mut String, sign: char, kind: &str, name: &str, what: &str) {
    writeln!(out, "{sign} {kind:<12} {name:<14} {what}").expect("writing to a string");
}

/// `3 nodes, environment flights`, `2..10 nodes at CPU 60 %, environment flights`.
fn summary(spec: &GroupSpec) -> String {
    let nodes = match &spec.scaling {
        Scaling::Provisioned { desired_nodes } => counted(*desired_nodes, "node"),
        Scaling::Autoscaling { min_nodes, max_nodes, target } => {
            format!("{min_nodes}..{max_nodes} nodes at {target}")
        }
    };
    format!("{nodes}, environment {}", spec.environment.name)
}

fn closing(plan: &Plan) -> String {
    let Counts { create, update, destroy, forbidden, unchanged } = plan.counts();
    let groups = |count: usize| counted(count as u64, "group");
    if plan.is_empty() {
        return match unchanged {
            0 => "Nothing is declared and nothing is there.".into(),
            count => format!("Nothing to do: {} as declared.", groups(count)),
        };
    }
    let mut parts = Vec::new();
    if create > 0 {
        let environments = match plan.new_environments.len() {
            0 => String::new(),
            count => format!("{}, ", counted(count as u64, "environment")),
        };
        parts.push(format!("{environments}{} to create", groups(create)));
    }
    for (count, what) in [
        (update, "to update"),
        (destroy, "to destroy"),
        (forbidden, "protected"),
        (unchanged, "unchanged"),
    ] {
        if count > 0 {
            parts.push(format!("{} {what}", groups(count)));
        }
    }
    format!("{}.", parts.join("; "))
}

#[derive(Serialize)]
struct PlanJson<'a> {
    new_environments: Vec<EnvironmentJson<'a>>,
    changes: Vec<ChangeJson<'a>>,
    counts: Counts,
}

#[derive(Serialize)]
struct EnvironmentJson<'a> {
    name: &'a EnvironmentName,
    #[serde(flatten)]
    environment: &'a super::DeclaredEnvironment,
}

#[derive(Serialize)]
struct ChangeJson<'a> {
    action: &'static str,
    group: &'a GroupName,
    kind: GroupKind,
    /// The most that there may be.
    nodes: u32,
    scaling: &'a Scaling,
    environment: &'a EnvironmentName,
    environment_digest: Digest,
    bundle: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    fields: Option<&'a [FieldChange]>,
    /// Of the newest order, which the change is made against.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<&'a str>,
}

pub fn json(plan: &Plan) -> String {
    let changes = plan
        .changes
        .iter()
        .map(|(group, change)| {
            let (action, spec, fields) = match change {
                Change::Create { spec } => ("create", spec, None),
                Change::Update { spec, fields } => ("update", spec, Some(fields.as_slice())),
                Change::Retry { spec, .. } => ("retry", spec, None),
                Change::Destroy { spec } => ("destroy", spec, None),
                Change::Forbidden { spec } => ("forbidden", spec, None),
                Change::Unchanged { spec } => ("unchanged", spec, None),
            };
            let refused = plan.refused.get(group).map(|(_, refused)| refused.as_str());
            ChangeJson {
                action,
                group,
                kind: spec.kind,
                nodes: spec.scaling.nodes_max(),
                scaling: &spec.scaling,
                environment: &spec.environment.name,
                environment_digest: spec.environment.digest,
                bundle: spec.bundle,
                fields,
                refused,
            }
        })
        .collect();
    let new_environments = plan
        .new_environments
        .iter()
        .map(|(name, environment)| EnvironmentJson { name, environment })
        .collect();
    let plan = PlanJson { new_environments, changes, counts: plan.counts() };
    let mut text = serde_json::to_string_pretty(&plan).expect("a plan always serializes");
    text.push('\n');
    text
}
