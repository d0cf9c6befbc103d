//! Following an account agent over TLS.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::*;
use outstation_api::callers::endpoints_server::{Endpoints, EndpointsServer};
use outstation_api::callers::{self, EndpointSet, WatchRequest};
use outstation_transform_client::{Agent, Endpoint, EndpointSource, Token};
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tonic::transport::{Identity, ServerTlsConfig};
use tonic::{Code, Request, Response, Status};

struct FakeAgent {
    sets: watch::Sender<EndpointSet>,
}

#[tonic::async_trait]
impl Endpoints for FakeAgent {
    type WatchStream =
        std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<EndpointSet, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if request.metadata().get("authorization").is_none_or(|value| value != "Bearer secret") {
            return Err(Status::unauthenticated("wrong token"));
        }
        if request.get_ref().group != "tsg" {
            return Err(Status::not_found("no such group"));
        }
        Ok(Response::new(Box::pin(WatchStream::new(self.sets.subscribe()).map(Ok))))
    }
}

const NAME: &str = "account-agent.outstation";

struct Pki {
    root_pem: String,
    identity: Identity,
}

fn pki() -> Pki {
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &root).unwrap();
    let identity = Identity::from_pem(leaf.pem(), key.serialize_pem());
    Pki { root_pem: root.pem(), identity }
}

async fn agent(
    pki: &Pki,
    address: SocketAddr,
    first: EndpointSet,
) -> (Machine, SocketAddr, watch::Sender<EndpointSet>) {
    let sets = watch::Sender::new(first);
    let (machine, tls) = (Machine::start(), ServerTlsConfig::new().identity(pki.identity.clone()));
    let service = EndpointsServer::new(FakeAgent { sets: sets.clone() });
    let serving = machine.runtime().spawn(async move {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server =
            tonic::transport::Server::builder().tls_config(tls).unwrap().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    });
    let address = serving.await.unwrap();
    (machine, address, sets)
}

fn set(version: u64, instances: &[&str]) -> EndpointSet {
    let endpoint =
        |name: &&str| callers::Endpoint { instance: (*name).into(), address: format!("{name}:1") };
    EndpointSet {
        group: "tsg".into(),
        version,
        endpoints: instances.iter().map(endpoint).collect(),
    }
}

fn names(set: &[Endpoint]) -> Vec<&str> {
    set.iter().map(|endpoint| endpoint.instance.as_str()).collect()
}

fn reach(pki: &Pki, address: SocketAddr, token: &str) -> Agent {
    Agent {
        url: format!("https://{address}"),
        ca_pem: pki.root_pem.clone(),
        server_name: NAME.into(),
        token: Token::new(token).unwrap(),
    }
}

async fn until_names(endpoints: &mut watch::Receiver<Vec<Endpoint>>, expected: &[&str]) {
    let came = endpoints.wait_for(|set| names(set) == expected);
    drop(tokio::time::timeout(PATIENCE, came).await.expect("the set comes").unwrap());
}

#[tokio::test]
async fn follows_the_set_and_keeps_it_while_the_agent_is_away() {
    let pki = pki();
    let any = "127.0.0.1:0".parse().unwrap();
    let (mut machine, address, sets) = agent(&pki, any, set(1, &["a"])).await;
    let mut source = EndpointSource::follow(&reach(&pki, address, "secret\n"), "tsg").unwrap();
    let mut endpoints = source.endpoints();
    source.ready(PATIENCE).await.unwrap();
    assert_eq!(names(&endpoints.borrow()), ["a"]);
    sets.send_replace(set(2, &["a", "b"]));
    until_names(&mut endpoints, &["a", "b"]).await;

    machine.die();
    until("the loss to be noticed", async || source.ready(Duration::ZERO).await.err()).await;
    assert_eq!(names(&endpoints.borrow()), ["a", "b"]);

    let (_machine, _, _sets) = agent(&pki, address, set(1, &["b", "c"])).await;
    until_names(&mut endpoints, &["b", "c"]).await;
    source.ready(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_waited_for_is_said() {
    let (pki, other) = (pki(), pki());
    let any = "127.0.0.1:0".parse().unwrap();
    let (_machine, address, _sets) = agent(&pki, any, set(1, &["a"])).await;
    let free = TcpListener::bind(any).await.unwrap().local_addr().unwrap();
    let short = Duration::from_millis(300);
    let cases = [
        ("wrong group", reach(&pki, address, "secret"), "other", PATIENCE, Code::NotFound),
        ("wrong token", reach(&pki, address, "guess"), "tsg", PATIENCE, Code::Unauthenticated),
        ("another root", reach(&other, address, "secret"), "tsg", short, Code::Unavailable),
        ("nobody there", reach(&pki, free, "secret"), "tsg", short, Code::Unavailable),
    ];
    for (name, agent, group, within, code) in cases {
        let mut source = EndpointSource::follow(&agent, group).unwrap();
        let status = source.ready(within).await.unwrap_err();
        assert_eq!(status.code(), code, "{name}: {status:?}");
        assert!(source.endpoints().borrow().is_empty(), "{name}");
    }
    assert!(
        EndpointSource::follow(&Agent { url: "not a url".into(), ..reach(&pki, free, "x") }, "tsg")
            .is_err()
    );
    assert_eq!(format!("{:?}", Token::new("secret").unwrap()), "Token(..)");
    assert!(Token::new("line\nbreak").is_none());
}
