"""How many processor cores this process may use."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

from model.hardware.control_groups import CGROUP, MEMBERSHIP, groups_of


def available_cores(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> int:
    """Return the cores this process may use, which in a container or a service can be fewer than the machine has.

    Either only some are its own, or it may use so much processor time a second (`docker run --cpus`, a limit of
    Kubernetes, systemd's CPUQuota=): with more threads than that it would be stopped for the rest of each tenth of a
    second. `membership` is the file that says in which of the control groups below `cgroup` it is.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup, membership)
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def _quota(cgroup: Path, membership: Path) -> float | None:
    """Return how many cores' time may be used; None without a limit, or where there are no groups.

    A group has at most what those above it have.
    """
    unified, older = groups_of("cpu", cgroup, membership)
    quotas = [*map(_unified_quota, unified), *map(_older_quota, older)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _unified_quota(group: Path) -> float | None:
    with suppress(OSError, ValueError):  # ValueError: also of a line that is not two words
        quota, period = (group / "cpu.max").read_text().split()
        return _cores(quota, period)
    return None


def _older_quota(group: Path) -> float | None:
    with suppress(OSError):
        return _cores(*((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")))
    return None


def _cores(quota: str, period: str) -> float | None:
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # ValueError: of "max", which is no limit
        return None
