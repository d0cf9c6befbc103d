//! What user code prints, forwarded as the server's own log lines. Nothing here ever makes a worker or
//! a call wait: when the log's reader is slow, lines are dropped and counted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::admission::{RequestId, WorkerId};
use crate::frame::LogLine;

/// A burst of this many lines is kept; at the longest line that is 32 MiB.
const LINES_MAX: usize = 4096;
/// Longer lines are cut in pieces (raw output) or off (logged by the SDK).
const LINE_BYTES_MAX: usize = 8 * 1024;
/// What is kept of a worker's last words, to say why it ended.
const TAIL_LINES_MAX: usize = 4;

struct Line {
    worker: WorkerId,
    request: RequestId,
    line: LogLine,
}

#[derive(Clone)]
pub struct Logs {
    lines: SyncSender<Line>,
    dropped: Arc<AtomicU64>,
}

impl Logs {
    /// The thread that writes ends when the last `Logs` is dropped.
    pub fn start() -> std::io::Result<Logs> {
        let (lines, receiver) = sync_channel(LINES_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = dropped.clone();
        thread::Builder::new()
            .name("user-logs".into())
            .spawn(move || write(&receiver, &counted))?;
        Ok(Logs { lines, dropped })
    }

    pub fn forward(&self, worker: WorkerId, request: RequestId, mut line: LogLine) {
        cut(&mut line.text);
        match self.lines.try_send(Line {
            worker,
            request,
            line,
        }) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Forwards what a worker writes to a descriptor past the SDK's own capture, and returns the
    /// last lines of it.
    pub async fn forward_raw(
        self,
        worker: WorkerId,
        stream: &'static str,
        mut from: impl AsyncRead + Unpin,
    ) -> Tail {
        let mut tail = Tail::default();
        let mut buffer = Vec::with_capacity(LINE_BYTES_MAX);
        loop {
            let ended = !matches!(
                (&mut from)
                    .take((LINE_BYTES_MAX - buffer.len()) as u64)
                    .read_buf(&mut buffer)
                    .await,
                Ok(1..)
            );
            while let Some(end) = line_end(&buffer, ended) {
                let text = String::from_utf8_lossy(&buffer[..end])
                    .trim_end()
                    .to_owned();
                buffer.drain(..end);
                if !text.is_empty() {
                    tail.push(&text);
                    let line = LogLine {
                        level: "info".into(),
                        stream: stream.into(),
                        function: String::new(),
                        text,
                    };
                    self.forward(worker, RequestId(0), line);
                }
            }
            if ended {
                return tail;
            }
        }
    }
}

/// Where the first line ends, its newline included; a full buffer, or the last one, counts as a line.
fn line_end(buffer: &[u8], last: bool) -> Option<usize> {
    let newline = buffer
        .iter()
        .position(|byte| *byte == b'\n')
        .map(|at| at + 1);
    newline.or_else(|| {
        ((last && !buffer.is_empty()) || buffer.len() >= LINE_BYTES_MAX).then_some(buffer.len())
    })
}

fn cut(text: &mut String) {
    if text.len() > LINE_BYTES_MAX {
        let end = (0..=LINE_BYTES_MAX)
            .rev()
            .find(|end| text.is_char_boundary(*end))
            .unwrap_or(0);
        text.truncate(end);
    }
}

fn write(lines: &Receiver<Line>, dropped: &AtomicU64) {
    while let Ok(Line {
        worker,
        request,
        line,
    }) = lines.recv()
    {
        let LogLine {
            level,
            stream,
            function,
            text,
        } = line;
        let (worker, request) = (worker.0, request.0);
        // `?text` escapes what would otherwise forge lines of ours.
        match level.as_str() {
            "error" | "critical" => {
                tracing::error!(target: "user", worker, request, function, stream, ?text)
            }
            "warning" | "warn" => {
                tracing::warn!(target: "user", worker, request, function, stream, ?text)
            }
            "debug" => tracing::debug!(target: "user", worker, request, function, stream, ?text),
            _ => tracing::info!(target: "user", worker, request, function, stream, ?text),
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(target: "user", lines = lost, "dropped log lines of user code: the log's reader is too slow");
        }
    }
}

/// The last lines of a stream.
#[derive(Debug, Default)]
pub struct Tail(VecDeque<String>);

impl Tail {
    fn push(&mut self, line: &str) {
        if self.0.len() == TAIL_LINES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(line.chars().take(500).collect());
    }

    /// The line that says what went wrong: an `error:` line with what follows, else the last one.
    pub fn summary(&self) -> Option<String> {
        let error = self.0.iter().position(|line| line.starts_with("error:"));
        let from = error.unwrap_or(self.0.len().checked_sub(1)?);
        Some(
            self.0
                .iter()
                .skip(from)
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join("; "),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_tail_says_why() {
        let check = async |output: &[u8], expected: Option<&str>| {
            let tail = Logs::start()
                .unwrap()
                .forward_raw(WorkerId(1), "stderr", output)
                .await;
            assert_eq!(tail.summary().as_deref(), expected);
        };
        check(b"", None).await;
        check(b"\n\n", None).await;
        check(
            b"Traceback\n  x\nModuleNotFoundError: No module named 'a'\n",
            Some("ModuleNotFoundError: No module named 'a'"),
        )
        .await;
        check(b"noise\nerror: bad\nhint: do", Some("error: bad; hint: do")).await;
        check(&[b'x'; 3 * LINE_BYTES_MAX], Some(&"x".repeat(500))).await;
        check(b"\xff\xfe\n", Some("\u{fffd}\u{fffd}")).await;
    }
}
