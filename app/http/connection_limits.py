"""What the connections of a port may take, and how many of them the limit of open files allows for."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable
from dataclasses import dataclass

from app.http.byte_budget import ByteBudget

# Open files that are not connections: the port, the event loop, libraries, /proc for the metrics, probes on their port.
OTHER_FILES = 128


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What the connections of one port may take; `on_refused` is told the reason of each refusal.

    `unread` are the bytes of responses that clients have not read, of all connections together. The first response on a
    connection that is older than `max_age_s`, or a tenth less or more, is its last one.
    """

    header_timeout_s: float
    unread_timeout_s: float
    max_connections: int
    on_refused: Callable[[str], None]
    unread: ByteBudget
    max_age_s: float = math.inf


def raise_file_limit(wanted: int, others: int = 0) -> int:
    """Return how many connections may be open, at most `wanted`, raising the process's limit of open files if need be.

    `others` may be open besides, and OTHER_FILES: without a file left for it the service could neither accept nor read
    its own metrics.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    others += OTHER_FILES
    needed = wanted + others
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, soft - others))
