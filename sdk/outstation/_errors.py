"""What is wrong with a declaration, where in the user's files it is, and what to do about it."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Optional

PACKAGE_DIR = os.path.dirname(os.path.abspath(__file__)) + os.sep
_IMPORT_DIR = os.path.dirname(importlib.__file__) + os.sep


@dataclass(frozen=True)
class Where:
    """A line of the user's code."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{shown_path(self.file)}:{self.line}"


class DeclarationError(Exception):
    """A declaration that cannot stand: what is wrong, where, and what to do next."""

    def __init__(self, message: str, *, hint: str, where: Optional[Where] = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where if where is not None else caller()

    @property
    def one_line(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message

    def __str__(self) -> str:
        return f"{self.one_line}\nhint: {self.hint}"


def shown_path(file: str) -> str:
    """The path as a person would type it: relative to the working directory where it lies below."""
    try:
        relative = os.path.relpath(file)
    except ValueError:
        return file
    return file if relative.startswith(os.pardir) else relative


def is_ours(filename: str) -> bool:
    """Of this package, or of the machinery that imports for it."""
    return filename.startswith((PACKAGE_DIR, _IMPORT_DIR, "<frozen "))


def caller() -> Optional[Where]:
    """The innermost frame that is not of this package."""
    frame: Optional[FrameType] = sys._getframe(1)
    while frame is not None:
        if not is_ours(frame.f_code.co_filename):
            return Where(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def innermost_below(folder: str, traceback: Optional[TracebackType]) -> Optional[Where]:
    """The innermost line of `folder` that an exception passed through."""
    found = None
    prefix = os.path.join(folder, "")
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if filename.startswith(prefix):
            found = Where(filename, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found
