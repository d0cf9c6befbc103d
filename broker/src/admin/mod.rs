//! The admin API: gRPC over TLS on a loopback address, with a bearer token.

mod auth;
mod convert;
mod service;
mod tail;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use outstation_api::admin::admin_server::AdminServer;
use outstation_api::incoming::Incoming;
use outstation_protocol::envelope::ENVELOPE_BYTES_MAX;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Identity, Server, ServerTlsConfig};

pub use auth::{BearerAuth, TokenFileError};
pub use service::AdminService;

use crate::ca::ServerIdentity;

const SERVICE_NAME: &str = "outstation.admin.v1.Admin";

const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Until the first answer; the store answers in milliseconds. Streams go on.
const CALL_MAX: Duration = Duration::from_secs(30);
/// Twice what 64 watches and as many commands need; far below a process's descriptors.
const CONNECTIONS_MAX: usize = 256;
/// A CLI has a few calls and a watch.
const STREAMS_PER_CONNECTION_MAX: u32 = 32;
/// The largest request is an envelope, in base64 (4/3) with its JSON around it.
const REQUEST_BYTES_MAX: usize = 2 * ENVELOPE_BYTES_MAX;

pub struct Admin {
    listener: TcpListener,
    tls: ServerTlsConfig,
    auth: BearerAuth,
    service: AdminService,
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {listen} (TCP)")]
    Listen { listen: SocketAddr, source: io::Error },
    #[error(transparent)]
    Token(#[from] TokenFileError),
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the admin API failed")]
    Serve(#[from] tonic::transport::Error),
    #[error("the reflection service could not read its descriptors")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl Admin {
    pub async fn bind(
        listen: SocketAddr,
        token_file: &Path,
        server: &ServerIdentity,
        service: AdminService,
    ) -> Result<Admin, BindError> {
        let auth = BearerAuth::from_file(token_file)?;
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|source| BindError::Listen { listen, source })?;
        let identity = Identity::from_pem(&server.certificate_pem, server.key.serialize_pem());
        let tls = ServerTlsConfig::new().identity(identity).timeout(HANDSHAKE_MAX);
        Ok(Admin { listener, tls, auth, service })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stopping`, then lets calls finish. Watches end by themselves.
    pub async fn run(self, stopping: CancellationToken) -> Result<(), RunError> {
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status(SERVICE_NAME, tonic_health::ServingStatus::Serving).await;
        // The descriptors hold the other surfaces too; this server has only this one.
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(outstation_api::DESCRIPTORS)
            .with_service_name(SERVICE_NAME)
            .build_v1()?;
        let reflection =
            tonic::service::interceptor::InterceptedService::new(reflection, self.auth.clone());
        let admin = AdminServer::new(self.service).max_decoding_message_size(REQUEST_BYTES_MAX);
        let admin = tonic::service::interceptor::InterceptedService::new(admin, self.auth);
        Server::builder()
            .tls_config(self.tls)?
            .timeout(CALL_MAX)
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .add_service(health_service)
            .add_service(reflection)
            .add_service(admin)
            .serve_with_incoming_shutdown(
                Incoming::new(self.listener, CONNECTIONS_MAX),
                stopping.cancelled_owned(),
            )
            .await?;
        Ok(())
    }
}
