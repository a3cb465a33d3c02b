"""Two ways to compute a batch, of which the one that is quicker at the time gets most batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median

import numpy as np
from numpy.typing import NDArray

from app.backends.measured import Candidate

# One batch in so many goes the way that is not used, to see whether it is the quicker one by now. Until the first
# verdict, every second one does.
TRIAL_EVERY = 16

# So many trials count, the last ones: a single batch may be half as slow again by a neighbour's burst.
TRIALS = 9


class QuickerWay:
    """`first` or `second`, whichever takes less time for an image; `first` until that is known. For one thread.

    Which one it is changes with what else the machine does (docs/architecture.md), so it is measured while both serve:
    a trial's seconds for an image are set beside those of the batch just after it. Both met the same neighbours then,
    and neither found its weights in the processor's caches. A number of images that comes for the first time, which a
    runtime sets itself up for, is computed in both ways, and counts for nothing.
    """

    def __init__(self, first: Candidate, second: Candidate, clock: Callable[[], float] = time.perf_counter) -> None:
        self._usual, self._other = first, second
        self._clock = clock
        self._known_sizes: set[int] = set()
        self._usual_batches = 0  # since the last trial
        self._trial_s = 0.0  # for an image, in the last trial
        self._ratios: deque[float] = deque(maxlen=TRIALS)  # the other way's seconds over the usual one's

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See Candidate. Raises what the ways raise."""
        if len(images) not in self._known_sizes:
            self._other.logits(images)
            logits = self._usual.logits(images)
            self._known_sizes.add(len(images))
            return logits
        is_trial = self._usual_batches >= (TRIAL_EVERY - 1 if len(self._ratios) == TRIALS else 1)
        way = self._other if is_trial else self._usual
        began = self._clock()
        logits = way.logits(images)
        seconds = (self._clock() - began) / len(images)
        if is_trial:
            self._usual_batches, self._trial_s = 0, seconds
        else:
            self._usual_batches += 1
            if self._usual_batches == 1 and self._trial_s:
                self._judge(self._trial_s / seconds)
        return logits

    def _judge(self, ratio: float) -> None:
        """Learn from a trial, and change ways if the other one is the quicker one by now."""
        self._ratios.append(ratio)
        if len(self._ratios) == TRIALS and median(self._ratios) < 1:
            self._usual, self._other = self._other, self._usual
            self._ratios = deque((1 / one for one in self._ratios), maxlen=TRIALS)
