"""The real warm parent and its workers, as a transform server would use them."""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
from conftest import HEAD, PATIENCE_SECS, Talk, child_env, new_marks
from test_worker import GOOD, running, view

from outstation import _codec, _sandbox

if sys.platform != "linux":
    pytest.skip("workers are forked on Linux only", allow_module_level=True)

SECRET = "the server's secret"


class Parent:
    """The process, and our end of its control socket."""

    def __init__(self, bundle: Path, home: Path, *options: str, python: str = sys.executable) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(PATIENCE_SECS)
        self.process = subprocess.Popen(
            [python, "-m", "outstation._zygote", "--fd", "0", "--bundle", str(bundle), "--home", str(home), *options],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=home,
            env={**child_env(), "HOME": str(home), "TMPDIR": str(home), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        theirs.close()
        self.home = home
        self.workers: List[Worker] = []
        #: Files that it was about to import.
        self.importing: List[str] = []
        self.printed: List[str] = []
        self.exits: Dict[int, int] = {}
        self.sandbox = self.hear()[0]["sandbox"]
        self._number = 0

    def hear(self) -> Tuple[Dict[str, Any], List[int]]:
        """Empty when it has closed the socket."""
        data, rights, _, _ = self.control.recvmsg(65536, socket.CMSG_SPACE(16), socket.MSG_CMSG_CLOEXEC)
        descriptors = array.array("i")
        for _, _, raw in rights:
            descriptors.frombytes(raw)
        return (json.loads(data) if data else {}), list(descriptors)

    def until(self, *wanted: str) -> Tuple[Dict[str, Any], List[int]]:
        while True:
            message, descriptors = self.hear()
            if "importing" in message:
                self.importing.append(message["importing"])
            if "log" in message:
                self.printed.append(message["log"]["text"])
            if "exited" in message:
                self.exits[message["exited"]] = message["status"]
            if not message or any(key in message for key in wanted):
                return message, descriptors

    def fork(self) -> Worker:
        self._number += 1
        worker = Worker(self, self._number)
        self.workers.append(worker)
        return worker

    def end(self) -> Tuple[int, str]:
        self.control.close()
        _, err = self.process.communicate(timeout=PATIENCE_SECS)
        return self.process.returncode, err.decode()


class Worker(Talk):
    def __init__(self, parent: Parent, number: int) -> None:
        self.asked = time.monotonic()
        sock, theirs = socket.socketpair()
        marks = new_marks()
        self.out, out = os.pipe()
        self.err, err = os.pipe()
        fds = array.array("i", [theirs.fileno(), marks, out, err])
        parent.control.sendmsg(
            [json.dumps({"fork": number}).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        )
        theirs.close()
        for each in (out, err):
            os.close(each)
        message, descriptors = parent.until("forked", "failed")
        assert message.get("forked") == number, message
        self.pid, (self.pidfd,) = message["pid"], descriptors
        super().__init__(sock, marks)
        self.took = time.monotonic() - self.asked

    def wait(self) -> None:
        """Until it has ended, whoever is told."""
        ready, _, _ = select.select([self.pidfd], [], [], PATIENCE_SECS)
        assert ready, "the worker does not end"

    def last_words(self) -> str:
        with open(self.err, closefd=False, errors="replace") as file:
            return file.read()

    def close(self) -> None:
        self.sock.close()
        for each in (self.out, self.err, self.pidfd, self._marks):
            os.close(each)


Start = Callable[..., Parent]


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Start]:
    started: List[Parent] = []

    def start(*options: str, **files: str) -> Parent:
        bundle, home = tmp_path / "bundle", tmp_path / "home"
        for folder in (bundle, home):
            folder.mkdir(exist_ok=True)
        for name, text in files.items():
            (bundle / f"{name}.py").write_text(HEAD + text)
        started.append(Parent(bundle, home, *options))
        return started[-1]

    yield start
    for each in started:
        # With what it started: a test that has failed must not hang as well.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)
        each.process.communicate()
        for worker in each.workers:
            worker.close()


def test_forked_workers_answer_side_by_side(parent: Start) -> None:
    one = parent(features="print('once')\n" + GOOD + view("pid", "import os; return {'y': os.getpid()}"))
    assert "importSecs" in one.until("ready", "unsafe")[0]["ready"]
    assert (one.importing, one.printed) == (["features.py"], ["once"])
    workers = [one.fork() for _ in range(3)]
    for worker in workers:
        assert worker.ready == _codec.encode_targets(
            [_codec.Target("good", 1, ("good",)), _codec.Target("pid", 1, ("pid",))]
        )
        assert worker.call("good", {"x": 1}) == [{"good.y": 2}]
        assert worker.call("pid", {"x": 1}) == [{"pid.y": worker.pid}]
    # One that is let go of ends by itself; the others do not notice.
    workers[1].sock.close()
    assert one.until("exited")[0] == {"exited": workers[1].pid, "status": 0}
    assert workers[0].call("good", {"x": 4}) == workers[2].call("good", {"x": 4}) == [{"good.y": 5}]
    assert one.end() == (0, "")
    for worker in workers:
        worker.wait()


def test_a_worker_has_its_own_descriptors_only(parent: Start) -> None:
    listing = view(
        "listing",
        "import os, socket; fds = {f: os.readlink('/proc/self/fd/' + f) for f in os.listdir('/proc/self/fd') "
        "if os.path.lexists('/proc/self/fd/' + f)}; return {'y': repr(sorted(fds.values()))}",
        features='Attribute("y", String)',
    )
    one = parent(features=listing)
    one.until("ready")
    one.fork()
    found = eval(one.fork().call("listing", {"x": 1})[0]["listing.y"])
    kinds = sorted(each.split(":")[0] for each in found)
    # Its standard ones, the socket, and what may be mapped by now.
    assert [kind for kind in kinds if kind != "/memfd"] == ["/dev/null", "pipe", "pipe", "socket"], found


@pytest.mark.parametrize(
    "body, status, says",
    [
        ("import os; os._exit(7)", 7 << 8, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", signal.SIGSEGV, "Segmentation fault"),
        ("import os; os.abort()", signal.SIGABRT, "Aborted"),
    ],
)
def test_how_a_worker_ended_is_told(body: str, status: int, says: str, parent: Start) -> None:
    one = parent(features="import faulthandler; faulthandler.enable()\n" + view("ends", body) + GOOD)
    one.until("ready")
    other, worker = one.fork(), one.fork()
    worker.send(_codec.encode_call_request("ends", [{"x": 1}]))
    message = one.until("exited")[0]
    assert (message["exited"], message["status"] & 0x7F7F) == (worker.pid, status)
    assert says in worker.last_words()
    assert other.call("good", {"x": 1}) == [{"good.y": 2}]
    assert one.fork().call("good", {"x": 1}) == [{"good.y": 2}]


def test_what_a_worker_started_ends_with_it(parent: Start) -> None:
    """Also in a session of its own, and whose parent is gone."""
    starts = view(
        "starts",
        "import subprocess; a = subprocess.Popen(['sleep', '600']); "
        "b = subprocess.run(['sh', '-c', 'setsid sleep 600 >/dev/null 2>&1 & echo $!'], capture_output=True); "
        "return {'y': (a.pid << 32) + int(b.stdout)}",
    )
    one = parent(features=starts + GOOD)
    one.until("ready")
    worker = one.fork()
    both = worker.call("starts", {"x": 1})[0]["starts.y"]
    signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)
    assert one.until("exited")[0] == {"exited": worker.pid, "status": signal.SIGKILL}
    for pid in (both >> 32, both & 0xFFFFFFFF):
        until("its child is gone", lambda: not running(pid))
    assert one.fork().call("good", {"x": 1}) == [{"good.y": 2}]


def test_workers_die_with_the_parent(parent: Start) -> None:
    """In the middle of a function that never returns, and while they wait."""
    one = parent(features=view("stuck", "\n    while True: pass"))
    one.until("ready")
    busy, idle = one.fork(), one.fork()
    busy.send(_codec.encode_call_request("stuck", [{"x": 1}]))
    until("the mark of the one that runs", lambda: busy.marks()[0] == 1)
    one.process.kill()
    for worker in (busy, idle):
        worker.wait()
    assert one.until("exited") == ({}, [])


def test_workers_draw_their_own_random_numbers(parent: Start) -> None:
    pytest.importorskip("numpy")
    draws = "import random, numpy\nnumpy.random.seed(1)\n" + view(
        "draws", "return {'y': random.getrandbits(30) << 32 | int(numpy.random.randint(1 << 30))}"
    )
    one = parent(features=draws)
    assert one.until("ready", "unsafe")[0].get("ready"), "numpy can be forked"
    drawn = [one.fork().call("draws", {"x": 1})[0]["draws.y"] for _ in range(4)]
    assert len({each >> 32 for each in drawn}) == len({each & 0xFFFFFFFF for each in drawn}) == 4


@pytest.mark.parametrize(
    "text, why",
    [
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(600,), name='poller', daemon=True).start()\n",
         "it leaves 1 threads running: poller"),
        ("import socket\nconnection = socket.create_server(('127.0.0.1', 0))\n", "files or connections open: socket:["),
        ("import tempfile\nfile = tempfile.TemporaryFile()\n", "files or connections open: /"),
        ("import os\ndescriptor = os.open(__file__, os.O_RDONLY)\n", "features.py"),
        ("import subprocess\nchild = subprocess.Popen(['sleep', '600'])\n", "it leaves processes running"),
    ],
)  # fmt: skip
def test_what_cannot_be_forked_says_why(text: str, why: str, parent: Start) -> None:
    one = parent(features=text + GOOD)
    message, _ = one.until("ready", "unsafe")
    assert why in message.get("unsafe", message), message
    assert one.end() == (0, "")


def test_what_an_import_may_leave_behind(parent: Start) -> None:
    fine = """
import mmap, os, signal, threading, time
thread = threading.Thread(target=time.sleep, args=(0,)); thread.start(); thread.join()
with open(__file__, "rb") as file: mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
random = open("/dev/urandom", "rb")
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.setitimer(signal.ITIMER_REAL, 600)
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
"""
    works = view("works", "import subprocess; subprocess.run(['true'], check=True); return {'y': 1}")
    one = parent(features=fine + works)
    assert "ready" in one.until("ready", "unsafe")[0]
    assert one.fork().call("works", {"x": 1}) == [{"works.y": 1}]


def test_an_import_that_exits_or_hangs_is_skipped_the_next_time(parent: Start) -> None:
    files = {"a": GOOD, "b": "import os; os._exit(3)\n" + view("exits", "return {}"), "c": view("late", "return {'y': 1}")}
    one = parent(**files)
    assert one.until("ready") == ({}, [])
    assert one.importing == ["a.py", "b.py"] and one.process.wait(PATIENCE_SECS) == 3

    hangs = {**files, "c": "import time; print('here')\ntime.sleep(600)\n" + view("late", "return {'y': 1}")}
    two = parent("--skip", "b.py=importing it ended the process", **hangs)
    while not two.printed:
        two.until("log")
    assert two.importing == ["a.py", "c.py"]

    three = parent("--skip", "b.py=importing it ended the process", "--skip", "c.py=it did not end within 1s", **hangs)
    three.until("ready")
    worker = three.fork()
    assert worker.call("good", {"x": 1}) == [{"good.y": 2}]
    assert b"importing it ended the process" in worker.ready and b"it did not end within 1s" in worker.ready


def test_an_unusable_bundle_is_an_answer_too(parent: Start) -> None:
    one = parent()
    one.until("ready")
    assert one.fork().ready == b""


def test_without_forks_it_is_a_worker_itself(parent: Start, tmp_path: Path) -> None:
    bundle, home = tmp_path / "bundle", tmp_path / "home"
    for each in (bundle, home):
        each.mkdir()
    (tmp_path / "secret").write_text(SECRET)
    (bundle / "features.py").write_text(HEAD + "import threading\nthreading.Timer(600, print).start()\n" + peek(tmp_path / "secret"))
    sock, theirs = socket.socketpair()
    command = [sys.executable, "-m", "outstation._zygote", "--serve", "--fd", "0"]
    process = subprocess.Popen(
        [*command, "--bundle", str(bundle), "--home", str(home)],
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_env(), cwd=home,
    )  # fmt: skip
    theirs.close()
    one = Talk(sock, -1)
    assert one.call("peek", {"x": 1}) == [{"peek.y": "PermissionError"}], "confined as well"
    sock.close()
    _, err = process.communicate(timeout=PATIENCE_SECS)
    assert (process.returncode, err) == (0, b"")


# What user code may do.


def peek(path: Path) -> str:
    return view("peek", outcome(f"open({str(path)!r}).read()"), features='Attribute("y", String)')


def outcome(expression: str) -> str:
    """The body of a function that tells how `expression` ended."""
    return (
        f"\n    try: return {{'y': str({expression})}}\n"
        "    except BaseException as error: return {'y': type(error).__name__}"
    )


def granted(one: Parent, what: str) -> None:
    """Skips, loudly, what this machine's kernel cannot show."""
    if what not in one.sandbox["granted"]:
        reason = f"NOT TESTED on this machine: {what}: {one.sandbox['missing']}"
        warnings.warn(reason, stacklevel=2)
        pytest.skip(reason)


ASK = (
    "import ctypes, os, signal, socket, subprocess, sys\n"
    "libc = ctypes.CDLL(None, use_errno=True)\n"
    "def called(*arguments):\n"
    "    ctypes.set_errno(0)\n"
    "    return (libc.syscall(*map(ctypes.c_long, arguments)), ctypes.get_errno())\n"
    + view(
        "ask",
        "\n    try: return {'y': str(eval(source['x']))}\n"
        "    except BaseException as error: return {'y': type(error).__name__}",
        'Field("x", String)',
        'Attribute("y", String)',
    )
)


class Confined:
    """A forked worker that evaluates what it is sent."""

    def __init__(self, start: Start) -> None:
        self.parent = start(features=ASK)
        self.parent.until("ready")
        self.worker = self.parent.fork()

    def ask(self, expression: str) -> str:
        return str(self.worker.call("ask", {"x": expression})[0]["ask.y"])


@pytest.fixture
def confined(parent: Start) -> Confined:
    return Confined(parent)


def test_files_outside_cannot_be_read(confined: Confined, tmp_path: Path) -> None:
    granted(confined.parent, "files")
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o644)
    for expression in (
        f"open({str(secret)!r}).read()",
        f"os.listdir({str(tmp_path)!r})",
        f"os.execv({str(secret)!r}, ['x'])",
        f"os.symlink({str(secret)!r}, 'link') or open('link').read()",
        "open('/etc/shadow').read()",
        f"open('/proc/{os.getpid()}/environ').read()",
        f"open('/proc/{os.getpid()}/cwd/secret').read()",
        f"os.readlink('/proc/{os.getpid()}/exe')",
        f"open('/proc/self/root{secret}').read()",
    ):
        assert confined.ask(expression) == "PermissionError", expression
    shell = f"subprocess.run(['cat', {str(secret)!r}], capture_output=True)"
    assert confined.ask(f"{shell}.stdout") == "b''" and "Permission denied" in confined.ask(f"{shell}.stderr")
    # And what it needs, it has.
    assert confined.ask("len(open('/etc/hosts').read()) > 0") == "True"
    assert confined.ask("'features.py' in os.listdir(os.path.dirname(ask.__code__.co_filename) if hasattr(ask, '__code__') else sys.path[0])") == "True"
    assert confined.ask("__import__('sqlite3').sqlite_version.count('.')") == "2"
    assert confined.ask("subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True).stdout") == "b'1\\n'"


def test_nothing_is_written_outside_of_home(confined: Confined, tmp_path: Path) -> None:
    granted(confined.parent, "files")
    bundle, outside = tmp_path / "bundle", tmp_path / "outside"
    for expression in (
        f"open({str(outside)!r}, 'w')",
        f"open({str(bundle / 'features.py')!r}, 'a')",
        f"os.mkdir({str(bundle / 'new')!r})",
        f"os.remove({str(bundle / 'features.py')!r})",
        f"os.truncate({str(bundle / 'features.py')!r}, 0)",
        f"os.rename({str(bundle / 'features.py')!r}, 'stolen')",
        f"os.link({str(bundle / 'features.py')!r}, 'linked')",
        "open('/proc/self/oom_score_adj', 'w')",
    ):
        assert confined.ask(expression) in ("PermissionError", "OSError"), expression
    assert (bundle / "features.py").read_text().startswith(HEAD) and not outside.exists()
    assert confined.ask("open('mine', 'w').write('x')") == "1"
    assert (confined.parent.home / "mine").read_text() == "x"
    # What it writes there cannot be run.
    assert confined.ask("os.chmod('mine', 0o755) or os.execv('./mine', ['mine'])") == "PermissionError"
    assert confined.ask("__import__('tempfile').NamedTemporaryFile().write(b'x')") == "1"
    assert confined.ask("__import__('multiprocessing').get_context('fork').Lock().acquire()") == "True"


def test_the_servers_environment_is_not_seen(parent: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    one = Confined(parent)
    assert SECRET not in one.ask("dict(os.environ)")
    assert SECRET not in one.ask("open('/proc/self/environ').read()")
    assert SECRET not in one.ask("open(f'/proc/{os.getppid()}/environ').read()")


def test_other_processes_cannot_be_touched(confined: Confined) -> None:
    """The server, the parent, other workers."""
    granted(confined.parent, "files")
    other = confined.parent.fork()
    for pid in (os.getpid(), confined.parent.process.pid, other.pid):
        for file in ("environ", "mem", "maps"):
            assert confined.ask(f"open('/proc/{pid}/{file}', 'rb').read(1)") == "PermissionError", file
        if not any("signals" in each["why"] for each in confined.parent.sandbox["missing"]):
            assert confined.ask(f"os.kill({pid}, 0)") == "PermissionError"
    # Its own it can.
    assert confined.ask("subprocess.Popen(['sleep', '600']).kill()") == "None"
    assert other.call("ask", {"x": "1 + 1"}) == [{"ask.y": "2"}]


def test_abstract_sockets_of_others_cannot_be_reached(confined: Confined) -> None:
    granted(confined.parent, "files")
    if any("abstract" in each["why"] for each in confined.parent.sandbox["missing"]):
        pytest.skip("NOT TESTED on this machine: this version of Landlock has no scopes")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0outstation-test-{os.getpid()}")
        listener.listen()
        name = repr(listener.getsockname())
        assert confined.ask(f"socket.socket(socket.AF_UNIX).connect({name})") == "PermissionError"


def test_the_network_can_be_reached(confined: Confined) -> None:
    """Functions call databases, over TCP and over Unix sockets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        assert confined.ask(f"socket.create_connection({address!r}).getpeername()") == str(address)
    assert confined.ask("socket.getaddrinfo('localhost', 80)[0][4][1]") == "80"
    assert confined.ask("(lambda a, b: a.send(b'x'))(*socket.socketpair())") == "1"


def test_system_calls_that_reach_further_are_denied(confined: Confined) -> None:
    granted(confined.parent, "system calls")
    machine = _sandbox._machine()
    for name, pair in _sandbox._DENIED.items():
        if pair[machine] is not None:
            assert confined.ask(f"called({pair[machine]}, -1, 0, 0, 0, 0, 0)") == "(-1, 1)", name
    new_user, new_pid = 0x10000000, 0x20000000
    for flags in (new_user, new_pid):
        assert confined.ask(f"called({_sandbox._OTHER_CALLS['clone'][machine]}, {flags} | 17, 0, 0, 0, 0)") == "(-1, 1)"
    assert confined.ask(f"called({_sandbox._OTHER_CALLS['clone3'][machine]}, 0, 0)") == "(-1, 38)"
    # And with it threads and processes are started as ever.
    thread = "(lambda t: t.start() or t.join() or t.is_alive())(__import__('threading').Thread(target=print))"
    assert confined.ask(thread) == "False"
    assert confined.ask("subprocess.run(['true']).returncode") == "0"


def test_privileges_are_gone_for_good(confined: Confined) -> None:
    status = dict(
        line.split(":\t", 1) for line in confined.ask("open('/proc/self/status').read()").splitlines() if ":\t" in line
    )
    for what in ("no new privileges", "no capabilities"):
        granted(confined.parent, what)
    assert status["NoNewPrivs"] == "1"
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        if capabilities != "CapBnd" or os.getuid() == 0:
            assert int(status[capabilities], 16) == 0, capabilities
    # Nor do they come back with a program.
    child = "subprocess.run(['grep', 'CapEff', '/proc/self/status'], capture_output=True, text=True).stdout"
    assert int(confined.ask(child).split()[1], 16) == 0
    assert confined.ask("__import__('resource').getrlimit(4)") == "(0, 0)"


def test_a_user_of_its_own() -> None:
    """What the server does with `--worker-user`: the interpreter is started as that user."""
    python = next((path for path in ("/usr/bin/python3", sys.executable) if usable_by_others(path)), None)
    if os.getuid() != 0 or python is None:
        reason = "NOT TESTED on this machine: takes root, and an interpreter that others can run"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    code = (
        "import json; from outstation import _sandbox; r = _sandbox.confine([], '/nonexistent'); "
        "print(json.dumps(r.as_json())); import resource; print(resource.getrlimit(resource.RLIMIT_NPROC)[0])"
    )
    done = subprocess.run([python, "-c", code], env=child_env(), user=65534, group=65534, extra_groups=[],
                          capture_output=True, text=True, cwd="/")  # fmt: skip
    if done.returncode != 0 and "No module named 'outstation'" in done.stderr:
        pytest.skip("NOT TESTED on this machine: that user cannot read this package")
    report, processes = done.stdout.splitlines()
    assert "own user" in json.loads(report)["granted"], done.stderr
    assert int(processes) == _sandbox.PROCESSES_MAX


def usable_by_others(path: str) -> bool:
    real = Path(os.path.realpath(path))
    return real.exists() and all(part.stat().st_mode & 0o001 for part in (real, *real.parents))


def test_the_filter_of_both_machines_decides() -> None:
    """The program, run here by hand: what this machine's kernel cannot show for the other."""
    for machine, name in ((0, 0xC000003E), (1, 0xC00000B7)):
        program = _sandbox.call_filter(machine)
        denied = {pair[machine] for pair in _sandbox._DENIED.values()} - {None}
        for number in range(0, 600):
            expected = 0x00050001 if number in denied else 0x7FFF0000
            expected = 0x00050026 if number == 435 else expected
            assert decide(program, number, name, 17) == expected, (machine, number)
        clone = _sandbox._OTHER_CALLS["clone"][machine]
        assert clone is not None and decide(program, clone, name, 0x10000011) == 0x00050001
        assert decide(program, 0, name ^ 1, 0) == 0x00050001, "another machine's calls"
    assert decide(_sandbox.call_filter(0), 0x40000000 | 101, 0xC000003E, 0) == 0x00050001, "x32"


def decide(program: bytes, number: int, machine: int, first: int) -> int:
    import struct

    data, at, register = struct.pack("=iIQQ", number, machine, 0, first), 0, 0
    while True:
        operation, yes, no, value = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        if operation == _sandbox._LOAD:
            (register,) = struct.unpack_from("=I", data, value)
        elif operation == _sandbox._RETURN:
            return int(value)
        else:
            holds = {
                _sandbox._JUMP_EQUAL: register == value,
                _sandbox._JUMP_GREATER_EQUAL: register >= value,
                _sandbox._JUMP_SET: bool(register & value),
            }[operation]
            at += yes if holds else no


# Figures.


def private_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def test_figures_with_pandas(parent: Start, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Printed, not judged: a clock on a busy machine proves nothing."""
    pytest.importorskip("pandas")
    frames = "import pandas\n" + view("rows", "return {'y': len(pandas.DataFrame([source]))}")
    one = parent(features=frames)
    ready, _ = one.until("ready", "unsafe")
    assert "ready" in ready, f"pandas can be forked: {ready}"
    one.fork()
    workers = [one.fork() for _ in range(5)]
    beyond = [private_kib(worker.pid) for worker in workers]
    for worker in workers:
        assert worker.call("rows", {"x": 1}) == [{"rows.y": 1}]
    fresh = []
    for _ in range(3):
        start = time.monotonic()
        sock, theirs = socket.socketpair()
        process = subprocess.Popen(
            [sys.executable, "-m", "outstation._zygote", "--serve", "--fd", "0"]
            + ["--bundle", str(tmp_path / "bundle"), "--home", str(one.home)],
            stdin=theirs, env=child_env(), cwd=one.home,
        )  # fmt: skip
        theirs.close()
        Talk(sock, -1)
        fresh.append(time.monotonic() - start)
        sock.close()
        process.wait(PATIENCE_SECS)
    forked = sorted(worker.took for worker in workers)[len(workers) // 2]
    with capsys.disabled():
        print(
            f"\n  pandas imported in {ready['ready']['importSecs']} s once; to READY: forked {forked * 1e3:.1f} ms, "
            f"fresh {sorted(fresh)[1] * 1e3:.0f} ms, {sorted(fresh)[1] / forked:.0f}x; private memory when ready "
            f"{max(beyond) / 1024:.1f} MiB, after a call {private_kib(workers[0].pid) / 1024:.1f} MiB"
        )


def until(what: str, probe: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECS
    while not probe():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)
