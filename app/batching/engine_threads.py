"""The threads that call an engine: one, or two that take turns if its batches overlap."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import cycle

from app.batching.batches import Batch, Computed, Run
from app.threads import Worker


class EngineThreads:
    """Computes batches in the order in which they come; one that has `full` images may begin beside another's end."""

    def __init__(self, *, overlaps: bool, full: int) -> None:
        self._overlaps = overlaps
        self._full = full
        self.workers = [Worker("engine"), Worker("engine-2")] if overlaps else [Worker("engine")]
        self._turns = cycle(self.workers)

    def start(self) -> None:
        """Start them. Raises RuntimeError where there is no thread to be had."""
        for worker in self.workers:
            worker.start()

    def compute(
        self, batch: Batch, run: Run, before: Batch | None, at_once: Callable[[Computed], None]
    ) -> asyncio.Future[Computed]:
        """Compute a batch after the one `before`, which is not done yet; None if there is none.

        `at_once` is called with the result (app/threads.py).
        """
        if before is None:  # a lone client's are all in one thread: a runtime may keep things for each
            self._turns = cycle(self.workers)
        elif self._overlaps:
            batch.follow(before, full=self._full)
        return next(self._turns).run(batch.compute_in_turn, run, self._overlaps, at_once=at_once)

    async def finish(self, last: Callable[[], None]) -> None:
        """Call `last` in one of the threads, after all their work. Raises what it raises."""
        for worker in self.workers[1:]:
            await worker.run(lambda: None)
        await self.workers[0].run(last)

    def close(self) -> None:
        """Let them end after the work that they have been given, without waiting for it."""
        for worker in self.workers:
            worker.close()
