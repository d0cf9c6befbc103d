//! What `apply` would do: the declared groups held against the newest orders. Pure.

pub mod render;

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::Serialize;

use outstation_protocol::ids::{Digest, EnvironmentName, Generation, GroupName};
use outstation_protocol::model::{GroupSpec, Scaling};
use outstation_protocol::order::{Intent, Order};

use crate::context::Context;
use crate::signing::Signed;

/// What the local repo says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declared {
    /// Those that a group uses.
    pub environments: BTreeMap<EnvironmentName, DeclaredEnvironment>,
    pub groups: BTreeMap<GroupName, GroupSpec>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeclaredEnvironment {
    pub digest: Digest,
    pub python: String,
    pub outstation: String,
    /// How many packages are pinned.
    pub packages: usize,
}

/// What the broker holds of one group: the newest order, and whether the account refused it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newest {
    pub generation: Generation,
    pub digest: Digest,
    pub intent: Intent,
    /// Rule and message, if exactly this generation was refused.
    pub refused: Option<String>,
    /// What the account acts on instead, if that is another order and no tombstone.
    pub present: Option<GroupSpec>,
    /// Whether the newest order is that of somebody whom the context trusts.
    pub signed: Signed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Environments that no present order names.
    pub new_environments: BTreeMap<EnvironmentName, DeclaredEnvironment>,
    pub changes: BTreeMap<GroupName, Change>,
    /// Of these the newest order was refused: generation, rule and message. The account is still
    /// as an older order says.
    pub refused: BTreeMap<GroupName, (Generation, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Create {
        spec: GroupSpec,
    },
    Update {
        spec: GroupSpec,
        fields: Vec<FieldChange>,
    },
    /// Nothing differs, but the account refused the newest order: ask again.
    Retry {
        spec: GroupSpec,
        refused: String,
    },
    Destroy {
        spec: GroupSpec,
    },
    /// Would be destroyed, but its newest order says `prevent_destroy`.
    Forbidden {
        spec: GroupSpec,
    },
    Unchanged {
        spec: GroupSpec,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    pub field: String,
    pub from: String,
    pub to: String,
}

/// Compares. A group that is not declared any more is destroyed, unless it is protected.
pub fn plan(declared: &Declared, newest: &BTreeMap<GroupName, Newest>) -> Plan {
    let mut changes = BTreeMap::new();
    for (name, spec) in &declared.groups {
        changes.insert(name.clone(), change_of(spec, newest.get(name)));
    }
    for (name, held) in newest {
        if declared.groups.contains_key(name) {
            continue;
        }
        if let Some(change) = removal_of(held) {
            changes.insert(name.clone(), change);
        }
    }
    let known: Vec<Digest> = newest
        .values()
        .filter_map(|newest| match &newest.intent {
            Intent::Apply(spec) => Some(spec.environment.digest),
            Intent::Destroy => None,
        })
        .collect();
    let new_environments = declared
        .environments
        .iter()
        .filter(|(_, environment)| !known.contains(&environment.digest))
        .map(|(name, environment)| (name.clone(), environment.clone()))
        .collect();
    let refused = refused(newest, &changes);
    Plan { new_environments, changes, refused }
}

/// The plan of `destroy`: the groups named, or all of them.
pub fn plan_destroy(newest: &BTreeMap<GroupName, Newest>, only: Option<&GroupName>) -> Plan {
    let changes = newest
        .iter()
        .filter(|(name, _)| only.is_none_or(|only| only == *name))
        .filter_map(|(name, held)| removal_of(held).map(|change| (name.clone(), change)))
        .collect();
    let refused = refused(newest, &changes);
    Plan { new_environments: BTreeMap::new(), changes, refused }
}

/// What orders that somebody else has made would change.
pub fn plan_orders<'a>(
    orders: impl Iterator<Item = &'a Order>,
    newest: &BTreeMap<GroupName, Newest>,
) -> Plan {
    let mut changes = BTreeMap::new();
    for order in orders {
        let present = newest.get(&order.group);
        let change = match &order.intent {
            Intent::Apply(spec) => Some(change_of(spec, present)),
            Intent::Destroy => present.and_then(removal_of),
        };
        changes.extend(change.map(|change| (order.group.clone(), change)));
    }
    let refused = refused(newest, &changes);
    Plan { new_environments: BTreeMap::new(), changes, refused }
}

fn refused(
    newest: &BTreeMap<GroupName, Newest>,
    changes: &BTreeMap<GroupName, Change>,
) -> BTreeMap<GroupName, (Generation, String)> {
    newest
        .iter()
        .filter(|(name, _)| changes.contains_key(*name))
        .filter_map(|(name, newest)| {
            let refused = newest.refused.clone()?;
            Some((name.clone(), (newest.generation, refused)))
        })
        .collect()
}

fn change_of(spec: &GroupSpec, newest: Option<&Newest>) -> Change {
    let spec = spec.clone();
    let Some(Newest { intent: Intent::Apply(present), refused, .. }) = newest else {
        return Change::Create { spec };
    };
    let fields = differences(present, &spec);
    match refused {
        _ if !fields.is_empty() => Change::Update { spec, fields },
        Some(refused) => Change::Retry { spec, refused: refused.clone() },
        None => Change::Unchanged { spec },
    }
}

fn removal_of(held: &Newest) -> Option<Change> {
    let spec = match &held.intent {
        Intent::Apply(spec) => spec.clone(),
        // Its end was refused: it is asked for again, as everything that was refused is.
        Intent::Destroy => held.present.clone().filter(|_| held.refused.is_some())?,
    };
    Some(match spec.prevent_destroy {
        true => Change::Forbidden { spec },
        false => Change::Destroy { spec },
    })
}

pub fn differences(from: &GroupSpec, to: &GroupSpec) -> Vec<FieldChange> {
    let mut fields = Vec::new();
    let mut compare = |field: &str, from: String, to: String| {
        if from != to {
            fields.push(FieldChange { field: field.to_owned(), from, to });
        }
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".into());
    compare("kind", from.kind.to_string(), to.kind.to_string());
    compare("nodes", nodes(&from.scaling), nodes(&to.scaling));
    let target = |scaling: &Scaling| text(&scaling.target().map(ToString::to_string));
    compare("target", target(&from.scaling), target(&to.scaling));
    compare("environment", from.environment.name.to_string(), to.environment.name.to_string());
    compare("packages", from.environment.digest.short(), to.environment.digest.short());
    compare("functions", from.bundle.short(), to.bundle.short());
    compare("owner", text(&from.owner), text(&to.owner));
    compare("description", text(&from.description), text(&to.description));
    compare("prevent_destroy", from.prevent_destroy.to_string(), to.prevent_destroy.to_string());
    for (prefix, from, to) in
        [("tag", &from.tags, &to.tags), ("option", &from.options, &to.options)]
    {
        let keys: std::collections::BTreeSet<&String> = from.keys().chain(to.keys()).collect();
        for key in keys {
            compare(
                &format!("{prefix} {key}"),
                text(&from.get(key).cloned()),
                text(&to.get(key).cloned()),
            );
        }
    }
    fields
}

/// `3`, `2..10`.
pub fn nodes(scaling: &Scaling) -> String {
    match scaling {
        Scaling::Provisioned { desired_nodes } => desired_nodes.to_string(),
        Scaling::Autoscaling { min_nodes, max_nodes, target: _ } => {
            format!("{min_nodes}..{max_nodes}")
        }
    }
}

/// How many groups each kind of change concerns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub create: usize,
    pub update: usize,
    pub destroy: usize,
    pub forbidden: usize,
    pub unchanged: usize,
}

impl Plan {
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for change in self.changes.values() {
            match change {
                Change::Create { .. } => counts.create += 1,
                Change::Update { .. } | Change::Retry { .. } => counts.update += 1,
                Change::Destroy { .. } => counts.destroy += 1,
                Change::Forbidden { .. } => counts.forbidden += 1,
                Change::Unchanged { .. } => counts.unchanged += 1,
            }
        }
        counts
    }

    pub fn is_empty(&self) -> bool {
        let Counts { create, update, destroy, forbidden, unchanged: _ } = self.counts();
        create + update + destroy + forbidden == 0
    }

    pub fn forbidden(&self) -> Vec<&GroupName> {
        self.changes
            .iter()
            .filter(|(_, change)| matches!(change, Change::Forbidden { .. }))
            .map(|(name, _)| name)
            .collect()
    }

    /// Every present group would go and none would stay: worth asking twice.
    pub fn empties_the_account(&self) -> bool {
        let counts = self.counts();
        counts.destroy > 0 && counts.create + counts.update + counts.unchanged == 0
    }
}

/// Seven days from making an order to its first acceptance.
pub const ACCEPT_WITHIN_SECS: u64 = 7 * 24 * 3600;

/// The orders that carry a plan out, each one generation above the group's newest.
pub fn orders(
    plan: &Plan,
    newest: &BTreeMap<GroupName, Newest>,
    context: &Context,
    now_unix_secs: u64,
) -> Vec<Order> {
    plan.changes
        .iter()
        .filter_map(|(group, change)| {
            let intent = match change {
                Change::Create { spec }
                | Change::Update { spec, .. }
                | Change::Retry { spec, .. } => Intent::Apply(spec.clone()),
                Change::Destroy { .. } => Intent::Destroy,
                Change::Forbidden { .. } | Change::Unchanged { .. } => return None,
            };
            let parent = newest.get(group);
            Some(Order {
                tenant: context.tenant.clone(),
                data_plane: context.data_plane(),
                group: group.clone(),
                generation: parent.map_or(Generation::FIRST, |parent| parent.generation.next()),
                parent: parent.map(|parent| parent.digest),
                accept_before_unix_secs: now_unix_secs + ACCEPT_WITHIN_SECS,
                intent,
            })
        })
        .collect()
}

/// `1 group`, `2 groups`.
pub fn counted(count: impl Into<u64> + Copy + Display, what: &str) -> String {
    let plural = if count.into() == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

#[cfg(test)]
mod tests;
