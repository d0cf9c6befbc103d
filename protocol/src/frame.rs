//! Frames: `{kind: u8, length: u32 little-endian}` and a postcard body. Kind and length are
//! checked before anything is allocated.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// No message is larger. An envelope (≤ 192 KiB) and its frame's own fields fit.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;
pub const HEADER_BYTES: usize = 5;

/// A message that travels in frames of one kind. The kind keeps a peer that speaks another
/// link (node instead of control, enrollment instead of session) from being misread.
pub trait Framed: Serialize + DeserializeOwned {
    const KIND: u8;
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of kind {found} where kind {expected} was expected")]
    Kind { found: u8, expected: u8 },
    #[error("a frame of {length} bytes is more than {FRAME_BYTES_MAX}")]
    TooLarge { length: usize },
    #[error("a frame's body is not a message of this version")]
    Body(#[source] postcard::Error),
    #[error("a frame's body has {count} bytes behind its message")]
    Trailing { count: usize },
}

/// A whole frame, header included.
pub fn encode<M: Framed>(message: &M) -> Result<Vec<u8>, FrameError> {
    let frame = postcard::to_extend(message, vec![0u8; HEADER_BYTES]).map_err(FrameError::Body)?;
    let length = frame.len() - HEADER_BYTES;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge { length });
    }
    let mut frame = frame;
    frame[0] = M::KIND;
    frame[1..HEADER_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

/// The length of the body that follows this header.
pub fn body_length<M: Framed>(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let [kind, length @ ..] = header;
    if kind != M::KIND {
        return Err(FrameError::Kind { found: kind, expected: M::KIND });
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge { length });
    }
    Ok(length)
}

pub fn decode_body<M: Framed>(body: &[u8]) -> Result<M, FrameError> {
    let (message, rest) = postcard::take_from_bytes(body).map_err(FrameError::Body)?;
    if !rest.is_empty() {
        return Err(FrameError::Trailing { count: rest.len() });
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note(String);
    impl Framed for Note {
        const KIND: u8 = 0x7f;
    }

    fn header(frame: &[u8]) -> [u8; HEADER_BYTES] {
        frame[..HEADER_BYTES].try_into().expect("a frame has a header")
    }

    #[test]
    fn a_frame_round_trips() {
        let frame = encode(&Note("hello".into())).expect("small");
        assert_eq!(frame, b"\x7f\x06\0\0\0\x05hello");
        assert_eq!(body_length::<Note>(header(&frame)).expect("own header"), 6);
        let note: Note = decode_body(&frame[HEADER_BYTES..]).expect("own body");
        assert_eq!(note, Note("hello".into()));
    }

    #[test]
    fn a_header_is_judged_before_its_body_exists() {
        assert!(matches!(
            body_length::<Note>([0x7f, 0xff, 0xff, 0xff, 0xff]),
            Err(FrameError::TooLarge { length: 0xffff_ffff })
        ));
        assert!(matches!(
            body_length::<Note>([1, 0, 0, 0, 0]),
            Err(FrameError::Kind { found: 1, expected: 0x7f })
        ));
    }

    #[test]
    fn a_body_is_one_message_and_nothing_else() {
        assert!(matches!(decode_body::<Note>(b"\x01xy"), Err(FrameError::Trailing { count: 1 })));
        assert!(matches!(decode_body::<Note>(b"\x05x"), Err(FrameError::Body(_))));
    }

    #[test]
    fn an_oversized_message_is_not_sent() {
        let huge = Note("x".repeat(FRAME_BYTES_MAX));
        assert!(matches!(encode(&huge), Err(FrameError::TooLarge { .. })));
    }
}
