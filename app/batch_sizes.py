"""Which batch sizes to use: measured on the engine itself, in about a second."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from app.batches import EngineOutOfMemory

log = logging.getLogger(__name__)

BUDGET_S = 1.0

# A larger batch must be faster by this factor to be worth its longer wait.
WORTHWHILE = 1.03

# Of a few runs the quickest counts: another program's burst is as long as a batch.
RUNS = 3
RUNS_S = 0.1

# Beside another program's burst the measurement says little: whatever it says, this many images may share a batch.
LEAST = 16


def choose_batch_sizes(
    run: Callable[[NDArray[np.uint8]], object],
    input_size: int,
    largest: int,
    *,
    steps: int = 2,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[int, ...]:
    """Measure batches of 1, 2, 4, ... images, up to `largest`, and return the sizes to pad batches to, increasing.

    They go in `steps` of `ladder`. The last of them is the smallest batch that no larger one beats by more than
    WORTHWHILE, or LEAST. Each size is run once to warm it up and then measured; no further one is tried once as much
    again would not fit into the budget, if this one did not fit into the memory, or if from LEAST on it gained nothing.
    A first run is charged like the others: on CUDA it is one of the graphs that are recorded before ready in any case,
    and would leave nothing of the budget. Raises EngineOutOfMemory if not even one image fits.
    """
    spent_s = 0.0
    rates: dict[int, float] = {}
    size = 1
    while size <= largest:
        images = np.zeros((size, 3, input_size, input_size), np.uint8)
        enough = rates.get(size // 2, 0.0) * WORTHWHILE if size >= LEAST else 0.0
        try:
            run(images)
            times = _times(partial(run, images), clock)
            if size / max(min(times), 1e-9) < enough:  # or so it seems beside another program
                times += _times(partial(run, images), clock)
        except EngineOutOfMemory:
            if not rates:
                raise
            break
        least_s = min(times)
        rates[size] = size / max(least_s, 1e-9)
        if rates[size] < enough:
            break  # on a processor, whose memory for a larger one nobody would need again
        size *= 2
        spent_s += times[0] + sum(times)
        if spent_s + 4 * least_s > budget_s:  # two runs of twice the size
            break
    best = max(rates.values())
    chosen = next(size for size, rate in rates.items() if rate * WORTHWHILE >= best)
    log.info(
        "the best batch holds %d images, by measurement: %s images/s",
        chosen,
        ", ".join(f"{size}: {rate:.0f}" for size, rate in rates.items()),
    )
    return ladder(min(max(chosen, LEAST), largest), steps)


def _times(run: Callable[[], object], clock: Callable[[], float]) -> list[float]:
    """Return the seconds of a few runs, of one if it is long."""
    times: list[float] = []
    while len(times) < RUNS and sum(times) < RUNS_S:
        started = clock()
        run()
        times.append(clock() - started)
    return times


def ladder(largest: int, steps: int = 2) -> tuple[int, ...]:
    """Return sizes up to `largest`, so many `steps` from each power of two to the next.

    With two: 1, 2, 3, 4, 6, 8, 12, ...; padding adds a half at most, a fifth on average. With four: 1, 2, ..., 8, 10,
    12, 14, 16, 20, ...; a quarter at most.
    """
    sizes = {step << shift for step in range(steps, 2 * steps) for shift in range(largest.bit_length())}
    return tuple(sorted(size for size in sizes | {*range(1, steps), largest} if size <= largest))
