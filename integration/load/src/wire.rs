//! The bytes of a gRPC message, written once before the load starts.

use bytes::Bytes;

/// A value of a request.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'static str),
}

/// The ten scalars of a card payment; five features come of them.
pub const PAYMENT: [(&str, Value); 10] = [
    ("amount", Value::Float(182.5)),
    ("average_amount_30d", Value::Float(61.25)),
    ("amount_24h", Value::Float(240.75)),
    ("payments_1h", Value::Int(2)),
    ("payments_24h", Value::Int(5)),
    ("card_age_days", Value::Int(412)),
    ("merchant_category", Value::Text("electronics")),
    ("country", Value::Text("DE")),
    ("home_country", Value::Text("FR")),
    ("is_online", Value::Bool(true)),
];

/// A `CallRequest` for `target` with as many equal rows, as a message on the wire.
pub fn call(target: &str, rows: usize) -> Bytes {
    let mut row = Vec::new();
    for (name, value) in &PAYMENT {
        let mut field = Vec::new();
        delimited(&mut field, 1, name.as_bytes());
        delimited(&mut field, 2, &encoded(*value));
        delimited(&mut row, 1, &field);
    }
    let mut request = Vec::new();
    delimited(&mut request, 1, target.as_bytes());
    for _ in 0..rows {
        delimited(&mut request, 2, &row);
    }
    message(&request)
}

/// Puts gRPC's prefix before a message: not compressed, its length.
pub fn message(payload: &[u8]) -> Bytes {
    let length = u32::try_from(payload.len()).expect("a request is far below 4 GiB");
    let mut message = vec![0];
    message.extend(length.to_be_bytes());
    message.extend(payload);
    message.into()
}

fn encoded(value: Value) -> Vec<u8> {
    let mut out = Vec::new();
    match value {
        Value::Bool(value) => out.extend([1 << 3, u8::from(value)]),
        Value::Int(value) => {
            out.push(2 << 3);
            varint(&mut out, ((value << 1) ^ (value >> 63)).cast_unsigned());
        }
        Value::Float(value) => {
            out.push(3 << 3 | 1);
            out.extend(value.to_le_bytes());
        }
        Value::Text(value) => delimited(&mut out, 4, value.as_bytes()),
    }
    out
}

fn delimited(out: &mut Vec<u8>, number: u8, payload: &[u8]) {
    out.push(number << 3 | 2);
    varint(out, payload.len() as u64);
    out.extend(payload);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_written_as_protobuf_does() {
        let message = call("small", 1);
        assert_eq!(message[0], 0);
        assert_eq!(message[1..5], (message.len() as u32 - 5).to_be_bytes());
        assert_eq!(message[5..12], *b"\x0a\x05small");
        // sint64 2 is 4.
        let field = b"\x0a\x11\x0a\x0bpayments_1h\x12\x02\x10\x04";
        assert!(message.windows(field.len()).any(|window| window == field), "{message:?}");
    }
}
