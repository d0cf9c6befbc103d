use std::collections::BTreeMap;

use super::*;
use crate::context::Endpoint;
use outstation_protocol::ids::{AccountId, Generation, Region, TenantId};
use outstation_protocol::order::Intent;
use outstation_protocol::signing::{Signer, SigningKey};

fn context(signers: Option<Signers>) -> Context {
    Context {
        tenant: TenantId::try_from("dev").expect("valid"),
        account: AccountId::try_from("123456789012").expect("valid"),
        region: Region::try_from("eu-central-1").expect("valid"),
        python: "/python".into(),
        artifacts: "/store".into(),
        signing_key: None,
        unsigned_orders: UnsignedOrders::Refuse,
        broker: Endpoint {
            url: "https://127.0.0.1:1".into(),
            ca: "/root.pem".into(),
            server_name: "broker.outstation".into(),
            token_file: "/token".into(),
        },
        callers: None,
        signers,
        key: None,
        trust_orders: TrustedOrders::new(),
    }
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn ann_and_bob(threshold: usize) -> Option<Signers> {
    let signer = |name: &str, seed| Signer {
        name: name.to_owned().try_into().expect("valid"),
        key: key(seed).public(),
    };
    Some(Signers::new(threshold, vec![signer("ann", 1), signer("bob", 2)]).expect("valid"))
}

fn order(generation: u64) -> Order {
    let context = context(None);
    Order {
        tenant: context.tenant.clone(),
        data_plane: context.data_plane(),
        group: GroupName::try_from("delay").expect("valid"),
        generation: Generation(generation),
        parent: (generation > 1).then(|| Digest::of(b"parent")),
        accept_before_unix_secs: 0,
        intent: Intent::Destroy,
    }
}

fn signed(order: Order, seeds: &[u8]) -> Envelope {
    let mut envelope = order.into_envelope();
    for seed in seeds {
        envelope.sign(&key(*seed));
    }
    envelope
}

/// What a broker may hand over as the newest order, and what is believed of it.
#[test]
fn a_broker_is_not_believed_without_a_signature() {
    let mut altered = signed(order(1), &[1]);
    altered.payload = order(7).into_envelope().payload;
    let mut elsewhere = order(1);
    elsewhere.data_plane.account = AccountId::try_from("999999999999").expect("valid");
    let mut of_others = order(1);
    of_others.tenant = TenantId::try_from("acme").expect("valid");
    let named = |signers| context(signers);
    let mut vouched = context(ann_and_bob(1));
    vouched.trust_orders.insert(order(1).into_envelope().digest());
    for (context, own, envelope, wanted) in [
        (named(ann_and_bob(1)), None, signed(order(1), &[1]), "ann"),
        (named(ann_and_bob(2)), None, signed(order(1), &[2, 1]), "ann, bob"),
        (
            named(ann_and_bob(2)),
            None,
            signed(order(1), &[1]),
            "UNVERIFIED: it is signed by ann only, and 2 signers have to",
        ),
        (named(ann_and_bob(1)), Some(9), signed(order(1), &[]), "UNSIGNED"),
        (
            named(ann_and_bob(1)),
            None,
            altered,
            "UNVERIFIED: the signature of ann is not one over this order: it was altered, or \
             signed by another key",
        ),
        (
            named(ann_and_bob(1)),
            None,
            signed(elsewhere, &[1]),
            "UNVERIFIED: it is for 999999999999/eu-central-1 of tenant dev",
        ),
        (
            named(ann_and_bob(1)),
            None,
            signed(of_others, &[1]),
            "UNVERIFIED: it is for 123456789012/eu-central-1 of tenant acme",
        ),
        // One's own key does not count where the context names others.
        (
            named(ann_and_bob(1)),
            Some(9),
            signed(order(1), &[9]),
            &format!(
                "UNVERIFIED: it is signed by {} only, which is no signer's key",
                key(9).public().id().short()
            ),
        ),
        (named(None), Some(9), signed(order(1), &[9]), "you"),
        (
            named(None),
            None,
            signed(order(1), &[9]),
            "UNVERIFIED: this context names no [signers] and has no key",
        ),
        (named(None), None, signed(order(1), &[]), "UNSIGNED"),
        (vouched.clone(), None, signed(order(1), &[]), "taken on a person's word (--trust-order)"),
        (vouched, None, signed(order(2), &[]), "UNSIGNED"),
    ] {
        let trust = Trust::new(&context, own.map(|seed| key(seed).public()));
        assert_eq!(trust.judge(&envelope).text(), wanted);
    }
}

#[test]
fn nothing_is_planned_against_an_order_that_nobody_vouches_for() {
    let newest = |trust: &Trust, envelope: &Envelope| -> BTreeMap<GroupName, Newest> {
        let order = Order::from_envelope(envelope).expect("an order");
        let newest = Newest {
            generation: order.generation,
            digest: envelope.digest(),
            intent: order.intent,
            refused: None,
            present: None,
            signed: trust.judge(envelope),
        };
        [(order.group, newest)].into()
    };
    let forged = signed(order(7), &[9]);
    let mut unsigned_taken = context(None);
    unsigned_taken.unsigned_orders = UnsignedOrders::Dev;
    let mut vouched = context(ann_and_bob(1));
    vouched.trust_orders.insert(forged.digest());
    let start = "the broker's newest order of delay, generation 7 ";
    for (context, envelope, wanted) in [
        (context(ann_and_bob(1)), signed(order(7), &[1]), None),
        (context(ann_and_bob(1)), forged.clone(), Some("which is no signer's key")),
        (context(ann_and_bob(1)), signed(order(7), &[]), Some("nobody has signed it")),
        (context(None), signed(order(7), &[]), Some("nobody has signed it")),
        (unsigned_taken.clone(), signed(order(7), &[]), None),
        (unsigned_taken, signed(order(7), &[9]), Some("has no key")),
        (vouched, forged, None),
    ] {
        let trust = Trust::new(&context, None);
        let newest = newest(&trust, &envelope);
        match (trust.check(&newest), wanted) {
            (Ok(()), None) => {}
            (Err(failure), Some(wanted)) => {
                assert!(failure.what.starts_with(start), "{failure}");
                assert!(failure.what.contains(&envelope.digest().to_string()), "{failure}");
                assert!(failure.what.ends_with(wanted), "{failure}");
            }
            (found, wanted) => panic!("{found:?} instead of {wanted:?}"),
        }
    }
}

#[test]
fn who_signs_is_said_and_a_key_that_nobody_knows_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("key.pem");
    let public = crate::key::create(&path).expect("made").public();
    let mut context = context(None);
    context.key = Some(path);
    let sentence = |context: &Context| Signing::of(context).map(|signing| signing.sentence());
    let by_id = format!("Signed by {} when applied.", public.id().short());
    assert_eq!(sentence(&context).expect("a key"), by_id);
    context.signers = ann_and_bob(1);
    let error = sentence(&context).expect_err("not a signer").to_string();
    assert_eq!(error, format!("the key {public} is not in [signers] of the context"));
    let name = SignerName::try_from("ops".to_owned()).expect("valid");
    context.signers = Some(Signers::only(name, public));
    assert_eq!(sentence(&context).expect("a signer"), "Signed by ops when applied.");
    context.signers = None;
    context.unsigned_orders = UnsignedOrders::Dev;
    assert!(sentence(&context).expect("no key needed").starts_with("NOT signed when applied"));
    assert_eq!(Signing::Nobody.check().expect_err("nobody"), no_key());
}
