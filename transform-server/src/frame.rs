//! What the server and a worker say to each other over their socket. A frame, both ways: length of the
//! rest (4 bytes, little-endian), kind (1 byte), request id (8 bytes, little-endian), payload.
//! `sdk/outstation/worker.py` is the other end.

use bytes::{Buf, Bytes, BytesMut};
use serde::Deserialize;

use crate::admission::RequestId;

/// Largest request and response: what a batch of 100,000 rows of a dozen numbers needs, twice over.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A frame carries a message, or less; the extra is for a status and its text.
const REST_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 64 * 1024;
const LENGTH_BYTES: usize = 4;
const HEADER_BYTES: usize = 1 + 8;

const READY: u8 = 1;
const DONE: u8 = 2;
const FAILED: u8 = 3;
const LOG: u8 = 4;
const CALL: u8 = 16;

#[derive(Debug, PartialEq)]
pub enum FromWorker {
    /// The bundle is loaded; the payload is a `ListTargetsResponse`.
    Ready(Bytes),
    /// A `CallResponse`.
    Done(RequestId, Bytes),
    /// A gRPC status for the whole call.
    Failed(RequestId, u8, String),
    Log(RequestId, LogLine),
}

/// Something that user code printed or logged.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct LogLine {
    pub level: String,
    pub stream: String,
    pub function: String,
    pub text: String,
}

/// The worker does not speak the protocol. It is ended: nothing after this can be trusted.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {bytes} bytes is more than {REST_BYTES_MAX}")]
    TooLong { bytes: usize },
    #[error("a frame of {bytes} bytes has no header")]
    TooShort { bytes: usize },
    #[error("a frame of unknown kind {kind}")]
    Kind { kind: u8 },
    #[error("a failure without a status")]
    NoStatus,
}

/// Takes one frame off the front of `buffer`; `None` if it is not there as a whole.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<FromWorker>, FrameError> {
    let Some((length, _)) = buffer.split_first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > REST_BYTES_MAX {
        return Err(FrameError::TooLong { bytes: length });
    }
    if length < HEADER_BYTES {
        return Err(FrameError::TooShort { bytes: length });
    }
    if buffer.len() < LENGTH_BYTES + length {
        // A known length saves growing step by step; it was checked above.
        buffer.reserve(LENGTH_BYTES + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(LENGTH_BYTES);
    let mut payload = buffer.split_to(length).freeze();
    let kind = payload.get_u8();
    let request = RequestId(payload.get_u64_le());
    match kind {
        READY => Ok(Some(FromWorker::Ready(payload))),
        DONE => Ok(Some(FromWorker::Done(request, payload))),
        FAILED => {
            let (code, message) = payload.split_first().ok_or(FrameError::NoStatus)?;
            Ok(Some(FromWorker::Failed(
                request,
                *code,
                String::from_utf8_lossy(message).into_owned(),
            )))
        }
        LOG => {
            let line = serde_json::from_slice(&payload).unwrap_or_else(|_| LogLine {
                text: String::from_utf8_lossy(&payload).into_owned(),
                ..LogLine::default()
            });
            Ok(Some(FromWorker::Log(request, line)))
        }
        kind => Err(FrameError::Kind { kind }),
    }
}

/// The header of a call frame; the payload follows as it came.
pub fn call_header(request: RequestId, payload_bytes: usize) -> [u8; LENGTH_BYTES + HEADER_BYTES] {
    let rest = u32::try_from(HEADER_BYTES + payload_bytes)
        .expect("a message is at most MESSAGE_BYTES_MAX");
    let mut header = [0; LENGTH_BYTES + HEADER_BYTES];
    header[..4].copy_from_slice(&rest.to_le_bytes());
    header[4] = CALL;
    header[5..].copy_from_slice(&request.0.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, request: u64, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(9 + payload.len()).unwrap();
        [&length.to_le_bytes()[..], &[kind], &request.to_le_bytes(), payload].concat()
    }

    #[test]
    fn frames() {
        let line = LogLine {
            level: "info".into(),
            stream: "stdout".into(),
            function: "speed".into(),
            text: "hi".into(),
        };
        let json = br#"{"level":"info","stream":"stdout","function":"speed","text":"hi"}"#;
        let odd = LogLine { text: "not json".into(), ..LogLine::default() };
        let cases = [
            (
                "ready",
                frame(1, 0, b"targets"),
                Ok(Some(FromWorker::Ready(Bytes::from_static(b"targets")))),
            ),
            (
                "done",
                frame(2, 7, b"answer"),
                Ok(Some(FromWorker::Done(RequestId(7), Bytes::from_static(b"answer")))),
            ),
            (
                "empty answer",
                frame(2, u64::MAX, b""),
                Ok(Some(FromWorker::Done(RequestId(u64::MAX), Bytes::new()))),
            ),
            (
                "failed",
                frame(3, 7, b"\x05no such"),
                Ok(Some(FromWorker::Failed(RequestId(7), 5, "no such".into()))),
            ),
            ("failed without status", frame(3, 7, b""), Err(FrameError::NoStatus)),
            ("log", frame(4, 7, json), Ok(Some(FromWorker::Log(RequestId(7), line)))),
            (
                "log of something else",
                frame(4, 7, b"not json"),
                Ok(Some(FromWorker::Log(RequestId(7), odd))),
            ),
            ("unknown kind", frame(9, 7, b""), Err(FrameError::Kind { kind: 9 })),
            (
                "too long",
                b"\xff\xff\xff\xff".to_vec(),
                Err(FrameError::TooLong { bytes: 0xffff_ffff }),
            ),
            (
                "too short",
                b"\x08\x00\x00\x00abcdefgh".to_vec(),
                Err(FrameError::TooShort { bytes: 8 }),
            ),
            ("nothing", Vec::new(), Ok(None)),
            ("half a frame", frame(2, 7, b"answer")[..10].to_vec(), Ok(None)),
        ];
        for (name, bytes, expected) in cases {
            assert_eq!(decode(&mut BytesMut::from(&bytes[..])), expected, "{name}");
        }
    }

    #[test]
    fn the_bytes_of_a_call() {
        let header = call_header(RequestId(0x0102), 3);
        assert_eq!(header, [12, 0, 0, 0, 16, 2, 1, 0, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_frames(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..5), cut in 1usize..20) {
            let stream: Vec<u8> = payloads.iter().enumerate().flat_map(|(id, payload)| frame(2, id as u64, payload)).collect();
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for piece in stream.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decode(&mut buffer).unwrap() {
                    seen.push(frame);
                }
            }
            let expected: Vec<_> = payloads.into_iter().enumerate()
                .map(|(id, payload)| FromWorker::Done(RequestId(id as u64), payload.into())).collect();
            prop_assert_eq!(seen, expected);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode(&mut buffer) {}
        }
    }
}
