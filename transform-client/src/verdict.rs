//! What a failed try says about its endpoint, and whether the call may be tried again.

use std::error::Error;
use std::sync::Arc;

use outstation_api::NOT_STARTED;
use tonic::{Code, Status};

use crate::balance::{Endpoint, Outcome};
use crate::connection::SendError;
use crate::errors::chain;

/// The server said nothing by the deadline.
#[derive(Debug, thiserror::Error)]
#[error("no answer")]
pub struct Silence;

impl From<Silence> for Status {
    fn from(silence: Silence) -> Status {
        let mut status = Status::deadline_exceeded("the server did not answer before the deadline");
        status.set_source(Arc::new(silence));
        status
    }
}

pub struct Verdict {
    pub outcome: Outcome,
    /// No server has begun with it: it may be tried elsewhere.
    pub not_started: bool,
}

/// What a failed try says about its endpoint, and whether it is certain that it was not started.
pub fn judge(status: Status, endpoint: &Endpoint) -> (Verdict, Status) {
    let verdict = |outcome, not_started| Verdict { outcome, not_started };
    let Some(cause) = status.source() else {
        // The server's own words.
        let not_started = status.metadata().get(NOT_STARTED).is_some_and(|value| value == "1");
        let outcome = match status.code() {
            Code::Unavailable => Outcome::Failed,
            Code::ResourceExhausted => Outcome::Neutral,
            _ => Outcome::Answered,
        };
        return (verdict(outcome, not_started), status);
    };
    if cause.is::<Silence>() {
        return (verdict(Outcome::Failed, false), status);
    }
    let not_started = never_left(cause);
    let did =
        if not_started { "before the call was started" } else { "while the call was running" };
    let Endpoint { instance, address } = endpoint;
    let message =
        format!("the connection to {instance} ({address}) was lost {did}: {}", chain(cause));
    (verdict(Outcome::Failed, not_started), Status::unavailable(message))
}

/// Whether HTTP/2 itself says that the server did not process the request: it was never sent, its
/// stream was refused, or it came after the last one of a graceful GOAWAY (RFC 9113, 6.8 and 8.7).
fn never_left(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<SendError>().is_some_and(|error| error.not_sent) {
            return true;
        }
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
            let going_away = error.is_go_away()
                && error.is_remote()
                && error.reason() == Some(h2::Reason::NO_ERROR);
            return refused || going_away;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::metadata::MetadataValue;

    #[test]
    fn what_may_be_repeated() {
        let endpoint = Endpoint { instance: "i-1".into(), address: "127.0.0.1:1".into() };
        let said = |code: Code, trailer: bool| {
            let mut status = Status::new(code, "");
            if trailer {
                status.metadata_mut().insert(NOT_STARTED, MetadataValue::from_static("1"));
            }
            status
        };
        let cases = [
            (said(Code::Unavailable, true), Outcome::Failed, true),
            (said(Code::Unavailable, false), Outcome::Failed, false),
            (said(Code::ResourceExhausted, true), Outcome::Neutral, true),
            (said(Code::ResourceExhausted, false), Outcome::Neutral, false),
            (said(Code::Aborted, false), Outcome::Answered, false),
            (said(Code::DeadlineExceeded, false), Outcome::Answered, false),
            (said(Code::NotFound, false), Outcome::Answered, false),
            (Silence.into(), Outcome::Failed, false),
            (
                Status::from_error(Box::new(h2::Error::from(h2::Reason::REFUSED_STREAM))),
                Outcome::Failed,
                true,
            ),
            (
                Status::from_error(Box::new(h2::Error::from(h2::Reason::INTERNAL_ERROR))),
                Outcome::Failed,
                false,
            ),
            (Status::from_error("broken pipe".into()), Outcome::Failed, false),
        ];
        for (status, outcome, not_started) in cases {
            let shown = format!("{status:?}");
            let (verdict, _) = judge(status, &endpoint);
            assert_eq!((verdict.outcome, verdict.not_started), (outcome, not_started), "{shown}");
        }
    }
}
