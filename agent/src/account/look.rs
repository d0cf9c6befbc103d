//! One look at the account: its groups every time, what has to be asked for separately only as often
//! as it may matter.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outstation_protocol::GroupName;
use outstation_protocol::order::Intent;

use super::aws::{Aws, CallError};
use super::guardrails::Guardrails;
use super::ledger::Accepted;
use super::plan::{Observed, TAG_GENERATION};
use super::scaling::Policies;
use super::shared::{Shared, lock};

/// What nobody is expected to change is read again after so long.
const READ_AGAIN: Duration = Duration::from_secs(30 * 60);

/// What was seen, as far as it need not be read at every look.
#[derive(Default)]
pub struct Eyes {
    policies: Option<(Instant, Policies)>,
}

impl Eyes {
    pub async fn look(
        &mut self,
        aws: &Aws,
        shared: &Shared,
        guardrails: &Guardrails,
    ) -> Result<Observed, CallError> {
        let mut observed = aws.observe(&shared.identity.tenant, guardrails).await?;
        let now = shared.clock.now();
        let ledger = lock(&shared.ledger).accepted().clone();
        let is_fresh = self.policies.as_ref().is_some_and(|(at, _)| now < *at + READ_AGAIN);
        if !is_fresh || policies_matter(&ledger, &observed) {
            self.policies = Some((now, aws.policies().await?));
        }
        if let Some((_, policies)) = &self.policies {
            for (name, group) in &mut observed {
                group.policy = policies.get(&guardrails.asg_name(name)).cloned();
            }
        }
        Ok(observed)
    }

    /// Something was just changed, or may have been: what was seen before does not count.
    pub fn changed(&mut self) {
        self.policies = None;
    }
}

/// An account of fixed groups, all as ordered, is not asked for policies at every look: they could not
/// change a count there.
fn policies_matter(ledger: &BTreeMap<GroupName, Accepted>, observed: &Observed) -> bool {
    ledger.iter().any(|(group, Accepted { order, .. })| {
        let Some(group) = observed.get(group) else { return false };
        match &order.intent {
            Intent::Apply(spec) => {
                let generation = order.generation.to_string();
                spec.scaling.target().is_some()
                    || group.tags.get(TAG_GENERATION) != Some(&generation)
            }
            Intent::Destroy => false,
        }
    })
}
