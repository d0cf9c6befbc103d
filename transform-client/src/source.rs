//! Where the endpoints come from: the account agent's `callers.proto`, over TLS.

use std::fmt;
use std::time::Duration;

use outstation_api::callers::endpoints_client::EndpointsClient;
use outstation_api::callers::{self, WatchRequest};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Request, Status};
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::balance::Endpoint;
use crate::clock;
use crate::errors::chain;

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// An agent that has vanished without a word is noticed after these two.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A watch that lasted this long starts over with short pauses.
const WELL: Duration = Duration::from_secs(60);

/// A bearer token; prints nothing.
#[derive(Clone)]
pub struct Token(MetadataValue<Ascii>);

impl Token {
    /// `None` if it has a character that a header cannot carry.
    pub fn new(token: &str) -> Option<Token> {
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim()).parse().ok()?;
        value.set_sensitive(true);
        Some(Token(value))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// How the account agent is reached.
#[derive(Debug, Clone)]
pub struct Agent {
    /// `https://address:port`
    pub url: String,
    /// The data plane's root certificate.
    pub ca_pem: String,
    /// The name in the agent's certificate.
    pub server_name: String,
    pub token: Token,
}

/// What cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("{url} is not the URL of an account agent")]
    Url { url: String, source: tonic::transport::Error },
    #[error("the account agent's CA certificate or server name cannot be used")]
    Tls { source: tonic::transport::Error },
}

/// The endpoints of one group, for as long as this lives.
pub struct EndpointSource {
    endpoints: watch::Receiver<Vec<Endpoint>>,
    news: watch::Receiver<News>,
    _stop: DropGuard,
}

/// How the watch is going.
#[derive(Debug, Clone)]
enum News {
    Connecting,
    Live,
    /// The set, if there was one, stays as it was last.
    Away(Status),
}

impl EndpointSource {
    /// Follows the group's endpoints in the background; needs a tokio runtime.
    pub fn follow(agent: &Agent, group: &str) -> Result<EndpointSource, SourceError> {
        let channel = channel(agent)?;
        let (set, endpoints) = watch::channel(Vec::new());
        let (tell, news) = watch::channel(News::Connecting);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let watch =
            Watch { channel, token: agent.token.clone(), group: group.to_owned(), set, tell };
        tokio::spawn(async move { stopped.run_until_cancelled(watch.run()).await });
        Ok(EndpointSource { endpoints, news, _stop: stop.drop_guard() })
    }

    /// For `Client::new`.
    pub fn endpoints(&self) -> watch::Receiver<Vec<Endpoint>> {
        self.endpoints.clone()
    }

    /// Waits for the first set. Fails with what the agent said if waiting longer cannot help: no such
    /// group, or a token that is not accepted; and with its last words when the time is up.
    pub async fn ready(&mut self, within: Duration) -> Result<(), Status> {
        let decided = self.news.wait_for(|news| match news {
            News::Connecting => false,
            News::Live => true,
            News::Away(status) => is_final(status),
        });
        let decided =
            timeout(within, decided).await.ok().and_then(Result::ok).map(|news| news.clone());
        let decided = decided.unwrap_or_else(|| self.news.borrow().clone());
        match decided {
            News::Live => Ok(()),
            News::Away(status) => Err(status),
            News::Connecting => Err(Status::unavailable("the account agent does not answer")),
        }
    }
}

/// Whether the agent has decided, rather than being away.
fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::NotFound | Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument
    )
}

fn channel(agent: &Agent) -> Result<Channel, SourceError> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&agent.ca_pem))
        .domain_name(agent.server_name.clone());
    let at = tonic::transport::Endpoint::from_shared(agent.url.clone())
        .map_err(|source| SourceError::Url { url: agent.url.clone(), source })?
        .connect_timeout(CONNECT_MAX)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(at.tls_config(tls).map_err(|source| SourceError::Tls { source })?.connect_lazy())
}

struct Watch {
    channel: Channel,
    token: Token,
    group: String,
    set: watch::Sender<Vec<Endpoint>>,
    tell: watch::Sender<News>,
}

impl Watch {
    async fn run(self) {
        let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        loop {
            let begun = clock::now();
            let status = self.watch().await;
            if clock::now() - begun >= WELL {
                pause.reset();
            }
            let was_live = matches!(*self.tell.borrow(), News::Live);
            if was_live {
                warn!(group = self.group, reason = %chain(&status), "lost the account agent; its last endpoints are kept");
            }
            self.tell.send_replace(News::Away(status));
            tokio::time::sleep(pause.next(rand::random())).await;
        }
    }

    /// Follows one stream to its end.
    async fn watch(&self) -> Status {
        let mut request = Request::new(WatchRequest { group: self.group.clone() });
        request.metadata_mut().insert("authorization", self.token.0.clone());
        let mut stream = match EndpointsClient::new(self.channel.clone()).watch(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return status,
        };
        loop {
            match stream.message().await {
                Ok(Some(set)) => {
                    let endpoint = |endpoint: callers::Endpoint| Endpoint {
                        instance: endpoint.instance,
                        address: endpoint.address,
                    };
                    let endpoints: Vec<Endpoint> =
                        set.endpoints.into_iter().map(endpoint).collect();
                    info!(
                        group = self.group,
                        version = set.version,
                        count = endpoints.len(),
                        "endpoints"
                    );
                    // A set that is the same again, as after a reconnect, wakes nobody.
                    self.set.send_if_modified(|last| {
                        let changed = *last != endpoints;
                        *last = endpoints;
                        changed
                    });
                    self.tell.send_replace(News::Live);
                }
                Ok(None) => return Status::unavailable("the account agent ended the watch"),
                Err(status) => return status,
            }
        }
    }
}
