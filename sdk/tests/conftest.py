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

from outstation import _codec, _frames

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


class WorkerProcess:
    """The real process, as a transform server would start it."""

    def __init__(self, bundle: Path, stdin: bool = False) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(PATIENCE_SECS)
        command = [sys.executable, "-m", "outstation.worker"]
        command += ["--fd", "0" if stdin else str(theirs.fileno()), "--bundle", str(bundle)]
        self.process = subprocess.Popen(
            command,
            stdin=theirs if stdin else subprocess.DEVNULL,
            pass_fds=[] if stdin else [theirs.fileno()],
            env=child_env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        theirs.close()
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

    def send(self, payload: bytes, kind: int = _frames.CALL) -> int:
        self._next += 1
        self._frames.write(kind, self._next, payload)
        return self._next

    def call(self, target: str, *rows: Dict[str, Any]) -> List[Any]:
        """The outcomes; raises `Status` if the call failed as a whole."""
        return self.call_bytes(_codec.encode_call_request(target, list(rows)))

    def call_bytes(self, payload: bytes) -> List[Any]:
        request = self.send(payload)
        kind, answered, answer = self.receive()
        assert answered == request
        if kind == _frames.FAILED:
            raise Status(answer[0], answer[1:].decode())
        assert kind == _frames.DONE
        return _codec.decode_call_response(answer)

    def lines(self, request: Optional[int] = None) -> List[str]:
        wanted = self._next if request is None else request
        return [line["text"] for id, line in self.logs if id == wanted]

    def end(self) -> Tuple[int, str, str]:
        """Exit code, stdout and stderr, after closing our end."""
        self.sock.close()
        out, err = self.process.communicate(timeout=PATIENCE_SECS)
        return self.process.returncode, out.decode(), err.decode()


class Status(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


@pytest.fixture
def worker():  # type: ignore[no-untyped-def]
    """Starts workers, and ends them with the test."""
    started: List[WorkerProcess] = []

    def start(bundle: Path) -> WorkerProcess:
        started.append(WorkerProcess(bundle))
        return started[-1]

    yield start
    for each in started:
        each.sock.close()
        each.process.kill()
        each.process.communicate()


def frame(kind: int, request: int, payload: bytes) -> bytes:
    return struct.pack("<IBQ", 9 + len(payload), kind, request) + payload
