//! Enrollment and the session's TLS over real QUIC, with a stub in STS's place that answers what
//! the test says and remembers what it was asked.

use outstation_protocol::evidence::ExpectedCaller;
use outstation_protocol::v1::{ToAccountAgent, ToNode};
use outstation_sts::Limits;

use super::*;
use crate::store::AccountStore;
use crate::trust::ca::SERVER_NAME;
use crate::trust::testing::{INSTANCE, StubHttp, audience, identity_xml};
use crate::trust::tls::{self, Peer, node_link_client, node_link_server};

struct World {
    _store: tempfile::TempDir,
    ca: Arc<DataPlaneCa>,
    server: quinn::Endpoint,
    client: quinn::Endpoint,
    sts: StubHttp,
    endpoint: StsEndpoint,
}

impl World {
    async fn new(status: &'static str, body: String) -> World {
        let store = tempfile::tempdir().expect("a folder");
        let ca = DataPlaneCa::open_or_create(
            &AccountStore::folder(store.path()),
            &audience().tenant,
            clock::unix_secs(),
        );
        let ca = Arc::new(ca.expect("makes one"));
        let config = node_link_server(ca.clone()).expect("a configuration");
        let any = "127.0.0.1:0".parse().expect("an address");
        let server = quinn::Endpoint::server(config, any).expect("a free port");
        let client = quinn::Endpoint::client(any).expect("a free port");
        let sts = StubHttp::start(move |_| (status, body.clone())).await;
        let endpoint = StsEndpoint::configured(&sts.url).expect("an url");
        World { _store: store, ca, server, client, sts, endpoint }
    }

    fn enroller(&self) -> Enroller {
        let expected = ExpectedCaller {
            region: audience().region,
            account: audience().account,
            role: Some("outstation-node".into()),
            role_id: None,
        };
        let verifier = StsVerifier::new(Some(self.endpoint.clone()), Limits::NODE_LINK);
        Enroller::new(self.ca.clone(), verifier, audience(), expected)
    }

    async fn connect(&self, identity: Option<&NodeIdentity>) -> quinn::Connection {
        let roots = [self.ca.root().clone()];
        let config = node_link_client(&roots, identity).expect("a configuration");
        let address = self.server.local_addr().expect("bound");
        let connecting = self.client.connect_with(config, address, SERVER_NAME);
        connecting.expect("a valid name").await.expect("connects")
    }

    async fn accept(&self) -> quinn::Connection {
        self.server.accept().await.expect("open").await.expect("connects")
    }

    /// One whole enrollment: what the client got and what the server thought of it.
    async fn enroll(
        &self,
        known: Option<&str>,
    ) -> (Result<NodeIdentity, EnrollError>, Result<NodeId, Denial>) {
        let credentials = Credentials::new(
            "ASIAABCDEFGHIJ234567",
            "secret",
            Some("token".to_owned()),
            None,
            "test",
        );
        let (audience, instance) = (audience(), INSTANCE.try_into().expect("valid"));
        let applicant = Applicant {
            credentials: &credentials,
            audience: &audience,
            sts: &self.endpoint,
            instance: &instance,
            release: "test",
        };
        let enroller = self.enroller();
        let group = known.map(|raw| GroupName::try_from(raw).expect("valid"));
        tokio::join!(async { enroll(&self.connect(None).await, &applicant).await }, async {
            let connection = self.accept().await;
            let peer = tls::peer(&connection).expect("enrolls");
            assert!(matches!(peer, Peer::Enrolling { .. }));
            let view = |instance: InstanceId, address: IpAddr| async move {
                assert_eq!(
                    (instance.as_str(), address.to_string()),
                    (INSTANCE, "127.0.0.1".into())
                );
                group
            };
            enroller.answer(&connection, view).await
        })
    }
}

#[tokio::test]
async fn an_attested_and_known_instance_gets_a_certificate_and_opens_a_session_with_it() {
    let world = World::new("200 OK", identity_xml(INSTANCE)).await;
    let (identity, issued) = world.enroll(Some("delay")).await;
    let identity = identity.expect("enrolled");
    assert_eq!(issued.expect("issued"), identity.id);
    assert_eq!(
        identity.id.to_string(),
        format!("spiffe://dev.outstation/account/123456789012/group/delay/node/{INSTANCE}")
    );
    let lives_secs = identity.not_after_unix_secs - clock::unix_secs();
    assert!(lives_secs <= 3600, "{lives_secs}");
    let asked = world.sts.asked();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].starts_with("POST / HTTP/1.1\r\n"), "{}", asked[0]);
    assert!(asked[0].contains("x-outstation-challenge: "), "{}", asked[0]);

    let (node, account_agent) = tokio::join!(world.connect(Some(&identity)), world.accept());
    let Peer::Node { certificate, .. } = tls::peer(&account_agent).expect("a node") else {
        panic!("a session");
    };
    assert_eq!(certificate.id, identity.id);
    let (mut send, receive) = node.open_bi().await.expect("open");
    write_frame(&mut send, &ToAccountAgent::Drained).await.expect("sent");
    let (mut reply, heard) = account_agent.accept_bi().await.expect("open");
    let heard = FrameReader::new(heard).next::<ToAccountAgent>().await.expect("a frame");
    assert_eq!(heard, Some(ToAccountAgent::Drained));
    write_frame(&mut reply, &ToNode::Withdrawn).await.expect("sent");
    let told = FrameReader::new(receive).next::<ToNode>().await.expect("a frame");
    assert_eq!(told, Some(ToNode::Withdrawn));
}

#[tokio::test]
async fn neither_evidence_nor_the_own_view_is_enough_alone() {
    let honest = || identity_xml(INSTANCE);
    let other_role = honest().replace("outstation-node", "other");
    for (status, body, known, wanted) in [
        ("200 OK", honest(), None, "is in no server group"),
        ("403 Forbidden", honest(), Some("delay"), "status 403"),
        ("302 Found", honest(), Some("delay"), "status 302"),
        ("200 OK", other_role, Some("delay"), "the caller's role is \"other\""),
        ("200 OK", identity_xml("not-an-instance"), Some("delay"), "not named after an instance"),
        ("200 OK", "x".repeat(20_000), Some("delay"), "cannot be received"),
        ("200 OK", "<html></html>".into(), Some("delay"), "not a GetCallerIdentityResponse"),
    ] {
        let world = World::new(status, body).await;
        let (identity, issued) = world.enroll(known).await;
        let denial = issued.expect_err(wanted).to_string();
        assert!(denial.contains(wanted), "{denial}");
        match identity.expect_err(wanted) {
            EnrollError::Denied { reason, hint } => {
                assert_eq!(reason, denial);
                assert!(!hint.is_empty());
            }
            other => panic!("{wanted}: {other}"),
        }
        // A redirect is an answer, not a place to go.
        assert_eq!(world.sts.asked().len(), 1, "{wanted}");
    }
}

#[tokio::test]
async fn a_certificate_for_another_instance_is_not_used() {
    let other = "i-0fffffffffffffff0";
    let world = World::new("200 OK", identity_xml(other)).await;
    let enroller = world.enroller();
    let credentials =
        Credentials::new("ASIAABCDEFGHIJ234567", "secret", Some("t".to_owned()), None, "test");
    let (audience, instance) = (audience(), INSTANCE.try_into().expect("valid"));
    let applicant = Applicant {
        credentials: &credentials,
        audience: &audience,
        sts: &world.endpoint,
        instance: &instance,
        release: "test",
    };
    let (identity, _) =
        tokio::join!(async { enroll(&world.connect(None).await, &applicant).await }, async {
            let view = |_, _| async { Some(GroupName::try_from("delay").expect("valid")) };
            enroller.answer(&world.accept().await, view).await
        });
    assert!(matches!(identity, Err(EnrollError::OtherIdentity { .. })), "{identity:?}");
}

#[tokio::test]
async fn a_session_needs_a_certificate_of_this_account() {
    let world = World::new("200 OK", identity_xml(INSTANCE)).await;
    let other = World::new("200 OK", identity_xml(INSTANCE)).await;
    let foreign = other.enroll(Some("delay")).await.0.expect("enrolled elsewhere");

    // TLS 1.3: the client learns only after its own handshake that it was refused.
    let (refused, accepted) =
        tokio::join!(async { world.connect(Some(&foreign)).await.closed().await }, async {
            world.server.accept().await.expect("open").await
        });
    assert!(accepted.is_err(), "a certificate of another root");
    assert!(matches!(refused, quinn::ConnectionError::ConnectionClosed(_)), "{refused}");
}

#[tokio::test]
async fn another_root_at_the_same_address_is_not_trusted() {
    let world = World::new("200 OK", identity_xml(INSTANCE)).await;
    let other = World::new("200 OK", identity_xml(INSTANCE)).await;
    let config = node_link_client(&[other.ca.root().clone()], None).expect("a configuration");
    let address = world.server.local_addr().expect("bound");
    let connecting = world.client.connect_with(config, address, SERVER_NAME).expect("a valid name");
    let (connected, _) =
        tokio::join!(connecting, async { world.server.accept().await.expect("open").await });
    assert!(connected.is_err());
}
