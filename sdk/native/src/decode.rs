//! `CallRequest` to Python values: what `_codec.decode_call_request` gives for the same bytes.
//! What it does not read it leaves to that.

use std::cell::RefCell;
use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString};

use crate::wire::{Content, Fields, Unusual, zigzag};

/// As in `_codec`.
const DEPTH_MAX: usize = 64;
const ROWS_MAX: usize = 1_000_000;
/// Names repeat from row to row. Whoever sends ever new ones must not fill the memory.
const NAMES_MAX: usize = 4096;

thread_local! {
    static NAMES: RefCell<HashMap<Box<[u8]>, Py<PyString>>> = RefCell::default();
}

/// Either the bytes are unusual, or Python could not (its memory is full).
pub enum Undecoded {
    Unusual,
    Python(PyErr),
}

impl From<Unusual> for Undecoded {
    fn from(_: Unusual) -> Self {
        Undecoded::Unusual
    }
}

impl From<PyErr> for Undecoded {
    fn from(error: PyErr) -> Self {
        Undecoded::Python(error)
    }
}

type Decoded<T> = Result<T, Undecoded>;

/// `moment` makes a datetime of microseconds since 1970, or raises.
pub fn call_request<'py>(
    message: &[u8],
    moment: &Bound<'py, PyAny>,
) -> Decoded<(Bound<'py, PyString>, Bound<'py, PyList>)> {
    let py = moment.py();
    let rows = PyList::empty(py);
    let mut target: &[u8] = b"";
    let mut fields = Fields(message);
    while let Some((tag, content)) = fields.next()? {
        match (tag, content) {
            (0x12, Content::Bytes(row)) => {
                if rows.len() >= ROWS_MAX {
                    return Err(Undecoded::Unusual);
                }
                rows.append(decode_row(row, moment, 0)?)?;
            }
            (0x0a, Content::Bytes(name)) => {
                target = name;
                text(py, name)?;
            }
            _ => {}
        }
    }
    Ok((text(py, target)?, rows))
}

fn text<'py>(py: Python<'py>, raw: &[u8]) -> Decoded<Bound<'py, PyString>> {
    let text = std::str::from_utf8(raw).map_err(|_| Undecoded::Unusual)?;
    Ok(PyString::new(py, text))
}

fn name<'py>(py: Python<'py>, raw: &[u8]) -> Decoded<Bound<'py, PyString>> {
    NAMES.with_borrow_mut(|names| {
        if let Some(name) = names.get(raw) {
            return Ok(name.bind(py).clone());
        }
        let text = std::str::from_utf8(raw).map_err(|_| Undecoded::Unusual)?;
        let name = PyString::new(py, text);
        if names.len() >= NAMES_MAX {
            names.clear();
        }
        names.insert(raw.into(), name.clone().unbind());
        Ok(name)
    })
}

/// The fields of a `Row` or of a `MapValue`; of a name given twice, the last.
fn decode_row<'py>(
    body: &[u8],
    moment: &Bound<'py, PyAny>,
    depth: usize,
) -> Decoded<Bound<'py, PyDict>> {
    let py = moment.py();
    let row = PyDict::new(py);
    let mut fields = Fields(body);
    while let Some((tag, content)) = fields.next()? {
        let (0x0a, Content::Bytes(field)) = (tag, content) else { continue };
        let mut raw_name: &[u8] = b"";
        let mut value = None;
        let mut parts = Fields(field);
        while let Some((tag, content)) = parts.next()? {
            match (tag, content) {
                (0x0a, Content::Bytes(raw)) => {
                    std::str::from_utf8(raw).map_err(|_| Undecoded::Unusual)?;
                    raw_name = raw;
                }
                (0x12, Content::Bytes(body)) => value = decode_value(body, moment, depth, value)?,
                _ => {}
            }
        }
        row.set_item(name(py, raw_name)?, value)?;
    }
    Ok(row)
}

/// `value` is what came before in the same place: protobuf merges the two.
fn decode_value<'py>(
    body: &[u8],
    moment: &Bound<'py, PyAny>,
    depth: usize,
    mut value: Option<Bound<'py, PyAny>>,
) -> Decoded<Option<Bound<'py, PyAny>>> {
    let py = moment.py();
    let mut fields = Fields(body);
    while let Some((tag, content)) = fields.next()? {
        let next = match (tag, content) {
            (0x19, Content::Fixed64(raw)) => PyFloat::new(py, f64::from_le_bytes(raw)).into_any(),
            (0x10, Content::Varint(number)) => PyInt::new(py, zigzag(number)).into_any(),
            (0x22, Content::Bytes(raw)) => text(py, raw)?.into_any(),
            (0x08, Content::Varint(number)) => PyBool::new(py, number != 0).to_owned().into_any(),
            // A moment that Python cannot hold is unusual too.
            (0x30, Content::Varint(number)) => {
                moment.call1((zigzag(number),)).map_err(|_| Undecoded::Unusual)?
            }
            (0x2a, Content::Bytes(raw)) => PyBytes::new(py, raw).into_any(),
            (0x3a, Content::Bytes(body)) => {
                if depth >= DEPTH_MAX {
                    return Err(Undecoded::Unusual);
                }
                let list = value.take().and_then(|before| before.cast_into_exact().ok());
                let list = list.unwrap_or_else(|| PyList::empty(py));
                decode_list(body, moment, depth + 1, &list)?;
                list.into_any()
            }
            (0x42, Content::Bytes(body)) => {
                if depth >= DEPTH_MAX {
                    return Err(Undecoded::Unusual);
                }
                let map = decode_row(body, moment, depth + 1)?;
                match value.take().map(|before| before.cast_into_exact::<PyDict>()) {
                    Some(Ok(before)) => {
                        before.update(map.as_mapping())?;
                        before.into_any()
                    }
                    _ => map.into_any(),
                }
            }
            _ => continue,
        };
        value = Some(next);
    }
    Ok(value)
}

fn decode_list<'py>(
    body: &[u8],
    moment: &Bound<'py, PyAny>,
    depth: usize,
    into: &Bound<'py, PyList>,
) -> Decoded<()> {
    let mut fields = Fields(body);
    while let Some((tag, content)) = fields.next()? {
        if let (0x0a, Content::Bytes(body)) = (tag, content) {
            into.append(decode_value(body, moment, depth, None)?)?;
        }
    }
    Ok(())
}
