//! The chain on the agent's disk: `<state>/journal/<chain>/<number of its first record>.jsonl`, segment
//! after segment.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use outstation_protocol::DataPlane;

use super::JournalError;
use super::record::{Anchor, Event, Head, whole_lines};
use super::store::{Store, names};

/// A day or so of a quiet account.
const SEGMENT_BYTES_MAX: u64 = 4 << 20;
/// Kept on this disk beside the open segment, once they are in the account store.
const SEGMENTS_KEPT_MAX: usize = 8;
/// Of records, while the disk takes none: some hundred calls and their outcomes.
const UNWRITTEN_BYTES_MAX: usize = 256 << 10;

#[derive(Debug)]
pub struct Chain {
    name: String,
    folder: PathBuf,
    segment: String,
    file: File,
    /// Of whole lines that are in the file.
    bytes: u64,
    head: Head,
    /// Lines that the disk does not take, oldest first. They are carried to the account store by the next anchor.
    unwritten: VecDeque<(u64, Vec<u8>)>,
    unwritten_bytes: usize,
    /// The last record that an anchor has carried.
    carried: u64,
    /// A write failed: what is behind the whole lines is nothing.
    torn: bool,
}

impl Chain {
    /// Takes up the newest chain on this disk. One that is not as it was anchored is left as it is, for people,
    /// and another begins, which says so.
    pub fn open(
        disk: &Path,
        store: &Store,
        data_plane: &DataPlane,
        now_unix_secs: u64,
    ) -> Result<Chain, JournalError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| JournalError::Io { path, source }
        };
        fs::create_dir_all(disk).map_err(io(disk))?;
        let newest = names(disk).map_err(io(disk))?.into_iter().next_back();
        let mut reason = "there is no journal on this disk".to_owned();
        if let Some(name) = &newest {
            match Chain::take_up(disk, store, name) {
                Ok(mut chain) => {
                    let release = env!("CARGO_PKG_VERSION").to_owned();
                    let started = Event::Started { release, pid: std::process::id() };
                    chain.append(now_unix_secs, started)?;
                    return Ok(chain);
                }
                // Nothing is wrong with a chain that cannot be read at this moment.
                Err(error) if error.kind() != io::ErrorKind::InvalidData => {
                    return Err(io(&disk.join(name))(error));
                }
                Err(error) => {
                    tracing::error!(chain = %name, %error, "the journal on this disk is damaged: it is left \
                        as it is, and another begins; outstation-agent journal verify shows more");
                    reason = format!("chain {name} on this disk is damaged: {error}");
                }
            }
        }
        let anchored = store.chains().map_err(io(disk))?.into_iter().next_back();
        let follows = match &anchored {
            Some(chain) => store
                .newest_anchor(chain, 0)
                .map_err(io(disk))?
                .map(|anchor| Anchor { lines: Vec::new(), ..anchor }),
            None => None,
        };
        let newest = newest.max(anchored);
        let name = chain_name(now_unix_secs, newest.as_deref());
        let folder = disk.join(&name);
        fs::create_dir(&folder).map_err(io(&folder))?;
        let mut chain =
            Chain::begin_segment(folder.clone(), name, Head::default()).map_err(io(&folder))?;
        let began = Event::Began { data_plane: data_plane.clone(), follows, reason };
        chain.append(now_unix_secs, began)?;
        Ok(chain)
    }

    /// [`io::ErrorKind::InvalidData`] if it is not whole.
    fn take_up(disk: &Path, store: &Store, name: &str) -> io::Result<Chain> {
        let damaged = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let folder = disk.join(name);
        let segment = names(&folder)?.into_iter().next_back();
        // Killed before its first record was there.
        let segment = segment.unwrap_or_else(|| segment_name(1));
        let path = folder.join(&segment);
        let file = open(&path)?;
        let bytes = fs::read(&path)?;
        let (lines, whole) = whole_lines(&bytes);
        let mut head = None::<Head>;
        let begins = segment.trim_end_matches(".jsonl").parse::<u64>().unwrap_or(0);
        // What was anchored before this segment is of no use here.
        let anchor = store.newest_anchor(name, begins.saturating_sub(1))?;
        let mut anchored_here = None;
        for line in lines {
            let before = match head {
                Some(head) => head,
                None => Head::before(line).map_err(|error| damaged(error.to_string()))?,
            };
            let (record, next) = before.follow(line).map_err(|error| damaged(error.to_string()))?;
            if anchor.as_ref().is_some_and(|anchor| anchor.seq == record.seq) {
                anchored_here = next.digest;
            }
            head = Some(next);
        }
        let head = match (head, segment == segment_name(1)) {
            (Some(head), _) => head,
            (None, true) => Head::default(),
            // A segment begins when there is something to write, with it.
            (None, false) => return Err(damaged(format!("{segment} is empty"))),
        };
        let mut chain = Chain {
            // Behind the whole lines may be half a one.
            torn: whole < bytes.len(),
            bytes: whole as u64,
            ..Chain::new(folder, name.to_owned(), segment, file, head)
        };
        if let Some(anchor) = anchor {
            if anchor.seq > head.seq {
                chain.restore(store, &anchor)?;
            }
            if (begins..=head.seq).contains(&anchor.seq) && anchored_here != Some(anchor.digest) {
                return Err(damaged(format!("record {} is not the anchored one", anchor.seq)));
            }
        }
        chain.repair()?;
        chain.file.seek(SeekFrom::End(0))?;
        Ok(chain)
    }

    /// The agent died while its disk took nothing: the anchors have carried what is missing.
    fn restore(&mut self, store: &Store, newest: &Anchor) -> io::Result<()> {
        let damaged = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let ends = self.head.seq;
        for anchor in store.anchors_after(&self.name, ends)?.into_values() {
            for line in &anchor.lines {
                let (_, head) =
                    self.head.follow(line.as_bytes()).map_err(|e| damaged(e.to_string()))?;
                self.keep(head, format!("{line}\n").into_bytes());
            }
        }
        self.carried = self.head.seq;
        if (self.head.seq, self.head.digest) != (newest.seq, Some(newest.digest)) {
            return Err(damaged(format!("it ends at record {ends}, {} is anchored", newest.seq)));
        }
        Ok(())
    }

    fn new(folder: PathBuf, name: String, segment: String, file: File, head: Head) -> Chain {
        let (unwritten, unwritten_bytes) = (VecDeque::new(), 0);
        let (bytes, carried, torn) = (0, head.seq, false);
        Chain {
            name,
            folder,
            segment,
            file,
            bytes,
            head,
            unwritten,
            unwritten_bytes,
            carried,
            torn,
        }
    }

    fn begin_segment(folder: PathBuf, name: String, head: Head) -> io::Result<Chain> {
        let segment = segment_name(head.seq + 1);
        let file = open(&folder.join(&segment))?;
        File::open(&folder)?.sync_all()?;
        Ok(Chain::new(folder, name, segment, file, head))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn head(&self) -> Head {
        self.head
    }

    /// The record is in the chain. Not on the disk for certain before [`Chain::secure`].
    pub fn append(&mut self, now_unix_secs: u64, event: Event) -> Result<Head, JournalError> {
        let (line, head) = self.head.append(now_unix_secs, event);
        if self.unwritten_bytes + line.len() > UNWRITTEN_BYTES_MAX {
            self.flush()?;
        }
        self.keep(head, line);
        // What is kept is tried again with the next one.
        let _ = self.flush();
        Ok(head)
    }

    fn keep(&mut self, head: Head, line: Vec<u8>) {
        self.unwritten_bytes += line.len();
        self.unwritten.push_back((head.seq, line));
        self.head = head;
    }

    fn repair(&mut self) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.bytes)?;
            self.file.seek(SeekFrom::End(0))?;
            self.torn = false;
        }
        Ok(())
    }

    /// Writes what is not written yet.
    pub fn flush(&mut self) -> Result<(), JournalError> {
        if self.unwritten.is_empty() {
            return Ok(());
        }
        let lines: Vec<u8> = self.unwritten.iter().flat_map(|(_, line)| line).copied().collect();
        let written = self.repair().and_then(|()| self.file.write_all(&lines));
        written.map_err(|source| {
            self.torn = true;
            JournalError::Io { path: self.folder.join(&self.segment), source }
        })?;
        self.bytes += lines.len() as u64;
        self.unwritten.clear();
        self.unwritten_bytes = 0;
        Ok(())
    }

    /// All records up to now cannot be denied any more: they are on the disk, or the anchor carries them.
    pub fn secure(&mut self, store: &Store) -> Result<(), JournalError> {
        if self.unwritten.is_empty() {
            let io = |source| JournalError::Io { path: self.folder.join(&self.segment), source };
            self.file.sync_data().map_err(io)?;
        }
        let lines = self.unwritten.iter().filter(|(seq, _)| *seq > self.carried);
        let lines = lines.map(|(_, line)| String::from_utf8_lossy(line).trim_end().to_owned());
        store.anchor(&self.name, self.head, lines.collect())?;
        self.carried = self.head.seq;
        Ok(())
    }

    /// Goes on in another segment when this one is long enough, and puts the closed ones into the account store.
    /// What does not work now is done at the next turn: nothing is removed that is not there.
    pub fn rotate(&mut self, store: &Store) -> Result<(), JournalError> {
        if self.bytes < SEGMENT_BYTES_MAX || !self.unwritten.is_empty() {
            return Ok(());
        }
        self.secure(store)?;
        let io = |path: &Path, source| JournalError::Io { path: path.to_owned(), source };
        *self = Chain::begin_segment(self.folder.clone(), self.name.clone(), self.head)
            .map_err(|source| io(&self.folder, source))?;
        self.archive(store).map_err(|source| io(Path::new(&store.segments(&self.name)), source))
    }

    fn archive(&self, store: &Store) -> io::Result<()> {
        let mut closed = names(&self.folder)?;
        closed.retain(|segment| *segment != self.segment);
        for segment in &closed {
            if !store.has_segment(&self.name, segment) {
                store.archive(&self.name, segment, &fs::read(self.folder.join(segment))?)?;
            }
        }
        for segment in &closed[..closed.len().saturating_sub(SEGMENTS_KEPT_MAX)] {
            fs::remove_file(self.folder.join(segment))?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

fn segment_name(first: u64) -> String {
    format!("{first:020}.jsonl")
}

/// Sorts behind every chain before it, also when the clock was set back.
fn chain_name(now_unix_secs: u64, newest: Option<&str>) -> String {
    let before = newest.and_then(|name| name.split_once('-')?.0.parse::<u64>().ok()).unwrap_or(0);
    format!("{:012}-{:08x}", now_unix_secs.max(before + 1), rand::random::<u32>())
}

#[cfg(test)]
mod tests {
    use super::super::verify;
    use super::*;
    use crate::account::testing::{identity, temporary_folder};
    use crate::store::AccountStore;

    fn call(number: u32) -> Event {
        let request = format!("MaxSize={number}");
        Event::Call {
            service: "Auto Scaling".into(),
            call: "UpdateAutoScalingGroup".into(),
            request,
        }
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_carried_by_the_anchors_and_comes_back_from_them() {
        let folder = temporary_folder();
        let disk = folder.path().join("journal");
        let store = Store::new(AccountStore::folder(&folder.path().join("store")));
        let open = || Chain::open(&disk, &store, &identity().data_plane, 1000).expect("it opens");
        let faults = || {
            let kept = verify::read(Some(&disk), &store).expect("readable");
            let verified = verify::verify(&kept[0]);
            (kept.len(), verified.records, verified.anchors, verified.faults)
        };
        let mut chain = open();
        chain.append(1000, call(1)).expect("kept");
        chain.secure(&store).expect("secured");
        chain.file = OpenOptions::new().write(true).open("/dev/full").expect("a full disk");
        for number in 2..4 {
            chain.append(1000, call(number)).expect("kept");
            chain.append(1000, Event::Skipped { refusals: 0, looks: 1 }).expect("kept");
            chain.secure(&store).expect("the account store has it");
            assert!(chain.flush().is_err(), "the disk does not");
        }
        assert_eq!(faults(), (1, 6, 3, vec![]), "nothing is missing");
        drop(chain);

        let mut chain = open();
        assert_eq!((chain.head.seq, chain.unwritten.len()), (7, 0), "there is room again");
        assert_eq!(faults(), (1, 7, 3, vec![]));
        chain.file = OpenOptions::new().write(true).open("/dev/full").expect("a full disk");
        let kept = (0..3000).take_while(|_| chain.append(1000, call(9)).is_ok()).count();
        assert!((500..3000).contains(&kept), "and no more than is bounded: {kept}");
    }
}
