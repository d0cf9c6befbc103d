//! grpc.health.v1, true from the first second: not serving until a worker has loaded the bundle, and
//! not while draining. Every target has a service name of its own; a broken one is not serving.

use std::pin::Pin;

use futures::Stream;
use futures::stream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::pool::Serving;
use crate::service::SERVICE;

pub struct HealthService {
    serving: watch::Receiver<Serving>,
    /// Ends the watches: they would keep connections open for ever.
    end: CancellationToken,
}

impl HealthService {
    pub fn new(serving: watch::Receiver<Serving>, end: CancellationToken) -> Self {
        HealthService { serving, end }
    }
}

/// The status of one service name.
fn status(serving: &Serving, service: &str) -> ServingStatus {
    let works = if service.is_empty() || service == SERVICE {
        Some(true)
    } else {
        serving.targets.as_ref().and_then(|targets| targets.works(service))
    };
    match works {
        None => ServingStatus::ServiceUnknown,
        Some(true) if serving.open.is_ok() => ServingStatus::Serving,
        Some(_) => ServingStatus::NotServing,
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match status(&self.serving.borrow(), &service) {
            ServingStatus::ServiceUnknown => {
                Err(Status::not_found(format!("nothing is called {service:?} here")))
            }
            status => Ok(Response::new(HealthCheckResponse { status: status.into() })),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let mut serving = self.serving.clone();
        serving.mark_changed();
        let state = (serving, self.end.clone(), service, None);
        let changes = stream::unfold(state, |(mut serving, end, service, last)| async move {
            loop {
                tokio::select! {
                    changed = serving.changed() => changed.ok()?,
                    () = end.cancelled() => return None,
                }
                let status = status(&serving.borrow_and_update(), &service);
                if last != Some(status) {
                    let response = HealthCheckResponse { status: status.into() };
                    return Some((Ok(response), (serving, end, service, Some(status))));
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::Targets;
    use outstation_api::transform::{ListTargetsResponse, Target};
    use prost::Message;

    #[test]
    fn statuses() {
        let target = |name: &str, broken: &str| Target {
            name: name.into(),
            broken: broken.into(),
            ..Target::default()
        };
        let list = ListTargetsResponse {
            targets: vec![target("speed", ""), target("bad", "SyntaxError")],
        };
        let targets = Some(Targets::decode(list.encode_to_vec().into()).unwrap().into());
        let starting = Serving { open: Err("no worker yet".into()), targets: None };
        let serving = Serving { open: Ok(()), targets: targets.clone() };
        let draining = Serving { open: Err("draining".into()), targets };
        use ServingStatus::{NotServing, ServiceUnknown, Serving as Yes};
        let cases = [
            (&starting, "", NotServing),
            (&starting, SERVICE, NotServing),
            (&starting, "speed", ServiceUnknown),
            (&serving, "", Yes),
            (&serving, SERVICE, Yes),
            (&serving, "speed", Yes),
            (&serving, "bad", NotServing),
            (&serving, "other", ServiceUnknown),
            (&draining, "", NotServing),
            (&draining, "speed", NotServing),
        ];
        for (state, service, expected) in cases {
            assert_eq!(status(state, service), expected, "{service:?} of {state:?}");
        }
    }
}
