"""When a batch begins: the order of batches between the event loop and the threads of an engine."""

from __future__ import annotations

import threading
import time


class Turn:
    """A batch's place in the order in which batches are computed.

    Its turn comes at once, or when the batch that it is to `follow`, which another thread computes, is done; or nearly
    done, if this one `is_full` by then. What changes any of this looks for the turn, in whatever thread: it is written
    first and looked for then, so that of two who change things at the same time one sees both.
    """

    def __init__(self, *, is_full: bool = False) -> None:
        self.is_full = is_full
        self._before: Turn | None = None
        self._next: Turn | None = None
        self._come: threading.Event | None = None
        self._nearly_done = self._done = False
        self._ended = 0.0  # as a time.monotonic()

    def follow(self, before: Turn) -> None:
        """Have it come after another one's."""
        self._come = threading.Event()
        self._before = before
        before._next = self

    def fill(self) -> None:
        """Note that the batch is full."""
        self.is_full = True
        self._look()

    def wait(self) -> None:
        """Wait for it, in the batch's thread."""
        if self._come is not None:
            self._look()
            self._come.wait()

    def pass_on_early(self) -> None:
        """Let the next one begin if it is full: this one is nearly done."""
        self._nearly_done = True
        self._wake_next()

    def end(self) -> None:
        """Let the next one begin, also if this one never did. Safe to call again."""
        self._ended = time.monotonic()
        self._done = True
        before, self._before = self._before, None
        if before is not None:
            before._next = None  # what has failed is held for a while, and would hold all that followed
        self._wake_next()

    def own_seconds(self, seconds: float) -> float:
        """Return how much of the time that the batch has just taken came after the end of the one before.

        Half of it at least: the other thread may be late to say that it has ended.
        """
        before = self._before
        if before is None:
            return seconds
        alone_s = time.monotonic() - before._ended if before._done else 0.0
        return min(seconds, max(alone_s, seconds / 2))

    def _wake_next(self) -> None:
        following = self._next
        if following is not None:
            following._look()

    def _look(self) -> None:
        """Note if it has come."""
        before, come = self._before, self._come
        if before is not None and come is not None and (before._done or (before._nearly_done and self.is_full)):
            come.set()
