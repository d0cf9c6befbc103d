//! Whether an order may be accepted. Pure: the envelope, what the ledger holds, the guardrails and
//! the time go in; the order or the refusal comes out.

use std::collections::{BTreeMap, BTreeSet};

use outstation_protocol::order::{Intent, Order};
use outstation_protocol::signing::{SignerName, Unverified};
use outstation_protocol::v1::{Refusal, RefusalRule, SetEntry};
use outstation_protocol::{DataPlane, Envelope, GroupName, TenantId};

use super::changes::Changes;
use super::floor::{Floor, Floors, Standing};
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

/// What an order is judged by.
pub struct Bench<'a> {
    pub identity: &'a Identity,
    pub ledger: &'a BTreeMap<GroupName, Accepted>,
    pub floors: &'a Floors,
    pub standing: &'a Standing,
    pub guardrails: &'a Result<Guardrails, NoGuardrails>,
    /// Those of the hour; or why they cannot be counted.
    pub changes: &'a Result<Changes, String>,
    pub now_unix_secs: u64,
}

/// An order that may be accepted; nothing but [`judge`] makes one.
#[derive(Debug)]
pub struct Approved {
    pub order: Order,
    /// Empty where unsigned orders are taken.
    pub signed_by: BTreeSet<SignerName>,
    /// Its number among the account's changes, where they are counted and it is one.
    pub change: Option<u64>,
}

/// The signatures are looked at first: what an envelope says is nobody's word before.
pub fn judge(
    entry: &SetEntry,
    envelope: &Envelope,
    bench: &Bench<'_>,
) -> Result<Approved, Refusal> {
    let Bench { identity, ledger, floors, standing, guardrails, changes, now_unix_secs } = *bench;
    let guardrails = guardrails.as_ref().map_err(|why| without_guardrails(why, standing))?;
    let signed_by = check_signatures(envelope, guardrails)?;
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
    // Before anything that the ledger's word would make final: it may be wrong.
    if let Some(refusal) = standing.refusal() {
        return Err(refusal);
    }
    check_lineage(&order, envelope, ledger.get(&order.group), floors.get(&order.group))?;
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
    check_guardrails(&order, ledger, standing, guardrails)?;
    let changes = Some(changes).filter(|_| changes_something(&order, ledger));
    let change = match (guardrails.changes_per_hour, changes) {
        (Some(per_hour), Some(changes)) => {
            Some(check_change_rate(per_hour, changes, now_unix_secs)?)
        }
        (Some(_), None) | (None, _) => None,
    };
    Ok(Approved { order, signed_by, change })
}

/// Without them nothing can be looked at, and they are what a person has to mend first; unless a
/// contradiction is known already, which is not final.
fn without_guardrails(NoGuardrails(why): &NoGuardrails, standing: &Standing) -> Refusal {
    if !standing.contradictions().is_empty()
        && let Some(refusal) = standing.refusal()
    {
        return refusal;
    }
    refusal(
        RefusalRule::Guardrail,
        format!("the account has no valid guardrails: {why}"),
        "the account's people must mend guardrails/guardrails.toml in the account store; \
             then apply again",
    )
}

/// Who has signed it, if they are enough. Removing a signer ends what they may sign from then on;
/// what was accepted before is in the ledger, and not judged again.
fn check_signatures(
    envelope: &Envelope,
    guardrails: &Guardrails,
) -> Result<BTreeSet<SignerName>, Refusal> {
    let Some(signers) = &guardrails.signers else {
        return match guardrails.unsigned_orders {
            // Whatever signatures it carries: there is nobody to know them.
            UnsignedOrders::Dev => Ok(BTreeSet::new()),
            UnsignedOrders::Refuse => Err(refusal(
                RefusalRule::Signature,
                "the account's guardrails name nobody who may sign orders".to_owned(),
                "whoever may write guardrails/ in the account store adds [signers] with the key \
                 that `outstation key show` prints; then apply again",
            )),
        };
    };
    signers.verify(envelope).map_err(|error| {
        let hint = match &error {
            Unverified::Unsigned => {
                "apply again with the key of a signer: `outstation key create` makes one, and \
                 whoever may write guardrails/ in the account store names it in [signers]"
            }
            Unverified::Strangers(_) => {
                "apply again with the key of a signer, or have whoever may write guardrails/ in \
                 the account store name this one in [signers]; `outstation key show` prints it"
            }
            Unverified::TooFew { .. } => {
                "apply again with --out FILE, have the others sign it by `outstation order sign FILE`, \
                 then put it by `outstation order put FILE`"
            }
            Unverified::Malformed { .. } | Unverified::Invalid(_) => {
                "apply again; if nobody changed a key, somebody changed the order on its way: \
                 look into the broker"
            }
        };
        refusal(RefusalRule::Signature, error.to_string(), hint)
    })
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
    floor: Option<&Floor>,
) -> Result<(), Refusal> {
    if let Some(floor) = floor.and_then(|floor| floor.generation)
        && order.generation <= floor
    {
        return Err(refusal(
            RefusalRule::OlderGeneration,
            format!(
                "generation {} is not above {floor}, at which the group was adopted",
                order.generation
            ),
            "apply again from the declarations",
        ));
    }
    // The order that an adopted group had is not known here, so neither is the next one's parent.
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
    standing: &Standing,
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
        .sum::<u64>()
        + standing.unordered_nodes(&order.group);
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

/// The same again, under another generation or not, changes nothing.
fn changes_something(order: &Order, ledger: &BTreeMap<GroupName, Accepted>) -> bool {
    ledger.get(&order.group).is_none_or(|known| known.order.intent != order.intent)
}

/// Last, as it ends nothing: the order is judged again when its time has come.
fn check_change_rate(
    per_hour: u32,
    changes: &Result<Changes, String>,
    now_unix_secs: u64,
) -> Result<u64, Refusal> {
    let changes = changes.as_ref().map_err(|why| {
        refusal(
            RefusalRule::AccountStore,
            format!("changes_per_hour is set, and changes cannot be counted: {why}"),
            "look at state/changes/ of the account store; the agent tries again",
        )
    })?;
    changes.wait(per_hour, now_unix_secs).map_or(Ok(changes.next), Err)
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
        // It is carried out when it is approved.
        DestroyPolicy::Approve | DestroyPolicy::Allow => Ok(()),
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
#[path = "judge_tests.rs"]
mod tests;
