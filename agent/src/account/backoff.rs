//! How long a group waits after a call that failed, by what kind of failure it was. Pure.

use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;

use super::aws::CallError;

/// What a failure says about the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Too many calls of the account: the bucket has slowed down, the group itself is fine.
    Throttling,
    /// Something else of this group is under way.
    Contention,
    /// It may work the next time.
    Transient,
    /// It will not work before a person has done something.
    Permission,
    Validation,
}

impl Class {
    /// By AWS's code; without one there was no answer.
    pub fn of(code: Option<&str>) -> Class {
        match code {
            Some(code) if is_throttling(code) => Class::Throttling,
            Some(
                "ResourceContention"
                | "ResourceContentionFault"
                | "ScalingActivityInProgress"
                | "ScalingActivityInProgressFault"
                | "ResourceInUse"
                | "InstanceRefreshInProgress",
            ) => Class::Contention,
            Some(
                "AccessDenied"
                | "AccessDeniedException"
                | "UnauthorizedOperation"
                | "ExpiredToken"
                | "InvalidClientTokenId"
                | "SignatureDoesNotMatch"
                | "OptInRequired",
            ) => Class::Permission,
            Some("ValidationError" | "AlreadyExists" | "LimitExceeded") => Class::Validation,
            Some(_) | None => Class::Transient,
        }
    }

    /// The first wait, and what doubling ends at.
    fn bounds(self) -> (Duration, Duration) {
        let secs = Duration::from_secs;
        match self {
            Class::Throttling => (RETRY_MIN, secs(15)),
            Class::Contention => (secs(2), secs(60)),
            Class::Transient => (RETRY_MIN, RETRY_MAX),
            // Credentials expire and are renewed; and a policy at AWS takes a moment to count.
            Class::Permission => (secs(5), RETRY_MAX),
            Class::Validation => (secs(5), VALIDATION_RETRY_MAX),
        }
    }
}

/// "Calls come too fast", in the words of AWS's services.
pub fn is_throttling(code: &str) -> bool {
    matches!(
        code,
        "Throttling"
            | "ThrottlingException"
            | "ThrottledException"
            | "RequestThrottled"
            | "RequestThrottledException"
            | "RequestLimitExceeded"
            | "TooManyRequestsException"
            | "SlowDown"
    )
}

const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(120);
const VALIDATION_RETRY_MAX: Duration = Duration::from_secs(300);

/// Doubles from one attempt to the next; half of it is jitter, and it is never nothing.
pub fn backoff(class: Class, attempts: u32, jitter: &mut StdRng) -> Duration {
    let (least, most) = class.bounds();
    let doubled = least.saturating_mul(1 << attempts.saturating_sub(1).min(10));
    doubled.min(most).mul_f64(0.5 + jitter.random::<f64>() / 2.0)
}

impl CallError {
    pub fn class(&self) -> Class {
        Class::of(self.code.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn each_kind_of_failure_waits_as_long_as_it_takes() {
        let mut jitter = StdRng::seed_from_u64(1);
        for (code, class, first, last) in [
            (Some("Throttling"), Class::Throttling, 1.0, 15.0),
            (Some("RequestLimitExceeded"), Class::Throttling, 1.0, 15.0),
            (Some("ResourceContention"), Class::Contention, 2.0, 60.0),
            (Some("ScalingActivityInProgress"), Class::Contention, 2.0, 60.0),
            (Some("ServiceUnavailable"), Class::Transient, 1.0, 120.0),
            (Some("SomethingThatAwsHasAdded"), Class::Transient, 1.0, 120.0),
            (None, Class::Transient, 1.0, 120.0),
            (Some("AccessDenied"), Class::Permission, 5.0, 120.0),
            (Some("ExpiredToken"), Class::Permission, 5.0, 120.0),
            (Some("ValidationError"), Class::Validation, 5.0, 300.0),
            (Some("LimitExceeded"), Class::Validation, 5.0, 300.0),
        ] {
            assert_eq!(Class::of(code), class, "{code:?}");
            for (attempts, secs) in [(1, first), (40, last), (u32::MAX, last)] {
                for _ in 0..50 {
                    let wait = backoff(class, attempts, &mut jitter).as_secs_f64();
                    assert!((secs / 2.0..=secs).contains(&wait), "{code:?} {attempts}: {wait}");
                }
            }
        }
    }
}
