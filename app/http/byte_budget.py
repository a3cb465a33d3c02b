"""How many bytes may be held by all together: of requests' bodies, of responses that clients have not read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.errors import QueueFull


class ByteBudget:
    """At most `max_bytes` are held at a time; what one has taken is given back when it is done with."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0

    @contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes bytes from the budget. It raises QueueFull when fewer are left."""
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            self.take(count)
            mine += count

        try:
            yield take
        finally:
            self.give_back(mine)

    def take(self, count: int) -> None:
        """Take bytes that `give_back` will return. Raises QueueFull when fewer are left."""
        if self.held_bytes + count > self.max_bytes:
            raise QueueFull(retry_after_s=1)
        self.held_bytes += count

    def give_back(self, count: int) -> None:
        """Return bytes that were taken."""
        self.held_bytes -= count
