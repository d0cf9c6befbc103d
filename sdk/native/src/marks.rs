//! The worker's side of `_marks.py`: memory that it shares with the server.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

const ANSWERS_AT: usize = 4096;
const ANSWERS_BYTES_MAX: usize = 256 * 1024;
const FILE_BYTES: usize = ANSWERS_AT + ANSWERS_BYTES_MAX;

/// Mapped until the process ends. A child of this process does not have the memory.
pub struct Marks {
    base: *mut u8,
    length: usize,
}

impl Marks {
    /// Takes the descriptor; without one the marks are for nobody.
    pub fn map(descriptor: Option<i32>) -> io::Result<Marks> {
        let sharing = if descriptor.is_some() {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS
        };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let descriptor = descriptor.unwrap_or(-1);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), FILE_BYTES, access, sharing, descriptor, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        if descriptor >= 0 {
            // SAFETY: given to us; the mapping stays.
            unsafe { libc::close(descriptor) };
        }
        // SAFETY: exactly the mapping above. Not everywhere there is; then children have it.
        #[cfg(target_os = "linux")]
        unsafe {
            libc::madvise(base, FILE_BYTES, libc::MADV_DONTFORK);
        }
        Ok(Marks { base: base.cast(), length: 0 })
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        debug_assert!(index < 2);
        // SAFETY: within the mapping, aligned (a page begins there), and only ever used atomically.
        unsafe { AtomicU64::from_ptr(self.base.cast::<u64>().add(index)) }
    }

    /// 0: nothing runs any more.
    pub fn run(&self, request: u64) {
        self.word(0).store(request, Ordering::SeqCst);
    }

    /// Adds an answer to those not yet sent; false if there is no room for it.
    pub fn keep(&mut self, frame: &[u8]) -> bool {
        if frame.len() > ANSWERS_BYTES_MAX - self.length {
            return false;
        }
        // SAFETY: it fits, as checked; the server only reads, after `length` says so, by system call.
        unsafe {
            let to = self.base.add(ANSWERS_AT + self.length);
            ptr::copy_nonoverlapping(frame.as_ptr(), to, frame.len());
        }
        self.length += frame.len();
        self.word(1).store(self.length as u64, Ordering::SeqCst);
        true
    }

    pub fn kept(&self) -> &[u8] {
        // SAFETY: within the mapping, written by `keep`; nothing else writes there.
        unsafe { std::slice::from_raw_parts(self.base.add(ANSWERS_AT), self.length) }
    }

    pub fn sent(&mut self) {
        self.length = 0;
        self.word(1).store(0, Ordering::SeqCst);
    }
}

// SAFETY: the memory belongs to this value alone; it may be used from any one thread at a time, or
// read from several.
unsafe impl Send for Marks {}
// SAFETY: as above.
unsafe impl Sync for Marks {}
