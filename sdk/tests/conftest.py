"""What the tests share: folders of declarations, and a worker on the other end of a socket pair."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest

from outstation import _codec, _compiled, _frames, _marks

SDK = Path(__file__).resolve().parent.parent
# A test that waits longer has failed; nothing here takes a second.
PATIENCE_SECS = 30.0

HEAD = """\
from outstation import *
from outstation.types import *
"""


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes files, dedented: `folder(features="…", requirements_txt="")`."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            stem, _, ending = name.rpartition("_")
            file = f"{stem}.txt" if ending == "txt" else f"{name}.py"
            (tmp_path / file).write_text(textwrap.dedent(text))
        return tmp_path

    return write


def child_env() -> Dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(SDK), "PYTHONUNBUFFERED": "1"}


class Talk:
    """Our end of a worker's socket, and its marks."""

    def __init__(self, sock: socket.socket, marks: int) -> None:
        self.sock, self._marks = sock, marks
        self.sock.settimeout(PATIENCE_SECS)
        self._frames = _frames.Frames(self.sock)
        self._next = 0
        #: (request id, line) of LOG frames so far
        self.logs: List[Tuple[int, Dict[str, Any]]] = []
        kind, request, self.ready = self.receive()
        assert (kind, request) == (_frames.READY, 0)

    def receive(self) -> Tuple[int, int, bytes]:
        """The next frame that is not a LOG."""
        while True:
            frame = self._frames.read()
            assert frame is not None, "the worker has closed the socket"
            kind, request, payload = frame
            if kind != _frames.LOG:
                return frame
            self.logs.append((request, json.loads(payload)))

    def send(self, message: bytes, **head: Any) -> int:
        self._next += 1
        self._frames.write(_frames.CALL, self._next, call(message, **head))
        return self._next

    def marks(self) -> Tuple[int, bytes]:
        """The request being run, and the answers not yet sent."""
        running, length = struct.unpack("=QQ", os.pread(self._marks, 16, 0))
        return running, os.pread(self._marks, length, _marks.ANSWERS_AT)

    def call(self, target: str, *rows: Dict[str, Any]) -> List[Any]:
        """The outcomes; raises `Status` if the call failed as a whole."""
        return self.call_bytes(_codec.encode_call_request(target, list(rows)))

    def call_bytes(self, payload: bytes) -> List[Any]:
        request = self.send(payload)
        kind, answered, payload = self.receive()
        assert answered == request
        return outcomes(kind, payload)

    def lines(self, request: Optional[int] = None) -> List[str]:
        wanted = self._next if request is None else request
        return [line["text"] for id, line in self.logs if id == wanted]


def new_marks() -> int:
    marks = os.memfd_create("marks")
    os.truncate(marks, _marks.FILE_BYTES)
    return marks


class WorkerProcess(Talk):
    """The real process, as a transform server would start it."""

    def __init__(self, bundle: Path, stdin: bool = False, pure: bool = False) -> None:
        sock, theirs = socket.socketpair()
        command = [sys.executable, "-m", "outstation.worker"]
        command += ["--fd", "0" if stdin else str(theirs.fileno()), "--bundle", str(bundle)]
        marks = new_marks()
        command += ["--marks-fd", str(marks)]
        command += ["--pure"] if pure else []
        self.process = subprocess.Popen(
            command,
            stdin=theirs if stdin else subprocess.DEVNULL,
            pass_fds=[marks] if stdin else [theirs.fileno(), marks],
            env=child_env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        super().__init__(sock, marks)

    def end(self) -> Tuple[int, str, str]:
        """Exit code, stdout and stderr, after closing our end."""
        self.sock.close()
        os.close(self._marks)
        out, err = self.process.communicate(timeout=PATIENCE_SECS)
        return self.process.returncode, out.decode(), err.decode()


class Status(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


def call(message: bytes, deadline_ns: int = 0, request_time_us: int = 0, traceparent: str = "") -> bytes:
    return _frames.encode_call(_frames.Call(deadline_ns, request_time_us, traceparent, message))


def outcomes(kind: int, payload: bytes) -> List[Any]:
    """Of a DONE frame; raises `Status` for a FAILED one."""
    message = _frames.decode_answer(payload).message
    if kind == _frames.FAILED:
        raise Status(message[0], message[1:].decode())
    assert kind == _frames.DONE
    return _codec.decode_call_response(message)


@pytest.fixture(params=["native", "pure"])
def pure(request: pytest.FixtureRequest) -> bool:
    """Every test that has a worker runs with both; without the native module it fails, unless told."""
    if request.param == "native":
        if os.environ.get("OUTSTATION_PURE_PYTHON"):
            pytest.skip("OUTSTATION_PURE_PYTHON is set")
        hint = "build it with `cargo dev` or `cargo verify`, or set OUTSTATION_PURE_PYTHON=1"
        assert _compiled.native() is not None, f"outstation._native is missing: {hint}"
    return bool(request.param == "pure")


@pytest.fixture
def worker(pure: bool):  # type: ignore[no-untyped-def]
    """Starts workers, and ends them with the test."""
    started: List[WorkerProcess] = []

    def start(bundle: Path) -> WorkerProcess:
        started.append(WorkerProcess(bundle, pure=pure))
        return started[-1]

    yield start
    for each in started:
        each.sock.close()
        each.process.kill()
        each.process.communicate()


def frame(kind: int, request: int, payload: bytes) -> bytes:
    return struct.pack("<IBQ", 9 + len(payload), kind, request) + payload
