"""Frames between transform server and worker, over a Unix stream socket.

Little-endian: 4 bytes length of the rest, 1 byte kind, 8 bytes request id, payload. A CALL's
message comes after a head with deadline, request time and trace; an answer's after two times.
"""

from __future__ import annotations

import socket
import struct
import threading
from typing import NamedTuple, Optional, Tuple, Union

#: The version of all this, as an environment's manifest names it. `WORKER_PROTOCOLS` of
#: protocol/src/environment.rs has those that are understood.
PROTOCOL = 1

# worker -> server
READY, DONE, FAILED, LOG, SKIPPED = 1, 2, 3, 4, 5
# server -> worker
CALL = 16

# The largest message of the gRPC surface is 64 MiB; the rest is room for what goes around it.
FRAME_BYTES_MAX = 64 * 1024 * 1024 + 64 * 1024

_LENGTH = struct.Struct("<I")
_HEAD = struct.Struct("<IBQ")
_REST = struct.Struct("<BQ")
_CALL_HEAD = struct.Struct("<QqB")
_ANSWER_HEAD = struct.Struct("<IBQQQ")
# An answer's frame has this many bytes besides the message.
ANSWER_HEAD_BYTES = _ANSWER_HEAD.size
# Most frames fit, so that most take one system call to read.
_BUFFER_BYTES = 64 * 1024
_LARGE_BYTES = 1024 * 1024


class FrameError(Exception):
    """The other side does not speak this protocol."""


class Call(NamedTuple):
    """Payload of a CALL frame."""

    #: In nanoseconds of the monotonic clock; 0 is none.
    deadline_ns: int
    #: Unix time in microseconds.
    request_time_us: int
    #: W3C traceparent; empty is none.
    traceparent: str
    #: `CallRequest`
    message: bytes


def decode_call(payload: bytes) -> Call:
    try:
        deadline_ns, request_time_us, length = _CALL_HEAD.unpack_from(payload)
    except struct.error:
        raise FrameError(f"a call of {len(payload)} bytes, shorter than its head") from None
    at = _CALL_HEAD.size + length
    if at > len(payload):
        raise FrameError("a call that ends in its head")
    traceparent = payload[_CALL_HEAD.size : at].decode("ascii", "replace")
    return Call(deadline_ns, request_time_us, traceparent, payload[at:])


def encode_call(call: Call) -> bytes:
    traceparent = call.traceparent.encode("ascii")
    head = _CALL_HEAD.pack(call.deadline_ns, call.request_time_us, len(traceparent))
    return head + traceparent + call.message


class Answer(NamedTuple):
    """Payload of a DONE or FAILED frame."""

    #: From the start mark to the answer encoded.
    worker_ns: int
    #: Within user functions.
    function_ns: int
    #: `CallResponse`; if FAILED, one byte of status code, and the message.
    message: bytes


def answer_frame(kind: int, request: int, answer: Answer) -> bytes:
    worker_ns, function_ns, message = answer
    length = _ANSWER_HEAD.size - _LENGTH.size + len(message)
    return _ANSWER_HEAD.pack(length, kind, request, worker_ns, function_ns) + message


def decode_answer(payload: bytes) -> Answer:
    worker_ns, function_ns = struct.unpack_from("<QQ", payload)
    return Answer(worker_ns, function_ns, payload[16:])


def skipped_frame(request: int) -> bytes:
    return _HEAD.pack(_REST.size, SKIPPED, request)


class Frames:
    """Both directions of the socket. One thread reads; any thread may write."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        # Reentrant, with a flag: what interrupts a write (a `__del__` that prints) must not wait
        # for the write that it interrupted.
        self._lock = threading.RLock()
        self._writing = False
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

    def read(self) -> Optional[Tuple[int, int, bytes]]:
        """The next frame's kind, id and payload; None when the other side has closed."""
        while self._end - self._start < 4:
            if not self._more():
                if self._end > self._start:
                    raise _torn()
                return None
        (length,) = _LENGTH.unpack_from(self._buffer, self._start)
        if not _REST.size <= length <= FRAME_BYTES_MAX:
            raise FrameError(f"a frame of {length} bytes; allowed are 9 to {FRAME_BYTES_MAX}")
        if 4 + length > _BUFFER_BYTES:
            return self._large(length)
        while self._end - self._start < 4 + length:
            if not self._more():
                raise _torn()
        kind, request = _REST.unpack_from(self._buffer, self._start + 4)
        after = self._start + 4 + length
        payload = bytes(self._view[self._start + 4 + _REST.size : after])
        self._start = after
        return kind, request, payload

    def holds_one(self) -> bool:
        """A whole frame has been received that was not read yet."""
        received = self._end - self._start
        if received < 4:
            return False
        length: int = _LENGTH.unpack_from(self._buffer, self._start)[0]
        return received >= 4 + length

    def _more(self) -> bool:
        """Receives into the buffer; false at the end of the stream."""
        if self._start:
            # Whole frames leave little behind; what there is moves to the front.
            rest = self._buffer[self._start : self._end]
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        received = self._sock.recv_into(self._view[self._end :])
        self._end += received
        return received > 0

    def _large(self, length: int) -> Tuple[int, int, bytes]:
        frame = bytearray(self._view[self._start + 4 : self._end])
        self._start = self._end = 0
        while len(frame) < length:
            data = self._sock.recv(min(length - len(frame), _LARGE_BYTES))
            if not data:
                raise _torn()
            frame += data
        kind, request = _REST.unpack_from(frame)
        with memoryview(frame) as view:
            return kind, request, bytes(view[_REST.size :])

    def write(self, kind: int, request: int, payload: bytes) -> bool:
        """False, and nothing sent, if it interrupts a write of the same thread."""
        head = _HEAD.pack(_REST.size + len(payload), kind, request)
        if len(payload) < _BUFFER_BYTES:
            return self.send(head + payload)
        return self.send(head, payload)

    def send(self, *whole_frames: Union[bytes, memoryview]) -> bool:
        """The same for what is encoded already."""
        with self._lock:
            if self._writing:
                return False
            self._writing = True
            try:
                for part in whole_frames:
                    self._sock.sendall(part)
            finally:
                self._writing = False
        return True

    def forget(self) -> None:
        """In a forked child: lets go of the socket without touching the parent's."""
        self._lock = threading.RLock()
        self._sock.close()


def _torn() -> FrameError:
    return FrameError("the stream ends in the middle of a frame")
