"""What the engine computes for nobody, to find out whether it works: after a failure, while nothing is queued.

Else a service would be ready until the next request fails, and one that is not would learn from no request that it
works again: none is sent to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from app.batching.batches import Batch, Computed, Run, black_answer


class Probe(Batch):
    """A batch of one black image of `image_shape` (3, S, S). It takes no other ones: they are not to fail with it."""

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        super().__init__([])
        self.image_shape = image_shape
        self._open = False

    def _close_and_compute(self, run: Run, _nearly_done: Callable[[], None] | None) -> Computed:
        """Compute it. Raises what `black_answer` raises."""
        started = time.monotonic()
        answer = black_answer(run, self.image_shape)
        return Computed([], answer, time.monotonic() - started)

    def fail_by(self, error: Exception) -> None:
        """Say nothing: that the service is not ready, and at last its end, have lines of their own."""
