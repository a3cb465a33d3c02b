"""Processor time and memory of a server and of all that it starts, from /proc."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends: a server that forks stays below this process."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def tree(root: int) -> list[int]:
    """Return the process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                children.setdefault(int(_fields(int(entry.name))[1]), []).append(int(entry.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def _fields(process: int) -> list[str]:
    """Return what follows the name in /proc/PID/stat: state, parent, ... Raises OSError."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(processes: list[int]) -> float:
    """Return the user and system time of processes, and of their children that have ended."""
    ticks = 0
    for process in processes:
        with suppress(OSError):
            ticks += sum(int(field) for field in _fields(process)[11:15])
    return ticks / TICKS_PER_S


def memory_bytes(processes: list[int]) -> int:
    """Return the memory of processes; pages that several share are counted once (proportional set size)."""
    total = 0
    for process in processes:
        with suppress(OSError):
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += 1024 * int(rollup.partition("\nPss:")[2].split()[0])
    return total


def end(processes: list[int], patience_s: float) -> None:
    """Wait up to `patience_s` for processes to end, then kill the rest. Reaps children of this process."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until and any(_alive(process) for process in processes):
        time.sleep(0.05)
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    while any(_alive(process) for process in processes):
        time.sleep(0.01)


def _alive(process: int) -> bool:
    with suppress(ChildProcessError):
        os.waitpid(process, os.WNOHANG)
    try:
        return _fields(process)[0] != "Z"
    except OSError:
        return False
