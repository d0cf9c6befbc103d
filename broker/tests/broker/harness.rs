//! A running broker, an admin client, and an agent made of raw frames.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outstation_api::admin::admin_client::AdminClient;
use outstation_api::admin::{self as api};
use outstation_broker::config::{AdminConfig, Config, LinkConfig, StsConfig};
use outstation_broker::frames::{FrameReader, FrameWriter};
use outstation_broker::{Broker, BrokerError};
use outstation_protocol::frame::Framed;
use outstation_protocol::order::{Intent, Order};
use outstation_protocol::v1::{self, Evidence, FromIssuer, Hello, ToAgent, ToBroker, ToIssuer};
use outstation_protocol::{
    AccountId, AgentId, DataPlane, Envelope, Generation, GroupName, Region, TenantId,
};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Request, Status};

pub const ACCOUNT: &str = "123456789012";

/// Everything that is awaited must come; this only says when to give up.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen"))
}

pub fn data_plane(account: &str) -> DataPlane {
    DataPlane {
        account: AccountId::try_from(account).expect("an account"),
        region: Region::try_from("eu-central-1").expect("a region"),
    }
}

pub fn api_data_plane() -> Option<api::DataPlane> {
    Some(api::DataPlane { account: ACCOUNT.into(), region: "eu-central-1".into() })
}

pub fn group(name: &str) -> GroupName {
    GroupName::try_from(name).expect("a group name")
}

/// The shortest order there is.
pub fn order(name: &str, generation: u64, parent: Option<&Envelope>) -> Order {
    Order {
        tenant: TenantId::try_from("dev").expect("a tenant"),
        data_plane: data_plane(ACCOUNT),
        group: group(name),
        generation: Generation(generation),
        parent: parent.map(Envelope::digest),
        accept_before_unix_secs: 2_000_000_000,
        intent: Intent::Destroy,
    }
}

pub struct Running {
    pub link: SocketAddr,
    pub admin: SocketAddr,
    pub dir: TempDir,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), BrokerError>>,
}

impl Running {
    pub async fn start() -> Running {
        Running::start_in(tempfile::tempdir().expect("a temporary directory")).await
    }

    pub async fn start_in(dir: TempDir) -> Running {
        let any_port = "127.0.0.1:0".parse().expect("an address");
        let config = Config {
            state: dir.path().join("state"),
            tenant: TenantId::try_from("dev").expect("a tenant"),
            link: LinkConfig { listen: any_port },
            admin: AdminConfig { listen: any_port, token_file: dir.path().join("admin.token") },
            data_planes: vec![data_plane(ACCOUNT)],
            sts: StsConfig::default(),
        };
        let broker = Broker::build(config).await.expect("the broker starts");
        let (link, admin) = broker.addresses().expect("its addresses");
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = tokio::spawn(broker.run(async move {
            let _ = stopped.await;
        }));
        Running { link, admin, dir, stop, ended }
    }

    /// Ends the broker as a signal would; its directory remains.
    pub async fn stop(self) -> TempDir {
        let _ = self.stop.send(());
        soon("the broker's end", self.ended).await.expect("no panic").expect("a clean end");
        // The store's thread closes the database when its last user is gone, which is a moment later;
        // who copies the file or puts another in its place must not meet the journal of this one.
        let journal = self.dir.path().join("state/broker.db-wal");
        let closed = async {
            while journal.exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        soon("the database's end", closed).await;
        self.dir
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn root(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.state().join("root.pem")).expect("the root")
    }

    pub async fn channel(&self) -> Channel {
        let root = std::fs::read(self.state().join("root.pem")).expect("the root");
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(root))
            .domain_name("broker.outstation");
        let endpoint = Channel::from_shared(format!("https://{}", self.admin))
            .expect("a URL")
            .tls_config(tls)
            .expect("a TLS configuration");
        soon("a connection to the admin API", endpoint.connect()).await.expect("connect")
    }

    pub async fn client(&self) -> AdminClient<InterceptedService<Channel, Bearer>> {
        let token = std::fs::read_to_string(self.dir.path().join("admin.token")).expect("a token");
        self.client_with(token.trim()).await
    }

    pub async fn client_with(
        &self,
        token: &str,
    ) -> AdminClient<InterceptedService<Channel, Bearer>> {
        AdminClient::with_interceptor(self.channel().await, Bearer(token.to_owned()))
    }

    pub async fn join_token(&self, valid_secs: u32) -> String {
        let request = api::CreateJoinTokenRequest { data_plane: api_data_plane(), valid_secs };
        let answer = self.client().await.create_join_token(request).await;
        answer.expect("a join token").into_inner().token
    }

    /// Enrolls a new agent.
    pub async fn agent(&self) -> Enrolled {
        let token = self.join_token(600).await;
        let key = KeyPair::generate().expect("a key");
        match enroll(self, &token, &key, data_plane(ACCOUNT)).await {
            FromIssuer::Issued { chain, identity } => Enrolled::new(key, chain, identity),
            other => panic!("not enrolled: {other:?}"),
        }
    }
}

#[derive(Clone)]
pub struct Bearer(String);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if !self.0.is_empty() {
            let value: MetadataValue<_> = format!("Bearer {}", self.0).parse().expect("ASCII");
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// Dials, with a client certificate if there is one.
pub async fn dial(
    broker: &Running,
    alpn: &[u8],
    identity: Option<&Enrolled>,
) -> Result<Connection, quinn::ConnectionError> {
    let mut roots = RootCertStore::empty();
    roots.add(broker.root()).expect("the root is a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut tls = match identity {
        Some(Enrolled { key, chain, .. }) => {
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
            tls.with_client_auth_cert(chain.clone(), key).expect("key and certificate fit")
        }
        None => tls.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let crypto = QuicClientConfig::try_from(tls).expect("a QUIC suite");
    let mut endpoint = Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("bind");
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    let connecting = endpoint.connect(broker.link, "broker.outstation").expect("a good address");
    soon("a handshake", connecting).await
}

pub struct Stream {
    pub connection: Connection,
    pub reader: FrameReader<RecvStream>,
    pub writer: FrameWriter<SendStream>,
}

impl Stream {
    pub async fn open(connection: Connection) -> Stream {
        let (send, receive) = connection.open_bi().await.expect("open a stream");
        Stream { connection, reader: FrameReader::new(receive), writer: FrameWriter::new(send) }
    }

    pub async fn send<M: Framed>(&mut self, message: &M) {
        self.writer.send(message).await.expect("send");
    }

    /// The next message; `None` if the broker has ended the conversation, in whatever way.
    pub async fn next<M: Framed>(&mut self) -> Option<M> {
        soon("the next message", self.reader.next()).await.unwrap_or(None)
    }
}

/// The whole conversation, up to its answer.
pub async fn enroll(
    broker: &Running,
    token: &str,
    key: &KeyPair,
    data_plane: DataPlane,
) -> FromIssuer {
    let csr = CertificateParams::default().serialize_request(key).expect("a request");
    let connection = dial(broker, v1::ALPN_CONTROL_ENROLL, None).await.expect("dial");
    let mut stream = Stream::open(connection).await;
    stream.send(&ToIssuer::Begin { release: "test".into() }).await;
    let challenge = stream.next::<FromIssuer>().await;
    assert!(matches!(challenge, Some(FromIssuer::Challenge { .. })), "{challenge:?}");
    let evidence = Evidence::JoinToken { token: token.into(), data_plane };
    stream.send(&ToIssuer::Request { csr: csr.der().to_vec(), evidence }).await;
    stream.next::<FromIssuer>().await.expect("an answer")
}

/// An agent's key and certificate.
pub struct Enrolled {
    pub key: KeyPair,
    pub chain: Vec<CertificateDer<'static>>,
    pub identity: String,
    pub id: AgentId,
}

impl Enrolled {
    pub fn new(key: KeyPair, chain: Vec<Vec<u8>>, identity: String) -> Enrolled {
        let id = identity.rsplit('/').next().expect("an identity has parts");
        let id = AgentId::try_from(id).expect("it ends in the agent's id");
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        Enrolled { key, chain, identity, id }
    }

    pub fn hello(&self, account: &str) -> ToBroker {
        ToBroker::Hello(Hello {
            versions: vec![v1::VERSION],
            features: vec![v1::FEATURE_HAND_BACK.to_owned()],
            agent: self.id.clone(),
            data_plane: data_plane(account),
            release: "test".into(),
        })
    }

    /// A session that the broker has welcomed.
    pub async fn connect(&self, broker: &Running) -> Stream {
        let connection = dial(broker, v1::ALPN_CONTROL, Some(self)).await.expect("dial");
        let mut stream = Stream::open(connection).await;
        stream.send(&self.hello(ACCOUNT)).await;
        let welcome = stream.next::<ToAgent>().await;
        assert!(matches!(welcome, Some(ToAgent::Welcome(_))), "{welcome:?}");
        stream
    }
}
