//! How many orders that change something were accepted within the hour: `changes_per_hour` of the guardrails. Pure, but for the
//! few objects in which they are counted.

use std::io;

use outstation_protocol::v1::{Refusal, RefusalRule};
use outstation_protocol::{Generation, GroupName};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::numbered;
use crate::store::AccountStore;

const PREFIX: &str = "state/changes";
const HOUR_SECS: u64 = 3600;

/// One order, as it is written right before it is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    pub group: GroupName,
    pub generation: Generation,
    pub at_unix_secs: u64,
}

/// The newest changes of this account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    pub next: u64,
    newest: Vec<Changed>,
}

impl Changes {
    /// Reads as many as the bound needs.
    pub fn read(store: &AccountStore, per_hour: u32) -> io::Result<Changes> {
        let (next, newest) = numbered::newest(store, PREFIX, per_hour)?;
        Ok(Changes { next, newest })
    }

    /// Why another change has to wait; `None`: it may be accepted now.
    pub fn wait(&self, per_hour: u32, now_unix_secs: u64) -> Option<Refusal> {
        let due = self.due(per_hour, now_unix_secs)?;
        let at =
            i64::try_from(due).ok().and_then(|due| OffsetDateTime::from_unix_timestamp(due).ok());
        let at = at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{due}"));
        Some(Refusal {
            rule: RefusalRule::ChangeRate,
            message: format!(
                "{per_hour} changes were accepted within the hour, changes_per_hour of the account's guardrails; the next is \
                 due at {at}"
            ),
            hint: "it is accepted by itself then; whoever may write guardrails/ in the account store can raise it"
                .to_owned(),
        })
    }

    /// A time in the future was written by an agent whose clock was wrong: it counts as now.
    fn due(&self, per_hour: u32, now_unix_secs: u64) -> Option<u64> {
        let at = self.newest.iter().map(|changed| changed.at_unix_secs.min(now_unix_secs));
        let mut within: Vec<u64> = at.filter(|at| at + HOUR_SECS > now_unix_secs).collect();
        within.sort_unstable();
        let first = within.len().checked_sub(per_hour as usize)?;
        within.get(first).map(|at| at + HOUR_SECS)
    }
}

/// A crash right behind it costs one change of the hour. Fails if another agent has taken this number.
pub fn note(store: &AccountStore, number: u64, changed: &Changed) -> io::Result<()> {
    numbered::note(store, PREFIX, number, changed)
}

#[cfg(test)]
pub(super) fn at(times: &[u64]) -> Changes {
    let changed = |at: &u64| Changed {
        group: GroupName::try_from("a").expect("valid"),
        generation: Generation::FIRST,
        at_unix_secs: *at,
    };
    Changes { next: times.len() as u64, newest: times.iter().map(changed).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_within_any_hour_and_then_the_first_of_them_makes_room() {
        for (times, per_hour, now, wanted) in [
            (&[][..], 1, 10_000, None),
            (&[9_000], 1, 10_000, Some(12_600)),
            (&[9_000], 2, 10_000, None),
            (&[9_000], 1, 12_599, Some(12_600)),
            (&[9_000], 1, 12_600, None),
            (&[1_000, 9_000], 2, 10_000, None),
            (&[8_000, 9_000], 2, 10_000, Some(11_600)),
            // The bound was lowered: as many have to be an hour old as are too many.
            (&[7_000, 8_000, 9_000], 2, 10_000, Some(11_600)),
            // A clock that was ahead: no longer than an hour from now.
            (&[9_999_999], 1, 10_000, Some(13_600)),
            (&[9_000, 8_000], 2, 10_000, Some(11_600)),
        ] {
            assert_eq!(
                at(times).due(per_hour, now),
                wanted,
                "{times:?} at {now}, {per_hour} an hour"
            );
        }
        let wait = at(&[1_795_478_400]).wait(1, 1_795_478_401).expect("it has to wait");
        assert!(wait.message.ends_with("the next is due at 2026-11-24T01:00:00Z"), "{wait:?}");
        assert!(!wait.rule.is_final());
    }

    #[test]
    fn they_are_counted_on_by_whoever_comes_next() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = AccountStore::folder(dir.path());
        assert_eq!(Changes::read(&store, 2).expect("nothing there"), Changes::default());
        for (number, time) in [5_000, 6_000, 7_000].into_iter().enumerate() {
            let changed = at(&[time]).newest[0].clone();
            note(&store, number as u64, &changed).expect("written");
            note(&store, number as u64, &changed).expect_err("a number is taken once");
        }
        let read = Changes::read(&store, 2).expect("read");
        assert_eq!((read.next, read.due(2, 7_000)), (3, Some(9_600)));
        std::fs::write(dir.path().join("state/changes/00000003"), b"{").expect("written");
        Changes::read(&store, 2).expect_err("what cannot be read is not taken for nothing");
    }
}
