//! What the service manager is told (`Type=notify`, sd_notify(3)): that this agent is up, how its instance is,
//! and, from the loop that does everything, that it is not stuck.

use std::time::Duration;

use outstation_protocol::v1::NodeState;
use sd_notify::NotifyState;

/// Half of what the service manager waits for; `None` if it does not.
pub fn watchdog_every() -> Option<Duration> {
    let mut micros = 0;
    sd_notify::watchdog_enabled(false, &mut micros).then(|| Duration::from_micros(micros) / 2)
}

pub fn up() {
    tell(&[NotifyState::Ready]);
}

pub fn not_stuck() {
    tell(&[NotifyState::Watchdog]);
}

pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// One line, as `systemctl status` shows it.
pub fn is(state: &NodeState) {
    let mut line = state.phase.to_string();
    for part in [&state.endpoint, &state.reason].into_iter().flatten() {
        line.push_str(": ");
        line.push_str(part);
    }
    tell(&[NotifyState::Status(&line.replace('\n', " "))]);
}

/// Without a service manager nobody listens.
fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, what) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
