"""`python -m outstation.worker --fd N --bundle DIR`: evaluates a bundle for a transform server.

Started by the server, once per worker, with one end of a Unix socket pair as descriptor N. Sends
READY, then answers one CALL after the other; the end of the stream is its end. See `_frames`, and
`_marks` for what the server finds if it ends in the middle of one.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import os
import signal
import socket
import sys
from time import monotonic_ns
from types import ModuleType
from typing import Dict, List, NamedTuple, NoReturn, Optional, Tuple, Union

from . import _codec, _compiled
from ._capture import Capture
from ._codec import FEATURE_SERVICE, FEATURE_VIEW, CodecError, OutOfRange, Row, Target
from ._declarations import FeatureService
from ._errors import DeclarationError
from ._evaluate import Evaluator, describe, evaluate_rows, user_traceback
from ._frames import (
    ANSWER_HEAD_BYTES,
    CALL,
    DONE,
    FAILED,
    FRAME_BYTES_MAX,
    LOG,
    READY,
    Answer,
    Call,
    FrameError,
    Frames,
    answer_frame,
    decode_call,
    skipped_frame,
)
from ._limits import PRIORITIES, Limits, strictest
from ._loading import Loaded, load, problems
from ._marks import Marks, checked
from ._parent import die_with_parent
from ._version import VERSION

# gRPC status codes.
INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION, INTERNAL = 3, 5, 9, 13

# The message of a whole call's failure travels in a gRPC trailer, which peers limit to some KiB.
FAILED_CHARS_MAX = 3000
_TRACEBACK_LINES = 8
# Descriptors are given out from below.
_DESCRIPTOR_MIN = 100
_BROKEN_CHARS_MAX = 500
# An answer waits for others to share a system call with, but not longer than a few cost.
HELD_NS_MAX = 50_000


class CallFailed(Exception):
    """A call that gets no answer for any of its rows."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


class Broken(NamedTuple):
    """Why a target cannot be evaluated."""

    kind: int
    reason: str
    detail: str


class Bundle:
    """The targets of a folder: what can be evaluated, and what cannot, and why."""

    def __init__(self, loaded: Loaded) -> None:
        self._good: Dict[str, List[Evaluator]] = {}
        self._broken: Dict[str, Broken] = {}
        #: Files that did not load: an unknown target may have been in one of them.
        self._broken_files = [(broken.file, broken.error.one_line) for broken in loaded.broken]
        evaluators: Dict[int, Evaluator] = {}
        for view in loaded.views:
            try:
                evaluators[id(view)] = Evaluator(view, loaded.folder)
                self._good[view.name] = [evaluators[id(view)]]
            except Exception as error:
                trace = user_traceback(error, loaded.folder)
                self._broken[view.name] = Broken(FEATURE_VIEW, describe(error), trace)
        self._limits = {view.name: view.limits for view in loaded.views}
        self._services: Dict[str, Tuple[str, ...]] = {}
        for service in loaded.services:
            self._services[service.name] = tuple(view.name for view in service.features)
            self._limits[service.name] = strictest(view.limits for view in service.features)
            parts = [evaluators.get(id(view)) for view in service.features]
            whole = [part for part in parts if part is not None]
            if len(whole) == len(parts):
                self._good[service.name] = whole
            else:
                self._broken[service.name] = Broken(FEATURE_SERVICE, "one of its views is broken", "")
        for module in loaded.broken:
            # Where the folder is on this machine helps nobody.
            error = module.error.one_line.replace(os.path.join(loaded.folder, ""), "")
            reason = f"{module.file} could not be loaded: {error}"
            for name, is_service in module.targets:
                kind = FEATURE_SERVICE if is_service else FEATURE_VIEW
                self._break(name, Broken(kind, reason, module.traceback))
        for problem in problems(loaded):
            name = problem.declaration.name
            # A view does not need its group; a name that two have is nobody's.
            if name in self._good and problem.declaration.kind in ("feature view", "feature service"):
                kind = FEATURE_SERVICE if name in self._services else FEATURE_VIEW
                self._break(name, Broken(kind, problem.error.one_line, problem.error.hint))

    def _break(self, name: str, broken: Broken) -> None:
        self._good.pop(name, None)
        self._broken.setdefault(name, broken)

    def targets(self) -> List[Target]:
        found = []
        for name in sorted({*self._good, *self._broken}):
            broken = self._broken.get(name)
            if broken is not None:
                is_service = broken.kind == FEATURE_SERVICE
                reason = " ".join(broken.reason.split())[:_BROKEN_CHARS_MAX]
            else:
                is_service, reason = name in self._services, ""
            views = self._services.get(name, ()) if is_service else (name,)
            kind = FEATURE_SERVICE if is_service else FEATURE_VIEW
            limits = self._limits.get(name, Limits())
            priority = PRIORITIES.index(limits.priority) - 1
            bounds = limits.concurrency or 0, limits.waiting or 0
            found.append(Target(name, kind, views, reason, *bounds, priority))
        return found

    def evaluators(self, target: str) -> List[Evaluator]:
        """Raises `CallFailed`."""
        good = self._good.get(target)
        if good is not None:
            return good
        broken = self._broken.get(target)
        if broken is not None:
            tail = "\n".join(broken.detail.splitlines()[-_TRACEBACK_LINES:])
            message = f"{target!r} cannot be evaluated: {broken.reason}\n{tail}".strip()
            raise CallFailed(FAILED_PRECONDITION, message)
        there_is = ", ".join(sorted({*self._good, *self._broken})) or "nothing"
        message = f"no feature view or service {target!r}; there is {there_is}"
        for file, reason in self._broken_files:
            message += f"\n{file} could not be loaded: {reason}"
        raise CallFailed(NOT_FOUND, message)


def load_bundle(folder: str, capture: Capture) -> Bundle:
    """Imports the declarations; what they print is said to come from their files."""
    try:
        bundle = Bundle(load(folder, capture.entering))
    except DeclarationError as error:
        # Nothing to load is an answer too: every call is told so.
        bundle = Bundle(Loaded(folder))
        bundle._broken_files.append((folder, error.one_line))
    capture.entering("")
    capture.begin(0)
    # What was loaded stays: nothing that a collection would have to look at again.
    gc.collect()
    gc.freeze()
    return bundle


def serve(
    bundle: Bundle,
    capture: Capture,
    sock: socket.socket,
    marks_fd: Optional[int] = None,
    pure: bool = False,
) -> None:
    """Sends READY, then answers calls until the server has closed its end. Takes the socket and
    `marks_fd`. `pure`: without the native module, also if it is there."""
    module = None if pure else _compiled.native()
    ready = _codec.encode_targets(bundle.targets())
    if module is not None:
        channel = module.Channel(sock.detach())
        channel.write(READY, 0, ready)
        capture.connect(lambda request, line: channel.write(LOG, request, line), channel.forget)
        module.serve(NativeWorker(bundle, capture, module), channel, checked(marks_fd))
        return
    frames = Frames(sock)
    frames.write(READY, 0, ready)
    capture.connect(lambda request, line: frames.write(LOG, request, line), frames.forget)
    PureWorker(bundle, capture, frames, Marks(checked(marks_fd))).run()


class Worker:
    """Evaluates calls of one bundle."""

    def __init__(self, bundle: Bundle, capture: Capture) -> None:
        self._bundle = bundle
        self.capture = capture
        #: Of the call before.
        self._function_ns = 0
        #: What a call of a target took last.
        self._usual_ns: Dict[str, int] = {}

    def _respond(self, request: int, call: Call) -> Tuple[int, bytes]:
        """Kind and message of the answer."""
        self.capture.begin(request)
        self._function_ns = 0
        try:
            kind, message = DONE, self._evaluate(call)
        except CallFailed as failed:
            kind, message = FAILED, failure(failed.code, failed.message)
        except Exception as error:
            # A defect of this package; the call is lost, the worker is not.
            kind, message = FAILED, failure(INTERNAL, f"worker: {describe(error)}")
        # A child that comes back from user code ends here, before it can answer anything.
        self.capture.entering("")
        self.capture.begin(0)
        return kind, message

    def _evaluate(self, call: Call) -> bytes:
        try:
            target, rows = self._decode(call.message)
        except CodecError as error:
            raise CallFailed(INVALID_ARGUMENT, f"not a CallRequest: {error}") from None
        evaluators = self._bundle.evaluators(target)
        if not rows:
            raise CallFailed(INVALID_ARGUMENT, f"a call of {target!r} without rows")
        if self._usual_ns.get(target, 0) > HELD_NS_MAX:
            self._flush()
        for evaluator in evaluators:
            evaluator.function_ns = 0
        try:
            answer = evaluate_rows(
                evaluators,
                rows,
                self.capture.entering,
                request_time_us=call.request_time_us,
                traceparent=call.traceparent,
            )
        finally:
            self._function_ns = sum(evaluator.function_ns for evaluator in evaluators)
            self._usual_ns[target] = self._function_ns
        if len(answer) + ANSWER_HEAD_BYTES > FRAME_BYTES_MAX:
            message = f"the answer has {len(answer)} bytes, too many for one message: send fewer rows"
            raise CallFailed(INVALID_ARGUMENT, message)
        return answer

    def _decode(self, message: bytes) -> Tuple[str, List[Union[Row, OutOfRange]]]:
        return _codec.decode_call_request(message)

    def _flush(self) -> None:
        """Sends the answers that are kept."""


class NativeWorker(Worker):
    """What the native loop leaves to Python."""

    def __init__(self, bundle: Bundle, capture: Capture, module: ModuleType) -> None:
        super().__init__(bundle, capture)
        self.moment = _compiled.moment
        self._module = module

    def plan(self, target: str) -> Optional[List[_compiled.View]]:
        """None also for what cannot be evaluated: `slow` says why."""
        try:
            return _compiled.plan(self._bundle.evaluators(target))
        except CallFailed:
            return None

    def slow(
        self, request: int, request_time_us: int, traceparent: bytes, message: bytes
    ) -> Tuple[int, bytes, int]:
        """Kind and message of the answer, nanoseconds in user functions."""
        trace = traceparent.decode("ascii", "replace")
        kind, answer = self._respond(request, Call(0, request_time_us, trace, message))
        return kind, answer, self._function_ns

    def _decode(self, message: bytes) -> Tuple[str, List[Union[Row, OutOfRange]]]:
        found = self._module.decode_call_request(message, self.moment)
        return _codec.decode_call_request(message) if found is None else found


class PureWorker(Worker):
    """The loop: one request at a time, in the order in which they come."""

    def __init__(self, bundle: Bundle, capture: Capture, frames: Frames, marks: Marks) -> None:
        super().__init__(bundle, capture)
        self._frames = frames
        self._marks = marks
        #: When the request was started whose answer is the oldest of those not yet sent.
        self._held_since_ns = 0

    def run(self) -> None:
        while True:
            if not self._frames.holds_one():
                self._flush()
            frame = self._frames.read()
            if frame is None:
                return
            kind, request, payload = frame
            if kind != CALL:
                raise FrameError(f"a frame of kind {kind}")
            self._answer(request, decode_call(payload))

    def _answer(self, request: int, call: Call) -> None:
        # First the mark: whoever finds none may be sure that nothing was run.
        self._marks.run(request)
        started_ns = monotonic_ns()
        if call.deadline_ns and started_ns >= call.deadline_ns:
            self._marks.run(0)
            self._keep(skipped_frame(request), started_ns, started_ns)
            return
        kind, message = self._respond(request, call)
        ended_ns = monotonic_ns()
        answer = Answer(ended_ns - started_ns, self._function_ns, message)
        self._keep(answer_frame(kind, request, answer), started_ns, ended_ns)
        self._marks.run(0)

    def _keep(self, frame: bytes, started_ns: int, ended_ns: int) -> None:
        """Keeps the answer, to be sent with the next ones or, if that takes too long, at once."""
        if not self._marks.keep(frame):
            self._flush()
            if not self._marks.keep(frame):
                self._frames.send(frame)
                return
        if len(self._marks.kept) == len(frame):
            self._held_since_ns = started_ns
        if ended_ns - self._held_since_ns >= HELD_NS_MAX:
            self._flush()

    def _flush(self) -> None:
        kept = self._marks.kept
        if kept:
            self._frames.send(kept)
            self._marks.sent()


def failure(code: int, message: str) -> bytes:
    """Payload of a FAILED frame."""
    return bytes((code,)) + message[:FAILED_CHARS_MAX].encode("utf-8", "replace")


def _take_socket(descriptor: int) -> socket.socket:
    """The inherited socket, closed to the children of user code, and out of the way of its reads
    from standard input and of the descriptors that it may close by number."""
    try:
        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _DESCRIPTOR_MIN)
    except OSError:  # a limit below that
        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    sock = socket.socket(fileno=moved)
    if descriptor <= 2:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, descriptor)
        os.close(null)
    else:
        os.close(descriptor)
    sock.setblocking(True)
    return sock


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m outstation.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="descriptor of the connected socket")
    parser.add_argument("--marks-fd", type=int, help="descriptor of the file for the marks")
    parser.add_argument("--bundle", required=True, help="folder of the unpacked bundle")
    kind = "pure" if _compiled.native() is None else "native"
    parser.add_argument("--version", action="version", version=f"outstation {VERSION} ({kind})")
    parser.add_argument("--pure", action="store_true", help="leave the native module out")
    options = parser.parse_args(arguments)

    die_with_parent()  # elsewhere than on Linux the end of the stream has to do
    # Ctrl-C in a terminal reaches every process there; when to stop, the server says.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.dont_write_bytecode = True
    try:
        sock = _take_socket(options.fd)
    except OSError as error:
        print(f"error: descriptor {options.fd} is not a socket: {error}", file=sys.stderr)
        print("hint: the transform server starts workers; see sdk/README.md", file=sys.stderr)
        return 2

    capture = Capture()
    # What the import prints is sent at once: an import that hangs is easier to understand so.
    frames = Frames(sock)
    capture.connect(lambda request, payload: frames.write(LOG, request, payload), frames.forget)
    stderr = sys.stderr
    capture.install()
    try:
        bundle = load_bundle(options.bundle, capture)
        serve(bundle, capture, sock, options.marks_fd, options.pure)
    except (FrameError, OSError) as error:
        print(f"worker: {describe(error)}", file=stderr)
        _exit(1)
    _exit(0)


def _exit(code: int) -> NoReturn:
    """At once: threads of user code and their exit handlers must not keep the process alive."""
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
