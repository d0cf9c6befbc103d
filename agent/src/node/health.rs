//! Watches one server through the standard gRPC health service: often until it serves, then once
//! a second. What of its bundle is broken it is asked once: that does not change while it runs.

use std::net::SocketAddr;
use std::time::Duration;

use outstation_api::transform::ListTargetsRequest;
use outstation_api::transform::transform_client::TransformClient;
use tokio::sync::mpsc;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::events::{Broken, Event, ServerId};

const EVERY_WARMING: Duration = Duration::from_millis(50);
const EVERY_SERVING: Duration = Duration::from_secs(1);
/// A server that is busy answers its health service late; one that hangs, never.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Tells what the server says of itself until nobody listens any more.
pub async fn watch(server: ServerId, address: SocketAddr, events: mpsc::Sender<Event>) {
    let endpoint = match Endpoint::from_shared(format!("http://{address}")) {
        Ok(endpoint) => endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(CHECK_TIMEOUT),
        Err(e) => {
            tracing::error!(%address, error = %e, "the server's address is no URL");
            return;
        }
    };
    let channel = endpoint.connect_lazy();
    let mut client = HealthClient::new(channel.clone());
    let (mut every, mut known) = (EVERY_WARMING, None);
    loop {
        let event = match ask(&mut client, &channel, &mut known).await {
            Ok(broken) => {
                every = EVERY_SERVING;
                Event::Healthy { server, broken }
            }
            Err(reason) => Event::Ailing { server, reason },
        };
        if events.send(event).await.is_err() {
            return;
        }
        tokio::time::sleep(every).await;
    }
}

async fn ask(
    client: &mut HealthClient<Channel>,
    channel: &Channel,
    known: &mut Option<Broken>,
) -> Result<Broken, String> {
    check(client).await?;
    if let Some(broken) = known {
        return Ok(broken.clone());
    }
    let broken = broken_targets(channel.clone()).await?;
    Ok(known.insert(broken).clone())
}

async fn broken_targets(channel: Channel) -> Result<Broken, String> {
    let mut client = TransformClient::new(channel);
    let asked = client.list_targets(ListTargetsRequest {});
    let targets = match tokio::time::timeout(CHECK_TIMEOUT, asked).await {
        Err(_) => return Err("it does not list its targets".to_owned()),
        // Of a kind that has none.
        Ok(Err(status)) if status.code() == Code::Unimplemented => Vec::new(),
        Ok(Err(status)) => return Err(format!("{}: {}", status.code(), status.message())),
        Ok(Ok(response)) => response.into_inner().targets,
    };
    let broken = targets.into_iter().filter(|target| !target.broken.is_empty());
    Ok(Broken::new(broken.map(|target| (target.name, target.broken)).collect()))
}

async fn check(client: &mut HealthClient<Channel>) -> Result<(), String> {
    let overall = HealthCheckRequest { service: String::new() };
    let status = match tokio::time::timeout(CHECK_TIMEOUT, client.check(overall)).await {
        Err(_) => return Err(format!("no answer within {} s", CHECK_TIMEOUT.as_secs())),
        Ok(Err(status)) => return Err(format!("{}: {}", status.code(), status.message())),
        Ok(Ok(response)) => response.into_inner().status(),
    };
    match status {
        ServingStatus::Serving => Ok(()),
        ServingStatus::NotServing | ServingStatus::Unknown | ServingStatus::ServiceUnknown => {
            Err(format!("its health service says {}", status.as_str_name()))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::wrappers::TcpListenerStream;

    use super::*;

    /// Generous: what is waited for takes milliseconds.
    const DEADLINE: Duration = Duration::from_secs(20);

    async fn until(events: &mut mpsc::Receiver<Event>, what: &str, is: impl Fn(&Event) -> bool) {
        let seen = async {
            while let Some(event) = events.recv().await {
                if is(&event) {
                    return;
                }
            }
            panic!("the watch ended before: {what}");
        };
        tokio::time::timeout(DEADLINE, seen).await.expect(what);
    }

    #[tokio::test]
    async fn what_the_server_says_is_what_is_told() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (sender, mut events) = mpsc::channel(1);
        let watching = tokio::spawn(watch(ServerId(1), address, sender));

        let (reporter, service) = tonic_health::server::health_reporter();
        reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        let serving = tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let ailing = |with: &'static str| move |e: &Event| matches!(e, Event::Ailing { reason, .. } if reason.contains(with));
        until(&mut events, "not serving", ailing("NOT_SERVING")).await;
        reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
        until(
            &mut events,
            "serving",
            |e| matches!(e, Event::Healthy { server: ServerId(1), broken } if broken.is_empty()),
        )
        .await;
        reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        until(&mut events, "not serving again", ailing("NOT_SERVING")).await;
        serving.abort();
        until(&mut events, "gone", |e| matches!(e, Event::Ailing { .. })).await;
        drop(events);
        tokio::time::timeout(DEADLINE, watching).await.expect("ends").expect("no panic");
    }
}
