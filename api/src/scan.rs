//! Reads the target's name out of an encoded `CallRequest` and nothing else: everything that is
//! not field 1 is skipped by its length, and every length is checked against what is there.

/// Why bytes are not an encoded `CallRequest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    #[error("the message ends in the middle of a field")]
    Truncated,
    #[error("a number in the message is longer than ten bytes")]
    LongVarint,
    #[error("the message has a field of an unknown wire type")]
    WireType,
    #[error("the message has a field with a number that protobuf does not have")]
    FieldNumber,
    #[error("the target's name is not UTF-8")]
    NotUtf8,
}

const TARGET_FIELD: u64 = 1;
/// Largest field number of protobuf.
const FIELD_MAX: u64 = (1 << 29) - 1;

/// The target's name, empty if the message has none. As protobuf has it, the last occurrence
/// counts, so the whole message is walked: one step for every row, not for every value.
pub fn target(message: &[u8]) -> Result<&str, ScanError> {
    let mut rest = message;
    let mut target: &[u8] = &[];
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let (field, wire_type) = (key >> 3, key & 7);
        if field == 0 || field > FIELD_MAX {
            return Err(ScanError::FieldNumber);
        }
        match wire_type {
            0 => {
                varint(&mut rest)?;
            }
            1 => {
                take(&mut rest, 8)?;
            }
            2 => {
                let length = varint(&mut rest)?;
                let value = take(&mut rest, length)?;
                if field == TARGET_FIELD {
                    target = value;
                }
            }
            5 => {
                take(&mut rest, 4)?;
            }
            _ => return Err(ScanError::WireType),
        }
        if field == TARGET_FIELD && wire_type != 2 {
            return Err(ScanError::WireType);
        }
    }
    std::str::from_utf8(target).map_err(|_| ScanError::NotUtf8)
}

fn varint(rest: &mut &[u8]) -> Result<u64, ScanError> {
    let mut value = 0u64;
    for index in 0..10 {
        let byte = *rest.get(index).ok_or(ScanError::Truncated)?;
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            if index == 9 && byte > 1 {
                return Err(ScanError::LongVarint);
            }
            *rest = &rest[index + 1..];
            return Ok(value);
        }
    }
    Err(ScanError::LongVarint)
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], ScanError> {
    let length = usize::try_from(length).map_err(|_| ScanError::Truncated)?;
    let (taken, after) = rest.split_at_checked(length).ok_or(ScanError::Truncated)?;
    *rest = after;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::{CallRequest, Field, Row, Value, value};
    use proptest::prelude::*;
    use prost::Message;

    #[test]
    fn targets_and_refusals() {
        let long = [&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01][..], b"a"]
            .concat();
        let cases: &[(&str, &[u8], Result<&str, ScanError>)] = &[
            ("empty", b"", Ok("")),
            ("target", b"\x0a\x05speed", Ok("speed")),
            ("last one counts", b"\x0a\x01a\x0a\x01b", Ok("b")),
            ("row before target", b"\x12\x00\x0a\x01a", Ok("a")),
            ("unknown fields", b"\x18\x96\x01\x21abcdefgh\x2dabcd\x0a\x01a", Ok("a")),
            ("cut in the name", b"\x0a\x05spe", Err(ScanError::Truncated)),
            ("cut in a row", b"\x0a\x01a\x12\x05", Err(ScanError::Truncated)),
            ("cut in a key", b"\x80", Err(ScanError::Truncated)),
            ("length of 2^64 - 1", &long, Err(ScanError::Truncated)),
            ("number that never ends", &[0x80; 11], Err(ScanError::LongVarint)),
            (
                "number over 64 bits",
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
                Err(ScanError::LongVarint),
            ),
            ("target as a number", b"\x08\x01", Err(ScanError::WireType)),
            ("group", b"\x0b\x0c", Err(ScanError::WireType)),
            ("field 0", b"\x02\x00", Err(ScanError::FieldNumber)),
            ("not UTF-8", b"\x0a\x02\xff\xfe", Err(ScanError::NotUtf8)),
        ];
        for (name, bytes, expected) in cases {
            assert_eq!(&target(bytes), expected, "{name}");
        }
    }

    proptest! {
        /// What prost accepts, the scanner reads alike (but for groups, which nobody sends).
        #[test]
        fn agrees_with_prost_on_anything(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let (Ok(decoded), Ok(scanned)) = (CallRequest::decode(&bytes[..]), target(&bytes)) {
                prop_assert_eq!(decoded.target, scanned);
            }
        }

        #[test]
        fn agrees_with_prost_on_requests(name in ".{0,20}", rows in prop::collection::vec(any::<i64>(), 0..20)) {
            let rows = rows.into_iter().map(|number| Row {
                fields: vec![Field { name: "n".into(), value: Some(Value { kind: Some(value::Kind::Int64Value(number)) }) }],
            });
            let bytes = CallRequest { target: name.clone(), rows: rows.collect() }.encode_to_vec();
            prop_assert_eq!(target(&bytes), Ok(name.as_str()));
            for cut in 0..bytes.len() {
                let _ = target(&bytes[..cut]);
            }
        }
    }
}
