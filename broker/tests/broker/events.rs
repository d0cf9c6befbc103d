//! The event log: what is written into it, how it is read, and what a reader is told when a
//! database is another one than before.

use std::path::Path;

use outstation_api::admin as api;
use outstation_api::admin::gap::Reason;
use outstation_api::admin::watch_events_response::What;
use outstation_broker::store::Store;
use outstation_broker::store::events::{After, Cursor, EVENTS_MAX, Filter};
use outstation_broker::store::tokens::JoinToken;
use outstation_protocol::session::{Answer, Report, Reports};
use outstation_protocol::status::{Drift, GroupPhase, GroupStatus, Held};
use outstation_protocol::v1::{Refusal, RefusalRule, ToAgent, ToBroker};
use outstation_protocol::{AgentId, Digest, Envelope, Generation};
use tonic::{Code, Streaming};

use crate::harness::{ACCOUNT, Running, Stream, api_data_plane, data_plane, group, order, soon};

const NOW: u64 = 1_800_000_000;

fn request(follow: bool) -> api::WatchEventsRequest {
    api::WatchEventsRequest {
        data_plane: api_data_plane(),
        group: String::new(),
        after: None,
        since_unix_secs: 0,
        follow,
    }
}

async fn watch(
    broker: &Running,
    request: api::WatchEventsRequest,
) -> Streaming<api::WatchEventsResponse> {
    broker.client().await.watch_events(request).await.expect("a stream").into_inner()
}

/// What a reader without `follow` is sent, up to the end.
#[derive(Debug, Default)]
struct Read {
    events: Vec<api::Event>,
    gap: Option<api::Gap>,
    cursor: Option<api::Cursor>,
}

async fn read(broker: &Running, request: api::WatchEventsRequest) -> Read {
    let mut stream = watch(broker, request).await;
    let (mut read, mut whole) = (Read::default(), false);
    while let Some(message) = soon("the next event", stream.message()).await.expect("good") {
        match message.what.expect("something") {
            What::Event(event) => read.events.push(event),
            What::Gap(gap) => read.gap = Some(gap),
            What::Reached(api::Reached { cursor, newest }) => {
                (read.cursor, whole) = (cursor, newest);
            }
        }
    }
    assert!(whole, "the end is said, not guessed: {read:?}");
    read
}

async fn next_event(stream: &mut Streaming<api::WatchEventsResponse>) -> api::Event {
    loop {
        let message = soon("an event", stream.message()).await.expect("good").expect("a message");
        match message.what.expect("something") {
            What::Event(event) => return event,
            What::Reached(_) => {}
            What::Gap(gap) => panic!("nothing is missing, but: {gap:?}"),
        }
    }
}

fn number(event: &api::Event) -> u64 {
    event.cursor.as_ref().expect("a cursor").sequence
}

async fn put(broker: &Running, name: &str, generation: u64, parent: Option<&Envelope>) -> Envelope {
    let envelope = order(name, generation, parent).into_envelope();
    let request = api::PutOrderRequest { envelope: envelope.to_json().into() };
    broker.client().await.put_order(request).await.expect("put");
    envelope
}

fn status(phase: GroupPhase, reason: &str) -> GroupStatus {
    GroupStatus {
        phase,
        desired_nodes: 3,
        observed_nodes: 3,
        ready_nodes: 3,
        reason: reason.into(),
        phase_since_unix_secs: NOW,
        held: vec![],
        drift: vec![],
        nodes: vec![],
    }
}

/// `kind group generation rule message`, without what is not there.
fn words(event: &api::Event) -> String {
    let generation = event.generation.map(|generation| generation.to_string());
    [&event.kind, &event.group, &generation.unwrap_or_default(), &event.rule, &event.message]
        .into_iter()
        .filter(|word| !word.is_empty())
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(" ")
}

#[tokio::test]
async fn a_story_is_told_in_order_with_its_ids() {
    let broker = Running::start().await;
    let agent = broker.agent().await;
    let mut session = agent.connect(&broker).await;
    let mut follower = watch(&broker, request(true)).await;
    let first = put(&broker, "delay", 1, None).await;
    let conflict = order("delay", 3, Some(&first)).into_envelope().to_json().into();
    let conflict = api::PutOrderRequest { envelope: conflict };
    broker.client().await.put_order(conflict).await.expect_err("it does not follow");
    let second = put(&broker, "delay", 2, Some(&first)).await;

    let (generation, name) = (Generation(1), group("delay"));
    let mut held = status(GroupPhase::Updating, "2 of 3 nodes ready");
    held.held.push(Held {
        generation: Some(generation),
        rule: "pause".into(),
        message: "the account's guardrails say pause = true".into(),
        hint: "ask".into(),
    });
    let mut drifted = status(GroupPhase::Ready, "3 of 3 nodes ready\u{1b}[2J\n");
    drifted.drift.push(Drift { change: "max size 3 -> 5".into(), repaired: true, at_unix_secs: 1 });
    let reason = Refusal {
        rule: RefusalRule::Guardrail,
        message: "90 nodes are more than 40".into(),
        hint: "ask the owner of guardrails/".into(),
    };
    let refused = ToBroker::Refused {
        group: name.clone(),
        generation: Generation(2),
        digest: second.digest(),
        reason,
    };
    let observed = Digest::of(b"observed");
    for message in [
        ToBroker::Accepted { group: name.clone(), generation, digest: first.digest() },
        ToBroker::Status { group: name.clone(), status: held.clone() },
        ToBroker::Status { group: name.clone(), status: held },
        refused.clone(),
        ToBroker::Converged { group: name.clone(), generation, observed },
        ToBroker::Status { group: name.clone(), status: drifted },
        refused,
    ] {
        session.send(&message).await;
        // What is sent in one go may arrive in one go, and then the newest of a kind replaces the
        // one before; a heartbeat is answered when all before it is written.
        flush(&mut session).await;
    }
    session.connection.close(0u8.into(), b"");

    let wanted = [
        "agent_enrolled with join token",
        "agent_connected release test",
        "order_put delay 1 the group shall be gone",
        "order_put delay 2 the group shall be gone",
        "accepted delay 1 written down",
        "phase delay 1 UPDATING: 2 of 3 nodes ready",
        "held delay 1 pause the account's guardrails say pause = true",
        "refused delay 2 guardrail 90 nodes are more than 40",
        "converged delay 1 the account is as this order wants it",
        "phase delay 1 UPDATING -> READY: 3 of 3 nodes ready [2J ",
        "released delay 1 pause no longer held by pause",
        "drift_repaired delay 1 max size 3 -> 5",
        "agent_disconnected",
    ];
    let mut told = Vec::new();
    for wanted in wanted {
        let event = next_event(&mut follower).await;
        assert!(words(&event).starts_with(wanted), "{event:?} should start with {wanted:?}");
        told.push(event);
    }
    let numbers: Vec<u64> = told.iter().map(number).collect();
    assert_eq!(numbers, (1..=wanted.len() as u64).collect::<Vec<_>>());
    for event in &told {
        let by_agent = event.kind != "order_put";
        assert_eq!(event.agent == agent.id.as_str(), by_agent, "{event:?}");
        let digest = match event.generation {
            Some(1) => first.digest().short(),
            Some(_) => second.digest().short(),
            None => String::new(),
        };
        assert_eq!(event.digest, digest, "{event:?}");
        assert!(event.at_unix_secs > NOW / 2);
    }
    assert_eq!(told[7].hint, "ask the owner of guardrails/");

    // The same again, read by those who want less of it.
    assert_eq!(read(&broker, request(false)).await.events, told);
    let of_the_group = api::WatchEventsRequest { group: "delay".into(), ..request(false) };
    assert_eq!(read(&broker, of_the_group).await.events, told[2..12]);
    let of_another = api::WatchEventsRequest { group: "other".into(), ..request(false) };
    let nothing = read(&broker, of_another).await;
    assert!(nothing.events.is_empty() && nothing.gap.is_none());
    assert_eq!(nothing.cursor.expect("it looked at all").sequence, 13);
    let typed = Some(api::Cursor { sequence: 11, ..api::Cursor::default() });
    let behind = api::WatchEventsRequest { after: typed, ..request(false) };
    assert_eq!(read(&broker, behind).await.events, told[11..]);
    let future = api::WatchEventsRequest { since_unix_secs: u64::MAX / 4, ..request(false) };
    assert!(read(&broker, future).await.events.is_empty());

    let bad = api::WatchEventsRequest { group: "1st".into(), ..request(false) };
    let refused = broker.client().await.watch_events(bad).await.expect_err("not a name");
    assert_eq!(refused.code(), Code::InvalidArgument);

    // Who follows is told that this is not the end.
    broker.stop().await;
    let end = loop {
        match soon("the end", follower.message()).await {
            Ok(Some(message)) => assert!(matches!(message.what, Some(What::Reached(_)))),
            Ok(None) => panic!("an end without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::Unavailable);
}

/// All that was sent before is written down when the answer is there.
async fn flush(session: &mut Stream) {
    session.send(&ToBroker::Heartbeat { reports_hash: Digest::of(b"other") }).await;
    loop {
        match session.next::<ToAgent>().await.expect("an answer") {
            ToAgent::Heartbeat { .. } => return,
            ToAgent::DesiredSet { .. } | ToAgent::SendReports | ToAgent::HandBack(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn the_accepted_order_is_shown_beside_the_one_that_was_refused() {
    let broker = Running::start().await;
    let agent = broker.agent().await;
    let first = put(&broker, "delay", 1, None).await;
    let mut session = agent.connect(&broker).await;
    let (generation, name) = (Generation(1), group("delay"));
    let get = async || {
        let request = api::GetGroupRequest { data_plane: api_data_plane(), name: "delay".into() };
        broker.client().await.get_group(request).await.expect("the group").into_inner()
    };
    let mut held = status(GroupPhase::Updating, "held");
    held.held.push(Held {
        generation: Some(generation),
        rule: "pause".into(),
        message: "pause = true".into(),
        hint: "ask".into(),
    });
    for message in [
        ToBroker::Accepted { group: name.clone(), generation, digest: first.digest() },
        ToBroker::Status { group: name.clone(), status: held },
    ] {
        session.send(&message).await;
    }
    flush(&mut session).await;
    let now = get().await;
    assert_eq!(now.accepted_order, None, "the newest is the accepted one");
    assert!(now.status.expect("told").held[0].since_unix_secs > NOW / 2);

    let second = put(&broker, "delay", 2, Some(&first)).await;
    let now = get().await;
    assert_eq!(now.digest, second.digest().to_string());
    let accepted = now.accepted_order.expect("another than the newest");
    assert_eq!(Envelope::from_json(&accepted.envelope).expect("whole"), first);
    assert!(accepted.put_at_unix_secs > 0);

    // What the agent accepted is not in this database: nothing is shown in its place.
    let digest = Digest::of(b"elsewhere");
    session.send(&ToBroker::Accepted { group: name, generation: Generation(7), digest }).await;
    flush(&mut session).await;
    assert_eq!(get().await.accepted_order, None);
    broker.stop().await;
}

#[tokio::test]
async fn a_reader_goes_on_behind_its_cursor_when_the_broker_is_back() {
    let broker = Running::start().await;
    let mut parent = None;
    for generation in 1..=3 {
        parent = Some(put(&broker, "delay", generation, parent.as_ref()).await);
    }
    let before = read(&broker, request(false)).await;
    assert_eq!(before.events.len(), 3);
    let broker = Running::start_in(broker.stop().await).await;

    let again = api::WatchEventsRequest { after: before.cursor.clone(), ..request(true) };
    let mut stream = watch(&broker, again).await;
    // It is told at once where it stands.
    let hello = soon("a first word", stream.message()).await.expect("good").expect("a message");
    let reached = api::Reached { cursor: before.cursor.clone(), newest: true };
    assert_eq!(hello.what, Some(What::Reached(reached)));
    for generation in 4..=6 {
        parent = Some(put(&broker, "delay", generation, parent.as_ref()).await);
        let event = next_event(&mut stream).await;
        assert_eq!((number(&event), event.generation), (generation, Some(generation)));
        let run = |event: &api::Event| event.cursor.as_ref().expect("a cursor").run.clone();
        assert_ne!(run(&event), run(&before.events[0]), "another run of the broker");
    }
    // A cursor in the middle, of a run that has ended.
    let after = before.events[1].cursor.clone();
    let rest = read(&broker, api::WatchEventsRequest { after, ..request(false) }).await;
    let rest: Vec<u64> = rest.events.iter().map(number).collect();
    assert_eq!(rest, [3, 4, 5, 6]);
    broker.stop().await;
}

#[tokio::test]
async fn a_slow_reader_gets_every_event_once() {
    // Several batches, and more than wait for a reader and fit the transport's windows.
    const EVENTS: u64 = 700;
    let broker = Running::start().await;
    let mut slow = watch(&broker, request(true)).await;
    let mut parent = None;
    for generation in 1..=EVENTS {
        parent = Some(put(&broker, "delay", generation, parent.as_ref()).await);
    }
    for sequence in 1..=EVENTS {
        assert_eq!(number(&next_event(&mut slow).await), sequence);
    }
    let all = read(&broker, request(false)).await;
    assert_eq!(all.events.len() as u64, EVENTS);
    broker.stop().await;
}

#[tokio::test]
async fn the_oldest_events_go_and_a_reader_hears_of_it() {
    let broker = Running::start().await;
    let first = put(&broker, "delay", 1, None).await;
    let at_first = read(&broker, request(false)).await.cursor;
    let dir = broker.stop().await;
    fill(&dir.path().join("state/broker.db"), EVENTS_MAX);
    let broker = Running::start_in(dir).await;
    let whole =
        read(&broker, api::WatchEventsRequest { after: at_first.clone(), ..request(false) });
    assert_eq!(whole.await.gap, None, "nothing is missing yet");
    put(&broker, "delay", 2, Some(&first)).await;
    put(&broker, "other", 1, None).await;

    let behind = api::WatchEventsRequest { after: at_first, ..request(false) };
    let found = read(&broker, behind).await;
    let gap = found.gap.expect("events are missing");
    assert_eq!((gap.reason(), gap.after, gap.resumes_after), (Reason::Pruned, 1, 2));
    assert_eq!(found.events.len() as u64, EVENTS_MAX);
    assert_eq!(number(&found.events[0]), 3);
    assert_eq!(number(found.events.last().expect("the newest")), EVENTS_MAX + 2);
    // Whoever asks for what there is misses nothing; of another group as little.
    assert_eq!(read(&broker, request(false)).await.gap, None);
    broker.stop().await;
}

/// Adds events up to this number, as a long life would.
fn fill(database: &Path, up_to: u64) {
    let connection = when_closed(database);
    let up_to = i64::try_from(up_to).expect("small");
    connection
        .execute(
            "WITH RECURSIVE n (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < ?2)
             INSERT INTO events SELECT ?1, 'eu-central-1', n, 'run', 1, NULL, NULL, NULL, NULL,
                                       'phase', '', 'message', '' FROM n",
            rusqlite::params![ACCOUNT, up_to],
        )
        .expect("filled");
}

#[tokio::test]
async fn another_database_or_an_older_copy_is_noticed() {
    let broker = Running::start().await;
    let first = put(&broker, "delay", 1, None).await;
    let second = put(&broker, "delay", 2, Some(&first)).await;
    let dir = broker.stop().await;
    let database = dir.path().join("state/broker.db");
    let copy = dir.path().join("copy.db");
    drop(when_closed(&database));
    std::fs::copy(&database, &copy).expect("a backup");

    // Two more, by a run that the backup knows nothing of.
    let broker = Running::start_in(dir).await;
    let third = put(&broker, "delay", 3, Some(&second)).await;
    put(&broker, "delay", 4, Some(&third)).await;
    let seen = read(&broker, request(false)).await.cursor;
    assert_eq!(seen.as_ref().expect("a cursor").sequence, 4);
    let dir = broker.stop().await;
    drop(when_closed(&database));
    std::fs::copy(&copy, &database).expect("put back");
    let broker = Running::start_in(dir).await;
    let behind = || api::WatchEventsRequest { after: seen.clone(), ..request(false) };
    let gap = read(&broker, behind()).await.gap.expect("the last events are gone");
    assert_eq!((gap.reason(), gap.after), (Reason::OlderLog, 4));

    // Also when it has grown past the cursor meanwhile, and then all that is new is shown.
    for name in ["a", "b", "c"] {
        put(&broker, name, 1, None).await;
    }
    let found = read(&broker, behind()).await;
    let gap = found.gap.expect("it is another history");
    assert_eq!((gap.reason(), gap.after), (Reason::OlderLog, 4));
    let groups: Vec<&str> = found.events.iter().map(|event| event.group.as_str()).collect();
    assert!(groups.ends_with(&["a", "b", "c"]), "{groups:?}");

    // A database that was made anew.
    let dir = broker.stop().await;
    drop(when_closed(&database));
    std::fs::remove_file(&database).expect("removed");
    let broker = Running::start_in(dir).await;
    put(&broker, "new", 1, None).await;
    let found = read(&broker, behind()).await;
    assert_eq!(found.gap.expect("another log").reason(), Reason::OtherLog);
    assert_eq!(found.events.len(), 1);
    broker.stop().await;
}

#[tokio::test]
async fn what_was_in_common_with_an_older_copy_is_not_shown_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (path, copy) = (dir.path().join("broker.db"), dir.path().join("copy.db"));
    let put = async |store: &Store, name: &str| {
        let order = order(name, 1, None);
        store.put_order(order.clone(), order.into_envelope(), NOW).await.expect("stored");
    };
    let plane = data_plane(ACCOUNT);
    let store = Store::open(&path, NOW).expect("opens");
    put(&store, "a").await;
    put(&store, "b").await;
    // A backup that is taken while the broker runs.
    backup(store, &path, &copy).await;
    let store = Store::open(&copy, NOW).expect("opens");
    put(&store, "c").await;
    let run = |batch: &outstation_broker::store::events::Batch| batch.events[0].run.clone();
    let all = store.events(plane.clone(), Filter::default(), After::Nothing).await.expect("read");
    // The reader went on with the first run up to number 5.
    let cursor = Cursor { log: all.reached.log.clone(), run: run(&all), sequence: 5 };
    let rest = store.events(plane, Filter::default(), After::Cursor(cursor)).await.expect("read");
    assert_eq!(rest.gap.expect("an older copy").resumes_after, 2);
    let sequences: Vec<u64> = rest.events.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, [3]);
}

async fn backup(store: Store, from: &Path, to: &Path) {
    drop(store);
    let to = to.to_str().expect("UTF-8");
    when_closed(from).execute("VACUUM INTO ?1", [to]).expect("copied");
}

/// A database that its store has let go of, in one file: the store's thread ends some time after
/// the last handle.
fn when_closed(database: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(database).expect("open");
    connection.busy_timeout(std::time::Duration::from_secs(60)).expect("a timeout");
    connection.pragma_update(None, "journal_mode", "DELETE").expect("nobody else has it");
    connection
}

/// `kind group generation agent`.
async fn log(store: &Store) -> Vec<String> {
    let batch = store.events(data_plane(ACCOUNT), Filter::default(), After::Nothing).await;
    batch
        .expect("read")
        .events
        .iter()
        .map(|event| {
            let group = event.group.as_ref().map_or("-", |group| group.as_str());
            let agent = event.agent.as_ref().map_or("-", |agent| agent.as_str());
            let generation = event.generation.map_or(0, |generation| generation.0);
            format!("{} {group} {generation} {agent}", event.kind)
        })
        .collect()
}

#[tokio::test]
async fn a_database_of_schema_1_is_taken_over() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("broker.db");
    let first = order("delay", 1, None).into_envelope();
    let second = order("delay", 2, Some(&first)).into_envelope();
    let answers = format!(
        r#"{{"accepted":[1,"{first}"],
             "refused":[2,"{second}",{{"rule":"guardrail","message":"90 nodes","hint":"ask"}}],
             "converged":[1,"{observed}"],
             "status":{{"phase":"READY","desired_nodes":3,"observed_nodes":3,"ready_nodes":3,
                       "reason":"3 of 3 nodes ready","phase_since_unix_secs":1,
                       "held":[{{"generation":1,"rule":"pause","message":"pause","hint":"ask"}}],
                       "drift":[],"nodes":[]}}}}"#,
        first = first.digest(),
        second = second.digest(),
        observed = Digest::of(b"observed"),
    );
    {
        let old = rusqlite::Connection::open(&path).expect("open");
        old.execute_batch(include_str!("schema_1.sql")).expect("schema 1");
        for (generation, envelope) in [(1, &first), (2, &second)] {
            old.execute(
                "INSERT INTO orders VALUES (?1, 'eu-central-1', 'delay', ?2, ?3, ?4, 500)",
                rusqlite::params![
                    ACCOUNT,
                    generation,
                    envelope.digest().as_bytes(),
                    envelope.to_json()
                ],
            )
            .expect("an order");
        }
        old.execute(
            "INSERT INTO answers VALUES (?1, 'eu-central-1', 'delay', ?2, 501, 502, 503, 504)",
            rusqlite::params![ACCOUNT, answers],
        )
        .expect("answers");
        old.execute(
            "INSERT INTO agents VALUES ('a-1', ?1, 'eu-central-1', 400, NULL, NULL, '0.1', 1, 450)",
            [ACCOUNT],
        )
        .expect("an agent");
        old.pragma_update(None, "user_version", 1).expect("the version");
    }

    let plane = data_plane(ACCOUNT);
    let store = Store::open(&path, NOW).expect("it is taken over");
    let record = store.group(plane.clone(), group("delay")).await.expect("read").expect("there");
    assert_eq!((record.generation, record.envelope), (Generation(2), second));
    assert_eq!(record.accepted_order, Some((first, 500)));
    assert_eq!(record.answered_at.converged, Some(503));
    assert_eq!(record.held_since_unix_secs, [504]);
    // What was answered before there was a log is no news; that the agent is gone is.
    assert_eq!(log(&store).await, ["agent_disconnected - 0 a-1"]);
    let agent = AgentId::try_from("a-1").expect("an id");
    let again = record.answers.status.clone().expect("a status");
    let mut other = again.clone();
    other.phase = GroupPhase::Degraded;
    for status in [again, other] {
        let report = Report { group: group("delay"), answer: Answer::Status(status) };
        store.record(plane.clone(), agent.clone(), report, NOW).await.expect("recorded");
    }
    assert_eq!(log(&store).await, ["agent_disconnected - 0 a-1", "phase delay 1 a-1"]);
    drop(store);

    // Opened again it is what it is by now: the same log, another run.
    let reached = |batch: outstation_broker::store::events::Batch| batch.reached;
    let store = Store::open(&path, NOW).expect("opens");
    let before = reached(
        store.events(plane.clone(), Filter::default(), After::Nothing).await.expect("read"),
    );
    drop(store);
    let store = Store::open(&path, NOW).expect("opens");
    let after =
        reached(store.events(plane, Filter::default(), After::Nothing).await.expect("read"));
    assert_eq!(before, after);
}

#[tokio::test]
async fn agents_come_and_go_and_forget() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("broker.db");
    let plane = data_plane(ACCOUNT);
    let agent = AgentId::try_from("a-1").expect("an id");
    let token = JoinToken::generate();
    let store = Store::open(&path, NOW).expect("opens");
    store.add_token(&token, plane.clone(), NOW + 60, NOW).await.expect("added");
    for _ in 0..2 {
        let key = Digest::of(b"key");
        let admitted = store.admit(token.clone(), plane.clone(), key, agent.clone(), NOW).await;
        admitted.expect("an answer").expect("admitted");
    }
    let thief = Digest::of(b"thief");
    let refused = store.admit(token, plane.clone(), thief, agent.clone(), NOW).await;
    refused.expect("an answer").expect_err("used");
    store.connected(agent.clone(), "1.0".into(), NOW).await.expect("written");
    store
        .disconnected(data_plane(ACCOUNT), agent.clone(), "silent".into(), NOW)
        .await
        .expect("written");
    // Once is enough.
    store
        .disconnected(data_plane(ACCOUNT), agent.clone(), "silent".into(), NOW)
        .await
        .expect("written");
    store.connected(agent.clone(), "1.0".into(), NOW).await.expect("written");

    let digest = order("delay", 1, None).into_envelope().digest();
    for name in ["delay", "stray"] {
        let answer = Answer::Accepted { generation: Generation(1), digest };
        let report = Report { group: group(name), answer };
        store.record(plane.clone(), agent.clone(), report, NOW).await.expect("recorded");
    }
    let order = order("delay", 1, None);
    store.put_order(order.clone(), order.clone().into_envelope(), NOW).await.expect("stored");
    for _ in 0..2 {
        let nothing = Reports::new();
        store.settle(plane.clone(), agent.clone(), nothing, NOW).await.expect("settled");
    }
    let parent = Some(order.into_envelope());
    let lost = crate::harness::order("lost", 7, parent.as_ref());
    for taken in [true, false] {
        let envelope = lost.clone().into_envelope();
        let done = store.take_over(lost.clone(), envelope, NOW).await.expect("an answer");
        assert_eq!(done, taken);
    }
    store.alive(NOW + 3).await.expect("written");
    drop(store);
    let store = Store::open(&path, NOW + 5).expect("opens, as after a kill");
    let gone = store.agent(agent.clone()).await.expect("read").expect("enrolled");
    assert_eq!((gone.connected, gone.since_unix_secs), (false, NOW + 3), "no later than it ran");
    assert_eq!(
        log(&store).await,
        [
            "agent_enrolled - 0 a-1",
            "agent_enrolled - 0 a-1",
            "agent_connected - 0 a-1",
            "agent_disconnected - 0 a-1",
            "agent_connected - 0 a-1",
            "accepted delay 1 a-1",
            "accepted stray 1 a-1",
            "order_put delay 1 -",
            "forgotten delay 1 a-1",
            "forgotten stray 1 a-1",
            "order_taken_over lost 7 -",
            "agent_disconnected - 0 a-1",
        ]
    );
    let batch = store.events(plane, Filter::default(), After::Nothing).await.expect("read");
    let messages: Vec<&str> = batch.events.iter().map(|event| event.message.as_str()).collect();
    assert_eq!(messages[3], "silent");
    assert_eq!(messages[11], "the broker was killed, 2 s or less before this start");
    drop(store);
    // Of the group that has no order here nothing is kept.
    let connection = when_closed(&path);
    let told: Vec<String> = connection
        .prepare("SELECT name FROM told")
        .expect("a statement")
        .query_map([], |row| row.get(0))
        .expect("rows")
        .collect::<Result<_, _>>()
        .expect("names");
    assert_eq!(told, ["delay"]);
}
