//! The account store in a bucket: against moto's S3, with a network in between that loses, delays and denies.

mod agents;
mod rig;
mod trouble;

use outstation_agent::store::{Read, StoreError};
use outstation_integration::s3::S3;
use rig::Reach as _;

const BYTES_MAX: u64 = 1 << 20;

#[test]
fn a_swap_replaces_what_it_names_and_nothing_else() {
    let s3 = S3::start().expect("moto starts");
    let store = s3.store();
    let key = "state/orders/a.json";
    let first = store.swap(key, b"one", None).expect("nothing is there");
    assert!(matches!(store.swap(key, b"two", None), Err(StoreError::Moved)));
    let second = store.swap(key, b"two", Some(&first)).expect("it is the first");
    assert!(matches!(store.swap(key, b"three", Some(&first)), Err(StoreError::Moved)));
    assert_eq!(store.get_unless(key, 99, Some(&second)).expect("readable"), Read::Same);
    let changed = store.get_unless(key, 99, Some(&first)).expect("readable");
    assert!(
        matches!(changed, Read::Object(object) if object.bytes == b"two" && object.version == second)
    );
    let listed = store.list("state/orders").expect("readable").expect("a bucket has no folders");
    let listed: Vec<_> = listed.iter().map(|entry| (entry.name.as_str(), &entry.version)).collect();
    assert_eq!(listed, [("a.json", &second)], "a listing and a read name a version alike");
    let never = store.swap("state/orders/b.json", b"two", Some(&second));
    assert!(matches!(never, Err(StoreError::Moved)), "{never:?}");
}

#[test]
fn of_many_writers_one_wins_each_round() {
    let s3 = S3::start().expect("moto starts");
    let stores: Vec<_> = (0..6).map(|_| s3.store()).collect();
    let mut version = None;
    for round in 0..10 {
        let results: Vec<_> = std::thread::scope(|scope| {
            let write = |(writer, store)| {
                let version = version.as_ref();
                let bytes = format!("{round}-{writer}");
                scope.spawn(move || {
                    let store: &outstation_agent::store::AccountStore = store;
                    store.swap("state/orders/a.json", bytes.as_bytes(), version)
                })
            };
            let writers: Vec<_> = stores.iter().enumerate().map(write).collect();
            writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
        });
        let mut won = Vec::new();
        for result in results {
            match result {
                Ok(version) => won.push(version),
                Err(StoreError::Moved) => {}
                Err(error) => panic!("round {round}: {error}"),
            }
        }
        assert_eq!(won.len(), 1, "round {round}");
        version = won.pop();
    }
}

#[test]
fn what_is_created_stays() {
    let s3 = S3::start().expect("moto starts");
    let store = s3.store();
    store.create("journal/c/anchors/1.json", b"one").expect("nothing is there");
    let again = store.create("journal/c/anchors/1.json", b"two");
    assert!(matches!(again, Err(StoreError::Exists)), "{again:?}");
    let found = store.get("journal/c/anchors/1.json", BYTES_MAX).expect("readable");
    assert_eq!(found.expect("there").bytes, b"one");
    assert_eq!(store.prefixes("journal").expect("readable"), ["c"]);
}

#[test]
fn a_long_listing_comes_in_several_pages() {
    let s3 = S3::start().expect("moto starts");
    let proxy = s3.behind([]);
    let store = proxy.store();
    let names: Vec<String> = (0..1203).map(|number| format!("{number:06}.json")).collect();
    std::thread::scope(|scope| {
        for part in names.chunks(301) {
            let store = s3.store();
            scope.spawn(move || {
                for name in part {
                    store.create(&format!("journal/c/anchors/{name}"), b"x").expect("creatable");
                }
            });
        }
    });
    // Not directly below it.
    store.create("journal/c/anchors/deeper/one", b"x").expect("creatable");
    assert_eq!(store.names("journal/c/anchors", None).expect("readable"), names);
    assert_eq!(proxy.seen().iter().filter(|line| line.starts_with("GET")).count(), 2);
    let behind = store.names("journal/c/anchors", Some("001199.json")).expect("readable");
    assert_eq!(behind, names[1200..]);
    assert_eq!(store.names("journal/d/anchors", None).expect("readable"), Vec::<String>::new());
}

#[test]
fn what_is_too_large_is_not_read() {
    let s3 = S3::start().expect("moto starts");
    let store = s3.store();
    store.create("state/orders/a.json", &[7; 100]).expect("creatable");
    assert!(store.get("state/orders/a.json", 100).expect("just small enough").is_some());
    let refused = store.get("state/orders/a.json", 99);
    assert!(matches!(refused, Err(StoreError::TooLarge { bytes_max: 99 })), "{refused:?}");
}

#[test]
fn a_part_is_read_at_its_place() {
    let s3 = S3::start().expect("moto starts");
    let store = s3.store();
    store.create("artifacts/a", b"0123456789").expect("creatable");
    assert_eq!(store.size("artifacts/a").expect("readable"), Some(10));
    assert_eq!(store.size("artifacts/b").expect("readable"), None);
    let part = |key, offset, len| store.read_at(key, offset, len).expect("readable");
    for (offset, len, wanted) in
        [(0, 4, "0123"), (8, 4, "89"), (3, 0, ""), (10, 5, ""), (99, 5, "")]
    {
        let found = part("artifacts/a", offset, len).expect("it is there");
        assert_eq!(found, wanted.as_bytes(), "{offset} {len}");
    }
    assert_eq!(part("artifacts/b", 0, 4), None);
}
