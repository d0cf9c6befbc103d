//! The store on a disk: what it keeps, and what it refuses to open.

use std::collections::BTreeMap;
use std::path::Path;

use outstation_broker::store::orders::{ORDERS_KEPT_MAX, PutVerdict};
use outstation_broker::store::tokens::{JoinToken, TokenRefusal};
use outstation_broker::store::{Store, StoreError};
use outstation_protocol::session::{Answer, Report, Reports};
use outstation_protocol::v1::{Refusal, RefusalRule, SetEntry};
use outstation_protocol::{AgentId, Digest, Envelope, Generation};
use proptest::prelude::*;

use crate::harness::{ACCOUNT, data_plane, group, order};

const NOW: u64 = 1_800_000_000;

fn open(dir: &Path) -> Store {
    Store::open(&dir.join("broker.db"), NOW).expect("the store opens")
}

async fn put(store: &Store, name: &str, generation: u64, parent: Option<&Envelope>) -> PutVerdict {
    let order = order(name, generation, parent);
    store.put_order(order.clone(), order.into_envelope(), NOW).await.expect("the store answers")
}

#[tokio::test]
async fn all_that_was_written_is_there_after_reopening() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let plane = data_plane(ACCOUNT);
    let first = order("delay", 1, None).into_envelope();
    let second = order("delay", 2, Some(&first)).into_envelope();
    let other = order("other", 1, None).into_envelope();
    let refusal = Refusal {
        rule: RefusalRule::Guardrail,
        message: "90 nodes are more than 40".into(),
        hint: "ask the account's owner".into(),
    };
    let answers = [
        Answer::Accepted { generation: Generation(1), digest: first.digest() },
        Answer::Converged { generation: Generation(1), observed: Digest::of(b"observed") },
        Answer::Refused { generation: Generation(2), digest: second.digest(), reason: refusal },
    ];
    let mut reports = Reports::new();
    let key = Digest::of(b"key");
    let token = JoinToken::generate();
    {
        let store = open(dir.path());
        assert_eq!(put(&store, "delay", 1, None).await, PutVerdict::Stored);
        assert_eq!(put(&store, "delay", 2, Some(&first)).await, PutVerdict::Stored);
        assert_eq!(put(&store, "other", 1, None).await, PutVerdict::Stored);
        for answer in answers {
            let report = Report { group: group("delay"), answer };
            report.clone().record(&mut reports);
            let agent = AgentId::try_from("a-1").expect("an id");
            store.record(plane.clone(), agent, report, NOW + 1).await.expect("recorded");
        }
        store.add_token(&token, plane.clone(), NOW + 60, NOW).await.expect("added");
        let agent = AgentId::try_from("a-1").expect("an id");
        store
            .admit(token.clone(), plane.clone(), key, agent.clone(), NOW)
            .await
            .expect("the store answers")
            .expect("admitted");
        store.connected(agent, "1.0".into(), NOW).await.expect("connected");
    }

    let store = open(dir.path());
    let set = store.desired_set(plane.clone()).await.expect("the set");
    assert_eq!(
        set,
        BTreeMap::from([
            (group("delay"), (Generation(2), second.digest())),
            (group("other"), (Generation(1), other.digest())),
        ])
    );
    assert_eq!(store.reports(plane.clone()).await.expect("the reports"), reports);
    let record = store.group(plane.clone(), group("delay")).await.expect("a record");
    let record = record.expect("the group is known");
    assert_eq!(record.envelope, second);
    assert_eq!(record.answered_at.accepted, Some(NOW + 1));
    assert_eq!(record.answered_at.status, None);

    // History: the older generation is still there, under its own digest only.
    let entry = |digest| SetEntry { group: group("delay"), generation: Generation(1), digest };
    let old = store.envelope(plane.clone(), entry(first.digest())).await.expect("an answer");
    assert_eq!(old, Some(first));
    let wrong = store.envelope(plane.clone(), entry(other.digest())).await.expect("an answer");
    assert_eq!(wrong, None);

    let agents = store.agents().await.expect("the agents");
    assert_eq!(agents.len(), 1);
    assert!(!agents[0].connected, "nobody is connected to a broker that just started");

    // The token knows its key, and nobody else's.
    let fresh = AgentId::try_from("a-2").expect("an id");
    let again = store.admit(token.clone(), plane.clone(), key, fresh.clone(), NOW + 3600).await;
    assert_eq!(again.expect("an answer").expect("admitted").agent().as_str(), "a-1");
    let thief = store.admit(token, plane, Digest::of(b"thief"), fresh, NOW).await;
    assert_eq!(thief.expect("an answer"), Err(TokenRefusal::Used));
}

#[tokio::test]
async fn of_two_that_put_at_once_one_is_told_of_the_other() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let mut contenders = Vec::new();
    for n in 0..8 {
        let store = store.clone();
        contenders.push(tokio::spawn(async move {
            let mut order = order("delay", 1, None);
            order.accept_before_unix_secs += n;
            let envelope = order.clone().into_envelope();
            store.put_order(order, envelope, NOW).await.expect("the store answers")
        }));
    }
    let mut stored = 0;
    for contender in contenders {
        match contender.await.expect("no panic") {
            PutVerdict::Stored => stored += 1,
            PutVerdict::Conflict(conflict) => assert_eq!(
                conflict.to_string(),
                "another order came first as generation 1 of group delay; the newest is generation 1"
            ),
            PutVerdict::StoredBefore => panic!("no two were the same"),
        }
    }
    assert_eq!(stored, 1);
}

#[test]
fn a_file_that_cannot_be_trusted_is_not_opened() {
    let hint = |dir: &Path| match Store::open(&dir.join("broker.db"), NOW) {
        Ok(_) => "opened".to_owned(),
        Err(error) => format!("{error} | {}", error.hint()),
    };

    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("broker.db"), "not a database".repeat(100)).expect("write");
    let damaged = hint(dir.path());
    assert!(damaged.contains("is damaged") && damaged.contains("backup"), "{damaged}");

    let dir = tempfile::tempdir().expect("a temporary directory");
    let newer = rusqlite::Connection::open(dir.path().join("broker.db")).expect("open");
    newer.pragma_update(None, "user_version", 99).expect("set the version");
    drop(newer);
    let newer = hint(dir.path());
    assert!(newer.contains("schema 99") && newer.contains("newer"), "{newer}");

    let missing = Store::open(Path::new("/nonexistent/broker.db"), NOW);
    assert!(matches!(missing, Err(StoreError::Open { .. })));
}

#[derive(Debug, Clone)]
struct Put {
    generation: u64,
    /// Which of the envelopes made so far is named as parent.
    parent: usize,
    salt: u64,
}

fn puts() -> impl Strategy<Value = Vec<Put>> {
    let put = (0..6u64, 0..6usize, 0..2u64).prop_map(|(generation, parent, salt)| Put {
        generation,
        parent,
        salt,
    });
    prop::collection::vec(put, 1..40)
}

proptest! {
    // Each case opens a database of its own and syncs every write.
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is put in whatever order: generations rise by one, each names the one before as
    /// its parent, and what was stored once stays as it is.
    #[test]
    fn generations_never_fall(puts in puts()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let store = open(dir.path());
            let plane = data_plane(ACCOUNT);
            let mut stored: Vec<Envelope> = Vec::new();
            let mut seen: Vec<Envelope> = Vec::new();
            for put in puts {
                let parent = seen.get(put.parent).filter(|_| put.generation > 1);
                let mut order = order("delay", put.generation, parent);
                order.accept_before_unix_secs += put.salt;
                let envelope = order.clone().into_envelope();
                seen.push(envelope.clone());
                let follows = order.generation.0 == stored.len() as u64 + 1
                    && order.parent == stored.last().map(Envelope::digest);
                let before = stored.contains(&envelope);
                match store.put_order(order, envelope.clone(), NOW).await.expect("an answer") {
                    PutVerdict::Stored => {
                        prop_assert!(follows);
                        stored.push(envelope);
                    }
                    PutVerdict::StoredBefore => prop_assert!(before),
                    PutVerdict::Conflict(_) => prop_assert!(!follows && !before),
                }
                let newest = store.group(plane.clone(), group("delay")).await.expect("an answer");
                prop_assert_eq!(newest.map(|newest| newest.envelope), stored.last().cloned());
            }
            for (index, envelope) in stored.iter().enumerate() {
                let generation = Generation(index as u64 + 1);
                let entry = SetEntry { group: group("delay"), generation, digest: envelope.digest() };
                let kept = store.envelope(plane.clone(), entry).await.expect("an answer");
                prop_assert_eq!(kept.as_ref(), Some(envelope));
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn the_newest_orders_of_a_group_are_kept() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let mut before: Option<Envelope> = None;
    let mut entries = Vec::new();
    // The account may be any number of generations ahead of a database from a backup.
    for generation in [1, 2, 3, ORDERS_KEPT_MAX + 2] {
        let order = order("delay", generation, before.as_ref());
        let envelope = order.clone().into_envelope();
        let (group, generation) = (group("delay"), Generation(generation));
        entries.push(SetEntry { group, generation, digest: envelope.digest() });
        assert!(store.take_over(order, envelope.clone(), NOW).await.expect("stored"));
        before = Some(envelope);
    }
    let mut kept = Vec::new();
    for entry in entries {
        let found = store.envelope(data_plane(ACCOUNT), entry.clone()).await.expect("read");
        kept.extend(found.map(|_| entry.generation.0));
    }
    assert_eq!(kept, [3, ORDERS_KEPT_MAX + 2]);
}
