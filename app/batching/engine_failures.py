"""When batches fail: whether the next one is worth a try, or the engine is broken for good."""

from __future__ import annotations

import time

from app.batching.batches import Batch
from app.batching.probes import Probe
from app.engine_errors import EngineBroken, EngineOutOfMemory

MAX_CONSECUTIVE_FAILURES = 3

# One may be the fault of what it was given. After the second one in a row a prediction is not expected to succeed.
FAILING_FROM = 2

# Memory that another program takes for a moment comes back. An engine that has had none for this long, in
# MAX_CONSECUTIVE_FAILURES batches or more and without one that worked, will not answer the next request either.
OUT_OF_MEMORY_S = 10.0

# How long after a failure, and after each probe that fails, the engine is probed if nothing is queued.
PROBE_AFTER_S = 1.0


class EngineFailures:
    """Counts the batches that failed since one that worked; probes are batches, too.

    While there is any, `probe` is what to find out by whether the engine works; else it is None.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._out_of_memory: list[float] = []  # when batches had no memory, as time.monotonic()
        self.probe: Probe | None = None

    @property
    def failing(self) -> bool:
        """Whether the next batch is likely to fail as well."""
        return self._in_a_row + len(self._out_of_memory) >= FAILING_FROM

    def clear(self) -> None:
        """Forget them: a batch worked, or another engine has taken over."""
        self._in_a_row = 0
        self._out_of_memory.clear()
        self.probe = None

    def add(self, error: Exception, batch: Batch) -> None:
        """Count a batch that raised.

        Raises EngineBroken, from `error`, after MAX_CONSECUTIVE_FAILURES of them; those that did not fit, even in
        halves, count apart, and have to go on for OUT_OF_MEMORY_S.
        """
        self.probe = Probe(batch.image_shape)
        if isinstance(error, EngineOutOfMemory):
            self._out_of_memory.append(time.monotonic())
            lasted_s = self._out_of_memory[-1] - self._out_of_memory[0]
            if len(self._out_of_memory) >= MAX_CONSECUTIVE_FAILURES and lasted_s >= OUT_OF_MEMORY_S:
                raise EngineBroken(f"out of memory in every batch for {lasted_s:.0f} s") from error
            return
        self._in_a_row += 1
        if self._in_a_row >= MAX_CONSECUTIVE_FAILURES:
            raise EngineBroken(f"{self._in_a_row} batches failed in a row") from error
