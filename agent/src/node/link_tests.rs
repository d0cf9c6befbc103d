//! The link against an account agent of the test's own, over real QUIC.

use std::sync::Mutex;

use outstation_protocol::evidence::ExpectedCaller;
use outstation_protocol::status::NodePhase;
use outstation_protocol::v1::Artifacts;
use outstation_protocol::{Digest, Generation, GroupName};

use super::*;
use crate::store::AccountStore;
use crate::trust::DataPlaneCa;
use crate::trust::enroll::Enroller;
use crate::trust::testing::{INSTANCE, StubHttp, audience, identity_xml, stub_imds, within};
use crate::trust::tls::{Peer, node_link_server, peer};
use outstation_sts::{Limits, StsVerifier};

struct AccountAgent {
    store: tempfile::TempDir,
    sts: StubHttp,
    imds: StubHttp,
    endpoint: quinn::Endpoint,
    enroller: Enroller,
}

/// One session, as the account agent sees it.
struct Session {
    connection: quinn::Connection,
    send: quinn::SendStream,
    receive: FrameReader<quinn::RecvStream>,
}

impl AccountAgent {
    async fn start() -> AccountAgent {
        let store = tempfile::tempdir().expect("a folder");
        let sts = StubHttp::start(|_| ("200 OK", identity_xml(INSTANCE))).await;
        let imds = stub_imds(Arc::new(Mutex::new("InService"))).await;
        let ca = DataPlaneCa::open_or_create(
            &AccountStore::folder(store.path()),
            &audience().tenant,
            clock::unix_secs(),
        );
        let ca = Arc::new(ca.expect("makes one"));
        let config = node_link_server(ca.clone()).expect("a configuration");
        let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().expect("an address"));
        let expected = ExpectedCaller {
            region: audience().region,
            account: audience().account,
            role: Some("outstation-node".into()),
            role_id: Some("AROAABCDEFGHIJKLMNOPQ".into()),
        };
        let sts_endpoint = StsEndpoint::configured(&sts.url).expect("an url");
        let verifier = StsVerifier::new(Some(sts_endpoint), Limits::NODE_LINK);
        let enroller = Enroller::new(ca, verifier, audience(), expected);
        AccountAgent { store, sts, imds, endpoint: endpoint.expect("a port"), enroller }
    }

    fn settings(&self) -> LinkSettings {
        LinkSettings {
            account_agent: self.endpoint.local_addr().expect("bound").to_string(),
            bind: "127.0.0.1".parse().expect("an address"),
            store: AccountStore::folder(self.store.path()),
            audience: audience(),
            sts: StsEndpoint::configured(&self.sts.url).expect("an url"),
            instance: INSTANCE.try_into().expect("valid"),
        }
    }

    /// A node's link, with the ends that the node holds.
    fn link(&self) -> (watch::Sender<Outbox>, mpsc::Receiver<Event>) {
        let (outbox, to_send) = watch::channel(Outbox::default());
        let (events, inbox) = mpsc::channel(8);
        let imds = Arc::new(Imds::new(&self.imds.url));
        let link = Link::new(self.settings(), imds, to_send, events).expect("a port");
        tokio::spawn(link.run());
        (outbox, inbox)
    }

    /// Enrolls whoever asks, until a session is opened and has said hello.
    async fn session(&self) -> Session {
        loop {
            let incoming = self.endpoint.accept().await.expect("open");
            let connection = incoming.await.expect("a handshake");
            match peer(&connection).expect("one of ours") {
                Peer::Enrolling { .. } => {
                    let view = |_, _| async { Some(GroupName::try_from("delay").expect("valid")) };
                    self.enroller.answer(&connection, view).await.expect("issued");
                }
                Peer::Node { certificate, .. } => {
                    assert_eq!(certificate.id.instance.as_str(), INSTANCE);
                    let (send, receive) = connection.accept_bi().await.expect("a stream");
                    let mut receive = FrameReader::new(receive);
                    match receive.next::<ToAccountAgent>().await.expect("a frame") {
                        Some(ToAccountAgent::Hello(hello)) => {
                            assert_eq!(hello.group.as_str(), "delay");
                        }
                        other => panic!("{other:?}"),
                    }
                    return Session { connection, send, receive };
                }
            }
        }
    }

    fn enrollments(&self) -> usize {
        self.sts.asked().len()
    }
}

impl Session {
    async fn say(&mut self, message: ToNode) {
        write_frame(&mut self.send, &message).await.expect("sent");
    }

    async fn welcome(&mut self, generation: u64) {
        let artifacts = artifacts(generation);
        self.say(ToNode::Welcome { version: VERSION, heartbeat_secs: 1, artifacts }).await;
    }

    async fn hear(&mut self) -> ToAccountAgent {
        let heard = within("a message", self.receive.next::<ToAccountAgent>()).await;
        heard.expect("a frame").expect("not the end")
    }
}

fn artifacts(generation: u64) -> Artifacts {
    let digest = Digest::of(b"x");
    let generation = Generation(generation);
    Artifacts { generation, environment: digest, bundle: digest, options: vec![] }
}

fn state(phase: NodePhase) -> NodeState {
    NodeState { phase, endpoint: None, artifacts: None, reason: None }
}

#[tokio::test]
async fn a_session_carries_both_sides_words() {
    let account_agent = AccountAgent::start().await;
    let (outbox, mut inbox) = account_agent.link();
    outbox.send_modify(|outbox| outbox.state = Some(state(NodePhase::Warming)));
    let mut session = within("a session", account_agent.session()).await;
    session.welcome(1).await;
    assert_eq!(within("told", inbox.recv()).await, Some(Event::Target(artifacts(1))));
    let warming = ToAccountAgent::State(state(NodePhase::Warming));
    assert_eq!(session.hear().await, warming);
    // As the heartbeat.
    assert_eq!(session.hear().await, warming);
    outbox.send_modify(|outbox| outbox.state = Some(state(NodePhase::Ready)));
    let ready = ToAccountAgent::State(state(NodePhase::Ready));
    while session.hear().await != ready {}

    session.say(ToNode::Artifacts(artifacts(2))).await;
    session.say(ToNode::Withdrawn).await;
    assert_eq!(within("told", inbox.recv()).await, Some(Event::Target(artifacts(2))));
    assert_eq!(within("told", inbox.recv()).await, Some(Event::Withdrawn));

    let gone = Outbox { state: Some(state(NodePhase::Gone)), drained: true };
    outbox.send_replace(gone);
    while session.hear().await != ToAccountAgent::Drained {}
    // Repeated, in case that the first one was lost.
    while session.hear().await != ToAccountAgent::Drained {}
}

#[tokio::test]
async fn a_lost_session_is_opened_again_with_the_same_certificate() {
    let account_agent = AccountAgent::start().await;
    let (_outbox, mut inbox) = account_agent.link();
    for generation in 1..4 {
        let mut session = within("a session", account_agent.session()).await;
        session.welcome(generation).await;
        let told = within("told", inbox.recv()).await;
        assert_eq!(told, Some(Event::Target(artifacts(generation))));
        session.connection.close(0u8.into(), b"restart");
    }
    assert_eq!(account_agent.enrollments(), 1);
}

#[tokio::test]
async fn whoever_is_sent_away_at_the_door_comes_back_with_a_new_certificate() {
    let account_agent = AccountAgent::start().await;
    let (_outbox, mut inbox) = account_agent.link();
    let mut session = within("a session", account_agent.session()).await;
    session.say(ToNode::Goodbye { reason: "unknown".into(), retry_after_secs: 0 }).await;
    let mut session = within("another session", account_agent.session()).await;
    session.welcome(1).await;
    assert_eq!(within("told", inbox.recv()).await, Some(Event::Target(artifacts(1))));
    assert_eq!(account_agent.enrollments(), 2);
}

#[tokio::test]
async fn a_node_that_boots_before_its_account_agent_finds_it_later() {
    let account_agent = AccountAgent::start().await;
    // The store has no roots yet.
    let (trust, hidden) =
        (account_agent.store.path().join("trust"), account_agent.store.path().join("later"));
    std::fs::rename(&trust, &hidden).expect("moves");
    let (_outbox, mut inbox) = account_agent.link();
    while account_agent.imds.asked().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(inbox.try_recv().is_err());
    std::fs::rename(&hidden, &trust).expect("moves");
    let mut session = within("a session", account_agent.session()).await;
    session.welcome(1).await;
    assert_eq!(within("told", inbox.recv()).await, Some(Event::Target(artifacts(1))));
}

#[test]
fn waits_are_bounded_whatever_the_account_agent_asks() {
    match goodbye("x".into(), u32::MAX) {
        End::Goodbye { retry_after, .. } => assert_eq!(retry_after, RETRY_AFTER_MAX),
        End::Renewed(_) | End::Stopped => panic!("a goodbye"),
    }
    for failures in [0, 1, 7, 8, 100, u32::MAX] {
        let bound = BACKOFF_FIRST.as_secs_f64() * 2f64.powi(failures.min(16) as i32);
        assert!(full_jitter(failures).as_secs_f64() <= bound.min(30.0));
    }
}
