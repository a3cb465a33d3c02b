"""Which of two ways to compute a batch is the faster one, measured when an engine starts, and how far logits differ."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.hardware.timing import CLOCKS, best_times

# How often each is timed, in turns, if that takes no longer than BUDGET_S.
TIMES = 4
BUDGET_S = 1.0


class Candidate(Protocol):
    """A way to compute a batch."""

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S), contiguous and writable, to float32 logits (N, classes)."""


def batch_of(examples: NDArray[np.uint8], values: int, least: int) -> NDArray[np.uint8]:
    """Return examples, uint8 (n, 3, S, S), again and again: `values` numbers or so together, `least` images or more."""
    return np.resize(examples, (max(least, values // examples[0].size), *examples.shape[1:]))


def relative_error(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return by how much they differ at most, as a share of the largest that is expected; NaN where one of them is."""
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def speedup(baseline: Candidate, candidate: Candidate, images: NDArray[np.uint8]) -> float:
    """Return the rate of `candidate` divided by that of `baseline`, for uint8 (N, 3, S, S).

    By whichever of the CLOCKS shows the most (model/hardware/timing.py).
    """
    best = best_times({way: partial(way.logits, images) for way in (baseline, candidate)}, TIMES, CLOCKS, BUDGET_S)
    return max(slow / quick for slow, quick in zip(best[baseline], best[candidate], strict=True))
