"""A program that takes a part of one core, in short bits: a neighbour for what is measured beside it.

python -m benchmarks.busy PARENT
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.records import FOLDER

BUSY_S = 0.0003
PERIOD_S = 0.001  # of a bit and the pause after it: 0.3 of a core is taken


def be_busy(goes_on: Callable[[], bool]) -> None:
    """Compute for BUSY_S and sleep for the rest of PERIOD_S, over and over, while `goes_on()`.

    What other programs have held up is not made up for: bits stay short.
    """
    while goes_on():
        until = time.perf_counter() + BUSY_S
        while time.perf_counter() < until:
            pass
        time.sleep(PERIOD_S - BUSY_S)


@contextmanager
def neighbour() -> Iterator[int]:
    """Run this program while the block runs; the value is its process id."""
    command = [sys.executable, "-m", "benchmarks.busy", str(os.getpid())]
    with subprocess.Popen(command, cwd=FOLDER.parent) as process:
        try:
            yield process.pid
        finally:
            process.kill()


if __name__ == "__main__":
    be_busy(lambda: os.getppid() == int(sys.argv[1]))  # PARENT may be killed, which then cannot end it
