//! What this agent was told and what it did, for the account's own auditors: every order and every AWS
//! call, in a chain of records on the agent's disk, anchored in the account store.
//!
//! Order of things for a call that may change something: the record of it is on disk, its **anchor** is in the
//! account store, and only then is the call made. While the disk takes nothing, the anchor carries the record ([`intercept`]). Anchors are created and never
//! replaced, so a chain that was cut, changed or made anew does not fit them ([`verify`]).

mod chain;
pub mod command;
pub mod intercept;
pub mod record;
mod store;
pub mod verify;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use outstation_protocol::DataPlane;
use outstation_protocol::v1::RefusalRule;

use self::chain::Chain;
use self::record::{Event, Head};
use self::store::Store;
use super::shared::lock;
use crate::clock::Clock;
use crate::store::{AccountStore, StoreError};

/// Refusals written down one by one within a minute. A broker that is not to be trusted can send as many
/// as it likes; the rest is counted.
const REFUSALS_PER_MINUTE_MAX: u32 = 60;

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the journal cannot be written: {path}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the journal cannot be anchored: {path}")]
    Anchor { path: String, source: StoreError },
    #[error(
        "the account store has another anchor for record {seq} of chain {chain}: somebody else wrote it, \
         or this disk was put back to an older state"
    )]
    Forked { chain: String, seq: u64 },
}

#[derive(Debug)]
pub struct Journal {
    data_plane: DataPlane,
    /// `<state>/journal`
    disk: PathBuf,
    /// `journal/` of the account store
    store: Store,
    clock: Clock,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// None until it is used, and when somebody else has written to it: then it is read again.
    chain: Option<Chain>,
    skipped: Skipped,
    trouble: Option<String>,
}

#[derive(Debug, Default)]
struct Skipped {
    minute: u64,
    written: u32,
    looked_minute: u64,
    refusals: u64,
    looks: u64,
}

/// How the journal is, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub head: Option<(String, Head)>,
    pub trouble: Option<String>,
}

impl Journal {
    pub fn new(
        state: &Path,
        account_store: AccountStore,
        data_plane: DataPlane,
        clock: Clock,
    ) -> Journal {
        let (disk, store) = (state.join("journal"), Store::new(account_store));
        Journal { data_plane, disk, store, clock, inner: Mutex::default() }
    }

    /// Writes down what changes nothing by itself. A journal that cannot take it is told of in the log.
    pub fn note(&self, event: Event) {
        self.with(|inner| self.noted(inner, event));
    }

    fn noted(&self, inner: &mut Inner, event: Event) {
        let now = self.clock.unix_secs();
        let in_trouble = inner.trouble.is_some();
        if inner.skipped.leaves_out(&event, now, in_trouble) {
            return;
        }
        let noted = self.append(inner, event).map(drop);
        inner.tell(&noted);
    }

    /// Writes down a call that may change something: on this disk, and its anchor in the account store. It may be
    /// made when this has returned, and not otherwise. The number is for its outcome.
    pub fn before_call(&self, event: Event) -> Result<u64, JournalError> {
        self.with(|inner| self.anchored(inner, event))
    }

    fn anchored(&self, inner: &mut Inner, event: Event) -> Result<u64, JournalError> {
        let written = self.append(inner, event).and_then(|head| {
            let chain = inner.chain.as_mut().expect("it was just appended to");
            chain.secure(&self.store).map(|()| head.seq)
        });
        if let Err(JournalError::Forked { .. }) = written {
            inner.chain = None;
        }
        inner.tell(&written.as_ref().map(drop));
        written
    }

    fn append(&self, inner: &mut Inner, event: Event) -> Result<Head, JournalError> {
        let now = self.clock.unix_secs();
        if inner.chain.is_none() {
            inner.chain = Some(Chain::open(&self.disk, &self.store, &self.data_plane, now)?);
        }
        let Inner { chain, skipped, .. } = inner;
        let chain = chain.as_mut().expect("it was opened above");
        if let Some(told) = skipped.told() {
            chain.append(now, told)?;
            *skipped = Skipped { refusals: 0, looks: 0, ..*skipped };
        }
        let head = chain.append(now, event)?;
        chain.rotate(&self.store).map(|()| head)
    }

    pub fn state(&self) -> State {
        self.with(|inner| {
            let head = inner.chain.as_ref().map(|chain| (chain.name().to_owned(), chain.head()));
            State { head, trouble: inner.trouble.clone() }
        })
    }

    /// One at a time, and whoever has it may be waiting for the account store.
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        self.store.account_store.waiting(|| work(&mut lock(&self.inner)))
    }
}

impl Inner {
    /// Told once, not at every record.
    fn tell<E: std::borrow::Borrow<JournalError>>(&mut self, written: &Result<(), E>) {
        let trouble = match written {
            Err(error) => Some(format!("NOTHING IS CHANGED: {}", message(error.borrow()))),
            Ok(()) => self.chain.as_mut().and_then(|chain| chain.flush().err()).map(|error| {
                let why = message(&error);
                format!("its disk takes nothing, the account store gets it with each call: {why}")
            }),
        };
        if self.trouble == trouble {
            return;
        }
        match &trouble {
            Some(trouble) => tracing::error!("the journal: {trouble}"),
            None => tracing::info!("the journal is written again"),
        }
        self.trouble = trouble;
    }
}

fn message(error: &JournalError) -> String {
    match error {
        JournalError::Io { source, .. } => format!("{error}: {source}"),
        JournalError::Anchor { source, .. } => match source {
            StoreError::Disk { source: cause, .. } => format!("{error}: {source}: {cause}"),
            source => format!("{error}: {source}"),
        },
        JournalError::Forked { .. } => error.to_string(),
    }
}

impl Skipped {
    /// Counts what is not written down by itself.
    fn leaves_out(&mut self, event: &Event, now_unix_secs: u64, in_trouble: bool) -> bool {
        match event {
            // Tried once a minute, so that the disk does not fill with what the account store cannot take.
            Event::Look { .. } if in_trouble && self.looked_minute == now_unix_secs / 60 => {
                self.looks += 1;
                true
            }
            Event::Look { .. } => {
                self.looked_minute = now_unix_secs / 60;
                false
            }
            Event::Order { refused: Some(rule), .. } => {
                let minute = now_unix_secs / 60;
                if self.minute != minute {
                    (self.minute, self.written) = (minute, 0);
                }
                // It is asked for again every few seconds.
                let waits = matches!(rule, RefusalRule::AccountStore | RefusalRule::ChangeRate);
                if self.written >= REFUSALS_PER_MINUTE_MAX || waits {
                    self.refusals += 1;
                    return true;
                }
                self.written += 1;
                false
            }
            _ => false,
        }
    }

    fn told(&self) -> Option<Event> {
        let Skipped { refusals, looks, .. } = *self;
        (refusals + looks > 0).then_some(Event::Skipped { refusals, looks })
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
