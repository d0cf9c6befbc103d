//! The chain on the agent's disk: `<state>/journal/<chain>/<number of its first record>.jsonl`, segment
//! after segment.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use outstation_protocol::DataPlane;

use super::JournalError;
use super::record::{Event, Head, whole_lines};
use super::store::{Store, names};

/// A day or so of a quiet account.
const SEGMENT_BYTES_MAX: u64 = 4 << 20;
/// Kept on this disk beside the open segment, once they are in the account store.
const SEGMENTS_KEPT_MAX: usize = 8;

#[derive(Debug)]
pub struct Chain {
    name: String,
    folder: PathBuf,
    segment: String,
    file: File,
    bytes: u64,
    head: Head,
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
            Some(chain) => store.newest_anchor(chain).map_err(io(disk))?,
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
        let mut file = open(&path)?;
        let bytes = fs::read(&path)?;
        let (lines, whole) = whole_lines(&bytes);
        let mut head = None::<Head>;
        let anchor = store.newest_anchor(name)?;
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
        if let Some(anchor) = anchor {
            let begins = segment.trim_end_matches(".jsonl").parse::<u64>().unwrap_or(0);
            if anchor.seq > head.seq {
                let why = format!("it ends at record {}, {} is anchored", head.seq, anchor.seq);
                return Err(damaged(why));
            }
            if anchor.seq >= begins && anchored_here != Some(anchor.digest) {
                return Err(damaged(format!("record {} is not the anchored one", anchor.seq)));
            }
        }
        if whole < bytes.len() {
            file.set_len(whole as u64)?;
        }
        io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
        Ok(Chain { name: name.to_owned(), folder, segment, file, bytes: whole as u64, head })
    }

    fn begin_segment(folder: PathBuf, name: String, head: Head) -> io::Result<Chain> {
        let segment = segment_name(head.seq + 1);
        let file = open(&folder.join(&segment))?;
        File::open(&folder)?.sync_all()?;
        Ok(Chain { name, folder, segment, file, bytes: 0, head })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn head(&self) -> Head {
        self.head
    }

    /// Not on the disk for certain before [`Chain::sync`]. After an error the chain is to be opened anew.
    pub fn append(&mut self, now_unix_secs: u64, event: Event) -> Result<Head, JournalError> {
        let io = |source| JournalError::Io { path: self.folder.join(&self.segment), source };
        let (line, head) = self.head.append(now_unix_secs, event);
        self.file.write_all(&line).map_err(io)?;
        self.bytes += line.len() as u64;
        self.head = head;
        Ok(head)
    }

    pub fn sync(&mut self) -> Result<(), JournalError> {
        let io = |source| JournalError::Io { path: self.folder.join(&self.segment), source };
        self.file.sync_data().map_err(io)
    }

    /// Goes on in another segment when this one is long enough, and puts the closed ones into the account store.
    /// What does not work now is done at the next turn: nothing is removed that is not there.
    pub fn rotate(&mut self, store: &Store) -> Result<(), JournalError> {
        if self.bytes < SEGMENT_BYTES_MAX {
            return Ok(());
        }
        self.sync_and_anchor(store)?;
        let io = |path: &Path, source| JournalError::Io { path: path.to_owned(), source };
        *self = Chain::begin_segment(self.folder.clone(), self.name.clone(), self.head)
            .map_err(|source| io(&self.folder, source))?;
        self.archive(store).map_err(|source| io(&store.segments(&self.name), source))
    }

    fn sync_and_anchor(&mut self, store: &Store) -> Result<(), JournalError> {
        self.sync()?;
        store.anchor(&self.name, self.head)
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
