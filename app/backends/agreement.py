"""Whether a picture gets the same answer in whatever batch it comes, as clients are promised.

A device computes batches of different sizes by different kernels, whose sums are rounded in another order. How far that
moves probabilities depends on the precision and on the checkpoint, so it is measured where the engine is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from app.engine_errors import EngineOutOfMemory

# What is promised: no probability moves by more.
BOUND = 1e-3


def max_difference_between_batch_sizes(
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]], pictures: NDArray[np.uint8], sizes: Iterable[int]
) -> float:
    """Return the largest difference of a probability of the pictures, uint8 (n, 3, S, S), between batches of `sizes`.

    `run` maps uint8 (N, 3, S, S) to probabilities (N, classes). The smallest size comes first, which shows what works
    at all, then the largest, whose memory serves the others. It stops once BOUND is passed, and skips a size that
    does not fit into the memory: no batch will have it. NaN differs by infinity.
    """
    least = most = None
    off = 0.0
    smallest, *larger = sorted(sizes)
    for size in (smallest, *reversed(larger)):
        try:
            found = _in_batches(run, pictures, size)
        except EngineOutOfMemory:
            continue
        least = found if least is None else np.minimum(least, found)
        most = found if most is None else np.maximum(most, found)
        off = float((most - least).max())
        if not off <= BOUND:  # also catches NaN
            return off if off > BOUND else float("inf")
    return off


def _in_batches(
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]], pictures: NDArray[np.uint8], size: int
) -> NDArray[np.float32]:
    """Return the probabilities of the pictures in full batches of `size`: the last of them comes around again."""
    parts = [pictures[begin : begin + size] for begin in range(0, len(pictures), size)]
    return np.concatenate([run(np.resize(part, (size, *part.shape[1:])))[: len(part)] for part in parts])
