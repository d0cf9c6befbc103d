//! The log's way out: standard error, written by a thread of its own. When nobody reads there, or
//! nobody reads fast enough, lines are dropped and counted; nothing that logs ever waits or fails.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// A burst of this many lines is kept; of the longest lines of user code that is some 32 MiB.
const LINES_MAX: usize = 4096;
/// How long the end of the program waits for the last lines to be read.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// A full queue has no event for a place that becomes free.
const PLACE_POLL: Duration = Duration::from_millis(5);

enum Item {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// For `tracing_subscriber`: `.with_writer(..)`. Errors are not its to report, so switch
/// `log_internal_errors` off: it would print them where nobody reads, and panic at that.
#[derive(Clone)]
pub struct LogWriter {
    items: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
}

impl LogWriter {
    pub fn start(to: impl Write + Send + 'static) -> io::Result<LogWriter> {
        let (items, received) = sync_channel(LINES_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = dropped.clone();
        thread::Builder::new().name("log".into()).spawn(move || write(&received, &counted, to))?;
        Ok(LogWriter { items, dropped })
    }

    /// Waits until what was logged is written, but not for ever.
    pub fn flush(&self) {
        let (done, flushed) = sync_channel(1);
        let mut item = Item::Flush(done);
        for _ in 0..FLUSH_MAX.as_millis() / PLACE_POLL.as_millis() {
            match self.items.try_send(item) {
                Ok(()) => {
                    let _ = flushed.recv_timeout(FLUSH_MAX);
                    return;
                }
                Err(TrySendError::Full(back)) => item = back,
                Err(TrySendError::Disconnected(_)) => return,
            }
            thread::sleep(PLACE_POLL);
        }
    }
}

fn write(items: &Receiver<Item>, dropped: &AtomicU64, mut to: impl Write) {
    while let Ok(item) = items.recv() {
        // Failures are not fatal: who reads here may be replaced, and there is no other place to go.
        match item {
            Item::Line(line) => {
                let _ = to.write_all(&line);
            }
            Item::Flush(done) => {
                let _ = to.flush();
                let _ = done.send(());
            }
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(to, " WARN dropped {lost} log lines: the log's reader is too slow");
        }
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { to: self, bytes: Vec::new() }
    }
}

/// Collects one event; sends it when dropped.
pub struct Line<'a> {
    to: &'a LogWriter,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let line = std::mem::take(&mut self.bytes);
        if !line.is_empty() && self.to.items.try_send(Item::Line(line)).is_err() {
            self.to.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::Sender;

    /// Writes only when it is let, and keeps what it got.
    struct Gated {
        gate: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // A closed gate is an open one.
            let _ = self.gate.recv();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (LogWriter, Sender<()>, Arc<Mutex<Vec<u8>>>) {
        let (open, gate) = std::sync::mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let log = LogWriter::start(Gated { gate, written: written.clone() }).unwrap();
        (log, open, written)
    }

    #[test]
    fn a_stuck_reader_costs_lines_and_no_time() {
        let (log, gate, written) = gated();
        for number in 0..3 * LINES_MAX {
            writeln!(log.make_writer(), "line {number}").unwrap();
        }
        drop(gate);
        let text = loop {
            // Bounded by the drain of the queue, which nothing holds up any more.
            log.flush();
            let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
            if text.contains(" log lines: ") && text.contains(&format!("line {}\n", LINES_MAX - 1))
            {
                break text;
            }
        };
        assert!(text.starts_with("line 0\n"));
        // The queue's worth and the one in hand, or the queue's worth only.
        let lines = text.lines().filter(|line| line.starts_with("line ")).count();
        let dropped = text.lines().find_map(|line| line.strip_prefix(" WARN dropped ")).unwrap();
        let dropped: usize = dropped.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(lines + dropped, 3 * LINES_MAX);
    }
}
