//! The worker's loop: what `worker.Worker.run` does, to the same answers. A request of a compiled
//! target touches Python for its values, its functions and the capture's two attributes only.

use std::collections::HashMap;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString};

use crate::channel::Channel;
use crate::marks::Marks;
use crate::plan::Plan;
use crate::wire::{Content, Fields, put_varint, varint_bytes};

const CALL: u8 = 16;
const DONE: u8 = 2;
const FAILED: u8 = 3;
const SKIPPED: u8 = 5;
const INVALID_ARGUMENT: u8 = 3;
const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024 + 64 * 1024;
const HELD_NS_MAX: u64 = 50_000;
const TRACEBACKS_PER_CALL: usize = 16;

const BUFFER_BYTES: usize = 64 * 1024;
/// Length, kind, id.
const HEAD_BYTES: usize = 13;
/// The same and two times.
const ANSWER_HEAD_BYTES: usize = 29;
/// Deadline, request time, length of the trace.
const CALL_HEAD_BYTES: usize = 17;

static IN_CHILD: AtomicBool = AtomicBool::new(false);
static WATCH_FORKS: Once = Once::new();

extern "C" fn note_child() {
    IN_CHILD.store(true, Ordering::SeqCst);
}

/// A function may have forked, and this be the child, come back: it must not go on.
#[inline]
fn end_if_child() {
    if IN_CHILD.load(Ordering::Relaxed) {
        // SAFETY: always allowed.
        unsafe { libc::_exit(0) };
    }
}

fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// One CALL, in the buffer.
struct Call<'a> {
    request: u64,
    deadline_ns: u64,
    request_time_us: i64,
    traceparent: &'a [u8],
    message: &'a [u8],
}

/// A mistake of the other side, to be raised as `FrameError`.
enum Broken {
    Frame(String),
    Python(PyErr),
}

impl From<PyErr> for Broken {
    fn from(error: PyErr) -> Self {
        Broken::Python(error)
    }
}

/// Returns at the end of the stream. `worker` has `capture`, `plan(target)`, `slow(…)`, `moment`.
#[pyfunction]
pub fn serve(
    worker: &Bound<'_, PyAny>,
    channel: &Bound<'_, Channel>,
    marks_fd: Option<i32>,
) -> PyResult<()> {
    WATCH_FORKS.call_once(|| {
        // SAFETY: the handler only stores to an atomic; this library is never unloaded.
        unsafe { libc::pthread_atfork(None, None, Some(note_child)) };
    });
    let py = worker.py();
    let capture = worker.getattr("capture")?;
    let mut state = Serving {
        worker,
        channel: channel.get(),
        marks: Marks::map(marks_fd)?,
        held_since_ns: 0,
        plans: HashMap::new(),
        moment: worker.getattr("moment")?,
        stdout: capture.getattr("stdout")?,
        stderr: capture.getattr("stderr")?,
        sys: py.import("sys")?.dict(),
        capture,
        answer: Vec::new(),
        fields: Vec::new(),
    };
    match state.run(py) {
        Ok(()) => Ok(()),
        Err(Broken::Python(error)) => Err(error),
        Err(Broken::Frame(says)) => {
            let class = py.import("outstation._frames")?.getattr("FrameError")?;
            Err(PyErr::from_value(class.call1((says,))?))
        }
    }
}

struct Serving<'a, 'py> {
    worker: &'a Bound<'py, PyAny>,
    capture: Bound<'py, PyAny>,
    stdout: Bound<'py, PyAny>,
    stderr: Bound<'py, PyAny>,
    sys: Bound<'py, PyDict>,
    moment: Bound<'py, PyAny>,
    channel: &'a Channel,
    marks: Marks,
    /// When the request was started whose answer is the oldest of those not yet sent.
    held_since_ns: u64,
    /// Of the targets that there are and that can be compiled.
    plans: HashMap<Vec<u8>, Plan>,
    /// Kept for their memory: an answer's frame, and the fields of a row.
    answer: Vec<u8>,
    fields: Vec<u8>,
}

impl<'py> Serving<'_, 'py> {
    fn run(&mut self, py: Python<'py>) -> Result<(), Broken> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let (mut start, mut end) = (0, 0);
        loop {
            while let Some(length) = whole_frame(&buffer[start..end])? {
                let call = parse_call(&buffer[start..start + length])?;
                self.answer(py, &call)?;
                start += length;
            }
            self.flush(py)?;
            buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
            if end == 0 && buffer.len() > BUFFER_BYTES {
                buffer = vec![0; BUFFER_BYTES];
            } else if end == buffer.len() {
                // A frame larger than that. Grows with what has come, not with what is announced.
                buffer.resize(end * 2, 0);
            }
            let received = self.channel.receive(py, &mut buffer[end..])?;
            if received == 0 {
                if end > 0 {
                    return Err(Broken::Frame("the stream ends in the middle of a frame".into()));
                }
                return Ok(());
            }
            end += received;
        }
    }

    fn answer(&mut self, py: Python<'py>, call: &Call<'_>) -> PyResult<()> {
        // First the mark: whoever finds none may be sure that nothing was run.
        self.marks.run(call.request);
        let started_ns = monotonic_ns();
        self.answer.clear();
        self.answer.resize(ANSWER_HEAD_BYTES, 0);
        if call.deadline_ns != 0 && started_ns >= call.deadline_ns {
            self.marks.run(0);
            self.answer.truncate(HEAD_BYTES);
            self.put_head(SKIPPED, call.request);
            return self.keep(py, started_ns, started_ns);
        }
        let (mut kind, function_ns) = match self.quick(py, call)? {
            Some(function_ns) => (DONE, function_ns),
            None => self.slow(py, call)?,
        };
        if self.answer.len() > FRAME_BYTES_MAX {
            let bytes = self.answer.len() - ANSWER_HEAD_BYTES;
            let says =
                format!("the answer has {bytes} bytes, too many for one message: send fewer rows");
            self.answer.truncate(ANSWER_HEAD_BYTES);
            self.answer.push(INVALID_ARGUMENT);
            self.answer.extend_from_slice(says.as_bytes());
            kind = FAILED;
        }
        let ended_ns = monotonic_ns();
        self.put_head(kind, call.request);
        self.answer[13..21].copy_from_slice(&(ended_ns - started_ns).to_le_bytes());
        self.answer[21..29].copy_from_slice(&function_ns.to_le_bytes());
        self.keep(py, started_ns, ended_ns)?;
        self.marks.run(0);
        if self.answer.capacity() > BUFFER_BYTES * 16 {
            (self.answer, self.fields) = (Vec::new(), Vec::new());
        }
        Ok(())
    }

    fn put_head(&mut self, kind: u8, request: u64) {
        let length = (self.answer.len() - 4) as u32;
        self.answer[..4].copy_from_slice(&length.to_le_bytes());
        self.answer[4] = kind;
        self.answer[5..13].copy_from_slice(&request.to_le_bytes());
    }

    /// Appends the response of a usual request of a compiled target, and says how long its
    /// functions took. None: nothing was called, it is one for `slow`.
    fn quick(&mut self, py: Python<'py>, call: &Call<'_>) -> PyResult<Option<u64>> {
        let mut fields = Fields(call.message);
        let Ok(Some((0x0a, Content::Bytes(target)))) = fields.next() else { return Ok(None) };
        let rows = fields.0;
        if !self.plans.contains_key(target) {
            let Some(plan) = self.compile(target)? else { return Ok(None) };
            self.plans.insert(target.to_vec(), plan);
        }
        let Some(plan) = self.plans.get(target) else { return Ok(None) };
        let Ok(arguments) = plan.arguments(py, rows) else { return Ok(None) };
        if arguments.is_empty() {
            return Ok(None);
        }
        if plan.usual_ns > HELD_NS_MAX {
            flush(py, &mut self.marks, self.channel)?;
        }
        let lines = Lines { capture: &self.capture };
        lines.begin(py, call.request)?;
        let mut function_ns = 0;
        let mut tracebacks = 0;
        let mut entered = usize::MAX;
        let mut arguments = arguments.into_iter();
        let mut left = arguments.len();
        while left > 0 {
            self.fields.clear();
            let mut failed = None;
            for (index, view) in plan.views.iter().enumerate() {
                left -= 1;
                let Some(given) = arguments.next() else { break };
                if failed.is_some() {
                    continue;
                }
                if entered != index || lines.touched(py)? {
                    lines.enter(py, view.name.bind(py))?;
                    entered = index;
                }
                let called_ns = monotonic_ns();
                let result = view.function.bind(py).call1(given);
                function_ns += monotonic_ns() - called_ns;
                end_if_child();
                if let Ok(result) = &result
                    && view.encode(result, &mut self.fields)
                {
                    continue;
                }
                let with_traceback = tracebacks < TRACEBACKS_PER_CALL;
                let finish = view.finish.bind(py);
                let finished = match result {
                    Ok(result) => finish.call1((result, py.None(), with_traceback))?,
                    Err(error) => {
                        finish.call1((py.None(), error.into_value(py), with_traceback))?
                    }
                };
                end_if_child();
                let (bytes, is_row, has_traceback): (Bound<'_, PyBytes>, bool, bool) =
                    finished.extract()?;
                tracebacks += usize::from(has_traceback);
                if is_row {
                    self.fields.extend_from_slice(bytes.as_bytes());
                } else {
                    failed = Some(bytes);
                }
            }
            match failed {
                Some(bytes) => self.answer.extend_from_slice(bytes.as_bytes()),
                None => put_result(&mut self.answer, &self.fields),
            }
        }
        let stdout = self.sys.get_item(intern!(py, "stdout"))?;
        let stderr = self.sys.get_item(intern!(py, "stderr"))?;
        let replaced = !stdout.is_some_and(|stream| stream.is(&self.stdout))
            || !stderr.is_some_and(|stream| stream.is(&self.stderr));
        lines.end(py, replaced)?;
        if let Some(plan) = self.plans.get_mut(target) {
            plan.usual_ns = function_ns;
        }
        Ok(Some(function_ns))
    }

    fn compile(&self, target: &[u8]) -> PyResult<Option<Plan>> {
        let Ok(target) = std::str::from_utf8(target) else { return Ok(None) };
        let views = self.worker.call_method1("plan", (target,))?;
        if views.is_none() { Ok(None) } else { Plan::new(&self.moment, &views) }
    }

    /// The Python code's answer.
    fn slow(&mut self, py: Python<'py>, call: &Call<'_>) -> PyResult<(u8, u64)> {
        // How long it takes is not known; and it costs more than a system call.
        self.flush(py)?;
        let message = PyBytes::new(py, call.message);
        let traceparent = PyBytes::new(py, call.traceparent);
        let given = (call.request, call.request_time_us, traceparent, message);
        let answer = self.worker.call_method1(intern!(py, "slow"), given)?;
        end_if_child();
        let (kind, message, function_ns): (u8, Bound<'_, PyBytes>, u64) = answer.extract()?;
        self.answer.extend_from_slice(message.as_bytes());
        Ok((kind, function_ns))
    }

    /// Keeps the answer, to be sent with the next ones or, if that takes too long, at once.
    fn keep(&mut self, py: Python<'py>, started_ns: u64, ended_ns: u64) -> PyResult<()> {
        let mut first = self.marks.kept().is_empty();
        if !self.marks.keep(&self.answer) {
            self.flush(py)?;
            first = true;
            if !self.marks.keep(&self.answer) {
                return self.channel.send(py, &self.answer);
            }
        }
        if first {
            self.held_since_ns = started_ns;
        }
        if ended_ns - self.held_since_ns >= HELD_NS_MAX {
            self.flush(py)?;
        }
        Ok(())
    }

    fn flush(&mut self, py: Python<'py>) -> PyResult<()> {
        flush(py, &mut self.marks, self.channel)
    }
}

fn flush(py: Python<'_>, marks: &mut Marks, channel: &Channel) -> PyResult<()> {
    if !marks.kept().is_empty() {
        channel.send(py, marks.kept())?;
        marks.sent();
    }
    Ok(())
}

/// `Capture`, as far as it must know where we are. Its methods are called only after something
/// was printed.
struct Lines<'a, 'py> {
    capture: &'a Bound<'py, PyAny>,
}

impl<'py> Lines<'_, 'py> {
    fn touched(&self, py: Python<'py>) -> PyResult<bool> {
        self.capture.getattr(intern!(py, "touched"))?.is_truthy()
    }

    fn begin(&self, py: Python<'py>, request: u64) -> PyResult<()> {
        if self.touched(py)? {
            self.capture.call_method1(intern!(py, "begin"), (request,))?;
            return Ok(());
        }
        self.capture.setattr(intern!(py, "request"), request)
    }

    fn enter(&self, py: Python<'py>, function: &Bound<'py, PyString>) -> PyResult<()> {
        if self.touched(py)? {
            self.capture.call_method1(intern!(py, "entering"), (function,))?;
            return Ok(());
        }
        self.capture.setattr(intern!(py, "function"), function)
    }

    fn end(&self, py: Python<'py>, replaced: bool) -> PyResult<()> {
        if replaced || self.touched(py)? {
            self.capture.call_method1(intern!(py, "entering"), ("",))?;
            self.capture.call_method1(intern!(py, "begin"), (0,))?;
            return Ok(());
        }
        self.capture.setattr(intern!(py, "function"), intern!(py, ""))?;
        self.capture.setattr(intern!(py, "request"), 0)
    }
}

/// The length of the frame at the start of these bytes, if it is there as a whole.
fn whole_frame(bytes: &[u8]) -> Result<Option<usize>, Broken> {
    let Some((length, _)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if !(9..=FRAME_BYTES_MAX).contains(&length) {
        let says = format!("a frame of {length} bytes; allowed are 9 to {FRAME_BYTES_MAX}");
        return Err(Broken::Frame(says));
    }
    Ok((bytes.len() >= 4 + length).then_some(4 + length))
}

fn parse_call(frame: &[u8]) -> Result<Call<'_>, Broken> {
    let kind = frame[4];
    if kind != CALL {
        return Err(Broken::Frame(format!("a frame of kind {kind}")));
    }
    let payload = &frame[HEAD_BYTES..];
    let Some((head, rest)) = payload.split_first_chunk::<CALL_HEAD_BYTES>() else {
        let says = format!("a call of {} bytes, shorter than its head", payload.len());
        return Err(Broken::Frame(says));
    };
    let Some((traceparent, message)) = rest.split_at_checked(usize::from(head[16])) else {
        return Err(Broken::Frame("a call that ends in its head".into()));
    };
    let word =
        |bytes: &[u8]| bytes.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    Ok(Call {
        request: word(&frame[5..13]),
        deadline_ns: word(&head[..8]),
        request_time_us: word(&head[8..16]) as i64,
        traceparent,
        message,
    })
}

/// One item of a `CallResponse`: a row, from its encoded fields.
fn put_result(out: &mut Vec<u8>, fields: &[u8]) {
    let row = 1 + varint_bytes(fields.len() as u64) + fields.len();
    out.push(0x0a);
    put_varint(out, row as u64);
    out.push(0x0a);
    put_varint(out, fields.len() as u64);
    out.extend_from_slice(fields);
}
