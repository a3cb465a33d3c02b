"""Which batch sizes to use: measured on the engine itself, in about a second."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from app.batching.batches import EngineOutOfMemory

log = logging.getLogger(__name__)

BUDGET_S = 1.0

# A larger batch must be faster by this factor, by one of the clocks, to be worth its longer wait.
WORTHWHILE = 1.03

Clock = Callable[[], float]

# Of a few runs the quickest counts: another program's burst is as long as a batch.
RUNS = 3
RUNS_S = 0.1

# Beside another program's burst the measurement says little: whatever it says, this many images may share a batch, or
# as many as take no longer than this, by the clock that says the best of the machine.
LEAST = 16
LEAST_S = 0.5


def choose_batch_sizes(
    run: Callable[[NDArray[np.uint8]], object],
    input_size: int,
    largest: int,
    *,
    steps: int = 2,
    budget_s: float = BUDGET_S,
    clocks: Sequence[Clock] = (time.perf_counter,),
) -> tuple[int, ...]:
    """Measure batches of 1, 2, 4, ... images, up to `largest`, and return the sizes to pad batches to, increasing.

    From the first one on from which the budget seems to allow for it, LEAST is tried next: smaller ones are never
    chosen then, and a slow processor needs all of the time for the larger ones.

    The first of the `clocks` is the one on the wall. Beside other programs, as when a whole machine starts, it says
    little; the processor time of a run, where the processor computes, says more, but not how long threads had nothing
    to do. So a size is the better one if any of them says so: one that is too large costs less than one too small.

    They go in `steps` of `ladder`. The last of them is the smallest batch that no larger one beats by more than
    WORTHWHILE, or LEAST if that fits and takes no more than LEAST_S. Each size is run once to warm it up and then
    measured; no further one is tried once as much again would not fit into the budget, if this one did not fit into
    the memory, or if from LEAST on it gained nothing over half of it, even when both were measured once more: a
    machine's pace changes, for all alike.
    Below a size that does not fit, doublings of the last one that did are tried, where some were left out.
    A first run is charged like the others: on CUDA it is one of the graphs that are recorded before ready in any case,
    and would leave nothing of the budget. Raises EngineOutOfMemory if not even one image fits.
    """
    spent_s = 0.0
    rates: list[dict[int, float]] = [{} for _ in clocks]  # images/s by size, by each clock
    size, fits = 1, largest
    while size <= fits:
        images = np.zeros((size, 3, input_size, input_size), np.uint8)
        try:
            run(images)
            times = _times(run, images, clocks)
            if size >= LEAST and not _gains(rates, size, times):  # or so it seems beside another program
                half_times = _times(run, images[: size // 2], clocks)
                _note(rates, size // 2, half_times)
                spent_s += sum(one[0] for one in half_times)
                times += _times(run, images, clocks)
        except EngineOutOfMemory:
            if size == 1:
                raise
            fits = size - 1
            size = 2 * max(rates[0])
            continue
        goes_on = size < LEAST or _gains(rates, size, times)
        _note(rates, size, times)
        if not goes_on:
            break  # on a processor, whose memory for a larger one nobody would need again
        wall_s = [one[0] for one in times]
        spent_s += wall_s[0] + sum(wall_s)
        if size < LEAST <= fits and spent_s + 4 * min(wall_s) * LEAST / size <= budget_s:
            size = LEAST
        elif spent_s + 4 * min(wall_s) <= budget_s:  # two runs of twice the size
            size *= 2
        else:
            break
    chosen = max(_smallest_good(known) for known in rates)
    measured = [", ".join(f"{size}: {rate:.0f}" for size, rate in known.items()) for known in rates]
    log.info(
        "the best batch holds %d images, by measurement: %s images/s", chosen, "; by processor time ".join(measured)
    )
    fastest = max(rate for known in rates for rate in known.values())
    least = min(LEAST, int(LEAST_S * fastest))
    return ladder(min(max(chosen, least), largest if fits == largest else max(rates[0])), steps)


def _times(
    run: Callable[[NDArray[np.uint8]], object], images: NDArray[np.uint8], clocks: Sequence[Clock]
) -> list[list[float]]:
    """Return the seconds by each clock of a few runs, of one if it is long."""
    times: list[list[float]] = []
    while len(times) < RUNS and sum(one[0] for one in times) < RUNS_S:
        started = [clock() for clock in clocks]
        run(images)
        times.append([clock() - start for clock, start in zip(clocks, started, strict=True)])
    return times


def _note(rates: list[dict[int, float]], size: int, times: list[list[float]]) -> None:
    """Let the rates of a size be those of these runs."""
    for known, rate in zip(rates, _rates(size, times), strict=True):
        known[size] = rate


def _gains(rates: list[dict[int, float]], size: int, times: list[list[float]]) -> bool:
    """Whether a size is worthwhile after half of it, by any clock."""
    now = _rates(size, times)
    return any(rate >= known.get(size // 2, 0.0) * WORTHWHILE for known, rate in zip(rates, now, strict=True))


def _rates(size: int, times: list[list[float]]) -> list[float]:
    """Return the images/s of the quickest run, by each clock."""
    return [size / max(min(by_clock), 1e-9) for by_clock in zip(*times, strict=True)]


def _smallest_good(rates: dict[int, float]) -> int:
    """Return the smallest size that none beats by more than WORTHWHILE."""
    best = max(rates.values())
    return next(size for size, rate in rates.items() if rate * WORTHWHILE >= best)


def ladder(largest: int, steps: int = 2) -> tuple[int, ...]:
    """Return sizes up to `largest`, so many `steps` from each power of two to the next.

    With two: 1, 2, 3, 4, 6, 8, 12, ...; padding adds a half at most, a fifth on average. With four: 1, 2, ..., 8, 10,
    12, 14, 16, 20, ...; a quarter at most. With `largest` of them: every size.
    """
    sizes = {step << shift for step in range(steps, 2 * steps) for shift in range(largest.bit_length())}
    return tuple(sorted(size for size in sizes | {*range(1, steps), largest} if size <= largest))
