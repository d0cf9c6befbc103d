//! The policies as SECURITY.md shows them: each statement with what it allows, where, when, and why.

use std::fmt::Write as _;

use super::calls::CALLS;
use super::policy::{Effect, Policy, Statement};
use super::store::{Role, STORE_CALLS};

/// The tables in Markdown.
pub fn page(scale_only: &Policy, manage: &Policy, store: Option<[&Policy; 2]>) -> String {
    let mut page = String::new();
    let mut policies = vec![("scale-only", scale_only), ("manage", manage)];
    if let Some([agent, node]) = store {
        policies.extend([("store", agent), ("node-store", node)]);
    }
    for (name, policy) in policies {
        let chars = policy.chars();
        let _ = writeln!(page, "`{name}` ({chars} characters with the values of the example):\n");
        page.push_str("| statement | actions | on | if | why |\n|---|---|---|---|---|\n");
        for statement in &policy.statement {
            page.push_str(&row(statement));
        }
        page.push('\n');
    }
    page.push_str("| call | so that the agent … |\n|---|---|\n");
    for call in CALLS {
        let _ = writeln!(page, "| `{}` | {} |", call.action, call.why);
    }
    if store.is_some() {
        page.push_str("\n| operation of the account store | action | below | so that the … |\n|---|---|---|---|\n");
        for call in STORE_CALLS {
            let below = call.prefixes.iter().map(|prefix| format!("`{prefix}/`"));
            let below = below.collect::<Vec<_>>().join(", ");
            let who = match call.role {
                Role::Agent => "agent",
                Role::Node => "node",
            };
            let (operation, action, why) = (call.operation, call.action, call.why);
            let _ = writeln!(page, "| {operation} | `{action}` | {below} | {who} {why} |");
        }
    }
    page
}

fn row(statement: &Statement) -> String {
    let effect = match statement.effect {
        Effect::Allow => "allow",
        Effect::Deny => "**deny**",
    };
    let code = |values: &[String]| {
        values.iter().map(|value| format!("`{}`", short(value))).collect::<Vec<_>>().join(", ")
    };
    let conditions: Vec<String> = statement
        .condition
        .iter()
        .flat_map(|(operator, keys)| {
            keys.iter().map(move |(key, values)| (operator, key, &values.0))
        })
        .map(|(operator, key, values)| format!("{operator} `{key}`: {}", code(values)))
        .collect();
    format!(
        "| {effect} {} | {} | {} | {} | {} |\n",
        statement.sid,
        code(&statement.action),
        code(&statement.resource),
        if conditions.is_empty() { "—".to_owned() } else { conditions.join("; ") },
        statement.why
    )
}

/// An ARN without what every ARN of an account says.
fn short(value: &str) -> String {
    match value.splitn(6, ':').collect::<Vec<_>>()[..] {
        ["arn", _, service, _, _, resource] => format!("{service} {resource}"),
        _ => value.to_owned(),
    }
}
