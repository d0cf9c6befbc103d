use super::*;
use crate::account::changes;
use crate::account::floor::{Contradiction, Tag};
use crate::account::guardrails;
use crate::account::testing::{group, identity, ledger_of, order, spec};
use outstation_protocol::envelope::Signature;
use outstation_protocol::signing::{Signer, Signers, SigningKey};
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
    let changes = &Ok(Changes::default());
    let bench = Bench { identity, ledger, floors, standing, guardrails, changes, now_unix_secs };
    match judge(&entry, &envelope, &bench) {
        Ok(approved) => {
            assert!(approved.signed_by.is_empty(), "nobody has signed");
            "accepted".to_owned()
        }
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
        changes: &Ok(Changes::default()),
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
    let refused = "Signature: the account's guardrails name nobody who may sign orders";
    assert_eq!(verdict(&first, &[], strict.clone()), refused);
    let mut envelope = first.clone().into_envelope();
    envelope.signatures.push(Signature { keyid: "anybody".into(), sig: vec![0; 64] });
    let entry =
        SetEntry { group: group("a"), generation: Generation(1), digest: envelope.digest() };
    let refused = judged(&entry, &envelope, &Ok(strict));
    assert_eq!(refused.rule, RefusalRule::Signature, "a junk signature is none");
    let mut strict = guardrails::sample();
    strict.destroy = DestroyPolicy::Never;
    let tombstone = order("a", 2, Some(digest), Intent::Destroy);
    assert_eq!(
        verdict(&tombstone, std::slice::from_ref(&first), strict.clone()),
        "Guardrail: destroy = \"never\" in the account's guardrails"
    );
    strict.destroy = DestroyPolicy::Approve;
    assert_eq!(verdict(&tombstone, &[first], strict), "accepted", "it waits as an accepted one");
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

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn signers(threshold: usize, names: &[(&str, u8)]) -> Guardrails {
    let signers = names.iter().map(|(name, seed)| Signer {
        name: (*name).to_owned().try_into().expect("valid"),
        key: key(*seed).public(),
    });
    let mut guardrails = guardrails::sample();
    guardrails.unsigned_orders = UnsignedOrders::Refuse;
    guardrails.signers = Some(Signers::new(threshold, signers.collect()).expect("valid"));
    guardrails
}

fn signed(order: &Order, seeds: &[u8]) -> Envelope {
    let mut envelope = order.clone().into_envelope();
    for seed in seeds {
        envelope.sign(&key(*seed));
    }
    envelope
}

fn judged_signed(envelope: &Envelope, ledger: &[Order], guardrails: Guardrails) -> String {
    // As an honest broker files it; a payload that is no order, under any name.
    let order = Order::from_envelope(envelope);
    let entry = SetEntry {
        group: order.as_ref().map_or(group("a"), |order| order.group.clone()),
        generation: order.as_ref().map_or(Generation(1), |order| order.generation),
        digest: envelope.digest(),
    };
    let bench = Bench {
        identity: &identity(),
        ledger: &ledger_of(ledger),
        floors: &Floors::new(),
        standing: &CLEAR,
        guardrails: &Ok(guardrails),
        changes: &Ok(Changes::default()),
        now_unix_secs: NOW,
    };
    match judge(&entry, envelope, &bench) {
        Ok(Approved { signed_by, .. }) => {
            let names: Vec<String> = signed_by.iter().map(ToString::to_string).collect();
            format!("accepted, signed by {}", names.join(" "))
        }
        Err(refusal) => {
            assert!(!refusal.hint.is_empty());
            format!("{:?}: {}", refusal.rule, refusal.message)
        }
    }
}

/// Each row is one thing that whoever holds the broker can try.
#[test]
fn only_what_signers_have_signed_is_accepted() {
    let ann = || signers(1, &[("ann", 1)]);
    let both = || signers(2, &[("ann", 1), ("bob", 2)]);
    let first = order("a", 1, None, Intent::Apply(spec(3)));
    let other = order("b", 1, None, Intent::Apply(spec(9)));
    let second =
        order("a", 2, Some(first.clone().into_envelope().digest()), Intent::Apply(spec(5)));
    let honest = signed(&first, &[1]);
    let with_payload_of = |order: &Order| {
        let payload = order.clone().into_envelope().payload;
        Envelope { payload, ..honest.clone() }
    };
    let mut raised = first.clone();
    raised.intent = Intent::Apply(spec(30));
    let mut retyped = honest.clone();
    retyped.payload_type = "application/json".to_owned();
    let mut twice = honest.clone();
    twice.signatures.push(twice.signatures[0].clone());
    let mut cut = honest.clone();
    cut.signatures[0].sig.truncate(32);
    let mut under_anns_name = signed(&first, &[9]);
    under_anns_name.signatures[0].keyid = key(1).public().id().to_string();
    let mut stripped = honest.clone();
    stripped.signatures.clear();
    let elsewhere = |change: fn(&mut Order)| {
        let mut order = first.clone();
        change(&mut order);
        signed(&order, &[1])
    };
    let not_an_order = {
        let mut envelope = Envelope::unsigned(b"{\"group\": 1}".to_vec());
        envelope.sign(&key(9));
        envelope
    };

    let altered = "Signature: the signature of ann is not one over this order: it was altered, or \
                   signed by another key";
    let stranger = format!(
        "Signature: it is signed by {} only, which is no signer's key",
        key(9).public().id().short()
    );
    let one_of_two = "Signature: it is signed by ann only, and 2 signers have to";
    let here = "this is 123456789012/eu-central-1 of tenant dev";
    for (what, envelope, ledger, guardrails, wanted) in [
        ("honest", honest.clone(), vec![], ann(), "accepted, signed by ann"),
        ("honest, by two", signed(&first, &[1, 2]), vec![], both(), "accepted, signed by ann bob"),
        ("unsigned", stripped.clone(), vec![], ann(), "Signature: nobody has signed it"),
        ("altered payload", with_payload_of(&raised), vec![], ann(), altered),
        ("altered type", retyped, vec![], ann(), altered),
        ("signature of another order", with_payload_of(&other), vec![], ann(), altered),
        ("another key under her name", under_anns_name, vec![], ann(), altered),
        ("another key", signed(&raised, &[9]), vec![], ann(), &stranger),
        ("a stranger's junk is not even read", not_an_order, vec![], ann(), &stranger),
        (
            "a removed signer",
            signed(&first, &[2]),
            vec![],
            ann(),
            &format!(
                "Signature: it is signed by {} only, which is no signer's key",
                key(2).public().id().short()
            ),
        ),
        (
            "half a signature",
            cut,
            vec![],
            ann(),
            "Signature: the signature of ann has 32 bytes instead of 64",
        ),
        ("one of two", honest.clone(), vec![], both(), one_of_two),
        ("the same key twice", twice, vec![], both(), one_of_two),
        ("one of two and a stranger", signed(&first, &[1, 9]), vec![], both(), one_of_two),
        (
            "an older signed generation",
            honest.clone(),
            vec![second.clone()],
            ann(),
            "OlderGeneration: generation 1 is older than the accepted 2",
        ),
        (
            "for another tenant",
            elsewhere(|order| order.tenant = "acme".try_into().expect("valid")),
            vec![],
            ann(),
            &format!("WrongDataPlane: it is for 123456789012/eu-central-1 of tenant acme, {here}"),
        ),
        (
            "for another account",
            elsewhere(|order| order.data_plane.account = "999999999999".try_into().expect("valid")),
            vec![],
            ann(),
            &format!("WrongDataPlane: it is for 999999999999/eu-central-1 of tenant dev, {here}"),
        ),
        (
            "for another region",
            elsewhere(|order| order.data_plane.region = "eu-west-1".try_into().expect("valid")),
            vec![],
            ann(),
            &format!("WrongDataPlane: it is for 123456789012/eu-west-1 of tenant dev, {here}"),
        ),
        (
            "too late",
            elsewhere(|order| order.accept_before_unix_secs = NOW),
            vec![],
            ann(),
            "Expired: it could be accepted until 0 s ago",
        ),
        (
            "above the guardrails, though signed",
            signed(&order("a", 1, None, Intent::Apply(spec(41))), &[1]),
            vec![],
            ann(),
            "Guardrail: 41 nodes are more than nodes_per_group_max 40 of the account's guardrails",
        ),
        (
            "after its signer was removed, the next one",
            signed(&second, &[2]),
            vec![first.clone()],
            signers(1, &[("bob", 2)]),
            "accepted, signed by bob",
        ),
    ] {
        assert_eq!(judged_signed(&envelope, &ledger, guardrails), wanted, "{what}");
    }
}

#[test]
fn a_signed_order_under_another_groups_name_is_refused() {
    let envelope = signed(&order("a", 1, None, Intent::Apply(spec(1))), &[1]);
    for (name, generation) in [("b", 1), ("a", 2)] {
        let (group, generation) = (group(name), Generation(generation));
        let entry = SetEntry { group, generation, digest: envelope.digest() };
        let refusal = judged(&entry, &envelope, &Ok(signers(1, &[("ann", 1)])));
        assert_eq!(refusal.rule, RefusalRule::Malformed);
        let offered = format!("offered as {name} generation {generation}, it says a generation 1");
        assert_eq!(refusal.message, offered);
    }
}

#[test]
fn a_refusal_of_a_signature_is_final() {
    assert!(RefusalRule::Signature.is_final());
}

#[test]
fn what_comes_too_fast_waits_for_its_time() {
    let first = order("a", 1, None, Intent::Apply(spec(3)));
    let digest = first.clone().into_envelope().digest();
    let again = order("a", 2, Some(digest), Intent::Apply(spec(3)));
    let other = order("a", 2, Some(digest), Intent::Apply(spec(4)));
    let end = order("a", 2, Some(digest), Intent::Destroy);
    let new = order("b", 1, None, Intent::Apply(spec(3)));
    let beyond = order("b", 1, None, Intent::Apply(spec(99)));
    let mut counted = guardrails::sample();
    counted.changes_per_hour = Some(2);
    let full = || Ok(changes::at(&[NOW - 900, NOW - 600]));
    let room = || Ok(changes::at(&[NOW - 3600, NOW - 600]));
    let unread = || Err("it cannot be read".to_owned());
    let waits = "ChangeRate: 2 changes were accepted within the hour, changes_per_hour of the account's guardrails";
    for (name, order, rails, changes, wanted) in [
        ("another change", &other, &counted, full(), waits),
        ("an end", &end, &counted, full(), waits),
        ("a new group", &new, &counted, full(), waits),
        ("there is room", &other, &counted, room(), "accepted as change 2"),
        ("nothing changes", &again, &counted, full(), "accepted"),
        ("the very order", &first, &counted, full(), "accepted"),
        ("what is forbidden is refused for good", &beyond, &counted, full(), "Guardrail: "),
        ("not counted", &other, &guardrails::sample(), full(), "accepted"),
        ("cannot be counted", &other, &counted, unread(), "AccountStore: changes_per_hour is set"),
    ] {
        let envelope = order.clone().into_envelope();
        let (group, generation) = (order.group.clone(), order.generation);
        let entry = SetEntry { group, generation, digest: envelope.digest() };
        let bench = Bench {
            identity: &identity(),
            ledger: &ledger_of(std::slice::from_ref(&first)),
            floors: &Floors::new(),
            standing: &CLEAR,
            guardrails: &Ok(rails.clone()),
            changes: &changes,
            now_unix_secs: NOW,
        };
        let said = match judge(&entry, &envelope, &bench) {
            Ok(Approved { change: Some(number), .. }) => format!("accepted as change {number}"),
            Ok(Approved { change: None, .. }) => "accepted".to_owned(),
            Err(refusal) => format!("{:?}: {}", refusal.rule, refusal.message),
        };
        let is_accepted = wanted.starts_with("accepted");
        assert!(said.starts_with(wanted) && (!is_accepted || said == wanted), "{name}: {said}");
    }
}
