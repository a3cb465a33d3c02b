"""Requests that come all at once: a few milliseconds' worth of them is begun a turn of the event loop.

To decode a thousand tiny pictures, as many as an empty queue has room for, takes the loop a tenth of a second. A probe,
which takes some turns, would wait for all of them in each.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial

TURN_S = 0.004


class Crowd:
    """Begins what it is given in order: at once, or in later turns of the event loop if this one has taken TURN_S.

    Its length is how many wait.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._turn_ends = 0.0  # a time.monotonic(); 0 until something begins in this turn

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, start: Callable[..., None], *arguments: object) -> None:
        """Call `start`, which raises nothing, with its arguments, now or soon."""
        if not self._turn_ends:
            self._note_turn()
        elif self._waiting or time.monotonic() >= self._turn_ends:
            self._waiting.append(partial(start, *arguments))
            return
        start(*arguments)

    def _note_turn(self) -> None:
        self._turn_ends = time.monotonic() + TURN_S
        asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn_ends = 0.0
        if self._waiting:
            self._note_turn()
            self._waiting.popleft()()
            while self._waiting and time.monotonic() < self._turn_ends:
                self._waiting.popleft()()
