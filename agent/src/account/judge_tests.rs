use super::*;
use crate::account::floor::{Contradiction, Tag};
use crate::account::guardrails;
use crate::account::testing::{group, identity, ledger_of, order, spec};
use outstation_protocol::envelope::Signature;
use outstation_protocol::{AccountId, Digest, Generation};

const NOW: u64 = 1_000_000;

const CLEAR: Standing = Standing::Clear { unordered_nodes: BTreeMap::new() };

fn verdict(order: &Order, accepted: &[Order], guardrails: Guardrails) -> String {
    let guardrails = &Ok(guardrails);
    verdict_in(order, accepted, &Floors::new(), &CLEAR, guardrails)
}

fn verdict_in(
    order: &Order,
    accepted: &[Order],
    floors: &Floors,
    standing: &Standing,
    guardrails: &Result<Guardrails, NoGuardrails>,
) -> String {
    let envelope = order.clone().into_envelope();
    let entry = SetEntry {
        group: order.group.clone(),
        generation: order.generation,
        digest: envelope.digest(),
    };
    let (identity, ledger, now_unix_secs) = (&identity(), &ledger_of(accepted), NOW);
    let bench = Bench { identity, ledger, floors, standing, guardrails, now_unix_secs };
    match judge(&entry, &envelope, &bench) {
        Ok(_) => "accepted".to_owned(),
        Err(refusal) => format!("{:?}: {}", refusal.rule, refusal.message),
    }
}

fn judged(
    entry: &SetEntry,
    envelope: &Envelope,
    guardrails: &Result<Guardrails, NoGuardrails>,
) -> Refusal {
    let bench = Bench {
        identity: &identity(),
        ledger: &BTreeMap::new(),
        floors: &Floors::new(),
        standing: &CLEAR,
        guardrails,
        now_unix_secs: NOW,
    };
    judge(entry, envelope, &bench).expect_err("it is not to be accepted")
}

#[test]
fn an_adopted_group_takes_any_order_above_its_floor_and_counts_meanwhile() {
    let floor = Floor {
        group: group("a"),
        generation: Some(Generation(5)),
        wrong_tag: None,
        decided_at_unix_secs: 0,
    };
    let floors: Floors = [(group("a"), floor)].into();
    let parent = Some(Digest::of(b"of another life"));
    let unordered_nodes = [(group("a"), 20)].into();
    let standing = Standing::Clear { unordered_nodes };
    let older = "OlderGeneration: generation 5 is not above 5, at which the group was adopted";
    let beside = "Guardrail: 40 nodes, with 21 of the other groups, are more than \
                  nodes_total_max 60 of the account's guardrails";
    for (order, wanted) in [
        (order("a", 5, parent, Intent::Apply(spec(3))), older),
        (order("a", 6, parent, Intent::Apply(spec(3))), "accepted"),
        (order("a", 9, parent, Intent::Apply(spec(40))), "accepted"),
        (order("a", 6, parent, Intent::Destroy), "accepted"),
        (order("b", 1, None, Intent::Apply(spec(40))), beside),
    ] {
        let neighbour = crate::account::testing::order("c", 1, None, Intent::Apply(spec(1)));
        let guardrails = &Ok(guardrails::sample());
        let found = verdict_in(&order, &[neighbour], &floors, &standing, guardrails);
        assert_eq!(found, wanted);
    }
}

#[test]
fn nothing_is_judged_while_the_ledger_may_be_wrong() {
    let tag = Tag::Generation(Generation(9));
    let contradicted = Standing::Contradicted(vec![Contradiction {
        group: group("b"),
        ledger: Some(Generation(2)),
        tag,
    }]);
    let blind = Standing::Blind("no answer".to_owned());
    let first = order("a", 1, None, Intent::Apply(spec(3)));
    let second = order("a", 2, Some(Digest::of(b"other")), Intent::Apply(spec(3)));
    let mut elsewhere = first.clone();
    elsewhere.data_plane.account = AccountId::try_from("999999999999").expect("valid");
    let (good, none) = (Ok(guardrails::sample()), Err(NoGuardrails("cannot read it".to_owned())));
    for (order, standing, guardrails, rule) in [
        (&first, &Standing::NotLooked, &good, "Contradiction"),
        (&first, &blind, &good, "Contradiction"),
        (&first, &contradicted, &good, "Contradiction"),
        (&first, &contradicted, &none, "Contradiction"),
        // It would be refused for good by the ledger's word.
        (&second, &contradicted, &good, "Contradiction"),
        (&second, &CLEAR, &good, "UnknownParent"),
        // Whatever the ledger says.
        (&elsewhere, &contradicted, &good, "WrongDataPlane"),
        (&first, &blind, &none, "Guardrail"),
    ] {
        let ledger = std::slice::from_ref(&first);
        let found = verdict_in(order, ledger, &Floors::new(), standing, guardrails);
        assert!(found.starts_with(rule), "{found} instead of {rule}");
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
    let refused = judged(&entry, &envelope, &Ok(strict));
    assert_eq!(refused.rule, RefusalRule::Signature, "a junk signature is none");
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
    let refusal = judged(&entry, &envelope, &none);
    assert_eq!(refusal.rule, RefusalRule::Guardrail);
    assert!(refusal.message.contains("cannot read it"));
}

#[test]
fn an_order_filed_under_another_name_is_refused() {
    let order = order("a", 1, None, Intent::Apply(spec(1)));
    let envelope = order.into_envelope();
    let entry =
        SetEntry { group: group("b"), generation: Generation(1), digest: envelope.digest() };
    let refusal = judged(&entry, &envelope, &Ok(guardrails::sample()));
    assert_eq!(refusal.rule, RefusalRule::Malformed);
}
