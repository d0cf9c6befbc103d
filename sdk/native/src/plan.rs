//! A target whose views take and return scalars, compiled: bytes of a row straight to the arguments
//! of its functions, and their results straight to bytes. All that is unusual in a request is found
//! before any function is called, and the request left to the Python code; what is unusual in a
//! result or an exception is left to it together with that.

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::wire::{
    Content, Fields, Scalar, Unusual, name_and_value, put_delimited, put_varint, varint_bytes,
};

/// As in `_codec`.
const ROWS_MAX: usize = 1_000_000;

#[derive(Clone, Copy, PartialEq)]
enum Type {
    Bool,
    Int64,
    Float64,
    String,
    Bytes,
    Timestamp,
    Other,
}

impl Type {
    fn of(name: &str) -> Type {
        match name {
            "bool" => Type::Bool,
            "int64" => Type::Int64,
            "float64" => Type::Float64,
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "timestamp" => Type::Timestamp,
            _ => Type::Other,
        }
    }
}

struct Input {
    name: Vec<u8>,
    dtype: Type,
}

struct Output {
    name: Py<PyString>,
    dtype: Type,
    /// What the field begins with: its name.
    key: Vec<u8>,
    /// Any value to the whole field, or raises.
    encode: Py<PyAny>,
}

/// For one source: its fields in order, and which of the plan's inputs each is.
type Source = Vec<(Py<PyString>, usize)>;

pub struct View {
    pub name: Py<PyString>,
    pub function: Py<PyAny>,
    /// `(result, exception, with traceback)` to `(bytes, is a row, has a traceback)`.
    pub finish: Py<PyAny>,
    sources: Vec<Source>,
    outputs: Vec<Output>,
}

pub struct Plan {
    pub views: Vec<View>,
    inputs: Vec<Input>,
    by_name: HashMap<Vec<u8>, usize>,
    moment: Py<PyAny>,
    /// What a call took in its functions last.
    pub usual_ns: u64,
}

impl Plan {
    /// `views`: for each its name, function and `finish`, the `(name, type)` of each source's fields,
    /// and the `(name, type, encode)` of its features. None if it can't be compiled.
    pub fn new(moment: &Bound<'_, PyAny>, views: &Bound<'_, PyAny>) -> PyResult<Option<Plan>> {
        let mut plan = Plan {
            views: Vec::new(),
            inputs: Vec::new(),
            by_name: HashMap::new(),
            moment: moment.clone().unbind(),
            usual_ns: 0,
        };
        type Given<'py> = (
            Bound<'py, PyString>,
            Py<PyAny>,
            Py<PyAny>,
            Vec<Vec<(Bound<'py, PyString>, String)>>,
            Vec<(Bound<'py, PyString>, String, Py<PyAny>)>,
        );
        for (name, function, finish, given_sources, given_outputs) in
            views.extract::<Vec<Given<'_>>>()?
        {
            let mut sources = Vec::new();
            for fields in given_sources {
                let mut source = Vec::new();
                for (field, dtype) in fields {
                    let Some(input) = plan.input(&field, Type::of(&dtype))? else {
                        return Ok(None);
                    };
                    source.push((field.unbind(), input));
                }
                sources.push(source);
            }
            let mut outputs = Vec::new();
            for (feature, dtype, encode) in given_outputs {
                let mut key = Vec::new();
                let full_name = format!("{}.{}", name.to_cow()?, feature.to_cow()?);
                put_delimited(&mut key, 0x0a, full_name.as_bytes());
                let dtype = Type::of(&dtype);
                outputs.push(Output { name: feature.unbind(), dtype, key, encode });
            }
            plan.views.push(View { name: name.unbind(), function, finish, sources, outputs });
        }
        Ok(Some(plan))
    }

    /// Which input a field is; none if its type is not for us, or another one elsewhere.
    fn input(&mut self, name: &Bound<'_, PyString>, dtype: Type) -> PyResult<Option<usize>> {
        if dtype == Type::Other {
            return Ok(None);
        }
        let name = name.to_cow()?.as_bytes().to_vec();
        if let Some(&index) = self.by_name.get(&name) {
            return Ok((self.inputs[index].dtype == dtype).then_some(index));
        }
        let index = self.inputs.len();
        self.by_name.insert(name.clone(), index);
        self.inputs.push(Input { name, dtype });
        Ok(Some(index))
    }

    /// The arguments of each view for each row, views of a row in order.
    pub fn arguments<'py>(
        &self,
        py: Python<'py>,
        rows: &[u8],
    ) -> Result<Vec<Bound<'py, PyTuple>>, Unusual> {
        let mut arguments = Vec::new();
        let mut values: Vec<Option<Bound<'py, PyAny>>> = Vec::new();
        let mut fields = Fields(rows);
        while let Some((tag, content)) = fields.next()? {
            let (0x12, Content::Bytes(row)) = (tag, content) else { return Err(Unusual) };
            if arguments.len() >= ROWS_MAX * self.views.len() {
                return Err(Unusual);
            }
            values.clear();
            values.resize_with(self.inputs.len(), || None);
            self.row(py, row, &mut values)?;
            for view in &self.views {
                arguments.push(view.arguments(py, &values)?);
            }
        }
        Ok(arguments)
    }

    #[inline]
    fn row<'py>(
        &self,
        py: Python<'py>,
        row: &[u8],
        values: &mut [Option<Bound<'py, PyAny>>],
    ) -> Result<(), Unusual> {
        let mut fields = Fields(row);
        // Callers mostly send the fields in the order in which they are declared.
        let mut expected = 0;
        while let Some((tag, content)) = fields.next()? {
            let (0x0a, Content::Bytes(field)) = (tag, content) else { return Err(Unusual) };
            let (name, value) = name_and_value(field)?;
            let value = Scalar::read(value)?;
            let index = match self.inputs.get(expected) {
                Some(input) if input.name == name => Some(expected),
                _ => self.by_name.get(name).copied(),
            };
            if let Some(index) = index {
                values[index] = Some(self.value(py, value, self.inputs[index].dtype)?);
                expected = index + 1;
            } else {
                // Nobody wants it, but it must be one.
                std::str::from_utf8(name).map_err(|_| Unusual)?;
                if let Scalar::Micros(micros) = value {
                    self.moment(py, micros)?;
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn value<'py>(
        &self,
        py: Python<'py>,
        value: Scalar<'_>,
        dtype: Type,
    ) -> Result<Bound<'py, PyAny>, Unusual> {
        Ok(match (value, dtype) {
            (Scalar::Null, _) => py.None().into_bound(py),
            (Scalar::Float(float), Type::Float64) => PyFloat::new(py, float).into_any(),
            (Scalar::Int(int), Type::Float64) => PyFloat::new(py, int as f64).into_any(),
            (Scalar::Int(int), Type::Int64) => PyInt::new(py, int).into_any(),
            (Scalar::Bool(bool), Type::Bool) => PyBool::new(py, bool).to_owned().into_any(),
            (Scalar::Text(text), Type::String) => PyString::new(py, text).into_any(),
            (Scalar::Bytes(bytes), Type::Bytes) => PyBytes::new(py, bytes).into_any(),
            (Scalar::Micros(micros), Type::Timestamp) => self.moment(py, micros)?,
            _ => return Err(Unusual),
        })
    }

    fn moment<'py>(&self, py: Python<'py>, micros: i64) -> Result<Bound<'py, PyAny>, Unusual> {
        self.moment.bind(py).call1((micros,)).map_err(|_| Unusual)
    }
}

impl View {
    #[inline]
    fn arguments<'py>(
        &self,
        py: Python<'py>,
        values: &[Option<Bound<'py, PyAny>>],
    ) -> Result<Bound<'py, PyTuple>, Unusual> {
        let mut sources: [Option<Bound<'py, PyDict>>; 4] = [const { None }; 4];
        if self.sources.len() > sources.len() {
            let list = PyList::empty(py);
            for source in &self.sources {
                list.append(source_dict(py, source, values)?).map_err(|_| Unusual)?;
            }
            return Ok(list.to_tuple());
        }
        for (source, dict) in self.sources.iter().zip(&mut sources) {
            *dict = Some(source_dict(py, source, values)?);
        }
        let dicts = sources.into_iter().flatten();
        match self.sources.len() {
            1 => dicts.last().map(|dict| PyTuple::new(py, [dict])),
            _ => Some(PyTuple::new(py, dicts.collect::<Vec<_>>())),
        }
        .and_then(Result::ok)
        .ok_or(Unusual)
    }

    /// Appends the fields of a result that is just as declared; false, and nothing, otherwise.
    pub fn encode(&self, result: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
        let before = out.len();
        let Ok(result) = result.cast_exact::<PyDict>() else { return false };
        if result.len() != self.outputs.len() {
            return false;
        }
        for output in &self.outputs {
            let value = match result.get_item(output.name.bind(result.py())) {
                Ok(Some(value)) => value,
                Ok(None) | Err(_) => {
                    out.truncate(before);
                    return false;
                }
            };
            if output.encode(&value, out).is_none() {
                out.truncate(before);
                return false;
            }
        }
        true
    }
}

#[inline]
fn source_dict<'py>(
    py: Python<'py>,
    source: &Source,
    values: &[Option<Bound<'py, PyAny>>],
) -> Result<Bound<'py, PyDict>, Unusual> {
    let dict = PyDict::new(py);
    for (name, index) in source {
        let value = values[*index].as_ref().ok_or(Unusual)?;
        dict.set_item(name.bind(py), value).map_err(|_| Unusual)?;
    }
    Ok(dict)
}

impl Output {
    #[inline]
    fn encode(&self, value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> Option<()> {
        if value.is_none() && self.dtype != Type::Other {
            self.begin(out, 0);
            return Some(());
        }
        match self.dtype {
            Type::Float64 => {
                let float = value.cast_exact::<PyFloat>().ok()?.extract::<f64>().ok()?;
                self.begin(out, 9);
                out.push(0x19);
                out.extend_from_slice(&float.to_le_bytes());
            }
            Type::Bool => {
                let bool = value.cast_exact::<PyBool>().ok()?.is_true();
                self.begin(out, 2);
                out.extend_from_slice(&[0x08, u8::from(bool)]);
            }
            Type::Int64 => {
                let int = value.cast_exact::<PyInt>().ok()?.extract::<i64>().ok()?;
                let zigzag = (int << 1 ^ int >> 63) as u64;
                self.begin(out, 1 + varint_bytes(zigzag));
                out.push(0x10);
                put_varint(out, zigzag);
            }
            Type::String => {
                let text = value.cast_exact::<PyString>().ok()?.to_cow().ok()?;
                self.begin(out, 1 + varint_bytes(text.len() as u64) + text.len());
                put_delimited(out, 0x22, text.as_bytes());
            }
            Type::Bytes => {
                let bytes = value.cast_exact::<PyBytes>().ok()?.as_bytes();
                self.begin(out, 1 + varint_bytes(bytes.len() as u64) + bytes.len());
                put_delimited(out, 0x2a, bytes);
            }
            Type::Timestamp | Type::Other => {
                let field = self.encode.bind(value.py()).call1((value,)).ok()?;
                out.extend_from_slice(field.cast_exact::<PyBytes>().ok()?.as_bytes());
            }
        }
        Some(())
    }

    /// The field up to its value's body, which has `length` bytes.
    #[inline]
    fn begin(&self, out: &mut Vec<u8>, length: usize) {
        let value_bytes = 1 + varint_bytes(length as u64) + length;
        out.push(0x0a);
        put_varint(out, (self.key.len() + value_bytes) as u64);
        out.extend_from_slice(&self.key);
        out.push(0x12);
        put_varint(out, length as u64);
    }
}
