use std::fs;

use super::*;

fn get(store: &AccountStore, key: &str) -> Option<String> {
    let found = store.get(key, OBJECT_BYTES_MAX).expect("readable")?;
    Some(String::from_utf8(found.bytes).expect("a text"))
}

#[test]
fn a_swap_replaces_what_it_names_and_nothing_else() {
    let folder = temporary_folder();
    let store = AccountStore::folder(folder.path());
    store.prepare("state/orders").expect("creatable");
    let key = "state/orders/a.json";
    let first = store.swap(key, b"one", None).expect("nothing is there");
    assert!(matches!(store.swap(key, b"two", None), Err(StoreError::Moved)));
    let second = store.swap(key, b"two", Some(&first)).expect("it is the first");
    assert!(matches!(store.swap(key, b"three", Some(&first)), Err(StoreError::Moved)));
    assert_eq!(get(&store, key).as_deref(), Some("two"));
    assert_eq!(store.get_unless(key, 99, Some(&second)).expect("readable"), Read::Same);
    let changed = store.get_unless(key, 99, Some(&first)).expect("readable");
    assert!(matches!(changed, Read::Object(object) if object.version == second));
    let listed = store.list("state/orders").expect("readable").expect("there");
    assert_eq!(listed, [Entry { name: "a.json".to_owned(), version: second.clone() }]);
    fs::remove_file(folder.path().join(key)).expect("there");
    assert!(matches!(store.swap(key, b"four", Some(&second)), Err(StoreError::Moved)));
    assert_eq!(store.get_unless(key, 99, Some(&second)).expect("readable"), Read::Absent);
}

#[test]
fn of_many_writers_one_wins_each_round() {
    let folder = temporary_folder();
    let store = AccountStore::folder(folder.path());
    store.prepare("state/orders").expect("creatable");
    let mut version = None;
    for round in 0..10 {
        let results: Vec<_> = std::thread::scope(|scope| {
            let write = |writer: u32| {
                let (store, version) = (&store, version.as_ref());
                move || {
                    store.swap("state/orders/a", format!("{round}-{writer}").as_bytes(), version)
                }
            };
            let writers: Vec<_> = (0..8).map(|writer| scope.spawn(write(writer))).collect();
            writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
        });
        let mut won: Vec<_> = results.into_iter().filter_map(Result::ok).collect();
        assert_eq!(won.len(), 1, "round {round}");
        version = won.pop();
    }
}

#[test]
fn what_is_created_stays() {
    let folder = temporary_folder();
    let store = AccountStore::folder(folder.path());
    store.create("journal/c/anchors/1.json", b"one").expect("with its folders");
    let again = store.create("journal/c/anchors/1.json", b"two");
    assert!(matches!(again, Err(StoreError::Exists)));
    assert_eq!(get(&store, "journal/c/anchors/1.json").as_deref(), Some("one"));
    assert_eq!(store.prefixes("journal").expect("readable"), ["c"]);
    store.create("journal/c/anchors/2.json", b"two").expect("creatable");
    let behind = store.names("journal/c/anchors", Some("1.json")).expect("readable");
    assert_eq!(behind, ["2.json"]);
}

#[test]
fn what_is_too_large_is_not_read() {
    let folder = temporary_folder();
    let store = AccountStore::folder(folder.path());
    store.create("a", &[7; 100]).expect("creatable");
    assert!(store.get("a", 100).expect("just small enough").is_some());
    assert!(matches!(store.get("a", 99), Err(StoreError::TooLarge { bytes_max: 99 })));
}

#[test]
fn a_part_is_read_at_its_place() {
    let folder = temporary_folder();
    let store = AccountStore::folder(folder.path());
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

#[test]
fn an_empty_folder_is_not_one_that_is_gone() {
    let folder = temporary_folder();
    let store = AccountStore::folder(folder.path());
    assert_eq!(store.list("state/orders").expect("readable"), None);
    store.prepare("state/orders").expect("creatable");
    assert_eq!(
        store.list("state/orders").expect("readable"),
        Some(Vec::new()),
        "locks do not count"
    );
    assert!(AccountStore::folder(&folder.path().join("gone")).check().is_err());
}

fn temporary_folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}
