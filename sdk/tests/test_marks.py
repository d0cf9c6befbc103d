"""What a worker promises about the requests of a frame: order, times, and what is left if it dies."""

from __future__ import annotations

import os
import signal
import struct
import time
from pathlib import Path
from typing import Any, Callable, List, Tuple

import pytest
from conftest import HEAD, PATIENCE_SECS, WorkerProcess, call, frame, outcomes

from outstation import _codec, _frames, _marks

VIEWS = HEAD + """
import os, time
source = RequestSource(schema=[Field("x", Int64)])
view = realtime_feature_view(sources=[source], mode="python", features=[Attribute("y", Int64)])

@view
def quick(source):
    return {"y": source["x"] + 1}

@view
def waits(source):
    with open(os.path.join(os.path.dirname(__file__), "gate")) as gate:
        return {"y": len(gate.read())}

@view
def sleeps(source):
    time.sleep(0.001)
    return {"y": source["x"]}

@view
def exits(source):
    os._exit(7)

@view
def forks(source):
    return {"y": int(os.fork() > 0)}

@view
def grows(source):
    return {"y": 1 << 63}
"""


@pytest.fixture
def one(tmp_path: Path, worker: Callable[[Path], WorkerProcess]) -> WorkerProcess:
    os.mkfifo(tmp_path / "gate")
    (tmp_path / "features.py").write_text(VIEWS)
    return worker(tmp_path)


def calls(*wanted: Tuple[int, str], **head: Any) -> bytes:
    """CALL frames, for one write."""
    return b"".join(
        frame(_frames.CALL, id, call(_codec.encode_call_request(target, [{"x": id}]), **head))
        for id, target in wanted
    )


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def frames_in(raw: bytes) -> List[Tuple[int, int, bytes]]:
    found = []
    while raw:
        length, kind, request = struct.unpack_from("<IBQ", raw)
        found.append((kind, request, raw[13 : 4 + length]))
        raw = raw[4 + length :]
    return found


def rest(one: WorkerProcess) -> bytes:
    """What is on the socket until its end."""
    raw = b""
    while data := one.sock.recv(65536):
        raw += data
    return raw


def test_the_running_request_is_marked(one: WorkerProcess, tmp_path: Path) -> None:
    assert one.marks() == (0, b"")
    one.sock.sendall(calls((1 << 40, "waits"), (6, "quick")))
    until(lambda: one.marks() == (1 << 40, b""))
    (tmp_path / "gate").write_text("four")
    kind, request, payload = one.receive()
    assert request == 1 << 40 and outcomes(kind, payload) == [{"waits.y": 4}]
    kind, request, payload = one.receive()
    assert request == 6 and outcomes(kind, payload) == [{"quick.y": 7}]
    until(lambda: one.marks() == (0, b""))


def test_answers_of_a_frame_outlive_the_worker(one: WorkerProcess) -> None:
    one.sock.sendall(calls((3, "quick"), (4, "exits"), (5, "quick")))
    # Sent already, if 50 µs had passed.
    sent = rest(one)
    running, kept = one.marks()
    ((kind, request, payload),) = frames_in(sent + kept)
    assert request == 3 and outcomes(kind, payload) == [{"quick.y": 4}]
    assert running == 4
    assert one.process.wait(PATIENCE_SECS) == 7


def test_killed_in_the_middle_of_a_frame(one: WorkerProcess) -> None:
    frame_of_calls = [(id, "quick") for id in range(1, 9)] + [(9, "waits"), (10, "quick")]
    one.sock.sendall(calls(*frame_of_calls))
    until(lambda: one.marks()[0] == 9)
    one.process.send_signal(signal.SIGKILL)
    sent = rest(one)
    running, kept = one.marks()
    answers = frames_in(sent + kept)
    assert [request for _, request, _ in answers] == list(range(1, 9))
    assert all(outcomes(kind, raw) == [{"quick.y": id + 1}] for kind, id, raw in answers)
    assert running == 9


def test_what_is_too_late_is_skipped(one: WorkerProcess) -> None:
    later = time.monotonic_ns() + 60_000_000_000
    one.sock.sendall(
        calls((1, "exits"), deadline_ns=1)
        + calls((2, "quick"), deadline_ns=later)
        + calls((3, "exits"), deadline_ns=time.monotonic_ns())
    )
    assert one.receive() == (_frames.SKIPPED, 1, b"")
    assert one.receive()[:2] == (_frames.DONE, 2)
    assert one.receive() == (_frames.SKIPPED, 3, b"")
    until(lambda: one.marks() == (0, b""))


def test_a_slow_answer_is_not_held_back(one: WorkerProcess, tmp_path: Path) -> None:
    """Neither by what comes after it, nor does it hold back what came before once it is known."""
    one.sock.sendall(calls((1, "sleeps"), (2, "waits")))
    assert one.receive()[:2] == (_frames.DONE, 1)
    (tmp_path / "gate").write_text("")
    assert one.receive()[:2] == (_frames.DONE, 2)
    one.sock.sendall(calls((3, "quick"), (4, "waits")))
    assert one.receive()[:2] == (_frames.DONE, 3)
    (tmp_path / "gate").write_text("")
    assert one.receive()[:2] == (_frames.DONE, 4)


def test_the_times_of_an_answer(one: WorkerProcess) -> None:
    for target, id in [("sleeps", 1), ("none", 2), ("grows", 3)]:
        before = time.monotonic_ns()
        one.sock.sendall(calls((id, target)))
        kind, request, payload = one.receive()
        answer = _frames.decode_answer(payload)
        assert answer.function_ns <= answer.worker_ns <= time.monotonic_ns() - before
        assert (answer.function_ns >= 1_000_000) == (target == "sleeps")
        assert kind == (_frames.FAILED if target == "none" else _frames.DONE)
    two = _codec.encode_call_request("sleeps", [{"x": 1}, {"x": 2}])
    one.send(two)
    assert _frames.decode_answer(one.receive()[2]).function_ns >= 2_000_000


def test_more_answers_than_there_is_room_for(one: WorkerProcess) -> None:
    """In one frame of calls: sent in between, each once."""
    big = _codec.encode_call_request("grows", [{"x": 1}] * 2000)
    assert 200 * 2000 > _marks.ANSWERS_BYTES_MAX
    one.sock.sendall(frame(_frames.CALL, 1, call(big)) + calls((2, "quick")) + frame(_frames.CALL, 3, call(big)))
    for id in (1, 2, 3):
        assert one.receive()[:2] == (_frames.DONE, id)


def test_a_child_that_comes_back_marks_nothing(one: WorkerProcess) -> None:
    one.sock.sendall(calls(*[(id, "forks") for id in range(1, 9)]))
    for id in range(1, 9):
        kind, request, payload = one.receive()
        assert request == id and outcomes(kind, payload) == [{"forks.y": 1}]
    assert one.end()[0] == 0
