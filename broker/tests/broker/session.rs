//! Control sessions, driven by an agent made of raw frames.

use std::time::Duration;

use outstation_api::admin as api;
use outstation_broker::ca::{AGENT_LIFETIME, Ca, Csr};
use outstation_broker::clock;
use outstation_broker::store::Store;
use outstation_broker::store::tokens::JoinToken;
use outstation_protocol::session::{Answer, DesiredSet, Report, Reports, reports_hash, set_hash};
use outstation_protocol::status::{GroupPhase, GroupStatus};
use outstation_protocol::v1::{self, Hello, SetEntry, ToAgent, ToBroker};
use outstation_protocol::{Digest, Generation, TenantId};
use rcgen::{CertificateParams, KeyPair};

use crate::harness::{
    ACCOUNT, Enrolled, Running, Stream, api_data_plane, data_plane, dial, group, order, soon,
};

fn status() -> GroupStatus {
    GroupStatus {
        phase: GroupPhase::Ready,
        desired_nodes: 3,
        observed_nodes: 3,
        ready_nodes: 3,
        reason: "as declared".into(),
        phase_since_unix_secs: 1_800_000_000,
        held: vec![],
        drift: vec![],
        nodes: vec![],
    }
}

async fn get(broker: &Running, name: &str) -> api::Group {
    let request = api::GetGroupRequest { data_plane: api_data_plane(), name: name.into() };
    broker.client().await.get_group(request).await.expect("the group").into_inner()
}

async fn put(broker: &Running, order: outstation_protocol::order::Order) {
    let envelope = order.into_envelope().to_json().into();
    let request = api::PutOrderRequest { envelope };
    broker.client().await.put_order(request).await.expect("put");
}

async fn agents(broker: &Running) -> Vec<api::Agent> {
    let answer = broker.client().await.list_agents(api::ListAgentsRequest {}).await;
    answer.expect("a list").into_inner().agents
}

fn goodbye(message: Option<ToAgent>) -> String {
    match message {
        Some(ToAgent::Goodbye { reason, .. }) => reason,
        other => panic!("a goodbye was expected, not {other:?}"),
    }
}

/// Put back from a backup, the database lacks what the account has long accepted.
#[tokio::test]
async fn a_database_that_is_behind_takes_over_what_the_account_has_accepted() {
    let broker = Running::start().await;
    let agent = broker.agent().await;
    let first = order("delay", 1, None).into_envelope();
    let second = order("delay", 2, Some(&first)).into_envelope();
    let elsewhere = order("other", 7, Some(&second)).into_envelope();
    put(&broker, order("delay", 1, None)).await;

    let mut stream = agent.connect(&broker).await;
    for (name, generation, envelope) in
        [("delay", 2, &second), ("delay", 3, &second), ("other", 7, &elsewhere)]
    {
        let (group, generation, digest) = (group(name), Generation(generation), envelope.digest());
        stream.send(&ToBroker::Accepted { group: group.clone(), generation, digest }).await;
        let asked = stream.next().await;
        assert_eq!(asked, Some(ToAgent::HandBack(SetEntry { group, generation, digest })));
    }
    // The first is what it was said to be. The same under a higher number is not, and changes nothing.
    for envelope in [&second, &second, &elsewhere] {
        stream.send(&ToBroker::Order { envelope: envelope.clone() }).await;
    }
    loop {
        let Some(ToAgent::DesiredSet { entries }) = stream.next().await else {
            panic!("expected a set");
        };
        let heads: Vec<_> = entries.iter().map(|e| (e.group.as_str(), e.generation.0)).collect();
        if heads.len() == 2 {
            assert_eq!(heads, [("delay", 2), ("other", 7)]);
            break;
        }
    }
    assert_eq!(get(&broker, "delay").await.envelope, second.to_json());

    // And the next order follows it.
    put(&broker, order("delay", 3, Some(&second))).await;
    assert_eq!(get(&broker, "delay").await.generation, 3);
}

#[tokio::test]
async fn an_order_goes_down_its_answers_come_up_and_a_restart_keeps_both() {
    let broker = Running::start().await;
    let agent = broker.agent().await;
    let first = order("delay", 1, None);
    let envelope = first.clone().into_envelope();
    let digest = envelope.digest();
    let entry = SetEntry { group: group("delay"), generation: Generation(1), digest };
    let set = DesiredSet::from([(group("delay"), (Generation(1), digest))]);

    // Connected with nothing to do; the order that is put then is announced by itself.
    let mut stream = agent.connect(&broker).await;
    put(&broker, first).await;
    let announced = stream.next().await;
    assert_eq!(announced, Some(ToAgent::DesiredSet { entries: vec![entry.clone()] }));
    stream.send(&ToBroker::Fetch(entry.clone())).await;
    assert_eq!(stream.next().await, Some(ToAgent::Order { envelope: envelope.clone() }));

    // Whatever is answered is seen by a watcher, in the order in which it came.
    let watch = api::WatchGroupsRequest { data_plane: api_data_plane(), name: "delay".into() };
    let mut client = broker.client().await;
    let mut watch = client.watch_groups(watch).await.expect("a watch").into_inner();
    let observed = Digest::of(b"observed");
    let generation = Generation(1);
    for message in [
        ToBroker::Accepted { group: group("delay"), generation, digest },
        ToBroker::Converged { group: group("delay"), generation, observed },
        ToBroker::Status { group: group("delay"), status: status() },
    ] {
        stream.send(&message).await;
    }
    loop {
        let seen = soon("the status", watch.message()).await.expect("good").expect("a group");
        if seen.status.is_some() {
            assert!(seen.accepted.is_some() && seen.converged.is_some());
            break;
        }
    }
    let before = get(&broker, "delay").await;
    let accepted = before.accepted.as_ref().expect("accepted");
    assert_eq!((accepted.generation, &accepted.digest), (1, &digest.to_string()));
    let converged = before.converged.as_ref().expect("converged");
    assert_eq!((converged.generation, &converged.observed), (1, &observed.to_string()));
    assert_eq!(before.status.as_ref().expect("a status").phase, "READY");

    let connected = agents(&broker).await;
    assert_eq!(connected[0].id, agent.id.as_str());
    assert!(connected[0].connected && connected[0].release == "test");

    // The broker restarts: it says goodbye, and knows all it knew.
    let stopping = tokio::spawn(broker.stop());
    assert!(goodbye(stream.next().await).contains("restarting"));
    let broker = Running::start_in(stopping.await.expect("no panic")).await;
    assert_eq!(get(&broker, "delay").await, before);
    assert!(!agents(&broker).await[0].connected);

    // The agent comes back with the same answers: nothing is asked of it again.
    let mut reports = Reports::new();
    for answer in [
        Answer::Accepted { generation, digest },
        Answer::Converged { generation, observed },
        Answer::Status(status()),
    ] {
        Report { group: group("delay"), answer }.record(&mut reports);
    }
    let mut stream = agent.connect(&broker).await;
    let reports_hash = reports_hash(&reports);
    stream.send(&ToBroker::Heartbeat { reports_hash }).await;
    let heartbeat = ToAgent::Heartbeat { set_hash: set_hash(&set) };
    assert_eq!(stream.next().await, Some(heartbeat.clone()));
    stream.send(&ToBroker::SendSet).await;
    let whole = ToAgent::DesiredSet { entries: vec![entry] };
    assert_eq!(stream.next().await, Some(whole), "no SendReports in between");
    // With other answers, all of them are.
    stream.send(&ToBroker::Heartbeat { reports_hash: Digest::of(b"other") }).await;
    assert_eq!(stream.next().await, Some(heartbeat));
    assert_eq!(stream.next().await, Some(ToAgent::SendReports));
    broker.stop().await;
}

#[tokio::test]
async fn a_newer_session_of_the_same_agent_takes_over() {
    let broker = Running::start().await;
    let agent = broker.agent().await;
    let mut older = agent.connect(&broker).await;
    let mut newer = agent.connect(&broker).await;
    assert!(goodbye(older.next().await).contains("newer session"));
    assert_eq!(older.next::<ToAgent>().await, None);

    // It is the newer one that is told, and the agent is connected all along.
    put(&broker, order("delay", 1, None)).await;
    assert!(matches!(newer.next().await, Some(ToAgent::DesiredSet { .. })));
    assert!(agents(&broker).await[0].connected);

    newer.connection.close(0u8.into(), b"");
    soon("the agent's being seen as gone", async {
        while agents(&broker).await[0].connected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    broker.stop().await;
}

#[tokio::test]
async fn who_does_not_belong_is_told_why_or_not_let_in() {
    let broker = Running::start().await;
    let agent = broker.agent().await;

    // Without a certificate: not a word.
    let refused = match dial(&broker, v1::ALPN_CONTROL, None).await {
        Err(error) => error,
        Ok(connection) => soon("the refusal", connection.closed()).await,
    };
    assert!(refused.to_string().contains("needs a client certificate"), "{refused}");

    // With a certificate of another root: TLS refuses.
    let key = KeyPair::generate().expect("a key");
    let forged = CertificateParams::default().self_signed(&key).expect("a certificate");
    let forged = Enrolled::new(key, vec![forged.der().to_vec()], agent.identity.clone());
    let refused = match dial(&broker, v1::ALPN_CONTROL, Some(&forged)).await {
        Err(error) => error,
        Ok(connection) => soon("the refusal", connection.closed()).await,
    };
    assert!(!refused.to_string().contains("goodbye"), "{refused}");

    // Another ALPN than the two there are.
    assert!(dial(&broker, b"outstation-control/9", Some(&agent)).await.is_err());

    // With a hello that is not right.
    let wrong_version = ToBroker::Hello(Hello {
        versions: vec![9],
        features: vec![],
        agent: agent.id.clone(),
        data_plane: data_plane(ACCOUNT),
        release: "test".into(),
    });
    for (hello, wanted) in
        [(agent.hello("999999999999"), "its certificate says"), (wrong_version, "speaks version 1")]
    {
        let connection = dial(&broker, v1::ALPN_CONTROL, Some(&agent)).await.expect("dial");
        let mut stream = Stream::open(connection).await;
        stream.send(&hello).await;
        let reason = goodbye(stream.next().await);
        assert!(reason.contains(wanted), "{reason:?} should say {wanted:?}");
        assert_eq!(stream.next::<ToAgent>().await, None);
    }
    assert!(!agents(&broker).await[0].connected, "none of those was a session");

    // With a good certificate of a broker that lost its database.
    let dir = broker.stop().await;
    for file in ["broker.db", "broker.db-wal"] {
        let _ = std::fs::remove_file(dir.path().join("state").join(file));
    }
    let broker = Running::start_in(dir).await;
    let connection = dial(&broker, v1::ALPN_CONTROL, Some(&agent)).await.expect("dial");
    let mut stream = Stream::open(connection).await;
    stream.send(&agent.hello(ACCOUNT)).await;
    assert!(goodbye(stream.next().await).contains("is not enrolled here"));
    broker.stop().await;
}

#[tokio::test]
async fn a_session_ends_with_its_certificate() {
    let broker = Running::start().await;
    let agent = broker.agent().await;
    // Longer on a machine that is too slow for the shorter one.
    for lifetime_secs in [3, 12, 48] {
        let agent = expiring(&broker, &agent, lifetime_secs).await;
        let Ok(connection) = dial(&broker, v1::ALPN_CONTROL, Some(&agent)).await else {
            continue;
        };
        let Ok((send, receive)) = connection.open_bi().await else {
            continue;
        };
        let mut reader = outstation_broker::frames::FrameReader::new(receive);
        let mut writer = outstation_broker::frames::FrameWriter::new(send);
        if writer.send(&agent.hello(ACCOUNT)).await.is_err() {
            continue;
        }
        let Ok(Some(ToAgent::Welcome(_))) = soon("a welcome", reader.next()).await else {
            continue;
        };
        let next = soon("the end", reader.next()).await.expect("a message");
        assert!(goodbye(next).contains("expired"));
        broker.stop().await;
        return;
    }
    panic!("no session came up within 48 s");
}

/// A certificate for the same agent that ends soon: made seven days ago, as it were.
async fn expiring(broker: &Running, agent: &Enrolled, lifetime_secs: i64) -> Enrolled {
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(&elsewhere.path().join("broker.db"), 0).expect("a store");
    let token = JoinToken::generate();
    store.add_token(&token, data_plane(ACCOUNT), 2, 1).await.expect("added");
    let key = KeyPair::from_pem(&agent.key.serialize_pem()).expect("a key");
    let request = CertificateParams::default().serialize_request(&key).expect("a request");
    let csr = Csr::verify(request.der()).expect("a good request");
    let admitted = store
        .admit(token, data_plane(ACCOUNT), *csr.key(), agent.id.clone(), 1)
        .await
        .expect("an answer")
        .expect("admitted");
    let tenant = TenantId::try_from("dev").expect("a tenant");
    let ca = Ca::open(&broker.state(), tenant, clock::utc()).expect("the broker's own CA");
    let made = clock::utc() - AGENT_LIFETIME + Duration::from_secs(lifetime_secs as u64);
    let issued = ca.issue(&admitted, &csr, made).expect("a certificate");
    let chain = issued.chain.iter().map(|certificate| certificate.to_vec()).collect();
    Enrolled::new(key, chain, issued.identity.to_string())
}
