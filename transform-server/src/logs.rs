//! What user code prints, forwarded as log lines of the server's own. Nothing here makes a worker or a call
//! wait: `LogWriter` drops lines, and counts them, when the log's reader is slow.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::admission::{RequestId, WorkerId};
use crate::frame::LogLine;
use crate::pool::Pool;

/// Longer lines are cut in pieces (raw output) or off (logged by the SDK).
const LINE_BYTES_MAX: usize = 8 * 1024;
/// What is kept of a worker's last words, to say why it ended.
const TAIL_LINES_MAX: usize = 4;

/// One line, with where it comes from.
pub fn forward(pool: &Pool, worker: WorkerId, request: RequestId, mut line: LogLine) {
    pool.metrics.log_lines.inc();
    let trace = pool.trace_of(request);
    let trace = trace.as_deref().and_then(|trace| std::str::from_utf8(trace).ok());
    cut(&mut line.text);
    let LogLine { level, stream, function, text } = line;
    let (worker, request) = (worker.0, request.0);
    // `?text` escapes what would otherwise forge lines of ours.
    match level.as_str() {
        "error" | "critical" => {
            tracing::error!(target: "user", worker, request, trace, function, stream, ?text);
        }
        "warning" | "warn" => {
            tracing::warn!(target: "user", worker, request, trace, function, stream, ?text);
        }
        "debug" => tracing::debug!(target: "user", worker, request, trace, function, stream, ?text),
        _ => tracing::info!(target: "user", worker, request, trace, function, stream, ?text),
    }
}

/// Forwards what a worker writes to a descriptor past the SDK's own capture, and returns the
/// last lines of it.
pub async fn forward_raw(
    pool: Arc<Pool>,
    worker: WorkerId,
    stream: &'static str,
    mut from: impl AsyncRead + Unpin,
) -> Tail {
    let mut tail = Tail::default();
    let mut buffer = Vec::with_capacity(LINE_BYTES_MAX);
    loop {
        let ended = !matches!(
            (&mut from).take((LINE_BYTES_MAX - buffer.len()) as u64).read_buf(&mut buffer).await,
            Ok(1..)
        );
        while let Some(end) = line_end(&buffer, ended) {
            let text = String::from_utf8_lossy(&buffer[..end]).trim_end().to_owned();
            buffer.drain(..end);
            if !text.is_empty() {
                tail.push(&text);
                let line = LogLine {
                    level: "info".into(),
                    stream: stream.into(),
                    function: String::new(),
                    text,
                };
                forward(&pool, worker, RequestId(0), line);
            }
        }
        if ended {
            return tail;
        }
    }
}

/// Where the first line ends, its newline included; a full buffer, or the last one, counts as a line.
fn line_end(buffer: &[u8], last: bool) -> Option<usize> {
    let newline = buffer.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
    newline.or_else(|| {
        ((last && !buffer.is_empty()) || buffer.len() >= LINE_BYTES_MAX).then_some(buffer.len())
    })
}

fn cut(text: &mut String) {
    if text.len() > LINE_BYTES_MAX {
        let end = (0..=LINE_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
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
        Some(self.0.iter().skip(from).map(String::as_str).collect::<Vec<_>>().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Config;

    #[tokio::test]
    async fn the_tail_says_why() {
        let check = async |output: &[u8], expected: Option<&str>| {
            let pool = Pool::new(Config::default());
            let tail = forward_raw(pool, WorkerId(1), "stderr", output).await;
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
