//! What a worker says it is doing, in memory that outlives it: the call that it runs, and answers that it
//! has not sent yet. The worker writes it; here it is only read, when a worker has ended or is late.
//!
//! Native-endian: at 0 the id of the running call (0: none), at 8 how many bytes of whole answer frames
//! lie from `HEADER_BYTES` on. `sdk/outstation/_frames.py` is the other end.

use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::BytesMut;

use crate::admission::RequestId;
use crate::frame::{self, Answer, FromWorker};

const HEADER_BYTES: usize = 4096;
/// Room for the answers that a worker may hold back.
const PENDING_BYTES_MAX: usize = 256 << 10;
/// Size of the whole file.
pub const MARKS_BYTES: usize = HEADER_BYTES + PENDING_BYTES_MAX;

#[derive(Debug, Default)]
pub struct Marks {
    pub running: Option<RequestId>,
    pub pending: Vec<(RequestId, Answer)>,
}

/// User code shares the process that writes there: whatever it says is taken with care, and what makes
/// no sense is left out.
pub fn read(file: &File) -> Marks {
    let mut header = [0; 16];
    if file.read_exact_at(&mut header, 0).is_err() {
        return Marks::default();
    }
    let number =
        |at: usize| u64::from_ne_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    let pending_bytes = usize::try_from(number(8)).unwrap_or(0);
    let mut marks = Marks::default();
    if pending_bytes > 0 && pending_bytes <= PENDING_BYTES_MAX {
        let mut bytes = BytesMut::zeroed(pending_bytes);
        if file.read_exact_at(&mut bytes, HEADER_BYTES as u64).is_ok() {
            while let Ok(Some(frame)) = frame::decode(&mut bytes) {
                if let FromWorker::Answer(request, answer) = frame {
                    marks.pending.push((request, answer));
                }
            }
        }
    }
    // Read again: what ran before the answers were read may be among them.
    if file.read_exact_at(&mut header[..8], 0).is_ok() {
        let running = u64::from_ne_bytes(header[..8].try_into().expect("eight bytes"));
        marks.running = (running != 0).then_some(RequestId(running));
    }
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(running: u64, pending: u64, frames: &[u8]) -> Marks {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MARKS_BYTES as u64).unwrap();
        file.write_all_at(&running.to_ne_bytes(), 0).unwrap();
        file.write_all_at(&pending.to_ne_bytes(), 8).unwrap();
        file.write_all_at(frames, HEADER_BYTES as u64).unwrap();
        read(&file)
    }

    #[test]
    fn what_a_worker_left() {
        let skipped = |request: u64| [&[9, 0, 0, 0, 5][..], &request.to_le_bytes()].concat();
        let two = [skipped(7), skipped(8)].concat();
        let ids = |marks: Marks| -> (Option<u64>, Vec<u64>) {
            let pending = marks.pending.iter().map(|(request, _)| request.0).collect();
            (marks.running.map(|request| request.0), pending)
        };
        assert_eq!(ids(marks(0, 0, &two)), (None, vec![]));
        assert_eq!(ids(marks(9, 26, &two)), (Some(9), vec![7, 8]));
        assert_eq!(ids(marks(9, 25, &two)), (Some(9), vec![7]), "half a frame");
        assert_eq!(ids(marks(9, 26, &[0xff; 26])), (Some(9), vec![]), "garbage");
        assert_eq!(ids(marks(9, u64::MAX, &two)), (Some(9), vec![]), "a length of nonsense");
        assert_eq!(ids(read(&tempfile::tempfile().unwrap())), (None, vec![]), "nothing at all");
    }
}
