//! What a caller is told when there is no answer, and the word by which it is counted.

use std::time::Duration;

use outstation_api::NOT_STARTED;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::admission::Refusal;
use crate::pool::Failure;

/// How much of an unknown name is repeated in a message: messages travel in headers.
pub const NAME_CHARS_MAX: usize = 80;

/// gRPC's own trailer: when a client that retries by itself may come again.
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// A client that stays away for longer than this would not notice that the flood is over.
const PUSHBACK_MAX: Duration = Duration::from_secs(5);

pub fn of(failure: &Failure) -> (Status, &'static str) {
    let message = failure.to_string();
    match failure {
        Failure::Refused { refusal, retry_after, .. } => {
            let (code, word) = match refusal {
                Refusal::TooManyWaiting { .. } => (Code::ResourceExhausted, "queue_full"),
                Refusal::TooManyOfTarget { .. } => (Code::ResourceExhausted, "target_queue_full"),
                Refusal::TooManyBytesWaiting { .. } => (Code::ResourceExhausted, "bytes_full"),
                Refusal::WouldExpire { .. } => (Code::ResourceExhausted, "would_expire"),
                Refusal::Expired => (Code::DeadlineExceeded, "expired"),
                Refusal::CallerGone => (Code::Cancelled, "caller_gone"),
                Refusal::Draining => (Code::Unavailable, "draining"),
                Refusal::NoWorker { .. } => (Code::Unavailable, "no_worker"),
            };
            let mut status = not_started(Status::new(code, message));
            if let Some(retry_after) = retry_after {
                let millis = retry_after.min(&PUSHBACK_MAX).as_millis().max(1);
                let millis = MetadataValue::try_from(millis.to_string()).expect("digits");
                status.metadata_mut().insert(PUSHBACK, millis);
            }
            (status, word)
        }
        Failure::Runaway { .. } => (Status::deadline_exceeded(message), "runaway"),
        Failure::Died { .. } => (Status::aborted(message), "worker_died"),
        Failure::Stopped { .. } => (Status::aborted(message), "server_stopped"),
        Failure::Worker { code, .. } => (Status::new(*code, message), "failed"),
    }
}

pub fn not_started(mut status: Status) -> Status {
    status.metadata_mut().insert(NOT_STARTED, MetadataValue::from_static("1"));
    status
}
