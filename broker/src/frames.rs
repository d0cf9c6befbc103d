//! Frames over a byte stream. Both ends can be dropped in the middle of a `select!` and go on
//! where they were: what was read or written so far is kept in the struct, not in the future.

use std::io;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use outstation_protocol::frame::{self, FrameError, Framed, HEADER_BYTES};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;

/// A peer that takes none of a frame's bytes for so long does not read any more.
pub const STALL_MAX: Duration = Duration::from_secs(30);

/// Read at once; a frame that is larger grows the buffer as its bytes arrive.
const READ_BYTES: usize = 4 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("the stream broke")]
    Io(#[from] io::Error),
    #[error("the stream ended inside a frame")]
    Truncated,
    #[error("the peer broke the protocol")]
    Frame(#[from] FrameError),
    #[error("the peer has read nothing for {} s", STALL_MAX.as_secs())]
    Stalled,
}

pub struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(stream: R) -> Self {
        FrameReader { stream, buffer: BytesMut::new() }
    }

    /// The next message; `None` when the peer has finished. Safe to drop and call again.
    pub async fn next<M: Framed>(&mut self) -> Result<Option<M>, LinkError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            self.buffer.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(LinkError::Truncated) };
            }
        }
    }

    /// A message that has arrived whole. A bad header is an error before its body is awaited.
    fn take<M: Framed>(&mut self) -> Result<Option<M>, LinkError> {
        let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = frame::body_length::<M>(*header)?;
        let Some(body) = self.buffer.get(HEADER_BYTES..HEADER_BYTES + length) else {
            return Ok(None);
        };
        let message = frame::decode_body(body)?;
        self.buffer.advance(HEADER_BYTES + length);
        Ok(Some(message))
    }
}

/// Holds one frame at a time, so that what is not sent yet can still be replaced by newer.
pub struct FrameWriter<W> {
    stream: W,
    unsent: BytesMut,
    stalled_at: Instant,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub fn new(stream: W) -> Self {
        FrameWriter { stream, unsent: BytesMut::new(), stalled_at: Instant::now() + STALL_MAX }
    }

    pub fn is_idle(&self) -> bool {
        self.unsent.is_empty()
    }

    /// Takes the next frame; the one before must be sent.
    pub fn start<M: Framed>(&mut self, message: &M) -> Result<(), LinkError> {
        debug_assert!(self.is_idle(), "one frame at a time");
        self.unsent.extend_from_slice(&frame::encode(message)?);
        self.stalled_at = Instant::now() + STALL_MAX;
        Ok(())
    }

    /// Sends what was started. Safe to drop and call again.
    pub async fn flush(&mut self) -> Result<(), LinkError> {
        while !self.unsent.is_empty() {
            let written =
                tokio::time::timeout_at(self.stalled_at, self.stream.write_buf(&mut self.unsent))
                    .await
                    .map_err(|_| LinkError::Stalled)??;
            if written == 0 {
                return Err(LinkError::Io(io::ErrorKind::WriteZero.into()));
            }
            self.stalled_at = Instant::now() + STALL_MAX;
        }
        Ok(())
    }

    pub async fn send<M: Framed>(&mut self, message: &M) -> Result<(), LinkError> {
        self.start(message)?;
        self.flush().await
    }

    pub fn into_inner(self) -> W {
        self.stream
    }
}

#[cfg(test)]
mod tests {
    use outstation_protocol::v1::ToAgent;

    use super::*;

    fn goodbye(reason: &str) -> ToAgent {
        ToAgent::Goodbye { reason: reason.into(), retry_after_secs: 1 }
    }

    #[tokio::test]
    async fn messages_arrive_whole_however_the_bytes_are_cut_and_the_future_dropped() {
        let messages = [goodbye(""), goodbye(&"x".repeat(100_000)), goodbye("last")];
        // A pipe of 7 bytes: every frame is cut many times.
        let (ours, theirs) = tokio::io::duplex(7);
        let (mut reader, mut writer) = (FrameReader::new(theirs), FrameWriter::new(ours));
        let sent = messages.clone();
        let sender = tokio::spawn(async move {
            for message in &sent {
                writer.send(message).await.expect("send");
            }
        });
        let mut received = Vec::new();
        loop {
            tokio::select! {
                biased;
                next = reader.next::<ToAgent>() => match next.expect("receive") {
                    Some(message) => received.push(message),
                    None => break,
                },
                // Drops the future above at every one of its waits.
                () = tokio::task::yield_now() => {}
            }
        }
        sender.await.expect("the sender ends well");
        assert_eq!(received, messages);
    }

    #[tokio::test]
    async fn a_bad_stream_is_an_error_not_a_wait() {
        for (bytes, wanted) in [
            (&b"\x02\xff\xff\xff\xff"[..], "TooLarge"),
            (b"\x01\x00\x00\x00\x00", "Kind"),
            (b"\x02\x01\x00\x00\x00\xff", "Body"),
            (b"\x02\x09\x00\x00\x00\x05", "Truncated"),
            (b"\x02\x09", "Truncated"),
        ] {
            let error = FrameReader::new(bytes).next::<ToAgent>().await.expect_err(wanted);
            assert!(format!("{error:?}").contains(wanted), "{error:?} should be {wanted}");
        }
    }
}
