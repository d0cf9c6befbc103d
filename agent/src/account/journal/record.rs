//! One line of the journal, and the chain that the lines make. Pure.
//!
//! A line is JSON; each names the SHA-256 of the line before it, so none can be changed, dropped or put in between
//! without changing all that follow. A chain begins on an empty disk, and names what the account store
//! knows of the one before.

use outstation_protocol::v1::RefusalRule;
use outstation_protocol::{DataPlane, Digest, Generation, GroupName};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// From 1, without a gap.
    pub seq: u64,
    pub at_unix_secs: u64,
    /// Of the line before; none on the first.
    pub prev: Option<Digest>,
    pub event: Event,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// A chain begins.
    Began { data_plane: DataPlane, follows: Option<Anchor>, reason: String },
    /// An agent took the chain up.
    Started { release: String, pid: u32 },
    /// An order came, and what became of it.
    Order {
        group: GroupName,
        generation: Generation,
        digest: Digest,
        refused: Option<RefusalRule>,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        message: String,
    },
    /// What the calls behind it are for.
    Action { group: GroupName, generation: Generation, digest: Digest, action: String },
    /// A call that may change something is about to be made. The body as it is sent; never a header.
    Call { service: String, call: String, request: String },
    /// How the call in record `of` ended. Without one the agent died in between: the call may have been made.
    Outcome { of: u64, status: Option<u16>, code: Option<String>, request_id: Option<String> },
    /// A call that only looks, after it ended.
    Look {
        service: String,
        call: String,
        status: Option<u16>,
        code: Option<String>,
        request_id: Option<String>,
    },
    /// So many were not written down one by one.
    Skipped { refusals: u64, looks: u64 },
}

/// What the account store remembers of a chain: written before each call that may change something,
/// never replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchor {
    pub chain: String,
    pub seq: u64,
    /// Of the line of that record.
    pub digest: Digest,
    /// The last of the records up to that one, as lines: those that the agent's disk did not take.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
}

/// The end of a chain: the next record names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Head {
    pub seq: u64,
    pub digest: Option<Digest>,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("the line behind record {after} is not a record: {why}")]
    NotARecord { after: u64, why: String },
    #[error("record {found} stands where {expected} belongs")]
    Gap { expected: u64, found: u64 },
    #[error("record {seq} does not follow the one before it: one of the two was changed")]
    Link { seq: u64 },
}

impl Head {
    /// The next line of the chain, with its end, and the head behind it.
    pub fn append(self, at_unix_secs: u64, event: Event) -> (Vec<u8>, Head) {
        let record = Record { seq: self.seq + 1, at_unix_secs, prev: self.digest, event };
        let mut line = serde_json::to_vec(&record).expect("plain values always serialize");
        let digest = Some(Digest::of(&line));
        line.push(b'\n');
        (line, Head { seq: record.seq, digest })
    }

    /// Reads the next line, without its end.
    pub fn follow(self, line: &[u8]) -> Result<(Record, Head), Broken> {
        let record: Record = serde_json::from_slice(line)
            .map_err(|error| Broken::NotARecord { after: self.seq, why: error.to_string() })?;
        if record.seq != self.seq + 1 {
            return Err(Broken::Gap { expected: self.seq + 1, found: record.seq });
        }
        if record.prev != self.digest {
            return Err(Broken::Link { seq: record.seq });
        }
        let head = Head { seq: record.seq, digest: Some(Digest::of(line)) };
        Ok((record, head))
    }

    /// The head that the first line of a segment says it follows: what came before it is elsewhere.
    pub fn before(line: &[u8]) -> Result<Head, Broken> {
        let record: Record = serde_json::from_slice(line)
            .map_err(|error| Broken::NotARecord { after: 0, why: error.to_string() })?;
        Ok(Head { seq: record.seq.saturating_sub(1), digest: record.prev })
    }
}

/// The lines of a segment that are whole, and how many bytes they are: behind them is at most what a writer
/// left that was killed in the middle of a line.
pub fn whole_lines(bytes: &[u8]) -> (impl Iterator<Item = &[u8]>, usize) {
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let lines = bytes[..end].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    (lines, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(looks: u64) -> Event {
        Event::Skipped { refusals: 0, looks }
    }

    fn chain(records: u64) -> Vec<Vec<u8>> {
        let mut head = Head::default();
        let mut lines = Vec::new();
        for number in 0..records {
            let (line, next) = head.append(1000 + number, skipped(number));
            lines.push(line[..line.len() - 1].to_vec());
            head = next;
        }
        lines
    }

    fn read(lines: &[Vec<u8>]) -> Result<u64, Broken> {
        let mut head = Head::default();
        for line in lines {
            head = head.follow(line)?.1;
        }
        Ok(head.seq)
    }

    #[test]
    fn a_chain_is_read_as_it_was_written() {
        assert_eq!(read(&chain(5)), Ok(5));
        let second = chain(2)[1].clone();
        let (record, _) = Head::before(&second).expect("a record").follow(&second).expect("whole");
        assert_eq!((record.seq, record.event), (2, skipped(1)));
    }

    #[test]
    fn whatever_is_done_to_a_chain_shows() {
        let at = |lines: &mut Vec<Vec<u8>>, from: &str, to: &str| {
            let text = String::from_utf8(lines[2].clone()).expect("JSON").replace(from, to);
            lines[2] = text.into_bytes();
        };
        type Change = Box<dyn Fn(&mut Vec<Vec<u8>>)>;
        let cases: [(&str, Change, Broken); 6] = [
            (
                "a value",
                Box::new(move |l| at(l, "\"looks\":2", "\"looks\":3")),
                Broken::Link { seq: 4 },
            ),
            ("a time", Box::new(move |l| at(l, "1002", "1001")), Broken::Link { seq: 4 }),
            ("dropped", Box::new(|l| drop(l.remove(2))), Broken::Gap { expected: 3, found: 4 }),
            (
                "twice",
                Box::new(|l| l.insert(2, l[2].clone())),
                Broken::Gap { expected: 4, found: 3 },
            ),
            ("swapped", Box::new(|l| l.swap(2, 3)), Broken::Gap { expected: 3, found: 4 }),
            (
                "number",
                Box::new(move |l| at(l, "\"seq\":3", "\"seq\":9")),
                Broken::Gap { expected: 3, found: 9 },
            ),
        ];
        for (name, change, broken) in cases {
            let mut lines = chain(5);
            change(&mut lines);
            assert_eq!(read(&lines), Err(broken), "{name}");
        }
        let mut lines = chain(5);
        lines[2].truncate(20);
        assert!(matches!(read(&lines), Err(Broken::NotARecord { after: 2, .. })));
        // A line may not bear what a reader would pass over.
        let mut lines = chain(1);
        let text = String::from_utf8(lines.remove(0)).expect("JSON").replacen('{', "{\"x\":1,", 1);
        assert!(matches!(read(&[text.into_bytes()]), Err(Broken::NotARecord { after: 0, .. })));
    }

    #[test]
    fn half_a_line_at_the_end_is_no_line() {
        let mut bytes = chain(2).join(&b'\n');
        bytes.push(b'\n');
        let whole = bytes.len();
        bytes.extend_from_slice(b"{\"seq\":3");
        let (lines, end) = whole_lines(&bytes);
        assert_eq!((lines.count(), end), (2, whole));
        assert_eq!(whole_lines(b"{").1, 0);
    }
}
