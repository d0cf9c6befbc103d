//! The event log: what happened, per data plane, in the database that it happened in. An event is
//! written in the transaction of what it tells, so neither is ever there without the other.
//!
//! Its numbers only rise. A reader's cursor names besides the log (made with the database) and the
//! run (each opening of the database is one) of the event that it stopped at: so a database that
//! was put back from a copy is noticed, even when it has grown past the cursor since.

use outstation_protocol::session::Answers;
use outstation_protocol::{AgentId, DataPlane, Digest, Generation, GroupName};
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::news::{EventKind, News, Told};
use super::{Store, StoreError, integer, read_generation, read_id, unsigned};

/// Of one data plane; the oldest go first. At some 300 bytes an event that is 6 MB on the disk: a
/// fleet of 500 groups, each applied to and converged daily (5 events), is kept for a week.
pub const EVENTS_MAX: u64 = 20_000;
/// A peer's text in an event: enough for a line of a terminal or two, and 20,000 of them stay small.
const TEXT_CHARS_MAX: usize = 400;
/// One job of the store's thread: about a millisecond, during which nothing else is written.
pub const EVENTS_READ_MAX: usize = 256;

/// An event as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRecord {
    pub sequence: u64,
    /// The opening of the database in which it was written.
    pub run: String,
    pub at_unix_secs: u64,
    pub group: Option<GroupName>,
    pub generation: Option<Generation>,
    /// The order's digest in short.
    pub digest: Option<String>,
    pub agent: Option<AgentId>,
    /// An [`EventKind`] by its name; one that a newer release wrote is shown as well.
    pub kind: String,
    pub rule: String,
    pub message: String,
    pub hint: String,
}

/// Where a reader stands: after this event. Sequence 0 is before the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub log: String,
    pub run: String,
    pub sequence: u64,
}

/// Why what follows does not join on to what a reader has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapReason {
    /// The bound of the log took the events in between.
    Pruned,
    /// This database was made anew: none of its events has been seen.
    OtherLog,
    /// This is an older copy of the database: what the reader saw last is not in it.
    OlderLog,
    /// A number that this log has not given yet; which log it is of is not known.
    Beyond,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    pub reason: GapReason,
    /// The last that the reader has seen.
    pub after: u64,
    /// Reading goes on behind this one.
    pub resumes_after: u64,
}

/// Which events a reader wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub group: Option<GroupName>,
    pub since_unix_secs: u64,
}

/// Where a reader comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// Wants whatever there is.
    Nothing,
    /// A number that a person typed: which log it is of is not known.
    Sequence(u64),
    Cursor(Cursor),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub gap: Option<Gap>,
    /// In order, at most [`EVENTS_READ_MAX`].
    pub events: Vec<EventRecord>,
    /// Everything up to here was looked at.
    pub reached: Cursor,
    /// There is nothing behind it yet.
    pub newest: bool,
}

/// What the log knows of a reader's cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    log: String,
    /// Of the data plane; 0 and 0 when it has no event.
    oldest: u64,
    newest: u64,
    /// The run of the event at the cursor, if that event is kept.
    run_at_cursor: Option<String>,
    /// The newest event of the cursor's run.
    newest_of_run: Option<u64>,
}

/// Where to go on, and whether anything is missing there.
fn resume(after: &After, known: &Known) -> (u64, Option<Gap>) {
    let first = known.oldest.saturating_sub(1);
    let gap =
        |reason, after, resumes_after| (resumes_after, Some(Gap { reason, after, resumes_after }));
    let joined = |after: u64| match after < first {
        true => gap(GapReason::Pruned, after, first),
        false => (after, None),
    };
    match after {
        After::Nothing => (first, None),
        After::Sequence(after) if *after > known.newest => {
            gap(GapReason::Beyond, *after, known.newest)
        }
        After::Sequence(after) => joined(*after),
        After::Cursor(cursor) if cursor.log != known.log => {
            gap(GapReason::OtherLog, cursor.sequence, first)
        }
        After::Cursor(cursor) if cursor.sequence == 0 => joined(0),
        After::Cursor(cursor) => match &known.run_at_cursor {
            Some(run) if *run == cursor.run => (cursor.sequence, None),
            // Kept no longer: nothing contradicts it.
            None if cursor.sequence < known.oldest => joined(cursor.sequence),
            // Another event is there, or none yet. What the two logs have in common ends with the
            // run; if not even that is here, all of it may be new to the reader.
            Some(_) | None => {
                let common = known.newest_of_run.unwrap_or(first);
                gap(GapReason::OlderLog, cursor.sequence, common)
            }
        },
    }
}

impl Store {
    /// The events behind `after`, oldest first.
    pub async fn events(
        &self,
        data_plane: DataPlane,
        filter: Filter,
        after: After,
    ) -> Result<Batch, StoreError> {
        self.run(move |connection| {
            // One transaction: the bound must not take away what was just found to be there.
            let transaction = connection.transaction()?;
            read(&transaction, &data_plane, &filter, &after)
        })
        .await
    }
}

/// Writes events of a group, or of an agent, at the end of the log, and lets go of the oldest.
pub(super) fn append(
    transaction: &Transaction<'_>,
    data_plane: &DataPlane,
    group: Option<&GroupName>,
    agent: Option<&AgentId>,
    news: Vec<News>,
    now_unix_secs: u64,
) -> Result<(), StoreError> {
    if news.is_empty() {
        return Ok(());
    }
    let DataPlane { account, region } = data_plane;
    // The newest is never let go of, so its number is the highest that was ever given.
    let mut insert = transaction.prepare_cached(
        "INSERT INTO events (account, region, sequence, run, at, name, generation, digest, agent,
                             kind, rule, message, hint)
         SELECT ?1, ?2, COALESCE(MAX(sequence), 0) + 1, (SELECT run FROM event_log),
                ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11
         FROM events WHERE account = ?1 AND region = ?2",
    )?;
    for news in news {
        insert.execute(params![
            account.as_str(),
            region.as_str(),
            integer(now_unix_secs),
            group.map(GroupName::as_str),
            news.generation.map(|generation| integer(generation.0)),
            news.digest.as_ref().map(Digest::short),
            agent.map(AgentId::as_str),
            news.kind.as_str(),
            one_line(&news.rule),
            one_line(&news.message),
            one_line(&news.hint),
        ])?;
    }
    transaction
        .prepare_cached(
            "DELETE FROM events WHERE account = ?1 AND region = ?2 AND sequence <=
                 (SELECT MAX(sequence) - ?3 FROM events WHERE account = ?1 AND region = ?2)",
        )?
        .execute(params![account.as_str(), region.as_str(), integer(EVENTS_MAX)])?;
    Ok(())
}

/// Writes what is news in a group's answers, and keeps what has been told of it.
pub(super) fn tell(
    transaction: &Transaction<'_>,
    data_plane: &DataPlane,
    agent: &AgentId,
    group: &GroupName,
    answers: &Answers,
    now_unix_secs: u64,
) -> Result<(), StoreError> {
    let before = told(transaction, data_plane, group)?;
    let mut after = before.clone();
    let news = after.update(answers, now_unix_secs);
    if after != before {
        keep_told(transaction, data_plane, group, &after)?;
    }
    append(transaction, data_plane, Some(group), Some(agent), news, now_unix_secs)
}

/// Of a group without an order and without an answer nothing is kept: such names come from agents.
pub(super) fn forget_told(
    transaction: &Transaction<'_>,
    data_plane: &DataPlane,
    group: &GroupName,
) -> Result<(), StoreError> {
    let DataPlane { account, region } = data_plane;
    transaction.execute(
        "DELETE FROM told WHERE account = ?1 AND region = ?2 AND name = ?3 AND NOT EXISTS
             (SELECT 1 FROM orders WHERE account = ?1 AND region = ?2 AND name = ?3)",
        params![account.as_str(), region.as_str(), group.as_str()],
    )?;
    Ok(())
}

pub(super) fn told(
    connection: &Connection,
    data_plane: &DataPlane,
    group: &GroupName,
) -> Result<Told, StoreError> {
    let json: Option<String> = connection
        .prepare_cached("SELECT told FROM told WHERE account = ?1 AND region = ?2 AND name = ?3")?
        .query_row(
            params![data_plane.account.as_str(), data_plane.region.as_str(), group.as_str()],
            |row| row.get(0),
        )
        .optional()?;
    let Some(json) = json else {
        return Ok(Told::default());
    };
    serde_json::from_str(&json).map_err(|error| StoreError::Content {
        what: "what was told of a group",
        why: error.to_string(),
    })
}

pub(super) fn keep_told(
    connection: &Connection,
    data_plane: &DataPlane,
    group: &GroupName,
    told: &Told,
) -> Result<(), StoreError> {
    let json = serde_json::to_string(told).map_err(|error| StoreError::Content {
        what: "what was told of a group",
        why: error.to_string(),
    })?;
    connection
        .prepare_cached(
            "INSERT INTO told (account, region, name, told) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET told = ?4",
        )?
        .execute(params![
            data_plane.account.as_str(),
            data_plane.region.as_str(),
            group.as_str(),
            json
        ])?;
    Ok(())
}

fn read(
    connection: &Connection,
    data_plane: &DataPlane,
    filter: &Filter,
    after: &After,
) -> Result<Batch, StoreError> {
    let (known, newest_run) = known(connection, data_plane, after)?;
    let (after, gap) = resume(after, &known);
    let mut statement = connection.prepare_cached(
        "SELECT sequence, run, at, name, generation, digest, agent, kind, rule, message, hint
         FROM events
         WHERE account = ?1 AND region = ?2 AND sequence > ?3 AND at >= ?4
             AND (?5 IS NULL OR name = ?5)
         ORDER BY sequence LIMIT ?6",
    )?;
    let mut rows = statement.query(params![
        data_plane.account.as_str(),
        data_plane.region.as_str(),
        integer(after),
        integer(filter.since_unix_secs),
        filter.group.as_ref().map(GroupName::as_str),
        EVENTS_READ_MAX as i64,
    ])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        let group: Option<String> = row.get(3)?;
        let agent: Option<String> = row.get(6)?;
        events.push(EventRecord {
            sequence: unsigned(row.get(0)?),
            run: row.get(1)?,
            at_unix_secs: unsigned(row.get(2)?),
            group: group
                .map(|name| read_id("a group name", GroupName::try_from(name)))
                .transpose()?,
            generation: row.get::<_, Option<i64>>(4)?.map(read_generation),
            digest: row.get(5)?,
            agent: agent.map(|id| read_id("an agent id", AgentId::try_from(id))).transpose()?,
            kind: row.get(7)?,
            rule: row.get(8)?,
            message: row.get(9)?,
            hint: row.get(10)?,
        });
    }
    let full = events.len() == EVENTS_READ_MAX;
    let last = events.last().filter(|_| full);
    let (sequence, run) = match last {
        Some(last) => (last.sequence, last.run.clone()),
        None => (known.newest, newest_run),
    };
    let newest = sequence == known.newest;
    Ok(Batch { gap, events, reached: Cursor { log: known.log, run, sequence }, newest })
}

/// What `resume` decides by, and the run of the newest event.
fn known(
    connection: &Connection,
    data_plane: &DataPlane,
    after: &After,
) -> Result<(Known, String), StoreError> {
    let plane = (data_plane.account.as_str(), data_plane.region.as_str());
    let log = connection.query_row("SELECT log FROM event_log", [], |row| row.get(0))?;
    let (oldest, newest): (Option<i64>, Option<i64>) = connection.query_row(
        "SELECT (SELECT MIN(sequence) FROM events WHERE account = ?1 AND region = ?2),
                (SELECT MAX(sequence) FROM events WHERE account = ?1 AND region = ?2)",
        plane,
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let (oldest, newest) = (oldest.map_or(0, unsigned), newest.map_or(0, unsigned));
    let run_at = |sequence: u64| {
        connection
            .prepare_cached(
                "SELECT run FROM events WHERE account = ?1 AND region = ?2 AND sequence = ?3",
            )?
            .query_row(params![plane.0, plane.1, integer(sequence)], |row| row.get(0))
            .optional()
    };
    let (mut run_at_cursor, mut newest_of_run) = (None, None);
    if let After::Cursor(cursor) = after {
        run_at_cursor = run_at(cursor.sequence)?;
        // A scan of the log, for the rare case only.
        if run_at_cursor.as_ref() != Some(&cursor.run) {
            newest_of_run = connection.query_row(
                "SELECT MAX(sequence) FROM events WHERE account = ?1 AND region = ?2 AND run = ?3",
                params![plane.0, plane.1, cursor.run],
                |row| row.get::<_, Option<i64>>(0),
            )?;
        }
    }
    let newest_of_run = newest_of_run.map(unsigned);
    let newest_run = run_at(newest)?.unwrap_or_default();
    Ok((Known { log, oldest, newest, run_at_cursor, newest_of_run }, newest_run))
}

/// A peer's text, fit for one line of a terminal and not for more.
fn one_line(text: &str) -> String {
    let mut line: String =
        text.chars().take(TEXT_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(TEXT_CHARS_MAX).is_some() {
        line.push('…');
    }
    line
}

/// An event of the agent itself.
pub(super) fn of_agent(kind: EventKind, message: impl Into<String>) -> Vec<News> {
    vec![News::new(kind, message)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_goes_on_where_it_was_or_is_told_what_is_missing() {
        use GapReason::{Beyond, OlderLog, OtherLog, Pruned};
        let at = |log: &str, run: &str, sequence| {
            After::Cursor(Cursor { log: log.into(), run: run.into(), sequence })
        };
        let known = |oldest, newest, at_cursor: Option<&str>, newest_of_run| Known {
            log: "ours".into(),
            oldest,
            newest,
            run_at_cursor: at_cursor.map(str::to_owned),
            newest_of_run,
        };
        #[rustfmt::skip]
        let cases = [
            ("from the start", After::Nothing, known(1, 9, None, None), 0, None),
            ("from the start of what is kept", After::Nothing, known(5, 9, None, None), 4, None),
            ("of an empty log", After::Nothing, known(0, 0, None, None), 0, None),
            ("a number", After::Sequence(7), known(5, 9, None, None), 7, None),
            ("the number before the first", After::Sequence(4), known(5, 9, None, None), 4, None),
            ("the newest number", After::Sequence(9), known(5, 9, None, None), 9, None),
            ("a number that is pruned", After::Sequence(2), known(5, 9, None, None), 4, Some(Pruned)),
            ("a number not given yet", After::Sequence(12), known(5, 9, None, None), 9, Some(Beyond)),
            ("a number of an empty log", After::Sequence(12), known(0, 0, None, None), 0, Some(Beyond)),
            ("where it was", at("ours", "r2", 7), known(5, 9, Some("r2"), None), 7, None),
            ("at the newest", at("ours", "r2", 9), known(5, 9, Some("r2"), None), 9, None),
            ("before the first", at("ours", "", 0), known(1, 9, None, None), 0, None),
            ("before the first, which is pruned", at("ours", "", 0), known(5, 9, None, None), 4, Some(Pruned)),
            ("of a log that is still empty", at("ours", "", 0), known(0, 0, None, None), 0, None),
            ("just before what is kept", at("ours", "r1", 4), known(5, 9, None, None), 4, None),
            ("pruned", at("ours", "r1", 2), known(5, 9, None, None), 4, Some(Pruned)),
            ("another database", at("theirs", "r2", 7), known(1, 3, None, None), 0, Some(OtherLog)),
            ("another database, grown", at("theirs", "r2", 7), known(5, 9, Some("r2"), None), 4, Some(OtherLog)),
            ("an older copy", at("ours", "r2", 12), known(1, 9, None, Some(9)), 9, Some(OlderLog)),
            ("an older copy, grown", at("ours", "r2", 12), known(1, 20, Some("r3"), Some(9)), 9, Some(OlderLog)),
            ("a copy from before that run", at("ours", "r2", 12), known(1, 20, Some("r3"), None), 0, Some(OlderLog)),
            ("an older copy that is empty", at("ours", "r2", 12), known(0, 0, None, None), 0, Some(OlderLog)),
        ];
        for (case, after, known, wanted, reason) in cases {
            let (resumes_after, gap) = resume(&after, &known);
            assert_eq!((resumes_after, gap.map(|gap| gap.reason)), (wanted, reason), "{case}");
            assert!(gap.is_none_or(|gap| gap.resumes_after == wanted), "{case}");
        }
    }

    #[test]
    fn a_text_is_one_line_and_bounded() {
        assert_eq!(one_line("a\nb\u{1b}[31m\tc"), "a b [31m c");
        let long = one_line(&"x".repeat(10_000));
        assert_eq!(long.chars().count(), TEXT_CHARS_MAX + 1);
        assert_eq!(one_line(&"x".repeat(TEXT_CHARS_MAX)).chars().count(), TEXT_CHARS_MAX);
    }
}
