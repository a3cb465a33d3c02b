"""How long the rest of a run will take, from what its steps took so far. Nothing here needs torch."""

from __future__ import annotations

from model.training.recipe import Recipe


class TimeLeft:
    """What the steps of this process took at each image size, with all that came between them, such as saving.

    Of a size that is still to come, a step is taken to cost as much a pixel as one of the latest size.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self._recipe = recipe
        self._steps_per_epoch = steps_per_epoch
        self._step, self._now = 0, 0.0
        self._measured: dict[int, tuple[int, float]] = {}  # steps and seconds by size in pixels, the latest size last

    def begin(self, step: int, now: float) -> None:
        """Measure from `now` on, a time.monotonic(), when `step` steps of the run are done."""
        self._step, self._now = step, now

    def note(self, step: int, now: float) -> None:
        """Take note that `step` steps, at least one, are done by `now`."""
        size = self._recipe.size_of((step - 1) // self._steps_per_epoch)
        steps, seconds = self._measured.pop(size, (0, 0.0))
        self._measured[size] = steps + step - self._step, seconds + now - self._now
        self._step, self._now = step, now

    def seconds(self) -> float | None:
        """Return the seconds that the steps that are left will take, None while none has been measured."""
        total, begins = 0.0, 0
        for size, epochs in self._recipe.phases:
            ends = begins + epochs * self._steps_per_epoch
            if (steps := ends - max(begins, self._step)) > 0:
                a_step = self._seconds_a_step(size)
                if a_step is None:
                    return None
                total += steps * a_step
            begins = ends
        return total

    def _seconds_a_step(self, size: int) -> float | None:
        by_size = {one: seconds / steps for one, (steps, seconds) in self._measured.items() if steps}
        if size in by_size or not by_size:
            return by_size.get(size)
        latest, seconds = list(by_size.items())[-1]
        return seconds * size**2 / latest**2


def duration_in_words(seconds: float) -> str:
    """Return a duration as people say it, in its two largest units of hours, minutes and seconds."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"
