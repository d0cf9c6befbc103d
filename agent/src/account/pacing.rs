//! The token bucket where the SDK makes its calls: each waits for its turn, and what AWS answers sets the pace.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_autoscaling::config::{AsyncSleep as _, SharedAsyncSleep};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeTransmitInterceptorContextRef, FinalizerInterceptorContextRef,
};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::{ConfigBag, Storable, StoreReplace};

use super::backoff::is_throttling;
use super::journal::intercept::error_code;
use super::pace::Pace;
use super::shared::lock;
use crate::clock::Clock;

/// The bucket that all clients of one agent share.
#[derive(Debug, Clone)]
pub struct Pacer {
    pace: Arc<Mutex<Pace>>,
    clock: Clock,
    sleep: Option<SharedAsyncSleep>,
}

impl Pacer {
    pub fn new(rate_max: u32, clock: Clock) -> Pacer {
        let pace = Arc::new(Mutex::new(Pace::new(rate_max, clock.now())));
        Pacer { pace, clock, sleep: None }
    }

    /// Waits as the SDK waits, so that a simulation's time counts here too.
    pub(super) fn waiting_by(mut self, sleep: Option<SharedAsyncSleep>) -> Pacer {
        self.sleep = sleep;
        self
    }

    /// Before each call. Whoever gives up waiting makes room for the next.
    pub async fn turn(&self) {
        let wait = lock(&self.pace).take(self.clock.now());
        if wait.is_zero() {
            return;
        }
        let waiting = Waiting(self);
        self.pause(wait).await;
        std::mem::forget(waiting);
    }

    /// By the same clock, for no turn.
    pub(super) async fn pause(&self, wait: Duration) {
        match &self.sleep {
            Some(sleep) => sleep.sleep(wait).await,
            None => tokio::time::sleep(wait).await,
        }
    }

    /// The call is not made after all.
    pub fn give_back(&self) {
        lock(&self.pace).give_back(self.clock.now());
    }

    /// The SDK repeats a call by itself, after a pause of its own: later calls wait the longer.
    pub(super) fn repeated(&self) {
        lock(&self.pace).take(self.clock.now());
    }

    pub(super) fn slow_down(&self) {
        let mut pace = lock(&self.pace);
        pace.slow_down(self.clock.now());
        tracing::warn!(calls_per_second = pace.rate(), "AWS says that calls come too fast: slower");
    }
}

/// A turn that has not come yet.
struct Waiting<'a>(&'a Pacer);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// An attempt of this call was made already; the first was paid for before the call.
#[derive(Debug, Clone, Copy)]
struct Attempted;

impl Storable for Attempted {
    type Storer = StoreReplace<Self>;
}

impl Intercept for Pacer {
    fn name(&self) -> &'static str {
        "Pacer"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if cfg.load::<Attempted>().is_some() {
            self.repeated();
        }
        cfg.interceptor_state().store_put(Attempted);
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let code = context.response().and_then(error_code);
        if code.is_some_and(|code| is_throttling(&code)) {
            self.slow_down();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes that all join at once, time out and come again must not make everybody else wait for turns that nobody takes.
    #[tokio::test]
    async fn who_gives_up_waiting_leaves_no_debt() {
        let pacer = Pacer::new(5, Clock::System);
        for _ in 0..10 {
            pacer.turn().await;
        }
        for _ in 0..1000 {
            let _ = tokio::time::timeout(Duration::ZERO, pacer.turn()).await;
        }
        let wait = lock(&pacer.pace).take(pacer.clock.now());
        assert!(wait <= Duration::from_millis(200), "{wait:?}");
    }
}
