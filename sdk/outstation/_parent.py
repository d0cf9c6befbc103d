"""Ties this process to the one that started it, and says what it is."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Optional


def die_with_parent(parent: Optional[int] = None) -> None:
    """Linux: SIGKILL when the thread that started this process ends, however it ends; elsewhere
    nothing. With the `parent`'s id also right now, if it has ended before this could be asked for."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Linux: what this process's descendants leave behind becomes its child, not that of process 1."""
    try:
        ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    except (OSError, AttributeError):
        pass


def call_this_process(name: str) -> None:
    """What `ps -o comm` and `top` show, up to 15 characters: a forked process has its parent's command line."""
    try:
        ctypes.CDLL(None, use_errno=True).prctl(15, name.encode(), 0, 0, 0)  # PR_SET_NAME
    except (OSError, AttributeError):
        pass
