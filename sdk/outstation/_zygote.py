"""`python -m outstation._zygote`: the warm process that workers are forked from.

Started by the transform server, confined before user code is imported, with one end of a sequenced-packet
socket pair as descriptor N. It imports the bundle once, and forks a worker whenever it is asked for one:
milliseconds instead of the import, and memory that workers share until they write to it. With `--serve` it is
one worker itself, for bundles that cannot be forked.

Messages are JSON, one per packet. To the server:

    {"sandbox": {"granted": […], "missing": [{"what": …, "why": …}]}}   first of all
    {"importing": "features.py"}    before each file, so that the server knows which one hung or exited
    {"log": {…}}                    what was printed meanwhile
    {"ready": {"importSecs": 0.4}}  or {"unsafe": "why"}, which is the last
    {"forked": 7, "pid": 123}       with a pidfd; or {"failed": 7, "error": "why"}
    {"exited": 123, "status": 9}    status as of wait(2)

From the server: {"fork": 7}, with four descriptors: the worker's socket, marks file, stdout and stderr.
"""

from __future__ import annotations

import argparse
import array
import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any, Callable, Dict, List, NoReturn, Optional, Tuple

from . import _compiled, _sandbox, worker
from ._capture import Capture
from ._context import SECRETS_DIR_VARIABLE
from ._errors import DeclarationError
from ._evaluate import describe
from ._frames import LOG, FrameError, Frames
from ._loading import Loaded, load
from ._parent import adopt_orphans, call_this_process, die_with_parent

# Requests are short.
_REQUEST_BYTES_MAX = 4096
# Socket, marks, stdout, stderr.
_DESCRIPTORS = 4
# Descriptors of ours are out of the way of what user code may close by number.
_DESCRIPTOR_MIN = 100
# How soon to look again for what ended workers left behind: while there is some, and when all is quiet.
_SWEEP_SOON_MS, _SWEEP_MS = 20, 5000
_UNSAFE_SHOWN_MAX = 5
_THREAD_END_SECS = 0.3
# Reading these leaves no position that forks would share.
_HARMLESS_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

# User code may replace them in their modules, as gevent does.
_exit, _poll = os._exit, select.poll


class Control:
    """The server on the other end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def say(self, message: Dict[str, Any], descriptors: Tuple[int, ...] = ()) -> None:
        data = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        with self._lock:
            self._sock.sendmsg([data], [rights] if descriptors else [])

    def hear(self) -> Optional[Tuple[Dict[str, Any], List[int]]]:
        """None when the server has closed its end."""
        room = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)
        data, rights, _, _ = self._sock.recvmsg(_REQUEST_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC)
        descriptors = array.array("i")
        for level, kind, raw in rights:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(raw[: len(raw) - len(raw) % descriptors.itemsize])
        if not data:
            return None
        return json.loads(data), list(descriptors)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()


class Zygote:
    """Forks workers around one bundle. One thread, for a fork copies no other."""

    def __init__(self, control: Control, bundle: worker.Bundle, capture: Capture) -> None:
        self._control, self._bundle, self._capture = control, bundle, capture
        self._workers: Dict[int, int] = {}  # by pidfd
        self._me = os.getpid()
        self._strays = False
        self._poll = _poll()
        self._poll.register(control.fileno(), select.POLLIN)

    def run(self) -> None:
        """Returns when the server has closed its end; the workers end with this process."""
        while True:
            ready = self._poll.poll(_SWEEP_SOON_MS if self._strays else _SWEEP_MS)
            # Ends first: a new worker is given no number that is still to be told of.
            for descriptor in [fd for fd, _ in ready if fd in self._workers]:
                self._ended(descriptor)
            if any(fd == self._control.fileno() for fd, _ in ready):
                heard = self._control.hear()
                if heard is None:
                    return
                self._fork(*heard)
            self._sweep()

    def _fork(self, request: Dict[str, Any], descriptors: List[int]) -> None:
        number = request.get("fork")
        try:
            if len(descriptors) != _DESCRIPTORS:
                raise OSError(f"{len(descriptors)} descriptors came with the request")
            pid = self._capture.fork()
            if pid == 0:
                self._child(*descriptors)
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            self._control.say({"failed": number, "error": str(error)})
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._workers[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        self._control.say({"forked": number, "pid": pid}, (pidfd,))

    def _child(self, sock: int, marks: int, out: int, err: int) -> NoReturn:
        try:
            os.setsid()
            die_with_parent(self._me)
            call_this_process("worker")
            os.dup2(out, 1)
            os.dup2(err, 2)
            self._control.close()
            for descriptor in (*self._workers, out, err):
                os.close(descriptor)
            _sandbox.separate()
            _reseed()
            gc.enable()
            worker.serve(self._bundle, self._capture, socket.socket(fileno=_aside(sock)), _aside(marks))
            _exit(0)
        except BaseException:
            os.write(2, traceback.format_exc().encode("utf-8", "replace"))
        finally:
            _exit(1)

    def _ended(self, pidfd: int) -> None:
        pid = self._workers.pop(pidfd)
        self._poll.unregister(pidfd)
        # Until it is waited for, nobody else can have its number.
        _kill(lambda: os.killpg(pid, signal.SIGKILL))
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        self._control.say({"exited": pid, "status": status})

    def _sweep(self) -> None:
        """Ends what workers started and left behind, which is ours by now, see `adopt_orphans`."""
        strays = [pid for pid in children() if pid not in self._workers.values()]
        for pid in strays:
            _kill(lambda: os.kill(pid, signal.SIGKILL))
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass
        self._strays = bool(strays)


def _kill(kill: Callable[[], None]) -> None:
    try:
        kill()
    except OSError:  # nobody is left
        pass


def children() -> List[int]:
    """Of this process's one thread."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def _aside(descriptor: int) -> int:
    """The descriptor, out of the way."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _DESCRIPTOR_MIN)
    os.close(descriptor)
    return moved


def _reseed() -> None:
    """Or all workers would draw the same numbers. Python's own generator is seeded by `os.fork`."""
    random = sys.modules.get("numpy.random")
    if random is not None:
        try:
            random.seed()
        except Exception:
            traceback.print_exc()


class Snapshot:
    """What of this process a fork would share or lose, to be compared with later."""

    def __init__(self) -> None:
        self._descriptors = descriptors()

    def unsafe(self) -> Optional[str]:
        """Why workers must not be forked from what was imported since."""
        until = time.monotonic() + _THREAD_END_SECS
        # One that was joined may still be on its way out.
        while len(tasks := os.listdir("/proc/self/task")) > 1 and time.monotonic() < until:
            time.sleep(0.005)
        if len(tasks) > 1:
            names = sorted(_thread_name(task) for task in tasks if task != str(os.getpid()))
            return f"it leaves {len(names)} threads running: {_shown(names)}"
        if children():
            return "it leaves processes running"
        mapped = _mapped()
        opened = [
            target
            for descriptor, target in descriptors().items()
            if self._descriptors.get(descriptor) != target
            and target not in _HARMLESS_DEVICES
            # Behind a memory map; whoever reads from it as well moves a position that all share.
            and not (target in mapped and _is_read_only(descriptor))
        ]
        if opened:
            return f"it leaves files or connections open: {_shown(opened)}"
        return None


def _shown(names: List[str]) -> str:
    more = len(names) - _UNSAFE_SHOWN_MAX
    return ", ".join(names[:_UNSAFE_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def descriptors() -> Dict[int, str]:
    """What this process has open, and what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the one that read the list
            pass
    return found


def _thread_name(task: str) -> str:
    by_id = {str(thread.native_id): thread.name for thread in threading.enumerate()}
    if task in by_id:
        return by_id[task]
    try:
        with open(f"/proc/self/task/{task}/comm") as file:
            return file.read().strip()
    except OSError:
        return "?"


def _mapped() -> "set[str]":
    try:
        with open("/proc/self/maps", errors="replace") as file:
            return {line.rstrip("\n").split(" ", 5)[-1].lstrip() for line in file}
    except OSError:
        return set()


def _is_read_only(descriptor: int) -> bool:
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    except OSError:
        return False


def _quiet_signals() -> None:
    """Ctrl-C in a terminal reaches every process there; when to stop, the server says. And what an
    import has set up would go on in every worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _load(folder: str, entering: Callable[[str], None], skip: Dict[str, str]) -> worker.Bundle:
    try:
        return worker.Bundle(load(folder, entering, skip))
    except DeclarationError as error:
        # Nothing to load is an answer too: every call is told so.
        bundle = worker.Bundle(Loaded(folder))
        bundle._broken_files.append((folder, error.one_line))
        return bundle


def warm(control: Control, folder: str, skip: Dict[str, str]) -> None:
    """Imports, then forks until the server is gone, unless what was imported forbids it."""
    capture = Capture()
    capture.connect(lambda request, payload: control.say({"log": json.loads(payload)}), control.close)
    capture.install()
    _compiled.native()  # once for all
    before, start = Snapshot(), time.monotonic()
    # What a collection frees in the midst of shared pages would have to be copied.
    gc.disable()

    def importing(name: str) -> None:
        capture.entering(name)
        control.say({"importing": name})

    bundle = _load(folder, importing, skip)
    capture.entering("")
    capture.begin(0)
    gc.collect()
    gc.freeze()
    _quiet_signals()
    reason = before.unsafe()
    if reason is not None:
        for child in children():
            _kill(lambda: os.kill(child, signal.SIGKILL))
        control.say({"unsafe": reason})
        return
    zygote = Zygote(control, bundle, capture)
    control.say({"ready": {"importSecs": round(time.monotonic() - start, 3)}})
    zygote.run()


def serve_alone(folder: str, sock: socket.socket, marks_fd: Optional[int], skip: Dict[str, str]) -> int:
    """One worker, which imports the bundle by itself."""
    frames = Frames(sock)
    capture = Capture()
    capture.connect(lambda request, payload: frames.write(LOG, request, payload), frames.forget)
    stderr = sys.stderr
    capture.install()
    try:
        bundle = _load(folder, capture.entering, skip)
        capture.entering("")
        capture.begin(0)
        gc.collect()
        gc.freeze()
        worker.serve(bundle, capture, sock, marks_fd)
    except (FrameError, OSError) as error:
        print(f"worker: {describe(error)}", file=stderr)
        return 1
    return 0


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m outstation._zygote", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="descriptor of the connected socket")
    parser.add_argument("--bundle", required=True, help="folder of the unpacked bundle")
    parser.add_argument("--home", required=True, help="the only folder that user code may write to")
    parser.add_argument("--skip", action="append", default=[], metavar="FILE=WHY", help="do not import")
    parser.add_argument("--serve", action="store_true", help="be a worker; do not fork")
    parser.add_argument("--marks-fd", type=int, help="descriptor of the marks file, with --serve")
    options = parser.parse_args(arguments)
    skip = dict(each.split("=", 1) for each in options.skip if "=" in each)

    call_this_process("worker" if options.serve else "warm-parent")
    die_with_parent()
    sys.dont_write_bytecode = True
    _quiet_signals()
    sock = worker._take_socket(options.fd)
    secrets = os.environ.get(SECRETS_DIR_VARIABLE)
    readable = [options.bundle, secrets] if secrets else [options.bundle]
    report = _sandbox.confine(readable, options.home)
    if options.serve:
        _sandbox.separate()
        _exit(serve_alone(options.bundle, sock, options.marks_fd, skip))
    control = Control(sock)
    control.say({"sandbox": report.as_json()})
    adopt_orphans()
    warm(control, options.bundle, skip)
    # At once: exit handlers of user code are for workers.
    _exit(0)


if __name__ == "__main__":
    sys.exit(main())
