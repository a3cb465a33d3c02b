"""How many bytes may be held by all together: of requests' bodies, of responses that clients have not read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import QueueFull


class ByteBudget:
    """At most `max_bytes` are held at a time; what one has taken is given back when it is done with."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0

    @contextmanager
    def hold(self) -> Iterator[HeldBytes]:
        """Yield what takes bytes from the budget, and gives them back in the end if not before."""
        held = HeldBytes(self)
        try:
            yield held
        finally:
            held.give_back()

    def require_room(self, count: int) -> None:
        """Raise QueueFull when fewer bytes are left."""
        if self.held_bytes + count > self.max_bytes:
            raise QueueFull(retry_after_s=1)

    def take(self, count: int) -> None:
        """Take bytes that `give_back` will return. Raises QueueFull when fewer are left."""
        self.require_room(count)
        self.held_bytes += count

    def give_back(self, count: int) -> None:
        """Return bytes that were taken."""
        self.held_bytes -= count


class HeldBytes:
    """What one request has taken from a budget."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._count = 0

    def take(self, count: int) -> None:
        """Take more. Raises QueueFull when fewer are left."""
        self._budget.take(count)
        self._count += count

    def give_back(self) -> None:
        """Return all that was taken. Safe to call again."""
        count, self._count = self._count, 0
        self._budget.give_back(count)
