//! What a network and an account do to requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use outstation_agent::account::ledger::{Ledger, LedgerError};
use outstation_agent::store::StoreError;
use outstation_integration::s3::S3;

use super::BYTES_MAX;
use super::rig::{Fault, Reach as _, open};

const KEY: &str = "state/orders/a.json";

#[test]
fn a_write_whose_reply_was_lost_is_known_again() {
    let s3 = S3::start().expect("moto starts");
    let proxy = s3.behind([Fault::ReplyLost]);
    let store = proxy.store();
    let first = store.swap(KEY, b"one", None).expect("it is there, and it is ours");
    assert_eq!(s3.store().get(KEY, BYTES_MAX).expect("readable").expect("there").version, first);

    let proxy = s3.behind([Fault::ReplyLost, Fault::ReplyLost]);
    let second = proxy.store().swap(KEY, b"two", Some(&first)).expect("the same for a swap");
    let proxy = s3.behind([Fault::RequestLost]);
    proxy.store().swap(KEY, b"three", Some(&second)).expect("one that never arrived is sent again");
    let proxy = s3.behind([Fault::ReplyLost]);
    proxy.store().create("journal/c/anchors/1.json", b"{}").expect("the same for a creation");
}

#[test]
fn what_somebody_else_wrote_meanwhile_is_not_ours() {
    let s3 = S3::start().expect("moto starts");
    let first = s3.store().swap(KEY, b"one", None).expect("nothing is there");
    let proxy = s3.behind([Fault::Overtaken("six")]);
    let swapped = proxy.store().swap(KEY, b"two", Some(&first));
    assert!(matches!(swapped, Err(StoreError::Moved)), "{swapped:?}");
    let proxy = s3.behind([Fault::Overtaken("six")]);
    let created = proxy.store().create("journal/c/anchors/1.json", b"two");
    assert!(matches!(created, Err(StoreError::Exists)), "{created:?}");
    let found = s3.store().get("journal/c/anchors/1.json", BYTES_MAX).expect("readable");
    assert_eq!(found.expect("there").bytes, b"six");
    // The very same bytes without any loss are somebody else's all the same.
    let again = s3.store().create("journal/c/anchors/1.json", b"six");
    assert!(matches!(again, Err(StoreError::Exists)), "{again:?}");
}

#[test]
fn what_passes_by_itself_is_asked_again() {
    let s3 = S3::start().expect("moto starts");
    let busy = Fault::Says { status: 503, code: "SlowDown" };
    let conflict = Fault::Says { status: 409, code: "ConditionalRequestConflict" };
    let proxy = s3.behind([busy.clone(), conflict, Fault::Passes, busy]);
    let store = proxy.store();
    store.create(KEY, b"one").expect("at the third attempt");
    assert!(store.get(KEY, BYTES_MAX).expect("at the second attempt").is_some());
    assert_eq!(proxy.seen().len(), 5);
}

#[test]
fn a_denial_says_what_to_allow_and_an_absence_is_none() {
    let s3 = S3::start().expect("moto starts");
    s3.store().create(KEY, b"one").expect("nothing is there");
    let denied = || Fault::Says { status: 403, code: "AccessDenied" };
    // S3 denies what is not there to whoever may not list the whole bucket.
    let proxy = s3.behind([denied(), Fault::Passes, denied(), Fault::Passes, denied()]);
    let store = proxy.store();
    let absent = store.get("state/orders/absent.json", BYTES_MAX);
    assert!(matches!(absent, Ok(None)), "{absent:?}");
    let told = store.get(KEY, BYTES_MAX).expect_err("it is there").to_string();
    for words in
        ["read s3://store/prod/state/orders/a.json", "AccessDenied", "s3:GetObject", "iam-policy"]
    {
        assert!(told.contains(words), "{told}");
    }
    let told = store.create("journal/1", b"x").expect_err("denied").to_string();
    assert!(told.contains("write") && told.contains("s3:PutObject"), "{told}");
    proxy.then_always(denied());
    let told = store.list("state/orders").expect_err("denied").to_string();
    assert!(told.contains("list") && told.contains("s3:ListBucket"), "{told}");
    assert!(matches!(
        store.get("state/orders/absent.json", BYTES_MAX),
        Err(StoreError::Denied { .. })
    ));
}

#[test]
fn a_bucket_that_is_not_there_is_named_at_the_start() {
    let s3 = S3::start().expect("moto starts");
    let store = open(&s3.url(), "s3://nobodys-store/prod");
    let error = Ledger::open(&store).err().expect("no bucket");
    let told = format!("{:#}", anyhow::Error::from(error));
    assert!(told.contains("there is no bucket nobodys-store"), "{told}");
    assert!(store.check().is_err());
}

#[test]
fn while_nobody_answers_calls_end_and_other_tasks_go_on() {
    let s3 = S3::start().expect("moto starts");
    let proxy = s3.behind([]);
    let store = proxy.store();
    store.create(KEY, b"one").expect("nothing is there");
    proxy.then_always(Fault::Silence);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(async move {
        let ticks = Arc::new(AtomicU32::new(0));
        let counting = ticks.clone();
        let ticker = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                counting.fetch_add(1, Ordering::Relaxed);
            }
        });
        let asking = tokio::spawn(async move {
            let start = Instant::now();
            let error = store.get(KEY, BYTES_MAX).expect_err("silence");
            let first = start.elapsed();
            // The next ones are not worth the wait.
            let again = store.get(KEY, BYTES_MAX).expect_err("silence");
            (error, again, first, start.elapsed() - first)
        });
        let (error, again, first, second) = asking.await.expect("no panic");
        for error in [&error, &again] {
            assert!(error.to_string().contains("S3 cannot be reached to read"), "{error}");
        }
        assert!(first < Duration::from_secs(12), "{first:?}");
        assert!(second < Duration::from_secs(1), "{second:?}");
        let ticks = ticks.load(Ordering::Relaxed);
        assert!(ticks > 50, "the only worker was kept waiting: {ticks} ticks in {first:?}");
        ticker.abort();
    });
}

#[test]
fn an_outage_leaves_what_was_known_and_holds_the_rest() {
    let s3 = S3::start().expect("moto starts");
    let proxy = s3.behind([]);
    let store = proxy.store();
    let mut ledger = Ledger::open(&store).expect("an empty store");
    let order = super::agents::order("a", 1);
    let envelope = order.clone().into_envelope();
    ledger.accept(order.clone(), &envelope).expect("nothing there before");
    proxy.then_always(Fault::RequestLost);
    assert!(!ledger.refresh(), "nothing new");
    assert_eq!(ledger.accepted()[&order.group].order, order);
    let told: Vec<_> = ledger.trouble().iter().map(|trouble| &trouble.message).collect();
    assert!(!told.is_empty() && told[0].contains("S3 cannot be reached"), "{told:?}");
    let newest = ledger.is_newest(&order.group, envelope.digest());
    assert!(matches!(newest, Err(LedgerError::Store { .. })), "no call is made on a guess");
    let next = super::agents::order("b", 1);
    assert!(ledger.accept(next.clone(), &next.clone().into_envelope()).is_err());

    proxy.then_always(Fault::Passes);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !ledger.trouble().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", ledger.trouble());
        std::thread::sleep(Duration::from_millis(50));
        ledger.refresh();
    }
    assert!(ledger.is_newest(&order.group, envelope.digest()).expect("readable"));
    ledger.accept(next.clone(), &next.into_envelope()).expect("now it can");
}
