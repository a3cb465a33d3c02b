"""How many pixels are decoded at the same time in a process: what large pictures take in memory, in all threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.errors import DeadlinePassed, TooManyPixelsTogether


class PixelBudget:
    """Pixels that all threads share. A picture for which too few are left waits for those that came before it.

    Whoever holds some waits for nothing, so that they always come back. Without this, eight threads with a picture of
    64 megapixels each would take gigabytes, for a few hundred kilobytes in requests.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._free = max_pixels
        self._line: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def held(self, pixels: int, ended: Callable[[], bool]) -> Iterator[None]:
        """Hold so many pixels, or all of them if that is less; first come, first served.

        Raises DeadlinePassed, holding none, if `ended` says that nobody wants the picture any more: it is asked when it
        comes to its turn, and when `look_again` says so.
        """
        pixels = min(pixels, self._max_pixels)
        self._take(pixels, ended)
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()

    def look_again(self) -> None:
        """Have all that wait ask whether they are still wanted; costs nothing where none does."""
        if self._line:
            with self._changed:
                self._changed.notify_all()

    def _take(self, pixels: int, ended: Callable[[], bool]) -> None:
        place = object()
        with self._changed:
            self._line.append(place)
            try:
                self._changed.wait_for(lambda: ended() or (self._line[0] is place and pixels <= self._free))
                if ended():
                    raise DeadlinePassed
                self._free -= pixels
            finally:
                self._line.remove(place)
                self._changed.notify_all()  # the next one may have room as well


class RequestPixels:
    """The pixels of one request's files: how many there may be in all, and the budget for each while it is decoded.

    `deadline` is a time.monotonic(). Pictures of at most `free_pixels` take no part in the budget.
    """

    def __init__(self, max_pixels: int, budget: PixelBudget, deadline: float, *, free_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._budget = budget
        self._deadline = deadline
        self._free_pixels = free_pixels
        self._pixels = 0
        self._lock = threading.Lock()
        self._ended = False

    @contextmanager
    def held(self, pixels: int) -> Iterator[None]:
        """Count the pixels that a file's header announces, and hold them of the budget; in any thread.

        Raises TooManyPixelsTogether, and DeadlinePassed if the request ends before there is room.
        """
        with self._lock:
            self._pixels += pixels
            if self._pixels > self._max_pixels:
                raise TooManyPixelsTogether(self._max_pixels)
        if pixels <= self._free_pixels:
            yield
            return
        with self._budget.held(pixels, self._has_ended):
            yield

    def end(self) -> None:
        """The request has ended, by whatever: what still waits for room will not be decoded."""
        self._ended = True
        self._budget.look_again()

    def _has_ended(self) -> bool:
        return self._ended or time.monotonic() >= self._deadline  # the event loop may be late to say so
