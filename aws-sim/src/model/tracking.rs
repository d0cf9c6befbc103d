//! Target tracking: policies move the desired capacity between the group's bounds. Out soon, in late, as AWS does it
//! (user guide, target tracking: three datapoints of a minute above, fifteen well below).

use std::time::Duration;

use time::OffsetDateTime;

use super::PolicyName;
use super::activity::at;
use super::group::{Group, Instance, Lifecycle};
use super::policies::{Alarm, Metrics, Policy, Reading};

/// How long a metric must be off its target before a policy acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    pub out: Duration,
    pub back: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { out: Duration::from_secs(3 * 60), back: Duration::from_secs(15 * 60) }
    }
}

/// Below this share of its target a metric is low; between it and the target nothing happens.
const LOW: f64 = 0.9;

/// What one policy asks for.
enum Wish {
    Out { desired: u32, cause: String },
    In { desired: u32, cause: String },
    Stay,
}

/// Lets every policy of the group judge its metric. The largest wish counts, and fewer only if all agree (user guide,
/// multiple policies).
pub(super) fn track(group: &mut Group, metrics: &Metrics, patience: Patience, now: OffsetDateTime) {
    if group.capacity() == group.desired {
        group.scaling_cause = None;
    }
    let mut policies = std::mem::take(&mut group.policies);
    let enabled = policies.iter_mut().filter(|(_, policy)| policy.enabled);
    let wishes: Vec<Wish> =
        enabled.map(|(name, policy)| wish(group, name, policy, metrics, patience, now)).collect();
    let out = wishes.iter().filter_map(|wish| match wish {
        Wish::Out { desired, cause } => Some((*desired, cause)),
        Wish::In { .. } | Wish::Stay => None,
    });
    let back: Vec<_> = wishes
        .iter()
        .filter_map(|wish| match wish {
            Wish::In { desired, cause } => Some((*desired, cause)),
            Wish::Out { .. } | Wish::Stay => None,
        })
        .collect();
    let agreed = if back.len() == wishes.len() { back } else { Vec::new() };
    if let Some((desired, cause)) = out.max().or(agreed.into_iter().max()) {
        for policy in policies.values_mut() {
            (policy.above_since, policy.below_since) = (None, None);
        }
        group.desired = desired;
        group.scaling_cause = Some(cause.clone());
    }
    group.policies = policies;
}

fn wish(
    group: &Group,
    name: &PolicyName,
    policy: &mut Policy,
    metrics: &Metrics,
    patience: Patience,
    now: OffsetDateTime,
) -> Wish {
    let target = policy.tracking.target;
    let reading = metrics.get(&policy.tracking.tracked.metric(&group.name)).copied();
    let Some((value, nodes)) = reading.and_then(|reading| wanted(group, reading, target)) else {
        // Without data nothing is known.
        (policy.above_since, policy.below_since) = (None, None);
        return Wish::Stay;
    };
    policy.above_since = (value > target).then(|| policy.above_since.unwrap_or(now));
    policy.below_since = (value < target * LOW).then(|| policy.below_since.unwrap_or(now));
    let lasts = |since: Option<OffsetDateTime>, long: Duration| {
        since.is_some_and(|since| now >= since + long)
    };
    let desired = nodes.clamp(group.min, group.max);
    let cause = |alarm: &Alarm| {
        format!(
            "At {} a monitor alarm {} in state ALARM triggered policy {name} changing the desired capacity from {} to {desired}.  ",
            at(now),
            alarm.name,
            group.desired
        )
    };
    let [high, low] = policy.alarms(group);
    if lasts(policy.above_since, patience.out) && desired > group.desired {
        Wish::Out { desired, cause: cause(&high) }
    } else if lasts(policy.below_since, patience.back)
        && desired < group.desired
        && in_service(group) >= group.desired
        && !policy.tracking.disable_scale_in
    {
        Wish::In { desired, cause: cause(&low) }
    } else {
        Wish::Stay
    }
}

fn in_service(group: &Group) -> u32 {
    let in_service =
        |instance: &&Instance| matches!(instance.lifecycle, Lifecycle::InService { .. });
    let count = group.instances.values().filter(in_service).count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The metric's value and the number of nodes that would bring it to its target; nothing while there is no data.
fn wanted(group: &Group, reading: Reading, target: f64) -> Option<(f64, u32)> {
    let in_service = in_service(group);
    let (value, nodes) = match reading {
        Reading::Total(_) if in_service == 0 => return None,
        Reading::Total(total) => (total / f64::from(in_service), total / target),
        // Nothing can be multiplied by none: one more then.
        Reading::Value(value) if in_service == 0 => (value, if value > target { 1.0 } else { 0.0 }),
        Reading::Value(value) => (value, f64::from(in_service) * value / target),
    };
    // The ceiling, but not for the sake of the last bit of a division.
    let nodes = (nodes - 1e-9).ceil().clamp(0.0, f64::from(u32::MAX));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to the range of u32"
    )]
    Some((value, nodes as u32))
}
