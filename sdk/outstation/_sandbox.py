"""Confines this process before it runs what users wrote: for good, and for all that it starts.

Each part is asked of the kernel by itself; what it does not grant is reported, and is no error: the transform
server says so in its log and its health, and whoever runs it decides. Linux on x86-64 and 64-bit ARM; elsewhere
all of it is missing. No part restricts the network: functions call databases.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import site
import struct
import sys
import sysconfig
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

# Files, sockets and pipes of one worker.
DESCRIPTORS_MAX = 4096
# Of one file: a loop that writes fills no disk at once.
FILE_BYTES_MAX = 1 << 30
# Of one user, if workers have one of their own: 512 workers with a few threads each.
PROCESSES_MAX = 4096


class Missing(NamedTuple):
    what: str
    why: str


class Report:
    """What holds from here on, and what does not."""

    def __init__(self) -> None:
        self.granted: List[str] = []
        self.missing: List[Missing] = []

    def ask(self, what: str, how: Callable[[], Optional[str]]) -> None:
        """`how` raises if it is not granted, or returns what of it is not."""
        try:
            lacking = how()
        except (OSError, ValueError, AttributeError) as error:
            self.missing.append(Missing(what, str(error)))
            return
        self.granted.append(what)
        if lacking:
            self.missing.append(Missing(what, lacking))

    def as_json(self) -> Dict[str, Any]:
        return {"granted": self.granted, "missing": [each._asdict() for each in self.missing]}


def confine(readable: Iterable[str], home: str) -> Report:
    """For good. Files: what the interpreter needs and `readable` can be read, `home` written."""
    report = Report()
    if sys.platform != "linux":
        report.missing.append(Missing("sandbox", f"there is none for {sys.platform}"))
        return report
    report.ask("own user", _own_user)
    report.ask("resource limits", _limits)
    report.ask("no capabilities", _drop_capabilities)
    report.ask("no new privileges", _no_new_privileges)
    report.ask("files", lambda: _restrict_files(readable, home))
    report.ask("system calls", _filter_calls)
    return report


def _own_user() -> Optional[str]:
    if os.getuid() == 0:
        raise OSError("workers run as root; start the server with --worker-user")
    if os.getuid() == _owner_of_parent():
        raise OSError("workers run as the server's user; start it as root with --worker-user")
    return None


def _owner_of_parent() -> Optional[int]:
    try:
        with open(f"/proc/{os.getppid()}/status") as file:
            for line in file:
                if line.startswith("Uid:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return None


def _limits() -> Optional[str]:
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, DESCRIPTORS_MAX)
    _lower(resource.RLIMIT_FSIZE, FILE_BYTES_MAX)
    if os.getuid() == 0 or os.getuid() == _owner_of_parent():
        # It is counted by user, and this user has other processes too.
        return "processes are not limited: that takes a user of their own"
    _lower(resource.RLIMIT_NPROC, PROCESSES_MAX)
    return None


def _lower(limit: int, to: int) -> None:
    _, hard = resource.getrlimit(limit)
    to = to if hard == resource.RLIM_INFINITY else min(to, hard)
    resource.setrlimit(limit, (to, to))


_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 24, 22, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPSET_VERSION = 0x20080522


def _drop_capabilities() -> Optional[str]:
    """Of root, if workers have to be it: they still own what root owns, and may do nothing else."""
    for capability in range(64):
        if _libc().prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            # Past the last one, or not ours to drop: then there are none to begin with.
            break
    _libc().prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPSET_VERSION, 0))
    _call("capset", _number("capset"), header, ctypes.create_string_buffer(24))
    return None


def _no_new_privileges() -> Optional[str]:
    if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise _last_error("prctl")
    return None


# Files: Landlock. https://docs.kernel.org/userspace-api/landlock.html

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_CHAR, _MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK = (1 << bit for bit in range(6, 12))
_MAKE_SYM, _REFER, _TRUNCATE, _IOCTL_DEV = (1 << bit for bit in range(12, 16))
#: (from this version of Landlock on, what it can refuse besides)
_FILE_RIGHTS = ((1, (1 << 13) - 1), (2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV))
_ON_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_USE = _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV
# Not to execute, and no devices.
_OWN = ((1 << 16) - 1) & ~(_EXECUTE | _MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV)
_SCOPES_FROM, _SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 6, 1, 2
_PATH_BENEATH, _ASK_VERSION = 1, 1

# Of /etc what programs look up by themselves: the server's own settings may lie beside it.
_SYSTEM_READ = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin",
    "/etc/alternatives", "/etc/ca-certificates", "/etc/ca-certificates.conf", "/etc/crypto-policies",
    "/etc/fonts", "/etc/gai.conf", "/etc/group", "/etc/host.conf", "/etc/hostname", "/etc/hosts",
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/locale.alias", "/etc/localtime",
    "/etc/mime.types", "/etc/nsswitch.conf", "/etc/os-release", "/etc/passwd", "/etc/pki", "/etc/protocols",
    "/etc/resolv.conf", "/etc/services", "/etc/ssl", "/etc/timezone", "/etc/zoneinfo",
    "/run/systemd/resolve", "/run/resolvconf",
    # Who a process belongs to, Landlock asks further on: of the server's nothing but its command line.
    "/proc",
    "/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/fs/cgroup", "/sys/kernel/mm",
)  # fmt: skip
_SYSTEM_USE = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
# Semaphores and shared memory of `multiprocessing`.
_SYSTEM_OWN = ("/dev/shm",)


def interpreter_folders() -> List[str]:
    """Where this interpreter and its packages are."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folders = {package, sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    folders.update(sysconfig.get_paths().values())
    folders.update(path for path in sys.path if path)
    folders.update(site.getsitepackages() if hasattr(site, "getsitepackages") else ())
    folders.add(os.path.dirname(os.path.realpath(sys.executable)))
    # Of a package that is installed as a link to its sources.
    for finder in sys.meta_path:
        mapping = getattr(sys.modules.get(getattr(finder, "__module__", "")), "MAPPING", None)
        if isinstance(mapping, dict):
            folders.update(str(path) for path in mapping.values())
    return sorted(folder for folder in folders if os.path.isabs(folder) and folder != "/")


def _restrict_files(readable: Iterable[str], home: str) -> Optional[str]:
    version = _landlock_version()
    handled = 0
    for since, rights in _FILE_RIGHTS:
        handled |= rights if version >= since else 0
    # `python -m` puts the working folder on the path.
    folders = [each for each in interpreter_folders() if os.path.realpath(each) != os.path.realpath(home)]
    rules = [(path, _READ) for path in (*folders, *_SYSTEM_READ, *readable)]
    rules += [(path, _USE) for path in _SYSTEM_USE]
    rules += [(path, _OWN) for path in (*_SYSTEM_OWN, home)]
    _landlock(version, handled, rules)
    if version < _SCOPES_FROM:
        return (
            f"version {version} of Landlock keeps no process from abstract Unix sockets of others, and no "
            "worker from signals to another"
        )
    return None


def separate() -> None:
    """For a worker, on top of `confine`: the parent's other workers cannot be traced, read through /proc or
    sent signals."""
    try:
        # A rule that costs nothing: what matters is to be in a domain of its own.
        _landlock(_landlock_version(), _MAKE_BLOCK, [])
    except (OSError, ValueError, AttributeError):
        pass  # `confine` has reported it


def _landlock_version() -> int:
    try:
        return _call("landlock_create_ruleset", 444, None, 0, _ASK_VERSION)
    except OSError as error:
        raise OSError(f"this kernel has no Landlock, or it is not switched on ({error})") from None


def _landlock(version: int, handled: int, rules: List[Tuple[str, int]]) -> None:
    scoped = _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS if version >= _SCOPES_FROM else 0
    attributes = struct.pack("=QQQ", handled, 0, scoped)
    size = 24 if version >= _SCOPES_FROM else 16 if version >= 4 else 8
    ruleset = _call("landlock_create_ruleset", 444, ctypes.create_string_buffer(attributes, 24), size, 0)
    try:
        for path, rights in rules:
            try:
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:  # what is not there, or not for us, needs no rule
                continue
            try:
                rights &= handled if os.path.isdir(path) else handled & _ON_A_FILE
                rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor), 12)
                _call("landlock_add_rule", 445, ruleset, _PATH_BENEATH, rule, 0)
            finally:
                os.close(descriptor)
        _call("landlock_restrict_self", 446, ruleset, 0)
    finally:
        os.close(ruleset)


# System calls: seccomp. https://docs.kernel.org/userspace-api/seccomp_filter.html

#: By machine: its name for the kernel, then numbers. What is not there, that machine does not have.
_X86_64, _AARCH64 = 0xC000003E, 0xC00000B7
_DENIED: Dict[str, Tuple[Optional[int], Optional[int]]] = {
    # Other processes.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "kcmp": (312, 272), "pidfd_getfd": (438, 438),
    # The file system, from outside of what Landlock looks at.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "quotactl": (179, 60), "fanotify_init": (300, 262),
    # Other namespaces, where one would be root.
    "unshare": (272, 97), "setns": (308, 268),
    # The kernel.
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "syslog": (103, 116),
    "iopl": (172, None), "ioperm": (173, None), "lookup_dcookie": (212, 18),
    # It does what others are denied.
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    # Keys of the session, which the server may be in.
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # The machine.
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
}  # fmt: skip
_OTHER_CALLS = {"seccomp": (317, 277), "capset": (126, 91), "clone": (56, 220), "clone3": (435, 435)}

_ALLOW, _ERRNO, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050000, 1, 38
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _MACHINE_AT, _FLAGS_AT = 0, 4, 16
_NAMESPACES = 0x7E020000  # CLONE_NEW*: user, pid, net, ipc, uts, cgroup, mount
_X32 = 0x40000000
_SECCOMP_SET_FILTER, _SECCOMP_SPEC_ALLOW = 1, 4
_MODE_FILTER = 2


def _machine() -> int:
    """Index into the pairs of numbers."""
    machine = platform.machine()
    if machine not in ("x86_64", "aarch64") or struct.calcsize("P") != 8:
        raise OSError(f"this package knows no system call numbers of {machine}")
    return 0 if machine == "x86_64" else 1


def _number(call: str) -> int:
    number = {**_DENIED, **_OTHER_CALLS}[call][_machine()]
    if number is None:
        raise OSError(f"{platform.machine()} has no {call}")
    return number


def call_filter(machine: int) -> bytes:
    """The program: allows all but what is denied, of this machine's calls."""
    code: List[Tuple[int, int, int, int]] = []

    def then(operation: int, value: int, yes: int = 0, no: int = 0) -> None:
        code.append((operation, yes, no, value))

    deny, missing = _ERRNO | _EPERM, _ERRNO | _ENOSYS
    then(_LOAD, _MACHINE_AT)
    then(_JUMP_EQUAL, (_X86_64, _AARCH64)[machine], 1, 0)
    then(_RETURN, deny)
    then(_LOAD, _NUMBER_AT)
    if machine == 0:
        # The same calls under other numbers.
        then(_JUMP_GREATER_EQUAL, _X32, 0, 1)
        then(_RETURN, deny)
    # Its flags lie in memory, where no filter looks; the C library does without it.
    then(_JUMP_EQUAL, _OTHER_CALLS["clone3"][machine], 0, 1)
    then(_RETURN, missing)
    for numbers in _DENIED.values():
        number = numbers[machine]
        if number is not None:
            then(_JUMP_EQUAL, number, 0, 1)
            then(_RETURN, deny)
    then(_JUMP_EQUAL, _OTHER_CALLS["clone"][machine], 0, 3)
    then(_LOAD, _FLAGS_AT)
    then(_JUMP_SET, _NAMESPACES, 0, 1)
    then(_RETURN, deny)
    then(_RETURN, _ALLOW)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _filter_calls() -> Optional[str]:
    program = call_filter(_machine())
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    header = ctypes.create_string_buffer(head, len(head))
    try:
        # Without the flag older kernels slow down the whole process, against attacks of the machine's caches.
        _call("seccomp", _number("seccomp"), _SECCOMP_SET_FILTER, _SECCOMP_SPEC_ALLOW, header)
    except OSError:
        if _libc().prctl(_PR_SET_SECCOMP, _MODE_FILTER, header, 0, 0) != 0:
            raise _last_error("prctl") from None
    return None


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, number: int, *arguments: Any) -> int:
    """Raises `OSError`."""
    _machine()  # elsewhere these numbers mean something else
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    done = int(_libc().syscall(ctypes.c_long(number), *wide))
    if done < 0:
        raise _last_error(name)
    return done


def _last_error(name: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{name}: {os.strerror(number)}")
