"""What a worker leaves behind if it dies: which request it was running, and answers not yet sent.

A file in memory that the server made, reads and never writes. Native-endian: 8 bytes id of the
request being run (0: none); 8 bytes length of the answers that were not yet sent; at 4096 these
answers, whole frames.
"""

from __future__ import annotations

import mmap
import os
from typing import Optional

ANSWERS_AT = 4096
ANSWERS_BYTES_MAX = 256 * 1024
FILE_BYTES = ANSWERS_AT + ANSWERS_BYTES_MAX


def checked(descriptor: Optional[int]) -> Optional[int]:
    """Raises `OSError` for a file that is too short: touching what is missing ends a process."""
    if descriptor is not None and os.fstat(descriptor).st_size < FILE_BYTES:
        raise OSError(f"the file for the marks has less than {FILE_BYTES} bytes")
    return descriptor


class Marks:
    """Takes the descriptor; without one the marks are for nobody."""

    def __init__(self, descriptor: Optional[int] = None) -> None:
        if descriptor is None:
            self._file = mmap.mmap(-1, FILE_BYTES)
        else:
            self._file = mmap.mmap(descriptor, FILE_BYTES)
            os.close(descriptor)
        # A child of user code must not be able to mark anything, whatever it does.
        if hasattr(mmap, "MADV_DONTFORK"):
            self._file.madvise(mmap.MADV_DONTFORK)
        # Elements are written at once, which `struct` with a byte order does not promise.
        self._words = memoryview(self._file)[:16].cast("Q")
        self._answers = memoryview(self._file)[ANSWERS_AT:]
        self._length = 0

    def run(self, request: int) -> None:
        """0: nothing runs any more."""
        self._words[0] = request

    def keep(self, frame: bytes) -> bool:
        """Adds an answer to those not yet sent; false if there is no room for it."""
        length = self._length + len(frame)
        if length > ANSWERS_BYTES_MAX:
            return False
        self._answers[self._length : length] = frame
        self._length = length
        self._words[1] = length
        return True

    @property
    def kept(self) -> memoryview:
        return self._answers[: self._length]

    def sent(self) -> None:
        self._length = 0
        self._words[1] = 0
