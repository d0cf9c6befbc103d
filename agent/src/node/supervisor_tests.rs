//! A node's whole life, with a script in the server's place and its health service in the test's
//! own process.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;

use outstation_protocol::status::NodePhase;
use outstation_protocol::{Digest, Generation};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;

use super::*;
use crate::node::machine::PORTS;
use crate::node::testing;
use crate::store::AccountStore;
use crate::trust::testing::{INSTANCE, stub_imds, within};

struct Place {
    folder: tempfile::TempDir,
    environment: Digest,
    settings: ServerSettings,
    imds: Arc<Imds>,
    lifecycle: Arc<Mutex<&'static str>>,
}

/// One life of the node agent.
struct Life {
    outbox: watch::Receiver<Outbox>,
    events: mpsc::Sender<Event>,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

impl Place {
    async fn new() -> Place {
        let folder = tempfile::tempdir().expect("a folder");
        let store = folder.path().join("store/artifacts");
        for path in [&store.join("bundles"), &folder.path().join("node")] {
            fs::create_dir_all(path).expect("creates");
        }
        let files: [(&str, &[u8]); 1] = [("lib/a.py", b"a = 1")];
        let environment = testing::put_files(&folder.path().join("store"), &files);
        let program = folder.path().join("server.sh");
        // Ends with its folder, also when a test fails.
        let script = "#!/bin/sh\ntrap 'exit 0' TERM\nwhile [ -e \"$0\" ]; do sleep 0.02; done\n";
        fs::write(&program, script).expect("writes");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("sets");

        // All of 127/8 is this machine: an address of our own keeps the two ports free.
        let address = std::net::Ipv4Addr::from(0x7f40_0000 | (rand::random::<u32>() & 0x3f_ffff));
        for port in PORTS {
            let listener =
                tokio::net::TcpListener::bind((address, port)).await.expect("a free address");
            let (reporter, service) = tonic_health::server::health_reporter();
            reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
            tokio::spawn(
                tonic::transport::Server::builder()
                    .add_service(service)
                    .serve_with_incoming(TcpListenerStream::new(listener)),
            );
        }
        let lifecycle = Arc::new(Mutex::new("InService"));
        let imds = Arc::new(Imds::new(&stub_imds(lifecycle.clone()).await.url));
        let settings = ServerSettings {
            guard: None,
            program,
            address: address.into(),
            group: "delay".into(),
            instance: INSTANCE.into(),
            dir: folder.path().join("node"),
        };
        Place { folder, environment, settings, imds, lifecycle }
    }

    fn put_bundle(&self, generation: u64) -> Artifacts {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        let text = format!("GENERATION = {generation}\n");
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, "features.py", text.as_bytes()).expect("appends");
        let tar = tar.into_inner().expect("ends");
        let bundle = Digest::of(&tar);
        let path = self.folder.path().join("store/artifacts/bundles");
        fs::write(path.join(format!("{}.tar", bundle.hex())), tar).expect("writes");
        let generation = Generation(generation);
        Artifacts { generation, environment: self.environment, bundle, options: vec![] }
    }

    fn live(&self, from_tags: Artifacts) -> Life {
        let (events, inbox) = mpsc::channel(8);
        let (to_send, outbox) = watch::channel(Outbox::default());
        let node: &Path = &self.settings.dir;
        let environments = testing::environments(self.folder.path());
        let store = ArtifactStore::new(
            AccountStore::folder(&self.folder.path().join("store")),
            node,
            environments,
        );
        let supervisor =
            Supervisor::new(node.into(), self.settings.clone(), store, events.clone(), to_send);
        let shutdown = CancellationToken::new();
        let running = supervisor.run(inbox, self.imds.clone(), Some(from_tags), shutdown.clone());
        let running = tokio::spawn(running);
        Life { outbox, events, shutdown, running }
    }

    fn records(&self) -> Vec<ServerRecord> {
        Memory::load(&self.settings.dir).servers
    }
}

impl Life {
    async fn until(&mut self, what: &str, is: impl Fn(&Outbox) -> bool) -> Outbox {
        let seen = within(what, self.outbox.wait_for(is)).await;
        seen.expect("the supervisor runs").clone()
    }

    async fn ready(&mut self, generation: u64) -> String {
        let generation = Generation(generation);
        let is_ready = |outbox: &Outbox| {
            outbox.state.as_ref().is_some_and(|state| {
                state.phase == NodePhase::Ready
                    && state.artifacts.as_ref().is_some_and(|a| a.generation == generation)
            })
        };
        let outbox = self.until("ready", is_ready).await;
        outbox.state.and_then(|state| state.endpoint).expect("a ready node has one")
    }

    async fn end(self) {
        self.shutdown.cancel();
        within("the agent ends", self.running).await.expect("no panic");
    }
}

#[tokio::test]
async fn a_server_outlives_its_agents_and_leaves_with_its_instance() {
    let place = Place::new().await;
    let address = place.settings.address;
    let first = place.put_bundle(1);
    let mut life = place.live(first.clone());
    assert_eq!(life.ready(1).await, format!("{address}:7400"));
    let [server] = &place.records()[..] else { panic!("one server: {:?}", place.records()) };
    let server = server.clone();
    life.end().await;
    assert!(server.is_alive(), "only a drain stops a server");

    // Another life of the agent takes it over, and knows more than the tags do.
    let mut life = place.live(first.clone());
    assert_eq!(life.ready(1).await, format!("{address}:7400"));
    assert_eq!(place.records(), std::slice::from_ref(&server));
    let second = place.put_bundle(2);
    life.events.send(Event::Target(second.clone())).await.expect("listens");
    assert_eq!(life.ready(2).await, format!("{address}:7401"));
    within("the old one leaves", server.ended()).await;
    life.end().await;
    let mut life = place.live(first.clone());
    assert_eq!(life.ready(2).await, format!("{address}:7401"));

    // A server that dies is replaced; the bundle that nobody needs any more is gone.
    let second_server = place.records().remove(0);
    second_server.kill();
    let third_server = within("another server", async {
        loop {
            match place.records().pop() {
                Some(record) if record.pid != second_server.pid => break record,
                Some(_) | None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await;
    life.ready(2).await;
    let bundles = place.settings.dir.join("bundles");
    assert!(!bundles.join(first.bundle.hex()).exists());
    assert!(bundles.join(second.bundle.hex()).exists());

    *place.lifecycle.lock().expect("no panic") = "Terminated";
    let is_draining = |outbox: &Outbox| {
        outbox.state.as_ref().is_some_and(|state| state.phase == NodePhase::Draining)
    };
    life.until("draining", is_draining).await;
    life.events.send(Event::Withdrawn).await.expect("listens");
    life.until("drained", |outbox| outbox.drained).await;
    assert!(!third_server.is_alive());
    life.end().await;
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let mut place = Place::new().await;
    place.settings.program = place.folder.path().join("missing");
    let mut life = place.live(place.put_bundle(1));
    let reason = |outbox: &Outbox| {
        outbox.state.as_ref().and_then(|state| state.reason.clone()).unwrap_or_default()
    };
    let outbox = life.until("a reason", |outbox| !reason(outbox).is_empty()).await;
    assert!(reason(&outbox).contains("missing cannot be started: "), "{outbox:?}");
    life.end().await;

    fs::write(place.folder.path().join("missing"), "#!/bin/sh\necho no such module; exit 3\n")
        .expect("writes");
    let program = place.folder.path().join("missing");
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).expect("sets");
    // Its health service must not answer for it: another address.
    place.settings.address = "127.127.255.254".parse().expect("an address");
    let mut life = place.live(place.put_bundle(2));
    let said = "the server did not start: exit status: 3: no such module";
    life.until("its last words", |outbox| reason(outbox) == said).await;
    life.end().await;
}
