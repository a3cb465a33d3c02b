"""The stacks of all threads on standard error, as plain text: what is left of a native crash, or shows what hangs."""

from __future__ import annotations

import faulthandler
import signal

STDERR = 2


def report_crashes() -> None:
    """Write the stacks when a native library crashes or aborts, and on SIGUSR1, which does not end the process then."""
    faulthandler.enable(STDERR)
    if hasattr(faulthandler, "register"):  # not on Windows
        faulthandler.register(signal.SIGUSR1, STDERR, all_threads=True)


def dump_stacks() -> None:
    """Write the stacks now."""
    faulthandler.dump_traceback(STDERR, all_threads=True)
