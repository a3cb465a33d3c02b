"""What the connections of a port may take, and how many of them the limit of open files allows for."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass

# Open files that are not connections: the port, the event loop, libraries, /proc for the metrics, probes on their port.
OTHER_FILES = 128


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What the connections of one port may take; `on_refused` is told the reason of each refusal."""

    header_timeout_s: float
    unread_timeout_s: float
    max_connections: int
    on_refused: Callable[[str], None]


def raise_file_limit(wanted: int) -> int:
    """Return how many connections may be open, at most `wanted`, raising the process's limit of open files if need be.

    Without a file left for it the service could neither accept nor read its own metrics.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    needed = wanted + OTHER_FILES
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, soft - OTHER_FILES))
