"""Memory that was freed and that the C library keeps for itself."""

from __future__ import annotations

import ctypes


def give_back_memory() -> None:
    """Return to the system what has been freed. glibc would keep it; other C libraries do not, and nothing is done.

    To be called when something large has ended, such as loading: it takes milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
