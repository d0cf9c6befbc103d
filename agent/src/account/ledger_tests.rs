use std::fs;

use super::*;
use crate::account::testing::{group, order, spec, temporary_folder};
use outstation_protocol::Generation;
use outstation_protocol::order::Intent;

fn open(store: &tempfile::TempDir) -> Result<Ledger, LedgerError> {
    Ledger::open(&AccountStore::folder(store.path()))
}

#[test]
fn what_was_accepted_is_there_after_a_restart() {
    let store = temporary_folder();
    let mut ledger = open(&store).expect("an empty store");
    let first = order("a", 1, None, Intent::Apply(spec(3)));
    let envelope = first.clone().into_envelope();
    ledger.accept(first.clone(), &envelope).expect("nothing there before");
    drop(ledger);

    let ledger = open(&store).expect("own files");
    assert_eq!(ledger.accepted()[&group("a")].order, first);
    assert!(ledger.is_newest(&group("a"), envelope.digest()).expect("readable"));
}

#[test]
fn two_agents_cannot_both_move_a_group() {
    let store = temporary_folder();
    let mut one = open(&store).expect("an empty store");
    let mut two = open(&store).expect("an empty store");
    let three = order("a", 1, None, Intent::Apply(spec(3)));
    let four = order("a", 1, None, Intent::Apply(spec(4)));
    one.accept(three.clone(), &three.clone().into_envelope()).expect("first");
    let error = two.accept(four.clone(), &four.into_envelope()).expect_err("second");
    assert!(matches!(error, LedgerError::Swapped { expected: None, found: Some(_), .. }));
    assert_eq!(two.accepted()[&group("a")].order, three, "it has learnt what is there");
    let mut late = open(&store).expect("own files");
    let next = order("a", 2, Some(Digest::of(b"parent")), Intent::Apply(spec(5)));
    for ledger in [&mut two, &mut late] {
        let again = ledger.accept(next.clone(), &next.clone().into_envelope());
        again.expect("the same order, twice");
    }
    assert_eq!(late.accepted()[&group("a")].order, next);
}

#[test]
fn a_damaged_file_is_an_error_and_not_an_absence() {
    let store = temporary_folder();
    let mut ledger = open(&store).expect("an empty store");
    let first = order("a", 1, None, Intent::Destroy);
    ledger.accept(first.clone(), &first.into_envelope()).expect("accepted");
    fs::write(store.path().join("state/orders/a.json"), b"{\"payl").expect("writable");
    assert!(matches!(open(&store), Err(LedgerError::Damaged { .. })));
}

fn floor(generation: u64) -> Floor {
    Floor {
        group: group("a"),
        generation: Some(Generation(generation)),
        wrong_tag: None,
        decided_at_unix_secs: 1,
    }
}

fn accept(ledger: &mut Ledger, name: &str, generation: u64) -> Result<(), LedgerError> {
    let parent = (generation > 1).then(|| Digest::of(b"parent"));
    let order = order(name, generation, parent, Intent::Apply(spec(3)));
    ledger.accept(order.clone(), &order.into_envelope())
}

fn generations(ledger: &Ledger) -> String {
    let of =
        |(name, accepted): (&GroupName, &Accepted)| format!("{name}={}", accepted.order.generation);
    ledger.accepted().iter().map(of).collect::<Vec<_>>().join(" ")
}

#[test]
fn an_order_at_or_below_its_floor_does_not_count() {
    let store = temporary_folder();
    let mut ledger = open(&store).expect("an empty store");
    accept(&mut ledger, "a", 2).expect("nothing there before");
    accept(&mut ledger, "b", 1).expect("nothing there before");
    let digest = ledger.accepted()[&group("a")].digest;
    assert!(ledger.is_newest(&group("a"), digest).expect("readable"));

    ledger.decide(floor(2)).expect("nothing there before");
    assert_eq!(generations(&ledger), "b=1");
    assert!(!ledger.is_newest(&group("a"), digest).expect("readable"));
    // Its file is still there, and is what the next order replaces.
    accept(&mut ledger, "a", 3).expect("in the place of the second");
    assert_eq!(generations(&ledger), "a=3 b=1");
    assert_eq!(generations(&open(&store).expect("own files")), "a=3 b=1");
    assert!(ledger.decide(floor(1)).is_err(), "a floor does not fall");
}

#[test]
fn what_others_write_is_taken_over() {
    let store = temporary_folder();
    let mut one = open(&store).expect("an empty store");
    let mut two = open(&store).expect("an empty store");
    accept(&mut one, "a", 1).expect("first");
    assert!(two.refresh());
    assert_eq!(generations(&two), "a=1");
    assert!(!two.refresh(), "nothing new");
    accept(&mut two, "a", 2).expect("in the place of the other's");
    assert!(!two.refresh(), "its own is not new");
    assert!(one.refresh());
    assert_eq!(generations(&one), "a=2");
    one.decide(floor(5)).expect("nothing there before");
    assert!(matches!(accept(&mut two, "a", 3), Err(LedgerError::FloorMoved { .. })));
    assert_eq!(generations(&two), "");
    accept(&mut two, "a", 6).expect("it has learnt of the floor");

    fs::remove_file(store.path().join("state/orders/a.json")).expect("it is there");
    assert!(one.refresh());
    assert_eq!(generations(&one), "", "the account store is right");
}

#[test]
fn what_cannot_be_read_stays_as_it_was_and_is_told() {
    let store = temporary_folder();
    let mut ledger = open(&store).expect("an empty store");
    accept(&mut ledger, "a", 1).expect("first");
    accept(&mut ledger, "b", 1).expect("first");
    let path = store.path().join("state/orders/a.json");
    let whole = fs::read(&path).expect("readable");
    fs::write(&path, &whole[..20]).expect("writable");
    ledger.refresh();
    assert_eq!(generations(&ledger), "a=1 b=1");
    let [trouble] = ledger.trouble() else { panic!("{:?}", ledger.trouble()) };
    assert_eq!(trouble.group, Some(group("a")));
    assert!(trouble.message.contains("a.json of the ledger is damaged"), "{trouble:?}");

    fs::rename(store.path().join("state"), store.path().join("lost")).expect("renamed");
    assert!(!ledger.refresh());
    assert_eq!(generations(&ledger), "a=1 b=1");
    assert!(ledger.trouble().iter().all(|trouble| trouble.group.is_none()));
    fs::rename(store.path().join("lost"), store.path().join("state")).expect("renamed");
    fs::write(&path, &whole).expect("writable");
    ledger.refresh();
    assert!(ledger.trouble().is_empty());
}
