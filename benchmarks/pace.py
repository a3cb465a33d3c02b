"""The engine by itself, with which a service is compared: its best batch size, its rate, and the service's share."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.backends.batch_sizes import ladder
from app.batching.turns import Turn
from app.engine import CheckpointEngine
from benchmarks.closed_loop import PICTURES

SIZE_ROUNDS = 5
SIZE_S = 0.6  # of each size in a round, a few batches
PACE_S = 2.0  # before and after each run
# The engine's threads spin for a moment after their last batch, and the service's have one more to do.
PAUSE_S = 0.5


def examples(count: int) -> NDArray[np.uint8]:
    """Return the example pictures over and over, uint8 (count, 3, 32, 32). Noise would be decoded in half the time."""
    pictures = [np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) for path in PICTURES]
    return np.stack([pictures[number % len(pictures)] for number in range(count)])


def engine_rates(
    engine: CheckpointEngine,
    images: NDArray[np.uint8],
    sizes: Sequence[int] = (),
    each_s: float = SIZE_S,
    *,
    overlapping: bool = True,
) -> dict[int, float]:
    """Return `engine_rate` by batch size; the default `sizes` are a few from half the engine's largest on."""
    largest = engine.batch_sizes[-1]
    sizes = sizes or [size for size in ladder(largest, 4) if size * 2 >= largest and size in engine.batch_sizes]
    return {size: engine_rate(engine, images[:size], each_s, overlapping=overlapping) for size in sizes}


def engine_rate(
    engine: CheckpointEngine, batch: NDArray[np.uint8], least_s: float = PACE_S, *, overlapping: bool = True
) -> float:
    """Return the images per second of one batch over and over.

    Each begins beside the end of the last if the engine overlaps batches, unless `overlapping` is False.
    """
    started = time.perf_counter()
    if overlapping and engine.overlaps:
        batches = _overlapping_batches(engine, batch, started + least_s)
    else:
        batches = 0
        while time.perf_counter() - started < least_s:
            engine.run(batch)
            batches += 1
    return round(batches * len(batch) / (time.perf_counter() - started), 1)


def _overlapping_batches(engine: CheckpointEngine, batch: NDArray[np.uint8], until: float) -> int:
    """Compute a batch over and over until a time.perf_counter(), two under way at a time; return how often."""

    def compute(turn: Turn) -> None:
        try:
            turn.wait()
            engine.run(batch, turn.pass_on_early)
        finally:
            turn.end()

    under_way: deque[tuple[Turn, Future[None]]] = deque()
    batches = 0
    with ThreadPoolExecutor(2) as pool:
        while time.perf_counter() < until:
            turn = Turn(is_full=True)
            if under_way:
                turn.follow(under_way[-1][0])
            under_way.append((turn, pool.submit(compute, turn)))
            batches += 1
            if len(under_way) == 2:
                under_way.popleft()[1].result()
        for _turn, computing in under_way:
            computing.result()
    return batches


def median_ms(engine: CheckpointEngine, batch: NDArray[np.uint8], least_s: float = PACE_S) -> float:
    """Return the median of the milliseconds that one batch takes, over and over."""
    times: list[float] = []
    until = time.perf_counter() + least_s
    while (started := time.perf_counter()) < until or not times:
        engine.run(batch)
        times.append(time.perf_counter() - started)
    return round(statistics.median(times) * 1e3, 3)


def best_size(rounds: list[dict[int, float]]) -> int:
    """Return the batch size with the highest median rate; the highest of a single round would be the luckiest.

    Its rate is to be measured anew: the one by which it was chosen owes something to luck, too.
    """
    return max(rounds[0], key=lambda size: statistics.median(rates[size] for rates in rounds))


def best_batch(engine: CheckpointEngine, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], list[dict[int, float]]]:
    """Return a batch of the engine's best size, and the rates by size, of each round, by which that was chosen."""
    rounds = [engine_rates(engine, images) for _ in range(SIZE_ROUNDS)]
    return images[: best_size(rounds)], rounds


def shares_of_engine_rate(runs: Sequence[tuple[str, float]], paces: Sequence[float]) -> dict[str, list[float]]:
    """Return by name each run's rate as a share of the engine's, of which `paces` has one before and after each run.

    A machine's pace changes within minutes, for service and engine alike.
    """
    shares: dict[str, list[float]] = {}
    for (name, rate), before, after in zip(runs, paces, paces[1:], strict=False):
        shares.setdefault(name, []).append(round(2 * rate / (before + after), 4))
    return shares
