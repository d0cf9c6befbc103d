//! Virtual time for the AWS SDK: its clock is the agent's, its sleeps end when the world says so.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_smithy_async::rt::sleep::{AsyncSleep, Sleep};
use aws_smithy_async::time::TimeSource;
use outstation_agent::clock::ManualClock;

/// The sleeps of one process.
#[derive(Debug, Clone, Default)]
pub struct Timers(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    now_millis: u64,
    made: u64,
    /// Deadline, and a number that tells equal ones apart.
    pending: BTreeSet<(u64, u64)>,
}

impl Timers {
    pub fn at(now_millis: u64) -> Timers {
        Timers(Arc::new(Mutex::new(State { now_millis, ..State::default() })))
    }

    pub fn set_now(&self, now_millis: u64) {
        self.state().now_millis = now_millis;
    }

    pub fn next_deadline(&self) -> Option<u64> {
        self.state().pending.first().map(|(deadline, _)| *deadline)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncSleep for Timers {
    fn sleep(&self, duration: Duration) -> Sleep {
        let mut state = self.state();
        state.made += 1;
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1);
        let key = (state.now_millis.saturating_add(millis), state.made);
        state.pending.insert(key);
        drop(state);
        Sleep::new(Pending { timers: self.clone(), key })
    }
}

struct Pending {
    timers: Timers,
    key: (u64, u64),
}

impl Future for Pending {
    type Output = ();
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.timers.state().now_millis >= self.key.0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.timers.state().pending.remove(&self.key);
    }
}

/// The time of day as the agent's machine shows it: signatures are dated by it.
#[derive(Debug)]
pub struct TimeOfDay(pub Arc<ManualClock>);

impl TimeSource for TimeOfDay {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0.unix_millis())
    }
}
