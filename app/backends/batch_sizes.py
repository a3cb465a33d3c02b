"""Which batch sizes to use: measured on the engine itself, in about a second."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from app.engine_errors import EngineOutOfMemory
from model.hardware.timing import Clock

log = logging.getLogger(__name__)

# The seconds of some runs: of each run, by each clock.
Times = list[list[float]]

# By device: a size costs CUDA a recorded graph and a CPU 1.4 MB; a padded image costs a CPU as much as a real one.
LADDER_STEPS = {"cpu": 4, "cuda": 2}

# The most images a batch is tried with. On a GPU, 1024 images are four pieces over two lanes (cuda_backend.py). A
# processor of few cores has reached its best rate with half of 64, and more at once would only be answered later: while
# all clients are in one batch, nothing is computed for those who were answered.
MAX_BATCH = {"cpu": 64, "cuda": 1024}
MAX_BATCH_A_THREAD = 16
LEAST_MAX_BATCH = 32

BUDGET_S = 1.0

# A larger batch must be faster by this factor, by one of the clocks, to be worth its longer wait. On a CPU it costs
# more than that: where all clients are in one batch, nothing computes while they are answered.
MIN_SPEEDUP = {"cpu": 1.1, "cuda": 1.03}

# Of a few runs the quickest counts: another program's burst is as long as a batch.
RUNS = 3
RUNS_S = 0.1

# Beside another program's burst the measurement says little, and an engine alone does not see what a service saves with
# fewer batches. So whatever it says, a batch may hold so many images, or as many as take so many seconds by the clock
# that says the best of the machine: as many as nobody notices, and a few where they take longer.
MIN_LARGEST_BATCH = 16
LEAST_LARGEST = ((32, 0.1), (MIN_LARGEST_BATCH, 0.5))


def most_images(kind: str, threads: int) -> int:
    """Return the most images that batches are tried with, on a GPU or on so many threads of a CPU."""
    if kind == "cuda":
        return MAX_BATCH[kind]
    return min(MAX_BATCH[kind], max(LEAST_MAX_BATCH, MAX_BATCH_A_THREAD * threads))


def choose_batch_sizes(
    run: Callable[[NDArray[np.uint8]], object],
    input_size: int,
    largest: int,
    *,
    steps: int,
    clocks: Sequence[Clock],
    min_speedup: float,
) -> tuple[int, ...]:
    """Measure batches of 1, 2, 4, ... images, up to `largest`, and return the sizes to pad batches to, increasing.

    `run` maps uint8 (N, 3, input_size, input_size). The last size returned is the smallest batch that no larger one
    beats by more than `min_speedup`, or `least_largest` at the highest rate measured, if that is larger and fits; the
    sizes below it are those of `ladder(..., steps)`.

    Sizes are doubled from 1, with a jump to MIN_LARGEST_BATCH as soon as the budget seems to allow for it: smaller ones
    are never chosen then, and a slow processor needs all of the time for the larger ones. After an out-of-memory error,
    the largest size that did fit is doubled. The measurement ends when the next size would not fit into BUDGET_S or the
    memory, or when, from MIN_LARGEST_BATCH on, a size gains less than `min_speedup` over half of it. That is measured
    twice, because a machine's pace changes. A size's first run is not timed, and charged to the budget as if it took as
    long as the second: on CUDA it takes far longer, but records a graph that is needed anyway.

    The first of `clocks` is wall time, which the budget runs by; model/hardware/timing.py says what others are for. A
    size gains if it does so by any clock: too large costs less than too small. Raises EngineOutOfMemory if not even one
    image fits.
    """
    spent_s = 0.0
    rates = Rates(len(clocks), min_speedup)
    size, fits = 1, largest
    while size <= fits:
        images = np.zeros((size, 3, input_size, input_size), np.uint8)
        try:
            run(images)
            times = _times(run, images, clocks)
            # Or so it seems beside another program.
            if size >= MIN_LARGEST_BATCH and not rates.gains_over_half(size, times):
                half_times = _times(run, images[: size // 2], clocks)
                rates.note(size // 2, half_times)
                spent_s += sum(seconds[0] for seconds in half_times)
                times += _times(run, images, clocks)
        except EngineOutOfMemory:
            if size == 1:
                raise
            fits = size - 1
            size = 2 * rates.largest
            continue
        goes_on = size < MIN_LARGEST_BATCH or rates.gains_over_half(size, times)
        rates.note(size, times)
        if not goes_on:
            break  # on a processor, whose memory for a larger one nobody would need again
        wall_s = [seconds[0] for seconds in times]
        spent_s += wall_s[0] + sum(wall_s)
        if size < MIN_LARGEST_BATCH <= fits and spent_s + 4 * min(wall_s) * MIN_LARGEST_BATCH / size <= BUDGET_S:
            size = MIN_LARGEST_BATCH
        elif spent_s + 4 * min(wall_s) <= BUDGET_S:  # two runs of twice the size
            size *= 2
        else:
            break
    best = rates.smallest_good()
    chosen = min(max(best, least_largest(rates.highest)), largest if fits == largest else rates.largest)
    log.info("batches hold up to %d images; by measurement the best is %d: %s images/s", chosen, best, rates)
    return ladder(chosen, steps)


def least_largest(images_per_s: float) -> int:
    """Return how many images may share a batch at least, at this rate of the engine's.

    That is 32, or as many as take a tenth of a second, or 16 if those take no longer than half a second.
    """
    return max(min(images, int(max_s * images_per_s)) for images, max_s in LEAST_LARGEST)


class Rates:
    """Images/s by batch size, by each of so many clocks: of a size's quickest run, whose `times` are given."""

    def __init__(self, clocks: int, min_speedup: float) -> None:
        self._min_speedup = min_speedup
        self._by_clock: list[dict[int, float]] = [{} for _ in range(clocks)]

    def note(self, size: int, times: Times) -> None:
        """Let the rates of a size be those of the quickest of these runs."""
        for rates, rate in zip(self._by_clock, self._of(size, times), strict=True):
            rates[size] = rate

    def gains_over_half(self, size: int, times: Times) -> bool:
        """Whether these runs of a size, not noted yet, make it worthwhile after half of it, by any clock."""
        found = zip(self._by_clock, self._of(size, times), strict=True)
        return any(rate >= rates.get(size // 2, 0.0) * self._min_speedup for rates, rate in found)

    def smallest_good(self) -> int:
        """Return the smallest size that none beats by `min_speedup`, by the clock that asks for the largest."""
        return max(
            next(size for size, rate in rates.items() if rate * self._min_speedup >= max(rates.values()))
            for rates in self._by_clock
        )

    @property
    def largest(self) -> int:
        """The largest size that was noted."""
        return max(self._by_clock[0])

    @property
    def highest(self) -> float:
        """The highest rate of any size, by any clock."""
        return max(rate for rates in self._by_clock for rate in rates.values())

    def __str__(self) -> str:
        by_clock = [", ".join(f"{size}: {rate:.0f}" for size, rate in rates.items()) for rates in self._by_clock]
        return "; by processor time ".join(by_clock)

    @staticmethod
    def _of(size: int, times: Times) -> list[float]:
        return [size / max(min(seconds), 1e-9) for seconds in zip(*times, strict=True)]


def _times(run: Callable[[NDArray[np.uint8]], object], images: NDArray[np.uint8], clocks: Sequence[Clock]) -> Times:
    """Return the seconds of a few runs, of one if it is long."""
    times: Times = []
    while len(times) < RUNS and sum(seconds[0] for seconds in times) < RUNS_S:
        started = [clock() for clock in clocks]
        run(images)
        times.append([clock() - start for clock, start in zip(clocks, started, strict=True)])
    return times


def ladder(largest: int, steps: int) -> tuple[int, ...]:
    """Return sizes up to `largest`, so many `steps` from each power of two to the next.

    With two: 1, 2, 3, 4, 6, 8, 12, ...; padding adds a half at most, a fifth on average. With four: 1, 2, ..., 8, 10,
    12, 14, 16, 20, ...; a quarter at most. With `largest` of them: every size.
    """
    sizes = {step << shift for step in range(steps, 2 * steps) for shift in range(largest.bit_length())}
    return tuple(sorted(size for size in sizes | {*range(1, steps), largest} if size <= largest))
