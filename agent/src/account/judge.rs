//! Whether an order may be accepted. Pure: the envelope, what the ledger holds, the guardrails and
//! the time go in; the order or the refusal comes out.

use std::collections::BTreeMap;

use outstation_protocol::order::{Intent, Order};
use outstation_protocol::v1::{Refusal, RefusalRule, SetEntry};
use outstation_protocol::{DataPlane, Envelope, GroupName, TenantId};

use super::guardrails::{DestroyPolicy, Guardrails, NoGuardrails, UnsignedOrders};
use super::ledger::Accepted;

/// Who this agent is: an order for anybody else is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub tenant: TenantId,
    pub data_plane: DataPlane,
}

const GUARDRAILS_HINT: &str =
    "whoever may write guardrails/ in the account store can change this limit; then apply again";

pub fn judge(
    entry: &SetEntry,
    envelope: &Envelope,
    identity: &Identity,
    ledger: &BTreeMap<GroupName, Accepted>,
    guardrails: &Result<Guardrails, NoGuardrails>,
    now_unix_secs: u64,
) -> Result<Order, Refusal> {
    let order = Order::from_envelope(envelope).map_err(|error| {
        refusal(
            RefusalRule::Malformed,
            chain(&error),
            "upgrade the older of CLI and account agent, then apply again",
        )
    })?;
    if (&order.group, order.generation) != (&entry.group, entry.generation) {
        return Err(refusal(
            RefusalRule::Malformed,
            format!(
                "offered as {} generation {}, it says {} generation {}",
                entry.group, entry.generation, order.group, order.generation
            ),
            "the broker filed an order under a wrong name; look into the broker",
        ));
    }
    check_addressee(&order, identity)?;
    check_lineage(&order, envelope, ledger.get(&order.group))?;
    if now_unix_secs >= order.accept_before_unix_secs {
        return Err(refusal(
            RefusalRule::Expired,
            format!(
                "it could be accepted until {} s ago",
                now_unix_secs - order.accept_before_unix_secs
            ),
            "apply again",
        ));
    }
    let guardrails = guardrails.as_ref().map_err(|NoGuardrails(why)| {
        refusal(
            RefusalRule::Guardrail,
            format!("the account has no valid guardrails: {why}"),
            "the account's people must mend guardrails/guardrails.toml in the account store; \
                 then apply again",
        )
    })?;
    // Signatures are not verified yet, so whatever an envelope carries counts as none.
    if guardrails.unsigned_orders == UnsignedOrders::Refuse {
        return Err(refusal(
            RefusalRule::Signature,
            "no signature on the order can be verified".to_owned(),
            "this release takes orders in development accounts only (unsigned_orders = \"dev\")",
        ));
    }
    check_guardrails(&order, ledger, guardrails)?;
    Ok(order)
}

fn check_addressee(order: &Order, identity: &Identity) -> Result<(), Refusal> {
    if order.tenant != identity.tenant || order.data_plane != identity.data_plane {
        return Err(refusal(
            RefusalRule::WrongDataPlane,
            format!(
                "it is for {} of tenant {}, this is {} of tenant {}",
                order.data_plane, order.tenant, identity.data_plane, identity.tenant
            ),
            "apply with the context of this account",
        ));
    }
    Ok(())
}

/// Generations only rise, and the next one names what it follows. One that skips ahead cannot be
/// checked against its parent: this agent has never seen it.
fn check_lineage(
    order: &Order,
    envelope: &Envelope,
    known: Option<&Accepted>,
) -> Result<(), Refusal> {
    let Some(known) = known else { return Ok(()) };
    let (generation, accepted) = (order.generation, known.order.generation);
    if generation < accepted {
        return Err(refusal(
            RefusalRule::OlderGeneration,
            format!("generation {generation} is older than the accepted {accepted}"),
            "apply again from the declarations",
        ));
    }
    if generation == accepted && envelope.digest() != known.digest {
        return Err(refusal(
            RefusalRule::ConflictingGeneration,
            format!("generation {generation} was accepted with other bytes"),
            "apply again: the next generation replaces both",
        ));
    }
    if generation == accepted.next() && order.parent != Some(known.digest) {
        return Err(refusal(
            RefusalRule::UnknownParent,
            format!("it does not follow generation {accepted} as it was accepted here"),
            "plan and apply again: the group was changed by somebody else",
        ));
    }
    Ok(())
}

fn check_guardrails(
    order: &Order,
    ledger: &BTreeMap<GroupName, Accepted>,
    guardrails: &Guardrails,
) -> Result<(), Refusal> {
    let spec = match &order.intent {
        Intent::Apply(spec) => spec,
        Intent::Destroy => return check_destroy(order, ledger, guardrails),
    };
    let wanted = spec.scaling.nodes_max();
    if wanted > guardrails.nodes_per_group_max {
        return Err(refusal(
            RefusalRule::Guardrail,
            format!(
                "{wanted} nodes are more than nodes_per_group_max {} of the account's guardrails",
                guardrails.nodes_per_group_max
            ),
            GUARDRAILS_HINT,
        ));
    }
    let others: u64 = ledger
        .values()
        .filter(|accepted| accepted.order.group != order.group)
        .map(|accepted| u64::from(nodes_max(&accepted.order)))
        .sum();
    let total = others + u64::from(wanted);
    if total > u64::from(guardrails.nodes_total_max) {
        return Err(refusal(
            RefusalRule::Guardrail,
            format!(
                "{wanted} nodes, with {others} of the other groups, are more than \
                 nodes_total_max {} of the account's guardrails",
                guardrails.nodes_total_max
            ),
            GUARDRAILS_HINT,
        ));
    }
    Ok(())
}

fn check_destroy(
    order: &Order,
    ledger: &BTreeMap<GroupName, Accepted>,
    guardrails: &Guardrails,
) -> Result<(), Refusal> {
    if let Some(Accepted { order: Order { intent: Intent::Apply(spec), .. }, .. }) =
        ledger.get(&order.group)
        && spec.prevent_destroy
    {
        return Err(refusal(
            RefusalRule::PreventDestroy,
            format!("group {} is declared with prevent_destroy=True", order.group),
            "apply it with prevent_destroy=False first, then destroy it",
        ));
    }
    match guardrails.destroy {
        DestroyPolicy::Allow => Ok(()),
        DestroyPolicy::Never => Err(refusal(
            RefusalRule::Guardrail,
            "destroy = \"never\" in the account's guardrails".to_owned(),
            GUARDRAILS_HINT,
        )),
    }
}

fn nodes_max(order: &Order) -> u32 {
    match &order.intent {
        Intent::Apply(spec) => spec.scaling.nodes_max(),
        Intent::Destroy => 0,
    }
}

fn refusal(rule: RefusalRule, message: String, hint: &str) -> Refusal {
    Refusal { rule, message, hint: hint.to_owned() }
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::guardrails;
    use crate::account::testing::{group, identity, ledger_of, order, spec};
    use outstation_protocol::envelope::Signature;
    use outstation_protocol::{AccountId, Digest, Generation};

    const NOW: u64 = 1_000_000;

    fn verdict(order: &Order, accepted: &[Order], guardrails: Guardrails) -> String {
        let envelope = order.clone().into_envelope();
        let entry = SetEntry {
            group: order.group.clone(),
            generation: order.generation,
            digest: envelope.digest(),
        };
        let ledger = ledger_of(accepted);
        match judge(&entry, &envelope, &identity(), &ledger, &Ok(guardrails), NOW) {
            Ok(_) => "accepted".to_owned(),
            Err(refusal) => format!("{:?}: {}", refusal.rule, refusal.message),
        }
    }

    #[test]
    fn orders_are_judged_by_the_accounts_own_rules() {
        let first = order("a", 1, None, Intent::Apply(spec(3)));
        let digest = first.clone().into_envelope().digest();
        let second = order("a", 2, Some(digest), Intent::Apply(spec(5)));
        let mut elsewhere = first.clone();
        elsewhere.data_plane.account = AccountId::try_from("999999999999").expect("valid");
        let mut late = first.clone();
        late.accept_before_unix_secs = NOW - 5;
        let mut guarded = spec(3);
        guarded.prevent_destroy = true;
        let guarded = order("a", 1, None, Intent::Apply(guarded));
        let guarded_digest = guarded.clone().into_envelope().digest();
        let neighbour = order("b", 1, None, Intent::Apply(spec(30)));

        for (order, ledger, wanted) in [
            (&first, vec![], "accepted"),
            (&second, vec![first.clone()], "accepted"),
            (&order("a", 4, Some(digest), Intent::Apply(spec(5))), vec![first.clone()], "accepted"),
            (
                &first,
                vec![second.clone()],
                "OlderGeneration: generation 1 is older than the accepted 2",
            ),
            (
                &order("a", 1, None, Intent::Apply(spec(4))),
                vec![first.clone()],
                "ConflictingGeneration: generation 1 was accepted with other bytes",
            ),
            (
                &order("a", 2, Some(Digest::of(b"other")), Intent::Apply(spec(4))),
                vec![first.clone()],
                "UnknownParent: it does not follow generation 1 as it was accepted here",
            ),
            (
                &elsewhere,
                vec![],
                "WrongDataPlane: it is for 999999999999/eu-central-1 of tenant dev, \
                 this is 123456789012/eu-central-1 of tenant dev",
            ),
            (&late, vec![], "Expired: it could be accepted until 5 s ago"),
            (
                &order("a", 1, None, Intent::Apply(spec(41))),
                vec![],
                "Guardrail: 41 nodes are more than nodes_per_group_max 40 of the account's \
                 guardrails",
            ),
            (
                &order("a", 1, None, Intent::Apply(spec(31))),
                vec![neighbour],
                "Guardrail: 31 nodes, with 30 of the other groups, are more than \
                 nodes_total_max 60 of the account's guardrails",
            ),
            (&order("a", 2, Some(digest), Intent::Destroy), vec![first.clone()], "accepted"),
            (
                &order("a", 2, Some(guarded_digest), Intent::Destroy),
                vec![guarded],
                "PreventDestroy: group a is declared with prevent_destroy=True",
            ),
        ] {
            assert_eq!(verdict(order, &ledger, guardrails::sample()), wanted);
        }
    }

    #[test]
    fn strict_guardrails_take_no_unsigned_order_and_no_destroy() {
        let first = order("a", 1, None, Intent::Apply(spec(3)));
        let digest = first.clone().into_envelope().digest();
        let mut strict = guardrails::sample();
        strict.unsigned_orders = UnsignedOrders::Refuse;
        let refused = "Signature: no signature on the order can be verified";
        assert_eq!(verdict(&first, &[], strict.clone()), refused);
        let mut envelope = first.clone().into_envelope();
        envelope.signatures.push(Signature { keyid: "anybody".into(), sig: vec![0; 64] });
        let entry =
            SetEntry { group: group("a"), generation: Generation(1), digest: envelope.digest() };
        let judged = judge(&entry, &envelope, &identity(), &BTreeMap::new(), &Ok(strict), NOW);
        assert_eq!(judged.expect_err("a junk signature is none").rule, RefusalRule::Signature);
        let mut strict = guardrails::sample();
        strict.destroy = DestroyPolicy::Never;
        assert_eq!(
            verdict(&order("a", 2, Some(digest), Intent::Destroy), &[first], strict),
            "Guardrail: destroy = \"never\" in the account's guardrails"
        );
    }

    #[test]
    fn without_guardrails_everything_is_held() {
        let order = order("a", 1, None, Intent::Apply(spec(1)));
        let envelope = order.into_envelope();
        let entry =
            SetEntry { group: group("a"), generation: Generation(1), digest: envelope.digest() };
        let none = Err(NoGuardrails("cannot read it".into()));
        let refusal = judge(&entry, &envelope, &identity(), &BTreeMap::new(), &none, NOW)
            .expect_err("nothing is allowed");
        assert_eq!(refusal.rule, RefusalRule::Guardrail);
        assert!(refusal.message.contains("cannot read it"));
    }

    #[test]
    fn an_order_filed_under_another_name_is_refused() {
        let order = order("a", 1, None, Intent::Apply(spec(1)));
        let envelope = order.into_envelope();
        let entry =
            SetEntry { group: group("b"), generation: Generation(1), digest: envelope.digest() };
        let refusal =
            judge(&entry, &envelope, &identity(), &BTreeMap::new(), &Ok(guardrails::sample()), NOW)
                .expect_err("another group's");
        assert_eq!(refusal.rule, RefusalRule::Malformed);
    }
}
