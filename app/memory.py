"""Returns memory: glibc's free lists, arrays kept alive by tracebacks."""

from __future__ import annotations

import ctypes
import traceback
from collections.abc import Iterator

# Blocks this large get pages of their own, which go back when they are freed. More than a batch of pictures of 32 x 32
# takes, so that ordinary requests still use pages that are there; less than large pictures take.
OWN_PAGES_BYTES = 1 << 20

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def give_back_memory() -> None:
    """Return freed memory to the system. glibc would keep it; other C libraries do not, and nothing is done.

    Call it when something large has ended, such as loading: it takes milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def give_back_large_blocks() -> None:
    """Let blocks of OWN_PAGES_BYTES and more go back to the system as soon as they are freed, from now on.

    glibc begins so, but raises its threshold to each such block that is freed, up to 32 MB. From then on the buffers of
    large pictures come from heaps, one a thread, which small blocks above them keep from shrinking: pictures of many
    sizes let the process grow without an end in sight. Nothing is done where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, OWN_PAGES_BYTES)  # a threshold that is set stays
        mallopt(M_TRIM_THRESHOLD, 2 * OWN_PAGES_BYTES)  # at glibc's ratio; it would be 128 kB, and heaps breathe often


def clear_error_frames(error: BaseException) -> None:
    """Clear the frames that an error has come through, and those that it was raised from.

    Their variables hold what was computed when it failed, such as activations on a GPU, for as long as the error itself
    is known: while a smaller batch is tried, or its device is to be left to others. Frames that still run stay.
    """
    for each in _chain(error):
        traceback.clear_frames(each.__traceback__)


def forget_stack(error: BaseException) -> None:
    """Forget the frames that an error has come through, and those that it was raised from, even if they still run.

    An error that a thread hands to the event loop is known to the very frames that it knows: they would keep what it
    was about, such as the images of a batch, until the next full collection.
    """
    for each in _chain(error):
        each.__traceback__ = None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
