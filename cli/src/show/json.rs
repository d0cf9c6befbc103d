//! Groups as JSON: what the broker knows, and what follows from it.

use serde::Serialize;

use super::conditions::{Condition, conditions};
use crate::link::Link;
use crate::view::{GroupView, OrderId};

#[derive(Serialize)]
pub struct GroupJson<'a> {
    #[serde(flatten)]
    group: &'a GroupView,
    /// What the account acts on.
    in_force: Option<OrderId>,
    link: &'a Link,
    /// Set while nothing is heard of the group: what was observed is as of then.
    stale_since_unix_secs: Option<u64>,
    conditions: Vec<Condition>,
}

pub fn group<'a>(group: &'a GroupView, link: &'a Link) -> GroupJson<'a> {
    GroupJson {
        group,
        in_force: group.in_force().map(|in_force| in_force.order),
        link,
        stale_since_unix_secs: link.stale_since_unix_secs(group),
        conditions: conditions(group, link),
    }
}
