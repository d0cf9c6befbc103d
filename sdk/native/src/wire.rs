//! Protobuf fields in a slice of bytes. Whatever this does not read (groups, broken bytes) is
//! `Unusual`: the pure-Python codec reads it, or says what is wrong.

#[derive(Debug)]
pub struct Unusual;

pub enum Content<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
    /// Of 4 bytes: no message here has such a field.
    Unknown,
}

pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The tag as protobuf writes it: number and wire type.
    #[inline]
    pub fn next(&mut self) -> Result<Option<(u32, Content<'a>)>, Unusual> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = u32::try_from(self.varint()?).map_err(|_| Unusual)?;
        if tag < 8 {
            return Err(Unusual);
        }
        let content = match tag & 7 {
            0 => Content::Varint(self.varint()?),
            1 => {
                let (fixed, rest) = self.0.split_first_chunk::<8>().ok_or(Unusual)?;
                self.0 = rest;
                Content::Fixed64(*fixed)
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Unusual)?;
                let (bytes, rest) = self.0.split_at_checked(length).ok_or(Unusual)?;
                self.0 = rest;
                Content::Bytes(bytes)
            }
            5 => {
                self.0 = self.0.get(4..).ok_or(Unusual)?;
                Content::Unknown
            }
            _ => return Err(Unusual),
        };
        Ok(Some((tag, content)))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Unusual> {
        if let [byte @ 0..0x80, rest @ ..] = self.0 {
            self.0 = rest;
            return Ok(u64::from(*byte));
        }
        let mut number = 0u64;
        for index in 0..10 {
            let (byte, rest) = self.0.split_first().ok_or(Unusual)?;
            self.0 = rest;
            // What goes beyond 64 bits is cut off, as everywhere in protobuf.
            number |= u64::from(byte & 0x7f) << (7 * index);
            if *byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Unusual)
    }
}

pub fn zigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// A value that is no list and no map, given at most once.
pub enum Scalar<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    Micros(i64),
}

impl<'a> Scalar<'a> {
    /// From the body of a `Value`.
    #[inline]
    pub fn read(body: &'a [u8]) -> Result<Scalar<'a>, Unusual> {
        let mut fields = Fields(body);
        let Some((tag, content)) = fields.next()? else { return Ok(Scalar::Null) };
        if !fields.0.is_empty() {
            return Err(Unusual);
        }
        Ok(match (tag, content) {
            (0x19, Content::Fixed64(raw)) => Scalar::Float(f64::from_le_bytes(raw)),
            (0x10, Content::Varint(number)) => Scalar::Int(zigzag(number)),
            (0x22, Content::Bytes(raw)) => {
                Scalar::Text(std::str::from_utf8(raw).map_err(|_| Unusual)?)
            }
            (0x08, Content::Varint(number)) => Scalar::Bool(number != 0),
            (0x30, Content::Varint(number)) => Scalar::Micros(zigzag(number)),
            (0x2a, Content::Bytes(raw)) => Scalar::Bytes(raw),
            _ => return Err(Unusual),
        })
    }
}

/// Name and body of the value of a `Field` that has each once, in order.
#[inline]
pub fn name_and_value(field: &[u8]) -> Result<(&[u8], &[u8]), Unusual> {
    let mut parts = Fields(field);
    let Some((0x0a, Content::Bytes(name))) = parts.next()? else { return Err(Unusual) };
    let Some((0x12, Content::Bytes(value))) = parts.next()? else { return Err(Unusual) };
    if parts.0.is_empty() { Ok((name, value)) } else { Err(Unusual) }
}

pub fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub fn varint_bytes(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

pub fn put_delimited(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    out.push(tag);
    put_varint(out, content.len() as u64);
    out.extend_from_slice(content);
}
