//! AWS on a bad day: the simulation behind faults. Which call meets which fault is the caller's choice, so a seeded test
//! repeats itself.

use std::collections::VecDeque;

use bytes::Bytes;
use http::{Request, Response};
use time::OffsetDateTime;

use super::query::Params;
use super::throttle::Throttle;
use super::{Service, Sim, failure};
use crate::model::{AwsError, Code, Model};

/// What happens to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `Throttling`: nothing was done.
    Throttled,
    /// `ResourceContention`: nothing was done.
    Contended,
    /// `ServiceUnavailable`: nothing was done.
    Unavailable,
    /// It never arrives.
    RequestLost,
    /// It is done, and nobody is told.
    ReplyLost,
    /// A describe shows the account as it was, [`SNAPSHOTS_MAX`] snapshots ago at the most. Other calls are not affected.
    Stale,
}

/// Eventual consistency is a matter of seconds; a snapshot is taken once a second at the most.
pub const SNAPSHOTS_MAX: usize = 8;

#[derive(Debug)]
pub struct Faulty {
    pub sim: Sim,
    /// None unless told: calls come as fast as they like.
    pub throttle: Option<Throttle>,
    past: VecDeque<(OffsetDateTime, Model)>,
}

impl Faulty {
    pub fn new(sim: Sim) -> Self {
        Faulty { sim, throttle: None, past: VecDeque::new() }
    }

    /// Remembers how the account looks now, for [`Fault::Stale`].
    pub fn remember(&mut self, now: OffsetDateTime) {
        if self.past.back().is_some_and(|(at, _)| now - *at < time::Duration::SECOND) {
            return;
        }
        if self.past.len() == SNAPSHOTS_MAX {
            self.past.pop_front();
        }
        self.past.push_back((now, self.sim.model.clone()));
    }

    /// One call; `None` when no answer ever comes.
    pub fn handle(
        &mut self,
        request: &Request<Bytes>,
        now: OffsetDateTime,
        fault: Option<Fault>,
    ) -> Option<Response<Bytes>> {
        let refused = |sim: &mut Sim, code: Code, message: &str| {
            let request_id = sim.model.request_id();
            Some(failure(Service::AutoScaling, &AwsError::new(code, message), &request_id))
        };
        let is_lost = fault == Some(Fault::RequestLost);
        let is_admitted =
            is_lost || self.throttle.as_mut().is_none_or(|throttle| throttle.admits(now));
        let fault = if is_admitted { fault } else { Some(Fault::Throttled) };
        match fault {
            Some(Fault::Throttled) => refused(&mut self.sim, Code::Throttling, "Rate exceeded"),
            Some(Fault::Contended) => {
                let message =
                    "You already have a pending update to an Amazon EC2 Auto Scaling resource";
                refused(&mut self.sim, Code::ResourceContention, message)
            }
            Some(Fault::Unavailable) => {
                let message = "Service is unavailable. Please try again shortly.";
                refused(&mut self.sim, Code::ServiceUnavailable, message)
            }
            Some(Fault::RequestLost) => None,
            Some(Fault::ReplyLost) => {
                self.sim.handle(request, now);
                None
            }
            Some(Fault::Stale) if is_describe(request) => match self.past.front() {
                Some((_, model)) => {
                    let today = std::mem::replace(&mut self.sim.model, model.clone());
                    let answer = self.sim.handle(request, now);
                    self.sim.model = today;
                    Some(answer)
                }
                None => Some(self.sim.handle(request, now)),
            },
            Some(Fault::Stale) | None => Some(self.sim.handle(request, now)),
        }
    }
}

/// By the action in the form: every call of the SDK is a POST.
fn is_describe(request: &Request<Bytes>) -> bool {
    let form = String::from_utf8_lossy(request.body());
    Params::parse(&form).get("Action").is_some_and(|action| action.starts_with("Describe"))
}
