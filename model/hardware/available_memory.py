"""How much more memory this process may take, without torch."""

from __future__ import annotations

import os
from collections.abc import Set
from contextlib import suppress
from pathlib import Path

from model.hardware.control_groups import CGROUP, MEMBERSHIP, groups_of

MEMINFO = Path("/proc/meminfo")

# What the kernel takes back before it kills for want of memory, by the names of each version of control groups, as
# MemAvailable counts it for the machine: files that were read, also lately (pictures, the interpreter's own), and
# caches of names and inodes. Of version 1, memory.stat has nothing of the latter.
CACHES = {"inactive_file", "active_file", "slab_reclaimable"}
CACHES_V1 = {"total_inactive_file", "total_active_file"}


def available_memory(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP, meminfo: Path = MEMINFO) -> int | None:
    """Return the bytes that can be taken without pushing out more than caches; None if it cannot be told.

    It is what the machine has left or, if that is less, what is left of the limit of a container or a service. Of
    processes that torchrun started, each has its share. Where there is no /proc, all memory of the machine counts.
    """
    unified, older = groups_of("memory", cgroup, membership)
    left = [_machine(meminfo)]
    left += [_left(group, "memory.max", "memory.current", CACHES) for group in unified]
    left += [_left(group, "memory.limit_in_bytes", "memory.usage_in_bytes", CACHES_V1) for group in older]
    known = [bytes_left for bytes_left in left if bytes_left is not None]
    return max(0, min(known)) // max(1, _processes_here()) if known else None


def bytes_in_words(count: int) -> str:
    """Return a number of bytes as a person reads it."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _machine(meminfo: Path) -> int | None:
    with suppress(OSError):
        for line in meminfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) << 10
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _left(group: Path, limit: str, usage: str, caches: Set[str]) -> int | None:
    """Return what is left of a group's limit; None without one. What it holds of `caches` makes room."""
    try:
        left = int((group / limit).read_text()) - int((group / usage).read_text())
    except (OSError, ValueError):  # ValueError: of "max", which is no limit
        return None
    with suppress(OSError):
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in caches:
                left += int(value)
    return left


def _processes_here() -> int:
    """Return how many processes torchrun has started on this machine: each of them holds all images."""
    value = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(value) if value.isdecimal() else 1
