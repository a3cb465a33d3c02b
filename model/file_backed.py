"""Bytes that lie in a temporary file: memory only while somebody reads them.

For what a runtime wants to be kept but hardly ever looks at again: OpenVINO copies a convolution's weights into an
order of its own, and holds on to the ones that it was given.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray


def file_with_room(size: int) -> BinaryIO:
    """Open a file without a name, on the disk if there is room for `size` bytes, or else in memory.

    Whether there is room is found out at once, by claiming it: in the middle of writing it would be too late. Where
    temporary files lie in memory themselves, nothing is gained and nothing lost. Raises OSError without a folder for
    temporary files.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    if sys.platform == "linux":
        try:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
        except OSError:
            file.close()
            return os.fdopen(os.memfd_create("weights"), "w+b")
    return file


class FileBacked:
    """A file's bytes as an array that may be written to; they outlive the file's being closed.

    Raises ValueError if it is empty.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._memory = mmap.mmap(file.fileno(), 0)

    @property
    def values(self) -> NDArray[np.uint8]:
        """All of the file, uint8 (N,)."""
        return np.frombuffer(self._memory, np.uint8)

    def let_go(self) -> None:
        """Give the memory back; what is read again comes from the file."""
        self._memory.madvise(mmap.MADV_DONTNEED)
