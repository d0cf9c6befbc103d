"""What user code prints and logs, as LOG frames: cut, counted, never more than a request may have.

`sys.stdout` and `sys.stderr` are replaced; descriptors 1 and 2 stay as they are, for user code
that writes to them directly or hands them to a child.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
from typing import Any, Callable, List, Optional

# A line is for a person or a search index; what is longer is data, and belongs elsewhere.
LINE_BYTES_MAX = 4096
# A request that prints more than this is in a loop; the first lines tell which.
LINES_PER_REQUEST_MAX = 100

#: Takes (request id, payload of the LOG frame). Must not print.
Send = Callable[[int, bytes], object]


class Capture:
    """The captured streams of this process, and the count of lines of the current request.

    Until it is connected it keeps the lines: those of the import, in a parent that forks workers.
    """

    def __init__(self) -> None:
        self._send: Optional[Send] = None
        self._forget: Callable[[], object] = _nothing
        self._kept: List[bytes] = []
        self._forks_itself = False
        # Reentrant: a `__del__` may print while a line is being sent by the same thread.
        self._lock = threading.RLock()
        self._busy = False
        #: What lines belong to and come from. The native loop sets these two itself, without `begin`
        #: and `entering`, while nothing is `touched`.
        self.request = 0
        self.function = ""
        #: Something was written since `begin`.
        self.touched = False
        self._lines = 0
        self._dropped = 0
        self._forked = False
        self.stdout = _Stream(self, "stdout", "info", 1)
        self.stderr = _Stream(self, "stderr", "warning", 2)

    def install(self) -> None:
        sys.stdout, sys.stderr = self.stdout, self.stderr
        root = logging.getLogger()
        root.addHandler(_Handler(self))
        root.setLevel(logging.INFO)
        os.register_at_fork(after_in_child=self._in_child)

    def connect(self, send: Send, forget: Callable[[], object]) -> None:
        """Lines from here on, and those kept so far, go to `send`.

        `forget` is called in the children of user code: they must not have what `send` uses.
        """
        with self._lock:
            self._send, self._forget = send, forget
            for payload in self.take():
                send(0, payload)

    def take(self) -> List[bytes]:
        """The lines kept so far, payloads of LOG frames of no request; they are kept no longer."""
        with self._lock:
            kept, self._kept = self._kept, []
        return kept

    def fork(self) -> int:
        """`os.fork` with a child that goes on as this process, where those of user code must not."""
        self._forks_itself = True
        try:
            return os.fork()
        finally:
            self._forks_itself = False

    def _in_child(self) -> None:
        if self._forks_itself:
            self._lock = threading.RLock()
        else:
            self._stop()

    def begin(self, request: int) -> None:
        """Lines from here on belong to `request`; 0 is none."""
        with self._lock:
            self.stdout.end_line()
            self.stderr.end_line()
            if self._dropped:
                text = f"{self._dropped} more lines dropped: {LINES_PER_REQUEST_MAX} are kept"
                self._emit("warning", "outstation", text)
            self.request, self._lines, self._dropped = request, 0, 0
            self.touched = False
        if sys.stdout is not self.stdout or sys.stderr is not self.stderr:
            # A function that replaced them and did not put them back must not mute the others.
            sys.stdout, sys.stderr = self.stdout, self.stderr

    def entering(self, function: str) -> None:
        """Lines from here on come from `function`."""
        if self._forked:
            # The function before forked and this is the child, come back: it must not go on.
            os._exit(0)
        if self.stdout.pending or self.stderr.pending:
            self.stdout.end_line()
            self.stderr.end_line()
        self.function = function

    def line(self, level: str, stream: str, text: str) -> None:
        with self._lock:
            self.touched = True
            if self._lines >= LINES_PER_REQUEST_MAX or self._busy:
                self._dropped += 1
                return
            self._lines += 1
            self._emit(level, stream, text)

    def _emit(self, level: str, stream: str, text: str) -> None:
        line = {"level": level, "stream": stream, "function": self.function, "text": cut(text)}
        payload = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace")
        self._busy = True
        try:
            if self._send is not None:
                self._send(self.request, payload)
            elif len(self._kept) <= LINES_PER_REQUEST_MAX:
                self._kept.append(payload)
        finally:
            self._busy = False

    def _stop(self) -> None:
        """In a forked child: back to the descriptors, for the socket is its parent's."""
        self._lock = threading.RLock()
        self._send = _nothing
        self._forked = True
        self._forget()
        for stream, descriptor in (("stdout", 1), ("stderr", 2)):
            try:
                setattr(sys, stream, open(descriptor, "w", closefd=False, errors="replace"))
            except OSError:
                setattr(sys, stream, None)


def _nothing(*_: object) -> None:
    pass


def cut(text: str) -> str:
    """At most `LINE_BYTES_MAX` bytes of UTF-8."""
    if len(text) * 4 <= LINE_BYTES_MAX:
        return text
    raw = text[:LINE_BYTES_MAX].encode("utf-8", "replace")
    if len(raw) <= LINE_BYTES_MAX and len(text) <= LINE_BYTES_MAX:
        return text
    return raw[: LINE_BYTES_MAX - 3].decode("utf-8", "ignore") + "…"


class _Stream(io.TextIOBase):
    """Cuts what is written into lines. Closing it does nothing: others still write."""

    def __init__(self, capture: Capture, name: str, level: str, descriptor: int) -> None:
        self._capture, self._name, self._level = capture, name, level
        self._descriptor = descriptor
        self._parts: List[str] = []
        self._length = 0
        self.buffer = _Bytes(self)

    encoding = "utf-8"
    errors = "replace"
    mode = "w"

    @property
    def name(self) -> str:
        return f"<{self._name}>"

    @property
    def pending(self) -> bool:
        return self._length > 0

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._capture._lock:
            self._capture.touched = True
            start = 0
            while True:
                end = text.find("\n", start)
                # More than a line may have is not kept, however much is written without an end.
                room = LINE_BYTES_MAX + 1 - self._length
                piece = text[start : min(len(text) if end < 0 else end, start + max(room, 0))]
                if piece:
                    self._parts.append(piece)
                    self._length += len(piece)
                if end < 0:
                    return len(text)
                self.end_line(even_empty=True)
                start = end + 1

    def end_line(self, even_empty: bool = False) -> None:
        if self._length or even_empty:
            text = "".join(self._parts)
            self._parts, self._length = [], 0
            self._capture.line(self._level, self._name, text)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._descriptor

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def __del__(self) -> None:
        pass


class _Bytes(io.RawIOBase):
    """`sys.stdout.buffer`, for those who write bytes."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def write(self, data: Any) -> int:
        raw = bytes(data)
        self._stream.write(raw.decode("utf-8", "replace"))
        return len(raw)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def close(self) -> None:
        pass

    def __del__(self) -> None:
        pass


class _Handler(logging.Handler):
    """What user code logs, by its own level."""

    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self._capture = capture
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            for line in self.format(record).splitlines():
                self._capture.line(record.levelname.lower(), "logging", line)
        except Exception:
            self.handleError(record)
