"""How long requests wait for an engine that loses no time: what random arrivals alone cost.

No service can be quicker than this at the same rate. It is the queue of one server that takes all requests that wait,
up to a limit, as one batch, while requests arrive by a Poisson process.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

REQUESTS = 200_000


def latency_s(rate: float, batch_s: Callable[[int], float], most: int, percent: float, seed: int = 0) -> float:
    """Return a percentile of the latency in seconds, by simulation.

    `rate` requests arrive a second; a batch of n requests takes `batch_s(n)` seconds, n at most `most`.
    """
    arrivals = np.random.default_rng(seed).exponential(1 / rate, REQUESTS).cumsum()
    latencies = np.empty(REQUESTS)
    free, first = 0.0, 0
    while first < REQUESTS:
        begin = max(free, arrivals[first])
        behind = min(int(np.searchsorted(arrivals, begin, side="right")), first + most)
        free = begin + batch_s(behind - first)
        latencies[first:behind] = free - arrivals[first:behind]
        first = behind
    return float(np.percentile(latencies, percent))


def batch_seconds(measured: dict[int, float]) -> Callable[[int], float]:
    """Return a function from n images to an engine's seconds, linear between the measured sizes.

    `measured` has the seconds by size.
    """
    sizes = sorted(measured)
    return lambda count: float(np.interp(count, sizes, [measured[size] for size in sizes]))
