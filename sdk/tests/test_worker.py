"""The real worker process, over a real socket pair."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import HEAD, PATIENCE_SECS, Status, WorkerProcess, call, child_env, frame, outcomes

import outstation
from outstation import _codec, _frames

Start = Callable[[Path], WorkerProcess]


def view(name: str, body: str, schema: str = 'Field("x", Int64)', features: str = 'Attribute("y", Int64)') -> str:
    return (
        f'@realtime_feature_view(sources=[RequestSource(schema=[{schema}])], mode="python", '
        f"features=[{features}])\ndef {name}(source):\n    {body}\n"
    )


GOOD = view("good", 'return {"y": source["x"] + 1}')


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    def write(**files: str) -> Path:
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(HEAD + text)
        return tmp_path

    return write


def test_a_call_is_answered_row_by_row(bundle: Any, worker: Start) -> None:
    one = worker(bundle(features=GOOD))
    assert one.ready == _codec.encode_targets([_codec.Target("good", 1, ("good",))])
    good, bad, also_good = one.call("good", {"x": 1}, {"x": "1"}, {"x": -1, "more": [1]})
    assert (good, also_good) == ({"good.y": 2}, {"good.y": 0})
    assert (bad.kind, bad.function) == (_codec.INPUT, "good")
    assert one.end() == (0, "", "")


def test_a_service_evaluates_all_of_its_views(bundle: Any, worker: Start) -> None:
    service = 'FeatureService(name="all", features=[good, half], transform_server_group="g")\n'
    group = (
        'Environment(name="e", requirements="features.py")\nTransformServerGroup(name="g", environment="e", '
        "scaling_config=ProvisionedScalingConfig(desired_nodes=1))\n"
    )
    half = view("half", 'return {"y": 10 // source["x"]}')
    one = worker(bundle(features=GOOD + half + service + group))
    answer, failed = one.call("all", {"x": 5}, {"x": 0})
    assert answer == {"good.y": 6, "half.y": 2}
    assert (failed.kind, failed.function) == (_codec.FUNCTION, "half")
    assert failed.traceback.splitlines()[1].strip() == 'File "features.py", line 8, in half'


def test_calls_that_cannot_be_answered_as_a_whole(bundle: Any, worker: Start) -> None:
    one = worker(bundle(features=GOOD))
    for call, code, says in [
        (lambda: one.call("bad", {"x": 1}), 5, "no feature view or service 'bad'; there is good"),
        (lambda: one.call("good"), 3, "without rows"),
        (lambda: one.call_bytes(b"\x12\x05"), 3, "not a CallRequest: "),
        (lambda: one.call_bytes(b""), 5, "no feature view or service ''"),
    ]:
        with pytest.raises(Status) as caught:
            call()
        assert caught.value.code == code and says in caught.value.message
    assert one.call("good", {"x": 1}) == [{"good.y": 2}]


def test_a_broken_file_breaks_its_own_targets_only(bundle: Any, worker: Start) -> None:
    one = worker(
        bundle(
            a=GOOD,
            b=view("before", "return {}") + "1 / 0\n" + view("after", "return {}")
            + 'FeatureService(name="both", features=[before])\n',
            c=view("unparsed", "return {}") + "def f(:\n",
            d="import sys; sys.exit()\n",
        )
    )  # fmt: skip
    for name in (b"before", b"after", b"both", b"unparsed", b"good"):
        assert name in one.ready
    assert one.call("good", {"x": 1}) == [{"good.y": 2}]
    for target, says in [
        ("before", "b.py could not be loaded: "),
        ("before", "ZeroDivisionError: division by zero"),
        ("after", 'File "b.py", line 6'),
        ("both", "1 / 0"),
        ("unparsed", "SyntaxError: invalid syntax"),
    ]:
        with pytest.raises(Status) as caught:
            one.call(target, {"x": 1})
        assert caught.value.code == 9 and says in caught.value.message, caught.value.message
    with pytest.raises(Status) as caught:
        one.call("other", {"x": 1})
    assert caught.value.code == 5
    assert "there is after, before, both, good, unparsed" in caught.value.message
    assert "d.py could not be loaded" in caught.value.message


def test_a_folder_without_declarations_is_ready_and_says_so(tmp_path: Path, worker: Start) -> None:
    one = worker(tmp_path)
    assert one.ready == b""
    with pytest.raises(Status) as caught:
        one.call("speed", {"x": 1})
    assert caught.value.code == 5 and "no declarations in" in caught.value.message


def test_two_with_one_name_are_nobodys(bundle: Any, worker: Start) -> None:
    one = worker(bundle(a=GOOD, b=GOOD, c=GOOD.replace("good", "other")))
    with pytest.raises(Status) as caught:
        one.call("good", {"x": 1})
    assert caught.value.code == 9 and "has the name of one at" in caught.value.message
    assert one.call("other", {"x": 1}) == [{"other.y": 2}]


def test_what_is_printed_and_logged_becomes_lines(bundle: Any, worker: Start) -> None:
    noisy = view(
        "noisy",
        """
    import logging, os, sys
    print("out", 1); print("err", file=sys.stderr)
    sys.stdout.buffer.write(b"bytes\\n")
    logging.getLogger("app").info("logged %d", 7)
    logging.getLogger("app").debug("not shown")
    print("x" * 10_000)
    os.write(1, b"descriptor 1"); os.write(2, b"descriptor 2")
    sys.stdout.close()
    print("unfinished", end="")
    return {"y": 0}
""",
    )
    one = worker(bundle(features="print('loading')\n" + noisy + view("loop", "[print(i) for i in range(250)]; return {'y': 0}")))
    assert one.call("noisy", {"x": 1}) == [{"noisy.y": 0}]
    assert [(line["function"], line["text"]) for id, line in one.logs if id == 0] == [("features.py", "loading")]
    lines = [line for id, line in one.logs if id == 1]
    assert {line["function"] for line in lines} == {"noisy"}
    assert [(line["stream"], line["level"], line["text"][:12]) for line in lines] == [
        ("stdout", "info", "out 1"),
        ("stderr", "warning", "err"),
        ("stdout", "info", "bytes"),
        ("logging", "info", "app: logged "),
        ("stdout", "info", "x" * 12),
        ("stdout", "info", "unfinished"),
    ]
    assert len(lines[4]["text"].encode()) <= 4096 and lines[4]["text"].endswith("…")
    assert one.call("loop", {"x": 1}) == [{"loop.y": 0}]
    assert one.lines() == [str(i) for i in range(100)] + ["150 more lines dropped: 100 are kept"]
    assert one.call("loop", {"x": 1}, {"x": 1}) == [{"loop.y": 0}] * 2
    assert one.lines()[-1] == "400 more lines dropped: 100 are kept"
    assert one.end() == (0, "descriptor 1", "descriptor 2")


def test_a_function_that_replaces_stdout_mutes_nobody_else(bundle: Any, worker: Start) -> None:
    thief = view("thief", "import io, sys; sys.stdout = io.StringIO(); return {'y': 0}")
    one = worker(bundle(features=thief + view("other", "print('heard'); return {'y': 0}")))
    one.call("thief", {"x": 1})
    one.call("other", {"x": 1})
    assert one.lines() == ["heard"]


def test_functions_that_exit_or_fork_are_survived(bundle: Any, worker: Start) -> None:
    rude = view("exits", "import sys; sys.exit(3)")
    rude += view("interrupts", "raise KeyboardInterrupt")
    rude += view("forks", "import os; pid = os.fork(); print('twice'); return {'y': int(pid > 0)}")
    rude += view(
        "pools",
        "import multiprocessing as m; p = m.get_context('fork').Pool(2); "
        "r = p.map(abs, [source['x']]); p.close(); p.join(); return {'y': r[0]}",
    )
    rude += view("prints_when_dropped", "D(); return {'y': 0}")
    rude += "class D:\n    def __del__(self): print('gone')\n"
    one = worker(bundle(features=rude + GOOD))
    for name in ("exits", "interrupts"):
        assert one.call(name, {"x": 1})[0].kind == _codec.FUNCTION
    # The children end where they come back: each row is answered once, by the parent.
    assert one.call("forks", *[{"x": 1}] * 3) == [{"forks.y": 1}] * 3
    assert one.lines() == ["twice"] * 3
    assert one.call("pools", {"x": -2}) == [{"pools.y": 2}]
    assert one.call("prints_when_dropped", {"x": 1}) == [{"prints_when_dropped.y": 0}]
    assert one.lines() == ["gone"]
    one.process.send_signal(signal.SIGINT)
    assert one.call("good", {"x": 1}) == [{"good.y": 2}]
    assert one.end()[0] == 0


@pytest.mark.parametrize("stdin", [False, True])
def test_children_do_not_have_the_socket(stdin: bool, bundle: Any, pure: bool) -> None:
    """Wherever the server puts it; and what reads standard input reads nothing."""
    listing = view(
        "listing",
        "import subprocess, sys; out = subprocess.run(['ls', '-l', '/proc/self/fd'], close_fds=False, "
        "capture_output=True, text=True).stdout; "
        "return {'y': out.count('socket:') + len(sys.stdin.read()) + 100 * ('0 -> /dev/null' in out)}",
    )
    one = WorkerProcess(bundle(features=listing), stdin=stdin, pure=pure)
    assert one.call("listing", {"x": 1}) == [{"listing.y": 100}]
    assert one.end()[0] == 0


def test_large_and_pipelined_frames(bundle: Any, worker: Start) -> None:
    echo = view("echo", "return {'y': source['x']}", 'Field("x", Bytes)', 'Attribute("y", Bytes)')
    one = worker(bundle(features=echo + GOOD))
    for size in (65_000, 65_536, 70_000, 5_000_000):
        assert one.call("echo", {"x": b"\xff" * size}) == [{"echo.y": b"\xff" * size}]
    raw = b"".join(
        frame(_frames.CALL, id, call(_codec.encode_call_request("good", [{"x": id}])))
        for id in range(100, 300)
    )
    for byte in range(0, len(raw), 1000):
        one.sock.sendall(raw[byte : byte + 1000])
    for id in range(100, 300):
        kind, answered, answer = one.receive()
        assert answered == id and outcomes(kind, answer) == [{"good.y": id + 1}]


def test_an_answer_too_large_for_a_frame_is_a_status(bundle: Any, worker: Start) -> None:
    one = worker(bundle(features=view("big", "return {'y': b'x' * (source['x'] << 20)}", features='Attribute("y", Bytes)')))
    with pytest.raises(Status) as caught:
        one.call("big", {"x": 40}, {"x": 40})
    assert caught.value.code == 3 and "send fewer rows" in caught.value.message
    assert len(one.call("big", {"x": 1})[0]["big.y"]) == 1 << 20


@pytest.mark.parametrize(
    "raw, says",
    [
        (b"\x08\x00\x00\x00", "a frame of 8 bytes"),
        (b"\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
        (frame(17, 1, b""), "a frame of kind 17"),
        (frame(16, 1, b"x" * 16), "a call of 16 bytes"),
        (frame(16, 1, b"x" * 16 + b"\x09" + b"x" * 8), "a call that ends in its head"),
        (b"\x09\x00", "in the middle of a frame"),
        (frame(16, 1, b"x" * 100_000)[:-1], "in the middle of a frame"),
    ],
)
def test_another_protocol_ends_the_worker(raw: bytes, says: str, bundle: Any, worker: Start) -> None:
    one = worker(bundle(features=GOOD))
    one.sock.sendall(raw)
    one.sock.shutdown(socket.SHUT_WR)
    out, err = one.process.communicate(timeout=PATIENCE_SECS)
    assert one.process.returncode == 1 and says in err.decode()


def test_threads_of_user_code_do_not_keep_it_alive(bundle: Any, worker: Start) -> None:
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
    assert worker(bundle(features=thread + GOOD)).end()[0] == 0


def test_a_worker_dies_with_its_server(bundle: Any, tmp_path: Path) -> None:
    """Also when it is in the middle of a function that never returns."""
    path = bundle(features=view("stuck", "\n    while True: pass"))
    server = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}
from conftest import *; from conftest import _codec
one = WorkerProcess(Path({str(path)!r}))
one.send(_codec.encode_call_request("stuck", [{{"x": 1}}]))
print(one.process.pid, flush=True)
import time; time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", server], stdout=subprocess.PIPE, env=child_env(), text=True
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + PATIENCE_SECS
    while running(pid):
        assert time.monotonic() < deadline, "the worker outlives its server"
        time.sleep(0.01)


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # a zombie waits only for whoever adopted it


def test_which_one_runs(pure: bool) -> None:
    env = {**child_env(), **({"OUTSTATION_PURE_PYTHON": "1"} if pure else {})}
    command = [sys.executable, "-m", "outstation.worker", "--version"]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert said == f"outstation {outstation.__version__} ({'pure' if pure else 'native'})\n"


def test_marks_in_a_file_that_is_too_short(tmp_path: Path, pure: bool) -> None:
    ours, theirs = socket.socketpair()
    marks = os.memfd_create("marks")
    command = [sys.executable, "-m", "outstation.worker", "--bundle", str(tmp_path)]
    command += ["--fd", str(theirs.fileno()), "--marks-fd", str(marks)] + (["--pure"] if pure else [])
    fds = [theirs.fileno(), marks]
    done = subprocess.run(command, pass_fds=fds, env=child_env(), capture_output=True, text=True)
    assert done.returncode == 1 and "the file for the marks has less than" in done.stderr
    for each in (ours, theirs):
        each.close()
    os.close(marks)


def test_a_descriptor_that_is_no_socket(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "outstation.worker", "--fd", "0", "--bundle", str(tmp_path)]
    with open(os.devnull) as null:
        done = subprocess.run(command, stdin=null, env=child_env(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: descriptor 0 is not a socket")
