//! `outstation._native`: the codec and the worker's loop without the interpreter in between. The
//! Python code beside it is the reference: it answers everything unusual, and the tests hold the
//! two to the same answers.

mod channel;
mod decode;
mod marks;
mod plan;
mod serve;
mod wire;

use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::{channel::Channel, decode_call_request, serve::serve};
}

/// The target and the rows; None for what `_codec.decode_call_request` must look at itself.
#[pyfunction]
fn decode_call_request<'py>(
    message: &[u8],
    moment: &Bound<'py, PyAny>,
) -> PyResult<Option<(Bound<'py, PyString>, Bound<'py, PyList>)>> {
    match decode::call_request(message, moment) {
        Ok(decoded) => Ok(Some(decoded)),
        Err(decode::Undecoded::Unusual) => Ok(None),
        Err(decode::Undecoded::Python(error)) => Err(error),
    }
}
