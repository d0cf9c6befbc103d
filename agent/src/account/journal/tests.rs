use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use outstation_protocol::v1::RefusalRule;
use outstation_protocol::{Digest, Generation};

use super::record::{Anchor, Event};
use super::store::{Store, names};
use super::verify::{self, Kept, Verified};
use super::{Journal, JournalError, REFUSALS_PER_MINUTE_MAX};
use crate::account::testing::{group, identity, temporary_folder};
use crate::clock::{Clock, ManualClock};
use crate::store::AccountStore;

struct Place {
    folder: tempfile::TempDir,
    clock: std::sync::Arc<ManualClock>,
}

impl Place {
    fn new() -> Place {
        Place { folder: temporary_folder(), clock: ManualClock::new(1_000_000) }
    }

    fn disk(&self) -> PathBuf {
        self.folder.path().join("state/journal")
    }

    fn store(&self) -> Store {
        Store::new(AccountStore::folder(&self.folder.path().join("store")))
    }

    fn anchors(&self, chain: &str) -> PathBuf {
        self.folder.path().join("store/journal").join(chain).join("anchors")
    }

    fn journal(&self) -> Journal {
        self.journal_at("state")
    }

    fn journal_at(&self, state: &str) -> Journal {
        let folder = self.folder.path();
        let clock = Clock::Manual(self.clock.clone());
        let plane = identity().data_plane;
        let store = AccountStore::folder(&folder.join("store"));
        Journal::new(&folder.join(state), store, plane, clock)
    }

    fn kept(&self) -> Vec<Kept> {
        verify::read(Some(&self.disk()), &self.store()).expect("readable")
    }

    fn verified(&self) -> Vec<Verified> {
        self.kept().iter().map(verify::verify).collect()
    }

    fn faults(&self) -> Vec<String> {
        self.verified().into_iter().flat_map(|verified| verified.faults).collect()
    }

    /// The newest segment of the only chain.
    fn segment(&self) -> PathBuf {
        let chain =
            self.disk().join(names(&self.disk()).expect("readable").pop().expect("a chain"));
        let newest = names(&chain).expect("readable").pop().expect("a segment");
        chain.join(newest)
    }
}

fn call(number: u32) -> Event {
    let request = format!("Action=UpdateAutoScalingGroup&MaxSize={number}");
    Event::Call { service: "Auto Scaling".into(), call: "UpdateAutoScalingGroup".into(), request }
}

fn order(refused: Option<RefusalRule>) -> Event {
    let (group, generation, digest) = (group("delay"), Generation(1), Digest::of(b"order"));
    Event::Order { group, generation, digest, refused, message: String::new() }
}

fn look() -> Event {
    let call = "DescribeAutoScalingGroups".to_owned();
    Event::Look {
        service: "Auto Scaling".into(),
        call,
        status: Some(200),
        code: None,
        request_id: None,
    }
}

fn events(kept: &[Kept]) -> Vec<Event> {
    let mut events = Vec::new();
    for chain in kept {
        verify::walk(chain, |record, _| events.push(record.event.clone())).expect("whole");
    }
    events
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).expect("readable");
    assert!(text.contains(from), "{from} is not in {text}");
    fs::write(path, text.replace(from, to)).expect("writable");
}

#[test]
fn a_call_is_anchored_before_it_may_be_made_and_a_restart_goes_on_in_the_same_chain() {
    let place = Place::new();
    let journal = place.journal();
    journal.note(order(None));
    let seq = journal.before_call(call(3)).expect("written");
    let chain = journal.state().head.expect("a chain").0;
    let anchors = place.store().anchors_after(&chain, 0).expect("readable");
    assert_eq!(anchors.keys().copied().collect::<Vec<_>>(), [seq]);
    drop(journal);

    let journal = place.journal();
    journal.note(Event::Outcome { of: seq, status: Some(200), code: None, request_id: None });
    journal.before_call(call(4)).expect("written");
    let verified = place.verified();
    assert_eq!(verified.len(), 1, "one chain");
    assert_eq!((verified[0].records, verified[0].anchors, verified[0].faults.len()), (6, 2, 0));
    let events = events(&place.kept());
    assert!(matches!(events[0], Event::Began { .. }) && matches!(events[3], Event::Started { .. }));
    assert_eq!((&events[1], &events[2], &events[5]), (&order(None), &call(3), &call(4)));
}

#[test]
fn what_is_changed_behind_its_back_is_found_and_the_agent_goes_on_in_another_chain() {
    type Change = fn(&Place);
    let cases: [(&str, Change, &str); 5] = [
        ("edited", |place| edit(&place.segment(), "MaxSize=3", "MaxSize=9"), "does not follow"),
        (
            "last record edited",
            |place| edit(&place.segment(), "MaxSize=5", "MaxSize=9"),
            "record 4 is not the anchored one",
        ),
        (
            "cut",
            |place| {
                let text = fs::read_to_string(place.segment()).expect("readable");
                let kept: Vec<&str> = text.lines().take(3).collect();
                fs::write(place.segment(), kept.join("\n") + "\n").expect("writable");
            },
            "record 4 is anchored and missing",
        ),
        (
            "emptied",
            |place| fs::write(place.segment(), "").expect("writable"),
            "record 2 is anchored and missing",
        ),
        (
            "garbage",
            |place| fs::write(place.segment(), "{}\n").expect("writable"),
            "is not a record",
        ),
    ];
    for (name, change, fault) in cases {
        let place = Place::new();
        let journal = place.journal();
        for number in 3..6 {
            journal.before_call(call(number)).expect("written");
        }
        drop(journal);
        assert_eq!(place.faults(), Vec::<String>::new(), "{name}");
        change(&place);
        let faults = place.faults();
        assert!(faults.iter().any(|found| found.contains(fault)), "{name}: {faults:?}");

        place.journal().before_call(call(7)).expect("it goes on");
        let verified = place.verified();
        assert_eq!(verified.len(), 2, "{name}: a second chain");
        assert!(verified[1].faults.is_empty() && !verified[0].faults.is_empty(), "{name}");
        let follows = verified[1].follows.clone().expect("it names the one before");
        assert_eq!(
            (follows.chain.as_str(), follows.seq),
            (verified[0].chain.as_str(), 4),
            "{name}"
        );
    }
}

#[test]
fn a_lost_disk_begins_a_chain_that_names_the_one_before() {
    let place = Place::new();
    place.journal().before_call(call(3)).expect("written");
    fs::remove_dir_all(place.disk()).expect("removable");
    place.journal().before_call(call(4)).expect("written");
    let kept = place.kept();
    let verified: Vec<Verified> = kept.iter().map(verify::verify).collect();
    let told: Vec<_> = verified.iter().map(|v| (v.records, v.elsewhere, v.faults.len())).collect();
    assert_eq!(told, [(0, 1, 0), (2, 0, 0)], "nobody can say what the lost one held");
    assert_eq!(verify::verify_succession(&verified, &kept), Vec::<String>::new());

    // Whoever removes the anchors of the lost one as well is found out by the chain that names it.
    fs::remove_dir_all(place.anchors(&verified[0].chain)).expect("removable");
    let kept = place.kept();
    let faults = verify::verify_succession(&verified, &kept);
    assert!(faults.len() == 1 && faults[0].contains("whose anchor is gone"), "{faults:?}");
}

#[test]
fn two_agents_have_a_chain_each() {
    let place = Place::new();
    let (one, two) = (place.journal_at("one"), place.journal_at("two"));
    for number in 0..3 {
        one.before_call(call(number)).expect("written");
        two.before_call(call(number)).expect("written");
    }
    assert_eq!(place.store().chains().expect("readable").len(), 2);
    for state in ["one", "two"] {
        let disk = place.folder.path().join(state).join("journal");
        let kept = verify::read(Some(&disk), &place.store()).expect("readable");
        let verified: Vec<Verified> = kept.iter().map(verify::verify).collect();
        assert!(verified.iter().all(|verified| verified.faults.is_empty()), "{verified:?}");
        assert_eq!(verified.iter().map(|verified| verified.elsewhere).sum::<usize>(), 3);
    }
}

#[test]
fn a_disk_put_back_to_an_older_state_is_found_at_the_next_call() {
    let place = Place::new();
    let journal = place.journal();
    journal.before_call(call(3)).expect("written");
    let segment = place.segment();
    let older = fs::read(&segment).expect("readable");
    journal.before_call(call(4)).expect("written");
    drop(journal);
    // While no agent runs, it would be seen at the start; this agent has opened it already.
    fs::write(&segment, older).expect("writable");
    let anchors = place.anchors(&names(&place.disk()).expect("readable")[0]);
    let hidden = anchors.join(format!("{:020}.json", 3));
    let anchored = fs::read(&hidden).expect("an anchor");
    fs::remove_file(&hidden).expect("removable");
    let journal = place.journal();
    journal.note(order(None));
    fs::write(&hidden, anchored).expect("writable");
    journal.before_call(call(5)).expect("its own number is not taken");
    let faults = place.faults();
    assert!(
        faults.iter().any(|fault| fault.contains("record 3 is not the anchored one")),
        "{faults:?}"
    );
}

#[test]
fn another_hand_on_the_same_anchors_stops_the_call() {
    let place = Place::new();
    let journal = place.journal();
    journal.before_call(call(3)).expect("written");
    let chain = journal.state().head.expect("a chain").0;
    let digest = Digest::of(b"another");
    let anchor = Anchor { chain: chain.clone(), seq: 3, digest, lines: vec![] };
    let path = place.anchors(&chain).join(format!("{:020}.json", 3));
    fs::write(path, serde_json::to_vec(&anchor).expect("plain values")).expect("writable");
    let error = journal.before_call(call(4)).expect_err("somebody else was here");
    assert!(matches!(error, JournalError::Forked { seq: 3, .. }), "{error}");
    journal.before_call(call(4)).expect("in a chain of its own");
    assert_eq!(place.verified().len(), 2);
}

#[test]
fn a_line_that_was_cut_off_by_a_kill_is_taken_back() {
    let place = Place::new();
    place.journal().before_call(call(3)).expect("written");
    let segment = place.segment();
    let mut bytes = fs::read(&segment).expect("readable");
    bytes.extend_from_slice(b"{\"seq\":3,\"at_unix");
    fs::write(&segment, bytes).expect("writable");
    assert_eq!(place.faults(), Vec::<String>::new(), "half a line proves nothing");
    place.journal().before_call(call(4)).expect("written");
    let verified = place.verified();
    assert_eq!((verified.len(), verified[0].records), (1, 4));
    assert_eq!(place.faults(), Vec::<String>::new());
}

#[test]
fn without_the_account_store_no_call_is_made_and_orders_are_still_written() {
    let place = Place::new();
    fs::write(place.folder.path().join("store"), "a file where a folder belongs")
        .expect("writable");
    let journal = place.journal();
    let error = journal.before_call(call(3)).expect_err("it cannot be anchored");
    assert!(matches!(error, JournalError::Io { .. }), "{error}");
    assert!(journal.state().trouble.is_some());
    fs::remove_file(place.folder.path().join("store")).expect("removable");
    journal.before_call(call(3)).expect("now it can");
    assert_eq!(journal.state().trouble, None);
    assert_eq!(place.faults(), Vec::<String>::new());
}

#[test]
fn a_flood_of_refusals_is_counted_and_not_written() {
    let place = Place::new();
    let journal = place.journal();
    for _ in 0..1000 {
        journal.note(order(Some(RefusalRule::Guardrail)));
    }
    journal.note(order(None));
    let mut counts = BTreeMap::new();
    for event in events(&place.kept()) {
        let kind = match event {
            Event::Order { refused: Some(_), .. } => ("refused", 1),
            Event::Order { .. } => ("accepted", 1),
            Event::Skipped { refusals, .. } => ("skipped", refusals),
            _ => continue,
        };
        *counts.entry(kind.0).or_insert(0) += kind.1;
    }
    let written = u64::from(REFUSALS_PER_MINUTE_MAX);
    let wanted = [("accepted", 1), ("refused", written), ("skipped", 1000 - written)];
    assert_eq!(counts, BTreeMap::from(wanted));
    place.clock.advance(std::time::Duration::from_secs(60));
    journal.note(order(Some(RefusalRule::Guardrail)));
    assert_eq!(events(&place.kept()).last(), Some(&order(Some(RefusalRule::Guardrail))));
}

#[test]
fn a_long_journal_moves_into_the_account_store_segment_by_segment() {
    let place = Place::new();
    let journal = place.journal();
    // Some 50 MiB of looks.
    for _ in 0..230_000 {
        journal.note(look());
    }
    journal.before_call(call(3)).expect("written");
    drop(journal);
    let chain = names(&place.disk()).expect("readable").remove(0);
    let archived = place.store().segment_names(&chain).expect("readable").len();
    let here = names(&place.disk().join(&chain)).expect("readable").len();
    assert!(archived > 8 && here == 9, "{archived} archived, {here} here");
    let verified = place.verified();
    assert_eq!((verified[0].records, verified[0].anchors), (230_002, archived + 1));
    assert_eq!(place.faults(), Vec::<String>::new());

    // An auditor has the account store only: what the open segment holds is not there yet.
    let kept = verify::read(None, &place.store()).expect("readable");
    let audited = verify::verify(&kept[0]);
    assert_eq!((audited.faults.len(), audited.elsewhere), (0, 1));

    let first = place
        .folder
        .path()
        .join("store/journal")
        .join(&chain)
        .join("segments")
        .join(format!("{:020}.jsonl", 1));
    edit(&first, "\"status\":200", "\"status\":500");
    let faults = place.faults();
    assert!(faults.iter().any(|fault| fault.contains("does not follow")), "{faults:?}");
}
