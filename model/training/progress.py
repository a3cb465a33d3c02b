"""What a run tells while it trains: of steps as often as is wanted, of each epoch, and how long the rest will take."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from model.training.recipe import Recipe
from model.training.time_left import TimeLeft, duration_in_words

log = logging.getLogger(__name__)

Progress = Callable[[int, int, dict[str, float]], None]
OnEpoch = Callable[[dict[str, Any]], None]


class RunProgress:
    """Tells `on_step` (step, steps, figures) every `every_s` seconds, and `on_epoch` each epoch's line of metrics.

    Steps are counted over the whole run. The lines are logged, too.
    """

    def __init__(
        self,
        recipe: Recipe,
        steps_per_epoch: int,
        *,
        on_step: Progress | None,
        on_epoch: OnEpoch | None,
        every_s: float,
    ) -> None:
        self.on_step, self.on_epoch = on_step, on_epoch
        self._every_s = every_s
        self._steps = recipe.epochs * steps_per_epoch
        self._time_left = TimeLeft(recipe, steps_per_epoch)
        self._told_at = -math.inf

    def begin(self, step: int) -> None:
        """Measure how long steps take from now on, when `step` of them are done."""
        self._time_left.begin(step, time.monotonic())

    def is_due(self, *, always: bool) -> bool:
        """Return whether somebody wants to be told of this step, or `always` would be, and count it as told."""
        now = time.monotonic()
        due = self.on_step is not None and (always or now - self._told_at >= self._every_s)
        if due:
            self._told_at = now
        return due

    def tell_step(self, step: int, figures: dict[str, float]) -> None:
        """Tell that `step` steps are done, with what they gave: loss, accuracy, images_per_s; seconds_left is added."""
        if self.on_step is not None:
            self.on_step(step, self._steps, figures | {"seconds_left": self._seconds_left(step) or 0.0})

    def tell_epoch(self, step: int, line: dict[str, Any]) -> None:
        """Tell of an epoch that has ended after `step` steps of the run."""
        left = self._seconds_left(step)
        figures = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in line.items())
        log.info("%s%s", figures, f", about {duration_in_words(left)} left" if left else "")
        if self.on_epoch is not None:
            self.on_epoch(line)

    def _seconds_left(self, step: int) -> float | None:
        """Return about how long the steps that are left will take, None if this process has not done one yet."""
        self._time_left.note(step, time.monotonic())
        return self._time_left.seconds()
