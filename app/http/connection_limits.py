"""What the connections of a port may take, which of too many is closed, and how many open files allow for."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING

from app.http.byte_budget import ByteBudget

if TYPE_CHECKING:
    from app.http.connections import Connection

# Open files that are not connections: the port, the event loop, libraries, /proc for the metrics, probes on their port.
OTHER_FILES = 128

# Among how many open connections the longest idle one is looked for when there are too many: enough to find a long idle
# one where there are many, and little work where connections come in crowds.
LOOKED_AT = 64

# What has been idle for less may have a request on the way.
LONG_IDLE_S = 1.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What the connections of one port may take; `on_refused` is called with each refusal's reason.

    `unread` counts the bytes of responses that clients have not read, of all connections together. The first response
    on a connection that is older than `max_age_s`, or a tenth less or more, is its last one.
    """

    header_timeout_s: float
    unread_timeout_s: float
    max_connections: int
    on_refused: Callable[[str], None]
    unread: ByteBudget
    max_age_s: float = math.inf


def close_longest_idle(candidates: Iterable[Connection], now: float) -> bool:
    """Close the connection that has been idle for longest, of the first LOOKED_AT; return whether there was one.

    `now` is the event loop's time.
    """
    idle = [
        (since, connection)
        for connection in islice(candidates, LOOKED_AT)
        if (since := connection.idle_since()) is not None and since <= now - LONG_IDLE_S and not connection.has_unread()
    ]
    if not idle:
        return False
    min(idle, key=itemgetter(0))[1].transport.abort()
    return True


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
