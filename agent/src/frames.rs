//! Frames of the protocol crate over byte streams (QUIC streams, in tests a pipe). Bounded by the
//! protocol's own limit; how long to wait is the caller's to say.

use std::io;

use outstation_protocol::frame::{self, FrameError, Framed, HEADER_BYTES};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

#[derive(Debug, thiserror::Error)]
pub enum FrameIoError {
    #[error("the stream failed")]
    Io(#[source] io::Error),
    #[error("the stream ended in the middle of a frame")]
    Cut,
    #[error("the peer sent what is not a frame of this link")]
    Frame(#[source] FrameError),
}

/// Reads frames of one direction. Dropping a pending [`FrameReader::next`] loses nothing, so that
/// it can stand in a `select!`.
pub struct FrameReader<R> {
    stream: R,
    /// The frame being received, header included: never more than one frame.
    received: Vec<u8>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(stream: R) -> FrameReader<R> {
        FrameReader { stream, received: Vec::new() }
    }

    /// The next message; `None` when the peer has finished its stream between two frames.
    pub async fn next<M: Framed>(&mut self) -> Result<Option<M>, FrameIoError> {
        loop {
            let mut wanted = HEADER_BYTES;
            if let Some(header) = self.received.first_chunk::<HEADER_BYTES>() {
                wanted += frame::body_length::<M>(*header).map_err(FrameIoError::Frame)?;
                if self.received.len() == wanted {
                    let message = frame::decode_body(&self.received[HEADER_BYTES..]);
                    self.received.clear();
                    return message.map(Some).map_err(FrameIoError::Frame);
                }
            }
            // Only as much as this frame still needs: the next one stays in the stream.
            let missing = (wanted - self.received.len()) as u64;
            let mut part = (&mut self.stream).take(missing);
            if part.read_buf(&mut self.received).await.map_err(FrameIoError::Io)? == 0 {
                return if self.received.is_empty() { Ok(None) } else { Err(FrameIoError::Cut) };
            }
        }
    }
}

/// Writes one message. Not to be dropped halfway: the peer would read a torn frame.
pub async fn write_frame<M: Framed>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &M,
) -> Result<(), FrameIoError> {
    let bytes = frame::encode(message).map_err(FrameIoError::Frame)?;
    stream.write_all(&bytes).await.map_err(FrameIoError::Io)?;
    stream.flush().await.map_err(FrameIoError::Io)
}

#[cfg(test)]
mod tests {
    use outstation_protocol::v1::{ToAccountAgent, ToNode};

    use super::*;

    #[tokio::test]
    async fn frames_arrive_whole_however_they_are_cut() {
        let (mut near, far) = tokio::io::duplex(3);
        let goodbye = ToNode::Goodbye { reason: "x".repeat(100), retry_after_secs: 1 };
        let sent = [goodbye, ToNode::Withdrawn];
        let messages = sent.clone();
        let writer = tokio::spawn(async move {
            for message in &messages {
                write_frame(&mut near, message).await.expect("the pipe is open");
            }
        });
        let mut reader = FrameReader::new(far);
        for message in sent {
            assert_eq!(reader.next().await.expect("a frame"), Some(message));
        }
        assert_eq!(reader.next::<ToNode>().await.expect("a clean end"), None);
        writer.await.expect("the writer ends");
    }

    #[tokio::test]
    async fn a_dropped_read_loses_nothing() {
        let (mut near, far) = tokio::io::duplex(1024);
        let bytes = frame::encode(&ToNode::Withdrawn).expect("small");
        let mut reader = FrameReader::new(far);
        near.write_all(&bytes[..3]).await.expect("the pipe is open");
        let first = futures::poll!(std::pin::pin!(reader.next::<ToNode>()));
        assert!(first.is_pending());
        near.write_all(&bytes[3..]).await.expect("the pipe is open");
        assert_eq!(reader.next().await.expect("a frame"), Some(ToNode::Withdrawn));
    }

    #[tokio::test]
    async fn what_is_not_a_frame_of_this_link_is_an_error() {
        let other_link = frame::encode(&ToAccountAgent::Drained).expect("small");
        for (bytes, wanted) in [
            (&other_link[..], "not a frame of this link"),
            (&[0x12, 0xff, 0xff, 0xff, 0xff], "not a frame of this link"),
            (&[0x12, 9, 0, 0, 0, 1], "in the middle of a frame"),
            (&[0x12], "in the middle of a frame"),
        ] {
            let error = FrameReader::new(bytes).next::<ToNode>().await.expect_err(wanted);
            assert!(error.to_string().contains(wanted), "{bytes:?}: {error}");
        }
    }
}
