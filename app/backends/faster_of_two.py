"""Two ways to compute a batch, of which the one that is faster at the time gets most batches."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from math import sqrt
from statistics import median

import numpy as np
from numpy.typing import NDArray

from app.backends.measured import Candidate
from app.engine_errors import EngineBroken

log = logging.getLogger(__name__)

# One batch in TRIAL_EVERY is computed the other way, to see whether that is the faster one by now. Until the first
# verdict, every second one is.
TRIAL_EVERY = 16

# How many trials count, the last ones: a single batch may be half as slow again by a neighbour's burst.
TRIALS = 9

# Where the two ratios of two sizes are further apart than this, the machine's pace has changed since one was measured.
SAME_PACE = 1.25

# What a trial that failed counts as: so many times the usual way's seconds.
FAILED = 100.0


class FasterOfTwo:
    """`first` or `second`, whichever takes less time for an image; `first` until that is known. For one thread.

    Which one it is changes with what else the machine does (docs/architecture.md), so it is measured while both serve,
    from `begin_trials` on: a trial's seconds for an image are set beside those of the batch just after it. Both met the
    same neighbours then, and neither found its weights in the processor's caches. A number of images that comes for the
    first time, which a runtime sets itself up for, is computed in both ways, and counts for nothing.
    """

    def __init__(self, first: Candidate, second: Candidate, clock: Callable[[], float] = time.perf_counter) -> None:
        self._usual, self._other = first, second
        self._clock = clock
        self._trials_begun = False
        self._known_sizes: set[int] = set()
        self._usual_batches = 0  # since the last trial
        self._trial_size = 0  # of the last trial, until it has been set beside the next batch
        # Seconds for an image by size, each in the last trial of that size and in the last batch just after a trial.
        self._other_s: dict[int, float] = {}
        self._usual_s: dict[int, float] = {}
        self._delay = 0  # of the next trial, in batches
        self._random = random.Random(0)  # noqa: S311 - no secret, only irregular
        self._ratios: deque[float] = deque(maxlen=TRIALS)  # the other way's seconds over the usual one's

    def begin_trials(self) -> None:
        """Compare the two from now on. Before that all goes the usual way, so that its times can be compared."""
        self._trials_begun = True

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See Candidate. Raises what the usual way raises, and EngineBroken; what else the other one raises is logged.

        Then the usual way answers.
        """
        size = len(images)
        if size not in self._known_sizes:
            self._known_sizes.add(size)
            self._try_other(images)
            return self._usual.logits(images)
        if not self._trials_begun:
            return self._usual.logits(images)
        every = TRIAL_EVERY if len(self._ratios) == TRIALS else 2
        if self._usual_batches >= every - 1 + self._delay:
            self._usual_batches = self._trial_size = self._delay = 0
            began = self._clock()
            tried = self._try_other(images)
            if tried is None:
                logits = self._usual.logits(images)
                self._ratios.append(FAILED)  # not if it fails as well: a batch may be too large for both
                return logits
            self._trial_size, self._other_s[size] = size, (self._clock() - began) / size
            return tried
        began = self._clock()
        logits = self._usual.logits(images)
        seconds = (self._clock() - began) / size
        self._usual_batches += 1
        if self._trial_size:
            self._compare(self._trial_size, size, seconds)
            self._trial_size = 0
        return logits

    def _try_other(self, images: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """Compute a batch the other way; return None if that fails. Raises EngineBroken."""
        try:
            return self._other.logits(images)
        except EngineBroken:
            raise
        except Exception as error:
            if FAILED not in self._ratios:
                log.warning("one of two ways to compute a batch fails, the other one is used: %s", error)
            return None

    def _compare(self, trial_size: int, usual_size: int, seconds: float) -> None:
        """Set the last trial beside the batch just after it, which went the usual way and took `seconds` an image."""
        self._usual_s[usual_size] = seconds
        if trial_size == usual_size:
            self._judge(self._other_s[trial_size] / seconds)
            return
        # An image costs more in a small batch. So each is set beside the last one of its own size that went the other
        # way. A pace that has changed a little since makes one ratio about as much smaller as the other one larger.
        if trial_size in self._usual_s and usual_size in self._other_s:
            of_trial = self._other_s[trial_size] / self._usual_s[trial_size]
            of_usual = self._other_s[usual_size] / seconds
            if 1 / SAME_PACE < of_trial / of_usual < SAME_PACE:
                self._judge(sqrt(of_trial * of_usual))
        # Sizes that come in regular turns would else meet the same way for ever.
        self._delay = self._random.randrange(2)

    def _judge(self, ratio: float) -> None:
        """Learn from a trial, and change ways if the other one is the faster one by now."""
        self._ratios.append(ratio)
        if len(self._ratios) == TRIALS and median(self._ratios) < 1:
            self._usual, self._other = self._other, self._usual
            self._usual_s, self._other_s = self._other_s, self._usual_s
            self._ratios = deque((1 / one for one in self._ratios), maxlen=TRIALS)
