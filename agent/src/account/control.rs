//! The control link: dials the broker, enrolls when it has no certificate, and drives the session
//! machine. Whatever happens here, the account goes on without it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use outstation_protocol::Envelope;
use outstation_protocol::ids::AgentId;
use outstation_protocol::session::{AgentOutput, AgentSession, Report};
use outstation_protocol::v1::{self, SetEntry, ToAgent};
use tokio_util::sync::CancellationToken;

use super::advice::with_advice;
use super::certificate::{Identity, enroll};
use super::desk::{Desk, is_asked_again};
use super::dial::dial;
use super::floor::Standing;
use super::redial::Redial;
use super::shared::Shared;
use super::vitals::Link;
use crate::frames::{FrameReader, write_frame};

const WRITE_MAX: Duration = Duration::from_secs(10);
/// An order that could not be judged, or not be written down, is asked for again after this.
const ASK_AGAIN: Duration = Duration::from_secs(10);

pub struct Control {
    shared: Arc<Shared>,
    desk: Desk,
    /// The broker answered and turned us away: perhaps it does not know our certificate any more.
    turned_away: bool,
    /// It did so in TLS already: our certificate is not one of its own, and showing it leads nowhere.
    not_believed: bool,
}

/// How a session ended.
struct Ended {
    reason: String,
    retry_after: Option<Duration>,
}

impl Control {
    pub fn new(shared: Arc<Shared>) -> Control {
        let desk = Desk::new(shared.clone());
        Control { shared, desk, turned_away: false, not_believed: false }
    }

    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut redial = Redial::default();
        let mut down_since = None;
        loop {
            let started = self.shared.clock.now();
            let ended = tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.connect() => ended,
            };
            if self.shared.link_live.send_replace(false) {
                down_since = None;
            }
            let lasted = self.shared.clock.now() - started;
            let (reason, retry_after) = match ended {
                Ok(ended) => (ended.reason, ended.retry_after),
                Err(error) => (with_advice(&error), None),
            };
            let pause = redial.pause(lasted, retry_after, rand::random());
            let (attempts, next) = (redial.attempts(), pause.as_secs());
            self.note_link(|now| Link::Waiting {
                reason: reason.clone(),
                since_unix_secs: *down_since.get_or_insert(now),
                attempts,
                next_attempt_unix_secs: now + next,
            });
            tracing::warn!(
                reason,
                attempts = redial.attempts(),
                pause_ms = pause.as_millis() as u64,
                "no control link; the account goes on without it"
            );
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn note_link(&self, link: impl FnOnce(u64) -> Link) {
        let link = link(self.shared.clock.unix_secs());
        self.shared.vitals.note(|notes| notes.link = link);
    }

    async fn connect(&mut self) -> Result<Ended> {
        let broker = self.shared.config.broker.address.clone();
        self.note_link(|since_unix_secs| Link::Dialling { broker, since_unix_secs });
        let identity = self.identity().await?;
        self.shared.know_agent(&identity);
        let connection = dial(&self.shared, Some(&identity), v1::ALPN_CONTROL).await?;
        // Until the broker's welcome says otherwise.
        self.turned_away = true;
        let ended = self.session(&connection, identity.agent).await;
        let closed = connection.close_reason();
        self.not_believed = matches!(closed, Some(quinn::ConnectionError::ConnectionClosed(_)));
        connection.close(0u8.into(), b"");
        ended
    }

    /// The certificate on disk while it is good; else a new one, for the same key. A broker that is
    /// away or refuses costs nothing as long as the present certificate lives.
    async fn identity(&mut self) -> Result<Identity> {
        let present = Identity::load(&self.shared.config.state)?;
        let renew = std::mem::take(&mut self.turned_away);
        match present {
            Some(identity)
                if !renew && !identity.is_past_half_life(self.shared.clock.unix_secs()) =>
            {
                Ok(identity)
            }
            Some(identity) => match enroll(&self.shared, self.to_show(&identity)).await {
                Ok(renewed) => Ok(renewed),
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        until_unix_secs = identity.not_after_unix_secs,
                        "no new certificate; the present one is used on"
                    );
                    Ok(identity)
                }
            },
            None => enroll(&self.shared, None).await.context("enroll at the broker"),
        }
    }

    fn to_show<'a>(&self, present: &'a Identity) -> Option<&'a Identity> {
        let is_valid = present.is_valid(self.shared.clock.unix_secs());
        (is_valid && !self.not_believed).then_some(present)
    }

    async fn session(&mut self, connection: &quinn::Connection, agent: AgentId) -> Result<Ended> {
        let (mut send, receive) = connection.open_bi().await.context("open the session")?;
        let mut receive = FrameReader::new(receive);
        let mut session = self.desk.open_session(agent);
        let mut answers = self.shared.answers.subscribe();
        answers.mark_changed();
        let mut standing = self.shared.standing.subscribe();
        let mut ledger_changed = self.shared.ledger_changed.subscribe();
        // At most what a session has in flight.
        let mut waiting = Vec::new();
        let mut ask_again = None;
        loop {
            while let Some(output) = session.poll_output(self.shared.clock.now()) {
                match output {
                    AgentOutput::Send(message) => {
                        tokio::time::timeout(WRITE_MAX, write_frame(&mut send, &message))
                            .await
                            .context("the broker does not read")??;
                    }
                    AgentOutput::Judge { entry, envelope } => {
                        // The first look comes in a moment, and the answer can wait for it.
                        if *standing.borrow() == Standing::NotLooked {
                            waiting.push((entry, envelope));
                        } else {
                            self.judge(&mut session, entry, &envelope, &mut ask_again);
                        }
                    }
                    AgentOutput::HandBack(entry) => {
                        session.handle_kept(self.desk.hand_back(&entry));
                    }
                    AgentOutput::Live => {
                        tracing::info!(broker = %connection.remote_address(), "control link live");
                        self.turned_away = false;
                        let broker = connection.remote_address().to_string();
                        self.note_link(|since_unix_secs| Link::Connected {
                            broker,
                            since_unix_secs,
                        });
                        self.shared.link_live.send_replace(true);
                        self.shared.look.notify_one();
                    }
                    AgentOutput::Close { reason, retry_after } => {
                        return Ok(Ended { reason, retry_after });
                    }
                }
            }
            let timeout = tokio::time::Instant::from_std(session.next_timeout());
            tokio::select! {
                message = receive.next::<ToAgent>() => match message? {
                    Some(message) => session.handle_message(message, self.shared.clock.now()),
                    None => bail!("the broker ended the session"),
                },
                _ = answers.changed() => {
                    for (group, answers) in answers.borrow_and_update().iter() {
                        for answer in answers {
                            let (group, answer) = (group.clone(), answer.clone());
                            session.handle_report(Report { group, answer });
                        }
                    }
                }
                _ = standing.changed() => {
                    standing.mark_unchanged();
                    for (entry, envelope) in waiting.drain(..) {
                        self.judge(&mut session, entry, &envelope, &mut ask_again);
                    }
                    let can_judge = self.shared.standing.borrow().refusal().is_none();
                    if can_judge && ask_again.take().is_some() {
                        session.ask_again();
                    }
                }
                _ = ledger_changed.changed() => session.handle_ledger(self.desk.heads()),
                () = tokio::time::sleep_until(ask_again.unwrap_or(timeout)),
                    if ask_again.is_some() =>
                {
                    ask_again = None;
                    session.ask_again();
                }
                () = tokio::time::sleep_until(timeout) => session.handle_timeout(self.shared.clock.now()),
            }
            self.desk.keep(&session);
        }
    }

    fn judge(
        &mut self,
        session: &mut AgentSession,
        entry: SetEntry,
        envelope: &Envelope,
        ask_again: &mut Option<tokio::time::Instant>,
    ) {
        let verdict = self.desk.judge(&entry, envelope);
        if is_asked_again(&verdict) {
            *ask_again = Some(tokio::time::Instant::now() + ASK_AGAIN);
        }
        session.handle_verdict(entry, verdict);
        self.desk.keep(session);
    }
}
