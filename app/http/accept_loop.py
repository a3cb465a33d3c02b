"""Takes connections as they come, a few in a turn of the event loop, and leaves them to the kernel for a while."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

log = logging.getLogger(__name__)

# How long connections wait in the kernel where one could not be taken.
REST_S = 0.05


class AcceptLoop:
    """Calls `take_one` when connections wait at a socket, at most `at_once` times in a turn of the event loop.

    It returns False if there is no place for one, and raises BlockingIOError if none is left, or another OSError, such
    as for want of a file. After False and after an error, nothing is taken for REST_S, unless none is left or one has
    left again.
    """

    def __init__(self, waiting: socket.socket, take_one: Callable[[], bool], *, at_once: int) -> None:
        self._waiting = waiting
        self._take_one = take_one
        self._at_once = at_once
        self._rest: asyncio.TimerHandle | None = None
        waiting.setblocking(False)

    def start(self) -> None:
        """Begin, or go on after a rest."""
        asyncio.get_running_loop().add_reader(self._waiting, self._take)

    def stop(self) -> None:
        """Take no more."""
        asyncio.get_running_loop().remove_reader(self._waiting)
        if self._rest is not None:
            self._rest.cancel()

    def _take(self) -> None:
        try:
            if all(self._take_one() for _ in range(self._at_once)):
                return
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # none is left, or one has left again
            return
        except OSError as error:
            log.error("no connection can be accepted: %s", error.strerror)
        self.stop()
        self._rest = asyncio.get_running_loop().call_later(REST_S, self.start)
