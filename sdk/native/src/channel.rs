//! The socket to the server: any thread may write, one reads. No lock is held while Python runs.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;

/// Owns the descriptor; a child of user code lets go of it.
#[pyclass(frozen, module = "outstation._native")]
pub struct Channel {
    descriptor: AtomicI32,
    sending: Mutex<()>,
}

#[pymethods]
impl Channel {
    #[new]
    fn new(descriptor: i32) -> Channel {
        Channel { descriptor: AtomicI32::new(descriptor), sending: Mutex::new(()) }
    }

    /// Sends one frame.
    fn write(&self, py: Python<'_>, kind: u8, request: u64, payload: &[u8]) -> PyResult<bool> {
        let mut frame = Vec::with_capacity(13 + payload.len());
        frame.extend_from_slice(&(9 + payload.len() as u32).to_le_bytes());
        frame.push(kind);
        frame.extend_from_slice(&request.to_le_bytes());
        frame.extend_from_slice(payload);
        self.send(py, &frame)?;
        Ok(true)
    }

    /// In a forked child: without touching the parent's end, or a lock that nobody gives back.
    fn forget(&self) {
        let descriptor = self.descriptor.swap(-1, Ordering::SeqCst);
        if descriptor >= 0 {
            // SAFETY: ours, and nobody can take it from here any more.
            unsafe { libc::close(descriptor) };
        }
    }
}

impl Channel {
    pub fn send(&self, py: Python<'_>, whole_frames: &[u8]) -> PyResult<()> {
        if self.descriptor.load(Ordering::SeqCst) < 0 {
            return Ok(());
        }
        py.detach(|| {
            let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
            let mut rest = whole_frames;
            while !rest.is_empty() {
                let descriptor = self.descriptor.load(Ordering::SeqCst);
                // SAFETY: a buffer of that length, only read.
                let sent = unsafe {
                    libc::send(descriptor, rest.as_ptr().cast(), rest.len(), libc::MSG_NOSIGNAL)
                };
                match usize::try_from(sent) {
                    Ok(sent) => rest = &rest[sent..],
                    // In the middle of a frame no handler may run: it could want to write.
                    Err(_) if interrupted() => {}
                    Err(_) => return Err(io::Error::last_os_error()),
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    /// 0 at the end of the stream.
    pub fn receive(&self, py: Python<'_>, into: &mut [u8]) -> PyResult<usize> {
        loop {
            let received = py.detach(|| {
                let descriptor = self.descriptor.load(Ordering::SeqCst);
                // SAFETY: a buffer of that length, ours alone.
                let received =
                    unsafe { libc::recv(descriptor, into.as_mut_ptr().cast(), into.len(), 0) };
                usize::try_from(received).map_err(|_| io::Error::last_os_error())
            });
            match received {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => py.check_signals()?,
                other => return Ok(other?),
            }
        }
    }
}

fn interrupted() -> bool {
    io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
}
