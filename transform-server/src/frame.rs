//! What the server and a worker say to each other over their socket. A frame, both ways: length of the
//! rest (4 bytes, little-endian), kind (1 byte), request id (8 bytes, little-endian), payload.
//! `sdk/outstation/_frames.py` is the other end.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Deserialize;

use crate::admission::RequestId;

/// Largest request and response: what a batch of 100,000 rows of a dozen numbers needs, twice over.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A frame carries a message, or less; the extra is for what goes before it, or a status and its text.
const REST_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 64 * 1024;
const LENGTH_BYTES: usize = 4;
const HEADER_BYTES: usize = 1 + 8;
/// How long it ran, before what came of it.
const TIMES_BYTES: usize = 8 + 8;
/// gRPC's own, before each message: compressed or not, and its length.
pub const PREFIX_BYTES: usize = 1 + 4;

const READY: u8 = 1;
const DONE: u8 = 2;
const FAILED: u8 = 3;
const LOG: u8 = 4;
const SKIPPED: u8 = 5;
const CALL: u8 = 16;

#[derive(Debug, PartialEq)]
pub enum FromWorker {
    /// The bundle is loaded; the payload is a `ListTargetsResponse`.
    Ready(Bytes),
    Answer(RequestId, Answer),
    Log(RequestId, LogLine),
}

/// What came of a call.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// A `CallResponse`, behind the prefix of a gRPC message.
    Done(Times, Bytes),
    /// A gRPC status for the whole call.
    Failed(Times, u8, String),
    /// Its deadline had passed; it was not started.
    Skipped,
}

/// How long a call took in the worker, and of that in user functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    pub worker: Duration,
    pub function: Duration,
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
    #[error("an answer without its times")]
    NoTimes,
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
    let mut payload = buffer.split_to(length);
    let kind = payload.get_u8();
    let request = RequestId(payload.get_u64_le());
    match kind {
        READY => Ok(Some(FromWorker::Ready(payload.freeze()))),
        DONE => {
            let times = times(&payload)?;
            // The prefix takes the place of bytes that have been read: the message is not copied.
            payload.advance(TIMES_BYTES - PREFIX_BYTES);
            let message = u32::try_from(payload.len() - PREFIX_BYTES).unwrap_or(u32::MAX);
            payload[0] = 0;
            payload[1..PREFIX_BYTES].copy_from_slice(&message.to_be_bytes());
            Ok(Some(FromWorker::Answer(request, Answer::Done(times, payload.freeze()))))
        }
        FAILED => {
            let times = times(&payload)?;
            payload.advance(TIMES_BYTES);
            let (code, message) = payload.split_first().ok_or(FrameError::NoStatus)?;
            let message = String::from_utf8_lossy(message).into_owned();
            Ok(Some(FromWorker::Answer(request, Answer::Failed(times, *code, message))))
        }
        SKIPPED => Ok(Some(FromWorker::Answer(request, Answer::Skipped))),
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

fn times(mut payload: &[u8]) -> Result<Times, FrameError> {
    let mut next =
        || payload.try_get_u64_le().map(Duration::from_nanos).map_err(|_| FrameError::NoTimes);
    Ok(Times { worker: next()?, function: next()? })
}

/// What a worker is told of a call besides its bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct CallHead {
    /// On the machine's monotonic clock.
    pub deadline_nanos: u64,
    /// When it arrived, since 1970.
    pub request_micros: i64,
    /// The caller's W3C trace context; empty if there is none.
    pub traceparent: Bytes,
}

/// Longest trace context that is passed on; version 00 has 55.
pub const TRACEPARENT_BYTES_MAX: usize = 255;

/// What comes before the payload of a call, which follows as it came.
pub fn put_call(into: &mut BytesMut, request: RequestId, head: &CallHead, payload_bytes: usize) {
    let trace = &head.traceparent[..head.traceparent.len().min(TRACEPARENT_BYTES_MAX)];
    let rest = HEADER_BYTES + 8 + 8 + 1 + trace.len() + payload_bytes;
    into.put_u32_le(u32::try_from(rest).expect("a message is at most MESSAGE_BYTES_MAX"));
    into.put_u8(CALL);
    into.put_u64_le(request.0);
    into.put_u64_le(head.deadline_nanos);
    into.put_i64_le(head.request_micros);
    into.put_u8(trace.len() as u8);
    into.put_slice(trace);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, request: u64, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(9 + payload.len()).unwrap();
        [&length.to_le_bytes()[..], &[kind], &request.to_le_bytes(), payload].concat()
    }

    const TIMES: Times =
        Times { worker: Duration::from_nanos(3), function: Duration::from_nanos(2) };

    fn timed(kind: u8, request: u64, payload: &[u8]) -> Vec<u8> {
        frame(kind, request, &[&3u64.to_le_bytes()[..], &2u64.to_le_bytes(), payload].concat())
    }

    fn answer(request: u64, answer: Answer) -> Result<Option<FromWorker>, FrameError> {
        Ok(Some(FromWorker::Answer(RequestId(request), answer)))
    }

    fn done(request: u64, bytes: &[u8]) -> Result<Option<FromWorker>, FrameError> {
        answer(request, Answer::Done(TIMES, Bytes::copy_from_slice(bytes)))
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
            ("done", timed(2, 7, b"answer"), done(7, b"\0\0\0\0\x06answer")),
            ("empty answer", timed(2, u64::MAX, b""), done(u64::MAX, b"\0\0\0\0\0")),
            ("done without times", frame(2, 7, b"123456789012345"), Err(FrameError::NoTimes)),
            (
                "failed",
                timed(3, 7, b"\x05no such"),
                answer(7, Answer::Failed(TIMES, 5, "no such".into())),
            ),
            ("failed without times", frame(3, 7, b""), Err(FrameError::NoTimes)),
            ("failed without status", timed(3, 7, b""), Err(FrameError::NoStatus)),
            ("skipped", frame(5, 7, b""), answer(7, Answer::Skipped)),
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
            ("half a frame", timed(2, 7, b"answer")[..10].to_vec(), Ok(None)),
        ];
        for (name, bytes, expected) in cases {
            assert_eq!(decode(&mut BytesMut::from(&bytes[..])), expected, "{name}");
        }
    }

    #[test]
    fn the_bytes_of_a_call() {
        let traceparent = Bytes::from_static(b"00-ab");
        let head = CallHead { deadline_nanos: 1, request_micros: -2, traceparent };
        let mut bytes = BytesMut::new();
        put_call(&mut bytes, RequestId(0x0102), &head, 3);
        let expected = [
            &[34, 0, 0, 0, 16, 2, 1, 0, 0, 0, 0, 0, 0][..],
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &[254, 255, 255, 255, 255, 255, 255, 255],
            b"\x0500-ab",
        ];
        assert_eq!(bytes, expected.concat());
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_frames(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..5), cut in 1usize..20) {
            let stream: Vec<u8> = payloads.iter().enumerate().flat_map(|(id, payload)| frame(1, id as u64, payload)).collect();
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for piece in stream.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decode(&mut buffer).unwrap() {
                    seen.push(frame);
                }
            }
            let expected: Vec<_> = payloads.into_iter()
                .map(|payload| FromWorker::Ready(payload.into())).collect();
            prop_assert_eq!(seen, expected);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode(&mut buffer) {}
        }
    }
}
