//! Where a group's servers are, for callers inside the account: gRPC over TLS under the account's
//! own root, with a bearer token.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{Stream, StreamExt as _};
use outstation_api::callers::endpoints_server::{Endpoints, EndpointsServer};
use outstation_api::callers::{Endpoint, EndpointSet, WatchRequest};
use outstation_api::incoming::Incoming;
use outstation_protocol::GroupName;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use super::shared::Shared;
use crate::clock;
use crate::trust::{DataPlaneCa, files};

/// tonic reads its certificate once, so it is given a long life; the listener starts anew with
/// the agent. Nodes and the node link keep their own short ones.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(90 * 86_400);
/// A caller's stream looks again so often even if nothing told it to: a lost node's endpoint
/// expires by time alone.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// A caller watches its groups over one connection; who opens more than this is broken.
const STREAMS_PER_CONNECTION_MAX: u32 = 64;
/// A fleet of callers with one connection each; one costs some 50 KiB. Who comes beyond is
/// turned away. `main` raises the limit of descriptors above it.
const CONNECTIONS_MAX: usize = 4096;
/// A half-open connection gives its place back after this.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A caller that has vanished without a word is noticed after these two.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Callers {
    shared: Arc<Shared>,
}

impl Callers {
    pub async fn bind(shared: Arc<Shared>) -> Result<TcpListener> {
        let listen = shared.config.callers.listen;
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("listen for callers on {listen}"))?;
        tracing::info!(%listen, "callers");
        Ok(listener)
    }

    pub async fn run(
        shared: Arc<Shared>,
        ca: Arc<DataPlaneCa>,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<()> {
        let token = load_or_create_token(&shared)?;
        let certificate = ca.issue_server(CERTIFICATE_LIFE, clock::unix_secs())?;
        let identity = Identity::from_pem(&certificate.chain_pem, &certificate.key_pem);
        let expected = format!("Bearer {token}");
        let check = move |request: Request<()>| {
            let presented = request.metadata().get("authorization");
            if presented.is_some_and(|p| constant_time_eq(p.as_bytes(), expected.as_bytes())) {
                Ok(request)
            } else {
                Err(Status::unauthenticated("present the callers' token: authorization: Bearer …"))
            }
        };
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<EndpointsServer<Callers>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(outstation_api::DESCRIPTORS)
            .build_v1()?;
        Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity).timeout(HANDSHAKE_MAX))?
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .add_service(EndpointsServer::with_interceptor(Callers { shared }, check))
            .add_service(health_service)
            .add_service(reflection)
            .serve_with_incoming_shutdown(
                Incoming::new(listener, CONNECTIONS_MAX),
                shutdown.cancelled_owned(),
            )
            .await
            .context("serve callers")
    }
}

fn load_or_create_token(shared: &Shared) -> Result<String> {
    let path = &shared.config.callers.token_file;
    match std::fs::read_to_string(path) {
        Ok(token) if token.trim().len() >= 32 => Ok(token.trim().to_owned()),
        Ok(_) => anyhow::bail!("{} holds no token of at least 32 characters", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let token = hex::encode(rand::random::<[u8; 32]>());
            files::create_new(path, token.as_bytes(), 0o600)
                .with_context(|| format!("write the callers' token to {}", path.display()))?;
            Ok(token)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (x, y)| differs | (x ^ y)) == 0
}

type SetStream = Pin<Box<dyn Stream<Item = Result<EndpointSet, Status>> + Send>>;

#[tonic::async_trait]
impl Endpoints for Callers {
    type WatchStream = SetStream;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<SetStream>, Status> {
        let group = GroupName::try_from(request.into_inner().group)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if !self.shared.knows_group(&group) {
            return Err(Status::not_found(format!("this account has no server group {group}")));
        }
        // Two: the one being sent and the newest behind it.
        let (sender, receiver) = mpsc::channel(2);
        let shared = self.shared.clone();
        tokio::spawn(async move { follow(&shared, &group, &sender).await });
        Ok(Response::new(ReceiverStream::new(receiver).map(Ok).boxed()))
    }
}

/// Sends the set whenever it differs from the one sent before, until the caller is gone.
async fn follow(shared: &Shared, group: &GroupName, sender: &mpsc::Sender<EndpointSet>) {
    let mut changed = shared.changed.subscribe();
    let mut sent = None;
    let mut version = 0;
    loop {
        changed.mark_unchanged();
        if let Some(endpoints) = shared.endpoints(group)
            && sent.as_ref() != Some(&endpoints)
        {
            version += 1;
            let set = EndpointSet {
                group: group.to_string(),
                version,
                endpoints: endpoints
                    .iter()
                    .map(|endpoint| Endpoint {
                        instance: endpoint.instance.to_string(),
                        address: endpoint.address.to_string(),
                    })
                    .collect(),
            };
            sent = Some(endpoints);
            if sender.send(set).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = sender.closed() => return,
            _ = changed.changed() => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}
