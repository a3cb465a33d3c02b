"""Arrays that lie in a temporary file: memory only while somebody reads them.

For what a runtime wants to be kept but hardly ever looks at again: OpenVINO copies a convolution's weights into an
order of its own, and holds on to the ones that it was given.
"""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


class FileBacked:
    """Room for `size` bytes of arrays; the file has no name and goes with the last of them.

    Raises OSError if there is no room for the file: it is claimed at once, for a page that cannot be written later
    would end the process. Where temporary files lie in memory themselves, nothing is gained and nothing lost.
    """

    def __init__(self, size: int) -> None:
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
            self._memory = mmap.mmap(file.fileno(), max(size, 1))
        self._used = 0

    def put(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a copy of an array that lies in the file. Raises ValueError if it does not fit any more."""
        array = np.frombuffer(self._memory, values.dtype, values.size, self._used).reshape(values.shape)
        array[...] = values
        self._used += room_for(values.nbytes)
        return array

    def let_go(self) -> None:
        """Give the memory back; what is read again comes from the file."""
        self._memory.madvise(mmap.MADV_DONTNEED)


def room_for(size: int) -> int:
    """Return what an array of `size` bytes takes of a file."""
    return -(-size // ALIGNMENT) * ALIGNMENT
