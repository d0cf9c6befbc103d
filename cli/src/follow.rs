//! Waits until the account has answered to orders, telling what changes on the way.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use outstation_protocol::ids::{Generation, GroupName};

use crate::admin::Admin;
use crate::view::{GroupView, OrderId, Refused};

/// How an order ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    Converged,
    Refused(Refused),
    /// A later order came before this one converged.
    Superseded(Generation),
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Followed {
    /// All that were to be followed.
    pub orders: BTreeMap<GroupName, OrderId>,
    pub fates: BTreeMap<GroupName, Fate>,
    /// Neither converged nor refused when time was up.
    pub pending: BTreeMap<GroupName, OrderId>,
}

impl Followed {
    pub fn all_converged(&self) -> bool {
        self.pending.is_empty() && self.fates.values().all(|fate| *fate == Fate::Converged)
    }
}

/// What a group's present state says of the order of `generation`. Pure.
pub fn fate(group: &GroupView, generation: Generation) -> Option<Fate> {
    if let Some(refused) = group.refusal_of(generation) {
        return Some(Fate::Refused(refused.clone()));
    }
    if group.generation > generation {
        return Some(Fate::Superseded(group.generation));
    }
    group.has_converged(generation).then_some(Fate::Converged)
}

/// Between two attempts to watch: the broker restarts in about a second.
const RETRY: Duration = Duration::from_millis(300);

pub async fn follow(
    admin: &Admin,
    targets: BTreeMap<GroupName, OrderId>,
    timeout: Duration,
    mut on_change: impl FnMut(&GroupView),
) -> anyhow::Result<Followed> {
    let mut followed =
        Followed { orders: targets.clone(), fates: BTreeMap::new(), pending: targets };
    let deadline = Instant::now() + timeout;
    // A stream that breaks is opened again until the deadline; the first failure to open it is
    // told, for then the broker was not there to begin with.
    let mut stream = admin.watch(None).await?;
    while !followed.pending.is_empty() {
        let next = match tokio::time::timeout_at(deadline, stream.message()).await {
            Err(_) => break,
            Ok(next) => next,
        };
        match next {
            Ok(Some(group)) => {
                let group = GroupView::try_from(group)?;
                let Some(order) = followed.pending.get(&group.name) else {
                    continue;
                };
                on_change(&group);
                if let Some(fate) = fate(&group, order.generation) {
                    followed.pending.remove(&group.name);
                    followed.fates.insert(group.name.clone(), fate);
                }
            }
            Ok(None) | Err(_) => loop {
                if Instant::now() + RETRY >= deadline {
                    return Ok(followed);
                }
                tokio::time::sleep(RETRY).await;
                if let Ok(again) = admin.watch(None).await {
                    stream = again;
                    break;
                }
            },
        }
    }
    Ok(followed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Answer;
    use outstation_protocol::envelope::Envelope;
    use outstation_protocol::ids::Digest;
    use outstation_protocol::order::Intent;

    #[test]
    fn an_order_is_converged_refused_superseded_or_pending() {
        let group = |generation: u64, converged: Option<u64>, refused: Option<u64>| GroupView {
            name: GroupName::try_from("a").expect("valid"),
            generation: Generation(generation),
            digest: Digest::of(b"order"),
            put_at_unix_secs: 0,
            intent: Intent::Destroy,
            envelope: Envelope::unsigned(Vec::new()),
            signed: None,
            accepted: None,
            accepted_order: None,
            converged: converged
                .map(|generation| Answer { generation: Generation(generation), at_unix_secs: 0 }),
            refused: refused.map(|generation| Refused {
                generation: Generation(generation),
                digest: Digest::of(b"refused"),
                at_unix_secs: 0,
                rule: "rule".into(),
                message: "message".into(),
                hint: "hint".into(),
            }),
            status: None,
        };
        for (group, wanted) in [
            (group(4, None, None), "pending"),
            (group(4, Some(3), Some(2)), "pending"),
            (group(4, Some(4), None), "converged"),
            (group(4, Some(3), Some(4)), "refused"),
            (group(5, Some(4), Some(4)), "refused"),
            (group(5, None, None), "superseded"),
        ] {
            let seen = match fate(&group, Generation(4)) {
                None => "pending",
                Some(Fate::Converged) => "converged",
                Some(Fate::Refused(_)) => "refused",
                Some(Fate::Superseded(_)) => "superseded",
            };
            assert_eq!(seen, wanted, "{group:?}");
        }
    }
}
