//! Where a reader of the event log stands. Pure: nothing is shown twice whatever is sent again, and
//! what is missing is shown as missing.

use outstation_api::admin::gap::Reason;
use outstation_api::admin::watch_events_response::What;
use outstation_api::admin::{Cursor, Event, Gap, Reached, WatchEventsRequest, WatchEventsResponse};

use outstation_protocol::ids::GroupName;

/// What is printed.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    Event(Box<Event>),
    Gap(Gap),
}

#[derive(Debug, Clone)]
pub struct Reader {
    group: Option<GroupName>,
    since_unix_secs: u64,
    follow: bool,
    /// Behind the last event that was shown or passed over.
    cursor: Option<Cursor>,
    /// There was nothing behind the cursor when it was last moved.
    whole: bool,
    shown: u64,
}

impl Reader {
    pub fn new(
        group: Option<GroupName>,
        after: Option<u64>,
        since_unix_secs: u64,
        follow: bool,
    ) -> Reader {
        let cursor = after.map(|sequence| Cursor { sequence, ..Cursor::default() });
        Reader { group, since_unix_secs, follow, cursor, whole: false, shown: 0 }
    }

    /// From where it stands on.
    pub fn request(&self) -> WatchEventsRequest {
        WatchEventsRequest {
            data_plane: None,
            group: self.group.as_ref().map(ToString::to_string).unwrap_or_default(),
            after: self.cursor.clone(),
            since_unix_secs: self.since_unix_secs,
            follow: self.follow,
        }
    }

    pub fn handle(&mut self, response: WatchEventsResponse) -> Option<Item> {
        match response.what {
            Some(What::Event(event)) => {
                let cursor = event.cursor.clone()?;
                let repeated = self.cursor.as_ref().is_some_and(|at| {
                    // A number that a person typed is of whatever log there is.
                    (at.log.is_empty() || at.log == cursor.log) && cursor.sequence <= at.sequence
                });
                if repeated {
                    return None;
                }
                self.cursor = Some(cursor);
                self.whole = false;
                self.shown += 1;
                Some(Item::Event(Box::new(event)))
            }
            Some(What::Gap(gap)) => {
                // What comes now is behind this number, of a log that its events name.
                self.cursor = Some(Cursor { sequence: gap.resumes_after, ..Cursor::default() });
                self.whole = false;
                Some(Item::Gap(gap))
            }
            Some(What::Reached(Reached { cursor, newest })) => {
                self.cursor = cursor.or(self.cursor.take());
                self.whole = newest;
                None
            }
            // Of a newer broker; what it means for the cursor, its next `reached` says.
            None => None,
        }
    }

    /// Everything that was asked for has been shown.
    pub fn is_done(&self) -> bool {
        self.whole && !self.follow
    }

    pub fn shown(&self) -> u64 {
        self.shown
    }
}

/// What a gap means, in one line.
pub fn gap_text(gap: &Gap) -> String {
    let Gap { after, resumes_after, .. } = *gap;
    match gap.reason() {
        Reason::Pruned => format!(
            "events {} to {resumes_after} are gone: the log keeps a bounded number of them",
            after + 1
        ),
        Reason::OtherLog => format!(
            "the broker has another database than before: event {after} was of the old one, what \
             follows is all that the new one knows"
        ),
        Reason::OlderLog => format!(
            "the broker has an older copy of its database: what was seen up to event {after} is \
             partly not in it, it goes on behind event {resumes_after}"
        ),
        Reason::Beyond => format!(
            "there is no event {after} yet, the newest is {resumes_after}: is the number of another \
             broker or of an older database?"
        ),
        Reason::Unspecified => {
            format!("something is missing between events {after} and {resumes_after}")
        }
    }
}

pub fn gap_name(gap: &Gap) -> &'static str {
    match gap.reason() {
        Reason::Pruned => "pruned",
        Reason::OtherLog => "other_log",
        Reason::OlderLog => "older_log",
        Reason::Beyond => "beyond",
        Reason::Unspecified => "unspecified",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(log: &str, sequence: u64) -> Option<Cursor> {
        Some(Cursor { log: log.into(), run: "run".into(), sequence })
    }

    fn event(log: &str, sequence: u64) -> What {
        What::Event(Event { cursor: cursor(log, sequence), ..Event::default() })
    }

    fn reached(log: &str, sequence: u64, newest: bool) -> What {
        What::Reached(Reached { cursor: cursor(log, sequence), newest })
    }

    fn gap(reason: Reason, after: u64, resumes_after: u64) -> What {
        What::Gap(Gap { reason: reason.into(), after, resumes_after })
    }

    fn check(after: Option<u64>, sent: &[What], shown: &[&str], stands: (&str, u64), done: bool) {
        let mut reader = Reader::new(None, after, 0, false);
        let mut seen = Vec::new();
        for what in sent {
            seen.extend(reader.handle(WatchEventsResponse { what: Some(what.clone()) }));
        }
        let words: Vec<String> = seen
            .iter()
            .map(|item| match item {
                Item::Event(event) => event.cursor.as_ref().expect("one").sequence.to_string(),
                Item::Gap(gap) => gap_name(gap).to_owned(),
            })
            .collect();
        assert_eq!(words, shown, "{sent:?}");
        let at = reader.request().after.expect("it has seen something");
        assert_eq!((at.log.as_str(), at.sequence, reader.is_done()), (stands.0, stands.1, done));
    }

    #[test]
    fn nothing_is_shown_twice_and_nothing_is_missing_unsaid() {
        use Reason::{OlderLog, OtherLog, Pruned};
        check(None, &[event("a", 1), event("a", 2)], &["1", "2"], ("a", 2), false);
        check(None, &[event("a", 2), reached("a", 9, true)], &["2"], ("a", 9), true);
        check(None, &[reached("a", 9, true), event("a", 10)], &["10"], ("a", 10), false);
        check(
            None,
            &[event("a", 1), event("a", 2), event("a", 1), event("a", 2), event("a", 3)],
            &["1", "2", "3"],
            ("a", 3),
            false,
        );
        check(Some(7), &[event("a", 7), event("a", 8)], &["8"], ("a", 8), false);
        check(
            None,
            &[event("a", 3), gap(Pruned, 3, 8), event("a", 9), reached("a", 9, true)],
            &["3", "pruned", "9"],
            ("a", 9),
            true,
        );
        check(
            None,
            &[event("a", 30), gap(OtherLog, 30, 0), event("b", 1), event("b", 2)],
            &["30", "other_log", "1", "2"],
            ("b", 2),
            false,
        );
        check(
            None,
            &[event("a", 30), gap(OlderLog, 30, 20), event("a", 21), event("a", 21)],
            &["30", "older_log", "21"],
            ("a", 21),
            false,
        );
    }

    #[test]
    fn a_gap_is_one_line() {
        for (reason, wanted) in [
            (Reason::Pruned, "events 4 to 8 are gone"),
            (Reason::OtherLog, "another database than before: event 3"),
            (Reason::OlderLog, "an older copy of its database"),
            (Reason::Beyond, "there is no event 3 yet, the newest is 8"),
            (Reason::Unspecified, "something is missing"),
        ] {
            let text = gap_text(&Gap { reason: reason.into(), after: 3, resumes_after: 8 });
            assert!(text.contains(wanted) && !text.contains('\n'), "{text}");
        }
    }
}
