"""Arrays that lie in a temporary file: memory only while somebody reads them.

For what a runtime wants to be kept but hardly ever looks at again: OpenVINO copies a convolution's weights into an
order of its own, and holds on to the ones that it was given.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64


def claim(size: int) -> int:
    """Return the descriptor of a temporary file of so many bytes, which has no name; Linux only.

    Whether there is room is found out at once: in the middle of writing it would be too late. Raises OSError if there
    is none, or no folder for temporary files.
    """
    with tempfile.TemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, size)
        return os.dup(file.fileno())


class FileBacked:
    """Room for arrays of `size` bytes together, on the disk if there is room for them, or else in memory.

    Where temporary files lie in memory themselves, nothing is gained and nothing lost. The file goes with the arrays.
    """

    def __init__(self, size: int) -> None:
        size = max(size, 1)
        self._used = 0
        self._in_file = sys.platform == "linux"
        if self._in_file:
            try:
                with os.fdopen(claim(size)) as file:
                    self._memory = mmap.mmap(file.fileno(), size)
            except OSError:
                self._in_file = False
        if not self._in_file:
            self._memory = mmap.mmap(-1, size)

    def keep(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a copy, of the same shape, that lies here. Raises ValueError if there is no room for it."""
        begin = self._used
        end = begin + array.nbytes
        if end > len(self._memory):
            raise ValueError("no room is left")
        copy = np.frombuffer(self._memory, np.float32, array.size, begin).reshape(array.shape)
        copy[...] = array
        self._used = end + -end % ALIGNMENT
        return copy

    @staticmethod
    def size_of(bytes_of_each: list[int]) -> int:
        """Return the room that arrays of so many bytes need."""
        return sum(size + -size % ALIGNMENT for size in bytes_of_each)

    def drop_pages(self) -> None:
        """Give the memory back; what is read again comes from the file."""
        if self._in_file:
            self._memory.madvise(mmap.MADV_DONTNEED)
