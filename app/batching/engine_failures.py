"""When batches fail: whether the next one is worth a try, or the engine is broken for good."""

from __future__ import annotations

import time

from app.engine_errors import EngineBroken

MAX_CONSECUTIVE_FAILURES = 3

# Memory that another program takes for a moment comes back. An engine that has had none for this long, in
# MAX_CONSECUTIVE_FAILURES batches or more and without one that worked, will not answer the next request either.
OUT_OF_MEMORY_S = 10.0


class EngineFailures:
    """Counts the batches that failed since one that worked."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._out_of_memory: list[float] = []  # when batches had no memory, as time.monotonic()

    def clear(self) -> None:
        """Forget them: a batch worked, or another engine has taken over."""
        self._in_a_row = 0
        self._out_of_memory.clear()

    def add(self, error: Exception) -> None:
        """Count a batch that raised. Raises EngineBroken, from `error`, after MAX_CONSECUTIVE_FAILURES of them."""
        self._in_a_row += 1
        if self._in_a_row >= MAX_CONSECUTIVE_FAILURES:
            raise EngineBroken(f"{self._in_a_row} batches failed in a row") from error

    def add_out_of_memory(self, error: Exception) -> None:
        """Count a batch that did not fit, even in halves. Raises EngineBroken if that goes on for OUT_OF_MEMORY_S."""
        self._out_of_memory.append(time.monotonic())
        lasted_s = self._out_of_memory[-1] - self._out_of_memory[0]
        if len(self._out_of_memory) >= MAX_CONSECUTIVE_FAILURES and lasted_s >= OUT_OF_MEMORY_S:
            raise EngineBroken(f"out of memory in every batch for {lasted_s:.0f} s") from error
